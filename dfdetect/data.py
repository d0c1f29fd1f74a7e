"""Prepared crops -> batches: pairs of qualities, augmentation, order of an epoch, loaders.

Everything random is a function of (seed, epoch, draw), so a run that resumes in the middle of an
epoch sees exactly what it would have seen. Qualities that need no more than the raw crop are made
of it here (corruptions.py); JPEG that prepare stored is read, and is the same pixels.
Where fakes are made of the reals here too (`augment.forge`), every quality of every training sample
is made of its raw crop, so that the forgery is all in which the classes differ.
"""

import atexit
import math
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, pairwise
from multiprocessing import get_context, parent_process, resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dfdetect.corruptions import corrupted, jpeg_round_trip
from dfdetect.errors import MOST_NAMED, DfdetectError, ExitCode
from dfdetect.faces import to_input
from dfdetect.manifest import Sample
from dfdetect.presets import Augment
from dfdetect.quality import Quality, parse_quality
from dfdetect.video import through_h264
from dfdetect.workers import available_cores

MOST_WORKERS = 16
"""Loader processes by default at most; each makes some 700 crops a second."""
_START = "forkserver" if sys.platform == "linux" else "spawn"
"""Workers forked of a process that has only imported this share what PyTorch takes, start at once,
and know nothing of the GPU."""
_STOPS = {signal.SIGINT, signal.SIGTERM}
FORGED = "forged"
"""The domain of fakes that are made as they are loaded."""
STREAM_FRAMES = (3, 5)
"""Frames of the stream of which a crop is the last one, from, to."""
STREAM_STEP = 0.004
"""How far its picture moves from frame to frame at most, share of the side."""
_INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC)

T = TypeVar("T")


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
        images, labels, domains = (t.to(device, non_blocking=True) for t in self[:3])
        return Batch(images.float().div_(255), labels, domains, self.sample_ids)


class CropFile(NamedTuple):
    """What it takes to read one row: its file, and the quality to make of it, if any."""

    path: Path
    sample_id: str
    made: Quality | None


def at_qualities(samples: Iterable[Sample], qualities: Sequence[str]) -> list[Sample]:
    """The rows of each sample at `qualities`, in their order: the stored row, or but for H.264 of
    videos the raw row with the quality to make of it. A sample's other qualities are left out.
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
            elif quality.kind != "h264" and "raw" in group:
                rows.append(group["raw"]._replace(quality=quality.name, made=quality))
    return rows


def check_crops(samples: Iterable[Sample]) -> None:
    """Whether the crop files of all rows are there; looks at sizes, not into the files.

    Errors: one DfdetectError for all that are missing or empty, naming the first 20.
    """
    paths = [str(path) for path in dict.fromkeys(sample.path for sample in samples)]
    shares = [paths[i : i + 1000] for i in range(0, len(paths), 1000)]
    with ThreadPoolExecutor(16) as threads:  # each look may wait for a file server
        wrong = [fault for share in threads.map(_crop_faults, shares) for fault in share]
    if wrong:
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise DfdetectError(
            f"{len(wrong)} of {len(paths)} face crops cannot be read: "
            f"{', '.join(wrong[:MOST_NAMED])}{more}",
            "run prepare with --repair",
        )


def read_crop(path: Path) -> np.ndarray:
    """uint8 [H,W,3] RGB. Errors: DfdetectError naming the file if it is missing or damaged."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) if path.is_file() else None
    if image is None:
        state = "damaged" if path.exists() else "missing"
        raise DfdetectError(f"{path}: {state} face crop", "run prepare with --repair")
    return image


def read_group(
    group: Sequence[Sample | CropFile], rng: np.random.Generator | None = None
) -> list[np.ndarray]:
    """The rows of one sample as pixels, uint8 [H,W,3] RGB each; each file is read once.

    Noise and a range of JPEG qualities are drawn with `rng`, without one by the sample's id.
    """
    files = {path: read_crop(path) for path in dict.fromkeys(s.path for s in group)}
    return [
        corrupted(files[s.path], s.made, s.sample_id, rng) if s.made else files[s.path]
        for s in group
    ]


class Draws(NamedTuple):
    """A batch to be made: the `positions` of its samples; `first` is the number of its first draw
    in the epoch. A sample drawn twice is augmented in two ways, and its noise and its level in a
    range of JPEG qualities are drawn anew."""

    epoch: int
    first: int
    positions: np.ndarray


