"""prepare: videos and pictures -> aligned face crops at every quality, and the manifest.

Each video is decoded once. Sampled frames go through MTCNN, the whole stream goes through every
degradation, and the same frames are cut with the same warp at each quality: pixel-aligned pairs.
A video is finished when its manifest part is written, last; rerunning skips what is finished.
"""

import csv
import ctypes
import gc
import io
import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from dfdetect import __version__
from dfdetect.datasets import list_source
from dfdetect.datasets.base import DatasetOptions
from dfdetect.degradations import make_degradation
from dfdetect.errors import DfdetectError, ExitCode, printable
from dfdetect.faces import CropRecipe, Face, FaceFinder, Track, align, track_faces
from dfdetect.files import folder_lock, read_json, sweep_unfinished, write_json, write_whole
from dfdetect.manifest import (
    SourceVideo,
    assign_splits,
    folder_key,
    part_path,
    read_table,
    refuse_leaks,
    write_part,
)
from dfdetect.quality import Quality, parse_qualities
from dfdetect.video import Media, Picture, open_media, sample_indices

log = logging.getLogger(__name__)

BYTES_PER_CROP = 90_000
"""A 256-px PNG face crop, for the size estimate of a dry run; grows with the crop's area."""


@dataclass(frozen=True)
class PrepareRecipe:
    """All that decides the bytes of a prepared folder; `prepare.json` holds it."""

    qualities: tuple[str, ...] = ("raw", "c23", "c40")
    frames: int = 32
    tracks: Literal["main", "all"] = "main"
    crop: CropRecipe = field(default_factory=CropRecipe)

    def as_dict(self) -> dict[str, Any]:
        return {
            "qualities": list(self.qualities),
            "frames": self.frames,
            "tracks": self.tracks,
            "crop": self.crop.model_dump(),
        }


class Failure(NamedTuple):
    """A video that gave no crops, and why. `kind` is error or no-face."""

    source: str
    video_id: str
    label: int
    manipulation: str
    kind: str
    message: str
    hint: str


class Done(NamedTuple):
    """One video of the batch is finished: prepared, or failed."""

    video: SourceVideo
    rows: list[dict]
    failure: Failure | None
    stage_s: dict[str, float]


@dataclass
class PrepareSummary:
    """What a run did: counts, failures, seconds by stage summed over workers."""

    n_videos: int = 0
    n_skipped: int = 0
    failures: list[Failure] = field(default_factory=list)
    videos: Counter = field(default_factory=Counter)  # (split, label) -> videos prepared
    crops: Counter = field(default_factory=Counter)  # (quality, label) -> crops
    n_tracks: int = 0
    stage_s: Counter = field(default_factory=Counter)
    elapsed_s: float = 0.0


class Plan(NamedTuple):
    """What prepare would do: every video with its split, and which are finished already."""

    videos: list[SourceVideo]
    splits: dict[str, str]
    finished: set[str]


def plan(
    source: Path,
    out: Path,
    recipe: PrepareRecipe,
    dataset: str = "auto",
    options: DatasetOptions | None = None,
    seed: int = 0,
    allow_identity_overlap: bool = False,
) -> Plan:
    """List the source and give every video its split; writes nothing.

    Errors: DfdetectError for an unreadable source, an identity in two splits, or a folder `out`
    that was prepared with another recipe.
    """
    parse_qualities(recipe.qualities)
    _refuse_other_recipe(out, recipe)
    videos = list_source(dataset, source, options or DatasetOptions()).videos
    before = _finished(out)
    _refuse_other_labels(out, videos, before)
    earlier = [v for v in before.values() if v.video_id not in {w.video_id for w in videos}]
    known_splits = {v.video_id: v.split for v in before.values()}
    splits = assign_splits([*videos, *earlier], seed, known_splits)
    if not allow_identity_overlap:
        pairs = [(v.identities, splits[v.video_id]) for v in [*videos, *earlier]]
        refuse_leaks(pairs, str(source), "--allow-identity-overlap")
    return Plan(videos, splits, {v.video_id for v in videos if v.video_id in before})


