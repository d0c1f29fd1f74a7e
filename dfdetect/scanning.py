"""scan: checkpoint + videos or pictures -> Verdicts, by the crop recipe that training used.

Strangers' files are decoded in child processes; their faces are scored here. A verdict depends on
the file, the model and the settings alone: not on what else is scanned, in which order, or by how
many workers.
"""

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dfdetect import __version__
from dfdetect.checkpoint import Model
from dfdetect.errors import DfdetectError
from dfdetect.examining import Look, examine
from dfdetect.faces import Track
from dfdetect.likeness import why_unlike
from dfdetect.results import SCHEMA_VERSION, Call, TrackScore, Verdict, decide
from dfdetect.scoring import (
    MIN_COVERAGE,
    Bounds,
    FaceScorer,
    ScoredInput,
    Unreadable,
    grouped,
    lasting,
)
from dfdetect.shipped import STARTER
from dfdetect.video import library_versions
from dfdetect.workers import run_all, run_on_cluster

MIN_FRAMES = 3
"""A person in fewer scored frames of a video gets no call."""
MIN_PICTURES = 9
"""Validation pictures of each class below which a single picture gives no call."""
SMALL_FACE_PX = 64
FEW_FRAMES = 8
HEAVY_BITS_PER_PIXEL = {"video": 0.03, "still": 0.5}
"""Below these a file is heavily compressed: about CRF 35 of H.264, and quality 30 of JPEG."""


class Scanner:
    """A loaded model that scans one input after another; any number of threads may call it."""

    def __init__(
        self,
        model: str | Path | Model = STARTER,
        frames: int = 32,
        device: str = "auto",
        bounds: Bounds = Bounds(),
        workers: int = 1,
        engine: str = "auto",
    ) -> None:
        """`frames`: how many frames of a video are looked at, spread evenly; `workers`: how many
        inputs are decoded at a time when several threads call; `engine`: torch, onnx, or auto,
        which is onnx where `dfdetect export` has left a file beside the checkpoint.

        Errors: DfdetectError for a checkpoint that cannot be used.
        """
        self._started = _now()
        self.scorer = FaceScorer(model, frames, device, bounds, workers, engine)
        self.checkpoint = self.scorer.checkpoint

    def __call__(self, path: str | Path) -> Verdict:
        """The score is that of the person who looks most fake, among those long in view.

        Errors: DfdetectError naming the file when it cannot be read as a video or picture.
        """
        path = Path(path)
        return self.judge(path, self.scorer(path))

    def close(self) -> None:
        """End the child processes that decode, which otherwise end with the scanner."""
        self.scorer.close()

    def judge(self, path: Path, scored: ScoredInput) -> Verdict:
        """The verdict that the scores of an input amount to."""
        checkpoint, calibration = self.checkpoint, self.checkpoint.info.calibration
        tracks = [self._call_of(track, scored) for track in scored.track_scores()]
        call, score, reasons = "no-face", None, [_no_face(scored)]
        notes = [*scored.warnings, *_cautions(scored)]
        if tracks:
            deciding = max(lasting(tracks, scored.n_frames), key=lambda track: track.score)
            call, score, reasons = deciding.call, deciding.score, deciding.reasons
            notes += [f"inconclusive: {reason}" for reason in reasons]
        return Verdict(
            input=str(path),
            sha256=scored.sha256,
            call=call,
            score=score,
            threshold=checkpoint.threshold if calibration else round(checkpoint.threshold, 6),
            tracks=tracks,
            model=self.model_notes(),
            warnings=notes,
            score_meaning=calibration.meaning if calibration else "uncalibrated score",
            experimental=calibration.experimental if calibration else None,
            reasons=reasons,
            media=scored.media,
            tool=tool_notes(),
            settings=self.scorer.settings,
            settings_sha256=self.settings_sha256,
            run=self.run_notes(),
        )

    def _call_of(self, track: TrackScore, scored: ScoredInput) -> TrackScore:
        """The track with its call, and what keeps it from one."""
        checkpoint, calibration = self.checkpoint, self.checkpoint.info.calibration
        call, reasons = decide(track.score, checkpoint.band), []
        if checkpoint.band is None:
            reasons.append(f"the model makes {checkpoint.basis}")
        elif call == "inconclusive":
            low, high = checkpoint.band
            reasons.append(f"the score lies from {low:.3g} to {high:.3g}")
        if not scored.is_still and len(track.frames) < MIN_FRAMES:
            reasons.append(f"a face in only {len(track.frames)} of {scored.n_frames} frames")
        if scored.is_still and call != "inconclusive" and not self._knows_pictures:
            reasons.append("a single picture, and the model was validated on videos")
        width = _median_width(scored.tracks[track.track])
        least = calibration.least_face_px if calibration else None
        if least is not None and width < least:
            reasons.append(
                f"a face {width:.0f} px wide, and the model was calibrated on wider ones, "
                f"{least:.0f} px and up"
            )
        if known := checkpoint.info.detail:
            images = [face.image for face in scored.faces if face.track_id == track.track]
            if reason := why_unlike(images, known):
                reasons.append(reason)
        settled: Call = "inconclusive" if reasons else call
        return replace(track, call=settled, reasons=reasons)

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
            "comes_with_dfdetect": self.checkpoint.path.with_suffix("") == STARTER.with_suffix(""),
            "sha256": self.checkpoint.sha256,
            "checkpoint_sha256": self.checkpoint.checkpoint_sha256,
            "band": list(self.checkpoint.band) if self.checkpoint.band else None,
            "basis": self.checkpoint.basis,
        }

    @property
    def settings_sha256(self) -> str:
        """Of all that decides a verdict beside the file: tool, model and settings."""
        told = [tool_notes(), self.model_notes(), self.scorer.settings]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def run_notes(self) -> dict[str, str]:
        """When, where and by which command: all that differs from run to run."""
        return {
            "started": self._started,
            "finished": _now(),
            "host": platform.node(),
            "command": shlex.join(sys.argv),
        }

    def error_json(self, path: Path, error: DfdetectError) -> dict[str, Any]:
        """What is told of an input that gave no verdict."""
        return {
            "schema_version": SCHEMA_VERSION,
            "input": str(path),
            "sha256": getattr(error, "sha256", None),
            "error": {"message": error.message, "hint": error.hint},
            "settings_sha256": self.settings_sha256,
            "run": self.run_notes(),
        }


