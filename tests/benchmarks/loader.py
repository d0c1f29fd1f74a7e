"""What a face crop costs the loader, beside decoding it alone, and how many cores a GPU needs.

    python tests/benchmarks/loader.py [--data FOLDER] [--workers 0,1,2] [--targets 500,1000,2000]

Without --data, crops are made up, of about the size of real ones on disk. Every round measures, for
PNG and lossless WebP, cv2.imread of all crops and then the loader with each number of workers, once
they run: batches as training gets them, resized and mirrored by chance, and once with every
augmentation on. Costs are processor time, of this process and the workers, which a busy machine
changes little; the ratio to decoding is taken within a round. Printed are medians.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from dfdetect.data import PairedCrops, at_qualities, read_crop, training_batches
from dfdetect.manifest import Sample, read_samples
from dfdetect.presets import Augment

FORMATS = {"png": [], "webp": [cv2.IMWRITE_WEBP_QUALITY, 101]}  # above 100 is lossless
AUGMENTED = Augment(
    flip=0.5, scale=0.2, brightness=0.2, contrast=0.2, blur=0.5, rescale=0.5, jpeg=0.5
)


def made_up(folder: Path, qualities: Sequence[str], n: int) -> list[Sample]:
    """Smooth colours with the noise that makes a 256-px PNG some 90 kB."""
    rng, samples = np.random.default_rng(0), []
    for i in range(n):
        smooth = cv2.resize(
            rng.uniform(0, 255, (8, 8, 3)), (256, 256), interpolation=cv2.INTER_CUBIC
        )
        for quality in qualities:
            path = folder / quality / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = np.clip(smooth + rng.normal(0, 1.2, smooth.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(path), pixels)
            label, name = i % 2, f"v{i}/0/0"
            samples.append(
                Sample(path, name, f"v{i}", label, "made up", ("real", "fake")[label], (), "train",
                       quality, 0)
            )  # fmt: skip
    return samples


def stored_as(samples: Sequence[Sample], suffix: str, folder: Path) -> list[Sample]:
    """Copies of the crops in another format, with the same pixels."""
    folder.mkdir()
    copies = []
    for number, sample in enumerate(samples):
        path = folder / f"{number}.{suffix}"
        pixels = cv2.cvtColor(read_crop(sample.path), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(path), pixels, FORMATS[suffix])
        copies.append(sample._replace(path=path))
    return copies


class Cost(NamedTuple):
    """Per image: seconds on the clock, and seconds of all cores together."""

    clock_s: float
    cores_s: float


def now() -> Cost:
    """The clock, and what this process and its children have used of the cores (Linux)."""
    used = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        used += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return Cost(time.perf_counter(), used)


def since(began: Cost, n_images: int) -> Cost:
    ended = now()
    return Cost(*((after - before) / n_images for before, after in zip(began, ended, strict=True)))


def decoding(samples: Sequence[Sample]) -> Cost:
    began = now()
    for sample in samples:
        cv2.imread(str(sample.path))
    return since(began, len(samples))


def loading(crops: PairedCrops, n_batches: int, batch_size: int, workers: int) -> Cost:
    """In full run: the workers have as many batches ready when it begins as when it ends."""
    ahead = 1 + 2 * workers
    n_steps = ahead + n_batches + 2 * workers
    n_images, began = 0, now()
    with training_batches(
        crops, "shuffle", 0, n_steps, n_steps, batch_size, workers=workers
    ) as loader:
        for step, batch in enumerate(loader, 1):
            if step > ahead:
                n_images += batch.images.shape[0] * batch.images.shape[1]
            if step == ahead:
                began = now()
            if step == ahead + n_batches:
                break
        return since(began, n_images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a prepared folder")
    parser.add_argument("--qualities", default="raw,c23,c40")
    parser.add_argument("--samples", type=int, default=400, help="of them, at each quality")
    parser.add_argument("--image-size", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=10, help="timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--targets", default="500,1000,2000", help="images/s that a GPU takes")
    options = parser.parse_args()
    qualities = options.qualities.split(",")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = (
            read_samples(options.data)
            if options.data
            else made_up(folder, qualities, options.samples)
        )
        by_id: dict[str, list[Sample]] = {}
        for row in at_qualities(rows, qualities):
            by_id.setdefault(row.sample_id, []).append(row)
        whole = [group for group in by_id.values() if len(group) == len(qualities)]
        step = max(1, len(whole) // options.samples)
        chosen = [row for group in whole[::step][: options.samples] for row in group]
        for suffix in FORMATS:
            measure(stored_as(chosen, suffix, folder / suffix), suffix, qualities, options)


def measure(
    samples: Sequence[Sample], suffix: str, qualities: Sequence[str], options: argparse.Namespace
) -> None:
    size = statistics.mean(os.path.getsize(s.path) for s in samples) / 1000
    side = read_crop(samples[0].path).shape[0]
    domains = sorted({s.manipulation for s in samples})
    settings = {
        f"{n} workers" if n != "1" else "1 worker": (Augment(), int(n))
        for n in options.workers.split(",")
    } | {"0 workers, all augmentation": (AUGMENTED, 0)}
    print(
        f"{suffix}: {len(samples)} crops of {side} px, {size:.0f} kB; batches of "
        f"{options.batch_size} x {len(qualities)} at {options.image_size} px"
    )
    alone, costs = [], {name: [] for name in settings}
    for _ in range(options.rounds):
        alone.append(decoding(samples))
        for name, (augment, workers) in settings.items():
            crops = PairedCrops(samples, qualities, domains, options.image_size, augment, 0)
            batch_size = min(options.batch_size, len(crops))
            costs[name].append(loading(crops, options.batches, batch_size, workers))
    for name, rounds in {"cv2.imread alone": alone, **costs}.items():
        per_core = statistics.median(1 / cost.cores_s for cost in rounds)
        ratio = statistics.median(
            cost.cores_s / least.cores_s for cost, least in zip(rounds, alone, strict=True)
        )
        print(
            f"  {name:28} {1e3 / per_core:5.2f} ms, {per_core:5.0f} images/s a core, "
            f"{ratio:.2f} times decoding; now {1 / min(rounds).clock_s:.0f} images/s"
        )
        if name in costs:
            cores = (f"{int(t) / per_core:.1f} for {t}" for t in options.targets.split(","))
            print(f"  {'':28} cores for images/s: {', '.join(cores)}")


if __name__ == "__main__":
    main()
