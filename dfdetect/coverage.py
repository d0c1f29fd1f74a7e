"""What a folder was prepared from -> how much of it was scored, and what the figures would be if
the model were wrong about all the rest.

A figure is one of what was scored. A file that could not be read, or in which no face was found,
has no score: leaving it out flatters, so it is also counted as the worst case, a real video that
scores above all others, a fake one below.
"""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfdetect.cells import POOLED, entries_of
from dfdetect.metrics import auc, eer
from dfdetect.predictions import Columns

CLASSES = ("real", "fake")


@dataclass(frozen=True)
class Inputs:
    """Videos and pictures of one class: how many there are, were scored, had no face, could not be
    read."""

    n_inputs: int
    n_scored: int
    n_no_face: int
    n_unreadable: int


@dataclass(frozen=True)
class WorstCase:
    """Video-level figures at a quality with every failure counted as wrong; None of one class."""

    quality: str
    auc: float | None
    eer: float | None


@dataclass(frozen=True)
class Coverage:
    """Of one folder and split."""

    data: str
    split: str
    real: Inputs
    fake: Inputs
    worst_case: list[WorstCase]

    @property
    def n_failed(self) -> tuple[int, int]:
        """Real and fake inputs without a score."""
        return (
            self.real.n_inputs - self.real.n_scored,
            self.fake.n_inputs - self.fake.n_scored,
        )


Lost = dict[tuple[str, str], int]
"""How many inputs of a class ("real", "fake") have no score, by why: "no-face" or "error"."""


def read_lost(folder: Path, split: str) -> Lost | None:
    """What prepare could not prepare of a split; None where its list is not there, or is an older
    one that does not tell splits."""
    path = folder / "failures.csv"
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        failures = list(csv.DictReader(file))
    if not all(failure.get("split") for failure in failures):
        return None
    return Counter(
        (CLASSES[failure["label"] == "1"], failure["kind"])
        for failure in failures
        if failure["split"] == split
    )


def lost_of(coverage: Mapping[str, Any]) -> Lost:
    """What a stored Coverage, as metrics.json holds it, says of what has no score."""
    kinds = {"no-face": "n_no_face", "error": "n_unreadable"}
    return {(word, kind): coverage[word][n] for word in CLASSES for kind, n in kinds.items()}


def coverage_of(columns: Columns, data: str, split: str, lost: Lost) -> Coverage:
    """Of the predictions of a folder, and what has none."""
    inputs = {}
    for label, word in enumerate(CLASSES):
        n_scored = len(np.unique(columns.video.codes[columns.label == label]))
        no_face, unreadable = (lost.get((word, kind), 0) for kind in ("no-face", "error"))
        inputs[word] = Inputs(n_scored + no_face + unreadable, n_scored, no_face, unreadable)
    n_failed = [inputs[word].n_inputs - inputs[word].n_scored for word in CLASSES]
    qualities = columns.qualities
    places = {q: columns.where(columns.quality.is_(q)) for q in qualities}
    if len(qualities) > 1:
        places[POOLED] = columns
    worst = [
        _worst_case(quality, rows, n_failed, len(qualities) if quality == POOLED else 1)
        for quality, rows in places.items()
    ]
    return Coverage(data, split, inputs["real"], inputs["fake"], worst)


def _worst_case(quality: str, rows: Columns, n_failed: list[int], times: int) -> WorstCase:
    entries = entries_of(rows, "video")
    n_real, n_fake = (n * times for n in n_failed)  # once for each quality that is pooled
    scores = np.concatenate([entries.score, np.full(n_real, 2.0), np.full(n_fake, -1.0)])
    labels = np.concatenate([entries.label, np.zeros(n_real, int), np.ones(n_fake, int)])
    if len(np.unique(labels)) < 2:
        return WorstCase(quality, None, None)
    return WorstCase(quality, auc(scores, labels), eer(scores, labels))
