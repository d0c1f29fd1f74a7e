"""Scores, labels and the videos they come from -> every figure of eval, and the same of videos
drawn anew: the bootstrap.

Crops of one video resemble each other, so whole videos are drawn, with replacement (the cluster
bootstrap; Field and Welsh, 2007). Entries are sorted once; a round is then a weight for each of
them, running sums of weights, and a search in those. Round 0 draws every video once: its figures
are those of the data. Rounds are shared by all that is measured together, so figures can be
averaged and subtracted round by round.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from zlib import crc32

import numpy as np

from dfdetect.metrics import ArrayLike, checked, cost_bits, score_logit
from dfdetect.workers import available_cores

MEASURES = (
    "auc", "eer", "ap", "accuracy", "balanced_accuracy", "tpr_at_1", "tpr_at_5", "brier", "cllr",
)  # fmt: skip
"""What a round gives, in this order.

auc: P(fake ranks above real), ties count one half. eer: where FPR = FNR on the ROC polyline. ap:
average precision, the mean precision at each fake. accuracy, balanced_accuracy: a score of at least
the threshold counts as fake. tpr_at_1, tpr_at_5: the highest TPR of the ROC's vertices, which are
thresholds that exist, with FPR of at most 1 % and 5 %; of fewer than 100 (20) reals that is the
share of fakes above all of them. brier: mean squared distance of score and label. cllr: bits, see
`metrics.cllr`.
"""
ROUNDS = 1000
MOST_THREADS = 8
_COUNTS, _WEIGHTS, _PART = 1 << 22, 1 << 21, 1 << 14
"""Draws and weights that a thread holds at once, and how many of the latter stay in a cache."""


class Entries(NamedTuple):
    """What is ranked, [n] each: by finite `rank`; `score` 0..1 is held against threshold and label,
    `log_odds` is its natural logarithm of the odds; label 0 or 1; `cluster`, the number of the
    video."""

    rank: np.ndarray
    score: np.ndarray
    log_odds: np.ndarray
    label: np.ndarray
    cluster: np.ndarray

    def where(self, chosen: np.ndarray) -> "Entries":
        return Entries(*(column[chosen] for column in self))


class Draws(NamedTuple):
    """Rounds that draw as many videos of each group as it has; `sizes` says how many those are.

    The videos of the groups are numbered one group after the other. A group's draws depend on
    nothing but its name, its size, the seed and the round.
    """

    sizes: Mapping[str, int]
    seed: int = 0

    def counts(self, rounds: range) -> np.ndarray:
        """How often each video is drawn: int32 [len(rounds), number of videos]."""
        counts = np.ones((len(rounds), sum(self.sizes.values())), np.int32)
        start = 0
        for name, size in self.sizes.items():
            for row, number in zip(counts, rounds, strict=True):
                if number:
                    rng = np.random.default_rng([self.seed, crc32(name.encode()), number])
                    drawn = rng.integers(size, size=size)
                    row[start : start + size] = np.bincount(drawn, minlength=size)
            start += size
        return counts


class Contest:
    """The reals of `entries` against one or several sets of its fakes, each a mask [n]."""

    def __init__(self, entries: Entries, sets: Sequence[np.ndarray], threshold: float) -> None:
        real = entries.label == 0
        self._real = _sorted(entries.where(real), threshold)
        self._fakes = [
            _against(self._real, _sorted(entries.where(chosen & ~real), threshold))
            for chosen in sets
        ]
        self._n = len(entries.label)

    def measure(self, counts: np.ndarray) -> np.ndarray:
        """[sets, rounds, MEASURES] of draws [rounds, videos], NaN in a round of a single class."""
        found = np.full((len(self._fakes), len(counts), len(MEASURES)), np.nan)
        step = max(1, _WEIGHTS // max(1, self._n))
        for start in range(0, len(counts), step):
            drawn = counts[start : start + step]
            real = _Weighted.of(self._real, drawn)
            for of_set, fakes in zip(found, self._fakes, strict=True):
                of_set[start : start + step] = _measured(real, fakes, drawn)
        return found


def bootstrap(contests: Sequence[Contest], draws: Draws, rounds: int = ROUNDS) -> list[np.ndarray]:
    """For each contest [sets, 1 + rounds, MEASURES]: of the data itself, then of each round."""
    found = [np.empty((len(c._fakes), 1 + rounds, len(MEASURES))) for c in contests]
    step = min(256, max(1, _COUNTS // max(1, sum(draws.sizes.values()))))
    parts = [range(1), *(range(i, min(i + step, 1 + rounds)) for i in range(1, 1 + rounds, step))]

    def work(part: range) -> None:
        counts = draws.counts(part)
        for contest, figures in zip(contests, found, strict=True):
            figures[:, part.start : part.stop] = contest.measure(counts)

    with ThreadPoolExecutor(min(MOST_THREADS, available_cores())) as threads:
        list(threads.map(work, parts))  # NumPy lets others run while it works on long arrays
    return found


def resampled(
    scores: ArrayLike, labels: ArrayLike, clusters: Sequence[str], threshold: float = 0.5,
    rounds: int = ROUNDS, seed: int = 0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Each measure [1 + rounds] of `scores` [n] 0..1 that are ranked by themselves.

    Errors: DfdetectError as `metrics.checked`.
    """
    s, y = checked(scores, labels)
    names, numbers = np.unique(np.asarray(clusters), return_inverse=True)
    contest = Contest(Entries(s, s, score_logit(s), y, numbers), [y == 1], threshold)
    (found,) = bootstrap([contest], Draws({"": len(names)}, seed), rounds)
    return dict(zip(MEASURES, found[0].T, strict=True))


