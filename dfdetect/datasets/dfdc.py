"""DFDC (Dolhansky et al., 2020): 50 training parts, each with its metadata, and the test set.

    dfdc_train_part_<0..49>/{*.mp4, metadata.json}     {"x.mp4": {"label": "FAKE", "original": ...}}
    test/{videos/*.mp4, labels.csv}                    filename,label with 1 for fake

There is no official split of the parts. As Bonettini et al. (ICPR 2020) do, 0 to 34 are train, 35
to 39 val, 40 to 49 test. A fake carries the identity of its original. `train_sample_videos` of the
challenge is TRAINING data and never a test set.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from dfdetect.datasets.base import (
    DatasetOptions,
    Listing,
    entries,
    folders_in,
    read_csv,
    stays_inside,
    text_of,
)
from dfdetect.errors import DfdetectError
from dfdetect.files import read_json
from dfdetect.manifest import SourceVideo
from dfdetect.video import VIDEO_SUFFIXES

NAME = "DFDC"
SAMPLE = "train_sample_videos"
HOME = "ai.meta.com/datasets/dfdc"
EXPECTED = "expected dfdc_train_part_<N>/{*.mp4, metadata.json} and test/{videos/*.mp4, labels.csv}"


def looks_right(source: Path) -> bool:
    return bool(_parts(source)) or any(map(_looks_like_test, _test_lists(source)))


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if no part is there, or metadata holds no REAL or FAKE for a video."""
    parts, tests = _parts(source), _test_lists(source)
    if not parts and not tests:
        raise DfdetectError(f"{source}: not a DFDC tree", f"{EXPECTED}; get it from {HOME}")
    videos: list[SourceVideo] = []
    found, missing, notes = {}, {}, []
    for part in parts:
        name, split = part.resolve().name, _split_of(part)
        labels = _read_metadata(part / "metadata.json")
        on_disk = {p.name: p for p in entries(part) if p.suffix.lower() in VIDEO_SUFFIXES}
        for file, (label, original) in labels.items():
            if file in on_disk:
                videos.append(_video(source, on_disk[file], name, label, original, split))
        found[name] = len(on_disk.keys() & labels.keys())
        _compare(name, labels, on_disk, missing, notes)
        if name == SAMPLE:
            notes.append(f"{SAMPLE} is a part of the training data: all of it is train")
    for list_ in tests:
        folder = list_.parent / "videos" if (list_.parent / "videos").is_dir() else list_.parent
        labels = _read_labels(list_)
        on_disk = {p.name: p for p in entries(folder) if p.suffix.lower() in VIDEO_SUFFIXES}
        for file, label in labels.items():
            if file in on_disk:
                videos.append(_video(source, on_disk[file], "test", label, file, "test"))
        found["test"] = len(on_disk.keys() & labels.keys())
        _compare("test", labels, on_disk, missing, notes)
    if any(_number(part) is not None for part in parts):
        notes.append("training parts 0 to 34 are train, 35 to 39 val, 40 to 49 test (no official)")
    notes.append(
        "DFDC does not say who is in a video: only fakes and their originals stay together"
    )
    return Listing(videos, EXPECTED, HOME, found, missing, notes)


def _video(
    source: Path, path: Path, part: str, label: int, original: str, split: str
) -> SourceVideo:
    stem = text_of(Path(path.stem))
    return SourceVideo(
        path=path,
        video_id=f"{NAME}/{part}/{stem}",
        label=label,
        dataset=NAME,
        manipulation=NAME if label else "real",
        identities=(f"{NAME}/{PurePosixPath(original).stem}",),
        split=split,
        source=text_of(path.relative_to(source)),
    )


def _compare(
    part: str,
    listed: Mapping[str, object],
    on_disk: Mapping[str, Path],
    missing: dict[str, list[str]],
    notes: list[str],
) -> None:
    if absent := sorted(listed.keys() - on_disk.keys()):
        missing[part] = absent
    if strangers := sorted(text_of(Path(n)) for n in on_disk.keys() - listed.keys()):
        notes.append(f"{part}: {len(strangers)} videos without a label, first {strangers[0]}")


# --- where the parts are ---------------------------------------------------------------------


def _parts(source: Path) -> list[Path]:
    """Folders with metadata.json that are a part by their name: the source, in it, in its train/,
    or in a folder of the same name, as some archives unpack."""
    near = folders_in(source)
    inner = (i for f in near if f.name == "train" or _is_part(f) for i in folders_in(f))
    parts = [p for p in (source, *near, *inner) if _is_part(p) and (p / "metadata.json").is_file()]
    return sorted(parts, key=lambda part: _number(part) or 0)


def _is_part(folder: Path) -> bool:
    return _number(folder) is not None or folder.resolve().name == SAMPLE


def _number(part: Path) -> int | None:
    match = re.fullmatch(r"dfdc_train_part_0*(\d+)", part.resolve().name)
    return int(match[1]) if match else None


def _split_of(part: Path) -> str:
    number = _number(part) or 0
    return "train" if number < 35 else "val" if number < 40 else "test"


def _test_lists(source: Path) -> list[Path]:
    """labels.csv of the test set, in the source or its test/."""
    usual = (source / "test" / "labels.csv", source / "labels.csv")
    return [path for path in usual if path.is_file()][:1]


def _looks_like_test(path: Path) -> bool:
    """Whether a labels.csv is that of the test set, and not anybody's: by header and videos/."""
    try:
        with path.open("rb") as file:
            header = file.readline(4096).decode("utf-8-sig", "replace")
    except OSError:
        return False
    columns = {name.strip().strip('"') for name in header.split(",")}
    return {"filename", "label"} <= columns and (path.parent / "videos").is_dir()


# --- what their lists say --------------------------------------------------------------------


def _read_metadata(path: Path) -> dict[str, tuple[int, str]]:
    """{file: (label, original)}; a real video is its own original."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DfdetectError(f"{path}: not a table of videos", f"restore it from {HOME}")
    labels = {}
    for file, facts in content.items():
        label = facts.get("label") if isinstance(facts, dict) else None
        if label not in ("REAL", "FAKE") or not stays_inside(file):
            raise DfdetectError(
                f"{path}: {file} has label {label!r}",
                f"use REAL or FAKE, or restore it from {HOME}",
            )
        labels[file] = (int(label == "FAKE"), str(facts.get("original") or file))
    return labels


def _read_labels(path: Path) -> dict[str, int]:
    rows = read_csv(path)
    if not rows or not {"filename", "label"} <= rows[0].keys():
        raise DfdetectError(f"{path}: no columns filename and label", f"restore it from {HOME}")
    for number, row in enumerate(rows, start=2):
        if row["label"] not in ("0", "1"):
            raise DfdetectError(
                f"{path}, line {number}: label {row['label']!r}", "use 0 for real and 1 for fake"
            )
        if not row["filename"]:
            raise DfdetectError(f"{path}, line {number}: no filename", f"restore it from {HOME}")
    return {row["filename"]: int(row["label"]) for row in rows}
