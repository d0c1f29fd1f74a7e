"""DF40 (Yan et al., NeurIPS 2024): 40 methods, as face crops of 256 px made by DeepfakeBench.

    <method>/{ff,cdf}/**/<video>/<frame>.png      31 methods, on FaceForensics++ and Celeb-DF
    <method>/{fake,real}/**                       the others, with reals of their own

A folder that holds pictures is a video; pictures that lie directly in one of the folders above are
single pictures. Crops are taken as they are, and all of it is test: val equals test in DF40, and
what it trains on is only said by its JSON files.
"""

import re
from collections import defaultdict
from pathlib import Path

from dfdetect.datasets.base import (
    DatasetOptions,
    Listing,
    folders_in,
    in_frame_order,
    is_picture,
    text_of,
)
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SourceVideo
from dfdetect.video import media_below

NAME = "DF40"
DOMAINS = {"ff": 1, "cdf": 1, "fake": 1, "real": 0}
"""Folder of a method: label. What lies below does not matter: cdf/Celeb-real/ holds fakes."""
SINGLES = (*DOMAINS, "inversions", "images", "frames", "Celeb-real", "YouTube-real")
"""Folders whose pictures are no frames of one video."""
NO_FACES = ("masks", "mask", "landmarks")
HOME = "github.com/YZY-stack/DF40"
EXPECTED = "expected <method>/{ff,cdf}/**/<video>/<frame>.png and <method>/{fake,real}/**"


def looks_right(source: Path) -> bool:
    return any(
        (method / domain).is_dir() for method in _methods(source) for domain in ("ff", "cdf")
    )


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if no method's folder is there."""
    videos: list[SourceVideo] = []
    found = {}
    for method in _methods(source):
        for domain, label in DOMAINS.items():
            name = text_of(Path(method.name))
            if ours := _videos(source, method / domain, name, domain, label):
                found[f"{name}/{domain}"] = len(ours)
            videos += ours
    if not videos:
        raise DfdetectError(f"{source}: not a DF40 tree", f"{EXPECTED}; get it from {HOME}")
    notes = ["crops of 256 px as shipped: found, cut and encoded by others than in other datasets"]
    notes.append("all of it is test")
    root = _root(source)
    if root.name == "test" and (root.parent / "train").is_dir():
        notes.append("train/ is left out")
    lone = sorted({v.manipulation for v in videos if v.label and "/fake/" not in v.video_id})
    if lone:
        notes.append(
            f"the reals of {', '.join(lone[:3])}{' ...' if len(lone) > 3 else ''} are downloads of "
            "their own: prepare FaceForensics++ or Celeb-DF beside it"
        )
    return Listing(videos, EXPECTED, HOME, found, {}, notes)


def _root(source: Path) -> Path:
    """The folder that holds the methods: the source, its DF40/, or the test part of either."""
    for place in (source / "DF40" / "test", source / "DF40", source / "test"):
        if _methods_in(place):
            return place
    return source


def _methods(source: Path) -> list[Path]:
    return _methods_in(_root(source))


def _methods_in(place: Path) -> list[Path]:
    folders = (f for f in folders_in(place) if f.name not in DOMAINS)
    return [f for f in folders if any((f / domain).is_dir() for domain in DOMAINS)]


def _videos(source: Path, folder: Path, method: str, domain: str, label: int) -> list[SourceVideo]:
    frames: dict[Path, list[str]] = defaultdict(list)
    for path in media_below(folder, whole=True):
        if is_picture(path.name) and not set(NO_FACES) & set(path.relative_to(folder).parts):
            frames[path.parent].append(path.name)
    videos = []
    for place, names in sorted(frames.items()):
        single = place.name in SINGLES
        for group in [(name,) for name in sorted(names)] if single else [in_frame_order(names)]:
            path = place / group[0] if single else place
            inner = text_of(path.relative_to(folder))
            videos.append(
                SourceVideo(
                    path=place,
                    video_id=f"{NAME}/{method}/{domain}/{inner}",
                    label=label,
                    dataset=NAME,
                    manipulation=method if label else "real",
                    identities=_people(domain, path.name) or (f"{NAME}/{method}/{domain}/{inner}",),
                    split="test",
                    source=text_of(path.relative_to(source)),
                    crops={"raw": group},
                )
            )
    return videos


def _people(domain: str, name: str) -> tuple[str, ...]:
    """(target, source) of FaceForensics++ or Celeb-DF, as those datasets name them."""
    if domain == "ff" and (match := re.match(r"(\d{3})(?:_(\d{3}))?(?!\d)", name)):
        return tuple(filter(None, match.groups()))
    return tuple(re.findall(r"id\d+(?=_)", name)) if domain == "cdf" else ()
