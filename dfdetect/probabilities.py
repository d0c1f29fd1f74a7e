"""Scores of videos as probabilities: how far they are from what they say, as the network gives
them and after the model's calibration.

Both classes weigh the same, so that a score is held against P(fake) at a prior of one half. A
video's score is the mean of its crops, which is what calibration is of where one person is in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfdetect.cells import POOLED, entries_of
from dfdetect.metrics import (
    Bin,
    Sigmoid,
    balanced,
    brier,
    calibration_error,
    cllr,
    min_cllr,
    reliability,
    score_logit,
)
from dfdetect.predictions import Columns


@dataclass(frozen=True)
class Honesty:
    """Brier score, costs in bits, expected calibration error and its `bins`, which are [low, high,
    share of weight, mean score, share of fakes]."""

    brier: float
    cllr: float
    min_cllr: float
    ece: float
    bins: list[Bin]


@dataclass(frozen=True)
class Calibrated:
    """Of the videos of a folder at a quality; `after` is None where the model is not calibrated."""

    data: str
    split: str
    level: str
    quality: str
    n_real: int
    n_fake: int
    before: Honesty
    after: Honesty | None

    def as_json(self) -> dict[str, Any]:
        def told(found: Honesty) -> dict[str, Any]:
            return vars(found) | {"bins": [one._asdict() for one in found.bins]}

        return vars(self) | {"before": told(self.before), "after": self.after and told(self.after)}


def calibrated(
    columns: Columns, data: str, split: str, calibration: Mapping[str, Any] | None
) -> list[Calibrated]:
    """At each quality that has both classes, and of all pooled. `calibration` is that of the model:
    its slope and intercept."""
    qualities = columns.qualities
    places = {q: columns.where(columns.quality.is_(q)) for q in qualities}
    if len(qualities) > 1:
        places[POOLED] = columns
    found = []
    for quality, rows in places.items():
        entries = entries_of(rows, "video")
        n_real, n_fake = (int((entries.label == label).sum()) for label in (0, 1))
        if not (n_real and n_fake):
            continue
        before = _honesty(entries.score, entries.log_odds, entries.label)
        after = None
        if calibration:
            sigmoid = Sigmoid(calibration["slope"], calibration["intercept"])
            scores = sigmoid.at(0.5, entries.log_odds)
            after = _honesty(scores, score_logit(scores), entries.label)
        found.append(Calibrated(data, split, "video", quality, n_real, n_fake, before, after))
    return found


def _honesty(scores: np.ndarray, log_odds: np.ndarray, labels: np.ndarray) -> Honesty:
    bins = reliability(scores, labels, balanced(labels))
    return Honesty(
        brier(scores, labels, np.ones(len(labels))),
        cllr(log_odds, labels),
        min_cllr(scores, labels),
        calibration_error(bins),
        bins,
    )
