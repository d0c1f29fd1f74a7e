"""Small autoencoders: a face in, the same face as a decoder draws it out, with a decoder's traces.

A family of them differs in how far they shrink the face, in width, in how they enlarge it again
and in the loss, because each way leaves other traces (Odena et al., 2016, on transposed
convolutions). They are fully convolutional: trained at one side, used at several.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dfdetect.errors import DfdetectError
from dfdetect.files import write_whole
from dfdetect.forgeries.base import Portrait
from dfdetect.forgeries.reconstruct import cut_square, face_square


class DecoderSettings(NamedTuple):
    """`depth` halvings on the way to a code of `code` channels; `width` channels at the first.
    With `skip` the picture at half size reaches the last step of the decoder too."""

    depth: int
    width: int
    code: int
    upsampler: Literal["nearest", "bilinear", "transposed", "shuffle"]
    loss: Literal["l1", "l1+ssim", "l1+gradient"] = "l1"
    skip: bool = False
    adversarial: bool = False


FAMILY = (
    DecoderSettings(2, 16, 8, "nearest"),
    DecoderSettings(2, 16, 8, "transposed", "l1+gradient"),
    DecoderSettings(3, 16, 48, "bilinear", "l1+ssim"),
    DecoderSettings(3, 16, 48, "shuffle"),
    DecoderSettings(3, 16, 32, "nearest", "l1", adversarial=True),
    DecoderSettings(3, 16, 24, "transposed", "l1+ssim", skip=True),
    DecoderSettings(2, 16, 12, "shuffle", "l1+gradient", adversarial=True),
    DecoderSettings(4, 16, 64, "bilinear", "l1", skip=True),
)


class AutoEncoder(nn.Module):
    """[N,3,s,s] in 0..1 -> the same, s a multiple of 16."""

    def __init__(self, settings: DecoderSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = [min(64, settings.width * 2**i) for i in range(settings.depth)]
        down, last = [], 3
        for width in widths:
            down += [nn.Conv2d(last, width, 3, stride=2, padding=1), *_activated(width)]
            last = width
        self.encoder = nn.Sequential(*down, nn.Conv2d(last, settings.code, 1))
        up, last = [], settings.code
        for width in reversed(widths[:-1]):
            up += [*_enlarging(settings.upsampler, last, width), *_activated(width)]
            last = width
        self.decoder = nn.Sequential(*up)
        beside = 3 if settings.skip else 0
        self.last = nn.Sequential(
            *_enlarging(settings.upsampler, last + beside, 12), *_activated(12),
            nn.Conv2d(12, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        features = self.decoder(self.encoder(images - 0.5))
        if self.settings.skip:
            half = F.avg_pool2d(images - 0.5, 2)
            features = torch.cat([features, F.avg_pool2d(half, 3, 1, 1)], 1)
        return self.last(features) + 0.5


def _activated(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.LeakyReLU(0.1)]


def _enlarging(upsampler: str, n_in: int, n_out: int) -> list[nn.Module]:
    """Modules that double the side."""
    if upsampler == "transposed":
        return [nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=1)]
    if upsampler == "shuffle":
        return [nn.Conv2d(n_in, 4 * n_out, 3, padding=1), nn.PixelShuffle(2)]
    larger = nn.Upsample(scale_factor=2, mode=upsampler)
    return [larger, nn.Conv2d(n_in, n_out, 3, padding=1)]


class TrainedDecoder:
    """An autoencoder to draw faces with: uint8 [s,s,3] RGB -> uint8 [s,s,3]. On one thread, on
    which the last bits depend."""

    def __init__(self, network: AutoEncoder) -> None:
        self.network = network.eval().requires_grad_(False)

    def __call__(self, square: np.ndarray) -> np.ndarray:
        with one_thread(), torch.inference_mode():
            images = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
            drawn = self.network(images)[0].mul(255).round_().clamp_(0, 255).byte()
        return np.ascontiguousarray(drawn.permute(1, 2, 0).numpy())


def train_decoders(
    faces: Sequence[Portrait], out: Path, seed: int = 0,
    family: Sequence[DecoderSettings] = FAMILY, n_steps: int = 500, batch_size: int = 8,
    side: int = 80, on_step: Callable[[int, int], None] = lambda done, total: None,
) -> None:  # fmt: skip
    """Train the family on real faces (cut to squares of `side` px) and store it in `out`.

    On the CPU, with one thread: the same faces and seed give the same file. `on_step(n_done,
    n_total)` counts the steps of all. Errors: DfdetectError without faces.
    """
    if not faces:
        raise DfdetectError("no real faces to train decoders on", "give reals of a train split")
    squares = np.stack([cut_square(f.image, face_square(f.landmarks, side), side) for f in faces])
    images = torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous()
    tensors = {}
    with one_thread(), torch.random.fork_rng(devices=[]):
        for number, settings in enumerate(family):
            torch.manual_seed(seed + number)
            rng = np.random.default_rng([seed, number])
            network = AutoEncoder(settings)
            for step in _steps(network, images, rng, n_steps, batch_size):
                on_step(number * n_steps + step + 1, n_steps * len(family))
            for name, tensor in network.state_dict().items():
                tensors[f"{number}.{name}"] = tensor.half().contiguous()
    settings = {"seed": seed, "family": [entry._asdict() for entry in family]}
    # One entry alone: safetensors writes several in any order.
    write_whole(out, save(tensors, {"decoders": json.dumps(settings)}))


def load_decoders(path: Path) -> list[TrainedDecoder]:
    """Errors: DfdetectError for a file that `train_decoders` did not write."""
    try:
        with safe_open(path, "pt") as file:
            stored = json.loads((file.metadata() or {})["decoders"])["family"]
            family = [DecoderSettings(**settings) for settings in stored]
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        networks = [AutoEncoder(settings) for settings in family]
        for number, network in enumerate(networks):
            own = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{number}.")}
            network.load_state_dict(own)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        cause = "no such file" if not path.exists() else "not a file of decoders"
        raise DfdetectError(
            f"{path}: {cause}", "`dfdetect forge` trains and stores them"
        ) from error
    return [TrainedDecoder(network) for network in networks]


@contextmanager
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _steps(
    network: AutoEncoder, images: Tensor, rng: np.random.Generator, n_steps: int, batch_size: int
) -> Iterator[int]:
    """Train one network, step after step. A critic of patches judges the second half of the steps
    where its settings ask for one."""
    adam = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 6e-3, n_steps)
    critic = _critic() if network.settings.adversarial else None
    critic_adam = torch.optim.Adam(critic.parameters(), 1e-3) if critic else None
    for step in range(n_steps):
        batch = images[torch.from_numpy(rng.integers(0, len(images), batch_size))].float() / 255
        if rng.random() < 0.5:
            batch = batch.flip(3)
        drawn = network(batch)
        loss = _loss(network.settings.loss, drawn, batch)
        judged = critic is not None and step >= n_steps // 2
        if judged:
            loss = loss - 0.005 * critic(drawn).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        schedule.step()
        if judged:
            critic_adam.zero_grad(set_to_none=True)
            (F.relu(1 - critic(batch)) + F.relu(1 + critic(drawn.detach()))).mean().backward()
            critic_adam.step()
        yield step


def _critic() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 3, 1, 1),
    )  # fmt: skip


def _loss(name: str, drawn: Tensor, wanted: Tensor) -> Tensor:
    loss = F.l1_loss(drawn, wanted)
    if name == "l1+ssim":
        loss = loss + 0.2 * (1 - _ssim(drawn, wanted))
    elif name == "l1+gradient":
        pairs = [(t.diff(dim=2), t.diff(dim=3)) for t in (drawn, wanted)]
        loss = loss + sum(F.l1_loss(d, w) for d, w in zip(*pairs, strict=True))
    return loss


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity in windows of 7x7 (Wang et al., 2004), levels 0..1."""
    mean = lambda t: F.avg_pool2d(t, 7, 1)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    top = (2 * ma * mb + 0.01**2) * (2 * vab + 0.03**2)
    return (top / ((ma**2 + mb**2 + 0.01**2) * (va + vb + 0.03**2))).mean()
