"""Scores and labels in, numbers out. Pure functions; label 1 = fake, larger score = more fake.

All of them reject what has no answer (one class, no score, NaN) instead of inventing 0.5.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dfdetect.errors import DfdetectError

ArrayLike = Sequence[float] | np.ndarray


class Roc(NamedTuple):
    """One vertex per distinct score, from (0,0) to (1,1); `threshold` [k] starts at infinity."""

    fpr: np.ndarray
    tpr: np.ndarray
    threshold: np.ndarray


def checked(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """float64 scores [n] and int labels [n].

    Errors: DfdetectError for an empty input, unequal lengths, a score that is not finite, a label
    other than 0 and 1, a single class.
    """
    s, y = np.asarray(scores, np.float64).reshape(-1), np.asarray(labels).reshape(-1)
    problem = (
        "no scores" if len(s) == 0
        else f"{len(s)} scores but {len(y)} labels" if len(s) != len(y)
        else "a score is not a finite number" if not np.isfinite(s).all()
        else "a label is neither 0 nor 1" if not np.isin(y, (0, 1)).all()
        else f"only {'fake' if y[0] else 'real'} samples" if len(np.unique(y)) == 1
        else ""
    )  # fmt: skip
    if problem:
        raise DfdetectError(f"no metric: {problem}", "both classes are needed, each with a score")
    return s, y.astype(np.int64)


def roc(scores: ArrayLike, labels: ArrayLike) -> Roc:
    from sklearn.metrics import roc_curve

    s, y = checked(scores, labels)
    return Roc(*roc_curve(y, s, drop_intermediate=False))


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: P(fake scores above real), ties count one half."""
    curve = roc(scores, labels)
    return float(np.trapezoid(curve.tpr, curve.fpr))


def eer(scores: ArrayLike, labels: ArrayLike) -> float:
    """Error rate where FPR = FNR, interpolated on the ROC polyline."""
    curve = roc(scores, labels)
    gap = curve.fpr - (1 - curve.tpr)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    if gap[after] == 0:
        return float(curve.fpr[after])
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(curve.fpr[after - 1] + share * (curve.fpr[after] - curve.fpr[after - 1]))