class Interval(NamedTuple):
    low: float
    high: float


def intervals(figures: np.ndarray, coverage: float = 0.95) -> list[Interval]:
    """The middle `coverage` of each of k figures [1 + rounds, k], by percentiles over the rounds
    that have an answer; none if no round has. The first row is of the data and does not count."""
    usable = figures[1:][~np.isnan(figures[1:]).any(1)]
    if not len(usable):
        return []
    tail = (1 - coverage) / 2
    bounds = np.quantile(usable, (tail, 1 - tail), axis=0)
    return [Interval(float(low), float(high)) for low, high in bounds.T]


def interval(values: np.ndarray, coverage: float = 0.95) -> Interval | None:
    """As `intervals`, of one figure [1 + rounds]."""
    return next(iter(intervals(values[:, None], coverage)), None)


# --- sorted once -----------------------------------------------------------------------------


class _Sorted(NamedTuple):
    """Entries of one class by rising rank, and their videos; of each of the `videos` [v] that are
    among them the `sums` [v,3] of what is on its side of the threshold, of squared errors and of
    costs in bits."""

    rank: np.ndarray
    cluster: np.ndarray
    videos: np.ndarray
    sums: np.ndarray


def _sorted(entries: Entries, threshold: float) -> _Sorted:
    rank, score, log_odds, label, cluster = entries.where(np.argsort(entries.rank, kind="stable"))
    right = (score >= threshold) == (label == 1)
    terms = (right, (score - label) ** 2, cost_bits(log_odds, label))
    videos, place = np.unique(cluster, return_inverse=True)
    sums = np.stack([np.bincount(place, weights=term) for term in terms], 1)
    return _Sorted(rank, cluster.astype(np.intp), videos, sums)


class _Against(NamedTuple):
    """Fakes, and where they stand among the reals. Of each fake: how many reals rank `below` it and
    how many `upto` it (None: as many), and how many fakes rank `under` it (None: all before it). Of
    each distinct rank of both: how many reals and how many fakes are at it or below."""

    entries: _Sorted
    below: np.ndarray
    upto: np.ndarray | None
    under: np.ndarray | None
    reals_upto: np.ndarray
    fakes_upto: np.ndarray


def _against(real: _Sorted, fakes: _Sorted) -> _Against:
    below, upto = (np.searchsorted(real.rank, fakes.rank, side) for side in ("left", "right"))
    under = np.searchsorted(fakes.rank, fakes.rank, "left")
    ranks = np.union1d(real.rank, fakes.rank)
    return _Against(
        fakes,
        below,
        None if (below == upto).all() else upto,
        None if (np.diff(under) == 1).all() else under,
        *(np.searchsorted(of.rank, ranks, "right").astype(np.int32) for of in (real, fakes)),
    )


# --- round by round --------------------------------------------------------------------------


class _Weighted(NamedTuple):
    """Entries of one class as often as drawn, [rounds, ...]: `weight` [n], `running` sums [n+1] of
    it from 0, `total`, and `sums` [3] of right, squared error and cost."""

    weight: np.ndarray
    running: np.ndarray
    total: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, entries: _Sorted, counts: np.ndarray) -> "_Weighted":
        weight = np.take(counts, entries.cluster, axis=1)
        running = np.zeros((len(counts), weight.shape[1] + 1), counts.dtype)
        np.cumsum(weight, axis=1, out=running[:, 1:])
        sums = counts[:, entries.videos].astype(np.float64) @ entries.sums
        return cls(weight, running, running[:, -1].astype(np.float64), sums)


