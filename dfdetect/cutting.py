"""One video or picture -> aligned face crops at every quality, and its part of the manifest.

The file is decoded once. Sampled frames are searched for faces, the whole stream goes through every
degradation in a thread of its own, and the same frames are cut with the same warp at each quality:
pixel-aligned pairs. The part is written last: its existence means that the video is finished.
"""

import logging
import queue
import re
import tarfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch  # here, so that children are forked with it and share its memory

from dfdetect.corruptions import jpeg_round_trip
from dfdetect.degradations import Degradation, make_degradation
from dfdetect.errors import DfdetectError, ExitCode, printable
from dfdetect.faces import CropRecipe, Face, FaceFinder, Track, align, to_input, track_faces
from dfdetect.files import sweep_unfinished, write_whole
from dfdetect.manifest import SourceVideo, folder_key, part_path, write_part
from dfdetect.quality import Quality, parse_qualities
from dfdetect.video import Limits, Media, Picture, VideoInfo, open_media, sample_indices

log = logging.getLogger(__name__)

LEAST_PSNR_DB = 20.0
"""Median PSNR to the best file, below which a shipped quality is not the same footage."""
MASK_LEVEL = 32
"""Grey level, of 255, from which a pixel of a mask counts as manipulated."""
QUEUE_FRAMES = 4
"""Decoded frames that may wait for an encoder."""
WRITERS = 4
"""Threads that compress and write crops."""


@dataclass(frozen=True)
class PrepareRecipe:
    """All that decides the bytes of a prepared folder; `prepare.json` holds it. No `qualities`:
    raw, c23 and c40, or those that a source of face crops ships."""

    qualities: tuple[str, ...] = ()
    frames: int = 32
    tracks: Literal["main", "all"] = "main"
    format: Literal["png", "webp"] = "png"
    use_shipped: bool = False
    max_frames: int = 3000
    crop: CropRecipe = field(default_factory=CropRecipe)

    def as_dict(self) -> dict[str, Any]:
        return vars(self) | {"qualities": list(self.qualities), "crop": self.crop.model_dump()}


class Task(NamedTuple):
    """One video to prepare; travels to a worker."""

    video: SourceVideo
    split: str
    out: Path
    recipe: PrepareRecipe
    limits: Limits

    def __str__(self) -> str:
        return self.video.source


class Failure(NamedTuple):
    """A video that gave no crops, and why. `kind` is error or no-face; `split` is empty where an
    older version wrote the list."""

    source: str
    video_id: str
    label: int
    manipulation: str
    kind: str
    message: str
    hint: str
    split: str = ""


class Done(NamedTuple):
    """One video is finished: prepared, or failed. Crops by quality, seconds by stage."""

    failure: Failure | None
    n_crops: dict[str, int]
    n_tracks: int
    stage_s: dict[str, float]


def prepare_video(task: Task) -> Done:
    """Crops and manifest part of one video; a failure that concerns only it is returned.

    Errors: DfdetectError with ExitCode.ENVIRONMENT when nothing can be written.
    """
    video, stage_s = task.video, Counter()
    for quality in task.recipe.qualities:
        sweep_unfinished(task.out / "faces" / quality / folder_key(video.video_id))
    try:
        _use_one_thread()
        cut = _ready_crops(task) if video.crops else _cut_video(task, stage_s)
        clock = _Clock(stage_s)
        rows = _write_crops(task, cut)
        clock.lap("write")
    except DfdetectError as error:
        if error.exit_code == ExitCode.ENVIRONMENT:
            raise
        kind = "no-face" if isinstance(error, _NoFace) else "error"
        if kind == "no-face":  # the file is whole, and what was cut from another is not of it
            part_path(task.out, video.video_id).unlink(missing_ok=True)
        forget_crops(task)
        return Done(failure(task, kind, error.message, error.hint), {}, 0, stage_s)
    except MemoryError:
        raise
    except Exception as error:  # a decoder's surprise on one file must not end the batch
        if "alloc" in str(error):
            raise MemoryError(str(error)) from error
        log.debug("%s", video.path, exc_info=True)
        forget_crops(task)
        cause = f"unexpected {type(error).__name__}: {error}"
        return Done(failure(task, "error", cause, "please report it"), {}, 0, stage_s)
    n_crops = Counter(row["quality"] for row in rows)
    return Done(None, dict(n_crops), len({row["track_id"] for row in rows}), stage_s)


