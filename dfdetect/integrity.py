"""What is wrong with a prepared folder: damaged parts, missing or altered crops, leftovers.

A part is the word of a finished video. Where something contradicts it, the video is prepared again
and its part replaced; what belongs to no video is removed.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.files import sha256_of
from dfdetect.manifest import OtherVersion, folder_key, part_path, read_part


class Problem(NamedTuple):
    """One thing that is wrong: with which file, and what; `part` is the one to make again."""

    path: Path
    what: str
    part: Path | None


def find_damage(
    data: Path, on_done: Callable[[int, int, str], None] | None = None
) -> list[Problem]:
    """Every part read, every crop's hash compared; `on_done(n, n_total, name)` after each part.

    Errors: DfdetectError if there is no manifest, a part was written by another version, or the
    disk does not answer: neither is damage that preparing again would mend.
    """
    parts = sorted((data / "manifest").glob("*.parquet"))
    if not parts:
        raise DfdetectError(f"{data}: not a prepared data folder (no manifest in it)")
    problems: list[Problem] = []
    claimed: set[Path] = set()
    for number, part in enumerate(parts, start=1):
        problems += _damage_of(data, part, claimed)
        if on_done:
            on_done(number, len(parts), part.stem)
    unusable = {problem.part for problem in problems if problem.path == problem.part}
    finished = {part.stem: part for part in parts}
    for crop in sorted((data / "faces").glob("*/*/*")):
        part = finished.get(crop.parent.name)
        if crop in claimed or part in unusable:
            continue
        if part:  # its row may be lost
            problems.append(Problem(crop, "is not in the manifest of its video", part))
        else:
            problems.append(Problem(crop, "belongs to no finished video", None))
    return problems


def remove_damage(data: Path, problems: list[Problem], again: Container[Path]) -> None:
    """Remove leftovers, and damaged crops of the parts that are made `again`."""
    for problem in problems:
        if problem.part is None or (problem.part in again and problem.path != problem.part):
            _remove(problem.path)
    for folder in (data / "faces").glob("*/*"):
        with suppress(OSError):  # not empty
            folder.rmdir()


def _damage_of(data: Path, part: Path, claimed: set[Path]) -> list[Problem]:
    try:
        rows = read_part(part).to_pylist()  # every column, so that no damage is overlooked
    except DfdetectError as error:
        if isinstance(error, OtherVersion) or error.exit_code == ExitCode.ENVIRONMENT:
            raise
        return [Problem(part, error.message.removeprefix(f"{part}: "), part)]
    if not rows:
        return [Problem(part, "has no rows", part)]
    if any(not row["path"] or not row["video_id"] for row in rows):
        return [Problem(part, "has rows without a path or a video", part)]
    if any(folder_key(row["video_id"]) != part.stem for row in rows):
        own = {part_path(data, row["video_id"]) for row in rows}
        if part not in own and all(other.exists() for other in own):
            return [Problem(part, "repeats the manifest of another video", None)]
        return [Problem(part, "holds rows of another video", part)]
    problems = []
    counts = Counter((row["sample_id"], row["quality"]) for row in rows)
    if twice := [key for key, n in counts.items() if n > 1]:
        problems.append(Problem(part, f"lists {twice[0][0]} at {twice[0][1]} twice", part))
    for row in rows:
        relative = PurePosixPath(row["path"])
        crop = data / relative
        claimed.add(crop)
        if relative.is_absolute() or ".." in relative.parts:
            problems.append(Problem(part, f"names a file outside the folder: {relative}", part))
        elif what := _wrong_with(crop, row["crop_sha256"]):
            problems.append(Problem(crop, what, part))
    return problems


def _wrong_with(crop: Path, digest: str) -> str:
    """Nothing, if it is the file that was written."""
    if not crop.is_file():
        return "is missing"
    try:
        return "" if sha256_of(crop) == digest else "is not what was written"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _remove(path: Path) -> None:
    """Whatever lies at `path`, also a folder."""
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        if not path.is_dir():
            raise
        shutil.rmtree(path)
