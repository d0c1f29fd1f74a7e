"""One video or picture -> its faces, cut by the checkpoint's recipe, and what it makes of each.

The file is opened in a child process (examining.py); what comes back from there is scored here.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dfdetect.checkpoint import Calibration, Model
from dfdetect.engine import load_engine
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.examining import Look, Seen, Unseen, examine, sha256_if_readable
from dfdetect.faces import Face, Track
from dfdetect.results import FrameScore, MediaFacts, TrackScore, sigmoid
from dfdetect.video import Limits, media_below
from dfdetect.workers import Children, Died, warm_up

MIN_COVERAGE = 0.2
"""A track in fewer than this share of the sampled frames does not decide a video."""

LIMITS = Limits(max_frames=20_000)

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """What one file may cost. `limits` are of what is opened, `max_faces` of a frame's faces, the
    largest first; `max_seconds` and `max_memory_gb` are of the process that decodes it."""

    limits: Limits = LIMITS
    max_faces: int = 20
    max_seconds: float = 600
    max_memory_gb: float = 4


class ScoredFace(NamedTuple):
    """One face in one sampled frame: `image` uint8 [S,S,3] RGB is what the network saw of it."""

    track_id: int
    face: Face
    image: np.ndarray
    frame: FrameScore


class ScoredInput(NamedTuple):
    """A video or picture: its tracks, main one first, and their faces, track by track."""

    sha256: str
    tracks: list[Track]
    faces: list[ScoredFace]
    n_frames: int
    is_still: bool
    warnings: list[str]
    calibration: Calibration | None = None
    media: MediaFacts | None = None

    def track_scores(self) -> list[TrackScore]:
        """Each track with the mean score of its frames, calibrated if the model is."""
        by_track: dict[int, list[FrameScore]] = {track.track_id: [] for track in self.tracks}
        for seen in self.faces:
            by_track[seen.track_id].append(seen.frame)
        means = {i: float(np.mean([f.score for f in rows])) for i, rows in by_track.items()}
        # A probability is not rounded: at a rare prior all of them are small.
        of = self.calibration.probability if self.calibration else lambda mean: round(mean, 6)
        return [TrackScore(i, float(of(means[i])), rows) for i, rows in by_track.items()]


class Unreadable(DfdetectError):
    """A file that gave no faces to score; `sha256` of its bytes, if it could be opened."""

    def __init__(self, message: str, hint: str, sha256: str | None) -> None:
        super().__init__(message, hint)
        self.sha256 = sha256

    def __reduce__(self) -> tuple:
        return type(self), (self.message, self.hint, self.sha256)


class FaceScorer:
    """A loaded model that scores the faces of one input after another, in any thread."""

    def __init__(
        self,
        model: str | Path | Model,
        frames: int = 32,
        device: str = "auto",
        bounds: Bounds = Bounds(),
        workers: int = 1,
        engine: str = "auto",
    ) -> None:
        """`frames`: how many frames of a video are looked at, spread evenly; `workers`: how many
        inputs may be decoded at a time; `device` and `engine` as `load_engine` takes them.

        Errors: DfdetectError for a checkpoint that cannot be used.
        """
        warm_up(examine)  # while the model is loaded
        loaded = isinstance(model, Model)
        self.checkpoint = model if loaded else load_engine(model, engine, device)
        self.bounds = bounds
        self._frames = frames
        self._children = Children(examine, workers, bounds.max_seconds, bounds.max_memory_gb)

    def __call__(self, path: Path) -> ScoredInput:
        """Errors: `Unreadable` naming the file when it cannot be read as a video or picture."""
        look = self.look(path)
        return self.score(look, self._children(look))

    def close(self) -> None:
        """End the child processes; a later call starts new ones."""
        self._children.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the scores of a file beside the model."""
        limits = self.bounds.limits
        return {
            "frames": self._frames,
            "max_faces": self.bounds.max_faces,
            "max_frames": limits.max_frames,
            "max_pixels": limits.max_pixels,
            "max_bytes": limits.max_bytes,
            "crop": self.checkpoint.info.crop.model_dump(),
            "image_size": self.checkpoint.image_size,
            "engine": self.checkpoint.engine,
            "device": self.checkpoint.device,
        }

    def look(self, path: Path, position: int = 0) -> Look:
        """What a child is to do with a file."""
        return Look(
            path, path, self.checkpoint.info.crop, self.checkpoint.image_size,
            self._frames, self.bounds.max_faces, self.bounds.limits, position,
        )  # fmt: skip

    @property
    def images_at_once(self) -> int:
        """How many faces, of several files where it takes them, are worth one call of `score_all`:
        on a CPU those of one file, whose result is then told at once."""
        return 1 if self.checkpoint.device == "cpu" else 64

    def score(self, look: Look, found: Seen | Unseen | Died) -> ScoredInput:
        """What a child found, scored.

        Errors: `Unreadable` where it found nothing to score.
        """
        (scored,) = self.score_all([(look, found)])
        if isinstance(scored, Unreadable):
            raise scored
        return scored

    def score_all(
        self, examined: Sequence[tuple[Look, Seen | Unseen | Died]]
    ) -> list[ScoredInput | Unreadable]:
        """What children found in several files, scored together; no score depends on the others."""
        images = [image for _, found in examined for image in _images(found)]
        logits = iter(self.checkpoint.logits(images))
        return [
            self._scored(found, np.array([next(logits) for _ in found.images]))
            if isinstance(found, Seen)
            else _unreadable(look, found)
            for look, found in examined
        ]

    def _scored(self, found: Seen, logits: np.ndarray) -> ScoredInput:
        places = [(track, *place) for track in found.tracks for place in track.faces.items()]
        faces = []
        for (track, position, face), image, score in zip(
            places, found.images, sigmoid(logits), strict=True
        ):
            index, time_s = found.media.frames_used[position]
            box = [round(float(v), 1) for v in face.box_xyxy]
            told = FrameScore(index, time_s, box, round(float(score), 6))
            faces.append(ScoredFace(track.track_id, face, image, told))
        return ScoredInput(
            found.sha256, found.tracks, faces, len(found.media.frames_used), found.is_still,
            found.warnings, self.checkpoint.info.calibration, found.media,
        )  # fmt: skip


