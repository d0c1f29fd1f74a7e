"""Every forgery changes the face, nothing far from it, and the same way for the same seed."""

import numpy as np
import pytest
from conftest import PORTRAIT_LANDMARKS

from dfdetect.demo import read_portrait
from dfdetect.forgeries import SHELF


@pytest.mark.parametrize("name", SHELF)
def test_a_forgery_changes_the_face_and_only_the_face(name):
    image = read_portrait()
    forged = SHELF[name](image, PORTRAIT_LANDMARKS, np.random.default_rng(0))
    assert forged.image.shape == image.shape and forged.image.dtype == np.uint8
    assert forged.mask.shape == image.shape[:2] and 0 <= forged.mask.min() <= forged.mask.max() <= 1
    change = np.abs(forged.image.astype(int) - image).mean(-1)
    assert change[forged.mask > 0.5].mean() > 1
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    far = np.hypot(x - 225, y - 121) > 150  # more than three eye distances from the face
    assert change[far].max() == 0


@pytest.mark.parametrize("name", SHELF)
def test_the_seed_decides(name):
    image = read_portrait()
    first, again, other = (
        SHELF[name](image, PORTRAIT_LANDMARKS, np.random.default_rng(seed)).image
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
