"""Optimizer, learning-rate schedule and moving average of a preset."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dfdetect.methods import Method
from dfdetect.presets import Optimizer, Preset


def make_optimizer(method: Method, options: Optimizer) -> torch.optim.Optimizer:
    """The backbone at lr times `backbone_lr_scale`, everything else at lr, also the linear head,
    which timm keeps inside its model. Learned weights between loss terms do not decay."""
    head = {id(p) for p in method.detector.head_parameters()}
    backbone = [p for p in method.detector.backbone.parameters() if id(p) not in head]
    balance = method.balancing_parameters()
    inside = {id(p) for p in [*backbone, *balance]}
    rest = [p for p in method.parameters() if id(p) not in inside]
    groups: list[dict] = [{"params": backbone, "lr": options.lr * options.backbone_lr_scale}]
    if rest:
        groups.append({"params": rest, "lr": options.lr})
    if balance:
        groups.append({"params": balance, "lr": options.lr, "weight_decay": 0.0})
    if options.name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=options.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.name]
    return kind(groups, weight_decay=options.weight_decay)


def make_scheduler(optimizer: torch.optim.Optimizer, preset: Preset, n_steps: int):
    """One-cycle (cosine, from 1/25 of the peak to 1/10^4 of the start) or constant, per step."""
    if preset.schedule.name == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    n_steps = max(n_steps, 2)
    # torch divides by zero when the peak falls on the first step: put it after that.
    warmup = max(preset.schedule.warmup, 1.5 / n_steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=n_steps,
        pct_start=min(warmup, 1.0),
    )


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of `module` whose `update_parameters(module)` follows it, buffers too.

    The decay grows with the updates, as (1 + n) / (10 + n), up to `decay`, so that a short run is
    not dominated by its first weights.
    """

    @torch.no_grad()
    def follow(averages: Sequence[Tensor], now: Sequence[Tensor], n: Tensor | int) -> None:
        share = 1 - min(decay, (1 + float(n)) / (10 + float(n)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, now, share)
        else:  # counters
            torch._foreach_copy_(averages, now)

    average = AveragedModel(module, multi_avg_fn=follow, use_buffers=True)
    average.requires_grad_(False)
    return average
