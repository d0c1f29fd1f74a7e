"""Whether a model has seen the people, the videos or the files that it is measured on.

What a model was trained on is in the folders that its run names, as long as they are there.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from dfdetect.audit import person
from dfdetect.checkpoint import Checkpoint, CheckpointInfo
from dfdetect.files import read_json
from dfdetect.manifest import fingerprint, read_samples, read_table
from dfdetect.presets import check_preset
from dfdetect.training_data import rows_used

Row = Mapping[str, Any]


class Traces(NamedTuple):
    """Names of what is among some rows: people, videos, and how the hashes of their files begin."""

    people: set[str]
    videos: set[str]
    files: set[str]


def traces(folders: Sequence[Path], chosen: Callable[[Row], bool]) -> Traces:
    """Of the rows of prepared folders that are `chosen`. One name in one dataset is one person, or
    video, whichever folder it is in."""
    found = Traces(set(), set(), set())
    for folder in folders:
        columns = ["dataset", "video_id", "identities", "split", "source_sha256"]
        for row in read_table(folder, columns).to_pylist():
            if chosen(row):
                found.people.update(person(row["dataset"], i) for i in row["identities"] or ())
                found.videos.add(video_of(row))
                found.files.update({(row["source_sha256"] or "")[:12]} - {""})
    return found


def video_of(row: Row) -> str:
    return f"{row['dataset']}/{row['video_id']}"


def of_split(split: str) -> Callable[[Row], bool]:
    return lambda row: row["split"] == split


def trained_folders(run: Path, trained_on: str) -> list[Path]:
    """Of a run on data of that fingerprint; empty if it is another run, or they are gone."""
    about = read_json(run / "run.json") if (run / "run.json").exists() else {}
    folders = [Path(name) for name in about.get("data", [])]
    if about.get("fingerprint") != trained_on:
        return []
    return folders if all((folder / "manifest").is_dir() for folder in folders) else []


def what_trained(checkpoint: Checkpoint, data: Sequence[Path]) -> list[Path]:
    """The folders that the model was trained on: the `data` if its fingerprint is theirs, else
    those that its run names; empty if they are gone."""
    trained_on = checkpoint.info.data.get("fingerprint", "")
    if fingerprint_of(checkpoint.info, data) == trained_on:
        return list(data)
    return trained_folders(checkpoint.path.parent, trained_on)


def fingerprint_of(info: CheckpointInfo, data: Sequence[Path]) -> str:
    """What training would have recorded of this data."""
    preset = check_preset(info.preset, "the model's preset")
    rows = [
        row
        for i, folder in enumerate(data)
        for row in rows_used(read_samples(folder, prefix=f"{i}:" * (len(data) > 1)), preset)
        if not (row.label and any(fnmatchcase(row.manipulation, p) for p in preset.leave_out))
    ]
    return fingerprint(rows)


def shared(here: Traces, there: Traces) -> str:
    """What is in both, in words; empty if nothing."""
    both = {
        name: sorted(mine & theirs)
        for name, mine, theirs in zip(Traces._fields, here, there, strict=True)
        if mine & theirs
    }
    one = {"people": "person", "videos": "video", "files": "file"}
    return "; ".join(
        f"{len(names)} {one[kind] if len(names) == 1 else kind}: {', '.join(names[:3])}"
        f"{', ...' if len(names) > 3 else ''}"
        for kind, names in both.items()
    )