def _images(found: Seen | Unseen | Died) -> Sequence[np.ndarray]:
    return found.images if isinstance(found, Seen) else ()


def _unreadable(look: Look, found: Unseen | Died) -> Unreadable:
    sha256 = found.sha256 if isinstance(found, Unseen) else sha256_if_readable(look)
    return Unreadable(f"{look.name}: {found.cause}", found.hint, sha256)


def grouped(
    examined: Iterable[tuple[Look, Seen | Unseen | Died]], n_images: int
) -> Iterator[list[tuple[Look, Seen | Unseen | Died]]]:
    """Groups of `examined`, each as soon as it holds `n_images`."""
    group, n = [], 0
    for pair in examined:
        group.append(pair)
        n += max(1, len(_images(pair[1])))
        if n >= n_images:
            yield group
            group, n = [], 0
    if group:
        yield group


def lasting(tracks: list[TrackScore], n_frames: int) -> list[TrackScore]:
    """The people in view long enough to decide; of `tracks`, if nobody was, the main one."""
    return [t for t in tracks if len(t.frames) >= MIN_COVERAGE * n_frames] or tracks[:1]


def attempts(
    inputs: Iterable[Path], work: Callable[[Path], T]
) -> Iterator[tuple[Path, T | DfdetectError]]:
    """`work` on each input; one that fails gives its error and does not stop the rest.

    Errors: DfdetectError with ExitCode.ENVIRONMENT, which would stop the rest as well.
    """
    for path in inputs:
        result: T | DfdetectError
        try:
            result = work(path)
        except DfdetectError as error:
            if error.exit_code == ExitCode.ENVIRONMENT:
                raise
            result = error
        except Exception as error:  # a surprise about one file must not end the batch
            if os.environ.get("DFDETECT_DEBUG"):
                raise
            cause = f"{path}: unexpected {type(error).__name__}: {error}"
            result = DfdetectError(cause, "run with DFDETECT_DEBUG=1 and report it")
        yield path, result


def expand_inputs(inputs: Iterable[Path]) -> Iterator[Path]:
    """Files as they are; of folders, the media files below them, sorted. A folder without any
    stays in the list, so that it gets an error of its own and the rest goes on."""
    for path in inputs:
        yield from (media_below(path) or [path]) if path.is_dir() else [path]
