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


def test_a_resampled_auc_is_that_of_the_rows_repeated_as_drawn():
    rng = np.random.default_rng(4)
    scores, labels = rng.integers(0, 6, 40).astype(float), rng.integers(0, 2, 40)  # many ties
    clusters = [f"video {i}" for i in rng.integers(0, 8, 40)]
    resamples = metrics.resample(clusters, rounds=30, seed=1)
    assert resamples.counts.shape == (30, 8) and (resamples.counts.sum(1) == 8).all()
    aucs = metrics.resampled_aucs(scores, labels, clusters, resamples)
    for found, count in zip(aucs, resamples.counts, strict=True):
        times = dict(zip(resamples.clusters.tolist(), count, strict=True))
        rows = [i for i, name in enumerate(clusters) for _ in range(times[name])]
        assert found == pytest.approx(metrics.auc(scores[rows], labels[rows]), abs=1e-12)


def test_rounds_of_a_single_class_are_skipped_and_counted():
    scores, labels, clusters = [0.1, 0.2, 0.9], [0, 0, 1], ["a", "b", "c"]
    resamples = metrics.resample(clusters, rounds=500, seed=0)
    aucs = metrics.resampled_aucs(scores, labels, clusters, resamples)
    single = [count[2] in (0, 3) for count in resamples.counts]
    assert np.isnan(aucs).tolist() == single
    found = metrics.interval(aucs)
    assert (found.low, found.high, found.n_skipped) == (1.0, 1.0, sum(single))
    assert metrics.interval(np.full(3, np.nan)) is None


def test_more_crops_of_the_same_videos_make_no_interval_narrower():
    rng = np.random.default_rng(6)
    labels = np.arange(40) % 2
    scores, clusters = rng.normal(labels), [str(i) for i in range(40)]
    once, often = (
        metrics.interval(
            metrics.resampled_aucs(
                np.repeat(scores, n), np.repeat(labels, n), np.repeat(clusters, n),
                metrics.resample(clusters),
            )
        )
        for n in (1, 20)
    )  # fmt: skip
    assert once == pytest.approx(often)


def test_the_interval_holds_the_true_auc_about_as_often_as_it_says():
    """Fakes are shifted by 1 standard deviation: AUC = Phi(1 / sqrt 2) = 0.7602."""
    rng, held = np.random.default_rng(8), 0
    labels = np.arange(80) % 2
    clusters = [str(i) for i in range(80)]
    resamples = metrics.resample(clusters, rounds=200)
    for _ in range(150):
        aucs = metrics.resampled_aucs(rng.normal(labels), labels, clusters, resamples)
        low, high, _ = metrics.interval(aucs)
        held += low <= 0.7602 <= high
    assert 0.88 < held / 150 < 0.99
