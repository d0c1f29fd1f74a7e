"""What every dataset file starts from: the user's options, CSV rows, lists of splits, folders."""

import csv
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from dfdetect.errors import DfdetectError
from dfdetect.files import read_json
from dfdetect.manifest import SPLIT_FRACTIONS, SPLITS, SourceVideo
from dfdetect.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES


@dataclass(frozen=True)
class DatasetOptions:
    """What a user may say about a source: `splits` file or folder, column names, row filters;
    `identity_disjoint` drops an official split that shares people and deals them anew;
    `drop_cross_source` leaves out videos whose footage is in two official splits;
    `root` is the folder that the paths of an imported list start from; of the fakes only those of
    `manipulations` are listed, if any are named, and of the reals those of their datasets; no more
    than `limit` videos of each manipulation and split."""

    splits: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    identity_disjoint: bool = False
    drop_cross_source: bool = False
    root: Path | None = None
    manipulations: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class Listing:
    """What a dataset file found: its videos; the tree it `expected`, and `home`, where officially
    to get it; files `found` and names `missing` (listed, not on the disk) by part of the tree;
    `notes` on what was assumed or left out."""

    videos: list[SourceVideo]
    expected: str = ""
    home: str = ""
    found: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header, as dictionaries; a byte-order mark is ignored."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        cause = getattr(error, "strerror", None) or error
        raise DfdetectError(
            f"{path}: cannot be read as a CSV table ({cause})", "give a UTF-8 CSV with a header"
        ) from error


def read_splits(path: Path) -> dict[str, str]:
    """{source path or identity: split} from a CSV file or a folder of JSON files.

    The CSV has the columns `path` (or `identity`) and `split`; the folder holds train.json,
    val.json and test.json, each a list of ids or of pairs of ids, as FaceForensics++ ships them.

    Errors: DfdetectError if it is neither, names a split other than train, val and test, or gives
    one name two splits.
    """
    if path.is_dir():
        return _json_splits(path)
    rows = read_csv(path)
    key = next((k for k in ("path", "identity") if rows and k in rows[0]), None)
    if key is None or "split" not in rows[0]:
        raise DfdetectError(
            f"{path}: not a list of splits", "it needs the columns path (or identity) and split"
        )
    splits: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        name, split = (row[key] or "").strip(), (row["split"] or "").strip()
        if not name:
            raise DfdetectError(f"{path}, line {number}: no {key}", "complete the line")
        if split not in SPLITS:
            raise DfdetectError(
                f"{path}, line {number}: unknown split {split!r}", f"use {', '.join(SPLITS)}"
            )
        _put(splits, name, split, path)
    return splits


def _put(splits: dict[str, str], name: str, split: str, path: Path) -> None:
    """Errors: DfdetectError if `name` has another split already."""
    if (earlier := splits.setdefault(name, split)) != split:
        raise DfdetectError(
            f"{path}: {name} is listed as {earlier} and as {split}", "give it one split"
        )


def _json_splits(folder: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split in SPLITS:
        if not (folder / f"{split}.json").is_file():
            raise DfdetectError(f"{folder}: no {split}.json in it", "it needs one file per split")
        ids = read_json(folder / f"{split}.json")
        if not isinstance(ids, list) or not all(isinstance(i, str | list) for i in ids):
            raise DfdetectError(f"{folder / split}.json: not a list of ids or of pairs of ids")
        for entry in ids:
            for i in [entry] if isinstance(entry, str) else entry:
                _put(splits, str(i), split, folder)
    return splits


def text_of(path: PurePath) -> str:
    """A path as valid UTF-8 text: bytes that are none become \\udcXX, everything else stays."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


# --- folders and names -----------------------------------------------------------------------


def entries(folder: Path) -> list[Path]:
    """What lies in `folder`, sorted, hidden names left out; nothing if it is not a folder."""
    return [Path(folder, entry.name) for entry in _scan(folder)]


def folders_in(folder: Path) -> list[Path]:
    return [Path(folder, entry.name) for entry in _scan(folder) if entry.is_dir()]


def _scan(folder: Path) -> list[os.DirEntry]:
    """Errors: DfdetectError if the folder may not be read."""
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if e.name[0] != "."), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DfdetectError(f"{folder}: cannot be read ({error.strerror})") from error


def videos_in(folder: Path) -> list[Path]:
    """Videos of `folder`, or of the `videos/` in it, a level that some people insert."""
    inner = folder / "videos"
    names = entries(inner if inner.is_dir() else folder)
    return [name for name in names if name.suffix.lower() in VIDEO_SUFFIXES]


def is_picture(name: str) -> bool:
    """By its suffix; hidden names are none."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def in_frame_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted by number where the stems are numbers (2 before 10), by name where they are not."""

    def place(name: str) -> tuple[str, int, int, str]:
        path = PurePosixPath(name)
        number = int(path.stem) if path.stem.isdecimal() else None
        return str(path.parent), number is None, number or 0, path.name

    return tuple(sorted(names, key=place))


def stays_inside(name: str) -> bool:
    """Whether a path from a list or an archive is relative and never climbs with `..`."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts


# --- people ----------------------------------------------------------------------------------


def group_of(person: str) -> str:
    """train, val or test by a hash of the name alone: whatever else is on the disk."""
    share = int(hashlib.sha1(person.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) / 16**8
    if share < SPLIT_FRACTIONS["train"]:
        return "train"
    return "val" if share < SPLIT_FRACTIONS["train"] + SPLIT_FRACTIONS["val"] else "test"


def set_apart(videos: Sequence[SourceVideo]) -> list[SourceVideo]:
    """The videos whose people are all in one group of `group_of`.

    Where everybody was swapped with everybody, identities join all videos to one component that
    could only go to one split as a whole. Leaving out the fakes between groups parts them.
    """
    return [v for v in videos if len({group_of(person) for person in v.identities}) < 2]
