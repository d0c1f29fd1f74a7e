"""Inputs unlike those a detector learned from."""

import cv2
import numpy as np
from conftest import PORTRAIT_LANDMARKS

from dfdetect.corruptions import jpeg_round_trip
from dfdetect.faces import CropRecipe, align
from dfdetect.likeness import detail_range, why_unlike
from dfdetect.shipped import read_portrait


def seen(side: int = 128) -> list[np.ndarray]:
    face = align(read_portrait(), PORTRAIT_LANDMARKS, CropRecipe(size=side))
    levels = [jpeg_round_trip(face, q) for q in range(40, 100, 10)]
    return [face, cv2.GaussianBlur(face, (0, 0), 0.7), *levels]


def test_what_training_saw_is_like_it():
    known = detail_range(seen())
    assert why_unlike(seen()[2:5], known) == ""


def test_a_tiny_face_enlarged_is_told_by_its_lack_of_detail():
    tiny = cv2.resize(seen()[0], (16, 16), interpolation=cv2.INTER_AREA)
    large = cv2.resize(tiny, (128, 128), interpolation=cv2.INTER_CUBIC)
    assert "less fine detail" in why_unlike([large], detail_range(seen()))


def test_a_drawing_is_told_by_its_hard_edges():
    face = seen()[0]
    flat = face // 64 * 64
    lines = cv2.Canny(face, 60, 120)[..., None] > 0
    drawing = np.where(lines, 0, flat).astype(np.uint8)
    assert "more fine detail" in why_unlike([drawing], detail_range(seen()))
