"""What every dataset file starts from: the user's options, media below a folder, CSV rows."""

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dfdetect.errors import DfdetectError
from dfdetect.video import MEDIA_SUFFIXES


@dataclass(frozen=True)
class DatasetOptions:
    """What a user may say about a source: `splits` file or folder, column names, row filters."""

    splits: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)


def media_below(root: Path) -> list[Path]:
    """Media files below `root`, by suffix, sorted; links to folders are not followed."""
    found = []
    for parent, folders, names in os.walk(root):
        folders.sort()
        found += [Path(parent, n) for n in names if Path(n).suffix.lower() in MEDIA_SUFFIXES]
    return sorted(found)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header, as dictionaries; a byte-order mark is ignored."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DfdetectError(f"{path}: cannot be read as a CSV table ({error})") from error
