"""did: deep information decomposition (CrossDF): detect forgeries that training never saw.

Attention splits the backbone's map I_X into deepfake information I_df and the rest I_os; a second
attention picks the forgery-technique part I_dom of the rest. C classifies I_df (BCE and an AUC
surrogate), C_dom the technique of I_dom, and T estimates the mutual information of I_df and I_os
behind a gradient reversal, so that T learns to find dependence and the features learn to have none.

Two of the paper's stated limitations have an option: `domains: auto` finds groups of fakes where
nobody says how they were made, `lambda: learned` balances the three losses.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dfdetect.data import Batch
from dfdetect.detector import Attention, Decomposition, Detector
from dfdetect.methods import base
from dfdetect.processes import rows_of_all

NOT_LEARNED = "no domain"
"""Name of the first class where reals are none: no sample is ever told to be of it."""


class Options(base.Options):
    alpha: float = Field(0.5, ge=0, le=1, description="share of BCE; the AUC loss has the rest")
    auc_gamma: float = Field(0.15, gt=0, le=1, description="margin of the AUC loss")
    auc_p: float = Field(2.0, gt=1, description="its exponent")
    auc_space: Literal["prob", "logit"] = Field("prob", description="what the AUC loss compares")
    auc_variant: Literal["all", "pu_released"] = Field(
        "all", description="pairs counted; pu_released, of the authors' other code, is a diagnostic"
    )
    auc_gather: bool = Field(False, description="AUC loss over the samples of all processes")
    weighting: Literal["fixed", "learned"] = Field(
        "fixed", alias="lambda", description="learned: by homoscedastic uncertainty, from these on"
    )
    lambda_dec: float = Field(0.01, ge=0, description="weight of the decomposition; 0 drops T")
    lambda_cls: float = Field(1.0, ge=0)
    lambda_dom: float = Field(1.0, ge=0, description="weight of the domain head; 0 drops it")
    beta_k: float = Field(5.0, gt=0, description="steepness of the reversal's schedule")
    beta_on: Literal["features", "T"] = Field("features", description="T is Eq. 5 as printed")
    beta_per_step: bool = Field(False, description="the schedule advances per step, not per epoch")
    domain_real: bool = Field(True, description="real counts as a domain of its own")
    attention: Attention = Field("product", description="fusion of its branches, or one of them")
    domains: Literal["manifest", "auto"] = Field(
        "manifest", description="auto: groups found among the fakes, whose labels are not looked at"
    )
    auto_groups: int = Field(4, ge=2, description="how many")
    auto_warmup_epochs: int = Field(1, ge=1, description="before they are first looked for")
    auto_every_epochs: int = Field(2, ge=1, description="until they are looked for again")


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
    logits: Tensor, labels: Tensor, gamma: float = 0.15, p: float = 2.0, space: str = "prob",
    variant: str = "all",
) -> Tensor:  # fmt: skip
    """Mean over all (fake, real) pairs of max(0, gamma - (s_fake - s_real))^p; 0 without a pair.

    logits [n], labels [n] in {0,1}; s is the probability (default) or the logit. The variant
    `pu_released` is what published code of the same group computes: the mean over the pairs that
    fall short alone, with the sign of the difference reversed, so that it works against BCE.
    """
    scores = torch.sigmoid(logits) if space == "prob" else logits
    ahead = scores[:, None] - scores[None, :]
    pairs = (labels[:, None] == 1) & (labels[None, :] == 0)
    if variant == "pu_released":
        ahead = -ahead
        pairs = pairs & (ahead < gamma)
    shortfall = (gamma - ahead).clamp_min(0).pow(p)
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


class Objective(nn.Module):
    """DID's loss of a batch of last maps. Owns T, and the learned weights if there are any; the
    attentions and classifiers are the detector's."""

    def __init__(self, detector: Detector, options: Options) -> None:
        super().__init__()
        self.options = options
        self.beta = 0.0
        self.tells_domains = options.lambda_dom > 0
        if options.lambda_dec > 0:
            self.critic = DependenceCritic(detector.n_features)
            # Eq. 5 as printed scales T's ascent, not the features' descent.
            for parameter in self.critic.parameters() if options.beta_on == "T" else ():
                parameter.register_hook(lambda gradient: gradient * self.beta)
        if options.weighting == "learned":
            start = {k: v for k, v in _weights(options).items() if v > 0}
            self.log_weights = nn.ParameterDict(
                {k: nn.Parameter(torch.tensor(math.log(v))) for k, v in start.items()}
            )

    def at(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        o = self.options
        self.beta = beta_schedule(step / n_steps if o.beta_per_step else epoch / n_epochs, o.beta_k)
        knows_domains = o.domains == "manifest" or epoch >= o.auto_warmup_epochs
        self.tells_domains = o.lambda_dom > 0 and knows_domains

    def forward(
        self, detector: Detector, final: Tensor, labels: Tensor, domains: Tensor,
        loss_scale: Callable[[], float] | None = None,
    ) -> tuple[base.StepLoss, Tensor]:  # fmt: skip
        """The step's loss, and of it the weighted classification alone.

        `final` [M*B,C,h,w], quality after quality; labels and domains [B].

        With `loss_scale` also measures how strong the decomposition is beside the classification.
        """
        o, m = self.options, len(final) // len(labels)
        labels_of_rows, domains_of_rows = labels.repeat(m), domains.repeat(m)
        parts = detector.decompose(final)
        logits = base.precise(detector.classifier(parts.deepfake).squeeze(1))
        bce = F.binary_cross_entropy_with_logits(logits, labels_of_rows.to(logits))
        scored, truth = (rows_of_all(v) if o.auc_gather else v for v in (logits, labels_of_rows))
        auc = auc_loss(scored, truth, o.auc_gamma, o.auc_p, o.auc_space, o.auc_variant)
        weights = self.weights()
        dec, dom = logits.new_zeros(()), logits.new_zeros(())
        cls = classification_loss(bce, auc, o.alpha)
        total = classification = weights["cls"] * cls
        terms = {
            "bce": weights["cls"] * o.alpha * bce, "auc": weights["cls"] * (1 - o.alpha) * auc
        }  # fmt: skip
        notes = {"pairs": (truth == 1).sum() * (truth == 0).sum()}
        if self.tells_domains:
            told = base.precise(detector.domain_logits(parts.domain))
            dom = domain_loss(told, domains_of_rows, o.domain_real)
            terms["dom"] = weights["dom"] * dom
            total = total + terms["dom"]
        if o.lambda_dec > 0:
            dec = self._information(parts, m)
            terms["dec"] = weights["dec"] * dec  # reported with the sign of Eq. 4
            total = total - terms["dec"]
            notes["mutual_information"] = dec.detach()
            if loss_scale and self.beta > 0:
                notes |= base.gradient_ratio(
                    terms["dec"], classification, parts.whole, loss_scale()
                )
        notes["loss_eq4"] = did_objective(
            dec, cls, dom, *(weights[name] for name in ("dec", "cls", "dom"))
        ).detach()
        terms = {name: term.detach() for name, term in terms.items()}
        if o.weighting == "learned":
            # Of exp(-s) L + s, homoscedastic uncertainty for a likelihood, with s = -log weight.
            learned = self.log_weights.items()
            used = [log for name, log in learned if name == "cls" or name in terms]
            spread = -sum(used, logits.new_zeros(()))
            total, terms["spread"] = total + spread, spread.detach()
            notes |= {f"lambda_{name}": weights[name].detach() for name in self.log_weights}
        step = base.StepLoss(total, terms, logits.detach().view(m, -1).T, notes)
        return step, classification

    def weights(self) -> dict[str, Tensor | float]:
        """lambda of dec, cls and dom."""
        weights: dict[str, Tensor | float] = dict(_weights(self.options))
        if self.options.weighting == "learned":
            weights |= {name: log.exp() for name, log in self.log_weights.items()}
        return weights

    def _information(self, parts: Decomposition, n_qualities: int) -> Tensor:
        """I of (I_df, I_os). A random roll of the rest by whole samples makes the marginal pairs:
        none is joint, and none joins two qualities of one sample."""
        n = len(parts.whole) // n_qualities
        if n < 2:
            return (parts.whole * 0).sum()
        beta = self.beta if self.options.beta_on == "features" else 1.0
        deepfake, rest = (reverse_gradient(m, beta) for m in (parts.deepfake, parts.rest))
        shift = int(torch.randint(1, n, ()))
        marginal = rest.unflatten(0, (n_qualities, n)).roll(shift, 1).flatten(0, 1)
        both = self.critic(torch.cat([deepfake, deepfake]), torch.cat([rest, marginal]))
        joint, apart = base.precise(both).chunk(2)
        return mutual_information(joint, apart)


def domain_loss(logits: Tensor, domains: Tensor, real: bool = True) -> Tensor:
    """Cross-entropy of logits [n,k+1] with domains [n], 0 for real; `real` False leaves reals out
    (0 if there is no fake)."""
    if real:
        return F.cross_entropy(logits, domains)
    fake = domains > 0
    per_sample = F.cross_entropy(logits, domains, reduction="none")
    return torch.where(fake, per_sample, 0.0).sum() / fake.sum().clamp_min(1)


class Decomposing(base.Method):
    """What a method with this objective has, whatever else it does."""

    head = "attention"
    objective: Objective

    def at(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        super().at(step, n_steps, epoch, n_epochs)
        self.objective.at(step, n_steps, epoch, n_epochs)

    def regroups(self, epoch: int) -> bool:
        o = self.objective.options
        since = epoch - o.auto_warmup_epochs
        wanted = o.domains == "auto" and o.lambda_dom > 0
        return wanted and since >= 0 and since % o.auto_every_epochs == 0

    def grouping_features(self, images: Tensor) -> Tensor:
        """Pooled features before they are split."""
        return base.precise(self.detector.features(images).final).mean((2, 3))

    def balancing_parameters(self) -> list[nn.Parameter]:
        learned = self.objective.options.weighting == "learned"
        return list(self.objective.log_weights.values()) if learned else []

    def decomposed(self, final: Tensor, batch: Batch) -> tuple[base.StepLoss, Tensor]:
        """As the objective gives it."""
        scale = self.loss_scale if self.measure else None
        return self.objective(self.detector, final, batch.labels, batch.domains, scale)


class Did(Decomposing):
    Options = Options

    def __init__(self, detector: Detector, options: Options, n_domains: int) -> None:
        super().__init__(detector, options, n_domains)
        self.objective = Objective(detector, options)

    @classmethod
    def detector_settings(cls, options: Options, n_domains: int) -> dict[str, Any]:
        domains = n_domains if options.lambda_dom > 0 else 0
        return {"head": "attention", "attention": options.attention, "domains": domains}

    @classmethod
    def domains(cls, options: Options, in_data: Sequence[str]) -> list[str]:
        first = in_data[0] if options.domain_real else NOT_LEARNED
        if options.domains == "manifest":
            return [first, *in_data[1:]]
        return [first, *(f"group {i}" for i in range(1, options.auto_groups + 1))]

    @classmethod
    def why_not_accumulate(cls, options: Options) -> str:
        if options.lambda_cls > 0 and options.alpha < 1:
            return "the AUC loss compares the reals of a batch with its fakes, and a part has fewer"
        if options.lambda_dec > 0:
            return "mutual information pairs the samples of a batch, and a part has fewer"
        if options.lambda_dom > 0 and not options.domain_real:
            return (
                "the domain loss is a mean over the fakes of a batch, and a part has other shares"
            )
        return ""

    @classmethod
    def why_too_short(cls, options: Options, n_epochs: int) -> str:
        waits = options.domains == "auto" and options.lambda_dom > 0
        if waits and n_epochs <= options.auto_warmup_epochs:
            return f"automatic domains are first looked for after {options.auto_warmup_epochs}"
        return ""

    def forward(self, batch: Batch) -> base.StepLoss:
        return self.decomposed(self.maps(batch).final, batch)[0]


def _weights(options: Options) -> dict[str, float]:
    return {"dec": options.lambda_dec, "cls": options.lambda_cls, "dom": options.lambda_dom}
