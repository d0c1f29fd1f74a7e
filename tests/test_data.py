"""Batches: pairing, augmentation shared by qualities, order of an epoch."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from dfdetect.data import (
    Crops,
    PairedCrops,
    at_qualities,
    augmented,
    epoch_order,
    read_crop,
    read_group,
    to_input,
    training_batches,
)
from dfdetect.errors import DfdetectError
from dfdetect.manifest import read_samples, read_table, write_part
from dfdetect.presets import Augment
from dfdetect.quality import jpeg_round_trip

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


@pytest.fixture(scope="module")
def stored_j75(data, tmp_path_factory):
    """A copy of `data` that holds j75 as well: JPEG of each raw crop, as a PNG."""
    copy = tmp_path_factory.mktemp("stored") / "data"
    shutil.copytree(data, copy)
    rows = read_table(copy).to_pylist()
    for row in [r for r in rows if r["quality"] == "raw"]:
        path = row["path"].replace("/raw/", "/j75/")
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = jpeg_round_trip(read_crop(copy / row["path"]), 75)
        cv2.imwrite(str(copy / path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        rows.append(row | {"path": path, "quality": "j75"})
    for part in (copy / "manifest").glob("*"):
        part.unlink()
    write_part(copy, "all", rows)
    return copy


def test_jpeg_made_while_loading_is_the_jpeg_that_was_stored(data, stored_j75):
    stored, made = (paired(folder, ("j75", "raw"), flip=0.5) for folder in (stored_j75, data))
    assert {g[0].path.parts[-3] for g in stored.groups} == {"j75"}
    assert {g[0].path.parts[-3] for g in made.groups} == {"raw"}
    for position in range(0, len(made), 5):
        (ours, *facts), (theirs, *same) = made[0, 7, position], stored[0, 7, position]
        assert np.array_equal(ours, theirs) and facts == same
        assert not np.array_equal(ours[0], ours[1])  # it is not the raw crop
    rows = [at_qualities(read_samples(folder), ["j75"]) for folder in (stored_j75, data)]
    for position in range(0, len(rows[0]), 11):
        assert np.array_equal(*(Crops(r, 96)[position] for r in rows))


def test_rows_come_in_the_order_asked_for_and_say_what_is_made(data):
    rows = at_qualities(read_samples(data), ["j40-100", "c23", "raw"])
    assert [s.quality for s in rows[:3]] == ["j40-100", "c23", "raw"]
    assert rows[0].path == rows[2].path != rows[1].path
    assert (rows[0].jpeg.level, rows[0].jpeg.level_to) == (40, 100)
    assert rows[1].jpeg is rows[2].jpeg is None
    assert at_qualities(rows, ["j40-100", "c23", "raw"]) == rows


def level_of(pixels, raw, levels):
    """The JPEG quality in `levels` that makes `pixels` of `raw`."""
    (level,) = (q for q in levels if np.array_equal(pixels, jpeg_round_trip(raw, q)))
    return level


def test_a_sample_is_scored_at_its_own_level_of_a_range_every_time(data):
    rows = at_qualities(read_samples(data, "test"), ["j60-69"])
    levels = [level_of(read_group([s])[0], read_crop(s.path), range(60, 70)) for s in rows]
    assert len(set(levels)) > 1
    alone = [read_group([s])[0] for s in reversed(rows)][::-1]
    assert [
        level_of(a, read_crop(s.path), range(60, 70)) for a, s in zip(alone, rows, strict=True)
    ] == levels


def test_in_training_each_draw_has_its_own_level_which_the_seed_decides(data):
    crops = PairedCrops(
        read_samples(data, "train"), ["raw", "j50-54"], DOMAINS, 256, Augment(flip=0), seed=0
    )
    levels = []
    for draw in range(12):
        raw, drawn = crops[1, draw, 2][0]
        assert np.array_equal(drawn, crops[1, draw, 2][0][1])
        levels.append(level_of(drawn, raw, range(50, 55)))
    assert len(set(levels)) > 2


def test_jpeg_at_one_level_leaves_the_augmentation_as_it_was(data):
    with_jpeg, without = (paired(data, q, flip=0.5) for q in (("raw", "j75"), ("raw", "c23")))
    for draw in range(6):
        assert np.array_equal(with_jpeg[0, draw, 1][0][0], without[0, draw, 1][0][0])


def test_jpeg_needs_the_raw_crop_where_it_was_not_stored(data):
    samples = [s for s in read_samples(data, "train") if s.quality != "raw"]
    with pytest.raises(DfdetectError, match="no crop at quality j75"):
        PairedCrops(samples, ["c23", "j75"], DOMAINS, 64, Augment(), 0)


def test_loader_workers_make_the_same_jpeg(data):
    crops = paired(data, ("raw", "j40-100"))
    here, there = (
        next(training_batches(crops, "shuffle", 0, 0, 1, 4, workers=n)).images for n in (0, 1)
    )
    assert torch.equal(here, there)


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
