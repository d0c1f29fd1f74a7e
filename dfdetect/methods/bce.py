"""bce: plain cross-entropy on every quality, the baseline of both papers.

`head: linear` is QAD with alpha = gamma = 0, bit for bit (two logits, Eq. 1); `head: attention` is
DID's detector trained by BCE alone.
"""

from typing import Literal

from torch.nn import functional as F

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
        if self.detector.head == "linear":
            logits, _ = self.class_logits(batch)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.repeat(len(logits)))
            return base.StepLoss(loss, {"ce": loss.detach()}, base.fake_logits(logits), {})
        n, q = batch.images.shape[:2]
        logits = base.precise(self.detector(batch.images.flatten(0, 1))).view(n, q)
        targets = batch.labels.to(logits).unsqueeze(1).expand(n, q)
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        return base.StepLoss(loss, {"bce": loss.detach()}, logits.detach(), {})
