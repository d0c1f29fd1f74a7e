"""Verdict + its file -> the file with boxes, ids and scores drawn in: a video with its own sound,
or a picture.

The file is decoded in a child process. A thick box lies where a face was looked at; between two
such frames box and score are interpolated and the box is thin; where a face was lost none is drawn.
A strip below the picture holds the verdict, so that no copy goes about without it.
"""

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfdetect import __version__
from dfdetect.errors import DfdetectError
from dfdetect.files import make_folder, whole_file
from dfdetect.reports.timeline import indices_used, unbroken
from dfdetect.results import FrameScore, Verdict
from dfdetect.video import Limits, open_media, redraw
from dfdetect.workers import Died, run_all

VIDEO_SUFFIX, PICTURE_SUFFIXES = ".mp4", (".png", ".jpg", ".jpeg")
INK, GROUND = "white", "black"
NOTE = (
    "Beside each box: the network's score of that moment; thin boxes are between frames looked at."
)


class Mark(NamedTuple):
    """One face in one frame: box float [4] xyxy, frame px; `looked_at`: not interpolated."""

    track: int
    box: np.ndarray
    score: float
    looked_at: bool


def write_overlay(
    verdict: Verdict,
    out: Path,
    limits: Limits = Limits(),
    max_seconds: float = 1800,
    max_memory_gb: float = 6,
    on_frame: Callable[[int], None] = lambda n: None,
) -> list[str]:
    """Draw `verdict` into a copy of its file, `out`: .mp4 of a video, .png or .jpg of a picture.
    Written whole or not at all. Returns notes on what is not as in the file. `on_frame` is told
    now and then, from another thread, how many frames are drawn.

    Errors: DfdetectError for another suffix, a file that cannot be read or is not the one that the
    verdict is of, limits exceeded, a full disk.
    """
    checked_suffix(out)
    make_folder(out.parent)
    with whole_file(out) as temporary, _counter(on_frame) as counter:
        job = _Job(verdict, temporary, out.suffix.lower(), limits, counter)
        ((_, result),) = run_all(_draw_file, [job], 1, max_seconds, max_memory_gb)
        if isinstance(result, Died):
            raise DfdetectError(f"{verdict.input}: no overlay: {result.cause}", result.hint)
        return result


