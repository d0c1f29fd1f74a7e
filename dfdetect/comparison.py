"""What eval wrote about several models -> figures to compare them by, with how sure they are.

AUC, accuracy and EER are those of eval. Around each AUC stands the middle 95 % of a bootstrap that
draws whole videos; means over qualities and the gap between raw and c40 are taken round by round.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfdetect.errors import DfdetectError
from dfdetect.files import read_json
from dfdetect.metrics import interval, mean_by, resample, resampled_aucs

LEVELS = ("frame", "video")
GAP = ("raw", "c40")
"""What compression costs: the AUC at the first less that at the second."""
ROUNDS = 1000

Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Figure:
    """One AUC of one model: at a quality, their mean, all pooled, or the gap raw-c40.

    `low` and `high` are what `spread` says. All but the numbers counted are None where a class is
    missing, accuracy and EER also for a gap. n counts frames or videos of all manipulations.
    """

    cell: str
    data: str
    split: str
    level: str
    quality: str
    auc: float | None
    low: float | None
    high: float | None
    spread: str
    n_skipped: int
    accuracy: float | None
    eer: float | None
    n_real: int
    n_fake: int


class Measured(NamedTuple):
    """What eval wrote: its cells as in metrics.json, its predictions column by column."""

    cells: list[dict[str, Any]]
    predictions: Rows


def read_measured(folder: Path) -> Measured:
    """Errors: DfdetectError if eval did not write `folder` to the end, or it was damaged since."""
    cells = read_json(folder / "metrics.json")["cells"]
    path = folder / "predictions.parquet"
    names = ["data", "video_id", "quality", "label", "logit", "score"]
    try:
        table = pq.read_table(path, columns=names)
    except (OSError, pa.ArrowException) as error:
        raise DfdetectError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    return Measured(cells, {name: table[name].to_numpy() for name in names})


def figures_of(cell: str, measured: Measured, rounds: int = ROUNDS, seed: int = 0) -> list[Figure]:
    """All figures of one model, by folder, level and quality."""
    figures = []
    for data in dict.fromkeys(c["data"] for c in measured.cells):
        rows = _where(measured.predictions, measured.predictions["data"] == data)
        resamples = resample(rows["video_id"], rounds, seed)
        for level in LEVELS:
            cells = [c for c in measured.cells if (c["data"], c["level"]) == (data, level)]
            everything = cells[-1]["manipulation"]  # eval lists all manipulations together last
            cells = {c["quality"]: c for c in cells if c["manipulation"] == everything}
            aucs: dict[str, np.ndarray] = {}
            for quality, c in cells.items():
                if quality not in ("mean", "worst") and c["auc"] is not None:
                    chosen = rows["quality"] == quality
                    some = rows if quality == "pooled" else _where(rows, chosen)
                    aucs[quality] = resampled_aucs(*_entries(some, level), resamples)
            if "mean" in cells and cells["mean"]["auc"] is not None:
                aucs["mean"] = np.mean([a for q, a in aucs.items() if q != "pooled"], 0)
            figures += [
                _figure(cell, c, aucs.get(q), rounds) for q, c in cells.items() if q != "worst"
            ]
            if set(GAP) <= set(aucs):
                figures.append(_gap(cell, *(cells[q] for q in GAP), *(aucs[q] for q in GAP)))
    return figures


def over_seeds(group: str, runs: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Mean and range over the figures of runs that differ only in their seed."""
    figures = []
    for same in zip(*runs, strict=True):
        aucs = [f.auc for f in same]
        if None in aucs:
            continue
        figures.append(
            replace(
                same[0], cell=group, auc=float(np.mean(aucs)), low=min(aucs), high=max(aucs),
                spread=f"range of {len(same)} seeds", n_skipped=0,
                accuracy=_mean([f.accuracy for f in same]), eer=_mean([f.eer for f in same]),
            )
        )  # fmt: skip
    return figures


# --- parts -----------------------------------------------------------------------------------


def _where(rows: Rows, chosen: np.ndarray) -> Rows:
    return {name: column[chosen] for name, column in rows.items()}


def _entries(rows: Rows, level: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What eval ranks at a level, as it does: scores [n], labels [n], videos [n]."""
    videos, labels = rows["video_id"], rows["label"]
    if level == "frame":
        return rows["logit"], labels, videos
    groups = [f"{q}/{v}" for q, v in zip(rows["quality"], videos, strict=True)]
    _, scores = mean_by(rows["score"], groups)
    first = np.unique(np.asarray(groups), return_index=True)[1]
    return scores, labels[first], videos[first]


def _figure(cell: str, c: dict[str, Any], aucs: np.ndarray | None, rounds: int) -> Figure:
    found = None if aucs is None else interval(aucs)
    low, high, n_skipped = found or (None, None, rounds)
    return Figure(
        cell, c["data"], c["split"], c["level"], c["quality"], c["auc"], low, high,
        "95 % bootstrap of videos", n_skipped, c["accuracy"], c["eer"], c["n_real"], c["n_fake"],
    )  # fmt: skip


def _gap(
    cell: str, best: dict[str, Any], worst: dict[str, Any],
    best_aucs: np.ndarray, worst_aucs: np.ndarray,
) -> Figure:  # fmt: skip
    difference = best | {
        "quality": "-".join(GAP), "auc": best["auc"] - worst["auc"], "accuracy": None, "eer": None
    }  # fmt: skip
    return _figure(cell, difference, best_aucs - worst_aucs, len(best_aucs))


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))
