"""f3net, f3net_fad: Xception on what the discrete cosine transform (DCT) says of a face.

Source: Qian et al., *Thinking in Frequency: Face Forgery Detection by Mining Frequency-aware
Clues*, ECCV 2020. Recipe: 299 px, Xception with ImageNet weights, SGD at 2e-3 with momentum 0.9
under a cosine, batches of 128. `f3net` has both streams (FAD and LFS) and MixBlocks after blocks 7
and 12 of Xception; `f3net_fad` is the first stream alone, as detection benchmarks have it.

Departures. The paper prints MixBlock as a figure and a sentence: here it is attention of every
place in one stream to all places in the other, behind a gate that begins closed. Bands are
half-open, so that none overlap. LFS repeats the border where known ports pad with zeros, which look
like edges; sees luma; and its logarithm has a floor. Its stream's stem does not shrink, because its
windows already step by 2, and is padded, so that both streams have the same grid at every size.
No official code is known; where the paper is silent (initial masks, the all-pass fourth band)
reimplementations agree, and so do we.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import timm
import torch
from timm.layers import to_2tuple
from timm.models import (
    adapt_input_conv,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from torch import Tensor, nn
from torch.nn import functional as F

from dfdetect.errors import DfdetectError

N_PARTS = 4
"""Low, middle and high frequencies, and all."""
WINDOW, STEP, N_BANDS = 10, 2, 6
"""Of the local statistics: px, px, and the number of bands (the paper's M)."""
FLOOR = 1e-3
"""Of a band's energy before its logarithm: about an eighth of a grey level, for pixels in -1..1."""
LUMA = {1: (1.0,), 3: (0.299, 0.587, 0.114)}
SMALLEST = 128


def dct_matrix(n: int) -> Tensor:
    """Orthonormal DCT-II, [n,n]: `D @ x` transforms columns, `D.T` undoes it."""
    frequency, place = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) + 0.5
    matrix = torch.cos(math.pi / n * frequency * place) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def frequency_bands(n: int, edges: Sequence[float]) -> Tensor:
    """0/1 masks [len(edges)-1,n,n] of an n x n spectrum: edge <= row + column < next edge."""
    order = torch.arange(n)[:, None] + torch.arange(n)
    bands = [(order >= low) & (order < high) for low, high in pairwise(edges)]
    return torch.stack(bands).float()


class _Masks(nn.Module):
    """Fixed bands plus a learned part in (-1,1), 2 sigmoid(w) - 1."""

    def __init__(self, bands: Tensor) -> None:
        super().__init__()
        self.register_buffer("bands", bands, persistent=False)
        self.learned = nn.Parameter(torch.empty_like(bands).normal_(0, 0.1))

    def forward(self) -> Tensor:
        return self.bands + torch.tanh(self.learned / 2)


class FrequencyDecomposition(nn.Module):
    """FAD: pictures [N,C,S,S] -> [N,4C,S,S], the picture as its low, middle and high frequencies
    and as all of them alone would show it.

    The bands hold the first 1/16 of the spectrum's area, the next 1/16, and the rest.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("dct", dct_matrix(size), persistent=False)
        bands = frequency_bands(size, (0, size / math.sqrt(8), size / 2, 2 * size))
        self.masks = _Masks(torch.cat([bands, torch.ones(1, size, size)]))

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            spectrum = self.dct @ images.to(self.dct.dtype) @ self.dct.T
            parts = spectrum[:, None] * self.masks()[:, None]
            return (self.dct.T @ parts @ self.dct).flatten(1, 2)


class LocalFrequencyStatistics(nn.Module):
    """LFS: pictures [N,C,S,S], C 1 or 3 -> [N,6,(S-1)//2,(S-1)//2], log10 of the energy (sum of
    magnitudes) in each band of the DCT of every 10 x 10 window of luma, two pixels apart."""

    def __init__(self, in_chans: int, size: int) -> None:
        super().__init__()
        rows = dct_matrix(WINDOW)
        waves = torch.einsum("ui,vj->uvij", rows, rows).reshape(-1, 1, WINDOW, WINDOW)
        luma = torch.tensor(LUMA[in_chans]).view(1, -1, 1, 1)
        self.register_buffer("dct", waves * luma, persistent=False)
        edges = [2 * WINDOW * band / N_BANDS for band in range(N_BANDS + 1)]
        self.masks = _Masks(frequency_bands(WINDOW, edges))
        self.padding = 3 + size % 2  # for as many windows as Xception's stem has places

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            padded = F.pad(images.to(self.dct.dtype), [self.padding] * 4, mode="replicate")
            magnitudes = F.conv2d(padded, self.dct, stride=STEP).abs()
            weights = self.masks().abs().reshape(N_BANDS, -1, 1, 1)
            return torch.log10(F.conv2d(magnitudes, weights) + FLOOR)


class MixBlock(nn.Module):
    """Two streams [N,C,h,w] each -> the same, each with what the other shows where it looks alike.

    One affinity of all places of the first to all of the second, read by rows and by columns.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 8
        self.query, self.key = nn.Conv2d(channels, hidden, 1), nn.Conv2d(channels, hidden, 1)
        self.to_first, self.to_second = (
            nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
            for _ in range(2)
        )
        self.gates = nn.Parameter(torch.zeros(2))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        query, key = self.query(first).flatten(2), self.key(second).flatten(2)
        affinity = query.transpose(1, 2) @ key / math.sqrt(query.shape[1])
        seen_by_first = second.flatten(2) @ affinity.softmax(2).transpose(1, 2)
        seen_by_second = first.flatten(2) @ affinity.softmax(1)
        return (
            first + self.gates[0] * self.to_first(seen_by_first.view_as(first)),
            second + self.gates[1] * self.to_second(seen_by_second.view_as(second)),
        )


