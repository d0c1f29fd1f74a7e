"""What every training method is: a module whose forward is the training loss."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from dfdetect.data import Batch
from dfdetect.detector import Detector, Features


class StepLoss(NamedTuple):
    """`total` to minimise; `terms` by name, detached and weighted as they enter it; `logits` [B,Q].

    `notes` are figures worth logging that are no part of the loss.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor
    notes: dict[str, Tensor]


class Options(BaseModel):
    """A method's own options, as they stand beside its name in a preset."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Method(nn.Module):
    """Owns a Detector and what only training needs. Calling it on a Batch gives a StepLoss."""

    Options: ClassVar[type[Options]] = Options
    head: ClassVar[str] = "linear"

    def __init__(self, detector: Detector, options: Options, n_domains: int) -> None:
        """`n_domains` counts real and every manipulation of the training data."""
        super().__init__()
        self.detector, self.options, self.n_domains = detector, options, n_domains
        self.autocast: Callable[[], AbstractContextManager] = nullcontext
        self.loss_scale: Callable[[], float] = lambda: 1.0  # of a half-precision gradient scaler
        self.measure = False  # whether this step should also fill the costlier notes

    @classmethod
    def detector_settings(cls, options: Options, n_domains: int) -> dict[str, Any]:
        """Keyword arguments of the Detector that this method trains."""
        return {"head": cls.head}

    @classmethod
    def domains(cls, options: Options, in_data: Sequence[str]) -> list[str]:
        """Names of the domains that it tells apart, that of reals first; `in_data` are those of the
        manifest. A manipulation that is not among them belongs to no domain that is known yet."""
        return list(in_data)

    def regroups(self, epoch: int) -> bool:
        """Whether the fakes are to be put into domains anew, by what the method makes of them,
        before this epoch's first step."""
        return False

    def grouping_features(self, images: Tensor) -> Tensor:
        """[N,3,S,S] in 0..1 -> [N,D]: what fakes are put into domains by."""
        raise NotImplementedError

    def balancing_parameters(self) -> list[nn.Parameter]:
        """Weights between loss terms that are learned; weight decay is not for them."""
        return []

    def at(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        """Told before every step where training stands; for schedules of the method's own."""

    @classmethod
    def why_not_accumulate(cls, options: Options) -> str:
        """Why a batch in parts would be another method, batch norm aside; "" if it would not."""
        return ""

    @classmethod
    def why_too_short(cls, options: Options, n_epochs: int) -> str:
        """Why a run of `n_epochs` would end before a part of the method begins; "" if not."""
        return ""

    @classmethod
    def skips_parameters(cls, options: Options) -> bool:
        """Whether a step may leave trainable parameters without a gradient, which processes that
        average gradients must know beforehand."""
        # The attention head leaves what some backbones have after their last map unused.
        return cls.detector_settings(options, 2)["head"] == "attention"

    def tapped_maps(self) -> dict[int, tuple[int, int, int]]:
        """Stride -> (C, H, W) of the inner maps that the loss looks at."""
        return {}

    @contextmanager
    def perturbed(self, batches: Sequence[Batch]) -> Iterator[dict[str, float]]:
        """Context of the forward and backward passes of one step, over the parts of its batch;
        weights are back before the optimizer steps.

        Yields figures worth logging. Does nothing unless a method perturbs weights.
        """
        yield {}

    def maps(self, batch: Batch, strides: tuple[int, ...] = ()) -> Features:
        """The detector's maps of images [B,M,3,S,S], in one forward, quality after quality
        [M*B,...]; in one batch the order of the qualities does not matter to batch norm."""
        return self.detector.features(batch.images.transpose(0, 1).flatten(0, 1), strides)

    def class_logits(self, final: Tensor, n_qualities: int) -> Tensor:
        """Logits [M,B,2] of (real, fake) of maps [M*B,...]."""
        return precise(self.detector.class_logits(final)).unflatten(0, (n_qualities, -1))

    def forward(self, batch: Batch) -> StepLoss:
        raise NotImplementedError


def fake_logits(class_logits: Tensor) -> Tensor:
    """[M,B,2] -> [B,M] difference of fake and real, detached."""
    return (class_logits[..., 1] - class_logits[..., 0]).T.detach()


def precise(x: Tensor) -> Tensor:
    """float32, or float64 if it is that already: what losses are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def gradient_ratio(
    regulariser: Tensor, classification: Tensor, at: Tensor, scale: float = 1.0
) -> dict[str, Tensor]:
    """{"reg_ratio": |d regulariser / dZ| / |d classification / dZ|} at the features Z.

    Empty if the classification does not pass through Z: the taps of a compiled network are outputs
    of it beside the last map. `scale` multiplies both losses on the way, so that half-precision
    gradients do not underflow.
    """
    gradients = [
        torch.autograd.grad(loss * scale, at, retain_graph=True, allow_unused=True)[0]
        for loss in (regulariser, classification)
    ]
    if gradients[1] is None:
        return {}
    over, under = (g.float().norm() if g is not None else at.new_zeros(()) for g in gradients)
    return {"reg_ratio": over / under.clamp_min(1e-30)}