def accuracy(scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5) -> float:
    """Share of right calls where a score of at least `threshold` counts as fake."""
    s, y = np.asarray(scores, np.float64), np.asarray(labels)
    return float(((s >= threshold) == (y == 1)).mean())


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The cut with the highest balanced accuracy, halfway between its neighbouring scores."""
    curve = roc(scores, labels)
    best = int(np.argmax(curve.tpr - curve.fpr))
    below = curve.threshold[min(best + 1, len(curve.threshold) - 1)]
    above = curve.threshold[best]
    # The first vertex calls nothing fake: its cut lies just above the highest score.
    return float((above + below) / 2) if np.isfinite(above) else float(np.nextafter(below, np.inf))


class Band(NamedTuple):
    """Scores below `real_below` are called real, above `fake_above` fake, between neither.

    0 for the one and 1 for the other means that this call is never made.
    """

    real_below: float
    fake_above: float


def call_band(
    real: ArrayLike, fake: ArrayLike, threshold: float, error: float = 0.1, min_ratio: float = 4.0
) -> Band | None:
    """Conformal cuts: a new real video exceeds `fake_above` with probability at most `error`, a new
    fake one falls below `real_below` likewise, if they come from where validation came from.

    A rare error is not enough: a weak model's call would be wrong rarely and right hardly more
    often. So a call is only made if it is `min_ratio` times as frequent in its own class as in the
    other, which at 4 makes four of five calls right where both classes are equally common.

    None when no call can be made: too few videos to promise `error`, which takes (1 - error) /
    error of each class (9 for 0.1), or classes that hardly separate.
    """
    real, fake = np.asarray(real, float), np.asarray(fake, float)
    highest, lowest = conformal_cut(real, error), conformal_cut(-fake, error)
    if highest is None or lowest is None:
        return None
    fake_above, real_below = max(highest, threshold), min(-lowest, threshold)
    if not _is_earned(fake, real, fake_above, min_ratio):
        fake_above = 1.0
    if not _is_earned(-real, -fake, -real_below, min_ratio):
        real_below = 0.0
    never = (real_below, fake_above) == (0.0, 1.0)
    return None if never else Band(float(real_below), float(fake_above))


def fake_band(
    real: ArrayLike, fake: ArrayLike, error: float, min_ratio: float = 4.0
) -> Band | None:
    """As `call_band`, of a model that calls nothing real: `error` then takes (1 - error) / error
    real videos (99 for 0.01) and is promised for them alone."""
    real, fake = np.asarray(real, float), np.asarray(fake, float)
    cut = conformal_cut(real, error)
    return None if cut is None or not _is_earned(fake, real, cut, min_ratio) else Band(0.0, cut)


def conformal_cut(scores: ArrayLike, error: float) -> float | None:
    """The lowest of `scores` [n] that a new one, of the same kind, exceeds with probability at most
    `error` (split conformal prediction); None if there are fewer than (1 - error) / error."""
    ranked = np.sort(np.asarray(scores, np.float64))
    rank = int(np.ceil((len(ranked) + 1) * (1 - error) - 1e-9))  # 1e-9: 20 x 0.95 is 19
    return float(ranked[rank - 1]) if rank <= len(ranked) else None


def _is_earned(own: np.ndarray, other: np.ndarray, cut: float, min_ratio: float) -> bool:
    """Whether scores above `cut` are `min_ratio` times as frequent in their own class."""
    return bool((own > cut).mean() >= min_ratio * max((other > cut).mean(), 1 / len(other)))


# --- probabilities ---------------------------------------------------------------------------


LEAST_SCORE = 1e-6
"""Scores are kept this far from 0 and 1 when their logit is taken; verdicts round to as much."""


def score_logit(scores: ArrayLike | float) -> np.ndarray:
    """Log odds of scores 0..1 of any shape, those nearer than LEAST_SCORE to an end moved there."""
    return _log_odds(np.clip(np.asarray(scores, np.float64), LEAST_SCORE, 1 - LEAST_SCORE))


class Sigmoid(NamedTuple):
    """Where both classes are equally common, P(fake) = sigmoid(`slope` x logit + `intercept`)."""

    slope: float
    intercept: float

    def at(self, prior: float, logits: np.ndarray) -> np.ndarray:
        """P(fake) where fakes are as common as `prior`, which adds its log odds (Bayes)."""
        moved = self.slope * logits + self.intercept + _log_odds(prior)
        return 1 / (1 + np.exp(-moved))


def _log_odds(p: np.ndarray | float) -> np.ndarray:
    return np.log(p / (1 - p))


def fit_sigmoid(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike, smoothing: float, bias: bool = True
) -> Sigmoid:
    """Maximum likelihood over rows [n] that count as their `weights`: Platt scaling (1999), without
    `bias` temperature scaling (Guo et al., ICML 2017), whose temperature is 1 / `slope`.

    The targets are `smoothing` and 1 - `smoothing`, as classes that separate have no finite fit.
    Platt smooths each class by its own size; one value for both adds nothing to the prior. Where
    the best slope is not positive (fakes score no higher than reals) both parameters are 0.

    Errors: DfdetectError as `checked`.
    """
    from sklearn.linear_model import LogisticRegression

    z, y = checked(logits, labels)
    target = np.where(y == 1, 1 - smoothing, smoothing)
    weights = np.asarray(weights, np.float64)
    model = LogisticRegression(
        C=np.inf, fit_intercept=bias, solver="newton-cholesky", tol=1e-10, max_iter=1000
    )
    model.fit(
        np.r_[z, z][:, None],
        np.repeat([1, 0], len(z)),
        sample_weight=np.r_[weights * target, weights * (1 - target)],
    )
    slope = float(model.coef_[0, 0])
    return (
        Sigmoid(slope, float(model.intercept_[0]) if bias else 0.0)
        if slope > 0
        else Sigmoid(0.0, 0.0)
    )


def log_loss(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> float:
    """Mean of -log of the probability given to what is true, in nats; scores are P(fake)."""
    from sklearn.metrics import log_loss

    s, y = checked(scores, labels)
    return float(log_loss(y, s, sample_weight=weights))


def brier(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> float:
    """Mean squared distance of P(fake) from the label, 0..1."""
    from sklearn.metrics import brier_score_loss

    s, y = checked(scores, labels)
    return float(brier_score_loss(y, s, sample_weight=weights))


def cost_bits(log_odds: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """What each of [n] log odds of being fake (natural logarithm, at a prior of one half) costs, in
    bits: -log2 of the probability that it gives to what is true."""
    z, y = np.asarray(log_odds, np.float64), np.asarray(labels)
    return np.logaddexp(0, np.where(y == 1, -z, z)) / np.log(2)


def cllr(log_odds: ArrayLike, labels: ArrayLike) -> float:
    """Log-likelihood-ratio cost in bits (Brümmer and du Preez, 2006): the mean of both classes'
    mean cost. 0 is perfect, 1 what knowing nothing costs, more is worse than that."""
    z, y = checked(log_odds, labels)
    cost = cost_bits(z, y)
    return float((cost[y == 0].mean() + cost[y == 1].mean()) / 2)


def min_cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """What is left of the cost in bits when the scores are replaced by the best log odds in their
    order (pool adjacent violators, on the data themselves; ties stay together): what calibration
    cannot mend. 0..1; the rest of `cllr` is what it can."""
    from sklearn.isotonic import isotonic_regression

    s, y = checked(scores, labels)
    _, place = np.unique(s, return_inverse=True)
    real, fake = (np.bincount(place, y == label) / (y == label).sum() for label in (0, 1))
    p = isotonic_regression(fake / (real + fake), sample_weight=real + fake, y_min=0, y_max=1)
    with np.errstate(divide="ignore"):
        costs = real @ _finite(-np.log2(1 - p)) + fake @ _finite(-np.log2(p))
    return float(costs / 2)


def _finite(costs: np.ndarray) -> np.ndarray:
    """0 for infinite costs, which nothing has to pay."""
    return np.where(np.isinf(costs), 0, costs)


def balanced(labels: ArrayLike) -> np.ndarray:
    """Weights [n] by which both classes together weigh 1/2 each."""
    y = np.asarray(labels)
    return np.where(y == 1, 1 / (2 * (y == 1).sum()), 1 / (2 * (y == 0).sum()))


class Bin(NamedTuple):
    """Scores from `low` up to `high`: their `share` of all weight, the mean score, the share of
    fakes among them."""

    low: float
    high: float
    share: float
    score: float
    fake: float


def reliability(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike, n_bins: int = 10
) -> list[Bin]:
    """Bins of equal width over 0..1 that hold a score, lowest first."""
    s, y = checked(scores, labels)
    w = np.asarray(weights, np.float64) / np.sum(weights)
    place = np.minimum((s * n_bins).astype(int), n_bins - 1)
    bins = []
    for i in np.unique(place):
        here, share = place == i, float(w[place == i].sum())
        score, fake = (float((w * of)[here].sum() / share) for of in (s, y))
        bins.append(Bin(float(i / n_bins), float((i + 1) / n_bins), share, score, fake))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Guo et al., ICML 2017, Eq. 3), of P(fake): the mean distance of
    score and share of fakes, bin by bin."""
    return sum(b.share * abs(b.score - b.fake) for b in bins)


