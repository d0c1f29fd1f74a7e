"""What comes out: a Prediction per crop, a Verdict per input; from frame to track to video."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from dfdetect.data import images_to_tensor, scoring_batches
from dfdetect.manifest import Sample
from dfdetect.metrics import Band, mean_by
from dfdetect.processes import in_order, objects_of_all, share_of

SCHEMA_VERSION = 1
Call = Literal["likely-fake", "likely-real", "inconclusive", "no-face"]


class Prediction(NamedTuple):
    """One scored crop. `logit` is what the detector said, `score` its sigmoid in 0..1."""

    sample_id: str
    video_id: str
    track_id: int
    dataset: str
    manipulation: str
    quality: str
    split: str
    label: int
    logit: float
    score: float


class FrameScore(NamedTuple):
    index: int
    time_s: float
    box: list[float]
    score: float


@dataclass(frozen=True)
class TrackScore:
    """One face followed through the input; `score` is the mean over its frames."""

    track: int
    score: float
    frames: list[FrameScore]


@dataclass(frozen=True)
class Verdict:
    """The whole result for one input. `score` 0..1 as the model sees it, None without a face."""

    input: str
    sha256: str
    call: Call
    score: float | None
    threshold: float
    tracks: list[TrackScore]
    model: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def as_json(self) -> dict[str, Any]:
        """The verdict as one JSON object; boxes in px, times in seconds, scores 0..1."""
        content = asdict(self) | {
            "tracks": [
                {"track": t.track, "score": t.score, "frames": [f._asdict() for f in t.frames]}
                for t in self.tracks
            ]
        }
        head = ("schema_version", "input", "sha256", "call", "score", "threshold")
        return {key: content[key] for key in head} | {
            key: content[key] for key in content if key not in head
        }


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float64, exact in both tails; 1 - 1e-16 and above round to 1, so rank on logits there."""
    return np.where(logits >= 0, 1, np.exp(-np.abs(logits))) / (1 + np.exp(-np.abs(logits)))


def score_images(
    detector: nn.Module, images: Sequence[np.ndarray], device: str, batch_size: int = 32
) -> np.ndarray:
    """Logits float64 [N] of network inputs uint8 [S,S,3] RGB."""
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    return _logits(detector, map(images_to_tensor, batches), device)


def predict(
    detector: nn.Module,
    samples: Sequence[Sample],
    image_size: int,
    device: str,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """A Scorer's predictions of `samples`, made once."""
    with Scorer(samples, image_size, batch_size, workers) as scorer:
        return scorer.predict(detector, device, on_batch)


class Scorer:
    """Scores the same rows as often as wanted, with loader processes that stay until its `with`
    block ends. Several processes share the rows, and each gets the predictions of all."""

    def __init__(
        self, samples: Sequence[Sample], image_size: int, batch_size: int = 64, workers: int = 0
    ) -> None:
        self._samples = samples
        self._batches = scoring_batches(share_of(samples), image_size, batch_size, workers)

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._batches.__exit__(*raised)

    def predict(
        self, detector: nn.Module, device: str, on_batch: Callable[[int], None] | None = None
    ) -> list[Prediction]:
        """Score every row with `detector` in eval mode; `on_batch(n)` after each batch of n crops
        here, which may raise to stop."""
        shares = objects_of_all(_logits(detector, self._batches, device, on_batch))
        logits = np.array(in_order(shares), np.float64)
        return [
            Prediction(
                s.sample_id, s.video_id, s.track_id, s.dataset, s.manipulation, s.quality, s.split,
                s.label, float(logit), float(score),
            )
            for s, logit, score in zip(self._samples, logits, sigmoid(logits), strict=True)
        ]  # fmt: skip


def video_scores(predictions: Sequence[Prediction]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(video ids, scores, labels): the mean score of each video's crops, at the qualities given."""
    ids, scores = mean_by([p.score for p in predictions], [p.video_id for p in predictions])
    label_of = {p.video_id: p.label for p in predictions}
    return ids, scores, np.array([label_of[i] for i in ids])


def decide(score: float, band: Band | None) -> Call:
    """The call for a score; without a band nothing is known of its errors, so `inconclusive`."""
    if band is None or band.real_below <= score <= band.fake_above:
        return "inconclusive"
    return "likely-fake" if score > band.fake_above else "likely-real"


def _logits(
    detector: nn.Module,
    batches: Iterable[torch.Tensor],
    device: str,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    was_training = detector.training
    detector.eval()
    parts = [np.zeros(0)]
    try:
        with torch.inference_mode():
            for images in batches:
                logits = detector(images.to(device, non_blocking=True).float().div_(255))
                parts.append(logits.double().cpu().numpy())
                if on_batch:
                    on_batch(len(images))
    finally:
        detector.train(was_training)
    return np.concatenate(parts)
