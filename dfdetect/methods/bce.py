"""bce: plain cross-entropy on every quality, the baseline of both papers.

With two logits, cross-entropy equals binary cross-entropy on their difference (QAD Eq. 1 with
alpha = gamma = 0). `head: attention` gives DID's baseline: its detector trained by BCE alone.
"""

from typing import Literal

from torch.nn import functional as F  # noqa: N812

from dfdetect.data import Batch
from dfdetect.methods import base


class Options(base.Options):
    head: Literal["linear", "attention"] = "linear"


class Bce(base.Method):
    Options = Options

    @classmethod
    def detector_settings(cls, options: Options) -> dict[str, str]:
        return {"head": options.head}

    def forward(self, batch: Batch) -> base.StepLoss:
        n, q = batch.images.shape[:2]
        logits = self.detector(batch.images.flatten(0, 1)).float().view(n, q)
        targets = batch.labels.float().unsqueeze(1).expand(n, q)
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        return base.StepLoss(loss, {"bce": loss.detach()}, logits.detach(), {})
