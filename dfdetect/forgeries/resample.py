"""resample: a region of the face shrunk and enlarged again, blended back.

What a face swap does to a face that it draws at a lower resolution than the picture has.
"""

import numpy as np

from dfdetect.forgeries.base import (
    EMPTY,
    Bank,
    Forged,
    blend,
    check_landmarks,
    random_mask,
    resampled,
)


def resample(
    image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, bank: Bank = EMPTY
) -> Forged:
    """uint8 [H,W,3] RGB and landmarks [5,2] px -> the image with a coarser face, and its mask."""
    landmarks = check_landmarks(image, landmarks)
    mask = random_mask(image.shape[:2], landmarks, rng)
    return blend(image, resampled(image, rng.uniform(0.25, 0.65), rng), mask)
