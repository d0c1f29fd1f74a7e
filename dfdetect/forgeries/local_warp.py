"""local-warp: one part of the face (mouth, nose or an eye) moved and swollen, softly."""

import cv2
import numpy as np

from dfdetect.forgeries.base import EMPTY, Bank, Forged, check_landmarks, scale_of


def local_warp(
    image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, bank: Bank = EMPTY
) -> Forged:
    """uint8 [H,W,3] RGB and landmarks [5,2] px -> the warped image and where it moved."""
    landmarks = check_landmarks(image, landmarks)
    unit = scale_of(landmarks)
    parts = [landmarks[0], landmarks[1], landmarks[2], landmarks[3:].mean(0)]
    centre = parts[rng.integers(len(parts))].astype(np.float32)
    radius = rng.uniform(0.45, 0.7) * unit
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dx, dy = x - centre[0], y - centre[1]
    weight = np.exp(-(dx**2 + dy**2) / (2 * (radius / 2) ** 2))
    weight = np.clip((weight - 0.01) / 0.99, 0, 1)  # it ends somewhere
    swell = rng.choice([-1, 1]) * rng.uniform(0.25, 0.45)
    shift = rng.uniform(-0.18, 0.18, 2) * unit
    map_x = x - weight * (swell * dx + shift[0])
    map_y = y - weight * (swell * dy + shift[1])
    warped = cv2.remap(
        image, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    return Forged(warped, weight.astype(np.float32))
