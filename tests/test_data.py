"""Batches: pairing, augmentation shared by qualities, order of an epoch, loader processes."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import product
from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from dfdetect.corruptions import corrupted, jpeg_round_trip
from dfdetect.data import (
    Crops,
    Draws,
    Loader,
    PairedCrops,
    Strata,
    at_qualities,
    augmented,
    available_cores,
    check_crops,
    default_workers,
    degraded,
    epoch_order,
    read_crop,
    read_group,
    to_input,
    training_batches,
)
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.manifest import read_samples, read_table, write_part
from dfdetect.presets import Augment, Preset, load_preset
from dfdetect.quality import parse_quality
from dfdetect.results import Scorer

DOMAINS = ["real", "local-warp", "self-blend"]


def paired(data, qualities=("raw", "c23", "c40"), **augment):
    options = Augment(**{"flip": 0.0, **augment})
    return PairedCrops(read_samples(data, "train"), qualities, DOMAINS, 64, options, seed=0)


def drawn(crops, draw, position, epoch=0):
    """One sample as the loader makes it, uint8 [Q,S,S,3]."""
    batch = crops[Draws(epoch, draw, np.array([position]))]
    return batch.images[0].permute(0, 2, 3, 1).numpy()


def test_a_batch_holds_every_quality_of_each_sample_in_the_order_asked_for(data):
    crops = paired(data, ("c40", "raw"))
    batch = next(iter(training_batches(crops, "shuffle", 0, 1, 1, 5))).to_device("cpu")
    assert batch.images.shape == (5, 2, 3, 64, 64)
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    detail = batch.images.diff(dim=-1).abs().mean((2, 3, 4))
    assert (detail[:, 0] < detail[:, 1]).all()  # CRF 40 is smoother than raw
    assert torch.equal(batch.domains > 0, batch.labels == 1)


def test_a_sample_in_a_batch_is_its_resized_crops_and_its_row(data):
    crops = paired(data, ("raw", "c40"))
    positions = np.array([7, 2, 7])
    batch = crops[Draws(0, 0, positions)]
    rows = {(s.sample_id, s.quality): s for s in read_samples(data, "train")}
    for place, sample_id in enumerate(batch.sample_ids):
        for number, quality in enumerate(("raw", "c40")):
            row = rows[sample_id, quality]
            expected = to_input(read_crop(row.path), 64).transpose(2, 0, 1)
            assert np.array_equal(batch.images[place, number], expected)
        assert batch.labels[place] == row.label
        assert DOMAINS[batch.domains[place]] == row.manipulation
    assert len(set(batch.sample_ids)) == 2


# --- augmentation ------------------------------------------------------------------------------

EVERYTHING = Augment(
    flip=0.5, scale=0.3, brightness=0.2, contrast=0.2, blur=0.5, rescale=0.5, jpeg=0.5
)


def noise(side=32, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_all_qualities_get_the_same_augmentation():
    crop, seen = noise(), set()
    for seed in range(20):
        out = augmented([crop, crop, crop], EVERYTHING, np.random.default_rng(seed))
        assert np.array_equal(out[0], out[1]) and np.array_equal(out[0], out[2])
        seen.add(out[0].tobytes())
    assert len(seen) == 20


def test_augmentation_is_flip_then_cut_then_brightness_as_drawn():
    """Re-derived pixel by pixel from the same draws."""
    options = Augment(flip=0.5, scale=0.3, brightness=0.2, contrast=0.3)
    crop, flips = noise(), 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        expected = crop
        if rng.random() < 0.5:
            expected, flips = crop[:, ::-1], flips + 1
        cut = round(32 * (1 - 0.3 * rng.random()))
        top, left = rng.integers(0, 32 - cut + 1, 2)
        expected = expected[top : top + cut, left : left + cut].astype(float)
        gain, bias = 1 + 0.3 * rng.uniform(-1, 1), 255 * 0.2 * rng.uniform(-1, 1)
        expected = np.clip(expected * gain + bias, 0, 255).round()
        (out,) = augmented([crop], options, np.random.default_rng(seed))
        assert np.array_equal(out, expected)
    assert 0 < flips < 12


def test_what_is_off_draws_nothing_and_changes_nothing():
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    (out,) = augmented([noise()], Augment(flip=0), rng)
    assert np.array_equal(out, noise()) and rng.random() == untouched.random()


def test_one_jpeg_level_is_drawn_for_all_qualities_of_a_sample():
    options = Augment(flip=0, jpeg=1, jpeg_quality=(60, 64))
    crops, levels = [noise(seed=1), cv2.blur(noise(seed=2), (5, 5))], []
    for seed in range(40):
        out = augmented(crops, options, np.random.default_rng(seed))
        levels.append(level_of(out[0], crops[0], range(55, 70)))
        assert level_of(out[1], crops[1], range(55, 70)) == levels[-1]
    assert set(levels) == {60, 61, 62, 63, 64}


def test_rescaling_shrinks_to_the_share_and_back_in_one_way_for_all_qualities():
    ways = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC)
    options = Augment(flip=0, rescale=1, rescale_to=(0.5, 0.5))
    crops, seen = [noise(seed=1), noise(seed=2)], set()
    for seed in range(30):
        out = augmented(crops, options, np.random.default_rng(seed))
        fits = [
            {
                (down, up)
                for down, up in product(ways, ways)
                if np.array_equal(
                    after,
                    cv2.resize(
                        cv2.resize(before, (16, 16), interpolation=down), (32, 32), interpolation=up
                    ),
                )
            }
            for before, after in zip(crops, out, strict=True)
        ]
        assert fits[0] & fits[1]
        seen |= fits[0] & fits[1]
    assert {down for down, _ in seen} == {up for _, up in seen} == set(ways)


def test_the_share_of_rescaling_keeps_within_its_range():
    """Seen where both ways are nearest neighbours, one time in sixteen."""

    def nearest(crop, size):
        return cv2.resize(crop, (size, size), interpolation=cv2.INTER_NEAREST)

    by_side = {nearest(nearest(noise(), side), 32).tobytes(): side for side in range(1, 32)}
    options = Augment(flip=0, rescale=1, rescale_to=(0.4, 0.6))
    outs = [augmented([noise()], options, np.random.default_rng(seed))[0] for seed in range(2000)]
    sides = {by_side[out.tobytes()] for out in outs if out.tobytes() in by_side}
    assert sides == {13, 14, 15, 16, 17, 18, 19}  # 12.8 to 19.2


def test_blur_keeps_within_its_range():
    weakest, strongest = (cv2.GaussianBlur(noise(64), (0, 0), s).std() for s in (0.5, 2.0))
    spreads = [
        augmented([noise(64)], Augment(flip=0, blur=1), np.random.default_rng(seed))[0].std()
        for seed in range(30)
    ]
    assert strongest <= min(spreads) < max(spreads) <= weakest


@pytest.mark.parametrize("name", ["flip", "blur", "rescale", "jpeg"])
def test_a_probability_is_how_often(name):
    options = Augment(**{"flip": 0, "rescale_to": (0.3, 0.6), name: 0.3})
    changed = sum(
        not np.array_equal(augmented([noise()], options, np.random.default_rng(seed))[0], noise())
        for seed in range(400)
    )
    assert abs(changed - 120) < 4 * 9.2  # standard deviation sqrt(400 * .3 * .7)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("augment.jpeg_quality=[0,95]", "augment.jpeg_quality.0: input should be greater than or"),
        ("augment.jpeg_quality=[95,30]", "augment.jpeg_quality: from is above to"),
        ("augment.rescale_to=[0.5,1.5]", "augment.rescale_to.1: input should be less than or"),
        ("augment.rescale_to=0.5", "augment.rescale_to: input should be a valid tuple"),
        ("augment.blur_sigma=[3,1]", "augment.blur_sigma: from is above to"),
        ("augment.jpeg=2", "augment.jpeg: input should be less than or equal to 1"),
    ],
)
def test_a_bad_range_is_refused_in_one_line(override, complaint):
    with pytest.raises(DfdetectError) as error:
        load_preset("qad-tiny", [override])
    assert complaint in error.value.line and "\n" not in error.value.line


def test_a_draw_looks_the_same_in_every_run_and_each_draw_differs(data):
    crops = paired(data, flip=0.5, scale=0.2, brightness=0.1)
    assert np.array_equal(drawn(crops, 0, 1, epoch=3), drawn(crops, 0, 1, epoch=3))
    assert any(not np.array_equal(drawn(crops, i, 1), drawn(crops, 0, 1)) for i in range(1, 5))


# --- order -------------------------------------------------------------------------------------


def same(one, other):
    return torch.equal(one.images, other.images) and one.sample_ids == other.sample_ids


def test_batches_depend_neither_on_where_a_run_resumes_nor_on_the_workers(data):
    crops = paired(data, ("raw", "j40-100"), flip=0.5, scale=0.2, jpeg=0.5, rescale=0.5)
    options = (crops, "domain_balanced", 5, 3, 8, 4)  # eight steps, three an epoch
    whole = list(training_batches(*options))
    assert len(whole) == 8
    for step in range(1, 9):
        rest = list(training_batches(*options, first_step=step))
        assert len(rest) == 8 - step
        assert all(map(same, rest, whole[step:]))
    with training_batches(*options, first_step=1, workers=2) as loader:
        assert all(map(same, loader, whole[1:]))
    assert not same(whole[0], whole[3])  # each epoch has an order of its own


def test_ranks_share_an_epoch_without_overlap(data):
    crops = paired(data)
    parts = [
        {
            i
            for b in training_batches(crops, "shuffle", 0, 2, 2, 3, rank=r, n_ranks=2)
            for i in b.sample_ids
        }
        for r in (0, 1)
    ]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 12


def strata(domains, videos=None, sources=None):
    domains, alone = np.array(domains), np.arange(len(domains))
    videos, sources = (np.array(alone if x is None else x) for x in (videos, sources))
    return Strata((domains > 0).astype(int), domains, videos, sources)


def test_shuffling_shows_every_sample_before_any_comes_again():
    order = epoch_order(strata([0] * 10), "shuffle", 0, 0, 5, 5).reshape(-1)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))


@pytest.mark.parametrize(("sampler", "groups"), [("class_balanced", 2), ("domain_balanced", 3)])
def test_balanced_samplers_show_each_group_equally_often_in_every_batch(sampler, groups):
    samples = strata([0] * 90 + [1] * 8 + [2] * 2)
    kinds = samples.labels if groups == 2 else samples.domains
    for batch in epoch_order(samples, sampler, 0, 0, 20, 12):
        assert np.bincount(kinds[batch]).tolist() == [12 // groups] * groups


def test_a_batch_of_did_holds_three_of_each_of_five_domains():
    """DID draws 15: real and four manipulations."""
    samples = strata([0] * 50 + [1] * 50 + [2] * 400 + [3] * 5 + [4] * 1)
    order = epoch_order(samples, "domain_balanced", 1, 2, 100, 15)
    assert all(np.bincount(samples.domains[b]).tolist() == [3] * 5 for b in order)
    assert len({tuple(samples.domains[b]) for b in order}) > 50  # in an order of their own
    shown = np.bincount(order[samples.domains[order] == 0], minlength=506)[:50]
    assert shown.min() > 0  # 300 draws of 50 reals: one is missed with probability 0.002 each


@pytest.mark.parametrize("sampler", ["class_balanced", "domain_balanced"])
@pytest.mark.parametrize("batch_size", [2, 3, 4, 5, 7, 15])
def test_a_balanced_batch_holds_both_classes_however_small(sampler, batch_size):
    samples = strata([0] * 30 + [1] * 30 + [2] * 30 + [3] * 3 + [4] * 30 + [5] * 30)
    order = epoch_order(samples, sampler, 0, 0, 60, batch_size)
    assert {len(set(samples.labels[b])) for b in order} == {2}
    counts = np.bincount(samples.domains[order].reshape(-1))
    if sampler == "domain_balanced":  # fakes take turns, also where a batch is too small for all
        assert max(counts[1:]) - min(counts[1:]) <= 1


def test_video_balancing_shows_every_video_equally_often_and_all_of_its_frames():
    videos = [0] * 100 + [1] * 10 + [2]
    samples = strata([0] * 100 + [1] * 11, videos)
    order = epoch_order(samples, "video_balanced", 0, 0, 150, 4).reshape(-1)
    assert np.bincount(samples.videos[order]).tolist() == [200] * 3
    assert all(len(set(samples.videos[order[i : i + 3]])) == 3 for i in range(0, 600, 3))
    frames = np.bincount(order, minlength=111)
    assert abs(frames[100:110] - 20).max() < 5 * 4.3  # sd of 200 draws of 10: sqrt(200*.1*.9)
    assert (frames[:100] > 0).sum() > 75  # 1 - e^-2 of 100 are expected


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_every_fake_comes_with_a_real_of_its_source(batch_size):
    people = 20
    samples = strata(  # two frames of each real person, fakes of all but the last five
        [0] * 2 * people + [1] * (people - 5) + [2] * (people - 5),
        sources=[*range(people)] * 2 + [*range(people - 5)] * 2,
    )
    order = epoch_order(samples, "source_paired", 0, 0, 300, batch_size)
    labels, sources = samples.labels[order], samples.sources[order]
    assert (labels[:, ::2] == 0).all() and (labels[:, 1::2] == 1).all()
    pairs = batch_size // 2 * 2
    assert np.array_equal(sources[:, :pairs:2], sources[:, 1::2])
    fakes = order[:, 1::2].reshape(-1)
    for start in range(0, len(fakes) - 29, 30):  # all, before any comes again
        assert sorted(fakes[start : start + 30]) == list(range(40, 70))
    assert set(order[:, :pairs:2].reshape(-1)) == {*range(15), *range(20, 35)}  # either frame
    if batch_size % 2:  # the real that is over may be anybody
        assert set(order[:, -1]) == set(range(40))


def test_a_fake_whose_source_is_not_there_comes_with_any_real():
    samples = strata([0] * 6 + [1, 1], sources=[*range(6), 2, -1])
    order = epoch_order(samples, "source_paired", 0, 0, 100, 4)
    partners = {fake: set(order[:, ::2][order[:, 1::2] == fake]) for fake in (6, 7)}
    assert partners == {6: {2}, 7: set(range(6))}


def test_a_fake_s_source_is_the_target_s_real_footage_then_the_face_s(data):
    """Whose video it is comes before whose face is in it; who is not real here is nobody."""
    first = next(s for s in read_samples(data, "train") if s.quality == "raw")
    rows = [
        first._replace(sample_id=f"s{i}", video_id=f"v{i}", label=label, identities=people)
        for i, (label, people) in enumerate(
            [(0, ("a",)), (0, ("b",)), (0, ("a",)), (0, ()),
             (1, ("b", "a")), (1, ("c", "a")), (1, ("c", "d")), (1, ())]
        )
    ]  # fmt: skip
    crops = PairedCrops(rows, ("raw",), DOMAINS, 64, Augment(), 0)
    assert crops.strata.sources.tolist() == [0, 1, 0, 2, 1, 0, -1, -1]


def test_prepared_clips_are_paired_with_the_real_clip_of_the_same_name(data):
    crops = paired(data, ("raw",))
    people = {s.sample_id: s.identities for s in read_samples(data, "train")}
    for batch in training_batches(crops, "source_paired", 0, 4, 4, 6):
        assert batch.labels.tolist() == [0, 1, 0, 1, 0, 1]
        reals, fakes = batch.sample_ids[::2], batch.sample_ids[1::2]
        assert [people[i] for i in reals] == [people[i] for i in fakes]


@pytest.mark.parametrize("sampler", get_args(Preset.model_fields["sampler"].annotation))
def test_epochs_differ_and_the_seed_decides(sampler):
    samples = strata([0, 1, 2, 3, 4] * 10, sources=[0, 0, 0, 0, -1] * 10)
    draw = lambda seed, epoch: epoch_order(samples, sampler, seed, epoch, 5, 10)  # noqa: E731
    first = draw(7, 0)
    assert first.shape == (5, 10) and first.min() >= 0 and first.max() < 50
    assert np.array_equal(first, draw(7, 0))
    assert not np.array_equal(first, draw(7, 1)) and not np.array_equal(first, draw(8, 0))


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
    for position in range(0, len(made), 5):
        files = [crops.files(position)[0].path.parts[-3] for crops in (stored, made)]
        assert files == ["j75", "raw"]
        ours, theirs = (drawn(crops, 7, position) for crops in (made, stored))
        assert np.array_equal(ours, theirs)
        assert not np.array_equal(ours[0], ours[1])  # it is not the raw crop
    rows = [at_qualities(read_samples(folder), ["j75"]) for folder in (stored_j75, data)]
    for position in range(0, len(rows[0]), 11):
        assert np.array_equal(*(Crops(r, 96)[[position]] for r in rows))


def test_rows_come_in_the_order_asked_for_and_say_what_is_made(data):
    rows = at_qualities(read_samples(data), ["j40-100", "c23", "raw"])
    assert [s.quality for s in rows[:3]] == ["j40-100", "c23", "raw"]
    assert rows[0].path == rows[2].path != rows[1].path
    assert (rows[0].made.level, rows[0].made.level_to) == (40, 100)
    assert rows[1].made is rows[2].made is None
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


def test_other_qualities_are_made_of_the_raw_crop_of_each_sample(data):
    made = ["crf30", "scale0.5", "blur1.5", "noise8"]
    rows = at_qualities(read_samples(data, "test"), ["c23", *made])[:20]
    assert [s.quality for s in rows[:5]] == ["c23", *made]
    raw = {s.sample_id: s.path for s in read_samples(data, "test") if s.quality == "raw"}
    for row in rows[1::5] + rows[4::5]:
        expected = corrupted(
            read_crop(raw[row.sample_id]), parse_quality(row.quality), row.sample_id
        )
        assert row.path == raw[row.sample_id] and np.array_equal(read_group([row])[0], expected)
    scored = Crops(rows, 256)[range(len(rows))]
    for pixels, row in zip(scored, rows, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), read_group([row])[0])


def test_training_draws_noise_anew_and_beside_forgeries_makes_all_qualities_too(data):
    crops = paired(data, ("raw", "crf40", "noise8"))
    first, again, other = (drawn(crops, draw, 3) for draw in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.array_equal(first[1], other[1]) and not np.array_equal(first[2], other[2])
    crop = read_crop(crops.files(3)[0].path)
    qualities = [parse_quality(name) for name in ("crf40", "blur2")]
    made = degraded(crop, qualities, np.random.default_rng(0))
    assert all(
        np.array_equal(picture, corrupted(crop, quality, ""))
        for picture, quality in zip(made, qualities, strict=True)
    )


def test_in_training_each_draw_has_its_own_level_which_the_seed_decides(data):
    crops = PairedCrops(
        read_samples(data, "train"), ["raw", "j50-54"], DOMAINS, 256, Augment(flip=0), seed=0
    )
    levels = []
    for draw in range(12):
        raw, compressed = drawn(crops, draw, 2, epoch=1)
        assert np.array_equal(compressed, drawn(crops, draw, 2, epoch=1)[1])
        levels.append(level_of(compressed, raw, range(50, 55)))
    assert len(set(levels)) > 2


def test_jpeg_at_one_level_leaves_the_augmentation_as_it_was(data):
    with_jpeg, without = (paired(data, q, flip=0.5) for q in (("raw", "j75"), ("raw", "c23")))
    for draw in range(6):
        assert np.array_equal(drawn(with_jpeg, draw, 1)[0], drawn(without, draw, 1)[0])


def test_jpeg_needs_the_raw_crop_where_it_was_not_stored(data):
    samples = [s for s in read_samples(data, "train") if s.quality != "raw"]
    with pytest.raises(DfdetectError, match="no crop at quality j75"):
        PairedCrops(samples, ["c23", "j75"], DOMAINS, 64, Augment(), 0)


def test_a_missing_crop_is_named(data):
    samples = [s._replace(path=s.path.with_name("gone.png")) for s in read_samples(data, "train")]
    crops = PairedCrops(samples, ["raw"], DOMAINS, 64, Augment(), 0)
    with pytest.raises(DfdetectError, match=r"gone\.png: missing face crop"):
        drawn(crops, 0, 0)


def test_crops_that_are_missing_or_empty_are_all_named_at_once(data, tmp_path):
    samples = read_samples(data)
    check_crops(samples)
    (tmp_path / "empty.png").touch()
    names = ["empty.png", ".", *(f"gone{i}.png" for i in range(21))]
    broken = [s._replace(path=tmp_path / name) for s, name in zip(samples, names, strict=False)]
    with pytest.raises(DfdetectError) as error:
        check_crops([*broken, *samples, *broken])
    n = len({s.path for s in samples})
    assert error.value.message == (
        f"23 of {n + 23} face crops cannot be read: {tmp_path}/empty.png (empty), "
        f"{tmp_path} (no file), "
        + ", ".join(f"{tmp_path}/gone{i}.png (missing)" for i in range(18))
        + " and 3 more"
    )
    assert error.value.hint == "run prepare with --repair"


def test_resizing_keeps_the_mean_and_the_size_asked_for():
    crop = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    for size in (64, 240, 256, 300):
        small = to_input(crop, size)
        assert small.shape == (size, size, 3)
        assert abs(small.mean() - crop.mean()) < 1


# --- loader processes --------------------------------------------------------------------------


class Moody(Dataset):
    """key -> key; 9 is a damaged crop, a negative key the signal by which the process dies."""

    def __getitem__(self, key):
        if key < 0:
            os.kill(os.getpid(), -key)
        if key == 9:
            raise DfdetectError("nine.png: damaged face crop", "a hint", ExitCode.PARTIAL)
        return key


def test_an_error_in_a_loader_process_arrives_as_it_was():
    taken = []
    with pytest.raises(DfdetectError) as error, Loader(Moody(), [0, 1, 9, 2], 2) as loader:
        taken += loader
    assert error.value.line == "nine.png: damaged face crop; a hint"
    assert error.value.exit_code == ExitCode.PARTIAL
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "a loader process was killed by signal 9, probably for want of memory"),
        (signal.SIGBUS, "a loader process died: the shared memory (/dev/shm) is full"),
    ],
)
def test_a_loader_process_that_dies_is_an_error_of_the_environment(number, message):
    keys = [0, 1, 2, -number, *range(4, 9)]
    with pytest.raises(DfdetectError) as error, Loader(Moody(), keys, 2) as loader:
        list(loader)
    assert error.value.message == message
    assert error.value.hint.startswith("use fewer --workers, or")
    assert error.value.exit_code == ExitCode.ENVIRONMENT
    assert not multiprocessing.active_children()


def test_loader_processes_outlive_the_signals_of_a_stop_but_not_their_block():
    with (
        pytest.raises(KeyboardInterrupt),
        Loader(Moody(), range(8), 2) as loader,
    ):
        for key in loader:
            if key == 1:  # both are at work
                for process in multiprocessing.active_children():
                    os.kill(process.pid, signal.SIGINT)
                    os.kill(process.pid, signal.SIGTERM)
            if key == 7:  # each has made several since
                raise KeyboardInterrupt
    assert key == 7 and not multiprocessing.active_children()


@pytest.fixture
def loading(data):
    """Starts a program that loads with two processes and calls `last` then; -> it, their ids."""

    def start(last):
        script = data.parent / "loading.py"
        script.write_text(f"""
