"""Frames in, aligned face crops out. The only file that imports facenet_pytorch.

MTCNN gives boxes and five landmarks; faces are followed through the sampled frames as tracks; a
similarity warp puts the five points onto a template. The same warp is applied at every quality.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

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
    detect_px: int = Field(1280, ge=160, description="longer side of the copy MTCNN looks at, px")

    def target_points(self) -> np.ndarray:
        """Where the landmarks go in a crop: float [5,2], px."""
        return ((TEMPLATES[self.template] - 0.5) / self.margin + 0.5) * self.size


class Face(NamedTuple):
    """One detection: box float [4] xyxy and landmarks float [5,2] in frame px; confidence 0..1."""

    box_xyxy: np.ndarray
    landmarks: np.ndarray
    confidence: float

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
    """MTCNN with its weights, loaded once. Call it with an RGB frame."""

    def __init__(self, recipe: CropRecipe, device: str = "cpu") -> None:
        from facenet_pytorch import MTCNN

        self._recipe = recipe
        self._device = device
        self._networks: dict[int, MTCNN] = {}
        self._make = MTCNN

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Faces in uint8 [H,W,3] RGB, largest first; an empty list if there are none."""
        height, width = image.shape[:2]
        scale = min(1.0, self._recipe.detect_px / max(height, width))
        small = image
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        min_face = max(20, round(self._recipe.min_face_px * scale))
        if min(small.shape[:2]) < min_face + 1:  # MTCNN's pyramid would be empty
            return []
        # float32 by hand: facenet-pytorch returns object arrays when all counts agree.
        boxes, confidences, points = self._network(min_face).detect(small, landmarks=True)
        if boxes is None:
            return []
        boxes, points = (_on_grid(np.asarray(v, np.float32) / scale) for v in (boxes, points))
        found = [
            Face(box, marks, float(confidence))
            for box, marks, confidence in zip(boxes, points, confidences, strict=True)
            if confidence >= self._recipe.min_confidence and (box[2:] > box[:2]).all()
        ]
        return sorted(found, key=lambda face: -face.width_px)

    def _network(self, min_face_px: int):
        if min_face_px not in self._networks:
            self._networks[min_face_px] = self._make(
                keep_all=True, min_face_size=min_face_px, device=self._device
            ).eval()
        return self._networks[min_face_px]


def track_faces(frames: Iterable[Sequence[Face]]) -> list[Track]:
    """Follow faces through consecutive sampled frames; the main track comes first.

    A face continues the track whose last box is nearest, if the centres are less than one box
    width apart and the sizes within a factor of two. Ids number the tracks by weight from 0.
    """
    tracks: list[dict[int, Face]] = []
    for position, faces in enumerate(frames):
        last = [track[max(track)] for track in tracks]
        pairs = sorted(
            (distance, f, t)
            for f, face in enumerate(faces)
            for t, before in enumerate(last)
            if (distance := _distance(face, before)) < 1
        )
        taken_faces: set[int] = set()
        taken_tracks: set[int] = set()
        for _, f, t in pairs:
            if f not in taken_faces and t not in taken_tracks:
                tracks[t][position] = faces[f]
                taken_faces.add(f)
                taken_tracks.add(t)
        tracks.extend({position: face} for f, face in enumerate(faces) if f not in taken_faces)
    numbered = [Track(0, track) for track in tracks]
    numbered.sort(key=lambda track: -track.weight)
    return [track._replace(track_id=i) for i, track in enumerate(numbered)]


def align(image: np.ndarray, landmarks: np.ndarray, recipe: CropRecipe) -> np.ndarray:
    """Warp uint8 [H,W,3] so that `landmarks` [5,2] px meet the template; uint8 [size,size,3].

    Faces much larger than the crop are first halved by area, so that nothing aliases. Outside the
    frame is black.
    """
    matrix = similarity(landmarks, recipe.target_points())
    while np.hypot(matrix[0, 0], matrix[1, 0]) < 0.5 and min(image.shape[:2]) >= 2:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        # Pixel centres: x_old = 2 x_new + 0.5.
        image = cv2.resize(
            image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA
        )
        matrix = np.hstack([matrix[:, :2] * 2, matrix[:, :2] @ [[0.5], [0.5]] + matrix[:, 2:]])
    return cv2.warpAffine(image, matrix, (recipe.size, recipe.size), flags=cv2.INTER_LINEAR)


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