class Strata(NamedTuple):
    """What samplers balance: each sample's label, domain and number of its video, int64 [N].

    `sources`: a real's number of its person; a fake's of the real person that it was made of, -1
    where the data has none.
    """

    labels: np.ndarray
    domains: np.ndarray
    videos: np.ndarray
    sources: np.ndarray


class Forging(NamedTuple):
    """How reals become fakes in the loader. `forge(crop, landmarks, rng, partner)` makes one of
    uint8 [S,S,3] RGB and its landmarks [5,2] px, `partner()` gives crop and landmarks of somebody
    else; `landmarks` are those of each real by sample_id, `share` the forged twins per real."""

    share: float
    landmarks: Mapping[str, np.ndarray]
    forge: Callable[..., np.ndarray]


class PairedCrops(Dataset):
    """Training samples, each with its crops at every quality: Draws -> Batch.

    With a `forging` the forged twins of the reals follow as samples of their own. Each stands for
    one real, or where there are fewer twins for neighbouring ones, of which a draw takes any; its
    label is 1, its domain the last, its video one of its own, its source that of its reals.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        qualities: Sequence[str],
        domains: Sequence[str],
        image_size: int,
        augment: Augment,
        seed: int,
        forging: Forging | None = None,
    ) -> None:
        """`domains` are manipulations, real first; a fake of another one counts as the first fake.

        Errors: DfdetectError if a sample lacks one of the qualities, and raw to make it of; with a
        `forging`, if it lacks raw.
        """
        stored = ("raw",) if forging else qualities
        groups: dict[str, list[Sample]] = {}
        for sample in at_qualities(samples, stored):
            groups.setdefault(sample.sample_id, []).append(sample)
        for sample_id, group in groups.items():
            if missing := [q for q in stored if q not in {s.quality for s in group}]:
                raise DfdetectError(
                    f"{sample_id} has no crop at quality {missing[0]}",
                    "prepare the data with all the preset's qualities, or --set qualities=...",
                )
        firsts = [group[0] for group in groups.values()]
        self.video_ids = list(dict.fromkeys(s.video_id for s in firsts))
        numbers = {name: i for i, name in enumerate(self.video_ids)}
        number_of = {name: i for i, name in enumerate(domains)}
        self.strata = Strata(
            np.array([s.label for s in firsts], np.int64),
            np.array([number_of.get(s.manipulation, s.label) for s in firsts], np.int64),
            np.array([numbers[s.video_id] for s in firsts], np.int64),
            _sources(firsts),
        )
        self._files = _CropFiles([s for group in groups.values() for s in group])
        self._n_stored, self._image_size = len(stored), image_size
        self._qualities = [parse_quality(name) for name in qualities]
        self._augment, self._seed, self._forging = augment, seed, forging
        self._n_samples = len(firsts)
        if forging:
            self._add_twins(firsts, forging, len(domains) - 1)

    def __len__(self) -> int:
        return len(self.strata.labels)

    def regroup(self, domain_of_video: np.ndarray) -> None:
        """Another domain for the fakes of each video: int [number of videos], from 1 on."""
        domains = np.where(self.strata.labels == 1, domain_of_video[self.strata.videos], 0)
        domains[self._n_samples :] = self.strata.domains[self._n_samples :]
        self.strata = self.strata._replace(domains=domains)

    def files(self, position: int) -> list[CropFile]:
        """What is read of one sample: at each quality, or with a forging its raw crop."""
        first = position * self._n_stored
        return [self._files[row] for row in range(first, first + self._n_stored)]

    def __getitem__(self, draws: Draws) -> Batch:
        side = self._image_size
        images = np.empty((len(draws.positions), len(self._qualities), 3, side, side), np.uint8)
        ids = []
        for place, position in enumerate(draws.positions):
            rng = np.random.default_rng([self._seed, draws.epoch, draws.first + place])
            sample_id, crops = self._read(int(position), rng)
            ids.append(sample_id)
            crops = augmented(crops, self._augment, rng)
            for planes, crop in zip(images[place], crops, strict=True):
                _fill(planes, crop)
        labels, domains = (of[draws.positions] for of in self.strata[:2])
        return Batch(*map(torch.from_numpy, (images, labels, domains)), ids)

    def _read(self, position: int, rng: np.random.Generator) -> tuple[str, list[np.ndarray]]:
        """Id and crops of one sample at each quality, before augmentation."""
        if self._forging is None:
            group = self.files(position)
            return group[0].sample_id, read_group(group, rng)
        twin = position - self._n_samples
        if twin >= 0:
            low, high = self._slots[twin : twin + 2]
            place = int(rng.integers(low, high))
            position = int(self._reals[place])
        (file,) = self.files(position)
        crop, sample_id = read_crop(file.path), file.sample_id
        if twin >= 0:
            partner = lambda: self._partner(place, rng)  # noqa: E731
            crop = self._forging.forge(crop, self._landmarks[place], rng, partner)
            sample_id += f"/{FORGED}"
        return sample_id, degraded(crop, self._qualities, rng)

    def _partner(self, place: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Crop and landmarks of another person, or where people are not told apart, of another
        video. Errors: DfdetectError if there is nobody else."""
        sources, videos = (of[self._reals] for of in (self.strata.sources, self.strata.videos))
        others = np.flatnonzero(sources != sources[place])
        if not len(others):
            others = np.flatnonzero(videos != videos[place])
        if not len(others):
            raise DfdetectError(
                "a forgery needs the face of another person, and there is one video of a real",
                "train on more people, or leave cross-blend out of augment.forge.forgeries",
            )
        other = int(rng.choice(others))
        (file,) = self.files(self._reals[other])
        return read_crop(file.path), self._landmarks[other]

    def _add_twins(self, firsts: Sequence[Sample], forging: Forging, domain: int) -> None:
        labels, domains, videos, sources = self.strata
        self._reals = np.flatnonzero(labels == 0)
        n_reals = len(self._reals)
        n_twins = max(1, round(forging.share * n_reals))
        self._slots = np.arange(n_twins + 1) * n_reals // n_twins
        ids = (firsts[position].sample_id for position in self._reals)
        self._landmarks = np.array([forging.landmarks[name] for name in ids], np.float32)
        self._forging = forging._replace(landmarks={})  # every worker gets a copy
        of_slots = [sources[self._reals[low:high]] for low, high in pairwise(self._slots)]
        first_of = self._reals[self._slots[:-1]]
        self.strata = Strata(
            np.append(labels, np.ones(n_twins, np.int64)),
            np.append(domains, np.full(n_twins, domain)),
            np.append(videos, _renumbered(videos[first_of]) + len(self.video_ids)),
            np.append(sources, [of[0] if (of == of[0]).all() else -1 for of in of_slots]),
        )
        names = dict.fromkeys(self.video_ids[number] for number in videos[first_of])
        self.video_ids += [f"{name}/{FORGED}" for name in names]


