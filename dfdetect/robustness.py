"""AUC against severity: which qualities `--sweep` asks for, and the curves of what they scored.

A curve is one kind of corruption from the undistorted raw crops to its worst level; its points are
measured like every other figure of eval, all fakes against all reals.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from dfdetect.cells import ALL, Cell, measure
from dfdetect.corruptions import seen_in_training, seen_ranges
from dfdetect.errors import DfdetectError, cell, unknown
from dfdetect.predictions import Predictions, Words
from dfdetect.quality import KINDS, Quality, ordered, parse_quality, quality_at
from dfdetect.resampling import ROUNDS

LEVELS = ("video", "frame")
DEFAULT_LEVELS = 5
"""Levels of a range without a step, its ends among them."""
MOST_LEVELS = 100
SWEPT = tuple(kind for kind in KINDS if kind != "h264")
"""Kinds that are made of raw crops, so that any level can be asked for."""
EXAMPLE = "for example crf=0:51:8,jpeg=20:100:20,scale=0.25:1,blur=0.5/1/2"


@dataclass(frozen=True)
class Point:
    """AUC at one level of a corruption, all fakes against all reals; `low` and `high` its 95 %
    interval, None where there is none, with the `reason`.

    `severity` is the CRF, JPEG quality, factor, sigma (px of the crop) or standard deviation, None
    for raw where no level leaves pictures as they are (crf, jpeg). `seen`: trained, augmented, no.
    """

    data: str
    split: str
    kind: str
    severity: float | None
    quality: str
    level: str
    auc: float | None
    low: float | None
    high: float | None
    n_real: int
    n_fake: int
    seen: str
    reason: str = ""


class Robustness(NamedTuple):
    """The curves of a `sweep` as it was asked for, and the `predictions` they were computed from;
    `seen`: by kind the levels from, to that training saw, and how."""

    sweep: str
    seen: dict[str, list[tuple[float, float, str]]]
    points: list[Point]
    predictions: Predictions

    def as_json(self) -> dict[str, Any]:
        points = [asdict(point) for point in self.points]
        return {"sweep": self.sweep, "seen": self.seen, "points": points}

    def rows(self) -> list[list[Any]]:
        """robustness.csv: a header and a row per point."""
        rows = [asdict(point) | {"data": cell(point.data)} for point in self.points]
        return [list(rows[0]), *(list(row.values()) for row in rows)]

    def curves(self) -> Iterator[tuple[tuple[str, str, str], list[Point]]]:
        """((data, level, kind), points from raw to the worst) of each curve."""
        for place, points in groupby(self.points, lambda p: (p.data, p.level, p.kind)):
            yield place, list(points)


def parse_sweep(text: str) -> dict[str, tuple[Quality, ...]]:
    """`crf=0:51:8,scale=0.25:1,blur=1/2` -> {kind: its qualities from mild to severe}.

    kind=FROM:TO:STEP goes up from the lower end, the upper one included if a step ends there;
    kind=FROM:TO is five levels with both ends, evenly spread and rounded where the kind has whole
    levels; kind=A/B/C names them. A level that changes nothing (scale 1, blur 0, noise 0) is left
    to raw, which is in every curve.

    Errors: DfdetectError for an unknown kind, one that comes twice, a level that it does not have,
    no level at all, or more than 100.
    """
    swept: dict[str, tuple[Quality, ...]] = {}
    for part in (part.strip() for part in text.split(",")):
        kind, equals, levels = part.partition("=")
        if not equals:
            raise DfdetectError(f"--sweep: {part!r} is not kind=levels", EXAMPLE)
        if kind not in SWEPT:
            raise unknown("kind in --sweep:", kind, SWEPT)
        if kind in swept:
            raise DfdetectError(f"--sweep: {kind} comes twice", f"list its levels: {kind}=A/B/C")
        asked = {_quality(kind, level, part) for level in _levels(part, levels, KINDS[kind].whole)}
        names = [name for name in ordered(q.name for q in asked) if name != "raw"]
        if not names:
            raise DfdetectError(f"--sweep {part}: no level but the raw crops' own", EXAMPLE)
        swept[kind] = tuple(map(parse_quality, names))
    return swept


def qualities_of(sweep: str) -> list[str]:
    """Names of all that a sweep scores: raw first."""
    return [
        "raw",
        *(quality.name for of_kind in parse_sweep(sweep).values() for quality in of_kind),
    ]


def measure_robustness(
    predictions: Predictions, sweep: str, split: str, rounds: int = ROUNDS
) -> Robustness:
    """The curves of predictions at every quality of `sweep`, by folder, level and kind."""
    swept, model = parse_sweep(sweep), predictions.model
    preset, threshold = model["preset"], model["threshold"]
    points = []
    for data, columns in predictions.folders().items():
        classes = columns._replace(manipulation=Words(columns.label, np.array(["real", "fake"])))
        cells = measure({data: classes}, split, threshold, None, rounds, LEVELS)
        found = {(c.level, c.quality): c for c in cells if c.manipulation == ALL}
        points += [
            _point(kind, quality, found[level, quality.name], preset)
            for level in LEVELS
            for kind, qualities in swept.items()
            for quality in (parse_quality("raw"), *qualities)
        ]
    seen = {kind: seen_ranges(kind, preset) for kind in swept}
    return Robustness(sweep, seen, points, predictions)


# --- the grammar ------------------------------------------------------------------------------


def _levels(part: str, text: str, whole: bool) -> list[Decimal]:
    """The levels of FROM:TO:STEP, FROM:TO or A/B/C."""
    bounds, listed = text.split(":"), text.split("/")
    if len(bounds) > 3 or (len(bounds) > 1 and len(listed) > 1):
        raise DfdetectError(f"--sweep {part}: neither FROM:TO:STEP nor A/B/C", EXAMPLE)
    if len(bounds) == 1:
        return [_number(part, number) for number in listed]
    first, last, *steps = (_number(part, number) for number in bounds)
    low, high = min(first, last), max(first, last)
    if not steps:
        digits = Decimal(1) if whole else Decimal("0.0001")
        spread = [low + (high - low) * i / (DEFAULT_LEVELS - 1) for i in range(DEFAULT_LEVELS)]
        return [level.quantize(digits) for level in spread]
    (step,) = steps
    if step <= 0:
        raise DfdetectError(f"--sweep {part}: the step is not above 0", EXAMPLE)
    n_levels = int((high - low) / step) + 1
    if n_levels > MOST_LEVELS:
        raise DfdetectError(
            f"--sweep {part}: {n_levels} levels", f"{MOST_LEVELS} are the most; use a larger step"
        )
    return [low + i * step for i in range(n_levels)]


def _number(part: str, text: str) -> Decimal:
    if not re.fullmatch(r"\d{1,4}(\.\d{1,4})?", text.strip()):
        raise DfdetectError(f"--sweep {part}: {text!r} is not a level", EXAMPLE)
    return Decimal(text.strip())


def _quality(kind: str, level: Decimal, part: str) -> Quality:
    try:
        return quality_at(kind, float(level))
    except DfdetectError as error:
        raise DfdetectError(
            f"--sweep {part}: {kind} has no level {level:f}", f"{kind} is {KINDS[kind].meaning}"
        ) from error


# --- points -----------------------------------------------------------------------------------


def _point(kind: str, quality: Quality, found: Cell, preset: Mapping[str, Any]) -> Point:
    low, high = found.intervals.get("auc", (None, None))
    is_raw = quality.kind == "raw"
    return Point(
        found.data, found.split, kind, KINDS[kind].untouched if is_raw else quality.level,
        quality.name, found.level, found.auc, low, high, found.n_real, found.n_fake,
        seen_in_training(quality.name, preset), found.reason,
    )  # fmt: skip