def failure(task: Task, kind: str, message: str, hint: str) -> Failure:
    """Names the file as its source does, wherever that lies."""
    video = task.video
    source = printable(video.source)
    cause = printable(message).removeprefix(printable(video.path)).removeprefix(": ")
    return Failure(
        source, video.video_id, video.label, video.manipulation, kind, f"{source}: {cause}", hint,
        task.split,
    )  # fmt: skip


class _NoFace(DfdetectError):
    pass


def _use_one_thread() -> None:
    """The networks' last bits depend on the number of threads, so it is always one: same input,
    same bytes, however many workers."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@cache
def _face_finder(recipe: CropRecipe) -> FaceFinder:
    return FaceFinder(recipe)


# --- crops of a video ------------------------------------------------------------------------


class Crop(NamedTuple):
    """One face at every quality, {quality: uint8 [S,S,3] RGB}, and where it was; no face where
    the dataset shipped the crop."""

    images: Mapping[str, np.ndarray]
    frame_index: int
    time_s: float | None
    track_id: int
    face: Face | None
    face_px: float


class Cut(NamedTuple):
    """All that goes into the manifest: crops, and what is true of the whole video."""

    crops: list[Crop]
    face_choice: str
    n_faces: int
    facts: Mapping[str, Any]
    warnings: Sequence[str]


class _Seen(NamedTuple):
    """One pass over a file: by index of the wanted frames, faces and crops at each quality (in the
    order of the faces), and times; the frames that decode; where shots begin; (height, width) of
    the upright picture."""

    faces: dict[int, list[Face]]
    crops: dict[tuple[str, int], list[np.ndarray]]
    times: dict[int, float]
    n_decoded: int
    cuts: set[int]
    thumbnails: list[np.ndarray]
    size: tuple[int, int]


def _cut_video(task: Task, stage_s: Counter) -> Cut:
    """Frames are chosen from the packet count; if another number decodes, once more from that."""
    video, recipe = task.video, task.recipe
    best, made, shipped = _where_from(video, recipe)
    with open_media(video.path, task.limits) as media:
        n_frames = min(
            [media.count_frames(), *(_count_frames(p, task.limits) for p in shipped.values())]
        )
        for _ in range(2):
            wanted = sample_indices(n_frames, recipe.frames)
            seen = _one_pass(media, set(wanted), task, best, made, bool(shipped), stage_s)
            if seen.n_decoded >= n_frames and (shipped or seen.n_decoded == n_frames):
                break
            n_frames = seen.n_decoded
        for quality, path in shipped.items():
            clock = _Clock(stage_s)
            _cut_shipped(path, quality, best, task, seen)
            clock.lap(f"shipped {quality}")
        tracks = track_faces([seen.faces[index] for index in wanted], seen.cuts)
        if not tracks:
            where = "the picture" if media.info.is_still else f"{len(wanted)} frames"
            raise _NoFace(f"no face found in {where}")
        warnings = list(media.warnings)
        kept, choice = _choose(tracks, task, wanted, seen.size, warnings)
        crops = [
            _crop_of(track, position, face, wanted, seen, recipe)
            for track in kept
            for position, face in track.faces.items()
        ]
        facts = _facts(media, seen.n_decoded)
    return Cut(crops, choice, len(tracks), facts, warnings)


def _where_from(
    video: SourceVideo, recipe: PrepareRecipe
) -> tuple[str, list[Quality], dict[str, Path]]:
    """Which quality the file itself is, which are made of it, and which are shipped beside it."""
    asked = parse_qualities(recipe.qualities)
    if not recipe.use_shipped:
        return "raw", [q for q in asked if q.kind != "raw"], {}
    made, shipped = [], {}
    for quality in asked:
        if quality.name in video.shipped:
            shipped[quality.name] = video.shipped[quality.name]
        elif quality.kind != "raw" and video.quality == "raw":
            made.append(quality)
        elif quality.name != video.quality:
            there = ", ".join([video.quality, *video.shipped])
            raise DfdetectError(
                f"{quality.name} is not shipped, only {there}",
                "ask for what is there, or leave --use-shipped out",
            )
    return video.quality, [q for q in made if q.name != video.quality], shipped


def _count_frames(path: Path, limits: Limits) -> int:
    with open_media(path, limits) as media:
        return media.count_frames()


def _one_pass(
    media: Media,
    wanted: set[int],
    task: Task,
    best: str,
    made: Sequence[Quality],
    keep_thumbnails: bool,
    stage_s: Counter,
) -> _Seen:
    recipe, follow = task.recipe, _face_finder(task.recipe.crop).follower()
    seen = _Seen({}, {}, {}, 0, follow.cuts, [], (0, 0))
    size = (0, 0)
    clock = _Clock(stage_s)

    def cut(quality: str, picture: Picture) -> None:
        if faces := seen.faces.get(picture.index):
            image = picture.rgb()
            seen.crops[quality, picture.index] = [
                align(image, face.landmarks, recipe.crop) for face in faces
            ]

    streams = [
        _Stream(quality, make_degradation(quality, media.info), cut, stage_s)
        for quality in made
        if quality.kind != "jpeg"
    ]
    n_decoded = 0
    try:
        for picture in media.pictures():
            n_decoded += 1
            clock.lap("decode")
            if picture.index in wanted:
                image = picture.rgb()
                size = image.shape[:2]
                seen.faces[picture.index] = follow(image)
                seen.times[picture.index] = picture.time_s
                clock.lap("detect")
                cut(best, picture)
                clock.lap("cut")
            if keep_thumbnails:
                seen.thumbnails.append(_thumbnail(picture))
            if streams:
                encodable = picture.for_h264()
                for stream in streams:
                    stream.push(encodable)
            clock.lap("idle")
    finally:
        for stream in streams:
            stream.close()
    clock.lap("idle")
    del stage_s["idle"]
    for stream in streams:
        stream.check(n_decoded)
    for quality in (q for q in made if q.kind == "jpeg"):
        for index in seen.faces:
            plain = seen.crops.get((best, index), [])
            seen.crops[quality.name, index] = [
                jpeg_round_trip(c, int(quality.level)) for c in plain
            ]
    return seen._replace(n_decoded=n_decoded, size=size)


class _Stream:
    """A degradation in a thread of its own, with `cut(quality, picture)` for each that is ready.

    Encoders release the interpreter, so that several run side by side. Each sees every picture in
    order, so what they make does not depend on the threads.
    """

    def __init__(
        self,
        quality: Quality,
        degradation: Degradation,
        cut: Callable[[str, Picture], None],
        stage_s: Counter,
    ) -> None:
        self._quality, self._degradation, self._cut = quality, degradation, cut
        self._stage_s: Counter = Counter()
        self._total_s = stage_s
        self._queue: queue.Queue[Picture | None] = queue.Queue(QUEUE_FRAMES)
        self._error: BaseException | None = None
        self._n_returned = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def push(self, picture: Picture) -> None:
        if self._error:
            raise self._error
        self._queue.put(picture)

    def close(self) -> None:
        """Wait until everything pushed has come out."""
        self._queue.put(None)
        self._thread.join()
        self._total_s.update(self._stage_s)

    def check(self, n_pushed: int) -> None:
        """Errors: whatever the degradation raised; DfdetectError if frames were lost."""
        if self._error:
            raise self._error
        if self._n_returned != n_pushed:
            raise DfdetectError(
                f"{n_pushed} frames went into {self._quality.name} and {self._n_returned} came out",
                "its qualities would not be aligned; prepare it with --qualities raw",
            )

    def _run(self) -> None:
        clock = _Clock(self._stage_s)
        while (picture := self._queue.get()) is not None:
            if self._error is None:  # after one, the queue is only emptied
                try:
                    clock.lap("idle")
                    self._take(self._degradation.push(picture), clock)
                except BaseException as error:
                    self._error = error
        if self._error is None:
            try:
                clock.lap("idle")
                self._take(self._degradation.flush(), clock)
            except BaseException as error:
                self._error = error
        del self._stage_s["idle"]

    def _take(self, ready: list[Picture], clock: "_Clock") -> None:
        clock.lap(f"encode {self._quality.name}")
        self._n_returned += len(ready)
        for picture in ready:
            self._cut(self._quality.name, picture)
        clock.lap("cut")


class _Clock:
    """Sums wall seconds by stage."""

    def __init__(self, stage_s: Counter) -> None:
        self._stage_s, self._last = stage_s, time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._stage_s[stage] += now - self._last
        self._last = now


def _crop_of(
    track: Track, position: int, face: Face, wanted: list[int], seen: _Seen, recipe: PrepareRecipe
) -> Crop:
    index = wanted[position]
    number = next(i for i, other in enumerate(seen.faces[index]) if other is face)
    images = {quality: seen.crops[quality, index][number] for quality in recipe.qualities}
    return Crop(images, index, seen.times[index], track.track_id, face, face.width_px)


def _facts(media: Media, n_frames: int) -> dict[str, Any]:
    info: VideoInfo = media.info
    in_file = n_frames if n_frames != media.limits.max_frames else max(n_frames, info.n_frames or 0)
    return {
        "source_sha256": media.sha256(),
        "source_bytes": info.n_bytes,
        "container": info.container,
        "codec": info.codec,
        "pix_fmt": info.pix_fmt,
        "width": info.width,
        "height": info.height,
        "fps": None if info.is_still else float(info.frame_rate),
        "n_frames": n_frames,
        "bits_per_pixel": 8 * info.n_bytes / max(1, info.width * info.height * in_file),
    }


# --- qualities that the dataset ships ----------------------------------------------------------


def _cut_shipped(path: Path, quality: str, best: str, task: Task, seen: _Seen) -> None:
    """Crops of the same frames from a file that holds the footage at another quality.

    Errors: DfdetectError if it is other footage, shorter than its packets promised, or shifted
    against the best file.
    """
    thumbnails = []
    with open_media(path, task.limits) as media:
        for picture in media.pictures():
            thumbnails.append(_thumbnail(picture))
            if faces := seen.faces.get(picture.index):
                image = picture.rgb()
                seen.crops[quality, picture.index] = [
                    align(image, face.landmarks, task.recipe.crop) for face in faces
                ]
    if shift := _shift(seen.thumbnails, thumbnails):
        raise DfdetectError(
            f"shipped {quality} is shifted by {shift:+d} frames against {best}",
            "prepare it without --use-shipped",
        )
    pairs = [
        (crop, plain)
        for index in seen.faces
        for crop, plain in zip(
            seen.crops.get((quality, index), []), seen.crops.get((best, index), []), strict=False
        )
    ]
    if any(faces and (quality, index) not in seen.crops for index, faces in seen.faces.items()):
        raise DfdetectError(
            f"shipped {quality} has only {len(thumbnails)} frames that decode",
            "get it again, or leave --use-shipped out",
        )
    psnr = float(np.median([_psnr_db(*pair) for pair in pairs])) if pairs else np.inf
    if psnr < LEAST_PSNR_DB:
        raise DfdetectError(
            f"shipped {quality} does not show what {best} shows (PSNR {psnr:.0f} dB)",
            "see whether the two files belong together, or leave --use-shipped out",
        )


def _thumbnail(picture: Picture) -> np.ndarray:
    """float32 [18,32]: enough to recognise a frame among its neighbours."""
    grey = picture.yuv.reformat(format="gray", threads=1).to_ndarray()
    step = max(1, min(grey.shape) // 120)
    small = cv2.resize(grey[::step, ::step], (32, 18), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32)


def _shift(best: Sequence[np.ndarray], other: Sequence[np.ndarray], reach: int = 3) -> int:
    """By how many frames `other` lags behind `best`; 0 unless another shift fits far better."""
    reach = min(reach, (min(len(best), len(other)) - 1) // 2)
    n = min(len(best), len(other)) - reach
    if reach < 1:
        return 0
    a, b = np.stack(best[: n + reach]), np.stack(other[: n + reach])
    errors = {
        s: float(np.square(a[reach:n] - b[reach + s : n + s]).mean())
        for s in range(-reach, reach + 1)
    }
    fits = min(errors, key=lambda s: errors[s])
    return fits if errors[0] > 2 * errors[fits] + 1 else 0


def _psnr_db(image: np.ndarray, other: np.ndarray) -> float:
    """Of two uint8 images of one shape; at most 99."""
    error = float(np.square(image.astype(np.float32) - other).mean())
    return min(99.0, 10 * np.log10(255**2 / max(error, 1e-9)))


# --- which face ------------------------------------------------------------------------------


def _choose(
    tracks: list[Track],
    task: Task,
    wanted: list[int],
    size: tuple[int, int],
    warnings: list[str],
) -> tuple[list[Track], str]:
    """The tracks to keep and how they were chosen: by the mask if there is one."""
    if task.video.mask:
        chosen = _masked_track(tracks, task, wanted, size, warnings)
        if chosen is not None:
            return [chosen], "mask"
    if task.recipe.tracks == "all":
        return tracks, "all"
    if len(tracks) > 1:
        warnings.append(f"{len(tracks)} faces were followed; the main one was kept")
    return tracks[:1], "main"


def _masked_track(
    tracks: list[Track],
    task: Task,
    wanted: list[int],
    size: tuple[int, int],
    warnings: list[str],
) -> Track | None:
    """The track whose boxes hold most of the mask's bright pixels; None if the mask says nothing.
    A mask may be smaller or larger than the picture, of (height, width) `size`.

    Errors: DfdetectError if no face is where the mask is.
    """
    held: Counter = Counter()
    bright = 0
    try:
        with open_media(task.video.mask, task.limits) as media:
            for picture in media.pictures():
                if picture.index not in wanted:
                    continue
                mask = picture.rgb().max(-1) >= MASK_LEVEL
                scale = (mask.shape[1] / size[1], mask.shape[0] / size[0])
                if not 0.95 < scale[0] / scale[1] < 1.05:
                    warnings.append("the mask is of another shape; the main face was kept")
                    return None
                bright += int(mask.sum())
                position = wanted.index(picture.index)
                for track in tracks:
                    if face := track.faces.get(position):
                        held[track.track_id] += _inside(mask, face.box_xyxy * np.tile(scale, 2))
    except DfdetectError as error:
        cause = printable(error.message).removeprefix(f"{printable(task.video.mask)}: ")
        warnings.append(f"the mask cannot be read ({cause}); the main face was kept")
        return None
    if not bright:
        warnings.append("the mask is empty; the main face was kept")
        return None
    best = max(tracks, key=lambda track: held[track.track_id])
    if not held[best.track_id]:
        raise _NoFace("no face was found where the mask says it was manipulated")
    return best


def _inside(mask: np.ndarray, box_xyxy: np.ndarray) -> int:
    """Bright pixels of bool `mask` [H,W] within a box."""
    x0, y0, x1, y1 = (max(0, round(float(v))) for v in box_xyxy)
    return int(mask[y0:y1, x0:x1].sum())


# --- crops that the dataset ships --------------------------------------------------------------


def _ready_crops(task: Task) -> Cut:
    """Crops as they were shipped, brought to the recipe's size; the same frames at each quality."""
    video, recipe = task.video, task.recipe
    asked = parse_qualities(recipe.qualities)
    stored = [q.name for q in asked if q.name in video.crops]
    derived = [q for q in asked if q.kind == "jpeg" and q.name not in video.crops]
    lacking = [q.name for q in asked if q.name not in stored and q not in derived]
    if lacking or (derived and "raw" not in video.crops):
        raise DfdetectError(
            f"{(lacking or ['raw'])[0]} is not among the face crops that were shipped, only "
            f"{', '.join(video.crops)}",
            f"use --qualities {','.join(video.crops)}: crops cannot be encoded as video",
        )
    source_qualities = list(dict.fromkeys([*stored, *(["raw"] if derived else [])]))
    by_place = {quality: _placed(video.crops[quality]) for quality in source_qualities}
    common = sorted(set.intersection(*(set(names) for names in by_place.values())))
    if any(place[0] < 0 for place in common) and len({*map(tuple, video.crops.values())}) > 1:
        raise DfdetectError(
            "its crops have no frame numbers, and other names at each quality: "
            "which belong together cannot be told",
            "name them by frame, or import one quality",
        )
    numbers = sorted({number for number, _ in common})
    chosen_numbers = {numbers[i] for i in sample_indices(len(numbers), recipe.frames)}
    chosen = [place for place in common if place[0] in chosen_numbers]
    digest, n_bytes, crops, first = sha256(), 0, [], None
    read = _member_reader(video.path)
    for number, track in chosen:
        images = {}
        for quality in source_qualities:
            name = by_place[quality][number, track]
            content = read(name)
            with open_media(Path(name), task.limits, content) as media:
                image = next(iter(media.pictures())).rgb()
            digest.update(content)
            n_bytes += len(content) if quality == source_qualities[0] else 0
            first = first or media.info
            images[quality] = to_input(_squared(image), recipe.crop.size)
        images |= {q.name: jpeg_round_trip(images["raw"], int(q.level)) for q in derived}
        crops.append(
            Crop(
                {q: images[q] for q in recipe.qualities},
                number if number >= 0 else -1 - number,
                None,
                track,
                None,
                image.shape[1],
            )
        )
    if first is None:
        raise DfdetectError("holds no picture", "see whether the dataset is complete")
    facts = {
        "source_sha256": digest.hexdigest(),
        "source_bytes": n_bytes,
        "container": first.container,
        "codec": first.codec,
        "pix_fmt": first.pix_fmt,
        "width": first.width,
        "height": first.height,
        "fps": None,
        "n_frames": min(len(names) for names in video.crops.values()),
        "bits_per_pixel": 8 * n_bytes / (first.width * first.height * len(chosen)),
    }
    return Cut(crops, "shipped", len({track for _, track in common}), facts, [])


