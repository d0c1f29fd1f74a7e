"""MTCNN (Zhang et al., IEEE SPL 2016) as a cascade of our own over facenet-pytorch's weights.

The three networks and their thresholds are the original ones; what differs is where they look.
P-Net and R-Net propose on a reduced copy, O-Net decides on the full picture, and the landmarks are
then refined: O-Net looks again at crops that are placed by the landmarks themselves, until they
agree. Refined landmarks repeat several times better than the first ones: those move by more than a
pixel when the picture is shifted by one. Given a face's place in an earlier frame, O-Net alone
finds it in the next.

The networks themselves are run by PyTorch (mtcnn_torch.py) or, from files beside this one, by ONNX
Runtime, which starts at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

FACTOR = 0.709
"""Between the scales of P-Net's pyramid: the area halves."""
THRESHOLDS = (0.6, 0.7, 0.7)
"""Of P-, R- and O-Net, as published."""

# Where O-Net's five points lie in its own square box, on average over real videos; a box placed by
# them holds the face as O-Net was trained to see it.
CANONICAL = np.array([[0.333, 0.388], [0.667, 0.388], [0.5, 0.57], [0.36, 0.763], [0.64, 0.763]])
# Boxes that vote on the final landmarks: shift in x and y, and scale, as parts of the box.
_JITTER = np.array(
    [(0, 0, 1), (0.06, 0, 1), (-0.06, 0, 1), (0, 0.06, 1), (0, -0.06, 1), (0, 0, 1.08),
     (0, 0, 0.92)]
)  # fmt: skip


class Detections(NamedTuple):
    """`boxes` float64 [n,4] xyxy and `landmarks` float64 [n,5,2] in px of the picture;
    `confidences` float64 [n] in 0..1."""

    boxes: np.ndarray
    landmarks: np.ndarray
    confidences: np.ndarray


class Networks(NamedTuple):
    """Each takes uint8 [n,h,w,3] RGB and gives float32 arrays.

    `p`, of even h and w: box shifts [n,4,h',w'], P(face) as channel 1 of [n,2,h',w']; stride 2.
    `r`, of 24 px: box shifts [n,4], P(face) as column 1 of [n,2].
    `o`, of 48 px: box shifts [n,4], landmarks [n,10] as x0..x4 y0..y4 in 0..1 of the box, P(face)
    as column 1 of [n,2].
    """

    p: Callable[[np.ndarray], list[np.ndarray]]
    r: Callable[[np.ndarray], list[np.ndarray]]
    o: Callable[[np.ndarray], list[np.ndarray]]


