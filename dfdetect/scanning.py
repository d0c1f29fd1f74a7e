"""scan: checkpoint + one video or picture -> Verdict, by the crop recipe that training used."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dfdetect.checkpoint import Checkpoint
from dfdetect.errors import DfdetectError
from dfdetect.faces import Track
from dfdetect.results import Verdict, decide
from dfdetect.scoring import MIN_COVERAGE, FaceScorer, ScoredInput, attempts, lasting

MIN_FRAMES = 3
"""A video with fewer scored frames of a face gives no call."""
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
        self._score = FaceScorer(model, frames, device)
        self.checkpoint = self._score.checkpoint

    def __call__(self, path: str | Path) -> Verdict:
        """The score is that of the person who looks most fake, among those long in view.

        Errors: DfdetectError naming the file when it cannot be read as a video or picture.
        """
        path = Path(path)
        scored = self._score(path)
        checkpoint, n_frames, still = self.checkpoint, scored.n_frames, scored.is_still
        calibration = checkpoint.info.calibration
        tracks = scored.track_scores()
        notes = [*scored.warnings, *_cautions(scored)]
        call, score = "no-face", None
        if tracks:
            deciding = lasting(tracks, n_frames)
            most_fake = max(deciding, key=lambda t: t.score)
            score = most_fake.score
            longest = max(len(t.frames) for t in deciding)
            call = decide(score, checkpoint.band)
            if checkpoint.band is None:
                notes.append(f"inconclusive: the model makes {checkpoint.basis}")
            elif call == "inconclusive":
                low, high = checkpoint.band
                notes.append(f"inconclusive: the score lies from {low:.3g} to {high:.3g}")
            if not still and longest < MIN_FRAMES:
                call = "inconclusive"
                notes.append(f"inconclusive: a face in only {longest} of {n_frames} frames")
            if still and call != "inconclusive" and not self._knows_pictures:
                call = "inconclusive"
                notes.append(
                    "inconclusive: a single picture, and the model was validated on videos"
                )
            width = _median_width(scored.tracks[most_fake.track])
            least = calibration.least_face_px if calibration else None
            if least is not None and width < least:
                call = "inconclusive"
                notes.append(
                    f"inconclusive: a face {width:.0f} px wide, and the model was calibrated on "
                    f"wider ones, {least:.0f} px and up"
                )
        return Verdict(
            str(path),
            scored.sha256,
            call,
            score,
            checkpoint.threshold if calibration else round(checkpoint.threshold, 6),
            tracks,
            self.model_notes(),
            notes,
            calibration.meaning if calibration else "uncalibrated score",
            calibration.experimental if calibration else None,
        )

    @property
    def _knows_pictures(self) -> bool:
        """Whether the videos that calls rest on held enough single pictures of both classes."""
        video, calibration = (
            self.checkpoint.info.val.get("video", {}),
            self.checkpoint.info.calibration,
        )
        counts = (
            calibration.n_pictures.values()
            if calibration
            else [video.get(f"n_{k}_pictures", 0) for k in ("real", "fake")]
        )
        return min(counts) >= MIN_PICTURES

    def model_notes(self) -> dict[str, Any]:
        """Which model spoke, for the verdict."""
        return {
            "name": self.checkpoint.name,
            "sha256": self.checkpoint.sha256,
            "band": list(self.checkpoint.band) if self.checkpoint.band else None,
            "basis": self.checkpoint.basis,
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
    for path, result in attempts(inputs, scanner):
        on_result(path, result)


def _cautions(scored: ScoredInput) -> list[str]:
    """What weakens a verdict, in words."""
    notes = []
    tracks, n_frames = scored.tracks, scored.n_frames
    if not tracks:
        return notes
    n_seen = len(tracks[0].faces)
    width = _median_width(tracks[0])
    if width < SMALL_FACE_PX:
        notes.append(f"small face: {width:.0f} px wide")
    if not scored.is_still and n_seen < n_frames / 2:
        notes.append(f"the main face is in {n_seen} of {n_frames} frames looked at")
    n_lasting = sum(len(t.faces) >= MIN_COVERAGE * n_frames for t in tracks)
    if n_lasting > 1:
        notes.append(f"{n_lasting} people: the verdict is that of the most suspicious one")
    return notes


def _median_width(track: Track) -> float:
    """Of its faces, in frame px."""
    return float(np.median([face.width_px for face in track.faces.values()]))