@contextmanager
def _counter(on_frame: Callable[[int], None]) -> Iterator[Path]:
    """A file into which a child writes how many frames it has drawn."""
    done = threading.Event()
    with tempfile.NamedTemporaryFile() as file:

        def watch() -> None:
            is_over = False
            while not is_over:
                is_over = done.wait(0.2)
                on_frame(int.from_bytes(os.pread(file.fileno(), 8, 0), "little"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield Path(file.name)
        finally:
            done.set()
            watcher.join()


def checked_suffix(out: Path) -> None:
    """Errors: DfdetectError for a name that no overlay can have."""
    if out.suffix.lower() not in (VIDEO_SUFFIX, *PICTURE_SUFFIXES):
        raise DfdetectError(
            f"{out}: an overlay is an MP4 of a video, a PNG or JPEG of a picture",
            "give a name that ends in .mp4, .png or .jpg",
        )


def marks_at(verdict: Verdict, index: int) -> list[Mark]:
    """The faces in frame `index`, in the order of their ids.

    A face is held for half a step before the first and after the last frame that it was looked at
    in, and where it has moved by more than its width between two.
    """
    used = indices_used(verdict)
    half = float(np.median(np.diff(used))) / 2 if len(used) > 1 else 0.0
    marks = []
    for track in verdict.tracks:
        for part in unbroken(track.frames, used):
            if part[0].index - half <= index <= part[-1].index + half:
                marks += _mark(track.track, part, index, half)
    return marks


def draw_marks(image: np.ndarray, marks: Sequence[Mark]) -> np.ndarray:
    """Boxes and labels in a copy of uint8 [H,W,3] RGB."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    unit = max(1, round(min(image.shape[:2]) / 360))
    font = _font(image)
    for mark in marks:
        box = [round(float(v)) for v in mark.box]
        width = unit * (3 if mark.looked_at else 1)
        pen.rectangle([v + d * unit for v, d in zip(box, (-1, -1, 1, 1), strict=True)],
                      outline=GROUND, width=width + 2 * unit)  # fmt: skip
        pen.rectangle(box, outline=INK, width=width)
    for mark in marks:
        _label(pen, f"face {mark.track}: {mark.score:.2f}", mark.box, picture.size, font, unit)
    return np.asarray(picture)


def strip(verdict: Verdict, width: int, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """The verdict in words, white on black: uint8 [h,`width`,3], h even."""
    words = ["Experimental model:"] if verdict.experimental else []
    words.append(verdict.call)
    if verdict.score is not None:
        words.append(f"({verdict.score_meaning} {verdict.score:.3g}).")
    several = len(indices_used(verdict)) > 1
    words += [*(NOTE.split() if several else ()), f"dfdetect {__version__}"]
    gap = round(font.size / 2)
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 2 * gap:
            lines.append(word)
        else:
            lines[-1] = longer
    height = (len(lines) * round(1.3 * font.size) + gap + 1) // 2 * 2
    picture = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        pen.text((gap, gap / 2 + i * round(1.3 * font.size)), line, INK, font)
    return np.asarray(picture)


def _mark(track: int, part: Sequence[FrameScore], index: int, half: float) -> list[Mark]:
    """Of one face that was seen in every frame used from `part`'s first to its last."""
    after = next((f for f in part if f.index >= index), part[-1])
    before = next((f for f in reversed(part) if f.index <= index), part[0])
    box, next_box = np.array(before.box), np.array(after.box)
    share = (index - before.index) / (after.index - before.index or 1)
    if np.abs(next_box - box).max() > (box[2] - box[0]):  # a cut, or a leap
        nearest = before if share <= 0.5 else after
        return [Mark(track, np.array(nearest.box), nearest.score, nearest.index == index)]
    score = before.score + share * (after.score - before.score)
    return [
        Mark(track, box + share * (next_box - box), score, index in (before.index, after.index))
    ]


def _font(image: np.ndarray) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(max(11, round(min(image.shape[:2]) / 26)))


def _label(pen: ImageDraw.ImageDraw, text: str, box: np.ndarray, size: tuple[int, int],
           font: ImageFont.FreeTypeFont, unit: int) -> None:  # fmt: skip
    """White on a black plate, above the box; where there is no room, inside it."""
    width, height = round(font.getlength(text)) + 6 * unit, round(1.3 * font.size)
    left = int(np.clip(box[0], 0, max(0, size[0] - width)))
    top = round(float(box[1])) - height - 2 * unit
    top = int(np.clip(top if top >= 0 else box[1] + 4 * unit, 0, max(0, size[1] - height)))
    pen.rectangle((left, top, left + width, top + height), GROUND)
    pen.text((left + 3 * unit, top + 0.1 * font.size), text, INK, font)


# --- in a child --------------------------------------------------------------------------------


class _Job(NamedTuple):
    verdict: Verdict
    out: Path
    suffix: str
    limits: Limits
    counter: Path

    def __str__(self) -> str:  # in messages
        return self.verdict.input


def _draw_file(job: _Job) -> list[str]:
    verdict = job.verdict
    with (
        open_media(verdict.input, job.limits) as media,
        open(job.counter, "r+b", buffering=0) as counter,
    ):
        if media.sha256() != verdict.sha256:
            raise DfdetectError(
                f"{verdict.input}: has changed since it was scanned", "scan it again"
            )
        still = media.info.is_still
        if still != (job.suffix in PICTURE_SUFFIXES):
            suffix = ".png" if still else VIDEO_SUFFIX
            kind = "picture" if still else "video"
            raise DfdetectError(f"{verdict.input}: a {kind}", f"name its overlay *{suffix}")
        below: dict[int, np.ndarray] = {}

        def draw(image: np.ndarray, index: int) -> np.ndarray:
            image = draw_marks(image, marks_at(verdict, index))
            width = image.shape[1]
            if width not in below:
                below[width] = strip(verdict, width, _font(image))
            counter.seek(0)
            counter.write((index + 1).to_bytes(8, "little"))
            return np.concatenate([image, below[width]])

        if still:
            (picture,) = media.pictures()
            buffer = io.BytesIO()
            kind = "PNG" if job.suffix == ".png" else "JPEG"
            Image.fromarray(draw(picture.rgb(), 0)).save(buffer, kind, quality=92)
            job.out.write_bytes(buffer.getvalue())
            return []
        with_sound = redraw(media, job.out, lambda f: _even(draw(_even(f.image), f.index)))
        return list(media.warnings) + ([] if with_sound else ["the overlay is without sound"])


def _even(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2])
