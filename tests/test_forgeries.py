"""Every forgery changes the face, nothing far from it, and the same way for the same seed."""

import cv2
import numpy as np
import pytest
import torch
from conftest import PORTRAIT_LANDMARKS

from dfdetect.errors import DfdetectError
from dfdetect.faces import CropRecipe
from dfdetect.forgeries import NEEDS_DECODERS, NEEDS_PARTNER, SHELF
from dfdetect.forgeries.base import LANDMARKS, Bank, Portrait, affine, random_mask, recoloured
from dfdetect.forgeries.decoders import (
    FAMILY,
    AutoEncoder,
    TrainedDecoder,
    load_decoders,
    train_decoders,
)
from dfdetect.forgeries.reconstruct import cut_square, face_square
from dfdetect.shipped import read_portrait


def portrait(side=448):
    """The shipped portrait at another size, and its landmarks there."""
    scale = side / 448
    image = cv2.resize(read_portrait(), (side, side), interpolation=cv2.INTER_AREA)
    return Portrait(image, (PORTRAIT_LANDMARKS + 0.5) * scale - 0.5)


def bank():
    """The portrait mirrored as somebody else, and a decoder that only blurs."""
    image, landmarks = portrait()
    mirrored = landmarks[[1, 0, 2, 4, 3]] * [-1, 1] + [image.shape[1] - 1, 0]
    decoder = lambda square: cv2.GaussianBlur(square, (0, 0), 1.5)  # noqa: E731
    return Bank(lambda: Portrait(cv2.flip(image, 1), mirrored), [decoder])


def forge(name, side=448, seed=0):
    image, landmarks = portrait(side)
    return SHELF[name](image, landmarks, np.random.default_rng(seed), bank())


@pytest.mark.parametrize("name", SHELF)
@pytest.mark.parametrize("side", [96, 160, 512])
def test_a_forgery_changes_the_face_and_nothing_outside_its_mask(name, side):
    image, _ = portrait(side)
    for seed in range(4):
        forged = forge(name, side, seed)
        assert forged.image.shape == image.shape and forged.image.dtype == np.uint8
        assert forged.mask.shape == image.shape[:2] and forged.mask.dtype == np.float32
        assert 0 <= forged.mask.min() <= forged.mask.max() <= 1
        change = np.abs(forged.image.astype(int) - image).max(-1)
        assert change[forged.mask > 0].any()
        grown = cv2.dilate(forged.mask, np.ones((5, 5), np.uint8)) > 0
        assert not change[~grown].any()


@pytest.mark.parametrize("name", SHELF)
def test_a_forgery_is_where_the_face_is(name):
    y, x = np.mgrid[:448, :448]
    far = np.hypot(x - 225, y - 121) > 150  # more than three eye distances from the face
    masks = [forge(name, seed=seed).mask for seed in range(8)]
    if name == "reconstruct":  # now and then it replaces the whole picture
        masks = [mask for mask in masks if mask.min() == 0]
    assert masks and all(mask[far].max() == 0 for mask in masks)


