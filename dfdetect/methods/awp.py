"""Adversarial weight perturbation (QAD Eq. 5, Algorithm 1): ascend in weight space, then restore.

Per tensor, phi = phi + eta |theta| g/|g|, kept inside |phi| <= gamma |theta| with theta the clean
weights. The paper prints an absolute radius without a layer index; the per-layer relative ball is
that of the AWP publication it builds on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Scope = Literal["layer", "global"]


class Perturbation(NamedTuple):
    """The offsets phi by weight, and the loss that was ascended, at the clean weights.

    `applied` is false when a gradient was not finite: then nothing was perturbed.
    """

    offsets: list[Tensor]
    loss_clean: Tensor
    applied: bool


@contextmanager
def perturbed_weights(
    weights: Sequence[Tensor],
    ascent_loss: Callable[[], Iterable[Tensor]],
    gamma: float,
    eta: float | None = None,
    steps: int = 1,
    scope: Scope = "layer",
    reduce: Callable[[list[Tensor]], list[Tensor]] | None = None,
    loss_scale: float = 1.0,
) -> Iterator[Perturbation]:
    """Weights at theta + phi inside, exactly theta after, also when something raises.

    `ascent_loss()` gives the parts whose sum is the loss at the weights as they are; the gradient
    of each is taken before the next is asked for, so that one graph is alive at a time. `eta`
    defaults to gamma; `reduce` averages gradients over processes. `loss_scale` keeps half-precision
    gradients from underflowing; phi does not depend on it. The weights' `.grad` is not touched.
    """
    eta = gamma if eta is None else eta
    clean = [w.detach().clone() for w in weights]
    radii = _norms(clean, scope)
    offsets: list[Tensor] = []
    applied, loss_clean = True, None
    try:
        for _ in range(steps):
            loss, gradients = _gradients(ascent_loss(), weights, loss_scale)
            loss_clean = loss if loss_clean is None else loss_clean
            if reduce:
                gradients = reduce(gradients)
            norms = _norms(gradients, scope)
            if not torch.isfinite(norms).all():
                applied, offsets = False, [torch.zeros_like(w) for w in clean]
                _set(weights, clean)
                break
            # A zero gradient or a zero weight moves nothing.
            _scale(gradients, torch.where(norms > 0, eta * radii / norms, 0.0))
            if offsets:
                torch._foreach_add_(gradients, offsets)
            offsets = gradients
            if steps > 1 or eta > gamma:  # one step of eta <= gamma stays inside the ball
                lengths = _norms(offsets, scope)
                outside = lengths > gamma * radii
                _scale(offsets, torch.where(outside, gamma * radii / lengths, 1.0))
            _set(weights, clean, offsets)
        yield Perturbation(offsets, loss_clean, applied)
    finally:
        _set(weights, clean)


def perturbable(module: nn.Module) -> list[nn.Parameter]:
    """Trainable tensors of two or more dimensions: weights, no bias, no batch-norm affine."""
    return [p for p in module.parameters() if p.requires_grad and p.ndim > 1]


@contextmanager
def frozen_running_statistics(module: nn.Module, frozen: bool = True) -> Iterator[None]:
    """Batch norm normalises with batch statistics inside, but its running statistics stay."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)] if frozen else []
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _gradients(
    parts: Iterable[Tensor], weights: Sequence[Tensor], scale: float
) -> tuple[Tensor, list[Tensor]]:
    """The sum of the parts, detached, and the gradient of `scale` times it."""
    total, gradients = None, None
    for part in parts:
        of_part = list(
            torch.autograd.grad(part * scale, weights, allow_unused=True, materialize_grads=True)
        )
        if gradients is None:
            total, gradients = part.detach(), of_part
        else:
            total = total + part.detach()
            torch._foreach_add_(gradients, of_part)
    return total, gradients


def _set(
    weights: Sequence[Tensor], clean: Sequence[Tensor], offsets: Sequence[Tensor] = ()
) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(weights), list(clean))
        if offsets:
            torch._foreach_add_(list(weights), list(offsets))


def _scale(tensors: list[Tensor], factors: Tensor) -> None:
    """Each tensor by its own of `factors`, in place."""
    torch._foreach_mul_(tensors, list(factors.unbind()))


def _norms(tensors: Sequence[Tensor], scope: Scope) -> Tensor:
    """One norm per tensor, or with `global` the norm of all of them, repeated."""
    norms = torch.stack(torch._foreach_norm(list(tensors)))
    return norms if scope == "layer" else norms.norm().expand(len(norms))