class Cascade:
    """The three networks, loaded once."""

    def __init__(self, device: str = "cpu") -> None:
        """`device` is one of PyTorch's, or "onnx": ONNX Runtime on one core.

        Errors: DfdetectError if facenet-pytorch's weight files, which PyTorch reads, are not
        installed.
        """
        if device == "onnx":
            from dfdetect.sessions import Session

            nets = (Path(__file__).with_name("assets") / f"{name}net.onnx" for name in "pro")
            self._nets = Networks(*(Session(net.read_bytes()) for net in nets))
        else:
            from dfdetect.mtcnn_torch import load_networks

            self._nets = load_networks(device)

    def detect(self, image: np.ndarray, min_face_px: int, copy_px: int) -> Detections:
        """Faces of at least `min_face_px` in uint8 [H,W,3] RGB, unrefined.

        P- and R-Net look at a copy whose longer side has `copy_px`, or more where a face of
        `min_face_px` would otherwise be smaller than the 12 px that P-Net needs.
        """
        longer = max(image.shape[:2])
        reduction = min(1.0, max(copy_px, np.ceil(longer * 12 / min_face_px)) / longer)
        copy = _resized(image, tuple(round(side * reduction) for side in image.shape[1::-1]))
        boxes = self._propose(copy, 12 / (min_face_px * reduction))
        boxes = self._select(copy, boxes)
        ratio = np.array([image.shape[1], image.shape[0]] * 2) / ([*copy.shape[1::-1]] * 2)
        return self._decide(image, boxes * ratio)

    def follow(self, image: np.ndarray, landmarks: np.ndarray) -> Detections:
        """Faces that had `landmarks` [n,5,2] in an earlier frame, in the same order, unrefined;
        a low confidence says that the face is not there any more."""
        return self._look(image, _canonical_boxes(landmarks))

    def refine(self, image: np.ndarray, found: Detections, rounds: int = 1) -> Detections:
        """Landmarks by canonical crops: `rounds` single looks, then the mean over jittered ones.
        Confidences stay those of `found`."""
        if not len(found.boxes):
            return found
        landmarks = found.landmarks
        for _ in range(rounds):
            landmarks = self._look(image, _canonical_boxes(landmarks)).landmarks
        squares = _canonical_boxes(landmarks)
        votes = np.concatenate([_moved(square, _JITTER) for square in squares])
        looks = self._look(image, votes)
        shape = (len(squares), len(_JITTER))
        return Detections(
            looks.boxes.reshape(*shape, 4).mean(1),
            looks.landmarks.reshape(*shape, 5, 2).mean(1),
            found.confidences,
        )

    # --- the three stages ----------------------------------------------------------------------

    def _propose(self, image: np.ndarray, scale: float) -> np.ndarray:
        """P-Net over a pyramid that starts at `scale`: square boxes [n,4] xyxy."""
        height, width = image.shape[:2]
        found, level = [], image
        while min(height, width) * scale >= 12:
            # Each level is made from the one before, because reducing by area is slow; its sides
            # are even, as P-Net wants them.
            level = _resized(level, tuple(2 * round(side * scale / 2) for side in (width, height)))
            shifts, scores = self._nets.p(level[None])
            scores = scores[0, 1]
            rows, columns = np.nonzero(scores >= THRESHOLDS[0])
            corner = 2 * np.stack([columns, rows], 1) / scale
            boxes = np.hstack([corner, corner + 12 / scale])
            marked = scores[rows, columns]
            kept = _suppress(boxes, marked, 0.5)
            shift = shifts[0, :, rows[kept], columns[kept]]
            found.append(np.hstack([boxes[kept], marked[kept, None], shift]))
            scale *= FACTOR
        if not found:
            return np.zeros((0, 4))
        every = np.concatenate(found).astype(np.float64)
        every = every[_suppress(every[:, :4], every[:, 4], 0.7)]
        return _square(_shifted(every[:, :4], every[:, 5:]))

    def _select(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """R-Net: those of the square boxes [n,4] that it believes, corrected and square again."""
        if not len(boxes):
            return boxes
        shifts, scores = _in_parts(self._nets.r, image, boxes, 24)
        believed = scores[:, 1] > THRESHOLDS[1]
        boxes, shifts, marked = boxes[believed], shifts[believed], scores[believed, 1]
        kept = _suppress(boxes, marked, 0.7)
        return _square(_shifted(boxes[kept], shifts[kept]))

    def _decide(self, image: np.ndarray, boxes: np.ndarray) -> Detections:
        """O-Net on the full picture, and one face per place."""
        looks = self._look(image, boxes)
        sure = looks.confidences > THRESHOLDS[2]
        looks = Detections(*(part[sure] for part in looks))
        kept = _suppress(looks.boxes, looks.confidences, 0.7, of_smaller=True)
        return Detections(*(part[kept] for part in looks))

    def _look(self, image: np.ndarray, boxes: np.ndarray) -> Detections:
        """O-Net at square boxes [n,4] of the picture. A landmark at fraction f of a box lies at
        x0 + f * side, as facenet-pytorch counts and as the networks were trained."""
        if not len(boxes):
            return Detections(np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))
        outputs = _in_parts(self._nets.o, image, boxes, 48)
        shifts, points, scores = (output.astype(np.float64) for output in outputs)
        side = (boxes[:, 2] - boxes[:, 0])[:, None]
        x = boxes[:, :1] + side * points[:, :5]
        y = boxes[:, 1:2] + side * points[:, 5:]
        return Detections(_shifted(boxes, shifts), np.stack([x, y], -1), scores[:, 1])


# --- boxes and pixels ------------------------------------------------------------------------


def _in_parts(
    net: Callable[[np.ndarray], list[np.ndarray]], image: np.ndarray, boxes: np.ndarray, size: int
) -> list[np.ndarray]:
    """What `net` says of the picture at boxes [n,4]; memory stays flat however many there are."""
    outputs = [net(_crops(image, boxes[i : i + 256], size)) for i in range(0, len(boxes), 256)]
    return [np.concatenate(part) for part in zip(*outputs, strict=True)]


