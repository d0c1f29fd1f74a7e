"""MTCNN (Zhang et al., IEEE SPL 2016) as a cascade of our own over facenet-pytorch's weights.

The three networks and their thresholds are the original ones; what differs is where they look.
P-Net and R-Net propose on a reduced copy, O-Net decides on the full picture, and the landmarks are
then refined: O-Net looks again at crops that are placed by the landmarks themselves, until they
agree. Refined landmarks repeat several times better than the first ones: those move by more than a
pixel when the picture is shifted by one. Given a face's place in an earlier frame, O-Net alone
finds it in the next.

Networks are plain functions of facenet-pytorch's weight files, because importing the package takes
two seconds of torchvision for nothing that is needed here.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfdetect.errors import DfdetectError, ExitCode

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


class Cascade:
    """The three networks, loaded once."""

    def __init__(self, device: str = "cpu") -> None:
        """Errors: DfdetectError if facenet-pytorch's weight files are not installed."""
        self._device = torch.device(device)
        self._p, self._r, self._o = (_weights(f"{name}net.pt", device) for name in "pro")

    @torch.inference_mode()
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

    @torch.inference_mode()
    def follow(self, image: np.ndarray, landmarks: np.ndarray) -> Detections:
        """Faces that had `landmarks` [n,5,2] in an earlier frame, in the same order, unrefined;
        a low confidence says that the face is not there any more."""
        return self._look(image, _canonical_boxes(landmarks))

    @torch.inference_mode()
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
            # are even, as _p_net wants them.
            level = _resized(level, tuple(2 * round(side * scale / 2) for side in (width, height)))
            shifts, scores = _p_net(self._p, self._tensor(level[None]))
            scores = scores[0, 1].cpu().numpy()
            rows, columns = np.nonzero(scores >= THRESHOLDS[0])
            corner = 2 * np.stack([columns, rows], 1) / scale
            boxes = np.hstack([corner, corner + 12 / scale])
            marked = scores[rows, columns]
            kept = _suppress(boxes, marked, 0.5)
            shift = shifts[0].permute(1, 2, 0).cpu().numpy()[rows[kept], columns[kept]]
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
        outputs = [
            _r_net(self._r, self._tensor(_crops(image, boxes[i : i + 256], 24)))
            for i in range(0, len(boxes), 256)
        ]
        shifts, scores = (torch.cat(part).cpu().numpy() for part in zip(*outputs, strict=True))
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
        outputs = [
            _o_net(self._o, self._tensor(_crops(image, boxes[i : i + 256], 48)))
            for i in range(0, len(boxes), 256)
        ]
        shifts, points, scores = (
            torch.cat(part).cpu().numpy().astype(np.float64) for part in zip(*outputs, strict=True)
        )
        side = (boxes[:, 2] - boxes[:, 0])[:, None]
        x = boxes[:, :1] + side * points[:, :5]
        y = boxes[:, 1:2] + side * points[:, 5:]
        return Detections(_shifted(boxes, shifts), np.stack([x, y], -1), scores[:, 1])

    def _tensor(self, images: np.ndarray) -> Tensor:
        """uint8 [n,h,w,3] -> float [n,3,h,w], as the networks were trained: (x - 127.5) / 128."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        return pixels.permute(0, 3, 1, 2).float().sub_(127.5).mul_(0.0078125)


# --- networks --------------------------------------------------------------------------------


def _weights(file_name: str, device: str) -> dict[str, Tensor]:
    package = find_spec("facenet_pytorch")
    folders = (package and package.submodule_search_locations) or []
    path = next((p for f in folders if (p := Path(f, "data", file_name)).is_file()), None)
    if path is None:
        raise DfdetectError(
            f"facenet-pytorch's {file_name} is not installed",
            "pip install facenet-pytorch==2.5.3",
            ExitCode.ENVIRONMENT,
        )
    weights = torch.load(path, map_location=device, weights_only=True)
    for name, tensor in weights.items():
        if tensor.dim() == 4:
            weights[name] = tensor.contiguous(memory_format=torch.channels_last)
    return weights


def _conv(w: dict[str, Tensor], x: Tensor, number: int) -> Tensor:
    x = F.conv2d(x, w[f"conv{number}.weight"], w[f"conv{number}.bias"])
    return F.prelu(x, w[f"prelu{number}.weight"])


def _dense(w: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    return F.linear(x, w[f"dense{name}.weight"], w[f"dense{name}.bias"])


def _flat(x: Tensor) -> Tensor:
    """[n,c,h,w] -> [n,w*h*c], the order in which the weights were converted from Caffe."""
    return x.permute(0, 3, 2, 1).flatten(1)


def _p_net(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """[n,3,h,w], h and w even -> box shifts [n,4,h',w'], P(face) as channel 1 of [n,2,h',w'];
    stride 2."""
    x = _conv(w, x.contiguous(memory_format=torch.channels_last), 1)
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])  # 2x2 pooling, several times faster
    x = torch.maximum(x[..., ::2], x[..., 1::2])
    x = _conv(w, _conv(w, x, 2), 3)
    scores = F.conv2d(x, w["conv4_1.weight"], w["conv4_1.bias"]).softmax(1)
    return F.conv2d(x, w["conv4_2.weight"], w["conv4_2.bias"]), scores


def _r_net(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """[n,3,24,24] -> box shifts [n,4], P(face) as column 1 of [n,2]."""
    x = x.contiguous(memory_format=torch.channels_last)
    x = F.max_pool2d(_conv(w, x, 1), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(w, x, 2), 3, 2, ceil_mode=True)
    x = F.prelu(_dense(w, _flat(_conv(w, x, 3)), "4"), w["prelu4.weight"])
    return _dense(w, x, "5_2"), _dense(w, x, "5_1").softmax(1)


def _o_net(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n,3,48,48] -> box shifts [n,4], landmarks [n,10] as x0..x4 y0..y4 in 0..1 of the box,
    P(face) as column 1 of [n,2]."""
    x = x.contiguous(memory_format=torch.channels_last)
    x = F.max_pool2d(_conv(w, x, 1), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(w, x, 2), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(w, x, 3), 2, 2, ceil_mode=True)
    x = F.prelu(_dense(w, _flat(_conv(w, x, 4)), "5"), w["prelu5.weight"])
    return _dense(w, x, "6_2"), _dense(w, x, "6_3"), _dense(w, x, "6_1").softmax(1)


# --- boxes and pixels ------------------------------------------------------------------------


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
        # Only what the box covers, halved by area while it is more than twice too large.
        left, top = max(0, int(x0) - 2), max(0, int(y0) - 2)
        part = image[top : max(top, int(y1) + 3), left : max(left, int(x1) + 3)]
        if not part.size:
            crop[:] = 0
            continue
        x_scale, y_scale = (x1 - x0) / size, (y1 - y0) / size
        x, y = x0 - left, y0 - top
        factor = int(max(1, min(x_scale, y_scale)))
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
    """`size` is (width, height), at least 1 each."""
    if size == image.shape[1::-1]:
        return image
    shrinks = size[0] < image.shape[1]
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
