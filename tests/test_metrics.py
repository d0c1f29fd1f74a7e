"""Metrics beyond the golden file: thresholds, bands, grouping."""

import numpy as np
import pytest

from dfdetect import metrics
from dfdetect.errors import DfdetectError


def test_auc_is_the_share_of_pairs_where_fake_outranks_real():
    real, fake = [0.1, 0.4, 0.4], [0.4, 0.9]
    pairs = [(f > r) + 0.5 * (f == r) for f in fake for r in real]
    assert metrics.auc(real + fake, [0] * 3 + [1] * 2) == pytest.approx(np.mean(pairs))


def test_one_class_raises_and_never_gives_a_half():
    with pytest.raises(DfdetectError, match="only real samples"):
        metrics.auc([0.2, 0.3], [0, 0])


def test_the_best_threshold_lies_between_the_classes_when_they_separate():
    threshold = metrics.best_threshold([0.1, 0.3, 0.7, 0.9], [0, 0, 1, 1])
    assert 0.3 < threshold < 0.7


def test_the_best_threshold_of_scores_in_the_wrong_order_still_separates_as_well_as_it_can():
    scores, labels = [0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]
    threshold = metrics.best_threshold(scores, labels)
    assert metrics.accuracy(scores, labels, threshold) == 0.5


def test_too_few_videos_give_no_band():
    assert metrics.call_band([0.1] * 8, [0.9] * 20, 0.5, error=0.1) is None
    assert metrics.call_band([0.1] * 9, [0.9] * 9, 0.5, error=0.1) is not None


def test_overlapping_classes_leave_an_inconclusive_band():
    rng = np.random.default_rng(0)
    band = metrics.call_band(rng.uniform(0, 0.6, 50), rng.uniform(0.4, 1, 50), 0.5)
    assert 0.4 < band.real_below < 0.5 < band.fake_above < 0.6


def test_a_model_that_hardly_separates_makes_no_calls():
    """Ten per cent error alone would allow calls that are right little more often than wrong."""
    rng = np.random.default_rng(2)
    assert metrics.call_band(rng.normal(0.5, 0.1, 200), rng.normal(0.55, 0.1, 200), 0.5) is None


def test_a_call_that_only_one_class_earns_is_the_only_one_made():
    """Half of the fakes score like reals: what scores high is fake, what scores low may be both."""
    rng = np.random.default_rng(3)
    real = rng.uniform(0.1, 0.4, 100)
    fake = np.concatenate([rng.uniform(0.1, 0.4, 50), rng.uniform(0.7, 0.9, 50)])
    band = metrics.call_band(real, fake, 0.5)
    assert band.real_below == 0 and 0.3 < band.fake_above < 0.7


def test_new_videos_cross_the_band_as_rarely_as_promised():
    """Conformal: over many draws, at most 10 % of new reals are called fake."""
    rng = np.random.default_rng(1)
    crossed = [
        rng.normal() > metrics.call_band(rng.normal(size=19), rng.normal(5, 1, 19), -9.0).fake_above
        for _ in range(4000)
    ]
    assert np.mean(crossed) < 0.11


def test_means_are_taken_per_group():
    assert metrics.mean_by([1.0, 3.0, 5.0], ["b", "b", "a"])[0] == ["a", "b"]
    assert metrics.mean_by([1.0, 3.0, 5.0], ["b", "b", "a"])[1].tolist() == [5.0, 2.0]


def test_the_probe_finds_a_label_in_a_category_and_none_in_noise():
    rng = np.random.default_rng(0)
    labels, groups = np.arange(80) % 2, [str(i) for i in range(80)]
    codec = [("h264" if y else "vp9",) for y in labels]
    none = np.empty((80, 0))
    assert metrics.probe_auc(none, codec, labels, groups) == (1.0, 80)
    noise = rng.normal(size=(80, 2))
    noise[::7, 0] = np.nan
    assert metrics.probe_auc(noise, [()] * 80, labels, groups).auc < 0.65
    with pytest.raises(DfdetectError, match="1 real groups for 5 folds"):
        metrics.probe_auc(none, codec, labels, [str(y) for y in labels])


def test_log_odds_cost_what_the_truth_was_given_in_bits():
    # P(fake) .75 and .25: of a fake 2 - log2(3) bits and 2 bits, of a real one the other way round
    odds = [np.log(3), -np.log(3), -np.log(3), np.log(3)]
    assert metrics.cost_bits(odds, [1, 1, 0, 0]) == pytest.approx(
        [2 - np.log2(3), 2, 2 - np.log2(3), 2]
    )
    assert metrics.cllr(odds[:3], [1, 1, 0]) == pytest.approx(
        ((2 - np.log2(3) + 2) / 2 + 2 - np.log2(3)) / 2
    )
    assert metrics.cllr([0.0, 0.0], [0, 1]) == 1  # knows nothing
    assert metrics.cllr([-900.0, 900.0], [0, 1]) == 0
    assert metrics.cllr([900.0, 0.0], [0, 1]) > 600  # sure and wrong: no overflow


def test_the_least_cost_is_that_of_the_best_log_odds_in_the_same_order():
    separate = ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert metrics.min_cllr(*separate) == 0
    assert metrics.min_cllr([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]) == pytest.approx(1)  # inverted
    assert metrics.min_cllr([0.5] * 4, [0, 0, 1, 1]) == pytest.approx(1)  # one tie
    # .1 is real alone; .5 holds half of the reals and all fakes: P(fake) = 1 / 1.5
    cost = 0.5 * (0.5 * np.log2(3) + np.log2(1.5))
    assert metrics.min_cllr([0.1, 0.5, 0.5, 0.5], [0, 0, 1, 1]) == pytest.approx(cost)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    odds = rng.normal(4 * labels - 2, 2)  # calibrated: unit variance ratio makes these log odds
    assert metrics.min_cllr(odds, labels) < metrics.cllr(odds, labels)
    assert metrics.min_cllr(odds, labels) == metrics.min_cllr(3 * odds - 7, labels)


def test_balanced_weights_give_both_classes_one_half():
    assert metrics.balanced([0, 1, 1, 1]).tolist() == [1 / 2, 1 / 6, 1 / 6, 1 / 6]