class F3NetFad(nn.Module):
    """forward(images [N,in_chans,S,S] in -1..1) -> logits [N,num_classes]. S is `img_size`: the
    masks have one weight for each of its frequencies."""

    beside_imagenet = ("fad", "lfs", "mix")
    """Parts that no ImageNet weights hold."""

    def __init__(
        self, num_classes: int = 2, in_chans: int = 3, img_size: int | tuple[int, int] = 299
    ) -> None:
        """Errors: DfdetectError for pictures of less than 128 px."""
        super().__init__()
        side = to_2tuple(img_size)[0]
        if side < SMALLEST:
            raise DfdetectError(
                f"F3-Net looks at pictures of {SMALLEST} px and more, not of {side} px",
                f"--set image_size=299, or {SMALLEST} and more",
            )
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = 2048
        self.fad = FrequencyDecomposition(side)
        self.fad_stream = _xception(N_PARTS * in_chans)
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.fad_stream.forward_features(self.fad(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


class F3Net(F3NetFad):
    """As F3NetFad, with the second stream; the maps of both are its 4096 features."""

    def __init__(
        self, num_classes: int = 2, in_chans: int = 3, img_size: int | tuple[int, int] = 299
    ) -> None:
        super().__init__(0, in_chans, img_size)
        self.num_features = self.head_hidden_size = 2 * 2048
        self.lfs = LocalFrequencyStatistics(in_chans, to_2tuple(img_size)[0])
        self.lfs_stream = _xception(N_BANDS)
        self.lfs_stream.conv1.stride, self.lfs_stream.conv1.padding = (1, 1), (1, 1)
        self.mix = nn.ModuleList([MixBlock(728), MixBlock(1024)])
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        fad, lfs = self.fad(x), self.lfs(x)
        for mix, (first, last) in zip(self.mix, _BEFORE_MIXING, strict=True):
            fad, lfs = mix(
                _through(self.fad_stream, fad, first, last),
                _through(self.lfs_stream, lfs, first, last),
            )
        ends = (
            _through(self.fad_stream, fad, "conv3", "act4"),
            _through(self.lfs_stream, lfs, "conv3", "act4"),
        )
        return torch.cat(ends, 1)


_BEFORE_MIXING = (("conv1", "block7"), ("block8", "block12"))


def _xception(in_chans: int) -> nn.Module:
    return timm.create_model("legacy_xception", num_classes=0, in_chans=in_chans)


def _through(xception: nn.Module, x: Tensor, first: str, last: str) -> Tensor:
    """From one part of timm's Xception to another, both included."""
    names = [name for name, _ in xception.named_children()]
    for name in names[names.index(first) : names.index(last) + 1]:
        x = xception.get_submodule(name)(x)
    return x


def _from_xception(state: Mapping[str, Tensor], model: F3NetFad) -> Mapping[str, Tensor]:
    """Weights of an Xception for each stream; the network's own stay as they are. What a stem saw
    as colour it sees in each part of the picture, at a quarter of the weight."""
    if "conv1.weight" not in state:
        return state
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    stems = {
        "fad_stream": adapt_input_conv(model.in_chans, state["conv1.weight"].clone())
        .repeat(1, N_PARTS, 1, 1)
        .div(N_PARTS),
        "lfs_stream": adapt_input_conv(N_BANDS, state["conv1.weight"].clone()),
    }
    return {
        f"{stream}.{name}": stem if name == "conv1.weight" else tensor
        for stream, stem in stems.items()
        if hasattr(model, stream)
        for name, tensor in body.items()
    }


_xception_cfg = replace(
    timm.get_pretrained_cfg("legacy_xception"),
    architecture=None,
    tag=None,
    fixed_input_size=True,
    first_conv=None,
)
default_cfgs = generate_default_cfgs(
    {f"{name}.tf_in1k": _xception_cfg for name in ("f3net", "f3net_fad")}
)


@register_model
def f3net(pretrained: bool = False, **settings) -> F3Net:
    return build_model_with_cfg(
        F3Net, "f3net", pretrained, pretrained_filter_fn=_from_xception, **settings
    )


@register_model
def f3net_fad(pretrained: bool = False, **settings) -> F3NetFad:
    return build_model_with_cfg(
        F3NetFad, "f3net_fad", pretrained, pretrained_filter_fn=_from_xception, **settings
    )