def _canonical_boxes(landmarks: np.ndarray) -> np.ndarray:
    """Square boxes [n,4] on which `landmarks` [n,5,2] lie as in CANONICAL: least squares
    over scale and shift."""
    template = CANONICAL - CANONICAL.mean(0)
    centre = landmarks.mean(1)
    offsets = landmarks - landmarks.mean(1, keepdims=True)
    side = (offsets * template).sum((1, 2)) / (template**2).sum()
    # Of a face in profile or upside down the fit would shrink to nothing.
    side = np.maximum(side, np.sqrt((offsets**2).sum((1, 2)) / (template**2).sum()) * 0.7)
    corner = centre - side[:, None] * CANONICAL.mean(0)
    return np.hstack([corner, corner + side[:, None]])


def _moved(box: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """One square box [4] shifted and scaled about its centre: [len(jitter),4]."""
    side = box[2] - box[0]
    centre = (box[:2] + box[2:]) / 2 + jitter[:, :2] * side
    half = jitter[:, 2:] * side / 2
    return np.hstack([centre - half, centre + half])


def _crops(image: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """uint8 [n,size,size,3] at boxes [n,4] xyxy, to a fraction of a pixel; outside of
    the picture its edge is repeated, for a face that is cut off there."""
    crops = np.empty((len(boxes), size, size, 3), np.uint8)
    for crop, (x0, y0, x1, y1) in zip(crops, boxes, strict=True):
        # Only what the box covers, reduced by a whole factor where it is more than twice too large.
        # Its blocks lie on one grid of the picture, so that a box moved by little sees the same.
        x_scale, y_scale = (x1 - x0) / size, (y1 - y0) / size
        factor = int(max(1, min(x_scale, y_scale)))
        left, top = (max(0, int(v) - factor - 1) // factor * factor for v in (x0, y0))
        right, bottom = (int(v) + 2 * factor + 1 for v in (x1, y1))
        part = image[top : max(top, bottom), left : max(left, right)]
        if not part.size:
            crop[:] = 0
            continue
        x, y = x0 - left, y0 - top
        if factor > 1 and min(part.shape[:2]) >= factor:
            rows, columns = part.shape[0] // factor, part.shape[1] // factor
            part = cv2.resize(
                part[: rows * factor, : columns * factor], (columns, rows),
                interpolation=cv2.INTER_AREA,
            )  # fmt: skip
            x_scale, y_scale, x, y = (v / factor for v in (x_scale, y_scale, x, y))
        # Crop pixel i covers the edges x + i * scale .. x + (i + 1) * scale.
        to_part = np.array(
            [[x_scale, 0, x + x_scale / 2 - 0.5], [0, y_scale, y + y_scale / 2 - 0.5]]
        )
        cv2.warpAffine(
            part, to_part, (size, size), dst=crop, borderMode=cv2.BORDER_REPLICATE,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )  # fmt: skip
    return crops


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`size` is (width, height), at least 1 each. By area only where it shrinks to less than
    half; down to there every pixel counts in a bilinear resize too, which is six times as fast."""
    if size == image.shape[1::-1]:
        return image
    shrinks = size[0] < image.shape[1] / 2
    return cv2.resize(
        image, (max(1, size[0]), max(1, size[1])),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )  # fmt: skip


def _shifted(boxes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Boxes [n,4] corrected by a network's [n,4], which counts in box sides."""
    return boxes + shifts * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _square(boxes: np.ndarray) -> np.ndarray:
    """The square about the same centre, with the longer side."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.hstack([centre - half, centre + half])


def _suppress(
    boxes: np.ndarray, scores: np.ndarray, overlap: float, of_smaller: bool = False
) -> np.ndarray:
    """Greedy non-maximum suppression: positions kept, best first. Overlap is intersection over
    union, or over the smaller box."""
    x0, y0, x1, y1 = boxes.T
    area = (x1 - x0) * (y1 - y0)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, others = order[0], order[1:]
        kept.append(best)
        width = np.minimum(x1[best], x1[others]) - np.maximum(x0[best], x0[others])
        height = np.minimum(y1[best], y1[others]) - np.maximum(y0[best], y0[others])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        whole = (
            np.minimum(area[best], area[others])
            if of_smaller
            else area[best] + area[others] - shared
        )
        order = others[shared <= overlap * whole]
    return np.array(kept, dtype=int)
