"""prepare: videos and pictures -> aligned face crops at every quality, and the manifest.

The source is listed, every video gets its split, and each is cut (cutting.py) in a child process
of its own, on this machine or on a cluster. A video is finished when its manifest part is written,
last; rerunning skips what is finished, so an interrupted run loses what was in hand and no more.
"""

import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dfdetect import __version__
from dfdetect.cutting import (
    Done,
    Failure,
    PrepareRecipe,
    Task,
    failure,
    forget_crops,
    prepare_video,
)
from dfdetect.datasets import list_source
from dfdetect.datasets.base import DatasetOptions, Listing
from dfdetect.errors import DfdetectError, printable
from dfdetect.files import (
    folder_lock,
    read_json,
    sha256_of,
    sweep_unfinished,
    write_json,
    write_whole,
)
from dfdetect.integrity import find_damage, remove_damage
from dfdetect.manifest import (
    SourceVideo,
    assign_splits,
    part_path,
    read_part,
    refuse_leaks,
)
from dfdetect.quality import ordered, parse_qualities
from dfdetect.video import Limits
from dfdetect.workers import Died, run_all, run_on_cluster

FORMULA_SIGNS = tuple("=+-@\t\r")
"""A cell that begins with one would be a formula to a spreadsheet."""
QUALITIES = ("raw", "c23", "c40")
"""Prepared where nothing else is asked for: those of FaceForensics++ and of QAD."""
BYTES_PER_CROP = {"png": 90_000, "webp": 48_000}
"""A 256-px face crop, for the size estimate of a dry run; grows with the crop's area."""


@dataclass(frozen=True)
class Running:
    """How a run goes about it; none of this decides the bytes that it writes.

    `limits` are for the files that are opened (but for frames, which the recipe limits),
    `max_seconds` and `max_memory_gb` for the process that decodes one. With `cluster`, the
    address of a Dask scheduler, its workers do the work.
    """

    workers: int = 1
    limits: Limits = field(default_factory=Limits)
    max_seconds: float = 1800
    max_memory_gb: float = 6
    cluster: str | None = None


@dataclass(frozen=True)
class Allowed:
    """What a user accepts on purpose; `prepare.json` records it."""

    identity_overlap: bool = False
    other_versions: bool = False
    other_files: bool = False


@dataclass
class PrepareSummary:
    """What a run did: counts, failures, seconds by stage summed over workers."""

    n_videos: int = 0
    n_skipped: int = 0
    n_changed: int = 0  # finished before, and prepared again because their source has changed
    n_elsewhere: int = 0  # finished before, and not in this source
    unmended: list[str] = field(default_factory=list)  # damaged, and not in this source
    failures: list[Failure] = field(default_factory=list)
    videos: Counter = field(default_factory=Counter)  # (split, label) -> videos prepared
    crops: Counter = field(default_factory=Counter)  # (quality, label) -> crops
    n_tracks: int = 0
    stage_s: Counter = field(default_factory=Counter)
    elapsed_s: float = 0.0


class Plan(NamedTuple):
    """What prepare would do: by which recipe, every video with its split; which are finished
    already, which of those have changed since, and how many others the folder holds; what the
    dataset found."""

    recipe: PrepareRecipe
    videos: list[SourceVideo]
    splits: dict[str, str]
    finished: set[str]
    changed: set[str]
    n_elsewhere: int
    listing: Listing

    def parts(self, out: Path) -> set[Path]:
        """Of every video in the source."""
        return {part_path(out, video.video_id) for video in self.videos}