def prepare(
    source: Path,
    out: Path,
    recipe: PrepareRecipe,
    dataset: str = "auto",
    options: DatasetOptions | None = None,
    workers: int | None = None,
    seed: int = 0,
    allow_identity_overlap: bool = False,
    on_done: Callable[[int, int, Done], None] | None = None,
) -> PrepareSummary:
    """Prepare every video of `source` into `out`; `on_done(n_done, n_total, done)` after each.

    Errors: those of `plan`; ExitCode.ENVIRONMENT when `out` cannot be written; DfdetectError when
    not one video gave a face. Single failures are collected in the summary and `failures.csv`.
    """
    started = time.monotonic()
    todo = plan(source, out, recipe, dataset, options, seed, allow_identity_overlap)
    with folder_lock(out):
        for folder in (out, out / "manifest"):
            sweep_unfinished(folder)
        _write_recipe(out, recipe, seed, allow_identity_overlap)
        summary = PrepareSummary(n_videos=len(todo.videos), n_skipped=len(todo.finished))
        waiting = [v for v in todo.videos if v.video_id not in todo.finished]
        try:
            for done in _work(waiting, todo.splits, out, recipe, workers or os.cpu_count() or 1):
                _count(summary, done)
                if on_done:
                    n_done = (
                        len(todo.finished) + sum(summary.videos.values()) + len(summary.failures)
                    )
                    on_done(n_done, len(todo.videos), done)
        finally:
            _write_failures(out, summary.failures)
    summary.elapsed_s = time.monotonic() - started
    if waiting and len(summary.failures) == len(todo.videos):
        first = summary.failures[0]
        raise DfdetectError(
            f"{source}: none of {len(todo.videos)} files could be prepared; "
            f"the first: {first.message}",
            first.hint or f"all are listed in {out / 'failures.csv'}",
        )
    return summary


def prepare_video(
    video: SourceVideo, split: str, out: Path, recipe: PrepareRecipe, find_faces: FaceFinder
) -> Done:
    """Crops and manifest part of one video; a failure that concerns only it is returned."""
    stage_s: Counter = Counter()
    for quality in recipe.qualities:
        sweep_unfinished(out / "faces" / quality / folder_key(video.video_id))
    try:
        with open_media(video.path) as media:
            cut = _cut_faces(media, recipe, find_faces, stage_s)
        if not cut.tracks:
            looked = "the picture" if media.info.is_still else f"{len(cut.frames)} frames"
            failure = _failure(video, "no-face", f"{video.path}: no face found in {looked}", "")
            return Done(video, [], failure, stage_s)
        if recipe.tracks == "main" and len(cut.tracks) > 1:
            media.warnings.append(f"{len(cut.tracks)} faces were followed; the main one was kept")
        clock = _Clock(stage_s)
        rows = _write_crops(video, split, out, recipe, cut, media.warnings)
        clock.lap("write")
        return Done(video, rows, None, stage_s)
    except DfdetectError as error:
        if error.exit_code == ExitCode.ENVIRONMENT:
            raise
        named = (
            error.message if str(video.path) in error.message else f"{video.path}: {error.message}"
        )
        return Done(video, [], _failure(video, "error", named, error.hint), stage_s)
    except Exception as error:  # a decoder's surprise on one file must not end the batch
        log.debug("%s", video.path, exc_info=True)
        cause = f"{video.path}: unexpected {type(error).__name__}: {error}"
        return Done(video, [], _failure(video, "error", cause, "please report it"), stage_s)


# --- one video -------------------------------------------------------------------------------


class CutFaces(NamedTuple):
    """All faces of the sampled frames: crops[quality, frame index][face number], the tracks, and
    (index, time_s) of each sampled frame."""

    crops: dict[tuple[str, int], list[np.ndarray]]
    faces: dict[int, list[Face]]
    tracks: list[Track]
    frames: list[tuple[int, float]]


def _cut_faces(
    media: Media, recipe: PrepareRecipe, find_faces: FaceFinder, stage_s: Counter
) -> CutFaces:
    """Frames are chosen from the packet count; if another number decodes, once more from that."""
    n_frames = media.count_frames()
    for _ in range(2):
        wanted = sample_indices(n_frames, recipe.frames)
        crops, faces, times, n_decoded = _one_pass(media, set(wanted), recipe, find_faces, stage_s)
        if n_decoded == n_frames:
            break
        n_frames = n_decoded
    tracks = track_faces([faces[index] for index in wanted])
    return CutFaces(crops, faces, tracks, [(index, times[index]) for index in wanted])