def _placed(names: Sequence[str]) -> dict[tuple[int, int], str]:
    """{(frame number, track): name}, read off names as 000012.png, 000012_0.png (as we write
    them) or frame_12.png; where that is not one place for each, they are counted: -1, -2 ..."""
    stems = [PurePosixPath(name).stem for name in names]
    ours = [re.fullmatch(r"(\d{1,9})(?:_(\d{1,4}))?", stem) for stem in stems]
    trailing = [re.fullmatch(r".*?(\d{1,9})", stem) for stem in stems]
    counted = [(-1 - i, 0) for i in range(len(names))]
    for places in (
        [(int(m[1]), int(m[2] or 0)) for m in ours if m],
        [(int(m[1]), 0) for m in trailing if m],
        counted,
    ):
        if len(set(places)) == len(names):
            return dict(zip(places, names, strict=True))
    raise AssertionError("counting gives every name a place")


def _member_reader(path: Path) -> Callable[[str], bytes]:
    """Reads a file below a folder, or a member of a tar archive; never one outside of it."""
    if path.is_dir():
        root = path.resolve()

        def read(name: str) -> bytes:
            file = (root / name).resolve()
            if not file.is_relative_to(root) or not file.is_file():
                raise DfdetectError(f"{printable(name)} is not a file below it")
            return file.read_bytes()

        return read
    archive = _open_archive(path)

    def read_member(name: str) -> bytes:
        with suppress(KeyError, OSError, EOFError, tarfile.TarError, zlib.error):
            if (file := archive.extractfile(name)) is not None:
                return file.read()
        raise DfdetectError(f"{printable(name)} cannot be read from the archive")

    return read_member


