"""A raw crop -> the same crop at a quality: JPEG, H.264, smaller and back, blur, noise.

Each is a function of the pixels, one level and, where it is random, the sample's id: a sample is
scored on the same pixels in every run. What exactly is done stands in `parameters`, whose hash
tells whether two results were measured on the same thing.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from dfdetect.quality import Quality, parse_quality
from dfdetect.video import through_h264

TRAINED, AUGMENTED, UNSEEN = "trained", "augmented", "no"
"""Whether training saw a quality: as one of the preset's, as an augmentation, or not at all."""
_AUGMENTATIONS = {
    "jpeg": ("jpeg", "jpeg_quality"),
    "scale": ("rescale", "rescale_to"),
    "blur": ("blur", "blur_sigma"),
}
"""Probability and range in a preset's `augment`, by kind."""


def corrupted(
    crop: np.ndarray, quality: Quality, sample_id: str, rng: np.random.Generator | None = None
) -> np.ndarray:
    """A raw crop uint8 [H,W,3] RGB -> the same at `quality`: raw, or any kind but h264.

    What is random is drawn with `rng`, without one by `sample_id`.
    """
    if quality.kind == "jpeg":
        return jpeg_round_trip(crop, jpeg_level(quality, sample_id, rng))
    if quality.kind == "crf":
        return h264_round_trip(crop, int(quality.level))
    if quality.kind == "scale":
        return rescaled(crop, quality.level)
    if quality.kind == "blur":
        return blurred(crop, quality.level)
    if quality.kind == "noise":
        return noisy(crop, quality.level, rng or np.random.default_rng(_number_of(sample_id)))
    return crop


def jpeg_level(quality: Quality, sample_id: str, rng: np.random.Generator | None = None) -> int:
    """The JPEG quality of one picture: the level, or for a range a uniform draw from it.

    Without `rng` the draw is a function of `sample_id` alone, so a sample is scored at the same
    level in every run and beside whichever others.
    """
    level, level_to = int(quality.level), int(quality.level_to)
    n_levels = level_to - level + 1
    if n_levels == 1:
        return level
    if rng is not None:
        return level + int(rng.integers(n_levels))
    return level + _number_of(sample_id) % n_levels


def jpeg_round_trip(image: np.ndarray, level: int) -> np.ndarray:
    """uint8 [H,W,3] RGB -> the same after JPEG at quality `level` (1..100), 4:2:0, and back; with
    libjpeg as OpenCV ships it."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, level]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, code = cv2.imencode(".jpg", bgr, options)
    return cv2.imdecode(code, cv2.IMREAD_COLOR_RGB)


def h264_round_trip(image: np.ndarray, crf: int) -> np.ndarray:
    """uint8 [H,W,3] RGB -> the same as the only, intra-coded frame of an H.264 stream, and back.

    A video at the same CRF looks otherwise: most of its frames are predicted from others, and its
    encoder spends its bits on a whole picture at another scale. The papers' protocol is cNN, which
    prepare makes of the video. An odd last row or column is repeated for 4:2:0 and cut off again.
    """
    height, width = image.shape[:2]
    even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    (back,) = through_h264([even], crf)
    return np.ascontiguousarray(back[:height, :width])


def rescaled(image: np.ndarray, factor: float) -> np.ndarray:
    """uint8 [H,W,3] -> reduced to `factor` of each side by averaging areas, and back bilinearly."""
    height, width = image.shape[:2]
    small = max(1, round(width * factor)), max(1, round(height * factor))
    reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR)


def blurred(image: np.ndarray, sigma_px: float) -> np.ndarray:
    """uint8 [H,W,3] -> convolved with a Gaussian of `sigma_px`, cut off at three sigma; the border
    is mirrored."""
    side = 2 * int(np.ceil(3 * sigma_px)) + 1
    return cv2.GaussianBlur(image, (side, side), sigma_px, borderType=cv2.BORDER_REFLECT_101)


def noisy(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H,W,3] -> plus normal noise of standard deviation `std` (of 0..255), drawn for each
    pixel and channel, rounded and clipped. One seed gives one pattern, at every level."""
    noise = rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image + np.float32(std) * noise), 0, 255).astype(np.uint8)


