"""reconstruct: the face (or the whole picture) as a small neural decoder draws it, in its place.

Real and fake show the same; the decoder's texture is what tells. As in face swaps, it is drawn at
a lower resolution, enlarged, brought to the colours around it and blended in softly.
"""

import cv2
import numpy as np

from dfdetect.errors import DfdetectError
from dfdetect.forgeries.base import (
    EMPTY,
    LANDMARKS,
    Bank,
    Forged,
    blend,
    check_landmarks,
    random_mask,
    recoloured,
    scale_of,
    sharpened,
)

SIDES = (64, 80, 96, 112, 128)
"""Of the square that a decoder draws, px."""
WIDTH = 3.3
"""Of that square, in eye distances."""
WHOLE = 0.15
"""How often the whole picture is replaced."""


def reconstruct(
    image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, bank: Bank = EMPTY
) -> Forged:
    """uint8 [H,W,3] RGB and landmarks [5,2] px -> the image with a face that a decoder drew.

    Errors: DfdetectError without decoders in the bank.
    """
    if not bank.decoders:
        raise DfdetectError(
            "reconstruct needs trained decoders", "`dfdetect forge` trains and stores them"
        )
    landmarks = check_landmarks(image, landmarks)
    decoder = bank.decoders[rng.integers(len(bank.decoders))]
    side = int(rng.choice(SIDES))
    height, width = image.shape[:2]
    way = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4]))
    if rng.random() < WHOLE:
        small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        drawn = cv2.resize(decoder(small), (width, height), interpolation=way)
        mask = np.ones((height, width), np.float32)
    else:
        place = face_square(landmarks, side, WIDTH * rng.uniform(0.9, 1.15))
        drawn = cv2.warpAffine(
            decoder(cut_square(image, place, side)), place, (width, height),
            flags=way, borderMode=cv2.BORDER_REFLECT,
        )  # fmt: skip
        inside = cv2.warpAffine(np.ones((side, side), np.uint8), place, (width, height)) > 0
        mask = random_mask((height, width), landmarks, rng, allowed=inside)
    source = recoloured(drawn.astype(np.float32), image, mask, lab=False)
    if rng.random() < 0.3:
        source = sharpened(source, rng.uniform(0.2, 0.8), max(0.025 * scale_of(landmarks), 0.6))
    return blend(image, source, mask)


def face_square(landmarks: np.ndarray, side: int, width: float = WIDTH) -> np.ndarray:
    """The map from an upright square of `side` px, `width` eye distances wide around the face, to
    the picture: float64 [2,3]."""
    unit, middle = scale_of(landmarks), landmarks.mean(0) - 0.08 * _down(landmarks)
    down = _down(landmarks) / unit
    right = np.array([down[1], -down[0]])
    step = width * unit / side
    corner = middle - (side - 1) / 2 * step * (right + down)
    return np.column_stack([right * step, down * step, corner])


def cut_square(image: np.ndarray, place: np.ndarray, side: int) -> np.ndarray:
    """The square uint8 [side,side,3] that `place` maps into `image`; smoothed where it shrinks."""
    step = float(np.hypot(*place[:, 0]))
    if step > 1:
        image = cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(step**2 - 0.9))
    return cv2.warpAffine(
        image, place, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip


def _down(landmarks: np.ndarray) -> np.ndarray:
    """Downwards along the face, as long as an eye distance: of the similarity that fits the five
    points."""
    mean = LANDMARKS - LANDMARKS.mean(0)
    offsets = landmarks - landmarks.mean(0)
    turn = (mean @ [1, -1j]) @ (offsets @ [1, 1j])
    turn /= abs(turn)
    return scale_of(landmarks) * np.array([-turn.imag, turn.real])
