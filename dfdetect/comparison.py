"""What eval wrote about several models -> figures to compare them by, with how sure they are.

`figures_of` makes one model's figures a row of a sweep's table. `compare` holds models against each
other on the crops that both have scored: both are measured on the same videos, drawn anew in every
round, so that what makes a video hard for both is in neither's favour (the paired bootstrap).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dfdetect.cells import ALL, WORST, Found, Place, find
from dfdetect.errors import DfdetectError
from dfdetect.predictions import Predictions, Results, read_results
from dfdetect.resampling import MEASURES, ROUNDS, interval

LEVELS = ("frame", "video")
GAP = ("raw", "c40")
"""What compression costs: the AUC at the first less that at the second."""


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
    accuracy: float | None
    eer: float | None
    n_real: int
    n_fake: int


def figures_of(cell: str, results: Results, rounds: int = ROUNDS) -> list[Figure]:
    """All figures of one model, by folder, level and quality, as eval found them."""
    everything = results.predictions.folders()
    folders = {
        data: columns.where(columns.quality.is_(GAP[0]) | columns.quality.is_(GAP[1]))
        for data, columns in everything.items()
        if set(GAP) <= set(columns.qualities)
    }
    found = {}
    if folders:
        threshold = results.predictions.model["threshold"]
        found = find(folders, threshold, None, rounds, LEVELS, apart=False)
    figures = []
    for data in everything:
        for level in LEVELS:
            place = (data, level, ALL, "all")
            cells = {
                c["quality"]: c
                for c in results.metrics["cells"]
                if (c["data"], c["level"], c["manipulation"], c["faces"]) == place
                and c["quality"] != WORST
            }
            figures += [_figure(cell, c, c["intervals"].get("auc")) for c in cells.values()]
            if data in folders and None not in [cells[q]["auc"] for q in GAP]:
                best, worst = (found[Place(data, level, q, ALL)]["auc"] for q in GAP)
                gap = {"quality": "-".join(GAP), "auc": float(best[0] - worst[0])}
                gap |= {"accuracy": None, "eer": None}
                figures.append(_figure(cell, cells[GAP[0]] | gap, interval(best - worst)))
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
                spread=f"range of {len(same)} seeds",
                accuracy=_mean([f.accuracy for f in same]), eer=_mean([f.eer for f in same]),
            )
        )  # fmt: skip
    return figures


# --- paired ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One figure of two models on the same crops, all manipulations together.

    `low` to `high` is the middle 95 % of `difference`, second less first, over the rounds, and
    `share_not_above` the share of rounds in which it is not above 0; None where a class is missing
    or has a single video.
    """

    data: str
    level: str
    quality: str
    figure: str
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    share_not_above: float | None
    n_real: int
    n_fake: int
    n_videos_real: int
    n_videos_fake: int


@dataclass(frozen=True)
class Pair:
    """Two models by the folders that eval wrote of them; how many crops each has scored, and how
    many both."""

    first: str
    second: str
    n_first: int
    n_second: int
    n_common: int
    differences: list[Difference]


@dataclass(frozen=True)
class Compared:
    """Each model against the first; `models` is what metrics.json says of each, by its folder."""

    models: dict[str, dict[str, Any]]
    rounds: int
    pairs: list[Pair]

    @property
    def warnings(self) -> list[str]:
        return [
            f"{pair.second}: compared with {pair.first} on the {pair.n_common} crops that both "
            f"have, of {pair.n_first} and {pair.n_second}"
            for pair in self.pairs
            if not pair.n_first == pair.n_second == pair.n_common
        ]

    def as_json(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self), "warnings": self.warnings}


def compare(folders: Sequence[Path], rounds: int = ROUNDS) -> Compared:
    """Each model against the first, by what eval wrote about them.

    Errors: DfdetectError for fewer than two folders, one that eval did not write, two that have no
    crop in common or do not agree on a label.
    """
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise DfdetectError(
            "compare takes two or more folders that eval wrote, each once",
            "for example: dfdetect compare results/bce results/qad",
        )
    read = {str(folder): read_results(folder).predictions for folder in folders}
    (first, ours), *others = read.items()
    pairs = [_pair(first, ours, second, theirs, rounds) for second, theirs in others]
    return Compared({name: found.model for name, found in read.items()}, rounds, pairs)