def degraded(
    crop: np.ndarray, qualities: Sequence[Quality], rng: np.random.Generator
) -> list[np.ndarray]:
    """A raw crop uint8 [S,S,3] at each of `qualities`, drawn with `rng`.

    H.264 is real: a stream of 3 to 5 frames, in which the crop drifts by fractions of a pixel to
    where it is, goes through prepare's encoder, and its last frame, predicted from those before
    it, is taken. The stream is the same at each CRF. An odd side loses its last pixel, as there.
    """
    stream = []
    if any(q.kind == "h264" for q in qualities):
        side = len(crop) // 2 * 2
        crop = np.ascontiguousarray(crop[:side, :side])
        stream = drifting(crop, rng)
    made = []
    for quality in qualities:
        if quality.kind == "h264":
            made.append(through_h264(stream, int(quality.level))[-1])
        else:
            made.append(corrupted(crop, quality, "", rng))
    return made


def drifting(crop: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Frames uint8 [S,S,3] of a camera that moves, turns and zooms a little and ends at `crop`."""
    side = len(crop)
    n_frames = int(rng.integers(STREAM_FRAMES[0], STREAM_FRAMES[1] + 1))
    shift = rng.uniform(-STREAM_STEP, STREAM_STEP, 2) * side
    turn, zoom = rng.uniform(-0.15, 0.15), rng.uniform(-0.002, 0.002)
    frames = []
    for before in range(n_frames - 1, 0, -1):
        move = cv2.getRotationMatrix2D((side / 2, side / 2), turn * before, 1 + zoom * before)
        move[:, 2] += shift * before
        frames.append(
            cv2.warpAffine(
                crop, move, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
            )
        )
    return [*frames, crop]


def augmented(
    crops: Sequence[np.ndarray], options: Augment, rng: np.random.Generator
) -> list[np.ndarray]:
    """One draw for all qualities of a sample: uint8 [H,H,3] each -> uint8 [h,h,3] each.

    What is off draws nothing, so that turning on a later one leaves the earlier as they were.
    """
    side = len(crops[0])
    if options.flip and rng.random() < options.flip:
        crops = [cv2.flip(crop, 1) for crop in crops]
    if options.scale:
        cut = round(side * (1 - options.scale * rng.random()))
        top, left = rng.integers(0, side - cut + 1, 2)
        side, crops = cut, [crop[top : top + cut, left : left + cut] for crop in crops]
    if options.brightness or options.contrast:
        gain = 1 + options.contrast * rng.uniform(-1, 1)
        bias = 255 * options.brightness * rng.uniform(-1, 1)
        levels = np.clip(np.arange(256) * gain + bias, 0, 255).round().astype(np.uint8)
        crops = [cv2.LUT(crop, levels) for crop in crops]
    if options.blur and rng.random() < options.blur:
        sigma = rng.uniform(*options.blur_sigma)
        crops = [cv2.GaussianBlur(crop, (0, 0), sigma) for crop in crops]
    if options.rescale and rng.random() < options.rescale:
        small = max(1, round(side * rng.uniform(*options.rescale_to)))
        for size, way in zip((small, side), rng.choice(_INTERPOLATIONS, 2), strict=True):
            crops = [cv2.resize(crop, (size, size), interpolation=int(way)) for crop in crops]
    if options.jpeg and rng.random() < options.jpeg:
        lowest, highest = options.jpeg_quality
        level = int(rng.integers(lowest, highest + 1))
        crops = [jpeg_round_trip(crop, level) for crop in crops]
    return list(crops)


def epoch_order(
    strata: Strata, sampler: str, seed: int, epoch: int, n_batches: int, batch_size: int
) -> np.ndarray:
    """Positions of one epoch, int [n_batches, batch_size].

    shuffle: every sample once before any comes twice. The others draw with replacement: uniform
    all samples alike; video_balanced every video once before any comes twice, and a random frame
    of it; class_balanced and domain_balanced each class or domain equally often in every batch.
    Where a batch has fewer places than there are domains, one is real and the fakes take turns
    in the others: every balanced batch holds both classes. source_paired: real and fake in turns,
    every fake once before any comes twice, each after a random real of the same source, or any
    real where its source has none; an odd batch ends with one more real.
    """
    rng = np.random.default_rng([seed, epoch])
    shape, n_samples = (n_batches, batch_size), len(strata.labels)
    if sampler == "shuffle":
        return _in_rounds(n_samples, shape, rng)
    if sampler == "uniform":
        return rng.integers(0, n_samples, shape)
    if sampler == "video_balanced":
        videos = _in_rounds(int(strata.videos.max()) + 1, shape, rng)
        return _random_members(strata.videos, videos, rng)
    if sampler == "source_paired":
        return _in_pairs(strata, shape, rng)
    groups = strata.labels if sampler == "class_balanced" else strata.domains
    present = np.unique(groups)
    turns = np.arange(n_batches * batch_size).reshape(shape) % len(present)
    if batch_size < len(present):
        fakes = np.arange(n_batches * (batch_size - 1)).reshape(n_batches, -1) % (len(present) - 1)
        turns = np.pad(1 + fakes, ((0, 0), (1, 0)))
    wanted = present[rng.permuted(turns, axis=1)]
    return _random_members(groups, wanted, rng)


def training_batches(
    crops: PairedCrops, sampler: str, seed: int, steps_per_epoch: int, n_steps: int,
    batch_size: int, first_step: int = 0, rank: int = 0, n_ranks: int = 1, workers: int = 0,
) -> "Loader[Batch]":  # fmt: skip
    """Batches of the steps first_step..n_steps of a run, for one of `n_ranks` processes.

    They depend on nothing else: not on where the run was resumed, nor on the number of workers.
    """

    def draws() -> Iterator[Draws]:
        for step in range(first_step, n_steps):
            epoch, number = divmod(step, steps_per_epoch)
            if number == 0 or step == first_step:
                n_batches = steps_per_epoch * n_ranks
                order = epoch_order(crops.strata, sampler, seed, epoch, n_batches, batch_size)
            row = number * n_ranks + rank
            yield Draws(epoch, row * batch_size, order[row])

    return Loader(crops, draws(), workers)


class Crops(Dataset):
    """Rows to score: positions -> uint8 tensor [N,3,S,S]."""

    def __init__(self, samples: Sequence[Sample], image_size: int) -> None:
        self._files, self._image_size = _CropFiles(samples), image_size

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        images = np.empty((len(positions), 3, self._image_size, self._image_size), np.uint8)
        for planes, position in zip(images, positions, strict=True):
            _fill(planes, read_group([self._files[position]])[0])
        return torch.from_numpy(images)


def scoring_batches(
    samples: Sequence[Sample], image_size: int, batch_size: int, workers: int = 0
) -> "Loader[Tensor]":
    """All rows in their order, uint8 [N,3,S,S] with N up to `batch_size`; as often as wanted."""
    starts = range(0, len(samples), batch_size)
    positions = [range(i, min(i + batch_size, len(samples))) for i in starts]
    return Loader(Crops(samples, image_size), positions, workers)


class Loader(Generic[T]):
    """`dataset[key]` of each of `keys`, in order, made ahead by `workers` processes (0: here).

    They start when it is iterated, work on when it is iterated again, and are gone when its `with`
    block ends, however that ends. They do not die of a Ctrl-C or SIGTERM that all processes get:
    when to stop is for whoever iterates. The global random state is left alone.

    Errors: DfdetectError as it was raised in a worker; ExitCode.ENVIRONMENT if one died.
    """

    def __init__(self, dataset: Dataset, keys: Iterable, workers: int) -> None:
        running: dict[str, Any] = {
            "multiprocessing_context": _START,
            "persistent_workers": True,
            "worker_init_fn": _settle,
        }
        self._batches = DataLoader(
            _Delivery(dataset),
            batch_size=None,  # a key is a whole batch already
            sampler=keys,
            num_workers=workers,
            generator=torch.Generator(),  # torch would draw a seed from the global one
            pin_memory=torch.cuda.is_available(),
            **(running if workers else {}),
        )
        self._workers: list[Any] = []
        self._running: Any = None

    def __enter__(self) -> "Loader[T]":
        return self

    def __iter__(self) -> Iterator[T]:
        self._start()
        for batch in self._running:
            if isinstance(batch, DfdetectError):
                raise batch
            yield batch

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        codes = [worker.exitcode for worker in self._workers]
        died = [code for code in codes if code is not None]
        self.close()
        # Torch tells of a death here or there: of its own children's by a signal handler.
        if died and isinstance(error, Exception) and not isinstance(error, DfdetectError):
            raise _died(died[0]) from error

    def close(self) -> None:
        """Stop the processes. A loader that was closed cannot be iterated again."""
        atexit.unregister(self.close)
        if self._workers:
            # Torch waits for the last reference to go, and a traceback may hold one.
            with suppress(RuntimeError):  # one that died is told of again
                self._running._shutdown_workers()
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        self._workers, self._running = [], None

    def _start(self) -> None:
        # At exit, before multiprocessing asks them with a SIGTERM, and waits.
        atexit.register(self.close)
        if self._batches.num_workers:
            get_context(_START).set_forkserver_preload([__name__])
        resource_tracker.ensure_running()  # its start would unblock the signals again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            self._running = iter(self._batches)
        except (OSError, EOFError) as error:
            raise DfdetectError(
                f"loader processes cannot be started ({error or 'the first ended'})",
                "use fewer --workers; see whether memory, processes or open files are limited",
                ExitCode.ENVIRONMENT,
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._workers = getattr(self._running, "_workers", [])


def default_workers(device: str) -> int:
    """Loader processes for one of the processes that share this machine.

    A GPU leaves the cores to them, but for one; a CPU trains so slowly that two can load for it,
    and on few cores the training process does it itself.
    """
    cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.startswith("cpu"):
        return 0 if cores <= 4 else 2
    return min(MOST_WORKERS, max(1, cores - 1))


def images_to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 images [S,S,3] -> uint8 tensor [N,3,S,S]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


# --- rows and pixels --------------------------------------------------------------------------


def _sources(samples: Sequence[Sample]) -> np.ndarray:
    """Strata.sources: whose video a fake was made of comes before whose face is in it."""
    people = dict.fromkeys(s.identities for s in samples if not s.label)
    numbers = {identities: number for number, identities in enumerate(people)}
    of_person = {person: number for identities, number in numbers.items() for person in identities}
    return np.array(
        [
            next((of_person[person] for person in s.identities if person in of_person), -1)
            if s.label
            else numbers[s.identities]
            for s in samples
        ],
        np.int64,
    )


class _CropFiles:
    """The CropFile of each row, packed: every worker gets a copy, and half a million Samples would
    take it hundreds of MB and many seconds."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._paths = _Strings(str(s.path) for s in samples)
        self._ids = _Strings(s.sample_id for s in samples)
        numbers: dict[Quality | None, int] = {}
        self._made = np.array([numbers.setdefault(s.made, len(numbers)) for s in samples], np.int16)
        self._qualities = list(numbers)

    def __getitem__(self, row: int) -> CropFile:
        return CropFile(Path(self._paths[row]), self._ids[row], self._qualities[self._made[row]])


class _Strings:
    """Strings in one block of bytes."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._bytes = b"".join(encoded)
        self._ends = np.array(list(accumulate(map(len, encoded), initial=0)))

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self._bytes[self._ends[i] : self._ends[i + 1]])


def _crop_faults(paths: Sequence[str]) -> list[str]:
    faults = []
    for path in paths:
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode) or not found.st_size:
                faults.append(f"{path} ({'no file' if found.st_size else 'empty'})")
        except FileNotFoundError:
            faults.append(f"{path} (missing)")
        except OSError as error:
            faults.append(f"{path} ({error.strerror})")
    return faults


def _fill(planes: np.ndarray, crop: np.ndarray) -> None:
    """Write a crop uint8 [H,W,3] into `planes` uint8 [3,S,S], at their side."""
    cv2.split(to_input(crop, planes.shape[-1]), list(planes))


# --- order of an epoch ------------------------------------------------------------------------


def _in_rounds(n: int, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """0..n-1 in a random order, then in another, until `shape` is full."""
    n_places = math.prod(shape)
    rounds = [rng.permutation(n) for _ in range(-(-n_places // n))]
    return np.concatenate(rounds)[:n_places].reshape(shape)


def _in_pairs(strata: Strata, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Real and fake of one source after the other, in an array of `shape`."""
    reals, fakes = (np.flatnonzero(strata.labels == label) for label in (0, 1))
    n_batches, batch_size = shape
    order = reals[rng.integers(0, len(reals), shape)]
    order[:, 1::2] = fakes[_in_rounds(len(fakes), (n_batches, batch_size // 2), rng)]
    wanted = strata.sources[order[:, 1::2]]
    partners = order[:, : batch_size // 2 * 2 : 2]
    known = wanted >= 0
    partners[known] = reals[_random_members(strata.sources[reals], wanted[known], rng)]
    return order


def _renumbered(numbers: np.ndarray) -> np.ndarray:
    """The same groups, numbered from 0 in order of appearance."""
    new = {number: i for i, number in enumerate(dict.fromkeys(numbers.tolist()))}
    return np.array([new[number] for number in numbers.tolist()], np.int64)


def _random_members(groups: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each group in `wanted` the position of a random member, in an array of the same shape."""
    by_group, sizes = np.argsort(groups, kind="stable"), np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    return by_group[starts[wanted] + rng.integers(0, sizes[wanted])]


# --- loader processes -------------------------------------------------------------------------


class _Delivery(Dataset):
    """Sends a DfdetectError home whole: torch would raise its traceback as its message."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._dataset[key]
        except DfdetectError as error:
            return error


def _settle(worker: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # whoever started the server may not have
    for number in _STOPS:  # a mask is a thread's own, and libraries may have started some already
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)  # torch does the same to itself
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    # A spawned one leaves through Python's exit, which ends the thread that sends its batches;
    # inside C++ that aborts.
    atexit.register(os._exit, 0)


def _end_with(program: Any) -> None:
    """Torch watches the parent: here that is the server, which in turn waits for its children."""
    program.join()
    os._exit(1)


def _died(exit_code: int) -> DfdetectError:
    if exit_code == -signal.SIGBUS:
        return DfdetectError(
            "a loader process died: the shared memory (/dev/shm) is full",
            "use fewer --workers, or give the container more (docker run --shm-size=8g)",
            ExitCode.ENVIRONMENT,
        )
    how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with {exit_code}"
    return DfdetectError(
        f"a loader process {how}, probably for want of memory",
        "use fewer --workers, or a smaller batch_size",
        ExitCode.ENVIRONMENT,
    )
