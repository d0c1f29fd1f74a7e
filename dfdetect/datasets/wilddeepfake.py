"""WildDeepfake (Zi et al., ACM MM 2020): face crops of 224 px from the internet, and no videos.

    {real,fake}_{train,test}/<n>.tar.gz     holding <n>/{real|fake}/<sequence>/<frame>.png
    {real,fake}_{train,test}/<n>/...        the same, unpacked

A sequence is one video here, and its frames are crops that are taken as they are: they cannot be
aligned again or encoded as a stream. Only the test part is listed. Archives are read, not
unpacked.
"""

import re
import tarfile
import zlib
from collections import defaultdict
from pathlib import Path, PurePosixPath

from dfdetect.datasets.base import (
    DatasetOptions,
    Listing,
    entries,
    in_frame_order,
    is_picture,
    stays_inside,
    text_of,
)
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SourceVideo
from dfdetect.video import media_below

NAME = "WildDeepfake"
PARTS = {"real_test": 0, "fake_test": 1}
LEFT_OUT = ("real_train", "fake_train")
ARCHIVE = r"(.+)\.(tar|tar\.gz|tgz)"
HOME = "huggingface.co/datasets/xingjunm/WildDeepfake"
EXPECTED = "expected {real,fake}_test/<n>.tar.gz, or unpacked as {real,fake}_test/<n>/**/*.png"


def looks_right(source: Path) -> bool:
    return any((_root(source) / part).is_dir() for part in PARTS)


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if the test part is absent, an archive is damaged or names a file
    outside itself, or a sequence lies in real/ below fake_test or the other way round."""
    root = _root(source)
    videos: list[SourceVideo] = []
    found = {}
    for part, label in PARTS.items():
        before = len(videos)
        for name, place in _places(root / part).items():
            sequences = _in_archive(place) if place.is_file() else _in_folder(place)
            for sequence, frames in sequences.items():
                videos.append(_video(source, place, name, sequence, frames, label))
        found[part] = len(videos) - before
    if not videos:
        raise DfdetectError(f"{source}: not a WildDeepfake tree", f"{EXPECTED}; get it from {HOME}")
    notes = ["crops of 224 px as shipped: found, cut and encoded by others than in other datasets"]
    if left_out := [part for part in LEFT_OUT if (root / part).is_dir()]:
        notes.append(f"{' and '.join(left_out)} left out: this is a test set here")
    if absent := [part for part in PARTS if not found[part]]:
        notes.append(f"{' and '.join(absent)} absent: only one of real and fake is there")
    return Listing(videos, EXPECTED, HOME, found, {}, notes)


def _root(source: Path) -> Path:
    inner = source / "deepfake_in_the_wild"
    return inner if inner.is_dir() else source


def _places(part: Path) -> dict[str, Path]:
    """{n: archive or folder}; where both are there the archive counts, as it is whole."""
    places = {}
    for path in entries(part):
        archive = re.fullmatch(ARCHIVE, path.name)
        if archive and path.is_file():
            places[archive[1]] = path
        elif path.is_dir():
            places.setdefault(path.name, path)
    return places


def _in_archive(path: Path) -> dict[str, list[str]]:
    """{folder of a sequence: its members} from the table of a tar archive; nothing is unpacked.

    Links and other odd members are passed over.
    """
    sequences: dict[str, list[str]] = defaultdict(list)
    try:
        with tarfile.open(path, "r") as archive:
            for member in archive:
                if not stays_inside(member.name):
                    raise DfdetectError(
                        f"{path}: holds a file outside itself, {text_of(Path(member.name))}",
                        f"get it from {HOME}",
                    )
                if member.isreg() and is_picture(member.name):
                    sequences[str(PurePosixPath(member.name).parent)].append(member.name)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DfdetectError(
            f"{path}: not a whole tar archive ({error})", "fetch it again, or move it away"
        ) from error
    return dict(sequences)


def _in_folder(path: Path) -> dict[str, list[str]]:
    """{folder of a sequence below `path`: names of its pictures}."""
    sequences: dict[str, list[str]] = defaultdict(list)
    for picture in media_below(path, whole=True):
        if is_picture(picture.name):
            sequences[picture.parent.relative_to(path).as_posix()].append(picture.name)
    return dict(sequences)


def _video(
    source: Path, place: Path, name: str, sequence: str, frames: list[str], label: int
) -> SourceVideo:
    """`place` is the archive or the folder that holds the sequence."""
    steps = [text_of(Path(step)) for step in PurePosixPath(sequence).parts]
    inner = steps[1:] if steps[:1] == [name] else steps
    if inner[:1] == ["real" if label else "fake"]:
        raise DfdetectError(
            f"{place}: {sequence} is {inner[0]}, its archive lies in {place.parent.name}",
            f"restore the tree from {HOME}",
        )
    inner = inner[1:] if inner[:1] in (["real"], ["fake"]) else inner
    kind = NAME if label else "real"
    path = place if place.is_file() else place / sequence
    return SourceVideo(
        path=path,
        video_id="/".join([NAME, kind, text_of(Path(name)), *inner]),
        label=label,
        dataset=NAME,
        manipulation=kind,
        identities=(f"{NAME}/{kind}/{text_of(Path(name))}",),
        split="test",
        source="/".join([text_of(place.relative_to(source)), *steps]),
        crops={"raw": in_frame_order(frames)},
    )