def plan(
    source: Path,
    out: Path,
    recipe: PrepareRecipe,
    dataset: str = "auto",
    options: DatasetOptions | None = None,
    seed: int = 0,
    allowed: Allowed = Allowed(),
    damaged: Collection[Path] = (),
) -> Plan:
    """List the source and give every video its split; writes nothing. Videos of `damaged` parts
    count as not finished.

    Errors: DfdetectError for an unreadable source, an identity in two splits, or a folder `out`
    that was prepared with another recipe, other versions or from another source of the same name.
    """
    _refuse_other_versions(out, allowed)
    listing = list_source(dataset, source, options or DatasetOptions())
    videos = listing.videos
    recipe = replace(recipe, qualities=_qualities(videos, recipe))
    _refuse_other_recipe(out, recipe)
    before = _finished(out, damaged)
    ids = {video.video_id for video in videos}
    changed = _changed([(v, before[v.video_id]) for v in videos if v.video_id in before], recipe)
    n_again = len(ids & before.keys())
    if len(changed) > max(1, n_again / 2) and not allowed.other_files:
        raise DfdetectError(
            f"{out}: {len(changed)} of {n_again} videos that are finished come from other files "
            f"now, for example {min(changed)}: is this another source of the same name?",
            "use another --out, rename the source, or replace them with --allow-other-files",
        )
    kept = {i: b.video for i, b in before.items() if i not in changed}
    _refuse_other_labels(out, videos, kept)
    earlier = [video for video_id, video in kept.items() if video_id not in ids]
    known_splits = {video_id: video.split for video_id, video in kept.items()}
    splits = assign_splits([*videos, *earlier], seed)
    if any(splits[video_id] != split for video_id, split in known_splits.items()):
        # Not what an interrupted run was about: the source has grown, or the seed is another.
        splits = assign_splits([*videos, *earlier], seed, known_splits)
    if not allowed.identity_overlap:
        pairs = [(v.identities, splits[v.video_id]) for v in [*videos, *earlier]]
        refuse_leaks(pairs, str(source), "--allow-identity-overlap")
    finished = {v.video_id for v in videos if v.video_id in kept}
    return Plan(recipe, videos, splits, finished, changed, len(earlier), listing)


def prepare(
    source: Path,
    out: Path,
    recipe: PrepareRecipe,
    dataset: str = "auto",
    options: DatasetOptions | None = None,
    running: Running = Running(),
    seed: int = 0,
    allowed: Allowed = Allowed(),
    repair: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_done: Callable[[int, int, SourceVideo, Done], None] | None = None,
) -> PrepareSummary:
    """Prepare every video of `source` into `out`; `on_done(n_done, n_total, video, done)` each.

    With `repair`, what is damaged in `out` and comes from this source is made again.

    Errors: those of `plan`; ExitCode.ENVIRONMENT when `out` cannot be written; DfdetectError when
    not one video gave a face. Single failures are collected in the summary and `failures.csv`.
    """
    started = time.monotonic()
    problems = find_damage(out) if repair and _has_parts(out) else []
    damaged = {problem.part for problem in problems if problem.part}
    todo = plan(source, out, recipe, dataset, options, seed, allowed, damaged)
    if on_plan:
        on_plan(todo)
    with folder_lock(out):
        for folder in (out, out / "manifest"):
            sweep_unfinished(folder)
        remove_damage(out, problems, todo.parts(out))
        _write_recipe(out, todo.recipe, seed, allowed)
        summary = PrepareSummary(
            n_videos=len(todo.videos),
            n_skipped=len(todo.finished),
            n_changed=len(todo.changed),
            n_elsewhere=todo.n_elsewhere,
            unmended=sorted(part.stem for part in damaged - todo.parts(out)),
        )
        earlier = _read_failures(out)
        tried: set[str] = set()
        n_done = n_skipped = len(todo.finished)
        try:
            for task, done in _work(todo, out, running):
                n_done += 1
                tried.add(task.video.video_id)
                _count(summary, task, done)
                if on_done:
                    on_done(n_done, len(todo.videos), task.video, done)
        finally:
            settled = {printable(video_id) for video_id in tried | todo.finished}
            kept = [f for f in earlier if printable(f.video_id) not in settled]
            _write_failures(out, [*summary.failures, *kept])
    summary.elapsed_s = time.monotonic() - started
    if len(todo.videos) > n_skipped and len(summary.failures) == len(todo.videos):
        first = summary.failures[0]
        raise DfdetectError(
            f"{source}: none of {len(todo.videos)} files could be prepared; "
            f"the first: {first.message}",
            first.hint or f"all are listed in {out / 'failures.csv'}",
        )
    return summary


def _work(todo: Plan, out: Path, running: Running) -> Iterator[tuple[Task, Done]]:
    """Every video that is not finished, as its child process finishes it."""
    limits = replace(running.limits, max_frames=todo.recipe.max_frames)
    tasks = (  # with whole paths: the workers of a cluster work elsewhere
        Task(_whole(video), todo.splits[video.video_id], out.absolute(), todo.recipe, limits)
        for video in todo.videos
        if video.video_id not in todo.finished
    )
    engine = (
        partial(run_on_cluster, address=running.cluster, alike=versions)
        if running.cluster
        else partial(run_all, workers=running.workers)
    )
    bounds = {"max_seconds": running.max_seconds, "max_memory_gb": running.max_memory_gb}
    for task, result in engine(prepare_video, tasks, **bounds):
        if isinstance(result, Died):
            forget_crops(task)
            lost = failure(task, "error", result.cause, result.hint)
            result = Done(lost, {}, 0, {})
        yield task, result


