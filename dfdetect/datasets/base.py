"""What every dataset file starts from: the user's options, and CSV rows."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from dfdetect.errors import DfdetectError


@dataclass(frozen=True)
class DatasetOptions:
    """What a user may say about a source: `splits` file or folder, column names, row filters."""

    splits: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header, as dictionaries; a byte-order mark is ignored."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DfdetectError(f"{path}: cannot be read as a CSV table ({error})") from error


def text_of(path: PurePath) -> str:
    """A path as valid UTF-8 text: bytes that are none become \\udcXX, everything else stays."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()
