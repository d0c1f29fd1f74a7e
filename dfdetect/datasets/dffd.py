"""DFFD, the Diverse Fake Face Dataset (Dang et al., CVPR 2020): pictures, by subset or by label.

    <subset>/{train,validation,test}/**/*.png       as distributed; val is accepted too
    {train,eval,test}/{Real,Fake,Mask}/**/*.png     as the authors' code reads it
    _lists/{train,validation,test}_{real,fake}.txt  optional

ffhq, celeba* and youtube are real, every other subset is fake and a manipulation of its own. The
official split parts people. Frames of FaceForensics++ keep its ids, where their names show them.
"""

import re
from pathlib import Path, PurePosixPath

from dfdetect.datasets.base import (
    DatasetOptions,
    Listing,
    entries,
    folders_in,
    is_picture,
    stays_inside,
    text_of,
)
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SPLITS, SourceVideo
from dfdetect.video import media_below

NAME = "DFFD"
LEVELS = {"train": "train", "validation": "val", "val": "val", "eval": "val", "test": "test"}
"""Folder: split."""
REAL = r"ffhq|celeba.*|youtube"
KNOWN = r"faceapp|ffhq|celeba.*|pggan_v\d|stargan|stylegan_(celeba|ffhq)"
FROM_FFPP = ("youtube", "Deepfakes", "FaceSwap", "Face2Face")
HOME = "cvlab.cse.msu.edu"
EXPECTED = (
    "expected <subset>/{train,validation,test}/*.png, with ffhq, celeba and youtube as the reals, "
    "or {train,eval,test}/{Real,Fake,Mask}/*.png"
)


def looks_right(source: Path) -> bool:
    if _by_label(source):
        return True
    subsets = (f for f in folders_in(source) if re.fullmatch(KNOWN, f.name, re.IGNORECASE))
    return any((subset / level).is_dir() for subset in subsets for level in LEVELS)


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if neither tree is there, or a list contradicts the folders."""
    videos = _labelled(source) if _by_label(source) else _subsets(source)
    if not videos:
        raise DfdetectError(f"{source}: not a DFFD tree", f"{EXPECTED}; get it from {HOME}")
    found: dict[str, int] = {}
    for video in videos:
        part = "/".join(PurePosixPath(video.source).parts[:2])
        found[part] = found.get(part, 0) + 1
    missing = _missing(source, {video.source: video for video in videos})
    notes = []
    if not any(video.label for video in videos) or all(video.label for video in videos):
        notes.append("only one of real and fake is on the disk")
    named = {v.source.split("/")[0] for v in videos} & set(FROM_FFPP)
    if anonymous := {n for n in named if not _shows_ids(videos, n)}:
        notes.append(
            f"{', '.join(sorted(anonymous))}: names show no FaceForensics++ ids, so frames of one "
            "person cannot be kept together"
        )
    return Listing(videos, EXPECTED, HOME, found, missing, notes)


def _subsets(source: Path) -> list[SourceVideo]:
    videos = []
    for subset in folders_in(source):
        if subset.name in (*LEVELS, "_lists"):
            continue
        name = text_of(Path(subset.name))
        label = int(not re.fullmatch(REAL, name, re.IGNORECASE))
        for level, split in LEVELS.items():
            videos += [
                _picture(source, path, label, name if label else "real", split, name)
                for path in media_below(subset / level, whole=True)
                if is_picture(path.name) and path.parent.name.lower() not in ("mask", "masks")
            ]
    return videos


def _by_label(source: Path) -> bool:
    """Whether the tree is that of the authors' code: nothing else has eval/ or Mask/."""
    levels = [source / level for level in ("train", "eval", "test")]
    sides = any((level / "Real").is_dir() and (level / "Fake").is_dir() for level in levels)
    return sides and any(
        (level / "Mask").is_dir() or level.name == "eval" for level in levels if level.is_dir()
    )


def _labelled(source: Path) -> list[SourceVideo]:
    videos = []
    for level in ("train", "eval", "test"):
        for side, label in (("Real", 0), ("Fake", 1)):
            folder = source / level / side
            for path in media_below(folder, whole=True):
                if not is_picture(path.name):
                    continue
                inner = path.relative_to(folder)
                subset = text_of(Path(inner.parts[0])) if len(inner.parts) > 1 else "fake"
                mask = source / level / "Mask" / inner if label else None
                videos.append(
                    _picture(
                        source,
                        path,
                        label,
                        subset if label else "real",
                        LEVELS[level],
                        subset,
                        mask,
                    )
                )
    return videos


def _picture(
    source: Path,
    path: Path,
    label: int,
    manipulation: str,
    split: str,
    subset: str,
    mask: Path | None = None,
) -> SourceVideo:
    relative = text_of(path.relative_to(source))
    ids = _ffpp_ids(path, subset) if subset in FROM_FFPP else ()
    return SourceVideo(
        path=path,
        video_id=f"{NAME}/{relative}",
        label=label,
        dataset=NAME,
        manipulation=manipulation,
        identities=ids or (f"{NAME}/{relative}",),
        split=split,
        source=relative,
        mask=mask if mask and mask.is_file() else None,
    )


def _ffpp_ids(path: Path, subset: str) -> tuple[str, ...]:
    """(target, source) in `000_003_frame12.png`, `000_003/12.png` or `000/12.png`, else none.

    Two numbers of three digits are a pair only in a fake: in a real one the second is the frame.
    """
    pattern = r"(\d{3})(?!\d)" if subset == "youtube" else r"(\d{3})_(\d{3})(?!\d)"
    for name in (path.parent.name, path.stem):
        if match := re.match(pattern, name):
            return match.groups()
    return ()


def _shows_ids(videos: list[SourceVideo], subset: str) -> bool:
    ours = (v for v in videos if v.source.startswith(f"{subset}/"))
    return any(not identity.startswith(NAME) for v in ours for identity in v.identities)


def _missing(source: Path, on_disk: dict[str, SourceVideo]) -> dict[str, list[str]]:
    """What `_lists` names and the disk does not have.

    Errors: DfdetectError if a list calls a picture real and its folder calls it fake.
    """
    missing: dict[str, list[str]] = {}
    for path in entries(source / "_lists"):
        split, _, side = path.stem.rpartition("_")
        if LEVELS.get(split) not in SPLITS or side not in ("real", "fake"):
            continue
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DfdetectError(f"{path}: cannot be read ({error})", "restore it") from error
        for number, line in enumerate(lines, start=1):
            name = line.strip().removeprefix("./")
            if not name:
                continue
            if not stays_inside(name):
                raise DfdetectError(f"{path}, line {number}: {name!r} leaves the folder", "fix it")
            if name not in on_disk:
                missing.setdefault(f"_lists/{path.name}", []).append(name)
            elif on_disk[name].label != int(side == "fake"):
                raise DfdetectError(
                    f"{path}, line {number}: {name} is listed as {side} and lies among the others",
                    "restore the list, or the folder",
                )
    return missing
