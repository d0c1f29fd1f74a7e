"""What each quality makes of a crop, its exact parameters, and whether training saw it."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest

from dfdetect.corruptions import (
    blurred,
    corrupted,
    facts_of,
    h264_round_trip,
    jpeg_level,
    jpeg_round_trip,
    noisy,
    parameters,
    rescaled,
    seen_in_training,
)
from dfdetect.presets import load_preset
from dfdetect.quality import parse_quality
from dfdetect.shipped import read_portrait


@pytest.fixture(scope="module")
def face():
    return np.ascontiguousarray(read_portrait()[60:188, 160:288])


@pytest.mark.parametrize(
    "names",
    [
        ("crf0", "crf20", "crf35", "crf51"),
        ("j100", "j75", "j30", "j1"),
        ("scale0.9", "scale0.5", "scale0.1"),
        ("blur0.5", "blur2", "blur8"),
        ("noise2", "noise8", "noise30"),
    ],
)
def test_a_worse_level_is_further_from_the_crop_and_every_time_the_same(face, names):
    before = face.copy()
    psnr = []
    for name in names:
        quality = parse_quality(name)
        once, again = (corrupted(face, quality, "video/000001/0") for _ in range(2))
        assert once.shape == face.shape and once.dtype == np.uint8
        assert np.array_equal(once, again)
        psnr.append(cv2.PSNR(face, once))
    assert psnr == sorted(psnr, reverse=True) and psnr[0] < 60
    assert np.array_equal(face, before)
    assert abs(once.mean((0, 1)) - face.mean((0, 1))).max() < 16  # channels in order, even at worst


def test_raw_is_the_crop_itself(face):
    assert corrupted(face, parse_quality("raw"), "x") is face


def test_h264_of_a_crop_keeps_an_odd_side(face):
    odd = face[:65, :67]
    out = h264_round_trip(odd, 10)
    assert out.shape == odd.shape and cv2.PSNR(np.ascontiguousarray(odd), out) > 30
    # chroma is shared by 2x2 pixels, so the last column shares it with its own repetition
    assert np.abs(out[:, -1].astype(int) - odd[:, -1]).mean() < 8


def test_scaling_keeps_a_plain_area_and_loses_what_is_finer_than_the_small_grid():
    plain = np.full((64, 64, 3), 90, np.uint8)
    assert np.array_equal(rescaled(plain, 0.3), plain)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.array_equal(np.unique(rescaled(stripes, 0.5)), [100])  # means of a 0 and a 200
    assert rescaled(plain[:5, :7], 0.01).shape == (5, 7, 3)


def test_blur_is_a_gaussian_of_the_sigma_that_it_says():
    point = np.zeros((65, 65, 3), np.uint8)
    point[24:41, 24:41] = 255  # a point would be lost in 8 bits
    profile = blurred(point, 2.0)[32, :, 0].astype(float)
    # the edge at 23.5 becomes a cumulative normal, of slope 255 / (sigma sqrt(2 pi)) there
    slope = profile[24] - profile[23]
    assert slope == pytest.approx(255 / (2 * np.sqrt(2 * np.pi)), rel=0.05)


def test_noise_has_its_standard_deviation_and_a_sample_its_own_pattern():
    grey = np.full((128, 128, 3), 128, np.uint8)
    quality = parse_quality("noise8")
    error = corrupted(grey, quality, "a").astype(int) - 128
    # 49152 draws: the standard error of the deviation is 8 / sqrt(2 n) = 0.026
    assert error.std() == pytest.approx(8, abs=0.15) and abs(error.mean()) < 0.2
    assert abs(np.corrcoef(error[..., 0].ravel(), error[..., 1].ravel())[0, 1]) < 0.05
    assert not np.array_equal(corrupted(grey, quality, "b").astype(int) - 128, error)
    double = corrupted(grey, parse_quality("noise16"), "a").astype(int) - 128
    assert np.abs(double - 2 * error).max() <= 2  # the same pattern, twice as strong, rounded


def test_in_training_the_generator_draws_the_noise(face):
    quality, rng = parse_quality("noise8"), np.random.default_rng(0)
    first, second = (corrupted(face, quality, "same", rng) for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, noisy(face, 8, np.random.default_rng(0)))


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


# --- parameters -------------------------------------------------------------------------------

ONE_OF_EACH = (
    "raw",
    "c23",
    "crf23",
    "crf24",
    "j75",
    "j74",
    "j40-100",
    "scale0.5",
    "blur2",
    "noise2",
)


def test_each_quality_has_parameters_and_a_hash_of_its_own():
    qualities = [parse_quality(name) for name in ONE_OF_EACH]
    preset = {"qualities": ["raw"]}
    hashes = [facts_of(name, preset, False)["parameters_sha256"] for name in ONE_OF_EACH]
    assert len(set(hashes)) == len(ONE_OF_EACH)
    stored, made = (facts_of("j75", preset, of_raw) for of_raw in (False, True))
    assert (stored["crops"], made["crops"]) == ("stored", "made of raw")
    assert stored["parameters_sha256"] == made["parameters_sha256"]  # the same pixels
    ours, theirs = (facts_of("c23", preset, False, shipped) for shipped in (False, True))
    assert ours["parameters_sha256"] != theirs["parameters_sha256"]
    for quality in qualities:
        found = parameters(quality)
        assert found == json.loads(json.dumps(found)) and found["kind"] == quality.kind
    assert parameters(parse_quality("scale0.5"))["factor"] == 0.5
    assert parameters(parse_quality("j40-100"))["quality"] == [40, 100]


def test_a_quality_was_trained_augmented_or_never_seen():
    preset = load_preset(
        "bce-tiny",
        ["qualities=raw,c23,j70-80,blur3", "augment.jpeg=0.5", "augment.jpeg_quality=[40,60]",
         "augment.rescale=0.1", "augment.rescale_to=[0.5,1.0]"],
    ).model_dump(mode="json")  # fmt: skip
    expected = {
        "raw": "trained", "c23": "trained", "c24": "no", "crf23": "trained", "crf24": "no",
        "j75": "trained", "j72-78": "trained", "j72-90": "no", "j40": "augmented", "j61": "no",
        "j45-55": "augmented", "j30-50": "no", "scale0.5": "augmented", "scale0.4": "no",
        "blur3": "trained", "blur2": "no", "noise2": "no",
    }  # fmt: skip
    assert {name: seen_in_training(name, preset) for name in expected} == expected


def test_an_augmentation_that_is_off_makes_nothing_seen():
    preset = load_preset("bce-tiny", ["augment.jpeg=0"]).model_dump(mode="json")
    assert seen_in_training("j60", preset) == "no"
