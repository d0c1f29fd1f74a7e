"""The alternatives to HSIC and to the ascent loss that QAD's Table 4 compares."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dfdetect.methods.hsic import quality_pairs


def soft_label(
    logits: Tensor, labels: Tensor, temperature: float = 2.0, beta: float = 0.5
) -> Tensor:
    """Song & Chai (NeurIPS 2018), heads replaced by qualities: logits [M,B,K], labels [B].

    Each quality learns from the label (weight beta) and from the mean prediction of the others,
    which is a constant target.
    """
    m = len(logits)
    others = (logits.sum(0, keepdim=True) - logits) / (m - 1)
    targets = F.softmax(others.detach() / temperature, -1)
    hard = F.cross_entropy(logits.flatten(0, 1), labels.repeat(m))
    soft = -(targets * F.log_softmax(logits / temperature, -1)).sum(-1).mean()
    return beta * hard + (1 - beta) * soft


def pairwise(features: Tensor, dim_norm: bool = True) -> Tensor:
    """Mean distance of a sample at two qualities, over sqrt(d): features [M,B,...] (Eq. 3)."""
    x = features.flatten(2)
    distances = [(x[a] - x[b]).norm(dim=-1).mean() for a, b in quality_pairs(len(x))]
    return torch.stack(distances).mean() / (x.shape[-1] ** 0.5 if dim_norm else 1.0)


def center_instance(features: Tensor) -> Tensor:
    """Mean squared distance of a sample's qualities to their mean, over d: features [M,B,...]."""
    return (features - features.mean(0, keepdim=True)).square().mean()


def center_class(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Half the mean squared distance to the class centre, over d: [N,d], [N], centres [K,d]."""
    return 0.5 * (features - centres[labels]).square().mean()


def moved_centres(features: Tensor, labels: Tensor, centres: Tensor, rate: float) -> Tensor:
    """The centre loss's update (Wen et al., ECCV 2016): features [N,d], labels [N], centres [K,d].

    Each centre goes `rate` times sum(x - c) / (1 + n) over the n samples of its class.
    """
    members = F.one_hot(labels, len(centres)).to(features)
    n = members.sum(0)[:, None]
    return centres + rate * (members.T @ features - n * centres) / (1 + n)


def kl_from_raw(logits: Tensor, raw: int = 0) -> Tensor:
    """Mean over the compressed qualities of KL(p_raw || p_quality): logits [M,B,K]."""
    log_p = F.log_softmax(logits, -1)
    others = [m for m in range(len(logits)) if m != raw]
    terms = [F.kl_div(log_p[m], log_p[raw], reduction="batchmean", log_target=True) for m in others]
    return torch.stack(terms).mean()
