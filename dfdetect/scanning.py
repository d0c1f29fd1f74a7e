"""scan: checkpoint + one video or picture -> Verdict, by the crop recipe that training used."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfdetect.checkpoint import Checkpoint, load_checkpoint
from dfdetect.data import to_input
from dfdetect.errors import DfdetectError
from dfdetect.faces import FaceFinder, Track, align, track_faces
from dfdetect.files import sha256_of
from dfdetect.results import FrameScore, TrackScore, Verdict, decide, score_images, sigmoid
from dfdetect.video import Frame, media_below, open_media, sample_frames

MIN_FRAMES = 3
"""A video with fewer scored frames of a face gives no call."""
MIN_COVERAGE = 0.2
"""A track in fewer than this share of the sampled frames does not decide a video."""
MIN_PICTURES = 9
"""Validation pictures of each class below which a single picture gives no call."""
SMALL_FACE_PX = 64


class Scanner:
    """A loaded model that scans one input after another."""

    def __init__(
        self, model: str | Path | Checkpoint, frames: int = 32, device: str = "auto"
    ) -> None:
        """`frames`: how many frames of a video are looked at, spread evenly.

        Errors: DfdetectError for a checkpoint that cannot be used.
        """
        loaded = isinstance(model, Checkpoint)
        self.checkpoint = model if loaded else load_checkpoint(model, device)
        self.frames = frames
        self._recipe = self.checkpoint.info.crop
        # MTCNN's interpolation is not implemented on every accelerator; cpu and cuda are.
        on_gpu = self.checkpoint.device.startswith("cuda")
        self._find_faces = FaceFinder(self._recipe, self.checkpoint.device if on_gpu else "cpu")

    def __call__(self, path: str | Path) -> Verdict:
        """Errors: DfdetectError naming the file when it cannot be read as a video or picture."""
        path = Path(path)
        if path.is_dir():
            raise DfdetectError(
                f"{path}: no video or picture in this folder", "give a folder with media files"
            )
        with open_media(path) as media:
            digest = sha256_of(path)
            frames = list(sample_frames(media, self.frames))
            follow = self._find_faces.follower()
            tracks = track_faces([follow(frame.image) for frame in frames], follow.cuts)
            scored = self._score(frames, tracks)
            notes = [*media.warnings, *_cautions(tracks, frames, media.info.is_still)]
            still = media.info.is_still
        return self._verdict(path, digest, scored, notes, len(frames), still)

    def _score(self, frames: Sequence[Frame], tracks: Sequence[Track]) -> list[TrackScore]:
        places = [(t, position, face) for t in tracks for position, face in t.faces.items()]
        inputs = [
            to_input(align(frames[position].image, face.landmarks, self._recipe), self._size)
            for _, position, face in places
        ]
        scores = sigmoid(score_images(self.checkpoint.detector, inputs, self.checkpoint.device))
        by_track: dict[int, list[FrameScore]] = {track.track_id: [] for track in tracks}
        for (track, position, face), score in zip(places, scores, strict=True):
            frame, box = frames[position], [round(float(v), 1) for v in face.box_xyxy]
            by_track[track.track_id].append(
                FrameScore(frame.index, round(frame.time_s, 3), box, round(float(score), 6))
            )
        return [
            TrackScore(track_id, round(float(np.mean([f.score for f in rows])), 6), rows)
            for track_id, rows in by_track.items()
        ]

    @property
    def _size(self) -> int:
        return self.checkpoint.detector.image_size

    def _verdict(
        self, path: Path, digest: str, tracks: list[TrackScore], notes: list[str], n_frames: int,
        still: bool,
    ) -> Verdict:  # fmt: skip
        """The video's score is that of the person who looks most fake, among those long in view."""
        info = self.checkpoint.info
        call, score = "no-face", None
        if tracks:
            lasting = [t for t in tracks if len(t.frames) >= MIN_COVERAGE * n_frames] or tracks[:1]
            score = max(t.score for t in lasting)
            longest = max(len(t.frames) for t in lasting)
            call = decide(score, self.checkpoint.band)
            if self.checkpoint.band is None:
                notes.append(f"inconclusive: the model makes {info.band_basis}")
            elif call == "inconclusive":
                low, high = self.checkpoint.band
                notes.append(f"inconclusive: the score lies from {low:.3f} to {high:.3f}")
            if not still and longest < MIN_FRAMES:
                call = "inconclusive"
                notes.append(f"inconclusive: a face in only {longest} of {n_frames} frames")
            if still and call != "inconclusive" and not self._knows_pictures:
                call = "inconclusive"
                notes.append(
                    "inconclusive: a single picture, and the model was validated on videos"
                )
        return Verdict(
            str(path),
            digest,
            call,
            score,
            round(info.threshold, 6),
            tracks,
            self.model_notes(),
            notes,
        )

    @property
    def _knows_pictures(self) -> bool:
        """Whether val held enough single pictures of both classes to say how often calls err."""
        video = self.checkpoint.info.val.get("video", {})
        return min(video.get(f"n_{k}_pictures", 0) for k in ("real", "fake")) >= MIN_PICTURES

    def model_notes(self) -> dict[str, Any]:
        """Which model spoke, for the verdict."""
        return {
            "name": self.checkpoint.name,
            "sha256": self.checkpoint.sha256,
            "band": list(self.checkpoint.band) if self.checkpoint.band else None,
            "basis": self.checkpoint.info.band_basis,
        }


def scan(
    path: str | Path, model: str | Path | Checkpoint, frames: int = 32, device: str = "auto"
) -> Verdict:
    """Scan one video or picture with a run folder, a detector.safetensors or a loaded Checkpoint.

    For many inputs make one `Scanner` and call it. Errors: DfdetectError.
    """
    return Scanner(model, frames, device)(path)


def scan_many(
    scanner: Scanner,
    inputs: Iterable[Path],
    on_result: Callable[[Path, Verdict | DfdetectError], None],
) -> None:
    """Scan each input; one that fails is reported as its error and does not stop the rest."""
    for path in inputs:
        result: Verdict | DfdetectError
        try:
            result = scanner(path)
        except DfdetectError as error:
            result = error
        except Exception as error:  # a decoder's surprise on one file must not end the batch
            if os.environ.get("DFDETECT_DEBUG"):
                raise
            cause = f"{path}: unexpected {type(error).__name__}: {error}"
            result = DfdetectError(cause, "run with DFDETECT_DEBUG=1 and report it")
        on_result(path, result)


def expand_inputs(inputs: Iterable[Path]) -> Iterator[Path]:
    """Files as they are; of folders, the media files below them, sorted. A folder without any
    stays in the list, so that it gets an error of its own and the rest goes on."""
    for path in inputs:
        yield from (media_below(path) or [path]) if path.is_dir() else [path]


def _cautions(tracks: Sequence[Track], frames: Sequence[Frame], still: bool) -> list[str]:
    """What weakens a verdict, in words."""
    notes = []
    if not tracks:
        return notes
    n_seen = len(tracks[0].faces)
    width = float(np.median([face.width_px for face in tracks[0].faces.values()]))
    if width < SMALL_FACE_PX:
        notes.append(f"small face: {width:.0f} px wide")
    if not still and n_seen < len(frames) / 2:
        notes.append(f"the main face is in {n_seen} of {len(frames)} frames looked at")
    lasting = [t for t in tracks if len(t.faces) >= MIN_COVERAGE * len(frames)]
    if len(lasting) > 1:
        notes.append(f"{len(lasting)} people: the verdict is that of the most suspicious one")
    return notes