def scan(
    path: str | Path, model: str | Path | Model = STARTER, frames: int = 32, device: str = "auto",
    engine: str = "auto",
) -> Verdict:  # fmt: skip
    """Scan one video or picture with a run folder, a detector.safetensors, its ONNX file or a
    loaded model.

    For many inputs make one `Scanner` and call it. Errors: DfdetectError.
    """
    with closing(Scanner(model, frames, device, engine=engine)) as scanner:
        return scanner(path)


def scan_many(
    scanner: Scanner,
    inputs: Iterable[Path],
    on_result: Callable[[Path, Verdict | DfdetectError], None],
    workers: int = 1,
    cluster: str | None = None,
    on_scored: Callable[[Verdict, ScoredInput], None] = lambda verdict, scored: None,
) -> None:
    """Scan each input; one that fails is reported as its error and does not stop the rest.

    Files are decoded by `workers` processes, or by a Dask cluster (its scheduler's address), and
    results come in the order of the inputs, of which few are taken ahead. `on_scored` gets the
    faces of each verdict as soon as it is there, which may be earlier.

    Errors: DfdetectError with ExitCode.ENVIRONMENT if processes cannot be started or kept.
    """
    scorer = scanner.scorer
    looks = (_look(scorer, path, i, bool(cluster)) for i, path in enumerate(inputs))
    engine = (
        partial(run_on_cluster, address=cluster, alike=_alike)
        if cluster
        else partial(run_all, workers=workers)
    )
    bounds = scorer.bounds
    ready: dict[int, tuple[Path, Verdict | DfdetectError]] = {}
    n_told = 0
    examined = engine(
        examine, looks, max_seconds=bounds.max_seconds, max_memory_gb=bounds.max_memory_gb
    )
    for group in grouped(examined, scorer.images_at_once):
        for (look, _), scored in zip(group, scorer.score_all(group), strict=True):
            result: Verdict | DfdetectError
            if isinstance(scored, Unreadable):
                result = scored
            else:
                result = scanner.judge(look.name, scored)
                on_scored(result, scored)
            ready[look.position] = (look.name, result)
        while n_told in ready:
            on_result(*ready.pop(n_told))
            n_told += 1


def _look(scorer: FaceScorer, path: Path, position: int, elsewhere: bool) -> Look:
    look = scorer.look(path, position)
    return look._replace(path=path.absolute()) if elsewhere else look


@cache
def tool_notes() -> dict[str, Any]:
    """This program, and the versions of what decodes, finds faces and scores."""
    others = {}
    for name in ("numpy", "onnxruntime", "torch", "timm"):
        try:
            others[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "name": "dfdetect",
        "version": __version__,
        "python": platform.python_version(),
        "libraries": library_versions() | {"opencv": cv2.__version__} | others,
    }


def _alike() -> dict[str, str]:
    return {"dfdetect": __version__, **tool_notes()["libraries"]}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _no_face(scored: ScoredInput) -> str:
    where = "the picture" if scored.is_still else f"{scored.n_frames} frames looked at"
    return f"no face was found in {where}"


def _cautions(scored: ScoredInput) -> list[str]:
    """What weakens a verdict, in words."""
    notes = []
    tracks, n_frames = scored.tracks, scored.n_frames
    bits, kind = scored.media.bits_per_pixel, "still" if scored.is_still else "video"
    if bits < HEAVY_BITS_PER_PIXEL[kind]:
        notes.append(f"heavily compressed: {bits:.2g} bits per pixel")
    if not scored.is_still and n_frames < FEW_FRAMES:
        notes.append(f"only {n_frames} frames could be looked at")
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
