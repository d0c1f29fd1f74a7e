"""What every dataset file starts from: the user's options, CSV rows, lists of splits."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from dfdetect.errors import DfdetectError
from dfdetect.files import read_json
from dfdetect.manifest import SPLITS, SourceVideo


@dataclass(frozen=True)
class DatasetOptions:
    """What a user may say about a source: `splits` file or folder, column names, row filters;
    `identity_disjoint` drops an official split that shares people and deals them anew;
    `drop_cross_source` leaves out videos whose footage is in two official splits;
    `root` is the folder that the paths of an imported list start from."""

    splits: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    identity_disjoint: bool = False
    drop_cross_source: bool = False
    root: Path | None = None


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

    Errors: DfdetectError if it is neither, or names a split other than train, val and test.
    """
    if path.is_dir():
        return _json_splits(path)
    rows = read_csv(path)
    key = next((k for k in ("path", "identity") if rows and k in rows[0]), None)
    if key is None or "split" not in rows[0]:
        raise DfdetectError(
            f"{path}: not a list of splits", "it needs the columns path (or identity) and split"
        )
    splits = {row[key].strip(): row["split"].strip() for row in rows}
    if strange := sorted(set(splits.values()) - set(SPLITS)):
        raise DfdetectError(f"{path}: unknown split {strange[0]!r}", f"use {', '.join(SPLITS)}")
    return splits


def _json_splits(folder: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split in SPLITS:
        if not (folder / f"{split}.json").is_file():
            raise DfdetectError(f"{folder}: no {split}.json in it", "it needs one file per split")
        ids = read_json(folder / f"{split}.json")
        if not isinstance(ids, list) or not all(isinstance(i, str | list) for i in ids):
            raise DfdetectError(f"{folder / split}.json: not a list of ids or of pairs of ids")
        splits |= {
            str(i): split for entry in ids for i in ([entry] if isinstance(entry, str) else entry)
        }
    return splits


def text_of(path: PurePath) -> str:
    """A path as valid UTF-8 text: bytes that are none become \\udcXX, everything else stays."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()
