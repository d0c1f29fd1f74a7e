"""eval: checkpoint + prepared folders -> predictions -> metrics.

Two loops: the network writes predictions.parquet; the metrics are functions of that file alone.
Each manipulation is measured against all reals of its folder, at each quality, then the mean over
qualities, all of them pooled, and the worst; at frame and at video level.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfdetect.checkpoint import Checkpoint, choose_device, load_checkpoint
from dfdetect.data import at_qualities, default_workers
from dfdetect.errors import DfdetectError, unknown
from dfdetect.faces import CropRecipe
from dfdetect.files import make_folder, read_json, write_json, write_whole
from dfdetect.manifest import SPLITS, Sample, read_samples
from dfdetect.metrics import accuracy, auc, eer, mean_by
from dfdetect.processes import join, share_of
from dfdetect.quality import ordered, parse_qualities, parse_quality, to_prepare
from dfdetect.results import Prediction, predict

ALL = "all"
"""The column of every manipulation together."""


@dataclass(frozen=True)
class Cell:
    """One number's place and the numbers: AUC, EER and accuracy at `threshold`, None with a reason.

    `quality` is a quality, or mean, pooled, worst over those evaluated; n counts frames or videos.
    """

    data: str
    split: str
    level: str
    quality: str
    manipulation: str
    auc: float | None
    eer: float | None
    accuracy: float | None
    threshold: float
    n_real: int
    n_fake: int
    reason: str = ""


class EvalResult(NamedTuple):
    """What eval found: the cells, and what they were computed from."""

    model: dict[str, Any]
    cells: list[Cell]
    predictions: dict[str, list[Prediction]]
    warnings: list[str]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "model": self.model,
            "cells": [asdict(cell) for cell in self.cells],
            "warnings": self.warnings,
        }


def evaluate(
    model: Path,
    data: Sequence[Path],
    qualities: str | None = None,
    split: str = "test",
    out: Path | None = None,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> EvalResult:
    """Score one split of prepared folders and measure; writes predictions and metrics into `out`.

    `qualities` are by default those stored; JPEG that is not stored is made of the raw crops.
    `workers` load crops (default: as the machine's cores allow).
    Processes started by `torchrun` share the scoring; each returns the whole result.

    Errors: DfdetectError for an unreadable checkpoint or folder, a quality that was not prepared,
    a split without rows, or folders of which none has both classes.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    who = join(on_cpu=choose_device(device) == "cpu")
    checkpoint = load_checkpoint(model, device)
    chosen = {name: _rows(folder, split, qualities) for name, folder in _named(data).items()}
    if out and who.is_main:
        make_folder(out)
    warnings = [w for f in data for w in _crop_warnings(checkpoint, f)]
    for name, rows in chosen.items():
        warnings += _unseen_warnings(checkpoint, name, rows)
    n_total, n_done = sum(len(share_of(rows)) for rows in chosen.values()), 0

    def progress(n: int) -> None:
        nonlocal n_done
        n_done += n
        if on_progress:
            on_progress(n_done, n_total)

    image_size = checkpoint.detector.image_size
    predictions = {
        name: predict(
            checkpoint.detector,
            rows,
            image_size,
            checkpoint.device,
            64,
            default_workers(checkpoint.device) if workers is None else workers,
            progress,
        )
        for name, rows in chosen.items()
    }
    cells = [
        cell
        for name, rows in predictions.items()
        for cell in measure(rows, name, split, checkpoint.info.threshold)
    ]
    if all(cell.auc is None for cell in cells):
        raise DfdetectError(
            f"{', '.join(map(str, data))}: nothing to measure in the {split} split "
            f"({cells[0].reason})",
            "both real and fake videos are needed in it",
        )
    result = EvalResult(_described(checkpoint), cells, predictions, warnings)
    if out and who.is_main:
        write_results(out, result)
    return result


def measure(
    predictions: Sequence[Prediction], data: str, split: str, threshold: float
) -> list[Cell]:
    """All cells of one folder's predictions."""
    qualities = list(dict.fromkeys(p.quality for p in predictions))
    manipulations = sorted({p.manipulation for p in predictions if p.label})
    columns = manipulations if len(manipulations) == 1 else [*manipulations, ALL]
    cells = []
    for level in ("frame", "video"):
        for manipulation in columns or [ALL]:
            compared = [
                p for p in predictions if not p.label or manipulation in (ALL, p.manipulation)
            ]
            place = (data, split, level)
            singles = [
                _cell(place, q, manipulation, [p for p in compared if p.quality == q], threshold)
                for q in qualities
            ]
            cells += singles
            if len(qualities) > 1:
                pooled = _cell(place, "pooled", manipulation, compared, threshold)
                cells += [_summary("mean", singles), pooled, _summary("worst", singles)]
    return cells


def write_results(out: Path, result: EvalResult) -> None:
    """predictions.parquet, metrics.json and metrics.csv, each whole."""
    rows = [{"data": name, **p._asdict()} for name, ps in result.predictions.items() for p in ps]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    write_whole(out / "predictions.parquet", buffer.getvalue())
    write_json(out / "metrics.json", result.as_json())
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(result.cells[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(cell) for cell in result.cells)
    write_whole(out / "metrics.csv", text.getvalue())


# --- numbers ---------------------------------------------------------------------------------


def _cell(
    place: tuple[str, str, str], quality: str, manipulation: str,
    rows: Sequence[Prediction], threshold: float,
) -> Cell:  # fmt: skip
    """Frames rank by logit (sigmoid saturates); a video is the mean score of its crops there."""
    labels = np.array([p.label for p in rows], int)
    scores = np.array([p.score for p in rows])
    ranks = np.array([p.logit for p in rows])
    if place[2] == "video" and len(rows):
        # One video at several qualities is several entries of the pool.
        groups = [f"{p.quality}/{p.video_id}" for p in rows]
        keys, scores = mean_by(scores, groups)
        label_of = dict(zip(groups, labels, strict=True))
        labels = np.array([label_of[key] for key in keys], int)
        ranks = scores
    n_fake = int(labels.sum())
    n_real = len(labels) - n_fake
    if not n_real or not n_fake:
        reason = f"no {'real' if not n_real else 'fake'} {place[2]}s at {quality}"
        return Cell(
            *place, quality, manipulation, None, None, None, threshold, n_real, n_fake, reason
        )
    return Cell(
        *place, quality, manipulation, auc(ranks, labels), eer(ranks, labels),
        accuracy(scores, labels, threshold), threshold, n_real, n_fake,
    )  # fmt: skip


def _summary(name: str, cells: Sequence[Cell]) -> Cell:
    """Mean or worst over qualities; empty if one of them is empty. n is that of one quality."""
    empty = [cell for cell in cells if cell.auc is None]
    values: dict[str, float | None] = dict.fromkeys(("auc", "eer", "accuracy"))
    if not empty:
        for key in values:
            column = [getattr(cell, key) for cell in cells]
            worst = max if key == "eer" else min
            values[key] = float(np.mean(column)) if name == "mean" else worst(column)
    first = min(cells, key=lambda cell: (cell.n_real, cell.n_fake))
    return Cell(
        first.data, first.split, first.level, name, first.manipulation, **values,
        threshold=first.threshold, n_real=first.n_real, n_fake=first.n_fake,
        reason=empty[0].reason if empty else "",
    )  # fmt: skip


# --- rows ------------------------------------------------------------------------------------


def _named(data: Sequence[Path]) -> dict[str, Path]:
    """Folders by their last name, by their whole path where two share it."""
    names = [folder.resolve().name for folder in data]
    return {
        (name if names.count(name) == 1 else str(folder)): folder
        for name, folder in zip(names, data, strict=True)
    }


def _rows(folder: Path, split: str, qualities: str | None) -> list[Sample]:
    samples = read_samples(folder)
    prepared = ordered({s.quality for s in samples})
    wanted = [q.name for q in parse_qualities(qualities or prepared, ranges=True)]
    rows = at_qualities(samples, wanted)
    for quality in wanted:
        if not any(s.quality == quality for s in rows):
            raise DfdetectError(
                f"{folder}: was not prepared at {quality}",
                f"it holds {', '.join(prepared)}; prepare it with --qualities {to_prepare(wanted)}",
            )
    rows = [s for s in rows if s.split == split]
    if not rows:
        splits = sorted({s.split for s in samples})
        raise DfdetectError(f"{folder}: the {split} split is empty", f"it has {', '.join(splits)}")
    return sorted(rows, key=lambda s: (wanted.index(s.quality), s.sample_id))


def _crop_warnings(checkpoint: Checkpoint, folder: Path) -> list[str]:
    recipe = (
        read_json(folder / "prepare.json").get("recipe", {})
        if (folder / "prepare.json").exists()
        else {}
    )
    crop = CropRecipe.model_validate(recipe.get("crop", {}))
    if crop == checkpoint.info.crop:
        return []
    return [f"{folder} was cropped with another recipe than the model was trained on: {crop}"]


def _unseen_warnings(checkpoint: Checkpoint, name: str, rows: Sequence[Sample]) -> list[str]:
    trained = [parse_quality(q) for q in checkpoint.info.preset["qualities"]]
    scored = [parse_quality(q) for q in sorted({s.quality for s in rows})]
    unseen = [q.name for q in scored if not any(t.covers(q) for t in trained)]
    return [f"{name}: the model never trained on {', '.join(unseen)}"] if unseen else []


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "threshold": checkpoint.info.threshold,
        "trained_on": json.loads(json.dumps(checkpoint.info.data)),
    }
