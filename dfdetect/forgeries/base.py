"""What forgeries share: what they take and return, the shape of a face, masks, blending.

A face is described by its five landmarks alone. The outline of jaw, brows and forehead is that of
a mean face, laid over them by the affine map that fits the five points best.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from dfdetect.errors import DfdetectError

Decoder = Callable[[np.ndarray], np.ndarray]
"""uint8 [s,s,3] RGB of a face -> the same as a decoder draws it."""


class Forged(NamedTuple):
    """image uint8 [H,W,3] RGB; mask float32 [H,W] in 0..1, how much of each pixel was replaced:
    where it is 0 the image is as it was, but for a border of two pixels."""

    image: np.ndarray
    mask: np.ndarray


class Portrait(NamedTuple):
    """A face: image uint8 [H,W,3] RGB and its landmarks [5,2] px."""

    image: np.ndarray
    landmarks: np.ndarray


class Bank(NamedTuple):
    """What a forgery may take beside the face itself: `partner()` gives the face of somebody else,
    `decoders` are trained ones (decoders.py)."""

    partner: Callable[[], Portrait] | None = None
    decoders: Sequence[Decoder] = ()


EMPTY = Bank()
INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC)

# A mean face, in eye distances from the middle between the eyes, y down.
LANDMARKS = np.array([[-0.5, 0], [0.5, 0], [0, 0.57], [-0.41, 1.16], [0.41, 1.16]])
_JAW = [(1.08, 0.0), (1.06, 0.4), (0.98, 0.85), (0.84, 1.25), (0.62, 1.6), (0.32, 1.84)]
_BROW = [(0.38, -0.38), (0.72, -0.42), (0.98, -0.26)]
_FOREHEAD = [(0.42, -0.98), (0.8, -0.76), (1.02, -0.4)]
_CHEEK = [(0.72, 0.4), (0.7, 0.9), (0.58, 1.36), (0.28, 1.5)]
_MOUTH = [(0.22, 0.3), (0.5, 0.72), (0.62, 1.15), (0.5, 1.46), (0.22, 1.6)]


def _both_sides(*halves: list[tuple[float, float]]) -> np.ndarray:
    right = [point for half in halves for point in half]
    return np.array([*right, *((-x, y) for x, y in right)])


REGIONS = {
    "whole face": _both_sides(_JAW, _FOREHEAD),
    "without forehead": _both_sides(_JAW, _BROW),
    "inner face": _both_sides(_CHEEK, _BROW[:2]),
    "nose and mouth": _both_sides(_MOUTH),
}
"""Points whose convex hull is the region, in units of LANDMARKS."""


def check_landmarks(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """float64 [5,2]. Errors: DfdetectError for points that are no face in this picture."""
    points = np.asarray(landmarks, np.float64)
    height, width = image.shape[:2]
    problem = ""
    if points.shape != (5, 2):
        problem = f"they have the shape {points.shape}"
    elif not np.isfinite(points).all():
        problem = "not all are finite"
    elif np.linalg.svd(points - points.mean(0), compute_uv=False)[1] < 2:
        problem = "they lie in one place or on one line"
    elif not ((points > -0.5) & (points < (width - 0.5, height - 0.5))).all(1).any():
        problem = f"all are outside the picture of {width}x{height}"
    if problem:
        raise DfdetectError(
            f"no forgery without five landmarks of a face: {problem}",
            "eyes, nose and mouth corners are needed, in pixels of the picture",
        )
    return points


def scale_of(landmarks: np.ndarray) -> float:
    """Pixels of an eye distance on a frontal face: the unit of length. Of the spread of all five
    points, so that a face in profile has one too."""
    spread = np.sqrt(np.square(landmarks - landmarks.mean(0)).sum())
    return float(spread / np.sqrt(np.square(LANDMARKS - LANDMARKS.mean(0)).sum()))


def affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares affine map from `source` [n,2] to `target` [n,2]: float64 [2,3]."""
    padded = np.hstack([source, np.ones((len(source), 1))])
    return np.linalg.lstsq(padded, target, rcond=None)[0].T