def _one_pass(
    media: Media, wanted: set[int], recipe: PrepareRecipe, find_faces: FaceFinder, stage_s: Counter
) -> tuple[dict[tuple[str, int], list[np.ndarray]], dict[int, list[Face]], dict[int, float], int]:
    """Crops, faces and times of the wanted frames, and how many frames decode."""
    channels = {q: make_degradation(q, media.info) for q in parse_qualities(recipe.qualities)}
    n_returned = dict.fromkeys(channels, 0)
    crops: dict[tuple[str, int], list[np.ndarray]] = {}
    faces: dict[int, list[Face]] = {}
    times: dict[int, float] = {}
    n_decoded = 0
    clock = _Clock(stage_s)

    def cut(quality: Quality, ready: list[Picture]) -> None:
        clock.lap(f"encode {quality.name}" if quality.codec == "h264" else "cut")
        n_returned[quality] += len(ready)
        for picture in ready:
            if faces.get(picture.index):
                image = picture.rgb()
                marks = [face.landmarks for face in faces[picture.index]]
                crops[quality.name, picture.index] = [align(image, m, recipe.crop) for m in marks]
        clock.lap("cut")

    for picture in media.pictures():
        n_decoded += 1
        clock.lap("decode")
        if picture.index in wanted:
            faces[picture.index] = find_faces(picture.rgb())
            times[picture.index] = picture.time_s
            clock.lap("detect")
        for quality, channel in channels.items():
            cut(quality, channel.push(picture))
    for quality, channel in channels.items():
        cut(quality, channel.flush())
        if n_returned[quality] != n_decoded:
            raise DfdetectError(
                f"{media.path}: {n_decoded} frames went into {quality.name} "
                f"and {n_returned[quality]} came out",
                "its qualities would not be aligned; prepare it with --qualities raw",
            )
    return crops, faces, times, n_decoded


class _Clock:
    """Sums wall seconds by stage."""

    def __init__(self, stage_s: Counter) -> None:
        self._stage_s, self._last = stage_s, time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._stage_s[stage] += now - self._last
        self._last = now


def _write_crops(
    video: SourceVideo,
    split: str,
    out: Path,
    recipe: PrepareRecipe,
    cut: CutFaces,
    notes: Sequence[str],
) -> list[dict]:
    key, rows = folder_key(video.video_id), []
    of_the_video = {
        "video_id": video.video_id,
        "label": video.label,
        "dataset": video.dataset,
        "manipulation": video.manipulation,
        "identities": list(video.identities),
        "split": split,
        "source": printable(video.source),
        "warnings": "; ".join(notes),
    }
    for track in cut.tracks[:1] if recipe.tracks == "main" else cut.tracks:
        for position, face in track.faces.items():
            index, time_s = cut.frames[position]
            number = next(i for i, other in enumerate(cut.faces[index]) if other is face)
            of_the_face = {
                "sample_id": f"{video.video_id}/{index:06d}/{track.track_id}",
                "frame_index": index,
                "time_s": time_s,
                "track_id": track.track_id,
                "face_px": face.width_px,
                "box_xyxy": face.box_xyxy.tolist(),
                "landmarks": face.landmarks.reshape(-1).tolist(),
                "confidence": face.confidence,
            }
            for quality in recipe.qualities:
                relative = f"faces/{quality}/{key}/{index:06d}_{track.track_id}.png"
                bgr = cv2.cvtColor(cut.crops[quality, index][number], cv2.COLOR_RGB2BGR)
                write_whole(out / relative, cv2.imencode(".png", bgr)[1].tobytes())
                rows.append(of_the_video | of_the_face | {"path": relative, "quality": quality})
    write_part(out, video.video_id, rows)
    return rows


def _failure(video: SourceVideo, kind: str, message: str, hint: str) -> Failure:
    source, message = printable(video.source), printable(message)
    return Failure(source, video.video_id, video.label, video.manipulation, kind, message, hint)


# --- many videos -----------------------------------------------------------------------------


def _work(
    videos: Sequence[SourceVideo],
    splits: Mapping[str, str],
    out: Path,
    recipe: PrepareRecipe,
    workers: int,
) -> Iterator[Done]:
    """Prepare the videos in `workers` processes (1: in this one); yields as they finish."""
    workers = min(workers, len(videos))
    if workers <= 1:
        with _one_thread():
            find_faces = FaceFinder(recipe.crop) if videos else None
            for video in videos:
                yield prepare_video(video, splits[video.video_id], out, recipe, find_faces)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    queue = iter(videos)
    with ProcessPoolExecutor(workers, context, _start_worker, (out, recipe)) as pool:
        running: dict[Future, SourceVideo] = {}
        try:
            while True:
                while len(running) < 2 * workers and (video := next(queue, None)):
                    running[pool.submit(_run_worker, video, splits[video.video_id])] = video
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield future.result()
                    del running[future]
        except BrokenProcessPool as error:
            names = ", ".join(str(v.path) for v in running.values())
            raise DfdetectError(
                f"a worker process died, out of memory or in a decoder, at one of: {names}",
                "rerun with --workers 1 to find it; finished videos are kept",
                ExitCode.ENVIRONMENT,
            ) from error
        except BaseException:  # an interrupt, or the caller has had enough
            _end_workers()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_workers() -> None:
    """Do not wait for the videos in hand: their parts are not written, so nothing is half done."""
    for child in multiprocessing.active_children():
        child.terminate()