def _measured(real: _Weighted, fakes: _Against, counts: np.ndarray) -> np.ndarray:
    """[rounds, MEASURES]."""
    fake = _Weighted.of(fakes.entries, counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        (right_real, error_real, cost_real), (right, error, cost) = real.sums.T, fake.sums.T
        n = real.total + fake.total
        found = np.stack(
            [
                *_areas(real, fake, fakes),
                (right_real + right) / n,
                (right_real / real.total + right / fake.total) / 2,
                *(_tpr_at(rate, real, fake, fakes) for rate in (0.01, 0.05)),
                (error_real + error) / n,
                (cost_real / real.total + cost / fake.total) / 2,
            ],
            1,
        )
    found[(real.total == 0) | (fake.total == 0)] = np.nan
    return found


def _areas(
    real: _Weighted, fake: _Weighted, fakes: _Against
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC, EER, average precision. The fakes go by in parts that stay in the cache."""
    auc, ap = np.zeros(len(real.total)), np.zeros(len(real.total))
    step = max(1, _PART // len(real.total))
    for start in range(0, len(fakes.below), step):
        part = slice(start, min(start + step, len(fakes.below)))
        weight = fake.weight[:, part].astype(np.float64)
        below = np.take(real.running, fakes.below[part], axis=1).astype(np.float64)
        if fakes.upto is None:
            auc += np.einsum("rn,rn->r", weight, below)
        else:
            upto = np.take(real.running, fakes.upto[part], axis=1)
            auc += np.einsum("rn,rn->r", weight, below + upto) / 2
        before = fake.running[:, part if fakes.under is None else fakes.under[part]]
        hits = fake.total[:, None] - before  # fakes at a fake's rank or above
        called = real.total[:, None] - below
        called += hits  # and all entries there; none where none was drawn, which weighs nothing
        hits /= np.maximum(called, 1, out=called)
        ap += np.einsum("rn,rn->r", weight, hits)
    return auc / (real.total * fake.total), _eer(real, fake, fakes), ap / fake.total


def _eer(real: _Weighted, fake: _Weighted, fakes: _Against) -> np.ndarray:
    rows = np.arange(len(real.total))

    def errors(vertex: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """False positives and false negatives of a threshold just above the vertex's rank."""
        false_positives = real.total - real.running[rows, fakes.reals_upto[vertex]]
        return false_positives, fake.running[rows, fakes.fakes_upto[vertex]]

    def crossed(vertex: np.ndarray) -> np.ndarray:
        false_positives, false_negatives = errors(vertex)
        return false_positives * fake.total <= false_negatives * real.total

    after = _first(crossed, len(fakes.reals_upto), len(rows))
    false_positives, false_negatives = errors(np.maximum(after - 1, 0))
    fpr_before = np.where(after == 0, 1, false_positives / real.total)  # below all ranks
    gap_before = fpr_before - np.where(after == 0, 0, false_negatives / fake.total)
    false_positives, false_negatives = errors(after)
    fpr = false_positives / real.total
    gap = fpr - false_negatives / fake.total
    return fpr_before + gap_before / (gap_before - gap) * (fpr - fpr_before)


def _tpr_at(rate: float, real: _Weighted, fake: _Weighted, fakes: _Against) -> np.ndarray:
    rows = np.arange(len(real.total))
    allowed = np.floor(rate * real.total + 1e-9)  # 1e-9: 5 % of 20 are 1

    def allows(vertex: np.ndarray) -> np.ndarray:
        return real.total - real.running[rows, fakes.reals_upto[vertex]] <= allowed

    vertex = _first(allows, len(fakes.reals_upto), len(rows))
    return (fake.total - fake.running[rows, fakes.fakes_upto[vertex]]) / fake.total


def _first(holds: Callable[[np.ndarray], np.ndarray], n: int, n_rounds: int) -> np.ndarray:
    """In each round the first of `n` for which `holds`, which it does from some on; the last may
    be taken for granted."""
    low, high = np.zeros(n_rounds, np.intp), np.full(n_rounds, n - 1)
    for _ in range(n.bit_length()):
        middle = (low + high) // 2
        held = holds(middle)
        high, low = np.where(held, middle, high), np.where(held, low, np.minimum(middle + 1, high))
    return low
