"""did: deep information decomposition (CrossDF): detect forgeries that training never saw.

Attention splits the backbone's map I_X into deepfake information I_df and the rest I_os; a second
attention picks the forgery-technique part I_dom of the rest. C classifies I_df (BCE and an AUC
surrogate), C_dom the technique of I_dom, and T estimates the mutual information of I_df and I_os
behind a gradient reversal, so that T learns to find dependence and the features learn to have none.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dfdetect.data import Batch
from dfdetect.detector import FeatureAttention, pooled_mlp
from dfdetect.methods import base
from dfdetect.processes import rows_of_all


class Options(base.Options):
    alpha: float = Field(0.5, ge=0, le=1, description="share of BCE; the AUC loss has the rest")
    auc_gamma: float = Field(0.15, gt=0, le=1, description="margin of the AUC loss")
    auc_p: float = Field(2.0, gt=1, description="its exponent")
    auc_space: Literal["prob", "logit"] = Field("prob", description="what the AUC loss compares")
    auc_gather: bool = Field(False, description="AUC loss over the samples of all processes")
    lambda_dec: float = Field(0.01, ge=0, description="weight of the decomposition; 0 drops T")
    lambda_cls: float = Field(1.0, ge=0)
    lambda_dom: float = Field(1.0, ge=0, description="weight of the domain head; 0 drops it")
    beta_k: float = Field(5.0, gt=0, description="steepness of the reversal's schedule")
    beta_on: Literal["features", "T"] = Field("features", description="T is Eq. 5 as printed")
    beta_per_step: bool = Field(False, description="the schedule advances per step, not per epoch")
    domain_real: bool = Field(True, description="real counts as a domain of its own")
    attention: Literal["product", "sum"] = Field("product", description="fusion of its branches")


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, beta: float) -> Tensor:
        ctx.beta = beta
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.beta * gradient, None


def reverse_gradient(x: Tensor, beta: float) -> Tensor:
    """Identity forward, gradient times -beta backward (DANN's reversal layer)."""
    return _Reverse.apply(x, beta)


def beta_schedule(progress: float, k: float = 5.0) -> float:
    """2/(1 + e^{-k p}) - 1 of p in 0..1: 0 at the start, near 1 at the end."""
    return 2 / (1 + math.exp(-k * progress)) - 1


def mutual_information(t_joint: Tensor, t_marginal: Tensor) -> Tensor:
    """Jensen-Shannon estimate, mean log s(T joint) + mean log(1 - s(T marginal)), in (-inf, 0].

    -2 log 2 = -1.386 means that T sees no dependence.
    """
    return F.logsigmoid(t_joint).mean() + F.logsigmoid(-t_marginal).mean()


def auc_loss(
    logits: Tensor, labels: Tensor, gamma: float = 0.15, p: float = 2.0, space: str = "prob"
) -> Tensor:
    """Mean over all (fake, real) pairs of max(0, gamma - (s_fake - s_real))^p; 0 without a pair.

    logits [n], labels [n] in {0,1}; s is the probability (default) or the logit.
    """
    scores = torch.sigmoid(logits) if space == "prob" else logits
    shortfall = (gamma - (scores[:, None] - scores[None, :])).clamp_min(0).pow(p)
    pairs = (labels[:, None] == 1) & (labels[None, :] == 0)
    return torch.where(pairs, shortfall, 0.0).sum() / pairs.sum().clamp_min(1)


def classification_loss(bce: Tensor, auc: Tensor, alpha: float = 0.5) -> Tensor:
    """alpha BCE + (1 - alpha) L_AUC."""
    return alpha * bce + (1 - alpha) * auc


def did_objective(
    dec: Tensor | float, cls: Tensor | float, dom: Tensor | float,
    lambda_dec: float = 0.01, lambda_cls: float = 1.0, lambda_dom: float = 1.0,
) -> Tensor | float:  # fmt: skip
    """Eq. 4 as it is reported: lambda_dec I + lambda_cls L_cls + lambda_dom L_dom.

    What is minimised has -I in place of I, behind the reversal: T ascends I, the features descend.
    """
    return lambda_dec * dec + lambda_cls * cls + lambda_dom * dom


class DependenceCritic(nn.Module):
    """T: the pair (I_df, I_os), each [n,C,h,w] -> [n]; three convolutions and a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2 * channels, 512, 1), nn.ReLU(inplace=True),
            nn.Conv2d(512, 256, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 128, 3, padding=1), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 1),
        )  # fmt: skip

    def forward(self, deepfake: Tensor, rest: Tensor) -> Tensor:
        return self.layers(torch.cat([deepfake, rest], 1)).squeeze(1)


class Decomposition(NamedTuple):
    """The maps of one batch, each [n,C,h,w]."""

    whole: Tensor
    deepfake: Tensor
    rest: Tensor
    domain: Tensor | None


class Did(base.Method):
    Options = Options
    head = "attention"

    def __init__(self, detector, options: Options, n_domains: int) -> None:
        super().__init__(detector, options, n_domains)
        channels = detector.n_features
        self.beta = 0.0
        if options.lambda_dom > 0:
            self.domain_attention = FeatureAttention(channels, options.attention)
            self.domain_classifier = pooled_mlp(channels, n_domains)
        if options.lambda_dec > 0:
            self.critic = DependenceCritic(channels)
            if (
                options.beta_on == "T"
            ):  # Eq. 5 as printed scales T's ascent, not the features' descent
                for parameter in self.critic.parameters():
                    parameter.register_hook(lambda gradient: gradient * self.beta)

    @classmethod
    def detector_settings(cls, options: Options) -> dict[str, str]:
        return {"head": "attention", "attention": options.attention}

    @classmethod
    def why_not_accumulate(cls, options: Options) -> str:
        if options.lambda_cls > 0 and options.alpha < 1:
            return "the AUC loss compares the reals of a batch with its fakes, and a part has fewer"
        if options.lambda_dec > 0:
            return "mutual information pairs the samples of a batch, and a part has fewer"
        return ""

    def at(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        progress = step / n_steps if self.options.beta_per_step else epoch / n_epochs
        self.beta = beta_schedule(progress, self.options.beta_k)

    def decompose(self, images: Tensor) -> Decomposition:
        """images [n,3,S,S] in 0..1."""
        whole = self.detector.features(images).final
        deepfake, rest = self.detector.attended(whole)
        domain = self.domain_attention(rest) * rest if self.options.lambda_dom > 0 else None
        return Decomposition(whole, deepfake, rest, domain)

    def forward(self, batch: Batch) -> base.StepLoss:
        o = self.options
        n, q = batch.images.shape[:2]
        labels, domains = (v.repeat_interleave(q) for v in (batch.labels, batch.domains))
        maps = self.decompose(batch.images.flatten(0, 1))
        logits = base.precise(self.detector.classifier(maps.deepfake).squeeze(1))
        bce = F.binary_cross_entropy_with_logits(logits, labels.to(logits))
        scored, truth = (rows_of_all(v) if o.auc_gather else v for v in (logits, labels))
        auc = auc_loss(scored, truth, o.auc_gamma, o.auc_p, o.auc_space)
        cls = classification_loss(bce, auc, o.alpha)
        terms = {"bce": o.lambda_cls * o.alpha * bce, "auc": o.lambda_cls * (1 - o.alpha) * auc}
        total = o.lambda_cls * cls
        information, dom = cls.new_zeros(()), cls.new_zeros(())
        notes = {"pairs": (truth == 1).sum() * (truth == 0).sum()}
        if o.lambda_dom > 0:
            dom = self._domain_loss(maps.domain, domains)
            terms["dom"] = o.lambda_dom * dom
            total = total + terms["dom"]
        if o.lambda_dec > 0:
            information = self._information(maps, q)
            terms["dec"] = o.lambda_dec * information  # reported with the sign of Eq. 4
            total = total - o.lambda_dec * information
            notes["mutual_information"] = information.detach()
            if self.measure and self.beta > 0:
                notes |= base.gradient_ratio(
                    o.lambda_dec * information, o.lambda_cls * cls, maps.whole, self.loss_scale()
                )
        weights = (o.lambda_dec, o.lambda_cls, o.lambda_dom)
        notes["loss_eq4"] = did_objective(information, cls, dom, *weights).detach()
        terms = {name: term.detach() for name, term in terms.items()}
        return base.StepLoss(total, terms, logits.detach().view(n, q), notes)

    def _domain_loss(self, domain_map: Tensor, domains: Tensor) -> Tensor:
        logits = base.precise(self.domain_classifier(domain_map))
        if self.options.domain_real:
            return F.cross_entropy(logits, domains)
        fake = domains > 0
        per_sample = F.cross_entropy(logits, domains, reduction="none")
        return torch.where(fake, per_sample, 0.0).sum() / fake.sum().clamp_min(1)

    def _information(self, maps: Decomposition, n_qualities: int) -> Tensor:
        """I of (I_df, I_os). A random roll of the rest by whole samples makes the marginal pairs:
        none is joint, and none joins two qualities of one sample."""
        n = len(maps.whole)
        if n < 2 * n_qualities:
            return (maps.whole * 0).sum()
        beta = self.beta if self.options.beta_on == "features" else 1.0
        deepfake, rest = (reverse_gradient(m, beta) for m in (maps.deepfake, maps.rest))
        shift = n_qualities * int(torch.randint(1, n // n_qualities, ()))
        both = self.critic(torch.cat([deepfake, deepfake]), torch.cat([rest, rest.roll(shift, 0)]))
        both = base.precise(both)
        return mutual_information(both[:n], both[n:])
