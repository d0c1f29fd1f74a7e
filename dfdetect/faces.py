"""Frames in, aligned face crops out.

A cascade (mtcnn.py) gives boxes and five landmarks; between key frames it follows the faces it
has; faces of sampled frames join into tracks; a similarity warp puts the five points onto a
template. The same warp is applied at every quality.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dfdetect.mtcnn import Cascade, Detections

Template = Literal["arcface", "symmetric"]

# Five points (eyes, nose, mouth corners) in a unit square, before the margin is added.
TEMPLATES: dict[str, np.ndarray] = {
    # The 112-px template of ArcFace (Deng et al., CVPR 2019), as DeepfakeBench uses it.
    "arcface": np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
         [41.5493, 92.3655], [70.7299, 92.2041]]
    ) / 112.0,
    # Left-right symmetric points, as GenD uses them.
    "symmetric": np.array([[0.34, 0.46], [0.66, 0.46], [0.50, 0.64], [0.37, 0.82], [0.63, 0.82]]),
}  # fmt: skip


class CropRecipe(BaseModel):
    """Everything that decides which pixels a crop holds; travels in the manifest and checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(256, ge=32, le=1024, description="side of a crop, px")
    template: Template = Field("arcface", description="where the five landmarks go")
    margin: float = Field(1.3, ge=1.0, le=3.0, description="template is shrunk by this factor")
    min_face_px: int = Field(40, ge=20, description="smallest face looked for, frame px")
    min_confidence: float = Field(0.9, ge=0.0, le=1.0, description="MTCNN probability floor")
    detect_px: int = Field(
        640, ge=160, description="longer side of the copy that faces are proposed on, px"
    )
    detect_every: int = Field(
        8, ge=1, description="sampled frames from one full detection to the next; 1: no following"
    )

    def target_points(self) -> np.ndarray:
        """Where the landmarks go in a crop: float [5,2], px."""
        return ((TEMPLATES[self.template] - 0.5) / self.margin + 0.5) * self.size

    def landmarks_in_crop(self, landmarks: Sequence[float] | None) -> np.ndarray:
        """Where the five `landmarks` (x0 y0 ... y4, frame px) lie in the crop of their face:
        float64 [5,2], px. A similarity brings them near the template, not onto it. Without
        landmarks the template's."""
        target = self.target_points()
        if landmarks is None:
            return target
        points = np.asarray(landmarks, np.float64).reshape(5, 2)
        matrix = similarity(points, target)
        return points @ matrix[:, :2].T + matrix[:, 2]


class Face(NamedTuple):
    """One detection: box float [4] xyxy and landmarks float [5,2] in frame px; confidence 0..1;
    `look` float [n] describes the aligned face, for telling people apart (empty: unknown)."""

    box_xyxy: np.ndarray
    landmarks: np.ndarray
    confidence: float
    look: np.ndarray = np.zeros(0, np.float32)

    @property
    def width_px(self) -> float:
        return float(self.box_xyxy[2] - self.box_xyxy[0])


class Track(NamedTuple):
    """One face followed through the sampled frames: {position in the sample: Face}."""

    track_id: int
    faces: dict[int, Face]

    @property
    def weight(self) -> float:
        """Sum of box areas: present for long and large."""
        return float(sum(np.prod(f.box_xyxy[2:] - f.box_xyxy[:2]) for f in self.faces.values()))


