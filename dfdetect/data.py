"""Prepared crops -> batches: pairs of qualities, augmentation, order of an epoch, loaders.

Everything random is a function of (seed, epoch, draw), so a run that resumes in the middle of an
epoch sees exactly what it would have seen. JPEG is cheap beside reading a crop, so its qualities
are made here of the raw crop; those that prepare stored are read, and are the same pixels.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dfdetect.errors import DfdetectError
from dfdetect.manifest import Sample
from dfdetect.presets import Augment
from dfdetect.quality import jpeg_level, jpeg_round_trip, parse_quality


class Batch(NamedTuple):
    """images [B,Q,3,S,S] RGB (uint8 from the loader, float 0..1 after `to_device`), labels [B] and
    domains [B] int64 (0 real), sample_ids; Q qualities of each sample, in the preset's order."""

    images: Tensor
    labels: Tensor
    domains: Tensor
    sample_ids: list[str]

    def parts(self, n: int) -> list["Batch"]:
        """The batch in `n` parts of equal size."""
        size = len(self.sample_ids) // n
        return [Batch(*(field[i * size : (i + 1) * size] for field in self)) for i in range(n)]

    def to_device(self, device: torch.device | str) -> "Batch":
        images = self.images.to(device, non_blocking=True).float().div_(255)
        return Batch(images, self.labels.to(device), self.domains.to(device), self.sample_ids)


def to_input(crop: np.ndarray, size: int) -> np.ndarray:
    """A crop uint8 [H,W,3] at the network's side; the one resize of training, eval and scan."""
    if crop.shape[:2] == (size, size):
        return crop
    shrinks = size < crop.shape[0]
    return cv2.resize(
        crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def at_qualities(samples: Iterable[Sample], qualities: Sequence[str]) -> list[Sample]:
    """The rows of each sample at `qualities`, in their order: the stored row, or for JPEG that was
    not stored the raw row with the quality to make of it. A sample's other qualities are left out.
    """
    wanted = [parse_quality(name) for name in qualities]
    groups: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.sample_id, {})[sample.quality] = sample
    rows = []
    for group in groups.values():
        for quality in wanted:
            if quality.name in group:
                rows.append(group[quality.name])
            elif quality.codec == "jpeg" and "raw" in group:
                rows.append(group["raw"]._replace(quality=quality.name, jpeg=quality))
    return rows


