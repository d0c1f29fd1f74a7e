"""Batches: pairing, augmentation shared by qualities, order of an epoch."""

import numpy as np
import pytest
import torch

from dfdetect.data import PairedCrops, augmented, epoch_order, to_input, training_batches
from dfdetect.errors import DfdetectError
from dfdetect.manifest import read_samples
from dfdetect.presets import Augment

DOMAINS = ["real", "local-warp", "self-blend"]


def paired(data, qualities=("raw", "c23", "c40"), **augment):
    options = Augment(**{"flip": 0.0, **augment})
    return PairedCrops(read_samples(data, "train"), qualities, DOMAINS, 64, options, seed=0)


def test_a_batch_holds_every_quality_of_each_sample_in_the_order_asked_for(data):
    crops = paired(data, ("c40", "raw"))
    batch = next(training_batches(crops, "shuffle", 0, 0, 1, 5)).to_device("cpu")
    assert batch.images.shape == (5, 2, 3, 64, 64)
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    detail = batch.images.diff(dim=-1).abs().mean((2, 3, 4))
    assert (detail[:, 0] < detail[:, 1]).all()  # CRF 40 is smoother than raw
    assert torch.equal(batch.domains > 0, batch.labels == 1)


def test_all_qualities_get_the_same_augmentation():
    rng = np.random.default_rng(3)
    crop = rng.integers(0, 256, (32, 32, 3), np.uint8)
    options = Augment(flip=0.5, scale=0.3, brightness=0.2, contrast=0.2)
    for seed in range(10):
        out = augmented(np.stack([crop, crop, crop]), options, np.random.default_rng(seed))
        assert np.array_equal(out[0], out[1]) and np.array_equal(out[0], out[2])


def test_a_draw_looks_the_same_in_every_run_and_each_draw_differs(data):
    crops = paired(data, flip=0.5, scale=0.2, brightness=0.1)
    assert np.array_equal(crops[3, 0, 1][0], crops[3, 0, 1][0])
    assert any(not np.array_equal(crops[0, i, 1][0], crops[0, 0, 1][0]) for i in range(1, 5))


def test_an_epoch_continued_in_the_middle_goes_on_with_the_same_batches(data):
    crops = paired(data)
    whole = [b.sample_ids for b in training_batches(crops, "shuffle", 0, 2, 4, 3)]
    rest = [b.sample_ids for b in training_batches(crops, "shuffle", 0, 2, 4, 3, first_step=2)]
    assert rest == whole[2:]


def test_ranks_share_an_epoch_without_overlap(data):
    crops = paired(data)
    parts = [
        {
            i
            for b in training_batches(crops, "shuffle", 0, 0, 2, 3, rank=r, n_ranks=2)
            for i in b.sample_ids
        }
        for r in (0, 1)
    ]
    assert not parts[0] & parts[1]


def test_shuffling_shows_every_sample_before_any_comes_again():
    labels = np.zeros(10, int)
    order = epoch_order(labels, labels, "shuffle", 0, 0, 5, 5).reshape(-1)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))


@pytest.mark.parametrize(("sampler", "groups"), [("class_balanced", 2), ("domain_balanced", 3)])
def test_balanced_samplers_show_each_group_equally_often_in_every_batch(sampler, groups):
    domains = np.array([0] * 90 + [1] * 8 + [2] * 2)
    labels = (domains > 0).astype(int)
    kinds = labels if groups == 2 else domains
    for batch in epoch_order(labels, domains, sampler, 0, 0, 20, 12):
        assert np.bincount(kinds[batch]).tolist() == [12 // groups] * groups


def test_epochs_differ_and_the_seed_decides():
    labels = np.zeros(50, int)
    first, again, next_epoch = (
        epoch_order(labels, labels, "uniform", 7, epoch, 5, 10).tolist() for epoch in (0, 0, 1)
    )
    assert first == again != next_epoch


def test_a_quality_that_was_not_prepared_is_named(data):
    with pytest.raises(DfdetectError, match="no crop at quality c30"):
        paired(data, ("raw", "c30"))


def test_a_missing_crop_is_named(data):
    samples = [s._replace(path=s.path.with_name("gone.png")) for s in read_samples(data, "train")]
    crops = PairedCrops(samples, ["raw"], DOMAINS, 64, Augment(), 0)
    with pytest.raises(DfdetectError, match=r"gone\.png: missing face crop"):
        crops[0, 0, 0]


def test_resizing_keeps_the_mean_and_the_size_asked_for():
    crop = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    for size in (64, 240, 256, 300):
        small = to_input(crop, size)
        assert small.shape == (size, size, 3)
        assert abs(small.mean() - crop.mean()) < 1
