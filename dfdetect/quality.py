"""Quality names, parsed: `raw`, `c23` (H.264 at CRF 23), `j75` (JPEG at quality 75), `j40-100`.

H.264 works between frames, so prepare makes it of whole videos. JPEG works on one picture: jNN is
the aligned raw crop through JPEG at quality NN, the same pixels whether prepare stored them or
train and eval make them from the raw crop; and jA-B, one quality in A..B per picture, is never
stored.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from dfdetect.errors import DfdetectError

_CODECS = ("raw", "h264", "jpeg")


class Quality(NamedTuple):
    """One compression level. `codec` is raw, h264 or jpeg; `level` its CRF or JPEG quality, or the
    lowest of a range, whose highest is `level_to`."""

    name: str
    codec: str
    level: int
    level_to: int

    @property
    def is_range(self) -> bool:
        return self.level < self.level_to

    def covers(self, other: "Quality") -> bool:
        """Whether every picture at `other` could also be one at this quality."""
        return (
            self.codec == other.codec
            and self.level <= other.level
            and other.level_to <= self.level_to
        )


def parse_quality(name: str) -> Quality:
    """`c23` -> Quality('c23', 'h264', 23, 23), `j40-100` -> Quality('j40-100', 'jpeg', 40, 100).

    Errors: DfdetectError for anything else, naming the rule that it breaks.
    """
    number = r"(0|[1-9][0-9]{0,2})"  # no leading zeros: a quality has one name
    match = re.fullmatch(rf"c{number}|j{number}(?:-{number})?", name)
    crf, low, high = match.groups() if match else [None] * 3
    if name == "raw":
        return Quality("raw", "raw", 0, 0)
    if crf and int(crf) <= 51:
        return Quality(name, "h264", int(crf), int(crf))
    if high and not 1 <= int(low) < int(high) <= 100:
        raise DfdetectError(
            f"{name}: not a range of JPEG qualities",
            "jA-B needs A below B, both from 1 to 100, for example j40-100",
        )
    if low and 1 <= int(low) <= 100:
        return Quality(name, "jpeg", int(low), int(high or low))
    raise DfdetectError(
        f"unknown quality {name!r}",
        "use raw, cNN (H.264, CRF 0 to 51), jNN (JPEG, quality 1 to 100) "
        "or jA-B (JPEG at a random quality per picture)",
    )


def parse_qualities(names: str | Iterable[str], ranges: bool = False) -> tuple[Quality, ...]:
    """`raw,c23,c40` -> three qualities, in the order given, each once.

    Errors: DfdetectError for an unknown name, for none at all, and for a range where `ranges` is
    not set: what is stored has one level.
    """
    parts = names.split(",") if isinstance(names, str) else names
    parsed = tuple(dict.fromkeys(parse_quality(part.strip()) for part in parts if part.strip()))
    if not parsed:
        raise DfdetectError("no quality given", "for example --qualities raw,c23,c40")
    for quality in parsed:
        if quality.is_range and not ranges:
            raise DfdetectError(
                f"{quality.name}: a stored quality needs one level",
                f"prepare raw, from which train and eval make {quality.name}, or name one level, "
                f"for example j{quality.level}",
            )
    return parsed


def ordered(names: Iterable[str]) -> list[str]:
    """raw first, then by codec and falling quality: raw, c23, c40, j90, j50; for people to read."""
    parsed = parse_qualities(names, ranges=True)
    key = lambda q: (_CODECS.index(q.codec), -q.level if q.codec == "jpeg" else q.level)  # noqa: E731
    return [q.name for q in sorted(parsed, key=key)]


def to_prepare(names: Iterable[str]) -> str:
    """What prepare has to store for these qualities, as its option takes it: JPEG needs raw."""
    parsed = parse_qualities(names, ranges=True)
    return ",".join(dict.fromkeys("raw" if q.codec == "jpeg" else q.name for q in parsed))


def jpeg_level(quality: Quality, sample_id: str, rng: np.random.Generator | None = None) -> int:
    """The JPEG quality of one picture: the level, or for a range a uniform draw from it.

    Without `rng` the draw is a function of `sample_id` alone, so a sample is scored at the same
    level in every run and beside whichever others.
    """
    n_levels = quality.level_to - quality.level + 1
    if n_levels == 1:
        return quality.level
    if rng is not None:
        return quality.level + int(rng.integers(n_levels))
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogateescape")).digest()
    return quality.level + int.from_bytes(digest[:8], "big") % n_levels


def jpeg_round_trip(image: np.ndarray, level: int) -> np.ndarray:
    """uint8 [H,W,3] RGB -> the same after JPEG at quality `level` (1..100), 4:2:0, and back; with
    libjpeg as OpenCV ships it."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, level]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, code = cv2.imencode(".jpg", bgr, options)
    return cv2.imdecode(code, cv2.IMREAD_COLOR_RGB)
