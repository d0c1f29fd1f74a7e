"""qad: quality-agnostic detection (QAD, ICCV 2023): HSIC between qualities, flat minima by AWP.

One step sees each sample at M qualities in one concatenated batch (Eq. 10):
    L = CE + alpha * L2,   L2 = -sum over quality pairs and tapped layers of their dependence,
computed at weights perturbed against CE. As printed, Eq. 8 with sigma = 6 and alpha = .004 is some
10^7 times weaker than CE, so the default measure is its normalised form (`hsic: cka`); `biased` is
the printed formula, and the logged `reg_ratio` shows what either contributes. The rows of Table 4
and the paper's form of Fang & Lin (`soft+pairwise`) are values of the same options.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from dfdetect.data import Batch
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError
from dfdetect.methods import base, collaborative
from dfdetect.methods import hsic as dependence
from dfdetect.methods.awp import frozen_running_statistics, perturbable, perturbed_weights
from dfdetect.processes import mean_of_all, processes, rows_of_all

Collab = Literal["none", "hsic", "soft", "pairwise", "center", "soft+pairwise"]
Measure = Literal["cka", "biased", "cca", "rff"]


class Options(base.Options):
    collab: Collab = Field("hsic", description="what ties the qualities together (Table 4)")
    alpha: float = Field(0.004, ge=0, description="weight of the collaborative loss")
    collab_weight: float | None = Field(
        None,
        ge=0,
        description="the same where it is not HSIC; the paper prints none; default alpha",
    )
    layers: tuple[int, ...] = Field(
        (8, 16, 32), min_length=1, description="strides of the tapped maps"
    )
    hsic: Measure = Field("cka", description="biased is Eq. 8 as printed")
    sigma: float = Field(6.0, gt=0, description="kernel width")
    kernel_dim_norm: bool = Field(True, description="scale sigma^2 by the feature dimension")
    pairs: dependence.Pairs = "unordered"
    cca_epsilon: float = Field(1e-5, gt=0, description="ridge, per sample, for hsic: cca")
    rff_features: int = Field(512, ge=16, description="random Fourier features, for hsic: rff")
    hsic_gather: bool = Field(False, description="HSIC over the samples of all processes")
    soft_temperature: float = Field(2.0, gt=0)
    soft_beta: float = Field(0.5, ge=0, le=1, description="weight of the labels beside the peers")
    pairwise_dim_norm: bool = Field(True, description="false is Eq. 3 as printed")
    center: Literal["instance", "class"] = Field(
        "instance", description="a sample's mean over its qualities, or its class's centre"
    )
    center_rate: float = Field(0.5, gt=0, le=1, description="at which class centres move")
    gamma: float = Field(
        0.002, ge=0, description="AWP radius relative to a weight's norm; 0 is off"
    )
    awp_eta: float | None = Field(None, gt=0, description="AWP step; default gamma")
    awp_steps: int = Field(1, ge=1)
    awp_scope: Literal["layer", "global"] = "layer"
    awp_loss: Literal["xe", "kl", "xe+kl"] = Field(
        "xe", description="what AWP ascends; kl compares the other qualities with one of them"
    )
    awp_kl_from: int = Field(0, ge=0, description="position of that one in the preset's qualities")
    awp_sync: bool = Field(True, description="processes ascend along their mean gradient")
    awp_warmup_steps: int = Field(0, ge=0, description="steps before AWP begins")
    ascent_fraction: float = Field(
        1.0, gt=0, le=1, description="share of the batch's samples in the ascent pass"
    )
    bn_stats: Literal["clean", "perturbed"] = Field("clean", description="pass that moves them")
    freeze_epochs: int = Field(0, ge=0, description="epochs at first that train the head alone")

    @field_validator("layers")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @property
    def weight(self) -> float:
        """Of the collaborative term."""
        takes_alpha = self.collab == "hsic" or self.collab_weight is None
        return self.alpha if takes_alpha else self.collab_weight

    @property
    def compares_maps(self) -> bool:
        return self.collab not in ("none", "soft") and self.weight > 0

    @property
    def has_class_centres(self) -> bool:
        return self.compares_maps and (self.collab, self.center) == ("center", "class")


def classification_loss(logits: Tensor, labels: Tensor, options: Options) -> Tensor:
    """L1 of Eq. 9: cross-entropy over all qualities, or the soft labels that take its place.

    logits [M,B,2], labels [B].
    """
    m = len(logits)
    if options.collab in ("soft", "soft+pairwise") and m > 1:
        return collaborative.soft_label(logits, labels, options.soft_temperature, options.soft_beta)
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(m))


def collaborative_loss(
    features: Sequence[Tensor], labels: Tensor, options: Options,
    centres: Sequence[Tensor] = (), generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """L2 of Eq. 10, before its weight: features one [M,B,C,H,W] per layer, M > 1; order-free.

    `centres` are one [2,C] per layer, for class centres; `generator` draws random frequencies.
    """
    o, m = options, len(features[0])
    if o.collab == "hsic":
        return -sum(_dependence(f, o, generator) for f in features)
    if o.has_class_centres:
        per_layer = [
            collaborative.center_class(_pooled(f).flatten(0, 1), labels.repeat(m), c)
            for f, c in zip(features, centres, strict=True)
        ]
    elif o.collab == "center":
        per_layer = [collaborative.center_instance(base.precise(f)) for f in features]
    else:
        per_layer = [collaborative.pairwise(base.precise(f), o.pairwise_dim_norm) for f in features]
    return torch.stack(per_layer).mean()


class Qad(base.Method):
    Options = Options

    def __init__(self, detector: Detector, options: Options, n_domains: int) -> None:
        super().__init__(detector, options, n_domains)
        self._step = 0
        strange = [s for s in options.layers if s not in detector.channels]
        if strange and options.compares_maps:
            has = ", ".join(map(str, sorted(detector.channels))) or "no maps to compare"
            raise DfdetectError(
                f"method.layers: {detector.settings['backbone']} has no map of stride {strange[0]}",
                f"it has {has}",
            )
        # Buffers and not parameters: centres follow the rule of the centre loss, at its own rate,
        # which no optimizer's schedule or moments should bend.
        for stride in options.layers if options.has_class_centres else ():
            centre = torch.zeros(2, detector.channels[stride])
            self.register_buffer(f"centre_{stride}", centre)

    def tapped_maps(self) -> dict[int, tuple[int, int, int]]:
        strides = self.options.layers if self.options.compares_maps else ()
        sides = {stride: -(-self.detector.image_size // stride) for stride in strides}
        return {s: (self.detector.channels[s], side, side) for s, side in sides.items()}

    @classmethod
    def why_not_accumulate(cls, options: Options) -> str:
        if options.collab == "hsic" and options.compares_maps:
            return "HSIC compares the samples of a batch with one another, and a part has fewer"
        if options.has_class_centres:
            return "its class centres would move within a step"
        return ""

    @classmethod
    def skips_parameters(cls, options: Options) -> bool:
        return options.freeze_epochs > 0

    def at(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        """With `freeze_epochs`, the extractor has no gradient at first, and AWP moves the head
        alone; its batch norm goes on as ever."""
        self._step = step
        if self.options.freeze_epochs:
            head = {id(p) for p in self.detector.head_parameters()}
            for parameter in self.detector.parameters():
                learns = id(parameter) in head or epoch >= self.options.freeze_epochs
                parameter.requires_grad_(learns)
            self.detector.freeze()

    @contextmanager
    def perturbed(self, batches: Sequence[Batch]) -> Iterator[dict[str, float]]:
        """theta + phi inside. Running statistics move in exactly one of the two passes; with
        `bn_stats: clean` and an `ascent_fraction` below 1 they are those of the partial pass."""
        o = self.options
        if o.gamma == 0 or self._step < o.awp_warmup_steps:
            yield {}
            return
        reduce = _mean_over_processes if o.awp_sync and processes().n > 1 else None
        with perturbed_weights(
            perturbable(self.detector), self._ascent_loss(batches),
            o.gamma, o.awp_eta, o.awp_steps, o.awp_scope, reduce, self.loss_scale(),
        ) as phi, frozen_running_statistics(self.detector, o.bn_stats == "clean"):  # fmt: skip
            yield {"awp_applied": float(phi.applied), "awp_loss_clean": float(phi.loss_clean)}

    def forward(self, batch: Batch) -> base.StepLoss:
        o, m = self.options, batch.images.shape[1]
        needs_taps = o.compares_maps and m > 1
        final, maps = self.maps(batch, o.layers if needs_taps else ())
        step, classification = self.classified(final, batch)
        if not needs_taps:
            return step
        taps = [tap.unflatten(0, (m, -1)) for tap in maps]
        centres = self._centres()
        generator = self._generator(final.device)
        l2 = collaborative_loss(taps, batch.labels, o, centres, generator)
        if self.training and centres:
            self._move_centres(taps, batch.labels)
        notes = step.notes
        if self.measure and l2.requires_grad:
            notes = notes | base.gradient_ratio(
                o.weight * l2, classification, maps[-1], self.loss_scale()
            )
        terms = step.terms | {o.collab.removeprefix("soft+"): o.weight * l2.detach()}
        return base.StepLoss(step.total + o.weight * l2, terms, step.logits, notes)

    def classified(self, final: Tensor, batch: Batch) -> tuple[base.StepLoss, Tensor]:
        """The loss of the last maps [M*B,...] without ties between qualities, and what of it is
        classification."""
        logits = self.class_logits(final, batch.images.shape[1])
        loss = classification_loss(logits, batch.labels, self.options)
        name = "soft" if self.options.collab.startswith("soft") else "ce"
        return base.StepLoss(loss, {name: loss.detach()}, base.fake_logits(logits), {}), loss

    def _ascent_loss(self, batches: Sequence[Batch]) -> Callable[[], Iterator[Tensor]]:
        """The parts of what AWP ascends, a mean over the samples it looks at."""
        parts = [_share(batch, self.options.ascent_fraction) for batch in batches]
        n_samples = sum(len(part.labels) for part in parts)
        n_passes = 0

        def losses() -> Iterator[Tensor]:
            nonlocal n_passes
            n_passes += 1
            frozen = self.options.bn_stats == "perturbed" or n_passes > 1
            for part in parts:
                yield self._adversary(part, frozen) * (len(part.labels) / n_samples)

        return losses

    def _adversary(self, batch: Batch, frozen: bool) -> Tensor:
        """Cross-entropy, divergence from one quality, or both; with one quality the first."""
        o = self.options
        with frozen_running_statistics(self.detector, frozen), self.autocast():
            logits = self.class_logits(self.maps(batch).final, batch.images.shape[1])
        ce = F.cross_entropy(logits.flatten(0, 1), batch.labels.repeat(len(logits)))
        if o.awp_loss == "xe" or len(logits) < 2:
            return ce
        if o.awp_kl_from >= len(logits):
            raise DfdetectError(
                f"method.awp_kl_from={o.awp_kl_from}: there are {len(logits)} qualities",
                "count from 0",
            )
        kl = collaborative.kl_from_raw(logits, o.awp_kl_from)
        return kl if o.awp_loss == "kl" else ce + kl

    def _generator(self, device: torch.device) -> torch.Generator | None:
        """Random frequencies are a function of the step, so that processes draw alike."""
        if self.options.hsic != "rff":
            return None
        return torch.Generator(device).manual_seed(self._step)

    def _centres(self) -> list[Tensor]:
        has = self.options.has_class_centres
        return [getattr(self, f"centre_{s}") for s in self.options.layers] if has else []

    @torch.no_grad()
    def _move_centres(self, taps: Sequence[Tensor], labels: Tensor) -> None:
        """Towards the samples of all processes."""
        labels = rows_of_all(labels)
        for features, centre in zip(taps, self._centres(), strict=True):
            rows = rows_of_all(_pooled(features), dim=1)
            labels_of_rows = labels.repeat(len(rows))
            centre.copy_(
                collaborative.moved_centres(
                    rows.flatten(0, 1), labels_of_rows, centre, self.options.center_rate
                )
            )


def _share(batch: Batch, fraction: float) -> Batch:
    """The samples of the ascent pass, with all their qualities; at least two, if there are two."""
    n = len(batch.labels)
    wanted = max(math.ceil(fraction * n), min(2, n))
    if wanted == n:
        return batch
    chosen = _interleaved(batch.labels)[:wanted]
    return batch._replace(images=batch.images[chosen], labels=batch.labels[chosen])


def _interleaved(labels: Tensor) -> Tensor:
    """Positions [B], such that each beginning has the classes in the shares that all have, and
    both from two on; within a class in the order of the batch. No random draw, no wait for a GPU.
    """
    same = labels[:, None] == labels[None, :]
    earlier = same.tril(-1).sum(1)
    return torch.argsort(earlier / same.sum(1), stable=True)


def _dependence(features: Tensor, o: Options, generator: torch.Generator | None = None) -> Tensor:
    """Sum over quality pairs of the measure, at one layer: features [M,B,C,H,W]."""
    if o.hsic == "rff":  # pooled, to bound the frequencies
        pooled = _pooled(features) if features.ndim == 5 else base.precise(features)
        views = [_random_features(f, o, generator) for f in _gathered(pooled, o)]
    else:
        views = [
            dependence.centred_gram(f, o.sigma, o.kernel_dim_norm) for f in _gathered(features, o)
        ]
    measure = {
        "biased": dependence.hsic,
        "cka": dependence.cka,
        "cca": lambda k, l: dependence.cca(k, l, o.cca_epsilon),  # noqa: E741
        "rff": dependence.hsic_rff,
    }[o.hsic]
    return sum(
        measure(views[a], views[b]) for a, b in dependence.quality_pairs(len(views), o.pairs)
    )


def _gathered(features: Tensor, o: Options) -> Tensor:
    return rows_of_all(features, dim=1) if o.hsic_gather else features


def _random_features(features: Tensor, o: Options, generator: torch.Generator | None) -> Tensor:
    """features [B,C]; own frequencies per view (shared ones would bias the product)."""
    like = {"dtype": features.dtype, "device": features.device, "generator": generator}
    omega = torch.randn(features.shape[1], o.rff_features, **like)
    phase = 2 * torch.pi * torch.rand(o.rff_features, **like)
    return dependence.random_fourier(features, omega, phase, o.sigma, o.kernel_dim_norm)


def _pooled(features: Tensor) -> Tensor:
    """[M,B,C,H,W] -> [M,B,C] at full precision."""
    return base.precise(features).mean((3, 4))


def _mean_over_processes(gradients: list[Tensor]) -> list[Tensor]:
    """As one message."""
    mean = mean_of_all(torch.cat([g.flatten() for g in gradients]))
    sizes = [g.numel() for g in gradients]
    return [m.view_as(g) for m, g in zip(mean.split(sizes), gradients, strict=True)]
