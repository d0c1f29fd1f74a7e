"""The bootstrap: rounds are the figures of drawn rows, single classes are skipped, bounds hold."""

import numpy as np
import pytest
from independent_metrics import figures

from dfdetect import metrics
from dfdetect.errors import DfdetectError
from dfdetect.resampling import MEASURES, Draws, interval, intervals, resampled


def made_up(seed, n=40, n_videos=8, digits=1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = np.round(1 / (1 + np.exp(-rng.normal(labels))), digits)
    return scores, labels, np.array([f"video {i}" for i in rng.integers(0, n_videos, n)])


@pytest.mark.parametrize("digits", [1, 12], ids=["many ties", "no ties"])
def test_a_round_is_the_figures_of_the_rows_repeated_as_drawn(digits):
    scores, labels, clusters = made_up(4, digits=digits)
    names, video = np.unique(clusters, return_inverse=True)
    found = resampled(scores, labels, clusters, threshold=0.6, rounds=30, seed=1)
    counts = Draws({"": len(names)}, seed=1).counts(range(31))
    assert (counts[0] == 1).all() and (counts.sum(1) == 8).all() and (counts[1:] != 1).any(1).all()
    for i, count in enumerate(counts):
        rows = np.repeat(np.arange(40), count[video].astype(int))
        odds = metrics.score_logit(scores[rows])
        expected = figures(scores[rows], scores[rows], odds, labels[rows], 0.6)
        for name in MEASURES:
            assert found[name][i] == pytest.approx(expected[name], abs=1e-12), name


def test_the_data_themselves_have_the_figures_of_the_plain_functions():
    scores, labels, clusters = made_up(5)
    found = resampled(scores, labels, clusters, rounds=0)
    assert found["auc"][0] == pytest.approx(metrics.auc(scores, labels))
    assert found["eer"][0] == pytest.approx(metrics.eer(scores, labels))
    assert found["accuracy"][0] == metrics.accuracy(scores, labels)
    assert found["cllr"][0] == pytest.approx(metrics.cllr(metrics.score_logit(scores), labels))
    with pytest.raises(DfdetectError, match="only real samples"):
        resampled([0.1, 0.2], [0, 0], ["a", "b"])


def test_few_false_positives_are_thresholds_that_exist():
    """Of 99 reals none may be above at 1 %, of 100 one: exactly, also in floating point."""
    for n_real, share in ((99, 0.0), (100, 0.5)):
        real = np.linspace(0, 0.8, n_real)
        scores = np.r_[real, 0.79999, 0.1]  # above all reals but one; below most
        found = resampled(scores, [0] * n_real + [1, 1], list(range(n_real + 2)), rounds=0)
        assert found["tpr_at_1"][0] == share
        assert found["tpr_at_5"][0] == 0.5


def test_rounds_of_a_single_class_are_skipped():
    found = resampled([0.1, 0.2, 0.9], [0, 0, 1], ["a", "b", "c"], rounds=500)
    counts = Draws({"": 3}).counts(range(501))
    single = [count[2] in (0, 3) for count in counts]
    assert np.isnan(found["auc"]).tolist() == single and any(single)
    assert interval(found["auc"]) == (1.0, 1.0)
    assert interval(np.array([0.5, np.nan, np.nan])) is None
    assert intervals(np.array([[0.5, 1.0]])) == []  # no round at all


def test_blocks_of_rounds_and_groups_beside_change_no_draw():
    whole = Draws({"a": 5, "b": 7}).counts(range(20))
    parts = [Draws({"b": 7}).counts(range(0, 3)), Draws({"b": 7}).counts(range(3, 20))]
    assert (whole[:, 5:] == np.concatenate(parts)).all()
    same_size = Draws({"a": 7, "b": 7}).counts(range(20))
    assert (same_size[1:, :7] != same_size[1:, 7:]).any(1).all()  # drawn apart


def test_more_crops_of_the_same_videos_make_no_interval_narrower():
    rng = np.random.default_rng(6)
    labels = np.arange(40) % 2
    scores, clusters = rng.normal(labels), [str(i) for i in range(40)]
    once, often = (
        interval(resampled(*(np.repeat(x, n) for x in (scores, labels, clusters)))["auc"])
        for n in (1, 20)
    )
    assert once == pytest.approx(often)


def test_the_interval_holds_the_true_auc_about_as_often_as_it_says():
    """Fakes are shifted by 1 standard deviation: AUC = Phi(1 / sqrt 2) = 0.7602."""
    rng, held = np.random.default_rng(8), 0
    labels = np.arange(80) % 2
    clusters = [str(i) for i in range(80)]
    for i in range(100):
        aucs = resampled(rng.normal(labels), labels, clusters, rounds=200, seed=i)["auc"]
        low, high = interval(aucs)
        held += low <= 0.7602 <= high
    assert 0.88 < held / 100 < 0.99
