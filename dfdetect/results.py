"""What comes out: a Prediction per crop, a Verdict per input; from frame to track to video.

Libraries that only scoring needs are imported where it happens: who reads verdicts needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfdetect.manifest import Sample
    from dfdetect.metrics import Band

T = TypeVar("T")
SCHEMA_VERSION = 3
Call = Literal["likely-fake", "likely-real", "inconclusive", "no-face"]


class Prediction(NamedTuple):
    """One scored crop. `logit` is what the detector said, `score` its sigmoid in 0..1;
    `predicted_domain` is the forgery technique that a domain head named, if it was asked;
    `face_px` the width of the face's box in its source picture, where it is known."""

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
    predicted_domain: str | None = None
    face_px: float | None = None


class FrameScore(NamedTuple):
    index: int
    time_s: float
    box: list[float]
    score: float


@dataclass(frozen=True)
class TrackScore:
    """One person followed through the input; `score` is the mean over the frames, calibrated where
    the model is; the frames' own scores never are. `call` is of this person alone, `reasons` are
    why it is inconclusive."""

    track: int
    score: float
    frames: list[FrameScore]
    call: Call = "inconclusive"
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MediaFacts:
    """What a file is and how much of it was looked at.

    `width` and `height` are of the upright picture, px; it is turned by `rotation` degrees
    clockwise, after mirroring left to right where `mirrored`. The file holds `n_frames`, and
    `n_decoded` of them were decoded: all, or no more than those used are predicted from;
    `n_announced` are what the container claims. `frames_used` are [index, seconds] of those
    searched for faces, of which `n_faces` were seen in all of them. `limits_hit` are names of
    options of scan.
    """

    n_bytes: int
    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    rotation: int
    mirrored: bool
    frame_rate: float | None
    duration_s: float | None
    bits_per_pixel: float
    n_frames: int
    n_decoded: int
    n_announced: int | None
    frames_used: list[tuple[int, float]]
    n_faces: int
    limits_hit: list[str]


@dataclass(frozen=True)
class Verdict:
    """The whole result for one input. `score` 0..1, None without a face, and `score_meaning` what
    it is: "P(fake) at prior 0.5" of a calibrated model, else "uncalibrated score". `experimental`:
    why the model is no more than that; empty if it is more, None if it was never calibrated.
    `reasons`: why the call is inconclusive or there is none. `tool`, `model` and
    `settings` are all that decides it beside the file, `settings_sha256` is the hash of the three;
    `run` alone differs from one run to the next."""

    input: str
    sha256: str
    call: Call
    score: float | None
    threshold: float
    tracks: list[TrackScore]
    model: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    score_meaning: str = "uncalibrated score"
    experimental: list[str] | None = None
    schema_version: int = SCHEMA_VERSION
    reasons: list[str] = field(default_factory=list)
    media: MediaFacts | None = None
    tool: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    settings_sha256: str = ""
    run: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The verdict as one JSON object; boxes in px, times in seconds, scores 0..1."""
        content = asdict(self)
        for track, of_it in zip(content["tracks"], self.tracks, strict=True):
            track["frames"] = [frame._asdict() for frame in of_it.frames]
        head = (
            "schema_version", "input", "sha256", "call", "reasons", "experimental", "score",
            "score_meaning", "threshold",
        )  # fmt: skip
        return {key: content[key] for key in head} | {
            key: content[key] for key in content if key not in head
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Verdict:
        """What `as_json` gave, of the same schema version."""
        tracks = [
            TrackScore(**track | {"frames": [FrameScore(**frame) for frame in track["frames"]]})
            for track in content["tracks"]
        ]
        media = content["media"] and MediaFacts(**content["media"])
        return cls(**content | {"tracks": tracks, "media": media})


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float64, exact in both tails; 1 - 1e-16 and above round to 1, so rank on logits there."""
    return np.where(logits >= 0, 1, np.exp(-np.abs(logits))) / (1 + np.exp(-np.abs(logits)))


