"""Validation predictions -> figures, and what the checkpoint may call fake or real."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dfdetect.metrics import accuracy, auc, best_threshold, call_band, eer
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
    by_quality = {}
    for quality in sorted({p.quality for p in predictions}):
        ids, scores, labels = video_scores([p for p in predictions if p.quality == quality])
        by_quality[quality] = dict(zip(ids, zip(scores, labels, strict=True), strict=True))
    pooled = [pair for videos in by_quality.values() for pair in videos.values()]
    threshold = best_threshold([s for s, _ in pooled], [y for _, y in pooled])
    worst: dict[int, dict[str, float]] = {0: {}, 1: {}}
    for videos in by_quality.values():
        for video, (score, label) in videos.items():
            pick = min if label else max
            worst[label][video] = pick(worst[label].get(video, score), score)
    n_real, n_fake = len(worst[0]), len(worst[1])
    band = call_band(
        np.array([*worst[0].values()]), np.array([*worst[1].values()]), threshold, error
    )
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
