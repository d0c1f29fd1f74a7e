"""HSIC and its normalised forms: how much two views of the same samples depend on one another.

QAD Eq. 8 with a Gaussian kernel, exp(-|u-v|^2 / (2 sigma^2 d)). With the division by dimension d
every kernel value lies near 1, so the kernel is computed as expm1 (centring removes the constant)
and both Gram matrices are centred: anything else loses the value in float32.
"""

import math
from collections.abc import Iterator
from itertools import combinations, permutations, product
from typing import Literal

import torch
from torch import Tensor

from dfdetect.methods.base import precise

Pairs = Literal["unordered", "ordered", "all"]
_CHUNK = 1 << 22  # columns of a feature matrix multiplied at once
_ZERO = 1e-24  # a self-HSIC up to here is a constant feature: no dependence, no gradient


def centred_gram(features: Tensor, sigma: float, dim_norm: bool = True) -> Tensor:
    """HKH of the Gaussian kernel of features [n,...] -> [n,n], float32 (float64 stays float64).

    `dim_norm` scales sigma^2 by the dimension, as the HSIC-bottleneck family of code does.
    """
    with torch.autocast(features.device.type, enabled=False):
        x = features.flatten(1)
        x = precise(x)
        distance = squared_distances(x)
        scale = 2 * sigma**2 * (x.shape[1] if dim_norm else 1)
        return _centred(torch.expm1(-distance / scale))


def squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2 of x [n,d] by one product of mean-free features; the diagonal is exactly 0."""
    x = x - x.mean(0, keepdim=True).detach()
    inner = sum((part @ part.T for part in x.split(_CHUNK, dim=1)), start=x.new_zeros(()))
    norms = inner.diagonal()
    distance = (norms[:, None] + norms[None, :] - 2 * inner).clamp_min(0)
    return distance * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))


def hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 (Eq. 8 calls it L)
    """Eq. 8, tr(KHLH)/(n-1)^2, of two centred Gram matrices [n,n]."""
    return (k * l).sum() / (len(k) - 1) ** 2


def cka(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """Eq. 8 over both self-dependences, in [0,1]; 0 without gradient for a constant view."""
    self_k, self_l = hsic(k, k), hsic(l, l)
    if min(self_k.item(), self_l.item()) <= _ZERO:
        return k.new_zeros(())
    # Each over its own norm first: the values are near 1e-7 and their products smaller still.
    return (k / k.norm() * (l / l.norm())).sum()


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
    x = features.flatten(1)
    scale = sigma * (math.sqrt(x.shape[1]) if dim_norm else 1.0)
    return math.sqrt(2 / omega.shape[1]) * torch.cos(x @ omega / scale + phase)


def hsic_rff(p: Tensor, q: Tensor) -> Tensor:
    """HSIC of two random-Fourier maps [n,D], unbiased over independent draws."""
    with torch.autocast(p.device.type, enabled=False):
        cross = (p - p.mean(0)).T @ (q - q.mean(0)) / (len(p) - 1)
        return (cross * cross).sum()


def quality_pairs(n: int, pairs: Pairs = "unordered") -> Iterator[tuple[int, int]]:
    """Pairs of qualities in QAD Eq. 10; the text says two different ones, so `unordered`."""
    if pairs == "unordered":
        return combinations(range(n), 2)
    return permutations(range(n), 2) if pairs == "ordered" else product(range(n), repeat=2)


def _centred(gram: Tensor) -> Tensor:
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()