import os, signal
from pathlib import Path
from dfdetect.data import PairedCrops, training_batches
from dfdetect.manifest import read_samples
from dfdetect.presets import Augment
if __name__ == "__main__":
    samples = read_samples(Path({str(data)!r}), "train")
    crops = PairedCrops(samples, ("raw", "c40"), {DOMAINS}, 256, Augment(), 0)
    loader = training_batches(crops, "shuffle", 0, 99, 99, 32, workers=2)
    next(iter(loader))
    print(*(worker.pid for worker in loader._workers), flush=True)
    {last}
""")
        command = [sys.executable, str(script)]
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return program, [int(pid) for pid in program.stdout.readline().split()]

    return start


def test_a_loader_that_nobody_closed_ends_with_the_program_and_quietly(loading):
    program, workers = loading("pass")
    _, errors = program.communicate(timeout=60)
    assert (program.returncode, errors, len(workers)) == (0, b"", 2)


def test_loader_processes_do_not_outlive_a_program_that_is_killed(loading):
    program, workers = loading("os.kill(os.getpid(), signal.SIGKILL)")
    assert program.wait(60) == -signal.SIGKILL and len(workers) == 2
    # Its streams end when the last who holds them is gone; ids of the dead may linger.
    program.communicate(timeout=60)


class Brightness(nn.Module):
    """The mean of a picture as its logit."""

    def forward(self, images):
        return images.mean((1, 2, 3))


def predict(rows, batch_size=64, on_batch=None):
    with Scorer(rows, 64, batch_size) as scorer:
        return scorer.predict(Brightness(), "cpu", on_batch)


def test_scoring_again_uses_the_same_processes_and_gives_the_same_numbers(data):
    rows = at_qualities(read_samples(data, "val"), ["raw", "c40", "j40-100"])
    once = predict(rows, 7)
    means = [to_input(read_group([s])[0], 64).mean() / 255 for s in rows]
    assert [p.logit for p in once] == pytest.approx(means, abs=1e-6)
    assert [(p.sample_id, p.quality) for p in once] == [(s.sample_id, s.quality) for s in rows]
    counts, detector = [], Brightness()
    with Scorer(rows, 64, batch_size=7, workers=2) as scorer:
        assert scorer.predict(detector, "cpu", counts.append) == once
        first = {process.pid for process in multiprocessing.active_children()}
        assert scorer.predict(detector, "cpu") == once
        assert {process.pid for process in multiprocessing.active_children()} == first
        assert len(first) == 2
        with pytest.raises(ZeroDivisionError):
            scorer.predict(detector, "cpu", lambda n: 1 // 0)
        assert scorer.predict(detector, "cpu") == once  # a pass that was left does no harm
    assert sum(counts) == len(rows) and set(counts[:-1]) == {7}
    assert detector.training and not multiprocessing.active_children()


def test_processes_share_the_rows_and_each_gets_all_predictions(data, monkeypatch):
    rows = read_samples(data, "val")
    alone = predict(rows)
    read, shares = Counter(), []
    for rank in (0, 1, 2):
        monkeypatch.setattr("dfdetect.processes.share_of", lambda items, r=rank: items[r::3])
        monkeypatch.setattr(
            "dfdetect.processes.objects_of_all", lambda share: shares.append(share) or shares
        )
        monkeypatch.setattr("dfdetect.processes.in_order", lambda shares: [0.0] * len(rows))
        predict(rows, 4, lambda n: read.update(all=n))
    assert read["all"] == len(rows)
    monkeypatch.undo()
    monkeypatch.setattr("dfdetect.processes.objects_of_all", lambda share: shares)
    assert predict(rows) == alone


def test_processes_that_cannot_be_started_are_an_error_of_the_environment(monkeypatch):
    def refuse(self):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(multiprocessing.context.ForkServerProcess, "start", refuse)
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", refuse)
    with pytest.raises(DfdetectError) as error, Loader(Moody(), [0], 1) as loader:
        list(loader)
    assert "cannot be started ([Errno 24] Too many open files)" in error.value.message
    assert error.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.parametrize(
    ("quota", "cores"),
    [({}, 64), ({"cpu.max": "max 100000\n"}, 64), ({"cpu.max": "250000 100000\n"}, 3),
     ({"cpu.max": "50000 100000\n"}, 1), ({"cpu.max": "9900000 100000\n"}, 64),
     ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
     ({"cpu/cpu.cfs_quota_us": "800000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8)],
)  # fmt: skip
def test_cores_are_those_of_the_affinity_and_of_the_containers_quota(
    quota, cores, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name, content in quota.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("device", "cores", "processes", "workers"),
    [("cuda", 64, 1, 16), ("cuda:1", 64, 8, 7), ("cuda", 1, 1, 1), ("cuda", 4, 8, 1),
     ("cpu", 64, 1, 2), ("cpu", 16, 4, 0), ("cpu", 4, 1, 0), ("mps", 8, 1, 7)],
)  # fmt: skip
def test_the_processes_on_one_machine_divide_its_cores(
    device, cores, processes, workers, monkeypatch
):
    monkeypatch.setattr("dfdetect.data.available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers(device) == workers
