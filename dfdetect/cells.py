"""Predictions -> cells: AUC, EER and accuracy by manipulation, quality and level.

Each manipulation is measured against all reals of its folder, at each quality, then the mean over
qualities, all of them pooled, and the worst; at frame and at video level.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dfdetect.metrics import accuracy, auc, eer, mean_by
from dfdetect.results import Prediction

ALL, UNSEEN = "all", "unseen"
"""The columns of every manipulation together, and of those that training never saw."""


@dataclass(frozen=True)
class Cell:
    """One number's place and the numbers: AUC, EER and accuracy at `threshold`, None with a reason.

    `quality` is a quality, or mean, pooled, worst over those evaluated; n counts frames or videos.
    `seen_in_training`: whether a manipulation of this name was trained on; None where the
    checkpoint does not say, and for all manipulations together.
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
    seen_in_training: bool | None = None


def measure(
    predictions: Sequence[Prediction], data: str, split: str, threshold: float,
    trained: Collection[str] | None = None,
) -> list[Cell]:  # fmt: skip
    """All cells of one folder's predictions; `trained` names the manipulations of the training.

    Where some of them are among the folder's and others of it are not, the latter together are
    `unseen`.
    """
    qualities = list(dict.fromkeys(p.quality for p in predictions))
    seen = {p.manipulation: was_seen(p.manipulation, trained) for p in predictions if p.label}
    columns: dict[str, set[str]] = {name: {name} for name in sorted(seen)}
    if len(set(seen.values())) == 2:
        columns[UNSEEN] = {name for name in seen if not seen[name]}
    if len(seen) != 1:
        columns[ALL] = set(seen)
    seen = {UNSEEN: False, ALL: None} | seen
    cells = []
    for level in ("frame", "video"):
        for column, members in columns.items():
            compared = [p for p in predictions if not p.label or p.manipulation in members]
            place = (data, split, level)
            singles = [
                _cell(place, q, column, [p for p in compared if p.quality == q], threshold)
                for q in qualities
            ]
            of_column = list(singles)
            if len(qualities) > 1:
                pooled = _cell(place, "pooled", column, compared, threshold)
                of_column += [_summary("mean", singles), pooled, _summary("worst", singles)]
            cells += [replace(cell, seen_in_training=seen[column]) for cell in of_column]
    return cells


def was_seen(manipulation: str, trained: Collection[str] | None) -> bool | None:
    """Whether a manipulation is among those `trained` on, by its name; None where nobody knows."""
    return None if trained is None else manipulation in trained


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