@contextmanager
def _one_thread() -> Iterator[None]:
    """MTCNN's last bits depend on the number of threads, so it always has one: same input, same
    bytes, however many workers."""
    import torch

    before = (torch.get_num_threads(), cv2.getNumThreads())
    _use_threads(1, 1)
    try:
        yield
    finally:
        _use_threads(*before)


def _use_threads(n_torch: int, n_cv2: int) -> None:
    import torch

    torch.set_num_threads(n_torch)
    cv2.setNumThreads(n_cv2)


_worker: dict[str, Any] = {}  # what a worker process loads once


def _start_worker(out: Path, recipe: PrepareRecipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    with suppress(OSError, AttributeError):  # Linux: die with the parent, however it dies
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)
    _use_threads(1, 1)
    _worker.update(out=out, recipe=recipe, find_faces=FaceFinder(recipe.crop))


def _run_worker(video: SourceVideo, split: str) -> Done:
    try:
        return prepare_video(video, split, _worker["out"], _worker["recipe"], _worker["find_faces"])
    finally:
        _return_memory()


def _return_memory() -> None:
    """Give freed memory back to the system: two 1080p encoders hold 1 GB, and glibc would keep it
    in pieces for the life of the worker."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library: nothing to do
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _count(summary: PrepareSummary, done: Done) -> None:
    summary.stage_s.update(done.stage_s)
    if done.failure:
        summary.failures.append(done.failure)
        return
    first = done.rows[0]
    summary.videos[first["split"], first["label"]] += 1
    summary.crops.update((row["quality"], row["label"]) for row in done.rows)
    summary.n_tracks += len({row["track_id"] for row in done.rows})


# --- the folder's own files ------------------------------------------------------------------


def _has_parts(out: Path) -> bool:
    return any((out / "manifest").glob("*.parquet"))


def _finished(out: Path) -> dict[str, SourceVideo]:
    """The videos that earlier runs prepared, by id, as they were labelled then."""
    if not _has_parts(out):
        return {}
    names = ["video_id", "label", "dataset", "manipulation", "identities", "split", "source"]
    rows = {row["video_id"]: row for row in read_table(out).select(names).to_pylist()}
    return {
        video_id: SourceVideo(path=Path(), **row | {"identities": tuple(row["identities"])})
        for video_id, row in rows.items()
    }


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


def _refuse_other_recipe(out: Path, recipe: PrepareRecipe) -> None:
    if not (out / "prepare.json").exists() or not _has_parts(out):
        return
    stored = read_json(out / "prepare.json")
    if not isinstance(stored, dict) or not isinstance(stored.get("recipe"), dict):
        raise DfdetectError(f"{out / 'prepare.json'}: not written by prepare", "use another --out")
    before, now = _flat(stored["recipe"]), _flat(recipe.as_dict())
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise DfdetectError(
                f"{out}: was prepared with {key} = {before.get(key)}, now asked for {now.get(key)}",
                "use the same options, or another --out",
            )


def _write_recipe(out: Path, recipe: PrepareRecipe, seed: int, overlap_allowed: bool) -> None:
    import av

    if _has_parts(out):
        content = read_json(out / "prepare.json")
        if overlap_allowed and not content.get("identity_overlap_allowed"):  # true from now on
            write_json(out / "prepare.json", content | {"identity_overlap_allowed": True})
    else:
        versions = {"dfdetect": __version__, "av": av.__version__, "opencv": cv2.__version__}
        versions["libavcodec"] = ".".join(map(str, av.library_versions["libavcodec"]))
        content = {
            "recipe": recipe.as_dict(),
            "split_seed": seed,
            "identity_overlap_allowed": overlap_allowed,
            "versions": versions,
        }
        write_json(out / "prepare.json", content)


def _write_failures(out: Path, failures: Sequence[Failure]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(Failure._fields)
    for failure in sorted(failures):
        # A cell that begins like a formula is quoted for spreadsheets.
        cells = [f"'{c}" if str(c)[:1] in tuple("=+-@\t\r") else c for c in failure]
        writer.writerow([printable(c) for c in cells])
    write_whole(out / "failures.csv", buffer.getvalue())


def _flat(value: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, inner in value.items():
        nested = isinstance(inner, Mapping)
        flat |= _flat(inner, f"{prefix}{key}.") if nested else {prefix + key: inner}
    return flat
