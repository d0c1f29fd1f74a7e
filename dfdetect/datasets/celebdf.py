"""Celeb-DF v2 (Li et al., CVPR 2020), its official tree and its list of test videos.

    Celeb-real/idA_NNNN.mp4  YouTube-real/NNNNN.mp4  Celeb-synthesis/idA_idB_NNNN.mp4
    List_of_testing_videos.txt      lines of `<flag> <folder>/<file>`, where 1 is REAL and 0 is fake

A `videos/` level in the folders is accepted. idA is whose video it is, idB whose face was put in.
The official split is by video: nearly everybody of the test list is in other videos too.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dfdetect.datasets.base import (
    DatasetOptions,
    Listing,
    group_of,
    set_apart,
    stays_inside,
    text_of,
    videos_in,
)
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SourceVideo

NAME = "Celeb-DF-v2"
FOLDERS = {"Celeb-real": 0, "YouTube-real": 0, "Celeb-synthesis": 1}
OTHER_SPELLINGS = {"YouTube-real": "Youtube-real"}
LIST = "List_of_testing_videos.txt"
HOME = "github.com/yuezunli/celeb-deepfakeforensics"
EXPECTED = (
    f"expected Celeb-real/*.mp4, YouTube-real/*.mp4, Celeb-synthesis/*.mp4 and {LIST} "
    "(a videos/ level in the folders is fine)"
)


def looks_right(source: Path) -> bool:
    return any((source / folder).is_dir() for folder in ("Celeb-real", "Celeb-synthesis"))


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if the tree is not there, or a line of the list is unreadable or
    flags a video otherwise than its folder does."""
    videos = [video for folder in FOLDERS for video in _videos(source, folder)]
    if not videos:
        raise DfdetectError(f"{source}: not a Celeb-DF tree", f"{EXPECTED}; get it from {HOME}")
    found = {folder: sum(v.video_id.split("/")[1] == folder for v in videos) for folder in FOLDERS}
    if options.identity_disjoint:
        kept = set_apart(videos)
        note = f"people are dealt anew; {len(videos) - len(kept)} fakes of two groups are left out"
        return Listing(kept, EXPECTED, HOME, found, {}, [note])
    if not (source / LIST).is_file():
        note = f"{LIST} is absent: nothing says which videos are test"
        return Listing(videos, EXPECTED, HOME, found, {LIST: [LIST]}, [note])
    listed = _read_list(source / LIST)
    on_disk = {video.video_id for video in videos}
    missing = {
        folder: sorted(i.split("/")[2] for i in listed - on_disk if i.split("/")[1] == folder)
        for folder in FOLDERS
    }
    notes = [
        "the official test list shares people with the other videos: --allow-identity-overlap "
        "keeps it, --identity-disjoint deals people anew",
        "there is no official val: a seventh of the people, by target, is taken from the training "
        "videos",
    ]
    return Listing(
        _with_splits(videos, listed),
        EXPECTED,
        HOME,
        found,
        {folder: names for folder, names in missing.items() if names},
        notes,
    )


def _videos(source: Path, folder: str) -> list[SourceVideo]:
    place = source / folder
    if not place.is_dir():
        place = source / OTHER_SPELLINGS.get(folder, folder)
    return [
        SourceVideo(
            path=path,
            video_id=f"{NAME}/{folder}/{text_of(Path(path.stem))}",
            label=FOLDERS[folder],
            dataset=NAME,
            manipulation=folder if FOLDERS[folder] else "real",
            identities=_people(folder, text_of(Path(path.stem))),
            source=text_of(path.relative_to(source)),
        )
        for path in videos_in(place)
    ]


def _people(folder: str, stem: str) -> tuple[str, ...]:
    """(idA,), (idA, idB); everybody of YouTube-real is there once."""
    ids = tuple(re.findall(r"id\d+(?=_)", stem)) if folder != "YouTube-real" else ()
    return ids or (f"{folder}/{stem}",)


def _read_list(path: Path) -> set[str]:
    """Video ids of the official test list."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DfdetectError(f"{path}: cannot be read ({error})", f"get it from {HOME}") from error
    labels = {name.lower(): label for name, label in FOLDERS.items()}
    names = {name.lower(): name for name in FOLDERS}
    listed = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        flag, _, name = line.strip().partition(" ")
        name = name.strip().replace("\\", "/")
        folder = name.split("/")[0].lower()
        if flag not in ("0", "1") or folder not in labels or not stays_inside(name):
            raise DfdetectError(
                f"{path}, line {number}: {line.strip()!r} is not a flag and a video",
                f"restore the list from {HOME}",
            )
        if labels[folder] != 1 - int(flag):
            raise DfdetectError(
                f"{path}, line {number}: {name} has flag {flag} and lies in {names[folder]}",
                "in this list 1 is real and 0 is fake; restore it",
            )
        listed.add(f"{NAME}/{names[folder]}/{Path(name).stem}")
    return listed


def _with_splits(videos: Sequence[SourceVideo], listed: set[str]) -> list[SourceVideo]:
    """The listed ones are test, all others train or val, by the person whose video it is."""

    def split(video: SourceVideo) -> str:
        if video.video_id in listed:
            return "test"
        return "val" if group_of(video.identities[0]) == "val" else "train"

    return [replace(video, split=split(video)) for video in videos]