def _pair(first: str, ours: Predictions, second: str, theirs: Predictions, rounds: int) -> Pair:
    keys = _keys(ours.table, theirs.table)
    for name, of_table in zip((first, second), keys, strict=True):
        if len(np.unique(of_table)) < len(of_table):
            raise DfdetectError(
                f"{name}: holds a crop twice at one quality", "write it anew: dfdetect eval --out"
            )
    _, mine, other = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    if not len(mine):
        raise DfdetectError(
            f"{first} and {second}: no crop was scored by both ({_holds(ours)}; {_holds(theirs)})",
            "eval both models on the same folders, split and qualities",
        )
    order = np.argsort(mine)
    common = [
        Predictions(found.model, found.table.take(rows[order]))
        for found, rows in ((ours, mine), (theirs, other))
    ]
    _refuse_other_labels(first, second, *common)
    found, found_there = (
        find(of.folders(), of.model["threshold"], None, rounds, LEVELS, apart=False)
        for of in common
    )
    differences = [
        difference
        for place in found
        if WORST not in place
        for difference in _differences(place, found[place], found_there[place])
    ]
    return Pair(first, second, len(keys[0]), len(keys[1]), len(mine), differences)


def _keys(*tables: pa.Table) -> list[np.ndarray]:
    """A number for each row, the same for the same crop at the same quality."""
    keys = np.zeros(sum(map(len, tables)), np.int64)
    for name in ("data", "quality", "sample_id"):
        chunks = [c for t in tables for c in t[name].cast(pa.string()).chunks]
        words = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode()
        keys = keys * len(words.dictionary) + words.indices.to_numpy()
    return np.split(keys, np.cumsum([len(table) for table in tables])[:-1])


def _holds(predictions: Predictions) -> str:
    table = predictions.table
    row = table.slice(0, 1).to_pylist()[0]
    return f"{len(table)} crops, as {row['data']}/{row['sample_id']} at {row['quality']}"


def _refuse_other_labels(first: str, second: str, ours: Predictions, theirs: Predictions) -> None:
    wrong = ours.table["label"].to_numpy() != theirs.table["label"].to_numpy()
    if wrong.any():
        row = ours.table.slice(int(wrong.argmax()), 1).to_pylist()[0]
        raise DfdetectError(
            f"{first} and {second}: do not agree on the label of {row['data']}/{row['sample_id']} "
            f"({int(wrong.sum())} of {len(wrong)} crops)",
            "one of them was scored before the data was prepared anew; eval it again",
        )


def _differences(place: Place, first: Found, second: Found) -> list[Difference]:
    return [
        Difference(
            place.data, place.level, place.quality, name,
            *(_number(values[0]) for values in (first[name], second[name])),
            *_spread(second[name] - first[name]),
            first.n_real, first.n_fake, first.n_videos_real, first.n_videos_fake,
        )
        for name in MEASURES
    ]  # fmt: skip


def _spread(
    differences: np.ndarray,
) -> tuple[float | None, float | None, float | None, float | None]:
    """The difference, its interval, and the share of rounds in which it is not above 0."""
    bounds = interval(differences)
    usable = differences[1:][~np.isnan(differences[1:])]
    share = float((usable <= 0).mean()) if len(usable) else None
    return _number(differences[0]), *(bounds or (None, None)), share


# --- parts -----------------------------------------------------------------------------------


def _figure(cell: str, c: Mapping[str, Any], bounds: Sequence[float] | None) -> Figure:
    low, high = bounds or (None, None)
    return Figure(
        cell, c["data"], c["split"], c["level"], c["quality"], c["auc"], low, high,
        "95 % bootstrap of videos", c["accuracy"], c["eer"], c["n_real"], c["n_fake"],
    )  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))
