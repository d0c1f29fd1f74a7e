"""Files, whole or not at all: atomic writing, the lock on a folder, hashes.

Every writer of the project goes through `write_whole`: a temporary name in the same folder, fsync,
rename. A reader therefore never meets half a file under a final name.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dfdetect.errors import DfdetectError, ExitCode


def write_whole(
    path: Path, content: bytes | str, *more: bytes | memoryview, make_folder: bool = True
) -> None:
    """Write `content`, and `more` after it, completely, or raise and leave `path` as it was.

    Errors: DfdetectError with ExitCode.ENVIRONMENT when the disk is full or not writable.
    """
    content = content.encode() if isinstance(content, str) else content
    with whole_file(path, make_folder) as temporary, temporary.open("wb") as file:
        for part in (content, *more):
            file.write(part)


@contextmanager
def whole_file(path: Path, make_folder: bool = True) -> Iterator[Path]:
    """A name to write to beside `path`, which becomes `path` when the block ends; if it raises,
    `path` stays as it was. Errors: as `write_whole`."""
    temporary = path.with_name(
        f".tmp-{os.getpid()}-{hashlib.sha1(path.name.encode()).hexdigest()[:12]}"
    )
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused, they are not JSON."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DfdetectError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DfdetectError(f"{path}: not valid JSON ({error})", "restore or delete it") from error


def read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise DfdetectError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DfdetectError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from error


def cannot_write(path: Path, error: OSError) -> DfdetectError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "free some space and run again: it continues" if full else "choose another --out"
    cause = error.strerror or error
    return DfdetectError(f"{path}: cannot be written ({cause})", hint, ExitCode.ENVIRONMENT)


def make_folder(folder: Path) -> None:
    """Make `folder` where it is missing, so that a bad --out is known before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def sweep_unfinished(folder: Path) -> None:
    """Remove what a killed `write_whole` left in `folder`; only for who holds its lock."""
    for leftover in folder.glob(".tmp-*"):
        with suppress(OSError):
            leftover.unlink()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; the kernel frees the lock however the process ends."""
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            raise DfdetectError(
                f"{folder}: another run (process {holder or 'unknown'}) is writing here",
                "wait for it, or choose another --out",
                ExitCode.ENVIRONMENT,
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
