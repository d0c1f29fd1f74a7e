"""Detection by the real networks with stock MTCNN as oracle, tracks, and the similarity warp."""

import cv2
import numpy as np
import pytest
from conftest import PORTRAIT_LANDMARKS, clip

from dfdetect.faces import CropRecipe, Face, FaceFinder, align, similarity, track_faces
from dfdetect.mtcnn import Cascade, Detections
from dfdetect.shipped import read_portrait


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


@pytest.fixture(scope="module")
def stock():
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True)


def stock_faces(stock, image):
    boxes, confidences, marks = (np.asarray(v, float) for v in stock.detect(image, landmarks=True))
    return Detections(boxes, marks, confidences)


def crowd():
    """Five portraits of 256 to 96 px on one frame of 640x480, grey between them."""
    frame = np.full((480, 640, 3), 127, np.uint8)
    for side, x, y in ((256, 0, 0), (192, 270, 0), (128, 480, 0), (160, 0, 280), (96, 300, 250)):
        frame[y : y + side, x : x + side] = cv2.resize(
            read_portrait()[:256, 96:352], (side, side), interpolation=cv2.INTER_AREA
        )
    return frame


def test_the_cascade_finds_the_faces_that_stock_mtcnn_finds(find_faces, stock):
    image = crowd()
    reference = stock_faces(stock, image)
    ours = find_faces(image)
    assert len(ours) == (reference.confidences > 0.95).sum() >= 4
    refined = Cascade().refine(image, reference)
    for marks in refined.landmarks:
        nearest = min(np.abs(marks - face.landmarks).mean() for face in ours)
        assert nearest < 0.5


def test_a_shift_by_one_pixel_moves_refined_landmarks_less_than_stock_s(find_faces, stock):
    image = crowd()
    moved = np.ascontiguousarray(image[1:, 1:])
    ours, again = (sorted(find_faces(v), key=lambda f: f.box_xyxy.sum()) for v in (image, moved))
    change = [np.abs(a.landmarks - 1 - b.landmarks) for a, b in zip(ours, again, strict=True)]
    theirs = [stock_faces(stock, v).landmarks for v in (image, moved)]
    stock_change = [
        np.abs(marks - 1 - min(theirs[1], key=lambda m: np.abs(marks - 1 - m).sum()))
        for marks in theirs[0]
    ]
    assert np.median(change) < 0.5 * np.median(stock_change)


def test_following_gives_what_searching_every_frame_gives(find_faces):
    follow = find_faces.follower()
    for frame in clip(3, 7):  # one full search, then O-Net alone
        (searched,), (followed,) = find_faces(frame), follow(frame)
        assert np.abs(searched.landmarks - followed.landmarks).max() < 0.5
    assert follow.cuts == set()


def test_a_cut_is_noticed_and_what_follows_it_is_searched(find_faces):
    follow = find_faces.follower()
    portrait = clip(3, 1)[0]
    scenery = np.full_like(portrait, 250)
    beside = np.full((256, 512, 3), 20, np.uint8)
    beside[:, 256:] = portrait
    n_faces = [len(follow(frame)) for frame in (portrait, scenery, beside, beside)]
    assert n_faces == [1, 0, 1, 1]
    assert follow.cuts == {1, 2}


def test_a_face_that_jumps_within_a_shot_is_found_again(find_faces):
    follow = find_faces.follower()
    frames = np.full((2, 300, 900, 3), 90, np.uint8)
    frames[0, :256, :256] = frames[1, :256, 640:896] = clip(3, 1)[0]
    (before,), (after,) = (follow(frame) for frame in frames)
    assert after.box_xyxy[0] - before.box_xyxy[0] == pytest.approx(640, abs=2)


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


def test_a_warp_reads_only_the_part_of_the_frame_it_needs_and_gives_the_same_pixels():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (700, 900, 3), np.uint8), (0, 0), 3)
    recipe = CropRecipe(size=64)
    for scale, place in ((9, (100, 40)), (3, (500, 300)), (1, (10, 10)), (0.4, (-5, 690))):
        marks = recipe.target_points() * scale + place
        wide = cv2.copyMakeBorder(image, 1024, 1024, 1024, 1024, cv2.BORDER_CONSTANT)
        assert np.array_equal(align(image, marks, recipe), align(wide, marks + 1024, recipe))


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


def looking(x, look):
    box = np.array([x, 0, x + 50, 50], np.float32)
    return Face(box, np.zeros((5, 2)), 0.99, np.array([*look, 0, 0], np.float32))


ANN, BOB = (1.0, 0.0), (0.0, 1.0)


def test_after_a_cut_another_person_at_the_same_place_is_another_track():
    frames = [[looking(0, ANN)], [looking(0, ANN)], [looking(0, BOB)]]
    assert len(track_faces(frames)) == 1  # without a cut, the place decides
    assert [len(t.faces) for t in track_faces(frames, cuts={2})] == [2, 1]


def test_a_cut_counts_also_when_the_new_shot_begins_without_a_face():
    frames = [[looking(0, ANN)], [], [looking(0, BOB)]]
    assert len(track_faces(frames, cuts={1})) == 2
    assert len(track_faces(frames)) == 1


def test_a_person_seen_again_elsewhere_keeps_the_track():
    frames = [[looking(0, ANN)], [looking(0, BOB)], [looking(500, ANN), looking(0, BOB)]]
    tracks = track_faces(frames, cuts={1, 2})
    assert sorted(sorted(t.faces) for t in tracks) == [[0, 2], [1, 2]]


def test_the_face_of_a_moving_camera_is_one_track(find_faces):
    tracks = track_faces([find_faces(frame) for frame in clip(6, 6)])
    assert len(tracks[0].faces) == 6
