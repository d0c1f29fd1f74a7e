"""self-blend: a face pasted onto itself, after its copy changed a little (Shiohara and Yamasaki,
*Detecting Deepfakes with Self-Blended Images*, CVPR 2022).

The copy gets another colour, sharpness, position and size; only the seam and the mismatch tell.
There either copy may be changed; here it is always the pasted one, so that everything outside the
mask stays as it was: what augmentation does to the whole picture makes up for the difference.
"""

import cv2
import numpy as np

from dfdetect.forgeries.base import (
    EMPTY,
    Bank,
    Forged,
    blend,
    check_landmarks,
    random_mask,
    random_ratio,
    resampled,
    scale_of,
    sharpened,
)


def self_blend(
    image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, bank: Bank = EMPTY
) -> Forged:
    """uint8 [H,W,3] RGB and landmarks [5,2] px -> the blended image and its mask."""
    landmarks = check_landmarks(image, landmarks)
    unit = scale_of(landmarks)
    mask = random_mask(image.shape[:2], landmarks, rng) * np.float32(random_ratio(rng))
    source = _recoloured(image.astype(np.float32), rng)
    if rng.random() < 0.5:
        source = resampled(source, rng.uniform(0.25, 0.8), rng)
    else:
        source = sharpened(source, rng.uniform(0.3, 1.2), max(0.02 * unit, 0.6))
    height, width = image.shape[:2]
    centre = tuple(map(float, landmarks.mean(0)))
    move = cv2.getRotationMatrix2D(centre, rng.uniform(-1, 1), rng.uniform(0.95, 1.05))
    move[:, 2] += rng.uniform(-0.06, 0.06, 2) * unit
    source = cv2.warpAffine(source, move, (width, height), borderMode=cv2.BORDER_REFLECT)
    return blend(image, source, mask)


def _recoloured(source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift of the channels; hue, saturation and value; brightness and contrast."""
    if rng.random() < 0.3:
        source = source + rng.uniform(-20, 20, 3).astype(np.float32)
    hsv = cv2.cvtColor(np.clip(source, 0, 255) / np.float32(255), cv2.COLOR_RGB2HSV)
    hue, saturation, value = rng.uniform((-6, 0.85, 0.92), (6, 1.15, 1.08)).tolist()
    hsv[..., 0] += np.float32(hue)  # of any size: the way back takes it as an angle
    hsv[..., 1:] *= np.float32([saturation, value])
    np.minimum(hsv[..., 1], 1, out=hsv[..., 1])
    gain, bias = rng.uniform((0.9, -0.05), (1.1, 0.05)).tolist()
    return 255 * (gain * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) + bias)
