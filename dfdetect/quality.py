"""Quality names, parsed: `raw`, `c23` (H.264 at CRF 23), `j75` (JPEG at quality 75), `j40-100`.

H.264 works between frames, so prepare makes `cNN` of whole videos. All others are made of one raw
crop (corruptions.py): JPEG is the same pixels whether prepare stored them or train and eval make
them as they load; `jA-B` (one quality in A..B per picture), `crfNN`, `scaleF`, `blurS` and
`noiseS` are never stored.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from dfdetect.errors import DfdetectError


class Kind(NamedTuple):
    """What can be done to a picture, and how hard: levels `lowest`..`highest`, only `whole` ones or
    with up to four decimals. `untouched` is the level that would leave the picture as it is, where
    there is one; it is no quality of its own."""

    prefix: str
    lowest: float
    highest: float
    whole: bool
    worse_upwards: bool
    untouched: float | None
    meaning: str


KINDS = {
    "h264": Kind("c", 0, 51, True, True, None, "H.264 of the video, CRF 0 to 51"),
    "crf": Kind("crf", 0, 51, True, True, None, "H.264 of the crop alone, CRF 0 to 51"),
    "jpeg": Kind("j", 1, 100, True, False, None, "JPEG, quality 1 to 100"),
    "scale": Kind(
        "scale", 0.01, 0.9999, False, False, 1, "smaller and back, 0.01 to 0.9999 of the side"
    ),
    "blur": Kind("blur", 0.1, 64, False, True, 0, "Gaussian blur, sigma 0.1 to 64 px"),
    "noise": Kind("noise", 0.1, 255, False, True, 0, "Gaussian noise, std 0.1 to 255 of 255"),
}
"""Every kind but raw, in the order in which people read them."""
STORED = ("raw", "h264", "jpeg")
"""What prepare writes."""
_NUMBER = r"((?:0|[1-9][0-9]{0,2})(?:\.[0-9]{0,3}[1-9])?)"  # no needless zeros: one name each


class Quality(NamedTuple):
    """One level of degradation. `kind` is raw or one of KINDS; `level` its CRF, JPEG quality,
    factor, sigma or standard deviation, or the lowest of a range, whose highest is `level_to`."""

    name: str
    kind: str
    level: float
    level_to: float

    @property
    def is_range(self) -> bool:
        return self.level < self.level_to

    def covers(self, other: "Quality") -> bool:
        """Whether every picture at `other` could also be one at this quality."""
        return (
            self.kind == other.kind
            and self.level <= other.level
            and other.level_to <= self.level_to
        )


def parse_quality(name: str) -> Quality:
    """`c23` -> Quality('c23', 'h264', 23, 23), `j40-100` -> Quality('j40-100', 'jpeg', 40, 100).

    Errors: DfdetectError for anything else, naming the rule that it breaks.
    """
    if name == "raw":
        return Quality("raw", "raw", 0, 0)
    match = re.fullmatch(rf"([a-z]+){_NUMBER}(?:-{_NUMBER})?", name)
    prefix, low, high = match.groups() if match else [""] * 3
    for kind, (of_kind, lowest, highest, whole, *_) in KINDS.items():
        if prefix != of_kind or (whole and "." in name) or (high and kind != "jpeg"):
            continue
        number = int if whole else float
        level, level_to = number(low), number(high or low)
        if high and not lowest <= level < level_to <= highest:
            raise DfdetectError(
                f"{name}: not a range of JPEG qualities",
                "jA-B needs A below B, both from 1 to 100, for example j40-100",
            )
        if lowest <= level <= highest:
            return Quality(name, kind, level, level_to)
    rules = {k.prefix: f"{k.prefix}{'NN' if k.whole else 'X'}: {k.meaning}" for k in KINDS.values()}
    rules["j"] += ", jA-B: at one in A..B per picture"
    written = re.match("[a-z]*", name)[0]
    hint = rules.get(written) or f"use raw; {'; '.join(rules.values())}"
    raise DfdetectError(f"unknown quality {name!r}", f"{hint}; numbers without needless zeros")


def quality_at(kind: str, level: float) -> Quality:
    """A kind at a level, raw where that leaves the picture as it is. Errors: as `parse_quality`."""
    known = KINDS[kind]
    return parse_quality("raw" if level == known.untouched else f"{known.prefix}{level:.10g}")


def parse_qualities(names: str | Iterable[str], made: bool = False) -> tuple[Quality, ...]:
    """`raw,c23,c40` -> three qualities, in the order given, each once.

    Errors: DfdetectError for an unknown name, for none at all, and where those that are `made` as
    crops are loaded do not count, for one that is never stored.
    """
    parts = names.split(",") if isinstance(names, str) else names
    parsed = tuple(dict.fromkeys(parse_quality(part.strip()) for part in parts if part.strip()))
    if not parsed:
        raise DfdetectError("no quality given", "for example --qualities raw,c23,c40")
    for quality in () if made else parsed:
        hint = f"prepare raw, from which train and eval make {quality.name}"
        if quality.is_range:
            raise DfdetectError(
                f"{quality.name}: a stored quality needs one level",
                f"{hint}, or name one level, for example j{quality.level}",
            )
        if quality.kind not in STORED:
            of_videos = f"; c{quality.level} is H.264 of the whole video"
            raise DfdetectError(
                f"{quality.name} is never stored", hint + of_videos * (quality.kind == "crf")
            )
    return parsed


def ordered(names: Iterable[str]) -> list[str]:
    """raw first, then by kind from best to worst: raw, c23, c40, j90, j50; for people to read."""
    return [q.name for q in sorted(parse_qualities(names, made=True), key=_severity)]


def to_prepare(names: Iterable[str]) -> str:
    """What prepare has to store for these qualities, as its option takes it: all but H.264 of whole
    videos is made of raw."""
    parsed = parse_qualities(names, made=True)
    return ",".join(dict.fromkeys(q.name if q.kind == "h264" else "raw" for q in parsed))


def _severity(quality: Quality) -> tuple[int, float]:
    if quality.kind == "raw":
        return -1, 0.0
    kind = KINDS[quality.kind]
    return list(KINDS).index(quality.kind), quality.level * (1 if kind.worse_upwards else -1)