@pytest.mark.parametrize("name", SHELF)
def test_the_seed_decides(name):
    first, again, other = (forge(name, seed=seed).image for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", SHELF)
@pytest.mark.parametrize(
    ("landmarks", "problem"),
    [
        (np.full((5, 2), np.nan), "not all are finite"),
        (np.full((5, 2), 100.0), "in one place or on one line"),
        (np.arange(10).reshape(5, 2) * 20.0, "in one place or on one line"),
        (PORTRAIT_LANDMARKS + 2000, "outside the picture of 448x448"),
        (PORTRAIT_LANDMARKS[:4], "they have the shape \\(4, 2\\)"),
    ],
)
def test_points_that_are_no_face_are_refused(name, landmarks, problem):
    with pytest.raises(DfdetectError, match=problem):
        SHELF[name](read_portrait(), landmarks, np.random.default_rng(0), bank())


@pytest.mark.parametrize("name", sorted(NEEDS_PARTNER | NEEDS_DECODERS))
def test_a_forgery_that_needs_more_than_the_face_says_so(name):
    with pytest.raises(DfdetectError, match=f"{name} needs"):
        SHELF[name](*portrait(), np.random.default_rng(0))


def test_masks_of_one_face_differ_in_region_outline_and_softness():
    landmarks = CropRecipe().target_points()
    masks = [random_mask((256, 256), landmarks, np.random.default_rng(s)) for s in range(40)]
    areas = np.array([mask.sum() for mask in masks])
    seams = np.array([((mask > 0.05) & (mask < 0.95)).sum() for mask in masks])
    assert areas.max() > 3 * areas.min() and seams.max() > 2 * seams.min()
    middle = [mask[tuple(landmarks[2].round().astype(int)[::-1])] for mask in masks]
    assert np.mean(np.array(middle) > 0.5) > 0.9  # nearly all hold the tip of the nose


def test_a_mask_turns_with_the_face():
    upright = CropRecipe().target_points()
    turned = (upright - 127.5)[:, ::-1] * [-1, 1] + 127.5  # a quarter, (x, y) -> (-y, x)
    first, second = (
        sum(random_mask((256, 256), points, np.random.default_rng(s)) for s in range(30))
        for points in (upright, turned)
    )
    assert np.abs(np.rot90(first, -1) - second).mean() / 30 < 0.03


def test_an_affine_map_is_found_again():
    wanted = np.array([[1.5, 0.2, 7], [-0.3, 0.8, -2]])
    found = affine(LANDMARKS, LANDMARKS @ wanted[:, :2].T + wanted[:, 2])
    assert np.allclose(found, wanted, atol=1e-9)


def test_recolouring_gives_mean_and_spread_of_the_target():
    rng = np.random.default_rng(0)
    source = rng.normal((90, 120, 60), (12, 15, 9), (64, 64, 3)).clip(0, 255).astype(np.float32)
    target = rng.normal((150, 110, 100), (14, 14, 12), (64, 64, 3)).clip(0, 255).astype(np.uint8)
    changed = recoloured(source, target, np.ones((64, 64), np.float32), lab=False)
    assert np.abs(changed.mean((0, 1)) - target.mean((0, 1))).max() < 0.5
    assert np.abs(changed.std((0, 1)) - target.std((0, 1))).max() < 0.5


def test_a_black_border_of_the_partner_is_not_pasted():
    image, landmarks = portrait()
    other = image.copy()
    other[:, :195] = 0  # the left of its face lies outside of its frame
    black = Bank(lambda: Portrait(other, landmarks))
    for seed in range(6):
        forged = SHELF["cross-blend"](image, landmarks, np.random.default_rng(seed), black)
        assert forged.mask[:, :195].max() < 0.1
        assert forged.mask.max() > 0.5


def test_the_square_around_a_face_turns_with_it_and_is_cut_as_it_lies():
    landmarks = CropRecipe().target_points()
    place = face_square(landmarks, 96)
    down = place[:, 1] / np.linalg.norm(place[:, 1])
    assert down @ [0, 1] > 0.999
    turned = (landmarks - 127.5) @ np.array([[0, 1], [-1, 0]]) + 127.5
    down = face_square(turned, 96)[:, 1]
    eyes_to_mouth = turned[3:].mean(0) - turned[:2].mean(0)
    assert down @ eyes_to_mouth > 0.99 * np.linalg.norm(down) * np.linalg.norm(eyes_to_mouth)
    assert abs(np.linalg.det(np.stack([place[:, 0], place[:, 1]]))) == pytest.approx(
        np.linalg.norm(place[:, 0]) ** 2, rel=1e-6
    )


# --- decoders ----------------------------------------------------------------------------------


def few(tmp_path, name="d.safetensors", seed=0, **options):
    faces = [portrait(256), portrait(320)]
    train_decoders(faces, tmp_path / name, seed, n_steps=2, batch_size=2, side=32, **options)
    return tmp_path / name


@pytest.mark.parametrize("settings", FAMILY)
def test_an_autoencoder_gives_a_picture_of_the_size_it_got(settings):
    with torch.no_grad():
        for side in (64, 80, 128):
            assert AutoEncoder(settings)(torch.rand(1, 3, side, side)).shape == (1, 3, side, side)


def test_the_family_differs_in_upsampler_depth_loss_and_judge():
    assert {s.upsampler for s in FAMILY} == {"nearest", "bilinear", "transposed", "shuffle"}
    assert {s.loss for s in FAMILY} == {"l1", "l1+ssim", "l1+gradient"}
    assert len({s.depth for s in FAMILY}) > 2
    assert {s.skip for s in FAMILY} == {s.adversarial for s in FAMILY} == {False, True}


def test_training_is_reproducible_and_leaves_the_global_state_alone(tmp_path):
    before = torch.random.get_rng_state()
    first, again, other = (
        few(tmp_path, f"{i}", seed, family=FAMILY[4:6]) for i, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_what_is_stored_is_what_draws(tmp_path):
    decoders = load_decoders(few(tmp_path))
    assert [d.network.settings for d in decoders] == list(FAMILY)
    image, landmarks = portrait(256)
    square = cut_square(image, face_square(landmarks, 64), 64)
    drawn = [decoder(square) for decoder in decoders]
    assert all(d.shape == square.shape and d.dtype == np.uint8 for d in drawn)
    assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[:i])


def test_training_brings_the_drawing_nearer_to_the_face(tmp_path):
    family = FAMILY[:1]
    image, landmarks = portrait(256)
    square = cut_square(image, face_square(landmarks, 32), 32)
    path = tmp_path / "one"
    train_decoders([portrait(256)], path, 0, family, n_steps=60, batch_size=2, side=32)
    (decoder,) = load_decoders(path)
    torch.manual_seed(0)
    untrained = TrainedDecoder(AutoEncoder(family[0]))
    error = [np.abs(d(square).astype(int) - square).mean() for d in (decoder, untrained)]
    assert error[0] < error[1] / 3


def test_a_file_that_holds_no_decoders_is_refused(tmp_path):
    with pytest.raises(DfdetectError, match="no such file"):
        load_decoders(tmp_path / "absent")
    (tmp_path / "other").write_bytes(b"not one of ours")
    with pytest.raises(DfdetectError, match="not a file of decoders"):
        load_decoders(tmp_path / "other")
    with pytest.raises(DfdetectError, match="no real faces"):
        train_decoders([], tmp_path / "none")
