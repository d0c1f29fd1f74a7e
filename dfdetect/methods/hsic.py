"""HSIC and its normalised forms: how much two views of the same samples depend on one another.

QAD Eq. 8 with a Gaussian kernel, exp(-|u-v|^2 / (2 sigma^2 d)). With the division by dimension d
every kernel value lies near 1, so the kernel is computed as expm1 (centring removes the constant)
and both Gram matrices are centred: anything else loses the value in float32.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations, permutations, product
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dfdetect.methods.base import precise

Pairs = Literal["unordered", "ordered", "all"]
_COLUMNS = 1 << 16  # of a feature matrix, centred and multiplied at once
_ZERO = 1e-24  # a self-HSIC up to here is a constant feature: no dependence, no gradient


def centred_gram(features: Tensor, sigma: float, dim_norm: bool = True) -> Tensor:
    """HKH of the Gaussian kernel of features [n,...] -> [n,n], float32 (float64 stays float64).

    `dim_norm` scales sigma^2 by the dimension, as the HSIC-bottleneck family of code does.
    """
    rows = _rows(features)
    scale = 2 * sigma**2 * (rows.shape[1] if dim_norm else 1)
    return _centred(torch.expm1(-squared_distances(rows) / scale))


def squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2 of x [n,d], float32 or better; the diagonal is exactly 0."""
    return _SquaredDistances.apply(x)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Matrix products inside take float32 as it is: no autocast, no TF32."""
    before = torch.get_float32_matmul_precision()
    # Newer PyTorch has a second switch, which the first one overwrites.
    cuda = torch.backends.cuda.matmul
    switch = getattr(cuda, "fp32_precision", None)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        if switch is not None:
            cuda.fp32_precision = switch


def hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 (Eq. 8 calls it L)
    """Eq. 8, tr(KHLH)/(n-1)^2, of two centred Gram matrices [n,n]."""
    return (k * l).sum() / (len(k) - 1) ** 2


def cka(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """Eq. 8 over both self-dependences, in [0,1]; 0 without gradient for a constant view."""
    constant = torch.minimum(hsic(k, k), hsic(l, l)) <= _ZERO
    # Each over its own norm first: the values are near 1e-7 and their products smaller still.
    # A constant view has its norm replaced, so that no gradient is infinite times zero.
    unit_k, unit_l = (m / torch.where(constant, 1.0, m.norm()) for m in (k, l))
    return torch.where(constant, 0.0, (unit_k * unit_l).sum())


def cca(k: Tensor, l: Tensor, epsilon: float = 1e-5) -> Tensor:  # noqa: E741
    """tr(R_k R_l) with R = K(K + epsilon n I)^-1: the normalised form of HSIC-bottleneck code."""
    n = len(k)
    ridge = epsilon * n * torch.eye(n, dtype=k.dtype, device=k.device)
    r_k, r_l = (torch.linalg.solve(m + ridge, m) for m in (k, l))
    return (r_k * r_l.T).sum()


def random_fourier(
    features: Tensor, omega: Tensor, phase: Tensor, sigma: float, dim_norm: bool = True
) -> Tensor:
    """sqrt(2/D) cos(x omega / (sigma sqrt(d)) + phase): features [n,...], omega [d,D] -> [n,D]."""
    with full_precision(features.device.type):
        x = precise(features.flatten(1))
        scale = sigma * (math.sqrt(x.shape[1]) if dim_norm else 1.0)
        return math.sqrt(2 / omega.shape[1]) * torch.cos(x @ omega / scale + phase)


def hsic_rff(p: Tensor, q: Tensor) -> Tensor:
    """HSIC of two random-Fourier maps [n,D], unbiased over independent draws."""
    with full_precision(p.device.type):
        cross = (p - p.mean(0)).T @ (q - q.mean(0)) / (len(p) - 1)
        return (cross * cross).sum()


def quality_pairs(n: int, pairs: Pairs = "unordered") -> Iterator[tuple[int, int]]:
    """Pairs of qualities in QAD Eq. 10; the text says two different ones, so `unordered`."""
    if pairs == "unordered":
        return combinations(range(n), 2)
    return permutations(range(n), 2) if pairs == "ordered" else product(range(n), repeat=2)


def _centred(gram: Tensor) -> Tensor:
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


class _SquaredDistances(torch.autograd.Function):
    """One product of mean-free features, column by column, so that neither a centred nor a float32
    copy of them is kept; its backward is one product too, at the same precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        with full_precision(x.device.type):
            inner = sum(part @ part.T for _, part in _centred_columns(x))
        norms = inner.diagonal()
        return (norms[:, None] + norms - 2 * inner).clamp_min_(0).fill_diagonal_(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """2 (diag(S 1) - S) x with S = G + G^T."""
        (x,) = ctx.saved_tensors
        both = gradient + gradient.T
        laplacian = 2 * (both.sum(1).diag() - both)
        result = torch.empty_like(x)
        with full_precision(x.device.type):
            for columns, part in _centred_columns(x):
                result[:, columns] = (laplacian @ part).to(x.dtype)
        return result


def _centred_columns(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, x.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        part = precise(x[:, columns])
        yield columns, part - part.mean(0, keepdim=True)


def _rows(features: Tensor) -> Tensor:
    """[n,...] -> [n,d] without a copy where possible; the order of columns does not matter."""
    if features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last):
        features = features.permute(0, 2, 3, 1)
    return features.flatten(1)