def score_images(
    detector: nn.Module, images: Sequence[np.ndarray], device: str, batch_size: int = 32
) -> np.ndarray:
    """Logits float64 [N] of network inputs uint8 [S,S,3] RGB.

    A GPU chooses how it computes by the size of a batch. There the last one is filled up with
    black, so that the bits of an image's logit do not depend on its company.
    """
    from dfdetect.data import images_to_tensor

    n_black = -len(images) % batch_size if device != "cpu" else 0
    filled = [*images, *([np.zeros_like(images[0])] * n_black if len(images) else [])]
    starts = range(0, len(filled), batch_size)
    batches = (images_to_tensor(filled[i : i + batch_size]) for i in starts)
    logits = _read(detector, _logits_of(detector), batches, device)
    return np.array(logits[: len(images)], np.float64)


class Scorer:
    """Scores the same rows as often as wanted, with loader processes that stay until its `with`
    block ends. Several processes share the rows, and each gets what all of them found."""

    def __init__(
        self, samples: Sequence[Sample], image_size: int, batch_size: int = 64, workers: int = 0
    ) -> None:
        from dfdetect.data import scoring_batches
        from dfdetect.processes import share_of

        self._samples = samples
        self._batches = scoring_batches(share_of(samples), image_size, batch_size, workers)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._batches.__exit__(*raised)

    def predict(
        self, detector: nn.Module, device: str, on_batch: Callable[[int], None] | None = None
    ) -> list[Prediction]:
        """Score every row with `detector` in eval mode; `on_batch(n)` after each batch of n crops
        here, which may raise to stop."""
        logits = self.read(detector, _logits_of(detector), device, on_batch)
        return predictions_of(self._samples, logits)

    def read(
        self, detector: nn.Module, read: Callable[[Tensor], Sequence[T]], device: str,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[T]:  # fmt: skip
        """What `read` finds in every row, in their order, with `detector` in eval mode.

        It gets images float [N,3,S,S] in 0..1, those of this process's share in their order, and
        returns one value for each; `on_batch` as in `predict`.
        """
        from dfdetect.processes import in_order, objects_of_all

        return in_order(objects_of_all(_read(detector, read, self._batches, device, on_batch)))


def predictions_of(
    samples: Sequence[Sample], logits: Sequence[float], domains: Sequence[str | None] | None = None
) -> list[Prediction]:
    """One for each sample, of its logit and the domain that was predicted for it."""
    scores = sigmoid(np.array(logits, np.float64))
    return [
        Prediction(
            s.sample_id, s.video_id, s.track_id, s.dataset, s.manipulation, s.quality, s.split,
            s.label, float(logit), float(score), domain, s.face_px,
        )
        for s, logit, score, domain in zip(
            samples, logits, scores, domains or [None] * len(samples), strict=True
        )
    ]  # fmt: skip


def video_scores(predictions: Sequence[Prediction]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(video ids, scores, labels): the mean score of each video's crops, at the qualities given."""
    from dfdetect.metrics import mean_by

    ids, scores = mean_by([p.score for p in predictions], [p.video_id for p in predictions])
    label_of = {p.video_id: p.label for p in predictions}
    return ids, scores, np.array([label_of[i] for i in ids])


def decide(score: float, band: Band | None) -> Call:
    """The call for a score; without a band nothing is known of its errors, so `inconclusive`."""
    if band is None or band.real_below <= score <= band.fake_above:
        return "inconclusive"
    return "likely-fake" if score > band.fake_above else "likely-real"


def _logits_of(detector: nn.Module) -> Callable[[Tensor], list[float]]:
    return lambda images: detector(images).double().tolist()


def _read(
    detector: nn.Module, read: Callable[[Tensor], Sequence[T]], batches: Iterable[Tensor],
    device: str, on_batch: Callable[[int], None] | None = None,
) -> list[T]:  # fmt: skip
    import torch

    was_training = detector.training
    detector.eval()
    found: list[T] = []
    try:
        with torch.inference_mode():
            for images in batches:
                found += read(images.to(device, non_blocking=True).float().div_(255))
                if on_batch:
                    on_batch(len(images))
    finally:
        detector.train(was_training)
    return found
