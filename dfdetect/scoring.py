"""One video or picture -> its faces, cut by the checkpoint's recipe, and what it makes of each."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from dfdetect.checkpoint import Calibration, Checkpoint, load_checkpoint
from dfdetect.errors import DfdetectError
from dfdetect.faces import Face, FaceFinder, Track, align, to_input, track_faces
from dfdetect.files import sha256_of
from dfdetect.results import FrameScore, TrackScore, score_images, sigmoid
from dfdetect.video import Frame, media_below, open_media, sample_frames

MIN_COVERAGE = 0.2
"""A track in fewer than this share of the sampled frames does not decide a video."""

T = TypeVar("T")


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

    def track_scores(self) -> list[TrackScore]:
        """Each track with the mean score of its frames, calibrated if the model is."""
        by_track: dict[int, list[FrameScore]] = {track.track_id: [] for track in self.tracks}
        for seen in self.faces:
            by_track[seen.track_id].append(seen.frame)
        means = {i: float(np.mean([f.score for f in rows])) for i, rows in by_track.items()}
        # A probability is not rounded: at a rare prior all of them are small.
        of = self.calibration.probability if self.calibration else lambda mean: round(mean, 6)
        return [TrackScore(i, float(of(means[i])), rows) for i, rows in by_track.items()]


class FaceScorer:
    """A loaded model that scores the faces of one input after another."""

    def __init__(
        self, model: str | Path | Checkpoint, frames: int = 32, device: str = "auto"
    ) -> None:
        """`frames`: how many frames of a video are looked at, spread evenly.

        Errors: DfdetectError for a checkpoint that cannot be used.
        """
        loaded = isinstance(model, Checkpoint)
        self.checkpoint = model if loaded else load_checkpoint(model, device)
        self._frames = frames
        # MTCNN's interpolation is not implemented on every accelerator; cpu and cuda are.
        on_gpu = self.checkpoint.device.startswith("cuda")
        self._find_faces = FaceFinder(
            self.checkpoint.info.crop, self.checkpoint.device if on_gpu else "cpu"
        )

    def __call__(self, path: Path) -> ScoredInput:
        """Errors: DfdetectError naming the file when it cannot be read as a video or picture."""
        if path.is_dir():
            raise DfdetectError(
                f"{path}: no video or picture in this folder", "give a folder with media files"
            )
        with open_media(path) as media:
            digest = sha256_of(path)
            frames = list(sample_frames(media, self._frames))
            follow = self._find_faces.follower()
            tracks = track_faces([follow(frame.image) for frame in frames], follow.cuts)
            faces = self._score(frames, tracks)
            still, warnings = media.info.is_still, list(media.warnings)
        calibration = self.checkpoint.info.calibration
        return ScoredInput(digest, tracks, faces, len(frames), still, warnings, calibration)

    def _score(self, frames: list[Frame], tracks: list[Track]) -> list[ScoredFace]:
        detector, recipe = self.checkpoint.detector, self.checkpoint.info.crop
        places = [(t, frames[position], face) for t in tracks for position, face in t.faces.items()]
        inputs = [
            to_input(align(frame.image, face.landmarks, recipe), detector.image_size)
            for _, frame, face in places
        ]
        scores = sigmoid(score_images(detector, inputs, self.checkpoint.device))
        scored = []
        for (track, frame, face), image, score in zip(places, inputs, scores, strict=True):
            box = [round(float(v), 1) for v in face.box_xyxy]
            told = FrameScore(frame.index, round(frame.time_s, 3), box, round(float(score), 6))
            scored.append(ScoredFace(track.track_id, face, image, told))
        return scored


def lasting(tracks: list[TrackScore], n_frames: int) -> list[TrackScore]:
    """The people in view long enough to decide; of `tracks`, if nobody was, the main one."""
    return [t for t in tracks if len(t.frames) >= MIN_COVERAGE * n_frames] or tracks[:1]


def attempts(
    inputs: Iterable[Path], work: Callable[[Path], T]
) -> Iterator[tuple[Path, T | DfdetectError]]:
    """`work` on each input; one that fails gives its error and does not stop the rest."""
    for path in inputs:
        result: T | DfdetectError
        try:
            result = work(path)
        except DfdetectError as error:
            result = error
        except Exception as error:  # a decoder's surprise on one file must not end the batch
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
