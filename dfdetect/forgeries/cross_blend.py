"""cross-blend: another person's face over this one, in its place and its colours (Li et al.,
*Face X-ray for More General Face Forgery Detection*, CVPR 2020, blend such faces too)."""

import cv2
import numpy as np

from dfdetect.errors import DfdetectError
from dfdetect.forgeries.base import (
    EMPTY,
    Bank,
    Forged,
    affine,
    blend,
    check_landmarks,
    random_mask,
    recoloured,
    scale_of,
)

_REGIONS = ("whole face", "without forehead", "inner face")


def cross_blend(
    image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, bank: Bank = EMPTY
) -> Forged:
    """uint8 [H,W,3] RGB and landmarks [5,2] px -> the image with the partner's face, and the mask.

    Errors: DfdetectError without a partner in the bank.
    """
    if bank.partner is None:
        raise DfdetectError("cross-blend needs the face of another person", "give two faces")
    landmarks = check_landmarks(image, landmarks)
    other, its_landmarks = bank.partner()
    move = affine(check_landmarks(other, its_landmarks), landmarks)
    height, width = image.shape[:2]
    source = cv2.warpAffine(
        other, move, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    ).astype(np.float32)
    shown = cv2.warpAffine(_shown(other), move, (width, height)) == 255
    shown &= _shown(image) == 255
    mask = random_mask((height, width), landmarks, rng, _REGIONS, shown)
    source = recoloured(source, image, mask, lab=bool(rng.random() < 0.5))
    sigma = rng.uniform(0.0, 0.025) * scale_of(landmarks)
    return blend(image, cv2.GaussianBlur(source, (0, 0), sigma) if sigma > 0.4 else source, mask)


def _shown(image: np.ndarray) -> np.ndarray:
    """255 where `image` shows something, 0 where it is black because it lies outside of a frame;
    uint8 [H,W]."""
    lit = (image.max(-1) > 2).astype(np.uint8) * 255
    side = max(3, min(image.shape[:2]) // 20)
    closed = cv2.morphologyEx(lit, cv2.MORPH_CLOSE, np.ones((side, side), np.uint8))
    return cv2.erode(closed, np.ones((5, 5), np.uint8))
