"""Fakes of unknown origin -> groups that look alike to a network, for `domains: auto` of DID.

What one video shows was made in one way, so whole videos are grouped: the mean of a few crops'
features, standardised, reduced to its main directions, and k-means.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits
from torch import Tensor

from dfdetect.data import scoring_batches
from dfdetect.manifest import Sample
from dfdetect.processes import in_order, objects_of_all, share_of

CROPS_OF_VIDEO = 4
"""Looked at, spread over the video."""
DIRECTIONS = 32
"""Kept of the features at most."""


class Groups(NamedTuple):
    """`of_video`: its group, 1..k, by video id. `agreement`: adjusted Rand index with the names
    that the manifest gives, 1 for the same groups, about 0 for chance; nan with one name alone."""

    of_video: dict[str, int]
    agreement: float


def group_fakes(
    samples: Sequence[Sample], features: Callable[[Tensor], Tensor], image_size: int, device: str,
    k: int, seed: int, before: dict[str, int] | None = None, workers: int = 0,
) -> Groups:  # fmt: skip
    """Put the videos of all fakes among `samples` into up to `k` groups.

    `features` maps images float [N,3,S,S] in 0..1 to [N,D]. Numbers are those of `before` where
    groups have most videos in common. Processes share the scoring, and each gets all groups.
    """
    fakes = _few_of_each_video([s for s in samples if s.label])
    rows = _features(fakes, features, image_size, device, workers)
    videos = list(dict.fromkeys(s.video_id for s in fakes))
    number = {video: i for i, video in enumerate(videos)}
    of_row = np.array([number[s.video_id] for s in fakes])
    sums = np.zeros((len(videos), rows.shape[1]))
    np.add.at(sums, of_row, rows)
    group = cluster(sums / np.bincount(of_row)[:, None], k, seed)
    if before:
        group = _renumbered(group, np.array([before[video] for video in videos]), k)
    name_of = {s.video_id: s.manipulation for s in fakes}
    names = [name_of[video] for video in videos]
    several = len(set(names)) > 1
    agreement = float(adjusted_rand_score(names, group)) if several else float("nan")
    found = Groups(dict(zip(videos, map(int, group), strict=True)), agreement)
    return objects_of_all(found)[0]  # a rounding may put a video elsewhere in another process


def cluster(features: np.ndarray, k: int, seed: int) -> np.ndarray:
    """float [V,D] -> group of each row, int [V] in 1..k; fewer groups than k where rows are few."""
    spread = features.std(0)
    standard = (features - features.mean(0))[:, spread > 0] / spread[spread > 0]
    if not standard.shape[1] or len(standard) < 2:
        return np.ones(len(features), int)
    n_directions = min(DIRECTIONS, len(standard) - 1, standard.shape[1])
    reduced = PCA(n_directions, svd_solver="full").fit_transform(standard)
    n_groups = min(k, len(np.unique(reduced, axis=0)))
    with threadpool_limits(1, "openmp"):  # sums in one order
        return 1 + KMeans(n_groups, n_init=10, random_state=seed).fit_predict(reduced)


def _few_of_each_video(fakes: Sequence[Sample]) -> list[Sample]:
    """At the quality that comes first, evenly spread."""
    of_video: dict[str, dict[str, Sample]] = {}
    for sample in fakes:
        of_video.setdefault(sample.video_id, {}).setdefault(sample.sample_id, sample)
    chosen = []
    for crops in map(list, (crops.values() for crops in of_video.values())):
        places = np.linspace(0, len(crops) - 1, min(len(crops), CROPS_OF_VIDEO))
        chosen += [crops[round(place)] for place in places]
    return chosen


@torch.no_grad()
def _features(
    samples: Sequence[Sample], features: Callable[[Tensor], Tensor], image_size: int, device: str,
    workers: int,
) -> np.ndarray:  # fmt: skip
    with scoring_batches(share_of(samples), image_size, 64, workers) as batches:
        mine = [features(b.to(device).float() / 255).double().cpu().numpy() for b in batches]
    rows = [row for batch in mine for row in batch]
    return np.stack(in_order(objects_of_all(rows)))


def _renumbered(group: np.ndarray, before: np.ndarray, k: int) -> np.ndarray:
    """The groups under the numbers that most of their videos had."""
    shared = np.zeros((k, k), int)
    np.add.at(shared, (group - 1, before - 1), 1)
    new, old = linear_sum_assignment(-shared)
    number = np.empty(k, int)
    number[new] = old + 1
    return number[group - 1]
