"""self-blend: a face pasted onto itself, after its copy changed a little (Shiohara et al., 2022).

The copy gets another colour, sharpness and position; only the seam and the mismatch tell.
"""

import cv2
import numpy as np

from dfdetect.forgeries.base import Forged, eye_distance, face_mask


def self_blend(image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator) -> Forged:
    """uint8 [H,W,3] RGB and landmarks [5,2] px -> the blended image and its mask."""
    unit, centre = eye_distance(landmarks), landmarks.mean(0)
    source = image.astype(np.float32)
    source = source * rng.uniform(0.93, 1.07, 3).astype(np.float32) + rng.uniform(-8, 8)
    if rng.random() < 0.5:
        source = cv2.GaussianBlur(source, (0, 0), rng.uniform(0.6, 1.4))
    else:
        source += rng.uniform(0.5, 1.0) * (source - cv2.GaussianBlur(source, (0, 0), 1.5))
    turn = cv2.getRotationMatrix2D(
        tuple(map(float, centre)), rng.uniform(-2, 2), rng.uniform(0.97, 1.03)
    )
    turn[:, 2] += rng.uniform(-0.03, 0.03, 2) * unit
    height, width = image.shape[:2]
    source = cv2.warpAffine(source, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
    mask = face_mask((height, width), landmarks, rng.uniform(0.85, 1.1)) * rng.uniform(0.75, 1.0)
    blended = mask[..., None] * source + (1 - mask[..., None]) * image
    return Forged(np.clip(blended, 0, 255).round().astype(np.uint8), mask)
