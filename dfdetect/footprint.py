"""What a training step needs of the device's memory, from real steps on two and on four samples.

A step is a fixed sequence of operations, and the memory in use after each of them grows linearly
with the batch. So two small steps give it for every batch size, operation by operation, and the
largest value is the step's peak: whichever phase it falls in, also with perturbed weights. What is
counted are the tensors that operations return; on CUDA the allocator's own peaks, which include
what kernels need inside, are extrapolated too, and the larger estimate counts.
"""

import weakref
from contextlib import nullcontext
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfdetect.data import Batch
from dfdetect.methods import Method
from dfdetect.presets import Preset

SMALL, LARGE = 2, 4
_END = 1_000_000_000
"""A step so late that every schedule has come to its end and nothing is still switched off."""
_STATES = {"adam": 2, "adamw": 2, "sgd": 1}
"""Tensors that an optimizer keeps for each parameter."""


class Footprint(NamedTuple):
    """Bytes on each device, for the preset's batch; and whether the step's results were finite."""

    weights: int  # parameters and buffers
    optimizer: int
    average: int  # the moving average of the detector
    perturbation: int  # copies that are held while the weights are perturbed; part of step_fixed
    step_fixed: int  # gradients and copies at the step's peak, whatever the batch
    step_per_sample: int  # activations of one sample, at all its qualities, at the step's peak
    step: int  # all that a step adds at its peak
    loss: float
    is_finite: bool  # the loss and every gradient

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.average + self.step


def measure(method: Method, batch: Batch, preset: Preset) -> Footprint:
    """The footprint of training `method` with `preset`, where its parameters are.

    `batch` is as the loader gives it, images uint8 [B,Q,3,S,S], and best holds 4 samples of both
    classes. Runs two steps without an optimizer: the weights are as before, but running statistics,
    random state and the method's schedules are not.
    """
    device = next(method.parameters()).device
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(preset.precision)
    method.autocast = (lambda: torch.autocast(device.type, dtype)) if dtype else nullcontext
    method.train()
    method.at(_END, _END, _END, _END)
    method.measure = True  # the steps that also measure gradients need the most
    small, large = (_one_step(method, _both_classes(batch, n), device) for n in (SMALL, LARGE))

    part = preset.batch_size // preset.accumulate
    if len(small.course) != len(large.course):  # operations depend on the batch: peaks are left
        small, large = (s._replace(course=[max(s.course)]) for s in (small, large))
    slopes = [(b - a) / (LARGE - SMALL) for a, b in zip(small.course, large.course, strict=True)]
    at_batch = [a + s * (part - SMALL) for a, s in zip(small.course, slopes, strict=True)]
    peak = max(range(len(at_batch)), key=at_batch.__getitem__)
    allocated_slope = (large.allocated - small.allocated) / (LARGE - SMALL)
    allocated = small.allocated + allocated_slope * (part - SMALL)
    per_sample = allocated_slope if allocated > at_batch[peak] else slopes[peak]
    step = max(allocated, at_batch[peak])
    waiting = (preset.batch_size - part) * batch.images[0].numel() * 4  # pixels of other parts

    trained = sum(_n_bytes(p) for p in method.parameters() if p.requires_grad)
    detector = [*method.detector.parameters(), *method.detector.buffers()]
    return Footprint(
        weights=sum(map(_n_bytes, [*method.parameters(), *method.buffers()])),
        optimizer=_STATES[preset.optimizer.name] * trained,
        average=sum(map(_n_bytes, detector)) if preset.ema else 0,
        perturbation=small.perturbation,
        step_fixed=round(step - per_sample * part),
        step_per_sample=round(per_sample),
        step=round(step + waiting),
        loss=large.loss,
        is_finite=small.is_finite and large.is_finite,
    )


class _Step(NamedTuple):
    """Bytes that were live after each operation, copies held by the perturbation, the allocator's
    peak (0 where it cannot be asked), and the results."""

    course: list[int]
    perturbation: int
    allocated: int
    loss: float
    is_finite: bool


def _one_step(method: Method, batch: Batch, device: torch.device) -> _Step:
    """As the training loop does it: the gradients of the step before are there at first."""
    on_cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_cuda else 0
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    known = [*method.parameters(), *method.buffers(), batch.images, batch.labels, batch.domains]
    live = _LiveBytes(known, [p.grad for p in method.parameters() if p.grad is not None])
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with live:
        batch = batch.to_device(device)
        with method.perturbed([batch]):
            method.zero_grad(set_to_none=True)
            perturbation = live.now - _n_bytes(batch.images)
            with method.autocast():
                loss = method(batch).total
            loss.backward()
    allocated = torch.cuda.max_memory_allocated(device) - before if on_cuda else 0
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    is_finite = all(bool(torch.isfinite(x).all()) for x in (loss, *gradients))
    method.zero_grad(set_to_none=True)
    return _Step(live.course, perturbation, allocated, loss.item(), is_finite)


class _LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made inside and still alive: `now`, and after every operation."""

    def __init__(self, known: list[Tensor], counted: list[Tensor]) -> None:
        """`known` existed before and are not counted, `counted` existed before and are."""
        super().__init__()
        self.now, self.course = 0, []
        self._alive: dict[int, Any] = {}
        for tensor in known:
            self._watch(tensor, 0)
        for tensor in counted:
            self._watch(tensor, _n_bytes(tensor))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf, _n_bytes(leaf))
        self.course.append(self.now)
        return result

    def _watch(self, tensor: Tensor, n_bytes: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return

        def freed(_: object) -> None:
            del self._alive[key]
            self.now -= n_bytes

        self._alive[key] = weakref.ref(storage, freed)
        self.now += n_bytes


def _n_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _both_classes(batch: Batch, n: int) -> Batch:
    """`n` samples of the batch, of each class in turn; some more than once where they are few."""
    by_class = [torch.nonzero(batch.labels == label).flatten().tolist() for label in (0, 1)]
    turns = [cycle(rows) for rows in by_class if rows]
    chosen = torch.tensor([next(turns[i % len(turns)]) for i in range(n)])
    ids = [batch.sample_ids[i] for i in chosen]
    return Batch(batch.images[chosen], batch.labels[chosen], batch.domains[chosen], ids)
