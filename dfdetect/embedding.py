"""Crops -> what a detector makes of them beyond the score: the technique that its domain head
names, pooled features, and a plane of these by t-SNE (CrossDF Fig. 7, QAD Fig. 5).

Score, domain and features come from one pass of the backbone.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dfdetect.cells import was_seen
from dfdetect.detector import Detector
from dfdetect.manifest import Sample

DIRECTIONS = 50
"""Of the features' principal components, kept for t-SNE at most."""
PERPLEXITY = 30.0
FEWEST = 5
"""Crops of which a plane is drawn."""


class View(NamedTuple):
    """One crop: its logit, the number of its domain, its pooled features float32 [C] by map
    (whole, and where there are deepfake and domain); None for what was not asked or is not there.
    """

    logit: float
    domain: int | None
    features: dict[str, np.ndarray] | None


class Embedding(NamedTuple):
    """`features` float32 [N,C] by map, and of the same N crops the `columns` (data, sample_id,
    video_id, manipulation, quality str [N]; label int [N]; seen_in_training int8 [N], of the
    manipulation's name and of reals 1, else 0, or -1 where nobody knows)."""

    columns: dict[str, np.ndarray]
    features: dict[str, np.ndarray]


class Plane(NamedTuple):
    """`places` float32 [N,2] by map, and the perplexity and seed they were found with."""

    places: dict[str, np.ndarray]
    perplexity: float
    seed: int


def viewer(detector: Detector, embedded: Iterable[bool]) -> Callable[[Tensor], list[View]]:
    """What a Scorer reads of images [N,3,S,S]; `embedded` says of each of them, in the order in
    which they will come, whether its features are wanted."""
    flags = iter(embedded)

    def view(images: Tensor) -> list[View]:
        final = detector.features(images).final
        logits = detector.class_logits(final)
        wanted = np.array(list(islice(flags, len(images))))
        domains: list = [None] * len(images)
        maps = {"whole": final}
        if detector.tells_domains or (wanted.any() and detector.head == "attention"):
            parts = detector.decompose(final)
            maps["deepfake"] = parts.deepfake
            if detector.tells_domains:
                maps["domain"] = parts.domain
                domains = detector.domain_logits(parts.domain).argmax(1).tolist()
        features: list = [None] * len(images)
        if wanted.any():
            pools = {k: _pooled(detector, m).float().cpu().numpy() for k, m in maps.items()}
            for i in np.flatnonzero(wanted):
                features[i] = {name: pool[i] for name, pool in pools.items()}
        difference = (logits[:, 1] - logits[:, 0]).double()
        return list(map(View, difference.tolist(), domains, features))

    return view


def choose_crops(samples: Sequence[Sample], most: int, seed: int = 0) -> np.ndarray:
    """bool [N]: at random up to `most` of each manipulation, and of reals."""
    chosen = np.zeros(len(samples), bool)
    kinds = np.array([s.manipulation if s.label else "" for s in samples])
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        chosen[np.random.default_rng(seed).permutation(members)[:most]] = True
    return chosen


def embedding_of(
    rows: Mapping[str, Sequence[Sample]], views: Mapping[str, Sequence[View]],
    trained: Collection[str] | None,
) -> Embedding:  # fmt: skip
    """Of the crops whose features were kept; rows and views by folder, in the same order.

    `trained` names the manipulations of the training.
    """
    kept = [
        (name, s, v)
        for name in rows
        for s, v in zip(rows[name], views[name], strict=True)
        if v.features
    ]
    columns = {
        "data": [name for name, _, _ in kept],
        "sample_id": [s.sample_id for _, s, _ in kept],
        "video_id": [s.video_id for _, s, _ in kept],
        "manipulation": [s.manipulation for _, s, _ in kept],
        "quality": [s.quality for _, s, _ in kept],
        "label": [s.label for _, s, _ in kept],
    }
    seen = [was_seen(s.manipulation, trained) if s.label else True for _, s, _ in kept]
    maps = kept[0][2].features
    return Embedding(
        {name: np.array(column) for name, column in columns.items()}
        | {"seen_in_training": np.array([-1 if s is None else s for s in seen], np.int8)},
        {name: np.stack([v.features[name] for _, _, v in kept]) for name in maps},
    )


def plane_of(embedding: Embedding, seed: int = 0) -> Plane:
    """t-SNE of each map's features, on their first principal components.

    The perplexity is 30, or a third of what there is beside a crop where crops are few.
    """
    n = len(embedding.columns["label"])
    perplexity = min(PERPLEXITY, (n - 1) / 3)
    places = {name: _tsne(f, perplexity, seed) for name, f in embedding.features.items()}
    return Plane(places, perplexity, seed)


def _pooled(detector: Detector, final: Tensor) -> Tensor:
    """[N,C]: the mean over space of maps [N,C,h,w]; else what the network's classifier pools."""
    if final.ndim == 4 and final.shape[1] == detector.n_features:
        return final.mean((2, 3))
    return detector.backbone.forward_head(final, pre_logits=True)


def _tsne(features: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if (features == features[0]).all():  # t-SNE would divide by their spread
        return np.zeros((len(features), 2), np.float32)
    n_directions = min(DIRECTIONS, *features.shape)
    reduced = PCA(n_directions, svd_solver="full").fit_transform(features.astype(np.float64))
    # One thread: sums in one order, and no waiting for one another where cores are busy.
    with threadpool_limits(1, "openmp"):
        found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return found.astype(np.float32)