class FaceFinder:
    """The cascade with its weights, loaded once. Call it with an RGB picture; `follower()` gives
    what to call with the frames of one video."""

    def __init__(self, recipe: CropRecipe, device: str = "cpu") -> None:
        """`device` as of `Cascade`: one of PyTorch's, or "onnx", which needs no PyTorch."""
        self.recipe = recipe
        self._cascade = Cascade(device)

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Faces in uint8 [H,W,3] RGB, largest first; an empty list if there are none."""
        found = self._cascade.detect(image, self.recipe.min_face_px, self.recipe.detect_px)
        return sorted(self._faces(image, found), key=lambda face: -face.width_px)

    def follow(self, image: np.ndarray, faces: Sequence[Face]) -> list[Face] | None:
        """The `faces` of an earlier frame in this one, largest first, without a new detection;
        None where one is lost, has jumped, or two have become one."""
        found = self._cascade.follow(image, np.stack([face.landmarks for face in faces]))
        if (found.confidences < self.recipe.min_confidence).any():
            return None
        followed = self._faces(image, found)
        if len(followed) < len(faces):
            return None
        jumps = [_distance(now, before) for now, before in zip(followed, faces, strict=True)]
        meetings = (
            _distance(one, other)
            for i, one in enumerate(followed)
            for other in followed[:i]
        )  # fmt: skip
        if max(jumps) > FURTHEST_STEP or min(meetings, default=1.0) < NEAREST_FACES:
            return None
        return sorted(followed, key=lambda face: -face.width_px)

    def follower(self) -> "FaceFollower":
        return FaceFollower(self)

    def _faces(self, image: np.ndarray, found: Detections) -> list[Face]:
        """The sure ones, refined, in the order they have."""
        sure = found.confidences >= self.recipe.min_confidence
        found = self._cascade.refine(image, Detections(*(part[sure] for part in found)))
        return [
            Face(_on_grid(box), _on_grid(marks), float(confidence), _look(image, marks))
            for box, marks, confidence in zip(*found, strict=True)
            if (box[2:] - box[:2] >= MIN_BOX_PX).all() and np.isfinite(marks).all()
        ]


class FaceFollower:
    """Called with the sampled frames of one video in order, gives the faces of each.

    Every `detect_every`-th frame is searched in full, and so is one after a cut, or where a
    followed face is lost or jumps, or where none was seen; `cuts` are the positions of frames
    that begin a new shot.
    """

    def __init__(self, finder: FaceFinder) -> None:
        self._finder = finder
        self._faces: list[Face] = []
        self._since_key = 0
        self._thumbnail: np.ndarray | None = None
        self._n_seen = 0
        self.cuts: set[int] = set()

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Faces in uint8 [H,W,3] RGB, largest first."""
        step = max(1, min(image.shape[:2]) // 120)
        small = cv2.resize(image[::step, ::step], (32, 18), interpolation=cv2.INTER_AREA)
        thumbnail = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.int16)
        if self._thumbnail is not None and np.abs(thumbnail - self._thumbnail).mean() > CUT_LEVELS:
            self.cuts.add(self._n_seen)
            self._faces = []
        self._since_key += 1
        followed = None
        if self._faces and self._since_key < self._finder.recipe.detect_every:
            followed = self._finder.follow(image, self._faces)
        if followed is None:
            self._since_key, followed = 0, self._finder(image)
        self._faces, self._thumbnail = followed, thumbnail
        self._n_seen += 1
        return followed


CUT_LEVELS = 30
"""Mean change of a 32x18 grey thumbnail, of 255, that counts as a cut. Between sampled frames of
one shot it is below 23 in 95 of 100 cases, between different videos above 37."""
FURTHEST_STEP = 0.6
"""Box widths that a followed face may move between two sampled frames."""
NEAREST_FACES = 0.3
"""Two followed faces nearer than this many box widths are the same face."""
MIN_BOX_PX = 8
SAME_PERSON = 0.8
"""Correlation of aligned faces from which two count as one person seen again elsewhere. Measured
on real videos: 64 % of pairs of frames of one person pass, 0.6 % of pairs of two people."""
SAME_PLACE = 0.6
"""The same after a cut, for a face at the place where one was before it."""
SAME_COLOUR = 6.0
"""CIELAB levels between mean face colours, above which two faces are of different people."""


def track_faces(frames: Iterable[Sequence[Face]], cuts: Container[int] = ()) -> list[Track]:
    """Follow faces through consecutive sampled frames; the main track comes first.

    A face continues the track whose last box is nearest, if the centres are less than one box
    width apart and the sizes within a factor of two. If a new shot has begun since (`cuts`:
    positions of first frames) it must resemble that face too. What is left then continues a
    track in which it resembles any earlier face, wherever that was; the others begin tracks of
    their own. Ids number the tracks by weight from 0.
    """
    tracks: list[dict[int, Face]] = []
    shot, shots = 0, []  # the number of the shot that each frame is in
    for position, faces in enumerate(frames):
        shot += position in cuts
        shots.append(shot)
        near = [
            (distance, f, t)
            for f, face in enumerate(faces)
            for t, track in enumerate(tracks)
            if (distance := _distance(face, track[max(track)])) < 1
            and (shots[max(track)] == shot or _resemblance(face, track[max(track)]) > SAME_PLACE)
        ]
        taken = _assign(near)
        alike = [
            (-best, f, t)
            for f, face in enumerate(faces)
            for t, track in enumerate(tracks)
            if f not in taken
            and t not in taken.values()
            and (best := max(_resemblance(face, other) for other in track.values())) > SAME_PERSON
        ]
        taken |= _assign(alike)
        for f, face in enumerate(faces):
            if f in taken:
                tracks[taken[f]][position] = face
            else:
                tracks.append({position: face})
    numbered = [Track(0, track) for track in tracks]
    numbered.sort(key=lambda track: -track.weight)
    return [track._replace(track_id=i) for i, track in enumerate(numbered)]


