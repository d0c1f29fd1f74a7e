"""Results of many inputs in one growing file: a JSON object per line, whole lines only.

A run that is repeated finds what the file holds by the content of an input and all that decides its
verdict, so nothing is decoded twice, wherever it lies and whatever it is called by now.
"""

import csv
import fcntl
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from dfdetect.errors import DfdetectError, ExitCode, cell
from dfdetect.files import cannot_write
from dfdetect.video import content_sha256

Record = dict[str, Any]
COLUMNS = (
    "input", "call", "score", "threshold", "people", "sha256", "bytes", "experimental", "reasons",
    "warnings", "error",
)  # fmt: skip


class _Place(NamedTuple):
    """Where a line lies in the file."""

    offset: int
    n_bytes: int


class Records:
    """A file of results, held for this process alone while its `with` block lasts.

    Lines of other settings stay as they are and count for nothing.
    """

    def __init__(self, path: Path, settings_sha256: str, retry_failed: bool = False) -> None:
        """With `retry_failed`, errors are taken out of the file.

        Errors: DfdetectError if the file is not one of results, and with ExitCode.ENVIRONMENT if
        another run is writing it or it cannot be written.
        """
        self._path, self._settings = path, settings_sha256
        self._of_input: dict[tuple[str, str | None], _Place] = {}
        self._of_content: dict[str, _Place] = {}
        self._file = _opened(path)
        try:
            self._read(retry_failed)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *raised: Any) -> None:
        with suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def missing(
        self, inputs: Iterable[Path], on_held: Callable[[Path, Record], None]
    ) -> Iterator[Path]:
        """The inputs without a result; `on_held(path, record)` for each of the others. A file that
        is held under another name gets a line of its own, without being scanned again."""
        for path in inputs:
            sha256, name = _sha256(path), readable(str(path))
            place = self._of_input.get((name, sha256))
            if place is None and sha256 in self._of_content:
                self.add(self._at(self._of_content[sha256]) | {"input": name})
                place = self._of_input[name, sha256]
            if place is None:
                yield path
            else:
                on_held(path, self._at(place))

    def add(self, record: Record) -> None:
        """Append one line, whole or not at all.

        Errors: DfdetectError with ExitCode.ENVIRONMENT when the disk is full.
        """
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            _write(self._file, line)
        except BaseException as error:  # Ctrl-C in the middle of a line, too
            with suppress(OSError):
                self._file.truncate(end)
            if isinstance(error, OSError):
                raise cannot_write(self._path, error) from error
            raise
        self._note(record, _Place(end, len(line)))

    def _note(self, record: Record, place: _Place) -> None:
        if record["settings_sha256"] == self._settings:
            self._of_input[record["input"], record["sha256"]] = place
            if "error" not in record:
                self._of_content[record["sha256"]] = place

    def _at(self, place: _Place) -> Record:
        return json.loads(os.pread(self._file.fileno(), place.n_bytes, place.offset))

    def _read(self, retry_failed: bool) -> None:
        """Notes every line; a last one that is torn, and errors to be retried, are removed."""
        failed, end = False, 0
        for number, line in enumerate(_lines(self._file), 1):
            if not line.endswith(b"\n"):
                self._file.truncate(end)
                break
            record = self._parsed(line, number)
            if retry_failed and self._is_failure(record):
                failed = True
            else:
                self._note(record, _Place(end, len(line)))
            end += len(line)
        if failed:
            self._without_errors()
            self._of_input.clear()
            self._of_content.clear()
            self._read(retry_failed=False)

    def _parsed(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
            if {"input", "sha256", "settings_sha256"} <= record.keys():
                return record
        except (ValueError, RecursionError, AttributeError):
            pass
        raise DfdetectError(
            f"{self._path}: line {number} is not a result of scan", "choose another --out"
        )

    def _is_failure(self, record: Record) -> bool:
        return "error" in record and record["settings_sha256"] == self._settings

    def _without_errors(self) -> None:
        """The file anew, in one step, with a lock that is held before anybody can see it."""
        path = self._path.with_name(f".tmp-{os.getpid()}-scan")
        try:
            file = path.open("w+b", buffering=0)
            _lock(file, self._path)
            for line in _lines(self._file):
                if not self._is_failure(json.loads(line)):
                    _write(file, line)
            os.fsync(file.fileno())
            os.replace(path, self._path)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise cannot_write(self._path, error) from error
        self._file.close()
        self._file = file


def _opened(path: Path) -> io.FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        file = os.fdopen(descriptor, "r+b", buffering=0)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        _lock(file, path)
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: Any, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DfdetectError(
            f"{path}: another run is writing here",
            "wait for it, or choose another --out",
            ExitCode.ENVIRONMENT,
        ) from error


def _lines(file: Any) -> Iterator[bytes]:
    with os.fdopen(os.dup(file.fileno()), "rb") as buffered:
        buffered.seek(0)
        yield from buffered


def _write(file: Any, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a disk that is nearly full takes a part
        rest = rest[file.write(rest) :]


def _sha256(path: Path) -> str | None:
    try:
        return content_sha256(path)
    except DfdetectError:
        return None


def row(record: Mapping[str, Any]) -> tuple:
    """What a table tells of a record: names and notes are never formulas to a spreadsheet."""
    error = record.get("error")
    return (
        cell(record["input"]),
        record.get("call", "error"),
        record.get("score"),
        record.get("threshold"),
        None if error else len(record["tracks"]),
        record["sha256"],
        None if error else record["media"]["n_bytes"],
        cell("; ".join(record.get("experimental") or [])),
        cell("; ".join(record.get("reasons", []))),
        cell("; ".join(record.get("warnings", []))),
        cell(f"{error['message']}; {error['hint']}") if error else "",
    )


def as_csv(rows: Iterable[tuple]) -> str:
    """The table of such rows, with a heading."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([COLUMNS, *rows])
    return buffer.getvalue()


def readable(value: Any) -> Any:
    """Undecodable bytes of file names as \\udcXX text, so that every line is valid UTF-8 JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {key: readable(inner) for key, inner in value.items()}
    return [readable(inner) for inner in value] if isinstance(value, list | tuple) else value
