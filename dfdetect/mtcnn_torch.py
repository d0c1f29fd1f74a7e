"""MTCNN's three networks by PyTorch, as plain functions of facenet-pytorch's weight files.

Importing that package takes two seconds of torchvision for nothing that is needed here.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.mtcnn import Networks


def load_networks(device: str) -> Networks:
    """Errors: DfdetectError if the weight files are not installed."""
    return Networks(
        *(
            _runnable(network, _weights(f"{name}net.pt", device), device)
            for name, network in {"p": _p_net, "r": _r_net, "o": _o_net}.items()
        )
    )


def _runnable(network: Callable, weights: dict[str, Tensor], device: str) -> Callable:
    @torch.inference_mode()
    def run(images: np.ndarray) -> list[np.ndarray]:
        """The networks were trained on (x - 127.5) / 128."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        inputs = pixels.permute(0, 3, 1, 2).float().sub_(127.5).mul_(0.0078125)
        return [output.cpu().numpy() for output in network(weights, inputs)]

    return run


def _weights(file_name: str, device: str) -> dict[str, Tensor]:
    package = find_spec("facenet_pytorch")
    folders = (package and package.submodule_search_locations) or []
    path = next((p for f in folders if (p := Path(f, "data", file_name)).is_file()), None)
    if path is None:
        raise DfdetectError(
            f"facenet-pytorch's {file_name} is not installed",
            "pip install facenet-pytorch==2.5.3",
            ExitCode.ENVIRONMENT,
        )
    weights = torch.load(path, map_location=device, weights_only=True)
    for name, tensor in weights.items():
        if tensor.dim() == 4:
            weights[name] = tensor.contiguous(memory_format=torch.channels_last)
    return weights


def _conv(w: dict[str, Tensor], x: Tensor, number: int) -> Tensor:
    x = F.conv2d(x, w[f"conv{number}.weight"], w[f"conv{number}.bias"])
    return F.prelu(x, w[f"prelu{number}.weight"])


def _dense(w: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    return F.linear(x, w[f"dense{name}.weight"], w[f"dense{name}.bias"])


def _flat(x: Tensor) -> Tensor:
    """[n,c,h,w] -> [n,w*h*c], the order in which the weights were converted from Caffe."""
    return x.permute(0, 3, 2, 1).flatten(1)


def _p_net(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """[n,3,h,w], h and w even -> box shifts [n,4,h',w'], P(face) as channel 1 of [n,2,h',w'];
    stride 2."""
    x = _conv(w, x.contiguous(memory_format=torch.channels_last), 1)
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])  # 2x2 pooling, several times faster
    x = torch.maximum(x[..., ::2], x[..., 1::2])
    x = _conv(w, _conv(w, x, 2), 3)
    scores = F.conv2d(x, w["conv4_1.weight"], w["conv4_1.bias"]).softmax(1)
    return F.conv2d(x, w["conv4_2.weight"], w["conv4_2.bias"]), scores


def _r_net(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """[n,3,24,24] -> box shifts [n,4], P(face) as column 1 of [n,2]."""
    x = x.contiguous(memory_format=torch.channels_last)
    x = F.max_pool2d(_conv(w, x, 1), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(w, x, 2), 3, 2, ceil_mode=True)
    x = F.prelu(_dense(w, _flat(_conv(w, x, 3)), "4"), w["prelu4.weight"])
    return _dense(w, x, "5_2"), _dense(w, x, "5_1").softmax(1)


def _o_net(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n,3,48,48] -> box shifts [n,4], landmarks [n,10] as x0..x4 y0..y4 in 0..1 of the box,
    P(face) as column 1 of [n,2]."""
    x = x.contiguous(memory_format=torch.channels_last)
    x = F.max_pool2d(_conv(w, x, 1), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(w, x, 2), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(w, x, 3), 2, 2, ceil_mode=True)
    x = F.prelu(_dense(w, _flat(_conv(w, x, 4)), "5"), w["prelu5.weight"])
    return _dense(w, x, "6_2"), _dense(w, x, "6_3"), _dense(w, x, "6_1").softmax(1)
