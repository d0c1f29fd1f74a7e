"""Predictions -> cells: every figure by dataset, level, quality and manipulation, with intervals.

Each manipulation is measured against all reals of its folder, at each quality, then the mean over
qualities, all of them pooled, and the worst; the same of manipulations, and of folders where there
are several. Nothing is computed twice: means and worsts, and their bootstrap intervals, are taken
round by round of what was measured.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from dfdetect.errors import DfdetectError
from dfdetect.metrics import balanced, calibration_error, min_cllr, reliability, score_logit
from dfdetect.predictions import Columns
from dfdetect.resampling import MEASURES, ROUNDS, Contest, Draws, Entries, bootstrap, intervals

LEVELS = ("frame", "track", "video")
ALL, UNSEEN, MEAN, WORST, POOLED = "all", "unseen", "mean", "worst", "pooled"
"""Every manipulation together; those that training never saw; summaries over manipulations,
qualities or folders."""
FIGURES = (*MEASURES, "min_cllr", "ece")
"""Numbers of a cell; the last two have no interval: fitted to the data themselves, or a mean of
distances, both are biased in a resample."""
SMALLER_IS_BETTER = {"eer", "brier", "cllr", "min_cllr", "ece"}
FEWEST_VIDEOS = 2
"""Of each class, for an interval: a single one would be drawn or not, and never vary."""


@dataclass(frozen=True)
class Cell:
    """One place and its numbers, None with a `reason`.

    `data` is a folder's name, or mean, pooled, worst over several; `quality` a quality, or these
    over those evaluated; `manipulation` one of them, mean or worst over them, "unseen" or "all";
    `faces` "all", or a range of widths. Figures as in `resampling.MEASURES`, and `metrics.min_cllr`
    and the calibration error of ten bins, both classes weighing the same. Frames rank by logit, a
    track or video by the mean score of its crops there. `intervals`: the middle 95 % of a bootstrap
    of videos, by figure. `threshold` is that of accuracy, n counts frames, tracks or videos, of a
    summary those of its smallest part; one video at several qualities is one of `n_videos`.
    `seen_in_training`: whether a manipulation of this name was trained on; `quality_seen`: trained,
    augmented or no; None where the checkpoint does not say, and for several together.
    """

    data: str
    split: str
    level: str
    quality: str
    manipulation: str
    faces: str
    auc: float | None
    eer: float | None
    ap: float | None
    accuracy: float | None
    balanced_accuracy: float | None
    tpr_at_1: float | None
    tpr_at_5: float | None
    brier: float | None
    cllr: float | None
    min_cllr: float | None
    ece: float | None
    intervals: dict[str, tuple[float, float]]
    threshold: float
    n_real: int
    n_fake: int
    n_videos_real: int
    n_videos_fake: int
    reason: str = ""
    seen_in_training: bool | None = None
    quality_seen: str | None = None

    def row(self) -> dict[str, object]:
        """As a line of a table: each interval as two columns."""
        row = asdict(self)
        bounds = row.pop("intervals")
        for name in MEASURES:
            low, high = bounds.get(name, (None, None))
            row |= {f"{name}_low": low, f"{name}_high": high}
        return row


class Place(NamedTuple):
    data: str
    level: str
    quality: str
    manipulation: str


@dataclass(frozen=True)
class Found:
    """`figures` [1 + rounds, FIGURES] of a place: of the data, then of each round, NaN where there
    is no answer; how many entries and videos it is of."""

    figures: np.ndarray
    n_real: int
    n_fake: int
    n_videos_real: int
    n_videos_fake: int
    reason: str = ""

    def __getitem__(self, name: str) -> np.ndarray:
        """One figure [1 + rounds]."""
        return self.figures[:, FIGURES.index(name)]


def measure(
    folders: Mapping[str, Columns],
    split: str,
    threshold: float,
    trained: Collection[str] | None = None,
    rounds: int = ROUNDS,
    levels: Sequence[str] = LEVELS,
    faces: str = "all",
    quality_seen: Mapping[str, str] | None = None,
) -> list[Cell]:
    """All cells of the predictions of folders, by their names.

    `trained` names the manipulations of the training: where some of them are among a folder's and
    others of it are not, the latter together are `unseen`. `quality_seen` says of qualities whether
    they were trained on, `faces` what crops these are. No `rounds`, no intervals.

    Errors: DfdetectError for a manipulation or folder that is called like a summary.
    """
    check_names({data: set(c.manipulation.words.tolist()) for data, c in folders.items()})
    found = find(folders, threshold, trained, rounds, levels)
    return [
        _cell(place, of_place, split, threshold, trained, faces, quality_seen or {})
        for place, of_place in found.items()
    ]


def check_names(manipulations: Mapping[str, Collection[str]]) -> None:
    """Errors: DfdetectError for a folder, or one of its manipulations, that is called like a
    summary."""
    for data, names in manipulations.items():
        for what, taken, found in (
            ("the folder", (MEAN, POOLED, WORST), {data}),
            ("a manipulation", (ALL, UNSEEN, MEAN, WORST), set(names)),
        ):
            if both := sorted(found & set(taken)):
                raise DfdetectError(
                    f"{data}: {what} is called {both[0]!r}, as tables call a summary",
                    f"give it another name than {', '.join(taken)}",
                )


def alarms(cells: Sequence[Cell]) -> list[str]:
    """A line for each folder and level where the whole interval of an AUC, of all manipulations
    together, lies below chance."""
    lines = {}
    for cell in cells:
        low, high = cell.intervals.get("auc", (0, 1))
        summary = cell.data in (MEAN, POOLED, WORST) or cell.quality in (MEAN, WORST)
        if high < 0.5 and cell.manipulation == ALL and not summary:
            lines.setdefault(
                (cell.data, cell.level),
                f"{cell.data}: {cell.level} AUC {cell.auc:.3f} at {cell.quality}, 95 % interval "
                f"{low:.3f} to {high:.3f}: labels or score sign look inverted",
            )
    return list(lines.values())


def was_seen(manipulation: str, trained: Collection[str] | None) -> bool | None:
    """Whether a manipulation is among those `trained` on, by its name; None where nobody knows."""
    return None if trained is None else manipulation in trained


def find(
    folders: Mapping[str, Columns],
    threshold: float,
    trained: Collection[str] | None = None,
    rounds: int = ROUNDS,
    levels: Sequence[str] = LEVELS,
    apart: bool = True,
) -> dict[Place, Found]:
    """What `measure` makes cells of, round by round; all places share their rounds. Manipulations
    are not measured `apart` where that is not wanted."""
    draws = Draws({data: _n_videos(columns) for data, columns in folders.items()})
    starts = dict(zip(folders, np.cumsum([0, *draws.sizes.values()]), strict=False))
    sets = {data: _sets(columns, trained, apart) for data, columns in folders.items()}
    shared = _shared_qualities(folders)
    alone = all(map(_one_track_each, folders.values()))
    same = {"track": "video"} if alone and "video" in levels else {}
    pools: list[_Pool] = []
    for level in levels:
        if level in same:
            continue
        of_level = {
            data: _pools(data, columns, level, int(starts[data]), sets[data])
            for data, columns in folders.items()
        }
        pools += [pool for of_folder in of_level.values() for pool in of_folder]
        if len(folders) > 1 and shared:
            pools += _pooled_folders(of_level, level, shared)
    figures = _measured(pools, threshold, draws, rounds)
    found: dict[Place, Found] = {}
    for data in folders:
        for level in levels:
            source, qualities = same.get(level, level), folders[data].qualities
            of_folder = _folder(data, source, figures, qualities, list(sets[data]))
            found |= {place._replace(level=level): f for place, f in of_folder.items()}
    if len(folders) > 1 and shared:
        for level in levels:
            found |= _several(list(folders), same.get(level, level), level, figures | found, shared)
    return found


# --- what is ranked --------------------------------------------------------------------------


class _Pool(NamedTuple):
    """Entries that are measured together, of a folder at a quality or pooled; `sets` are the fakes
    measured against its reals, masks [n] by name."""

    data: str
    level: str
    quality: str
    entries: Entries
    sets: dict[str, np.ndarray]


def _n_videos(columns: Columns) -> int:
    return len(np.unique(columns.video.codes))


def _one_track_each(columns: Columns) -> bool:
    """Whether every video is one track, so that both levels are the same."""
    tracks, track = np.unique(columns.track, return_inverse=True)
    return len(np.unique(columns.video.codes * len(tracks) + track)) == _n_videos(columns)


def _sets(columns: Columns, trained: Collection[str] | None, apart: bool) -> dict[str, set[str]]:
    """Which manipulations are measured together: each alone, those unseen, all."""
    kinds = columns.where(columns.label == 1).manipulation
    names = [str(name) for name in kinds.words]
    if not apart:
        return {ALL: set(names)}
    sets = {name: {name} for name in names}
    seen = {name: was_seen(name, trained) for name in names}
    if len(set(seen.values())) == 2:
        sets[UNSEEN] = {name for name in names if not seen[name]}
    return sets | {ALL: set(names)}


def _shared_qualities(folders: Mapping[str, Columns]) -> list[str]:
    first, *others = (columns.qualities for columns in folders.values())
    return [q for q in first if all(q in of_other for of_other in others)]


def _pools(
    data: str, columns: Columns, level: str, start: int, sets: Mapping[str, set[str]]
) -> list[_Pool]:
    """At each quality, and all of them together where there are several."""
    entries, quality, manipulation = _entries(columns, level, start)

    def pool(name: str, chosen: np.ndarray) -> _Pool:
        kinds = manipulation[chosen]
        words = columns.manipulation.words
        masks = {of_set: np.isin(words, list(members))[kinds] for of_set, members in sets.items()}
        return _Pool(data, level, name, entries.where(chosen), masks)

    pools = [pool(q, (columns.quality.words == q)[quality]) for q in columns.qualities]
    if len(pools) > 1:
        pools.append(pool(POOLED, np.ones(len(quality), bool)))
    return pools


def entries_of(columns: Columns, level: str) -> Entries:
    """What is ranked at a level: crops by logit, tracks and videos by the mean score of their crops
    at a quality. One video at several qualities is several entries of one cluster."""
    return _entries(columns, level, 0)[0]


def _entries(columns: Columns, level: str, start: int) -> tuple[Entries, np.ndarray, np.ndarray]:
    """With the codes of their quality and manipulation; clusters are numbered from `start`."""
    _, cluster = np.unique(columns.video.codes, return_inverse=True)
    quality, manipulation = columns.quality.codes, columns.manipulation.codes
    cluster += start
    if level == "frame":
        entries = Entries(columns.logit, columns.score, columns.logit, columns.label, cluster)
        return entries, quality, manipulation
    group = cluster * len(columns.quality.words) + quality
    if level == "track":
        tracks, track = np.unique(columns.track, return_inverse=True)
        group = group * len(tracks) + track
    _, first, place = np.unique(group, return_index=True, return_inverse=True)
    score = np.bincount(place, weights=columns.score) / np.bincount(place)
    entries = Entries(score, score, score_logit(score), columns.label[first], cluster[first])
    return entries, quality[first], manipulation[first]


def _pooled_folders(
    of_level: Mapping[str, Sequence[_Pool]], level: str, qualities: Sequence[str]
) -> list[_Pool]:
    """All folders together at each quality that all of them have, and at all of those."""
    pooled = []
    of_quality = {
        q: [pool for pools in of_level.values() for pool in pools if pool.quality == q]
        for q in qualities
    }
    if len(qualities) > 1:
        of_quality[POOLED] = [pool for pools in of_quality.values() for pool in pools]
    for quality, pools in of_quality.items():
        columns = zip(*(pool.entries for pool in pools), strict=True)
        entries = Entries(*map(np.concatenate, columns))
        pooled.append(_Pool(POOLED, level, quality, entries, {ALL: entries.label == 1}))
    return pooled


# --- figures ---------------------------------------------------------------------------------


def _measured(
    pools: Sequence[_Pool], threshold: float, draws: Draws, rounds: int
) -> dict[Place, Found]:
    """Sets that hold the same fakes are measured once."""
    contests, places = [], []
    for pool in pools:
        distinct = {mask.tobytes(): mask for mask in pool.sets.values()}
        contests.append(Contest(pool.entries, list(distinct.values()), threshold))
        order = list(distinct)
        places.append({name: order.index(mask.tobytes()) for name, mask in pool.sets.items()})
    found: dict[Place, Found] = {}
    results = bootstrap(contests, draws, rounds)
    for pool, of_pool, numbers in zip(pools, results, places, strict=True):
        known: dict[int, Found] = {}
        for name, number in numbers.items():
            if number not in known:
                known[number] = _found(pool, pool.sets[name], of_pool[number])
            found[Place(pool.data, pool.level, pool.quality, name)] = known[number]
    return found


def _found(pool: _Pool, fakes: np.ndarray, measured: np.ndarray) -> Found:
    label, cluster = pool.entries.label, pool.entries.cluster
    real, fakes = label == 0, fakes & (label == 1)
    n = int(real.sum()), int(fakes.sum())
    n_videos = tuple(len(np.unique(cluster[rows])) for rows in (real, fakes))
    figures = np.full((len(measured), len(FIGURES)), np.nan)
    figures[:, : len(MEASURES)] = measured
    if min(n_videos) < FEWEST_VIDEOS:
        figures[1:] = np.nan
    if not all(n):
        reason = f"no {'fake' if n[0] else 'real'} {pool.level}s at {pool.quality}"
        return Found(figures, *n, *n_videos, reason)
    rank, score, _, label, _ = pool.entries.where(real | fakes)
    figures[0, -2:] = (
        min_cllr(rank, label),
        calibration_error(reliability(score, label, balanced(label))),
    )
    return Found(figures, *n, *n_videos)


def _summary(name: str, parts: Sequence[Found]) -> Found:
    """Mean or worst; without an answer if one of them has none. n is that of the smallest."""
    figures = np.stack([part.figures for part in parts])
    if name == MEAN:
        figures = figures.mean(0)
    else:
        smaller = np.array([figure in SMALLER_IS_BETTER for figure in FIGURES])
        figures = np.where(smaller, figures.max(0), figures.min(0))
    first = min(parts, key=lambda part: (part.n_real, part.n_fake))
    reasons = [part.reason for part in parts if part.reason]
    return Found(
        figures, first.n_real, first.n_fake, first.n_videos_real, first.n_videos_fake,
        reasons[0] if reasons else "",
    )  # fmt: skip


def _folder(
    data: str,
    level: str,
    figures: Mapping[Place, Found],
    qualities: Sequence[str],
    sets: Sequence[str],
) -> dict[Place, Found]:
    """By manipulation, and mean and worst over them; in each by quality, mean, pooled and worst."""
    singles = [name for name in sets if name not in (UNSEEN, ALL)]
    columns = {}
    for name in sets:
        parts = {q: figures[Place(data, level, q, name)] for q in qualities}
        if len(qualities) > 1:
            pooled = figures[Place(data, level, POOLED, name)]
            parts |= _over(parts, pooled)
        columns[name] = parts
    if len(singles) > 1:
        for name in (MEAN, WORST):
            columns[name] = {
                q: _summary(name, [columns[m][q] for m in singles]) for q in columns[ALL]
            }
    order = [*singles, *([MEAN, WORST] if len(singles) > 1 else []), *sets[len(singles) :]]
    return {Place(data, level, q, m): found for m in order for q, found in columns[m].items()}


def _over(parts: Mapping[str, Found], pooled: Found) -> dict[str, Found]:
    of_parts = list(parts.values())
    return {MEAN: _summary(MEAN, of_parts), POOLED: pooled, WORST: _summary(WORST, of_parts)}


def _several(
    folders: Sequence[str], source: str, level: str, figures: Mapping[Place, Found],
    qualities: Sequence[str],
) -> dict[Place, Found]:  # fmt: skip
    """Mean, pooled and worst of folders, all manipulations together; `source` is the level under
    which they were pooled."""
    pooled = {q: figures[Place(POOLED, source, q, ALL)] for q in qualities}
    if len(qualities) > 1:
        pooled |= _over(pooled, figures[Place(POOLED, source, POOLED, ALL)])
    several: dict[Place, Found] = {}
    for name in (MEAN, POOLED, WORST):
        for q in pooled:
            parts = [figures[Place(data, level, q, ALL)] for data in folders]
            found = pooled[q] if name == POOLED else _summary(name, parts)
            several[Place(name, level, q, ALL)] = found
    return several


def _cell(
    place: Place,
    found: Found,
    split: str,
    threshold: float,
    trained: Collection[str] | None,
    faces: str,
    quality_seen: Mapping[str, str],
) -> Cell:
    together = place.manipulation in (ALL, MEAN, WORST)
    seen = False if place.manipulation == UNSEEN else was_seen(place.manipulation, trained)
    bounds = zip(MEASURES, map(tuple, intervals(found.figures[:, : len(MEASURES)])), strict=False)
    return Cell(
        place.data, split, place.level, place.quality, place.manipulation, faces,
        **{name: _number(found[name][0]) for name in FIGURES},
        intervals=dict(bounds),
        threshold=threshold, n_real=found.n_real, n_fake=found.n_fake,
        n_videos_real=found.n_videos_real, n_videos_fake=found.n_videos_fake,
        reason=found.reason, seen_in_training=None if together else seen,
        quality_seen=quality_seen.get(place.quality),
    )  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
