"""qad: quality-agnostic detection (QAD, ICCV 2023): HSIC between qualities, flat minima by AWP.

One step sees each sample at M qualities in one concatenated batch (Eq. 10):
    L = CE + alpha * L2,   L2 = -sum over quality pairs and tapped layers of their dependence,
computed at weights perturbed against CE. As printed, Eq. 8 with sigma = 6 and alpha = .004 is some
10^7 times weaker than CE, so the default measure is its normalised form (`hsic: cka`); `biased` is
the printed formula, and the logged `reg_ratio` shows what either contributes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dfdetect.data import Batch
from dfdetect.errors import DfdetectError
from dfdetect.methods import base, collaborative
from dfdetect.methods import hsic as dependence
from dfdetect.methods.awp import frozen_running_statistics, perturbable, perturbed_weights

Collab = Literal["none", "hsic", "soft", "pairwise", "center"]
Measure = Literal["cka", "biased", "cca", "rff"]


class Options(base.Options):
    collab: Collab = Field("hsic", description="what ties the qualities together (Table 4)")
    hsic: Measure = Field("cka", description="biased is Eq. 8 as printed")
    sigma: float = Field(6.0, gt=0, description="kernel width")
    kernel_dim_norm: bool = Field(True, description="scale sigma^2 by the feature dimension")
    pairs: dependence.Pairs = "unordered"
    layers: tuple[int, ...] = Field(
        (8, 16, 32), min_length=1, description="strides of the tapped maps"
    )
    alpha: float = Field(0.004, ge=0, description="weight of the collaborative loss")
    gamma: float = Field(
        0.002, ge=0, description="AWP radius relative to a weight's norm; 0 is off"
    )
    awp_eta: float | None = Field(None, gt=0, description="AWP step; default gamma")
    awp_steps: int = Field(1, ge=1)
    awp_scope: Literal["layer", "global"] = "layer"
    awp_loss: Literal["xe", "kl", "xe+kl"] = Field(
        "xe", description="what AWP ascends; kl compares with the preset's first quality"
    )
    awp_sync: bool = Field(True, description="processes ascend along their mean gradient")
    awp_warmup_steps: int = Field(0, ge=0, description="steps before AWP begins")
    bn_stats: Literal["clean", "perturbed"] = Field("clean", description="pass that moves them")
    soft_temperature: float = Field(2.0, gt=0)
    soft_beta: float = Field(0.5, ge=0, le=1)
    rff_features: int = Field(512, ge=16, description="random Fourier features, for hsic: rff")


class QadLoss(NamedTuple):
    """Cross-entropy L1, collaborative term L2 (before alpha), both scalars."""

    l1: Tensor
    l2: Tensor


def qad_loss(logits: Tensor, labels: Tensor, features: list[Tensor], options: Options) -> QadLoss:
    """Eq. 9 and 10: logits [M,B,2], labels [B], features a list of [M,B,C,H,W]; order-free."""
    m = len(logits)
    if options.collab == "soft" and m > 1:
        loss = collaborative.soft_label(
            logits, labels, options.soft_temperature, options.soft_beta
        )  # takes the place of CE
        return QadLoss(loss, loss.new_zeros(()))
    l1 = F.cross_entropy(logits.flatten(0, 1), labels.repeat(m))
    if m < 2 or options.collab in ("none", "soft") or not features:
        return QadLoss(l1, l1.new_zeros(()))
    if options.collab in ("pairwise", "center"):
        distance = {"pairwise": collaborative.pairwise, "center": collaborative.center_instance}
        per_layer = [distance[options.collab](base.precise(f)) for f in features]
        return QadLoss(l1, torch.stack(per_layer).mean())
    return QadLoss(l1, -sum(_dependence(f, options) for f in features))


class Qad(base.Method):
    Options = Options

    def __init__(self, detector, options: Options, n_domains: int) -> None:
        super().__init__(detector, options, n_domains)
        self._step = 0
        if strange := [s for s in options.layers if s not in detector.strides]:
            raise DfdetectError(
                f"method.layers: {detector.settings['backbone']} has no map of stride {strange[0]}",
                f"it has {', '.join(map(str, detector.strides))}",
            )

    def at(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        self._step = step

    @contextmanager
    def perturbed(self, batches: Sequence[Batch]) -> Iterator[dict[str, float]]:
        """theta + phi inside. Running statistics move in exactly one of the two passes."""
        o = self.options
        if o.gamma == 0 or self._step < o.awp_warmup_steps:
            yield {}
            return
        reduce = _mean_over_processes() if o.awp_sync else None
        with perturbed_weights(
            perturbable(self.detector), self._ascent_loss(*batches),
            o.gamma, o.awp_eta, o.awp_steps, o.awp_scope, reduce, self.loss_scale(),
        ) as phi, frozen_running_statistics(self.detector, o.bn_stats == "clean"):  # fmt: skip
            yield {"awp_applied": float(phi.applied), "awp_loss_clean": float(phi.loss_clean)}

    def forward(self, batch: Batch) -> base.StepLoss:
        o = self.options
        compares = o.collab in ("hsic", "pairwise", "center") and o.alpha > 0
        needs_taps = compares and batch.images.shape[1] > 1
        logits, maps = self.class_logits(batch, o.layers if needs_taps else ())
        taps = [m.unflatten(0, logits.shape[:2]) for m in maps]
        loss = qad_loss(logits, batch.labels, taps, o)
        notes = {}
        if self.measure and taps and loss.l2.requires_grad:
            notes["reg_ratio"] = base.gradient_ratio(
                o.alpha * loss.l2, loss.l1, maps[-1], self.loss_scale()
            )
        terms = {"soft" if o.collab == "soft" else "ce": loss.l1.detach()}
        total = loss.l1
        if needs_taps:
            total = loss.l1 + o.alpha * loss.l2
            terms[o.collab] = o.alpha * loss.l2.detach()
        return base.StepLoss(total, terms, base.fake_logits(logits), notes)

    def _ascent_loss(self, batch: Batch) -> Callable[[], Tensor]:
        n_passes = 0

        def loss() -> Tensor:
            nonlocal n_passes
            n_passes += 1
            frozen = self.options.bn_stats == "perturbed" or n_passes > 1
            with frozen_running_statistics(self.detector, frozen), self.autocast():
                logits, _ = self.class_logits(batch)
            ce = F.cross_entropy(logits.flatten(0, 1), batch.labels.repeat(len(logits)))
            if self.options.awp_loss == "xe" or len(logits) < 2:
                return ce
            kl = collaborative.kl_from_raw(logits)
            return kl if self.options.awp_loss == "kl" else ce + kl

        return loss


def _dependence(features: Tensor, o: Options) -> Tensor:
    """Sum over quality pairs of the measure, at one layer: features [M,B,C,H,W]."""
    measures = {"biased": dependence.hsic, "cka": dependence.cka, "cca": dependence.cca}
    if o.hsic == "rff":
        views = [_random_features(f, o) for f in features]
        measure = dependence.hsic_rff
    else:
        views = [dependence.centred_gram(f, o.sigma, o.kernel_dim_norm) for f in features]
        measure = measures[o.hsic]
    return sum(
        measure(views[a], views[b]) for a, b in dependence.quality_pairs(len(views), o.pairs)
    )


def _random_features(features: Tensor, o: Options) -> Tensor:
    """Own frequencies per view (shared ones would bias the product), on pooled maps to bound d."""
    with torch.autocast(features.device.type, enabled=False):
        pooled = (
            base.precise(features).mean((2, 3)) if features.ndim == 4 else base.precise(features)
        )
        omega = torch.randn(
            pooled.shape[1], o.rff_features, dtype=pooled.dtype, device=pooled.device
        )
        phase = 2 * torch.pi * torch.rand(o.rff_features, dtype=pooled.dtype, device=pooled.device)
        return dependence.random_fourier(pooled, omega, phase, o.sigma, o.kernel_dim_norm)


def _mean_over_processes() -> Callable[[Tensor], Tensor] | None:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return None

    def reduce(gradient: Tensor) -> Tensor:
        dist.all_reduce(gradient)
        return gradient / dist.get_world_size()

    return reduce