def _whole(video: SourceVideo) -> SourceVideo:
    return replace(
        video,
        path=video.path.absolute(),
        mask=video.mask and video.mask.absolute(),
        shipped={quality: path.absolute() for quality, path in video.shipped.items()},
    )


def _count(summary: PrepareSummary, task: Task, done: Done) -> None:
    summary.stage_s.update(done.stage_s)
    if done.failure:
        summary.failures.append(done.failure)
        return
    label = task.video.label
    summary.videos[task.split, label] += 1
    for quality, n in done.n_crops.items():
        summary.crops[quality, label] += n
    summary.n_tracks += done.n_tracks


# --- the folder's own files ------------------------------------------------------------------


class _Before(NamedTuple):
    """A video that an earlier run prepared, as it was labelled then, and the file it came from."""

    video: SourceVideo
    n_bytes: int
    n_frames: int
    sha256: str
    finished_ns: int


SPOT_CHECKS = 16
"""Finished videos whose files are hashed on every rerun, though they look as they did."""


def _changed(pairs: Sequence[tuple[SourceVideo, _Before]], recipe: PrepareRecipe) -> set[str]:
    """Ids of videos whose files hold other bytes now, or whose shipped crops are others in number.

    A file of the same size is hashed where it is newer than the part, and some are in any case; if
    one of those differs, all are. A newer mask or shipped quality counts as changed.
    """
    changed, alike = set(), []
    for video, before in pairs:
        beside = [video.mask, *(video.shipped.values() if recipe.use_shipped else ())]
        if video.crops:
            differs = before.n_frames != min(len(names) for names in video.crops.values())
        elif any(_newer(path, before.finished_ns) for path in beside if path):
            differs = True
        elif _newer(video.path, before.finished_ns):
            differs = _other_bytes(video, before)
        else:
            differs = _n_bytes(video.path) not in (None, before.n_bytes)
            alike += [] if differs else [(video, before)]
        if differs:
            changed.add(video.video_id)
    step = max(1, len(alike) // SPOT_CHECKS)
    if any(_other_bytes(*pair) for pair in alike[::step]):
        changed |= {video.video_id for video, before in alike if _other_bytes(video, before)}
    return changed


def _newer(path: Path, than_ns: int) -> bool:
    try:
        return path.stat().st_mtime_ns > than_ns
    except OSError:
        return False  # reported when it is opened


def _n_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _other_bytes(video: SourceVideo, before: _Before) -> bool:
    try:
        return sha256_of(video.path) != before.sha256
    except OSError:
        return False


def _has_parts(out: Path) -> bool:
    return any((out / "manifest").glob("*.parquet"))


def _finished(out: Path, damaged: Collection[Path] = ()) -> dict[str, _Before]:
    """The videos that earlier runs prepared, by id, but for those of `damaged` parts."""
    if not _has_parts(out):
        return {}
    names = ["video_id", "label", "dataset", "manipulation", "identities", "split", "source"]
    facts = ["source_bytes", "n_frames", "source_sha256"]
    found = {}
    for part in sorted((out / "manifest").glob("*.parquet")):
        if part in damaged:
            continue
        rows = read_part(part, [*names, *facts]).slice(0, 1).to_pylist()
        if not rows:
            raise DfdetectError(f"{part}: has no rows", "run prepare with --repair")
        row = rows[0]
        then = [row.pop(name) for name in facts]
        video = SourceVideo(path=Path(), **row | {"identities": tuple(row["identities"])})
        found[video.video_id] = _Before(video, *then, part.stat().st_mtime_ns)
    return found


def _qualities(videos: Sequence[SourceVideo], recipe: PrepareRecipe) -> tuple[str, ...]:
    """Those asked for, or what suits the source.

    Errors: DfdetectError before any work if they are unknown, or no video can have them.
    """
    asked = parse_qualities(recipe.qualities) if recipe.qualities else ()
    if all(video.crops for video in videos):
        shipped = set.intersection(*(set(video.crops) for video in videos))
        if lacking := [q.name for q in asked if q.kind == "h264" and q.name not in shipped]:
            raise DfdetectError(
                f"these are face crops, which cannot be encoded as video at {lacking[0]}",
                f"use --qualities {','.join(ordered(shipped)) or 'raw'}",
            )
        return tuple(q.name for q in asked) or tuple(ordered(shipped)) or ("raw",)
    return tuple(q.name for q in asked) or QUALITIES


def _refuse_other_labels(
    out: Path, videos: Sequence[SourceVideo], before: Mapping[str, SourceVideo]
) -> None:
    """Errors: DfdetectError when a finished video is now listed with another label or split."""
    for video in videos:
        then = before.get(video.video_id)
        for key in ("label", "manipulation", "identities", "dataset", "split") if then else ():
            old, new = getattr(then, key), getattr(video, key)
            if old != new and not (key == "split" and new is None):
                raise DfdetectError(
                    f"{out}: {video.video_id} was prepared with {key} {old!r}, "
                    f"now listed with {new!r}",
                    f"delete {part_path(out, video.video_id)} to prepare it again, "
                    "or use another --out",
                )


def _stored(out: Path) -> dict | None:
    """What `prepare.json` says of the videos that are finished in `out`, if any are.

    Errors: DfdetectError where it is gone or not what prepare wrote: no one can tell then by which
    recipe they were prepared.
    """
    if not _has_parts(out):
        return None
    stored = read_json(out / "prepare.json")
    parts = [stored.get(k) for k in ("recipe", "versions")] if isinstance(stored, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise DfdetectError(f"{out / 'prepare.json'}: not written by prepare", "use another --out")
    return stored


def _refuse_other_recipe(out: Path, recipe: PrepareRecipe) -> None:
    if not (stored := _stored(out)):
        return
    before, now = _flat(stored["recipe"]), _flat(recipe.as_dict())
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise DfdetectError(
                f"{out}: was prepared with {key} = {before.get(key)}, now asked for {now.get(key)}",
                "use the same options, or another --out",
            )


def versions() -> dict[str, str]:
    """Of what decides the bytes of crops."""
    import av
    import cv2
    import torch

    return {
        "dfdetect": __version__,
        "av": av.__version__,
        "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        "opencv": cv2.__version__,
        "torch": torch.__version__.split("+")[0],
    }


def _refuse_other_versions(out: Path, allowed: Allowed) -> None:
    """Errors: DfdetectError naming a library of another version than `out` was prepared with."""
    if allowed.other_versions or not (content := _stored(out)):
        return
    stored, now = content["versions"], versions()
    for name in sorted(stored.keys() & now.keys()):
        if stored[name] != now[name]:
            raise DfdetectError(
                f"{out}: was prepared with {name} {stored[name]}, this is {now[name]}: "
                "crops may differ",
                f"install {stored[name]}, use another --out, or accept it with "
                "--allow-other-versions",
            )


def _write_recipe(out: Path, recipe: PrepareRecipe, seed: int, allowed: Allowed) -> None:
    """What is accepted once stays accepted; other versions are added to the list."""
    path, now = out / "prepare.json", versions()
    if _has_parts(out) and path.exists():
        content = read_json(path)
        if allowed.identity_overlap:
            content["identity_overlap_allowed"] = True
        others = content.get("other_versions", [])
        if now != content["versions"] and now not in others:
            content["other_versions"] = [*others, now]
    else:
        content = {
            "recipe": recipe.as_dict(),
            "split_seed": seed,
            "identity_overlap_allowed": allowed.identity_overlap,
            "versions": now,
        }
    if not path.exists() or content != read_json(path):
        write_json(path, content)


def _read_failures(out: Path) -> list[Failure]:
    """What earlier runs could not prepare; none, if the list is not one of ours."""
    path = out / "failures.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [[_unquoted(cell) for cell in row] for row in csv.reader(file)]
    n = len(Failure._fields)  # older lists are without splits
    wide = [row for row in rows[1:] if len(row) in (n - 1, n) and row[2] in ("0", "1")]
    return [Failure(*row)._replace(label=int(row[2])) for row in wide]


def _unquoted(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:2] in FORMULA_SIGNS else cell


def _write_failures(out: Path, failures: Sequence[Failure]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(Failure._fields)
    for row in sorted(failures):
        # A cell that begins like a formula is quoted for spreadsheets.
        cells = [f"'{c}" if str(c)[:1] in FORMULA_SIGNS else c for c in row]
        writer.writerow([printable(c) for c in cells])
    write_whole(out / "failures.csv", buffer.getvalue())


def _flat(value: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, inner in value.items():
        nested = isinstance(inner, Mapping)
        flat |= _flat(inner, f"{prefix}{key}.") if nested else {prefix + key: inner}
    return flat
