"""Detection by the real MTCNN, tracks, and the similarity warp."""

import numpy as np
import pytest
from conftest import PORTRAIT_LANDMARKS, clip

from dfdetect.demo import read_portrait
from dfdetect.faces import CropRecipe, Face, FaceFinder, align, similarity, track_faces


@pytest.fixture(scope="module")
def find_faces():
    return FaceFinder(CropRecipe())


def test_mtcnn_finds_the_portrait_s_face_and_landmarks(find_faces):
    (face,) = find_faces(read_portrait())
    assert np.abs(face.landmarks - PORTRAIT_LANDMARKS).max() < 6
    assert face.landmarks.dtype == face.box_xyxy.dtype == np.float32


def test_a_large_frame_gives_landmarks_in_its_own_pixels(find_faces):
    large = np.kron(read_portrait(), np.ones((4, 4, 1), np.uint8))
    face = find_faces(large)[0]
    assert np.abs(face.landmarks / 4 - PORTRAIT_LANDMARKS).max() < 6


def test_no_face_and_frames_too_small_for_one_give_an_empty_list(find_faces):
    assert find_faces(np.full((200, 200, 3), 127, np.uint8)) == []
    assert find_faces(np.zeros((1, 1, 3), np.uint8)) == []
    assert find_faces(np.zeros((2, 20000, 3), np.uint8)) == []


def test_rgb_order_matters_to_the_landmarks(find_faces):
    """BGR still detects, with landmarks elsewhere: the order must not be mixed up silently."""
    rgb, bgr = (
        find_faces(v)[0].landmarks for v in (read_portrait(), read_portrait()[..., ::-1].copy())
    )
    assert np.abs(rgb - bgr).max() > 0.2


def test_a_similarity_is_recovered_exactly():
    points = np.array([[10.0, 20], [40, 22], [25, 40], [14, 55], [38, 54]])
    angle, scale, shift = 0.3, 1.7, np.array([5.0, -8])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(points, points @ turn.T + shift)
    assert np.allclose(matrix, np.column_stack([turn, shift]))


@pytest.mark.parametrize("template", ["arcface", "symmetric"])
def test_aligned_landmarks_lie_on_the_template(find_faces, template):
    recipe = CropRecipe(template=template)
    image = read_portrait()
    crop = align(image, find_faces(image)[0].landmarks, recipe)
    assert crop.shape == (256, 256, 3)
    (face,) = find_faces(crop)
    # Faces differ from the mean template by a few per cent of the side.
    assert np.abs(face.landmarks - recipe.target_points()).mean() < 0.03 * recipe.size


def test_the_arcface_template_gives_the_published_points():
    """DeepfakeBench's normalised points, for a margin of 1.3."""
    published = [
        (0.3784, 0.4704),
        (0.6204, 0.4691),
        (0.5002, 0.6081),
        (0.4008, 0.7498),
        (0.6012, 0.7487),
    ]
    assert np.abs(CropRecipe(size=100).target_points() / 100 - published).max() < 2e-3


def test_a_wider_margin_shows_the_face_smaller(find_faces):
    image = read_portrait()
    marks = find_faces(image)[0].landmarks
    eyes = [
        find_faces(align(image, marks, CropRecipe(margin=m)))[0].landmarks[:2] for m in (1.3, 2.0)
    ]
    near, far = (np.linalg.norm(e[1] - e[0]) for e in eyes)
    assert far / near == pytest.approx(1.3 / 2.0, rel=0.05)


def test_shrinking_by_halves_lands_where_a_direct_warp_does():
    """A face 20 times the template goes through four halvings; a smooth picture shows the place."""
    y, x = np.mgrid[:2048, :2048]
    image = np.repeat((127 + 100 * np.sin(x / 150) * np.cos(y / 170))[..., None], 3, -1).astype(
        np.uint8
    )
    recipe = CropRecipe(size=64)
    marks = recipe.target_points() * 20 + 200
    crop = align(image, marks, recipe)
    matrix = similarity(recipe.target_points(), marks)
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1) @ matrix[:, :2].T + matrix[:, 2]
    exact = 127 + 100 * np.sin(grid[..., 0] / 150) * np.cos(grid[..., 1] / 170)
    assert np.abs(crop[..., 0] - exact).mean() < 2


def test_tracks_follow_two_faces_that_both_move():
    def face(x, width=50.0):
        box = np.array([x, 100, x + width, 100 + width], np.float32)
        return Face(box, np.zeros((5, 2), np.float32), 0.99)

    frames = [[face(10 + 8 * i), face(300 - 8 * i, 80)] for i in range(5)]
    frames[2] = frames[2][::-1]  # the detector's order says nothing
    main, other = track_faces(frames)
    assert (main.track_id, other.track_id) == (0, 1)
    assert [main.faces[i].width_px for i in range(5)] == [80] * 5
    assert [float(other.faces[i].box_xyxy[0]) for i in range(5)] == [10, 18, 26, 34, 42]


def test_a_face_that_jumps_across_the_frame_begins_a_new_track():
    boxes = [np.array([x, 0, x + 50, 50], np.float32) for x in (0, 5, 400)]
    tracks = track_faces([[Face(b, np.zeros((5, 2)), 0.99)] for b in boxes])
    assert sorted(len(t.faces) for t in tracks) == [1, 2]


def test_the_face_of_a_moving_camera_is_one_track(find_faces):
    tracks = track_faces([find_faces(frame) for frame in clip(6, 6)])
    assert len(tracks[0].faces) == 6