def random_mask(
    shape: tuple[int, int], landmarks: np.ndarray, rng: np.random.Generator,
    regions: Sequence[str] = tuple(REGIONS), allowed: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """A soft mask of one of the `regions`, float32 [H,W] in 0..1: its outline moved, scaled and
    bent, blurred, cut back to where it was whole, and blurred again (Shiohara and Yamasaki, 2022).
    `allowed` bool [H,W] is where it may be."""
    unit = scale_of(landmarks)
    outline = REGIONS[regions[rng.integers(len(regions))]]
    middle = outline.mean(0)
    outline = (outline - middle) * rng.uniform(0.93, 1.07, 2) + middle
    outline = outline + rng.uniform(-0.05, 0.05, 2) + rng.uniform(-0.04, 0.04, outline.shape)
    fit = affine(LANDMARKS, landmarks)
    points = outline @ fit[:, :2].T + fit[:, 2]
    hull = cv2.convexHull((points * 16).round().astype(np.int32))
    mask = np.zeros(shape, np.float32)
    cv2.fillConvexPoly(mask, hull, 1.0, cv2.LINE_8, shift=4)
    bends = rng.uniform(-0.09, 0.09, (2, 6, 6)).astype(np.float32) * unit
    first, second = rng.uniform(0.02, 0.09, 2) * unit
    margin = 0.8 * unit
    low = np.clip(np.floor(points.min(0) - margin), 0, None).astype(int)
    high = np.clip(np.ceil(points.max(0) + margin), 0, shape[::-1]).astype(int)
    if (high <= low).any():
        return mask
    part = np.ascontiguousarray(mask[low[1] : high[1], low[0] : high[0]])
    height, width = part.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dx, dy = (cv2.resize(bend, (width, height), interpolation=cv2.INTER_CUBIC) for bend in bends)
    part = cv2.remap(part, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if allowed is not None:
        may = allowed[low[1] : high[1], low[0] : high[0]].astype(np.uint8)
        reach = 2 * int(np.ceil(2 * second)) + 1  # of the last blur
        part *= cv2.erode(may, np.ones((reach, reach), np.uint8))
    part = (cv2.GaussianBlur(part, (0, 0), first) > 0.9).astype(np.float32)
    part = cv2.GaussianBlur(part, (0, 0), second)
    mask[:] = 0
    mask[low[1] : high[1], low[0] : high[0]] = np.where(part < 1 / 255, 0, np.minimum(part, 1))
    return mask


def random_ratio(rng: np.random.Generator) -> float:
    """How much of the source shows inside the mask."""
    return float(rng.choice([0.25, 0.5, 0.75, 1.0, 1.0, 1.0]))


def blend(image: np.ndarray, source: np.ndarray, mask: np.ndarray) -> Forged:
    """`source` [H,W,3], 0..255, over `image` uint8 [H,W,3] where `mask` float32 [H,W] says."""
    target = image.astype(np.float32)
    blended = target + mask[..., None] * (source - target)
    return Forged(np.clip(blended, 0, 255).round().astype(np.uint8), mask)


def recoloured(source: np.ndarray, target: np.ndarray, mask: np.ndarray, lab: bool) -> np.ndarray:
    """`source` float32 [H,W,3], 0..255, with the mean and the spread that `target` has inside the
    mask, in CIELAB (Reinhard et al., 2001) or in RGB; float32 [H,W,3]."""
    if not mask.any():
        return source
    pair = [source, target]
    if lab:
        unit = (np.clip(image, 0, 255).astype(np.float32) / 255 for image in pair)
        pair = [cv2.cvtColor(image, cv2.COLOR_RGB2LAB) for image in unit]
    inside = (mask > 0.5 * mask.max()).astype(np.uint8)
    (m0, s0), (m1, s1) = (cv2.meanStdDev(image, mask=inside) for image in pair)
    gain = np.clip(s1 / np.maximum(s0, 1e-4), 0.5, 2)
    shifted = pair[0] * np.float32(gain.ravel()) + np.float32((m1 - gain * m0).ravel())
    return 255 * cv2.cvtColor(shifted, cv2.COLOR_LAB2RGB) if lab else shifted


def resampled(image: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """`image` shrunk to `scale` of its size and enlarged again, each by a random interpolation."""
    height, width = image.shape[:2]
    small = max(2, round(width * scale)), max(2, round(height * scale))
    for size in (small, (width, height)):
        image = cv2.resize(image, size, interpolation=int(rng.choice(INTERPOLATIONS)))
    return image


def sharpened(image: np.ndarray, amount: float, sigma: float) -> np.ndarray:
    """Unsharp masking of float32 [H,W,3]."""
    return image + amount * (image - cv2.GaussianBlur(image, (0, 0), sigma))
