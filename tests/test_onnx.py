"""ONNX Runtime says what PyTorch says: MTCNN's networks, exported detectors, whole scans."""

import numpy as np
import onnx
import pytest
from conftest import clip
from mtcnn_onnx import ASSETS, build

from dfdetect.faces import CropRecipe, FaceFinder
from dfdetect.mtcnn import Cascade

PX = 0.05
"""Of a frame: how far boxes and landmarks of the two may lie apart."""


@pytest.fixture(scope="module")
def cascades():
    return Cascade("cpu"), Cascade("onnx")


@pytest.mark.parametrize("name", ["p", "r", "o"])
def test_the_packaged_networks_are_those_of_facenet_pytorch(name):
    packaged = onnx.load(ASSETS / f"{name}net.onnx")
    assert packaged.graph == build(name).graph


@pytest.mark.parametrize(
    ("name", "shape"),
    [("p", (1, 60, 94)), ("p", (1, 12, 12)), ("r", (5, 24, 24)), ("o", (3, 48, 48))],
)
def test_each_network_gives_the_same_numbers(cascades, name, shape):
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours, theirs = (getattr(cascade._nets, name)(images) for cascade in reversed(cascades))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_faces_found_and_followed_lie_at_the_same_place():
    frames = clip(0, n_frames=10, forgery="self-blend")
    finders = [FaceFinder(CropRecipe(), device) for device in ("cpu", "onnx")]
    torch_faces, onnx_faces = ([*map(finder.follower(), frames)] for finder in finders)
    for ours, theirs in zip(onnx_faces, torch_faces, strict=True):
        assert len(ours) == len(theirs) == 1
        np.testing.assert_allclose(ours[0].box_xyxy, theirs[0].box_xyxy, atol=PX)
        np.testing.assert_allclose(ours[0].landmarks, theirs[0].landmarks, atol=PX)


def test_no_face_is_found_where_there_is_none(cascades):
    found = cascades[1].detect(np.full((90, 120, 3), 128, np.uint8), 40, 640)
    assert found.boxes.shape == (0, 4) and found.landmarks.shape == (0, 5, 2)
