"""Adversarial weight perturbation (QAD Eq. 5, Algorithm 1): ascend in weight space, then restore.

Per tensor, phi = phi + eta |theta| g/|g|, kept inside |phi| <= gamma |theta| with theta the clean
weights. The paper prints an absolute radius without a layer index; the per-layer relative ball is
that of the AWP publication it builds on.
"""

from collections.abc import Callable, Iterator, Sequence
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
    ascent_loss: Callable[[], Tensor],
    gamma: float,
    eta: float | None = None,
    steps: int = 1,
    scope: Scope = "layer",
    reduce: Callable[[Tensor], Tensor] | None = None,
    loss_scale: float = 1.0,
) -> Iterator[Perturbation]:
    """Weights at theta + phi inside, exactly theta after, also when something raises.

    `ascent_loss()` computes the loss at the weights as they are; `eta` defaults to gamma; `reduce`
    averages gradients over processes. `loss_scale` keeps half-precision gradients from
    underflowing; phi does not depend on it. The weights' `.grad` is not touched.
    """
    eta = gamma if eta is None else eta
    clean = [w.detach().clone() for w in weights]
    offsets = [torch.zeros_like(w) for w in clean]
    applied, loss_clean = True, None
    try:
        for _ in range(steps):
            loss = ascent_loss()
            loss_clean = loss.detach() if loss_clean is None else loss_clean
            gradients = torch.autograd.grad(loss * loss_scale, weights)
            del loss
            if reduce:
                gradients = [reduce(g) for g in gradients]
            norms = _norms(gradients, scope)
            if not torch.isfinite(norms).all():
                applied, offsets = False, [torch.zeros_like(w) for w in clean]
                _set(weights, clean)
                break
            offsets = _ascend(clean, offsets, gradients, norms, gamma, eta, scope)
            _set(weights, [start + offset for start, offset in zip(clean, offsets, strict=True)])
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


def _set(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)


def _ascend(
    clean: list[Tensor], offsets: list[Tensor], gradients: list[Tensor], norms: Tensor,
    gamma: float, eta: float, scope: Scope,
) -> list[Tensor]:  # fmt: skip
    """One step, then the projection; a zero gradient or a zero weight moves nothing."""
    radii = _norms(clean, scope)
    step = torch.where(norms > 0, eta * radii / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)
    moved = [phi + s * g for phi, s, g in zip(offsets, step, gradients, strict=True)]
    lengths = _norms(moved, scope)
    limit = gamma * radii
    shrink = torch.where(
        lengths > limit, limit / lengths.clamp_min(torch.finfo(norms.dtype).tiny), 1.0
    )
    return [phi * s for phi, s in zip(moved, shrink, strict=True)]


def _norms(tensors: Sequence[Tensor], scope: Scope) -> Tensor:
    """One norm per tensor, or with `global` the norm of all of them, repeated."""
    norms = torch.stack(torch._foreach_norm(list(tensors)))
    return norms if scope == "layer" else norms.norm().expand(len(norms))
