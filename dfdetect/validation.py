"""Validation predictions -> figures, and what the checkpoint may call fake or real."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dfdetect.metrics import (
    accuracy,
    auc,
    best_threshold,
    call_band,
    conformal_cut,
    eer,
    fake_band,
)
from dfdetect.results import Prediction, video_scores


def validation_figures(
    predictions: Sequence[Prediction], qualities: Sequence[str]
) -> dict[str, Any]:
    """Figures on val at threshold 0.5, qualities pooled, at frame and video level, with their n."""
    scores, labels = [p.logit for p in predictions], [p.label for p in predictions]
    ids, by_video, video_labels = video_scores(predictions)
    frames_of: dict[str, set[str]] = {}
    for p in predictions:
        frames_of.setdefault(p.video_id, set()).add(p.sample_id)
    single = np.array([len(frames_of[video_id]) == 1 for video_id in ids])
    by_quality: dict[str, Any] = {"level": "frame", "auc": {}, "n_real": {}, "n_fake": {}}
    for quality in qualities:
        rows = [p for p in predictions if p.quality == quality]
        truth = [p.label for p in rows]
        by_quality["auc"][quality] = auc([p.logit for p in rows], truth)
        by_quality["n_real"][quality] = truth.count(0)
        by_quality["n_fake"][quality] = truth.count(1)
    return {
        "frame": {
            "accuracy": accuracy(scores, labels, 0.0),  # logit 0 is score 0.5
            "auc": auc(scores, labels),
            "eer": eer(scores, labels),
            "n_real": labels.count(0),
            "n_fake": labels.count(1),
            "qualities": "pooled",
        },
        "video": {
            "auc": auc(by_video, video_labels),
            "n_real": int((video_labels == 0).sum()),
            "n_fake": int((video_labels == 1).sum()),
            "n_real_pictures": int((single & (video_labels == 0)).sum()),
            "n_fake_pictures": int((single & (video_labels == 1)).sum()),
            "qualities": "mean score",
        },
        "by_quality": by_quality,
    }


class Decision(NamedTuple):
    """`threshold` for accuracy, `band` for calls (None: too little evidence), `basis` in words."""

    threshold: float
    band: tuple[float, float] | None
    basis: str


def choose_decision(predictions: Sequence[Prediction], error: float = 0.1) -> Decision:
    """Threshold and band from val videos; each counts once, at the quality where it does worst."""
    ids, scores, labels = [], [], []
    for quality in sorted({p.quality for p in predictions}):
        found = video_scores([p for p in predictions if p.quality == quality])
        for rows, more in zip((ids, scores, labels), found, strict=True):
            rows += list(more)
    threshold = best_threshold(scores, labels)
    worst = at_worst_quality(ids, scores, labels)
    n_real, n_fake = len(worst.real), len(worst.fake)
    band = call_band(*worst, threshold, error)
    evidence = f"{n_real} real and {n_fake} fake validation videos"
    enough = min(n_real, n_fake) >= (1 - error) / error
    basis = (
        f"at most {error:.0%} wrong calls per class on videos like its {evidence}"
        if band
        else f"no calls: it does not tell its {evidence} apart well enough"
        if enough
        else f"no calls: {evidence} are too few"
    )
    return Decision(threshold, tuple(band) if band else None, basis)


STRICT_FPR = 0.01
"""The false-positive rate at which alone an experimental model calls a video fake."""


def calibrated_decision(worst: "Worst", fpr: float, experimental: bool) -> Decision:
    """Threshold and band of calibrated scores: at most `fpr` of new real videos lie above the one
    and as many new fakes below the other, by conformal counting.

    An `experimental` model calls nothing real, and fake only what STRICT_FPR allows. Where too few
    real videos are there to promise `fpr`, the threshold is the highest of them.
    """
    cut = conformal_cut(worst.real, fpr)
    threshold = float(worst.real.max()) if cut is None else cut
    n_real, n_fake = len(worst.real), len(worst.fake)
    evidence = f"{n_real} real and {n_fake} fake videos"
    if experimental:
        band, n_needed = fake_band(*worst, STRICT_FPR), round((1 - STRICT_FPR) / STRICT_FPR)
        too_few = n_real < n_needed
        why = (
            f"experimental, and {n_real} real videos are too few for {STRICT_FPR:.0%} false "
            f"positives, which take {n_needed}"
        )
        promise = f"experimental: likely-fake only, on at most {STRICT_FPR:.0%} of real videos like"
    else:
        band = call_band(*worst, threshold, fpr)
        too_few = min(n_real, n_fake) < (1 - fpr) / fpr
        why = f"{evidence} are too few for {100 * fpr:g}% wrong calls"
        promise = f"at most {100 * fpr:g}% wrong calls per class on videos like"
    basis = (
        f"{promise} the {evidence} it was calibrated on"
        if band
        else f"no calls: {why}"
        if too_few
        else f"no calls: it does not tell the {evidence} it was calibrated on apart well enough"
    )
    return Decision(threshold, tuple(band) if band else None, basis)


class Worst(NamedTuple):
    """Scores of real and of fake videos, each where it does worst: [n_real], [n_fake]."""

    real: np.ndarray
    fake: np.ndarray


def at_worst_quality(
    videos: Sequence[str], scores: Sequence[float], labels: Sequence[int]
) -> Worst:
    """Of videos given once per quality: a real one's highest score, a fake one's lowest."""
    worst: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for video, score, label in zip(videos, scores, labels, strict=True):
        pick = min if label else max
        worst[label][video] = pick(worst[label].get(video, score), score)
    return Worst(*(np.array([*of_class.values()]) for of_class in worst))
