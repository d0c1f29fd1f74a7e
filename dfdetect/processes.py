"""Several processes that work as one: who we are, and sums, rows and objects of all of them.

`torchrun` and `accelerate launch` start the processes; without them there is one, and everything
here is the identity. Accelerate makes the process group (train joins it); the rest is plain
torch.distributed, so that methods and scoring need no accelerate.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dfdetect.errors import DfdetectError


class Processes(NamedTuple):
    """This process's `rank` in 0..n-1, and how many there are."""

    rank: int
    n: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def processes() -> Processes:
    """From the process group if there is one, else from the launcher's environment."""
    if _joined():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def join(on_cpu: bool) -> Processes:
    """Make the process group that the launcher asked for; gloo on a CPU, nccl on GPUs."""
    if processes().n > 1 and not _joined():
        from accelerate import PartialState

        PartialState(cpu=on_cpu)
        # Its threads must end before the interpreter does, which otherwise now and then aborts.
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return processes()


def mean_of_all(tensor: Tensor) -> Tensor:
    """The mean of each process's `tensor`; no gradient."""
    if not _joined():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def take_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite `tensors` in place with those that rank 0 holds."""
    if _joined():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def rows_of_all(tensor: Tensor, dim: int = 0) -> Tensor:
    """Every process's rows in the order of ranks, along `dim`; equal shapes everywhere.

    Differentiable: a row's gradient is the sum of what every process's loss asks of it. A loss of
    the gathered rows that each process computes alike therefore gets, after the usual averaging
    of parameter gradients, exactly the gradient it would have in one process.
    """
    return _Gather.apply(tensor, dim) if _joined() else tensor


def objects_of_all(value: Any) -> list[Any]:
    """What every process holds, in the order of ranks, for all of them."""
    if not _joined():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """A DfdetectError of any process inside is raised by all: none waits for one that is gone."""
    error = None
    try:
        yield
    except DfdetectError as raised:
        error = raised
    for found in objects_of_all(error):
        if found:
            raise found


def main_alone(work: Callable[[Callable[[], None]], None]) -> None:
    """Rank 0 does `work(go_on)` while the others wait; it calls `go_on()` every few minutes, as
    processes that wait for too long give up. A DfdetectError of it is raised by all."""

    def go_on() -> None:
        objects_of_all(True)

    with together():
        if processes().is_main:
            try:
                work(go_on)
            finally:
                objects_of_all(False)
        else:
            while objects_of_all(None)[0]:  # told to wait on
                pass


def share_of(items: Sequence[Any], who: Processes | None = None) -> Sequence[Any]:
    """This process's share of `items`: every n-th, so that each item has exactly one owner."""
    who = who or processes()
    return items[who.rank :: who.n]


def in_order(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """The items again, of the shares that `share_of` dealt, in the order of ranks."""
    n_items = sum(map(len, shares))
    return [shares[i % len(shares)][i // len(shares)] for i in range(n_items)]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        tensor = tensor.contiguous()  # nccl takes no other layout, and parts inherit it
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)  # it may be another's too
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size(), ctx.dim)[dist.get_rank()], None


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