def mean_by(values: ArrayLike, groups: Sequence) -> tuple[list, np.ndarray]:
    """Mean of `values` [n] per distinct group, groups sorted: (groups [k], means [k])."""
    keys, inverse = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(inverse, weights=np.asarray(values, np.float64))
    return keys.tolist(), sums / np.bincount(inverse)


def binomial_bounds(n_hits: int, n: int, coverage: float = 0.95) -> tuple[float, float]:
    """Where a rate lies that gave `n_hits` of `n` (Clopper and Pearson, 1934): exact, and no point
    for 0 of n, as resampling would say."""
    from scipy.stats import beta

    tail = (1 - coverage) / 2
    low = beta.ppf(tail, n_hits, n - n_hits + 1) if n_hits else 0.0
    high = beta.ppf(1 - tail, n_hits + 1, n - n_hits) if n_hits < n else 1.0
    return float(low), float(high)


class Probe(NamedTuple):
    """How well labels can be told: `auc` out of fold, pooled over folds, of `n` rows."""

    auc: float
    n: int


def probe_auc(
    numbers: np.ndarray,
    categories: Sequence[Sequence[str]],
    labels: ArrayLike,
    groups: Sequence[str],
    folds: int = 5,
    seed: int = 0,
) -> Probe:
    """AUC of a logistic regression of `labels` [n] on `numbers` float [n,k] (NaN: unknown) and
    `categories` [n][c] alone; rows of one of the `groups` [n] are never fitted and scored at once.

    Numbers are standardised, unknown ones become the median and a sign of their own; categories
    become one column per value. k or c may be 0, not both.

    Errors: DfdetectError as `checked`, and for a class with fewer than `folds` groups.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    _, y = checked(np.zeros(len(labels)), labels)
    names = np.asarray(groups)
    for label, word in ((0, "real"), (1, "fake")):
        n_groups = len(np.unique(names[y == label]))
        if n_groups < folds:
            raise DfdetectError(
                f"no metric: {n_groups} {word} groups for {folds} folds", "more groups are needed"
            )
    k, c = numbers.shape[1], len(categories[0])
    table = np.empty((len(y), k + c), object)
    table[:, :k], table[:, k:] = numbers, np.array(categories, object).reshape(len(y), c)
    as_numbers = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        StandardScaler(),
    )
    columns = ColumnTransformer(
        [
            ("numbers", as_numbers, list(range(k))),
            ("categories", OneHotEncoder(handle_unknown="ignore"), list(range(k, k + c))),
        ]
    )
    model = make_pipeline(columns, LogisticRegression(class_weight="balanced", max_iter=1000))
    dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, table, y, groups=names, cv=dealt, method="decision_function")
    return Probe(auc(scores, y), len(y))
