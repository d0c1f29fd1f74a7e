"""eval: checkpoint + prepared folders -> predictions -> metrics.

Two loops: the network writes predictions.parquet; the metrics are functions of that file alone.
One pass of the network also names each crop's domain, where the detector has a domain head, and
keeps the features of some crops for t-SNE, if asked.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfdetect.cells import Cell, alarms, check_names, measure, was_seen
from dfdetect.checkpoint import Checkpoint, choose_device, load_checkpoint
from dfdetect.corruptions import UNSEEN, facts_of, seen_in_training
from dfdetect.coverage import Coverage, Lost, coverage_of, lost_of, read_lost
from dfdetect.data import at_qualities, default_workers
from dfdetect.domains import Confusion, confusion_rows, confusions
from dfdetect.embedding import FEWEST, Embedding, View, choose_crops, embedding_of, plane_of, viewer
from dfdetect.errors import MOST_NAMED, DfdetectError, unknown
from dfdetect.faces import CropRecipe
from dfdetect.files import make_folder, read_json, write_json, write_whole
from dfdetect.independence import of_split, shared, traces, what_trained
from dfdetect.manifest import SPLITS, Sample, read_samples
from dfdetect.predictions import (
    METRICS_SCHEMA,
    Predictions,
    read_predictions,
    read_results,
    write_predictions,
)
from dfdetect.probabilities import Calibrated, calibrated
from dfdetect.processes import join, share_of
from dfdetect.quality import ordered, parse_qualities, to_prepare
from dfdetect.resampling import ROUNDS
from dfdetect.results import Prediction, Scorer, predictions_of
from dfdetect.robustness import Robustness, measure_robustness, qualities_of
from dfdetect.strata import measure_faces, parse_edges

FIGURES = ("domains.csv", "domains.png", "features.npz", "tsne.png")
CURVES = ("robustness.parquet", "robustness.csv", "robustness.png")
"""What is written only where there is something to show."""
_CALIBRATED = {"method", "slope", "intercept", "prior", "threshold"}


class EvalResult(NamedTuple):
    """What eval found: the cells, and the predictions they were computed from; how much of each
    folder was scored, and scores as probabilities; how often the domain head took each manipulation
    for which; the features of some crops. `qualities`: for each folder and quality where its crops
    come from, what exactly was done, and whether training saw it. `face_sizes`: edges of the strata
    among the cells, px."""

    predictions: Predictions
    cells: list[Cell]
    warnings: list[str]
    coverage: Sequence[Coverage] = ()
    calibration: Sequence[Calibrated] = ()
    domains: Sequence[Confusion] = ()
    embedding: Embedding | None = None
    qualities: Sequence[Mapping[str, Any]] = ()
    face_sizes: Sequence[float] = ()
    robustness: Robustness | None = None

    @property
    def model(self) -> dict[str, Any]:
        """As metrics.json describes it."""
        return self.predictions.model

    @property
    def files(self) -> list[str]:
        """Names of what is written of it."""
        names = ["predictions.parquet", "metrics.json", "metrics.csv"]
        names += FIGURES[:2] if self.domains else []
        names += FIGURES[2:] if self.embedding else []
        return names + list(CURVES if self.robustness else [])

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": METRICS_SCHEMA,
            "model": self.model,
            "cells": [asdict(cell) for cell in self.cells],
            "coverage": [asdict(coverage) for coverage in self.coverage],
            "calibration": [of_videos.as_json() for of_videos in self.calibration],
            "domains": [asdict(confusion) for confusion in self.domains],
            "qualities": list(self.qualities),
            "face_sizes": list(self.face_sizes),
            "robustness": self.robustness and self.robustness.as_json(),
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
    tsne: int | None = None,
    rounds: int = ROUNDS,
    sweep: str | None = None,
    face_sizes: str | None = None,
) -> EvalResult:
    """Score one split of prepared folders and measure; writes predictions and metrics into `out`.

    `qualities` are by default those stored; others are made of the raw crops, but for cNN. `sweep`
    (`robustness.parse_sweep`) adds curves of AUC against severity, whose qualities are in no other
    figure; `face_sizes` (edges in px, as 64,128) adds cells of small and of large faces. `workers`
    load crops (default: as the machine's cores allow). `tsne`: of up to so many crops of
    each manipulation write pooled features and their t-SNE too. `rounds` of the bootstrap.
    Processes started by `torchrun` share the scoring; each returns the whole result.

    Errors: DfdetectError for an unreadable checkpoint or folder, a quality that was not prepared,
    a split without rows, folders of which none has both classes, a manipulation that is called
    like a summary of them, a score that is not finite, or a t-SNE without `out` or of fewer than 5
    crops.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if tsne and not out:
        raise DfdetectError("--tsne writes a picture and its features", "say where to, with --out")
    edges = parse_edges(face_sizes) if face_sizes else []
    levels = qualities_of(sweep) if sweep else []
    who = join(on_cpu=choose_device(device) == "cpu")
    checkpoint = load_checkpoint(model, device)
    folders = _named(data)
    chosen = {name: _rows(folder, split, qualities) for name, folder in folders.items()}
    swept = {name: _rows(f, split, ",".join(levels)) for name, f in folders.items() if sweep}
    check_names({name: {s.manipulation for s in rows} for name, rows in chosen.items()})
    embedded = {name: choose_crops(rows, tsne or 0) for name, rows in chosen.items()}
    if tsne and (n := sum(int(flags.sum()) for flags in embedded.values())) < FEWEST:
        raise DfdetectError(
            f"--tsne {tsne}: no t-SNE of {n} crops", f"it takes {FEWEST} of all manipulations"
        )
    if out and who.is_main:
        make_folder(out)
    trained = checkpoint.info.data.get("manipulations")
    warnings = [w for f in data for w in _crop_warnings(checkpoint, f)]
    for name, rows in chosen.items():
        warnings += _unseen_warnings(checkpoint, name, rows)
    warnings += _seen_warnings(checkpoint, folders, split)
    facts: list[dict[str, Any]] = []
    for name, folder in folders.items():
        facts += _quality_facts(checkpoint, name, folder, chosen[name] + swept.get(name, []))
    swept = {name: _not_among(rows, chosen[name]) for name, rows in swept.items()}
    n_total, n_done = sum(len(share_of(r)) for d in (chosen, swept) for r in d.values()), 0

    def progress(n: int) -> None:
        nonlocal n_done
        n_done += n
        if on_progress:
            on_progress(n_done, n_total)

    detector, device = checkpoint.detector, checkpoint.device
    workers = default_workers(device) if workers is None else workers
    views: dict[str, list[View]] = {}
    for name, rows in chosen.items():
        view = viewer(detector, share_of(embedded[name]))
        with Scorer(rows, detector.image_size, 64, workers) as scorer:
            views[name] = scorer.read(detector, view, device, progress)
    names = checkpoint.info.domains
    predictions = {
        name: predictions_of(
            rows,
            [v.logit for v in views[name]],
            [None if v.domain is None else names[v.domain] for v in views[name]],
        )
        for name, rows in chosen.items()
    }
    told = [
        confusion
        for name, rows in predictions.items()
        if detector.tells_domains
        for confusion in confusions(rows, name, split, names, trained)
    ]
    curves: dict[str, list[Prediction]] = {}
    for name, rows in swept.items():
        with Scorer(rows, detector.image_size, 64, workers) as scorer:
            curves[name] = [p for p in predictions[name] if p.quality in levels]
            curves[name] += scorer.predict(detector, device, progress)
    described = _described(checkpoint)
    lost = {name: read_lost(folder, split) for name, folder in folders.items()}
    result = _measured(Predictions.of(described, predictions), split, lost, rounds, edges)
    if sweep:
        robustness = measure_robustness(Predictions.of(described, curves), sweep, split, rounds)
        result = result._replace(robustness=robustness)
    result = result._replace(
        warnings=[*warnings, *result.warnings],
        qualities=facts,
        domains=told,
        embedding=embedding_of(chosen, views, trained) if tsne else None,
    )
    if out and who.is_main:
        write_results(out, result)
    return result


def remeasure(results: Path, rounds: int = ROUNDS) -> EvalResult:
    """What eval found, computed again from the predictions that it wrote into the folder `results`,
    without a network. Coverage and domains are those of metrics.json; there is no embedding.

    Errors: DfdetectError for a folder that eval did not write, or that is damaged.
    """
    predictions, stored = read_results(results)
    lost = {one["data"]: lost_of(one) for one in stored["coverage"]}
    split = stored["cells"][0]["split"]
    result = _measured(predictions, split, lost, rounds, stored.get("face_sizes", []))
    if stored.get("robustness"):
        curves = read_predictions(results / CURVES[0])
        robustness = measure_robustness(curves, stored["robustness"]["sweep"], split, rounds)
        result = result._replace(robustness=robustness)
    domains = [Confusion(**one) for one in stored["domains"]]
    return result._replace(
        domains=domains, qualities=stored.get("qualities", []), warnings=stored["warnings"]
    )


def _measured(
    predictions: Predictions,
    split: str,
    lost: Mapping[str, Lost | None],
    rounds: int,
    edges: Sequence[float],
) -> EvalResult:
    """Everything that follows from predictions, and from what has none."""
    model, folders = predictions.model, predictions.folders()
    qualities = {q for columns in folders.values() for q in columns.qualities}
    seen = {q: seen_in_training(q, model["preset"]) != UNSEEN for q in qualities}
    trained = model["trained_on"].get("manipulations")
    cells = measure(folders, split, model["threshold"], trained, rounds, quality_seen=seen)
    if all(cell.auc is None for cell in cells):
        raise DfdetectError(
            f"{', '.join(folders)}: nothing to measure in the {split} split ({cells[0].reason})",
            "both real and fake videos are needed in it",
        )
    coverage = [
        coverage_of(columns, name, split, lost[name])
        for name, columns in folders.items()
        if lost.get(name) is not None
    ]
    probabilities = [
        found
        for name, columns in folders.items()
        for found in calibrated(columns, name, split, model.get("calibration"))
    ]
    warnings = [
        f"{name}: nobody knows how much of it was scored; its list of failures is missing, or says "
        "not which split they are of"
        for name in folders
        if lost.get(name) is None
    ]
    warnings += alarms(cells)
    if edges:
        cells += measure_faces(
            folders, edges, split, model["threshold"], trained, rounds, quality_seen=seen
        )
        for name, columns in folders.items():
            if n := int(np.isnan(columns.face_px).sum()):
                warnings.append(f"{name}: {n} crops of unknown face width are in no stratum")
    return EvalResult(predictions, cells, warnings, coverage, probabilities, face_sizes=edges)


def write_results(out: Path, result: EvalResult) -> None:
    """predictions.parquet, metrics.json and metrics.csv; domains.csv and domains.png, features.npz
    and tsne.png, robustness.parquet, .csv and .png where there are, and those of an earlier result
    are removed. Each whole."""
    for name in (*FIGURES, *CURVES):
        (out / name).unlink(missing_ok=True)
    write_predictions(out / "predictions.parquet", result.predictions)
    if result.robustness:
        write_predictions(out / CURVES[0], result.robustness.predictions)
    write_json(out / "metrics.json", result.as_json())
    cells = [cell.row() for cell in result.cells]
    write_whole(out / "metrics.csv", _csv([list(cells[0]), *(list(c.values()) for c in cells)]))
    for name, content in _figures(result).items():
        write_whole(out / name, content)


def _figures(result: EvalResult) -> dict[str, bytes | str]:
    """Pictures and the data that they show."""
    files: dict[str, bytes | str] = {}
    if result.domains:
        from dfdetect.reports.figures import draw_confusions

        files["domains.csv"] = _csv(confusion_rows(result.domains))
        files["domains.png"] = draw_confusions(result.domains)
    if result.embedding:
        from dfdetect.reports.figures import draw_plane

        columns, features = result.embedding
        plane = plane_of(result.embedding)
        places = {f"tsne_{name}": place for name, place in plane.places.items()}
        buffer = io.BytesIO()
        settings = {"perplexity": plane.perplexity, "seed": plane.seed}
        np.savez_compressed(buffer, **columns, **features, **places, **settings)
        files["features.npz"] = buffer.getvalue()
        files["tsne.png"] = draw_plane(columns, plane, result.cells[0].split)
    if result.robustness:
        from dfdetect.reports.curves import draw_curves

        files["robustness.csv"] = _csv(result.robustness.rows())
        files["robustness.png"] = draw_curves(result.robustness, result.model["name"])
    return files


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


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
    wanted = [q.name for q in parse_qualities(qualities or prepared, made=True)]
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


def _not_among(rows: Sequence[Sample], others: Sequence[Sample]) -> list[Sample]:
    """Those at qualities that none of the `others` has."""
    there = {row.quality for row in others}
    return [row for row in rows if row.quality not in there]


def _quality_facts(
    checkpoint: Checkpoint, name: str, folder: Path, rows: Sequence[Sample]
) -> list[dict[str, Any]]:
    """Of each quality of a folder's rows."""
    shipped = _recipe(folder).get("use_shipped", False)
    made = {row.quality: row.made is not None for row in rows}
    return [
        {"data": name, **facts_of(quality, checkpoint.info.preset, of_raw, shipped)}
        for quality, of_raw in made.items()
    ]


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / "prepare.json"
    return read_json(path).get("recipe", {}) if path.exists() else {}


def _crop_warnings(checkpoint: Checkpoint, folder: Path) -> list[str]:
    recipe = _recipe(folder)
    crop = CropRecipe.model_validate(recipe.get("crop", {}))
    if crop == checkpoint.info.crop:
        return []
    return [f"{folder} was cropped with another recipe than the model was trained on: {crop}"]


def _unseen_warnings(checkpoint: Checkpoint, name: str, rows: Sequence[Sample]) -> list[str]:
    scored = sorted({s.quality for s in rows})
    qualities = [q for q in scored if seen_in_training(q, checkpoint.info.preset) == UNSEEN]
    made = checkpoint.info.data.get("manipulations")
    fakes = sorted({s.manipulation for s in rows if s.label})
    unseen = [m for m in fakes if was_seen(m, made) is False]
    more = f" and {len(unseen) - MOST_NAMED} more" if len(unseen) > MOST_NAMED else ""
    manipulations = ", ".join(unseen[:MOST_NAMED]) + more
    never = f"{name}: the model never trained on"
    return [
        *([f"{never} {', '.join(qualities)}"] if qualities else []),
        *([f"{never} the manipulations {manipulations}"] if manipulations else []),
    ]


def _seen_warnings(checkpoint: Checkpoint, folders: Mapping[str, Path], split: str) -> list[str]:
    """Where the model is measured on what it was trained on, or what chose its checkpoint; or that
    this cannot be known, for which no measurement is refused."""
    unknown_of = f"{', '.join(folders)}: not compared with what the model was trained on"
    try:
        trained = what_trained(checkpoint, list(folders.values()))
        train, val = (traces(trained, of_split(name)) for name in ("train", "val"))
    except DfdetectError as error:
        return [f"{unknown_of} ({error.message})"]
    if not trained:
        return [f"{unknown_of}, which is not there"]
    warnings = []
    for name, folder in folders.items():
        here = traces([folder], of_split(split))
        if told := shared(here, train):
            warnings.append(
                f"{name}: the model was trained on parts of its {split} split ({told}): figures of "
                "it say nothing about what the model has not seen"
            )
        elif told := shared(here._replace(people=set()), val):
            warnings.append(
                f"{name}: parts of its {split} split chose the checkpoint ({told}): somewhat "
                "optimistic"
            )
    return warnings


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    calibration = checkpoint.info.calibration
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "threshold": checkpoint.info.threshold,
        "preset": checkpoint.info.preset,
        "crop": checkpoint.info.crop.model_dump(mode="json"),
        "trained_on": json.loads(json.dumps(checkpoint.info.data)),
        "calibration": calibration and calibration.model_dump(mode="json", include=_CALIBRATED),
    }