def _open_archive(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DfdetectError(f"not a readable tar archive ({error})", "get it again") from error


def _squared(image: np.ndarray) -> np.ndarray:
    """The middle square of a crop that is not one."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


# --- writing ---------------------------------------------------------------------------------


def _write_crops(task: Task, cut: Cut) -> list[dict]:
    video, recipe = task.video, task.recipe
    key = folder_key(video.video_id)
    of_the_video = {
        "video_id": video.video_id,
        "label": video.label,
        "dataset": video.dataset,
        "manipulation": video.manipulation,
        "identities": list(video.identities),
        "footage": video.footage,
        "split": task.split,
        "source": printable(video.source),
        "source_quality": video.quality,
        "face_choice": cut.face_choice,
        "n_faces": cut.n_faces,
        "warnings": "; ".join(cut.warnings),
        **cut.facts,
    }

    def write(crop: Crop) -> list[dict]:
        of_the_crop = {
            "sample_id": f"{video.video_id}/{crop.frame_index:06d}/{crop.track_id}",
            "frame_index": crop.frame_index,
            "time_s": crop.time_s,
            "track_id": crop.track_id,
            "face_px": crop.face_px,
        }
        if crop.face:
            of_the_crop |= {
                "box_xyxy": crop.face.box_xyxy.tolist(),
                "landmarks": crop.face.landmarks.reshape(-1).tolist(),
                "confidence": crop.face.confidence,
            }
        reference = crop.images.get("raw", crop.images[recipe.qualities[0]])
        rows = []
        for quality, image in crop.images.items():
            name = f"{crop.frame_index:06d}_{crop.track_id}.{recipe.format}"
            relative = f"faces/{quality}/{key}/{name}"
            content = encode_crop(image, recipe.format)
            write_whole(task.out / relative, content)
            of_the_file = {
                "path": relative,
                "crop_sha256": sha256(content).hexdigest(),
                "quality": quality,
                "psnr_db": None if image is reference else _psnr_db(image, reference),
            }
            rows.append(of_the_video | of_the_crop | of_the_file)
        return rows

    with ThreadPoolExecutor(WRITERS) as writers:
        rows = [row for of_one in writers.map(write, cut.crops) for row in of_one]
    remove_crops(task.out, video.video_id, {row["path"] for row in rows})
    write_part(task.out, video.video_id, rows)
    return rows


def forget_crops(task: Task) -> None:
    """No crops without a part; but what an earlier run finished stays until it is replaced."""
    if not part_path(task.out, task.video.video_id).exists():
        remove_crops(task.out, task.video.video_id)


def remove_crops(out: Path, video_id: str, but: Collection[str] = ()) -> None:
    """What an earlier run left of an unfinished video, or of one whose source has changed since;
    `but` are paths below `out`."""
    for crop in (out / "faces").glob(f"*/{folder_key(video_id)}/*"):
        if str(crop.relative_to(out)) not in but:
            with suppress(OSError):
                crop.unlink()


def encode_crop(image: np.ndarray, file_format: str) -> bytes:
    """uint8 [S,S,3] RGB -> the bytes of a PNG or a lossless WebP file."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    # OpenCV takes a WebP quality above 100 for lossless.
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if file_format == "webp" else []
    return cv2.imencode(f".{file_format}", bgr, options)[1].tobytes()
