"""bce: plain cross-entropy on every quality, the baseline of both papers.

With the linear head it is QAD with alpha = gamma = 0, bit for bit (two logits, Eq. 1); with
`head: attention` DID's detector trained by cross-entropy alone. `trains: norms` tunes nothing but
the normalisation layers and the head of a pretrained network, `trains: head` the head alone.
"""

from typing import Any, Literal

from pydantic import Field
from torch import nn
from torch.nn import functional as F

from dfdetect.data import Batch
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError
from dfdetect.methods import base


class Options(base.Options):
    head: Literal["linear", "unit", "attention"] = Field(
        "linear", description="unit: linear on features of length one; attention: that of DID"
    )
    trains: Literal["all", "norms", "head"] = Field(
        "all", description="norms: affine parameters of LayerNorm (or other norms) and the head"
    )


class Bce(base.Method):
    Options = Options

    def __init__(self, detector: Detector, options: Options, n_domains: int) -> None:
        """Errors: DfdetectError for `trains: norms` of a network that has none."""
        super().__init__(detector, options, n_domains)
        if options.trains == "all":
            return
        norms = [p for p in _norm_parameters(detector) if options.trains == "norms"]
        if options.trains == "norms" and not norms:
            raise DfdetectError(
                f"method.trains=norms: {detector.settings['backbone']} has no normalisation layers",
                "choose another backbone, or trains=all",
            )
        learns = {id(p) for p in [*norms, *detector.head_parameters()]}
        for parameter in detector.parameters():
            parameter.requires_grad_(id(parameter) in learns)

    @classmethod
    def detector_settings(cls, options: Options, n_domains: int) -> dict[str, Any]:
        return {"head": options.head}

    def train(self, mode: bool = True) -> "Bce":
        """A backbone that is not trained also keeps its running statistics, and drops nothing."""
        super().train(mode)
        if self.options.trains != "all":
            self.detector.backbone.eval()
        return self

    def forward(self, batch: Batch) -> base.StepLoss:
        n_qualities = batch.images.shape[1]
        logits = self.class_logits(self.maps(batch).final, n_qualities)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.repeat(n_qualities))
        return base.StepLoss(loss, {"ce": loss.detach()}, base.fake_logits(logits), {})


def _norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    norms = (m for m in module.modules() if "norm" in type(m).__name__.lower())
    return [p for norm in norms for p in norm.parameters(recurse=False)]
