"""Names of qualities, the ranges they cover, and JPEG at one of them."""

from collections import Counter

import cv2
import numpy as np
import pytest

from dfdetect.errors import DfdetectError
from dfdetect.quality import (
    Quality,
    jpeg_level,
    jpeg_round_trip,
    ordered,
    parse_qualities,
    parse_quality,
    to_prepare,
)


@pytest.mark.parametrize(
    ("name", "codec", "level", "level_to"),
    [
        ("raw", "raw", 0, 0),
        ("c0", "h264", 0, 0),
        ("c51", "h264", 51, 51),
        ("j1", "jpeg", 1, 1),
        ("j100", "jpeg", 100, 100),
        ("j40-100", "jpeg", 40, 100),
        ("j1-2", "jpeg", 1, 2),
    ],
)
def test_a_name_says_codec_and_levels(name, codec, level, level_to):
    assert parse_quality(name) == Quality(name, codec, level, level_to)


@pytest.mark.parametrize(
    "name", ["", "c52", "c05", "j0", "j101", "j075", "c20-30", "raw-c23", "j40-", "j-40", "J75"]
)
def test_another_name_is_refused(name):
    with pytest.raises(DfdetectError, match="unknown quality") as caught:
        parse_quality(name)
    assert "jA-B" in caught.value.hint


@pytest.mark.parametrize("name", ["j100-40", "j40-40", "j0-50", "j40-101"])
def test_a_bad_range_is_refused_with_its_rule(name):
    with pytest.raises(DfdetectError, match=f"{name}: not a range of JPEG qualities") as caught:
        parse_quality(name)
    assert caught.value.hint.startswith("jA-B needs A below B, both from 1 to 100")


def test_a_range_is_taken_only_where_pictures_are_made_one_by_one():
    assert [q.name for q in parse_qualities("raw, j40-100,raw", ranges=True)] == ["raw", "j40-100"]
    with pytest.raises(DfdetectError, match="j40-100: a stored quality needs one level") as caught:
        parse_qualities("raw,j40-100")
    assert "prepare raw" in caught.value.hint


def test_a_quality_covers_what_it_can_draw():
    name = parse_quality
    assert name("j40-100").covers(name("j75")) and name("j40-100").covers(name("j50-60"))
    assert name("c23").covers(name("c23")) and name("raw").covers(name("raw"))
    assert not name("j40-100").covers(name("j39")) and not name("j75").covers(name("j40-100"))
    assert not name("j10-60").covers(name("c23")) and not name("raw").covers(name("c0"))


def test_qualities_are_listed_from_best_to_worst():
    names = ["j50", "c40", "j40-100", "raw", "c23", "j90"]
    assert ordered(names) == ["raw", "c23", "c40", "j90", "j50", "j40-100"]
    assert to_prepare(["j75", "c23", "j40-100", "raw"]) == "raw,c23"


def test_a_sample_keeps_its_level_and_samples_share_the_range_evenly():
    span = parse_quality("j41-50")
    ids = [f"video{i // 10}/{i % 10}/0" for i in range(5000)]
    levels = [jpeg_level(span, i) for i in ids]
    assert levels == [jpeg_level(span, i) for i in ids]
    counts = Counter(levels)
    assert set(counts) == set(range(41, 51))
    # 500 expected of each, standard deviation sqrt(5000 * .1 * .9) = 21
    assert max(abs(n - 500) for n in counts.values()) < 5 * 21


def test_in_training_the_generator_draws_the_level():
    span, rng = parse_quality("j41-50"), np.random.default_rng(0)
    assert {jpeg_level(span, "same", rng) for _ in range(500)} == set(range(41, 51))


def test_one_level_takes_nothing_from_the_generator():
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    assert jpeg_level(parse_quality("j75"), "v/0/0", rng) == 75
    assert rng.random() == untouched.random()


def test_jpeg_leaves_shape_and_type_and_a_lower_quality_leaves_less():
    y, x = np.mgrid[:64, :48]
    image = np.stack([4 * y, 5 * x, 2 * (x + y)], -1).astype(np.uint8)
    noisy = cv2.add(image, np.random.default_rng(0).integers(0, 9, image.shape, np.uint8))
    errors = []
    for level in (95, 60, 20):
        out = jpeg_round_trip(noisy, level)
        assert out.shape == image.shape and out.dtype == np.uint8
        errors.append(np.abs(out.astype(int) - noisy).mean())
    assert errors == sorted(errors)
    assert np.abs(jpeg_round_trip(image, 95).astype(int) - image).mean() < 4  # channels in order


def test_jpeg_halves_the_colours_in_both_directions():
    y, x = np.mgrid[:32, :32]
    red_or_blue = np.where(((x + y) % 2)[..., None], [255, 0, 0], [0, 0, 255]).astype(np.uint8)
    out = jpeg_round_trip(red_or_blue, 100).astype(int)
    assert np.abs(out[..., 0] - out[..., 2]).max() < 128  # was 255 everywhere