def read_crop(path: Path) -> np.ndarray:
    """uint8 [H,W,3] RGB. Errors: DfdetectError naming the file if it is missing or damaged."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        state = "damaged" if path.exists() else "missing"
        raise DfdetectError(
            f"{path}: {state} face crop",
            "delete this video's part in manifest/ and run prepare again",
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_group(group: Sequence[Sample], rng: np.random.Generator | None = None) -> np.ndarray:
    """The rows of one sample as pixels, uint8 [Q,H,W,3] RGB, each file read once.

    A range of JPEG qualities is drawn with `rng`, without one by the sample's id.
    """
    files = {path: read_crop(path) for path in dict.fromkeys(s.path for s in group)}
    return np.stack(
        [
            jpeg_round_trip(files[s.path], jpeg_level(s.jpeg, s.sample_id, rng))
            if s.jpeg
            else files[s.path]
            for s in group
        ]
    )


class PairedCrops(Dataset):
    """One item per sample: its crops at every quality. Indexed by (epoch, draw, position), where
    `draw` numbers the draws of an epoch: a sample drawn twice is augmented in two ways, and its
    level in a range of JPEG qualities drawn anew."""

    def __init__(
        self,
        samples: Sequence[Sample],
        qualities: Sequence[str],
        domains: Sequence[str],
        image_size: int,
        augment: Augment,
        seed: int,
    ) -> None:
        """Errors: DfdetectError if a sample lacks one of the qualities, and raw to make it of."""
        groups: dict[str, list[Sample]] = {}
        for sample in at_qualities(samples, qualities):
            groups.setdefault(sample.sample_id, []).append(sample)
        for sample_id, group in groups.items():
            if missing := [q for q in qualities if q not in {s.quality for s in group}]:
                raise DfdetectError(
                    f"{sample_id} has no crop at quality {missing[0]}",
                    "prepare the data with all the preset's qualities, or --set qualities=...",
                )
        self.groups = list(groups.values())
        self.labels = np.array([g[0].label for g in self.groups], np.int64)
        self.domains = np.array([domains.index(g[0].manipulation) for g in self.groups], np.int64)
        self._image_size, self._augment, self._seed = image_size, augment, seed

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[np.ndarray, int, int, str]:
        epoch, draw, position = key
        group = self.groups[position]
        rng = np.random.default_rng([self._seed, epoch, draw])
        crops = augmented(read_group(group, rng), self._augment, rng)
        images = np.stack([to_input(crop, self._image_size) for crop in crops])
        return images, int(self.labels[position]), int(self.domains[position]), group[0].sample_id


def augmented(crops: np.ndarray, options: Augment, rng: np.random.Generator) -> np.ndarray:
    """One draw for all qualities: uint8 [Q,H,W,3] -> uint8 [Q,h,w,3]."""
    if options.flip and rng.random() < options.flip:
        crops = crops[:, :, ::-1]
    if options.scale:
        side = crops.shape[1]
        cut = round(side * (1 - options.scale * rng.random()))
        top, left = rng.integers(0, side - cut + 1, 2)
        crops = crops[:, top : top + cut, left : left + cut]
    if options.brightness or options.contrast:
        gain = 1 + options.contrast * rng.uniform(-1, 1)
        bias = 255 * options.brightness * rng.uniform(-1, 1)
        crops = np.clip(crops * gain + bias, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(crops)


def epoch_order(
    labels: np.ndarray,
    domains: np.ndarray,
    sampler: str,
    seed: int,
    epoch: int,
    n_batches: int,
    batch_size: int,
) -> np.ndarray:
    """Positions of one epoch, int [n_batches, batch_size].

    shuffle: every sample once before any comes twice; uniform: with replacement; class_balanced
    and domain_balanced: with replacement, each class or domain equally often in every batch.
    """
    rng = np.random.default_rng([seed, epoch])
    n = n_batches * batch_size
    if sampler == "shuffle":
        rounds = [rng.permutation(len(labels)) for _ in range(-(-n // len(labels)))]
        return np.concatenate(rounds)[:n].reshape(n_batches, batch_size)
    if sampler == "uniform":
        return rng.integers(0, len(labels), (n_batches, batch_size))
    groups = labels if sampler == "class_balanced" else domains
    members = [np.flatnonzero(groups == value) for value in np.unique(groups)]
    turns = (np.arange(n) % len(members)).reshape(n_batches, batch_size)
    return np.array([[rng.choice(members[turn]) for turn in rng.permutation(row)] for row in turns])


def training_batches(
    crops: PairedCrops, sampler: str, seed: int, epoch: int, n_steps: int, batch_size: int,
    first_step: int = 0, rank: int = 0, n_ranks: int = 1, workers: int = 0,
) -> Iterator[Batch]:  # fmt: skip
    """Batches first_step..n_steps of one epoch, for one of `n_ranks` processes."""
    order = epoch_order(
        crops.labels, crops.domains, sampler, seed, epoch, n_steps * n_ranks, batch_size
    )
    keys = [
        [
            (epoch, row * batch_size + draw, int(position))
            for draw, position in enumerate(order[row])
        ]
        for row in range(first_step * n_ranks + rank, n_steps * n_ranks, n_ranks)
    ]
    return start_loader(crops, workers, batch_sampler=keys, collate_fn=_collate)


def start_loader(dataset: Dataset, workers: int, **options: Any) -> Iterator:
    """A running DataLoader that leaves the global random state alone (it would otherwise draw a
    seed from it at every start) and whose workers do not die of the terminal's Ctrl-C."""
    if workers:
        options |= {"multiprocessing_context": "spawn"}
        resource_tracker.ensure_running()  # its start would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return iter(
            DataLoader(
                dataset,
                num_workers=workers,
                generator=torch.Generator(),
                pin_memory=torch.cuda.is_available(),
                **options,
            )
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Crops(Dataset):
    """One item per row, for scoring: uint8 [S,S,3]."""

    def __init__(self, samples: Sequence[Sample], image_size: int) -> None:
        self._samples, self._image_size = samples, image_size

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, position: int) -> np.ndarray:
        return to_input(read_group([self._samples[position]])[0], self._image_size)


def default_workers() -> int:
    """Loader processes that leave the training process a core; none on a small machine."""
    cores = os.cpu_count() or 1
    return 0 if cores <= 4 else min(16, cores - 2)


def images_to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 images [S,S,3] -> uint8 tensor [N,3,S,S]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _collate(items: list[tuple[np.ndarray, int, int, str]]) -> Batch:
    images, labels, domains, ids = zip(*items, strict=True)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 1, 4, 2, 3).contiguous()
    return Batch(pixels, torch.tensor(labels), torch.tensor(domains), list(ids))
