"""Whether an input looks like those a detector learned from: a first guard, not a proof.

One figure, of pixels alone: how much fine detail a crop has. Compression, blur and enlargement
take it away beyond what training saw; drawings and oversharpened pictures have more than photos.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

SIGMA = 1.0
"""Of the Gaussian whose difference from the crop counts as detail, px of the network's input."""
LEFT_OUT = 0.5
"""Percent of what was seen in training that lies below the range, and as much above."""


class DetailRange(NamedTuple):
    """Detail of nearly all crops that training saw."""

    low: float
    high: float


def detail(image: np.ndarray) -> float:
    """uint8 [S,S,3] RGB -> log2 of the spread (levels of 255) of its luma's fine structure."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = luma - cv2.GaussianBlur(luma, (0, 0), SIGMA)
    return float(np.log2(fine.std() + 1e-3))


def detail_range(images: Sequence[np.ndarray]) -> DetailRange:
    """Of uint8 [S,S,3] RGB images."""
    low, high = np.percentile([detail(image) for image in images], [LEFT_OUT, 100 - LEFT_OUT])
    return DetailRange(float(low), float(high))


def why_unlike(images: Sequence[np.ndarray], known: DetailRange) -> str:
    """In words, why one person's crops are unlike what training saw; "" if they are not."""
    found = float(np.median([detail(image) for image in images]))
    if found < known.low:
        return "less fine detail than in its training: strong compression, blur or enlargement"
    if found > known.high:
        return "more fine detail than in its training: a drawing, rendered or sharpened"
    return ""
