"""What every forgery returns, and the face's own scale."""

from typing import NamedTuple

import cv2
import numpy as np


class Forged(NamedTuple):
    """image uint8 [H,W,3] RGB; mask float [H,W] in 0..1, how much of each pixel was replaced."""

    image: np.ndarray
    mask: np.ndarray


def eye_distance(landmarks: np.ndarray) -> float:
    """Pixels between the eyes: the unit of length on a face."""
    return float(np.linalg.norm(landmarks[1] - landmarks[0]))


def face_mask(shape: tuple[int, int], landmarks: np.ndarray, grow: float = 1.0) -> np.ndarray:
    """Soft ellipse over the inner face, float32 [H,W] in 0..1, from five landmarks."""
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    centre, axis = (eyes + mouth) / 2, mouth - eyes
    unit = eye_distance(landmarks)
    half_axes = (0.95 * unit * grow, (0.55 * np.linalg.norm(axis) + 0.45 * unit) * grow)
    angle = np.degrees(np.arctan2(axis[1], axis[0])) - 90
    mask = np.zeros(shape, np.float32)
    box = (tuple(map(float, centre)), tuple(2 * float(a) for a in half_axes), float(angle))
    cv2.ellipse(mask, box, 1.0, -1)
    return cv2.GaussianBlur(mask, (0, 0), max(0.06 * unit, 0.5))