# --- what was done, and whether training did it too -------------------------------------------


def parameters(quality: Quality) -> dict[str, Any]:
    """All that decides what a quality does to pixels, as JSON; of h264 what prepare does where it
    encodes itself. Versions of libraries are not part of it."""
    if quality.kind == "raw":
        return {"kind": "raw"}
    if quality.kind == "jpeg":
        level = [quality.level, quality.level_to] if quality.is_range else quality.level
        drawn = {"drawn": _DRAWN} if quality.is_range else {}
        return {"kind": "jpeg", "quality": level, "chroma": "4:2:0", "encoder": "libjpeg", **drawn}
    exactly: dict[str, dict[str, Any]] = {
        "h264": {"crf": quality.level, "of": "the whole video", **_X264},
        "crf": {"crf": quality.level, "of": "the crop alone, one intra-coded frame", **_X264},
        "scale": {"factor": quality.level, "down": "area", "up": "bilinear"},
        "blur": {"sigma_px": quality.level, "kernel": "Gaussian, cut off at 3 sigma",
                 "border": "mirrored"},
        "noise": {"std": quality.level, "noise": "Gaussian, by channel, rounded, clipped",
                  "seed": "SHA-256 of the sample id"},
    }  # fmt: skip
    return {"kind": quality.kind, **exactly[quality.kind]}


_DRAWN = "lowest + first 8 bytes of SHA-256 of the sample id, modulo the number of qualities"
_X264 = {"encoder": "libx264", "preset": "medium", "pix_fmt": "yuv420p", "threads": 1}


def facts_of(
    name: str, preset: Mapping[str, Any], of_raw: bool, shipped: bool = False
) -> dict[str, Any]:
    """What metrics.json says of a quality: where its crops come from, what exactly was done with
    the hash of that (of JSON with sorted keys, without spaces), and whether training with a
    resolved `preset` saw it. `of_raw`: made of raw crops while loading; `shipped`: prepare took
    qualities of videos as their dataset ships them."""
    quality = parse_quality(name)
    exactly = parameters(quality)
    if shipped and quality.kind == "h264" and not of_raw:
        exactly |= {"encoder": "as shipped, or libx264 where it was not"}
    text = json.dumps(exactly, sort_keys=True, separators=(",", ":"))
    return {
        "quality": name,
        "crops": "made of raw" if of_raw else "stored",
        "seen_in_training": seen_in_training(name, preset),
        "parameters": exactly,
        "parameters_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def seen_in_training(name: str, preset: Mapping[str, Any]) -> str:
    """TRAINED, AUGMENTED or UNSEEN: what a resolved preset says of the quality `name`."""
    quality = parse_quality(name)
    for low, high, how in seen_ranges(quality.kind, preset):
        if low <= quality.level and quality.level_to <= high:
            return how
    return UNSEEN


def seen_ranges(kind: str, preset: Mapping[str, Any]) -> list[tuple[float, float, str]]:
    """(from, to, how) of the levels of a kind that a resolved preset trains with.

    crfNN counts as trained where cNN was: the pixels differ, the artefacts hardly. Augmentations
    count in their whole range (JPEG, rescale, blur).
    """
    kinds = {kind, "h264"} if kind == "crf" else {kind}
    qualities = [parse_quality(name) for name in preset["qualities"]]
    ranges = [(q.level, q.level_to, TRAINED) for q in qualities if q.kind in kinds]
    probability, levels = (
        preset.get("augment", {}).get(key) for key in _AUGMENTATIONS.get(kind, ("", ""))
    )
    return [*ranges, (levels[0], levels[1], AUGMENTED)] if probability else ranges


def _number_of(sample_id: str) -> int:
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