def _assign(pairs: list[tuple[float, int, int]]) -> dict[int, int]:
    """{face: track} from (cost, face, track), cheapest first, each once."""
    taken: dict[int, int] = {}
    for _, f, t in sorted(pairs):
        if f not in taken and t not in taken.values():
            taken[f] = t
    return taken


def align(image: np.ndarray, landmarks: np.ndarray, recipe: CropRecipe) -> np.ndarray:
    """Warp uint8 [H,W,3] so that `landmarks` [5,2] px meet the template; uint8 [size,size,3].

    Faces much larger than the crop are first halved by area, so that nothing aliases. Outside the
    frame is black.
    """
    matrix = similarity(landmarks, recipe.target_points())
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    halvings = max(0, int(np.ceil(-np.log2(2 * scale)))) if scale > 0 else 0
    halvings = min(halvings, int(np.log2(min(image.shape[:2]))))
    image, matrix = _part_for(image, matrix, recipe.size, 2**halvings)
    for _ in range(halvings):
        height, width = image.shape[0] // 2, image.shape[1] // 2
        # Pixel centres: x_old = 2 x_new + 0.5.
        image = cv2.resize(
            image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA
        )
        matrix = np.hstack([matrix[:, :2] * 2, matrix[:, :2] @ [[0.5], [0.5]] + matrix[:, 2:]])
    return cv2.warpAffine(image, matrix, (recipe.size, recipe.size), flags=cv2.INTER_LINEAR)


def to_input(crop: np.ndarray, size: int) -> np.ndarray:
    """A crop uint8 [H,W,3] at the network's side; the one resize of training, eval and scan."""
    if crop.shape[:2] == (size, size):
        return crop
    shrinks = size < crop.shape[0]
    return cv2.resize(
        crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def _part_for(
    image: np.ndarray, matrix: np.ndarray, size: int, grid: int
) -> tuple[np.ndarray, np.ndarray]:
    """The part of `image` that a warp by `matrix` [2,3] into a square of `size` reads, cut at
    multiples of `grid`, and the matrix for that part."""
    corners = np.array([[-1, size, -1, size], [-1, -1, size, size]], float) - matrix[:, 2:]
    x, y = np.linalg.pinv(matrix[:, :2]) @ corners
    height, width = image.shape[:2]
    left, right = (int(np.clip(v, 0, width)) // grid * grid for v in (x.min() - grid, x.max()))
    top, bottom = (int(np.clip(v, 0, height)) // grid * grid for v in (y.min() - grid, y.max()))
    part = image[top : bottom + 2 * grid, left : right + 2 * grid]
    if min(part.shape[:2]) < grid:  # beside the frame: all black whatever is read
        return image, matrix
    return part, np.hstack([matrix[:, :2], matrix[:, :2] @ [[left], [top]] + matrix[:, 2:]])


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation, scale and shift from `source` [n,2] to `target` [n,2]: float [2,3].

    In complex numbers it is one division: z -> a z + b.
    """
    z, w = (np.asarray(p, np.float64) @ [1, 1j] for p in (source, target))
    z_mean, w_mean = z.mean(), w.mean()
    spread = np.vdot(z - z_mean, z - z_mean).real
    a = np.vdot(z - z_mean, w - w_mean) / max(spread, 1e-12)
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def _look(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """float32 [1026]: the aligned face at 32 px, blurred, in standardised grey, then its mean
    a and b of CIELAB."""
    small = align(image, landmarks, CropRecipe(size=32, margin=1.0))
    lab = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2LAB), (0, 0), 1).astype(np.float32)
    grey = lab[..., 0].ravel() - lab[..., 0].mean()
    return np.append(grey / max(float(np.linalg.norm(grey)), 1e-6), lab[..., 1:].mean((0, 1)))


def _resemblance(face: Face, other: Face) -> float:
    """Correlation of two aligned faces, -1..1; 0 where their colours differ or one is unknown."""
    if not face.look.size or not other.look.size:
        return 0.0
    if np.linalg.norm(face.look[-2:] - other.look[-2:]) > SAME_COLOUR:
        return 0.0
    return float(face.look[:-2] @ other.look[:-2])


def _on_grid(pixels: np.ndarray) -> np.ndarray:
    """Rounded to 1/32 px: sums in another order move the networks' output by some 1e-4 px, and
    crops of the same file should not depend on that."""
    return (np.round(pixels * 32) / 32).astype(np.float32)


def _distance(face: Face, before: Face) -> float:
    """Distance of centres in box widths; infinite if the sizes differ by more than twofold."""
    ratio = face.width_px / before.width_px
    if not 0.5 <= ratio <= 2:
        return float("inf")
    centres = [(f.box_xyxy[:2] + f.box_xyxy[2:]) / 2 for f in (face, before)]
    return float(np.linalg.norm(centres[0] - centres[1]) / max(face.width_px, before.width_px))
