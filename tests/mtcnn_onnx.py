"""MTCNN's three networks as ONNX, from facenet-pytorch's weight files.

    python tests/mtcnn_onnx.py        # writes dfdetect/assets/{p,r,o}net.onnx anew

Input `images` uint8 [n,h,w,3] RGB, outputs as `dfdetect.mtcnn.Networks` says.

The same functions, written for ONNX Runtime, which computes convolutions on blocks of 16 channels
and reorders memory wherever something else comes between (tests/benchmarks/faces.py):
PReLU(y) = a y + (1 - a) relu(y) is two depthwise convolutions, the first 10 or 28 channels are
filled up to 16 or 32 with zeros, the softmax of two is the sigmoid of their difference, and the
scaling of pixels lies in the first weights.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

ASSETS = Path(__file__).parent.parent / "dfdetect" / "assets"
# Of each network: a convolution (and PReLU) by its number, a max pooling as (kernel, stride).
LAYERS = {"p": [1, (2, 2), 2, 3], "r": [1, (3, 2), 2, (3, 2), 3],
          "o": [1, (3, 2), 2, (3, 2), 3, (2, 2), 4]}  # fmt: skip
DENSE = {"r": "4", "o": "5"}
# Heads in the order of the outputs: box shifts, landmarks, P(face).
HEADS = {"p": ["4_2", "4_1"], "r": ["5_2", "5_1"], "o": ["6_2", "6_3", "6_1"]}
OUTPUTS = {2: ["shifts", "scores"], 3: ["shifts", "landmarks", "scores"]}


def weights_of(name: str) -> dict[str, np.ndarray]:
    folder = Path(find_spec("facenet_pytorch").origin).parent / "data"
    stored = torch.load(folder / f"{name}net.pt", map_location="cpu", weights_only=True)
    weights = {key: tensor.numpy() for key, tensor in stored.items()}
    first, scale = weights["conv1.weight"].astype(np.float64), 1 / 128
    weights["conv1.bias"] = weights["conv1.bias"] - 127.5 * scale * first.sum((1, 2, 3))
    weights["conv1.weight"] = first * scale
    face = HEADS[name][-1]
    key = f"dense{face}" if name in DENSE else f"conv{face}"
    for part in (f"{key}.weight", f"{key}.bias"):
        weights[part] = weights[part] - weights[part][::-1]
    missing = -len(weights["conv1.bias"]) % 16
    for part, axis in (
        ("conv1.weight", 0), ("conv1.bias", 0), ("prelu1.weight", 0), ("conv2.weight", 1),
    ):  # fmt: skip
        padding = [(0, missing * (i == axis)) for i in range(weights[part].ndim)]
        weights[part] = np.pad(weights[part], padding)
    return {key: values.astype(np.float32) for key, values in weights.items()}


def build(name: str) -> onnx.ModelProto:
    weights, nodes, constants = weights_of(name), [], {}

    def add(kind: str, inputs: list[str], output: str, **attributes) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(key: str, values: np.ndarray) -> str:
        constants[key] = numpy_helper.from_array(np.ascontiguousarray(values), key)
        return key

    def layer(kind: str, at: str, key: str, output: str, **attributes) -> str:
        named = [constant(f"{key}.{part}", weights[f"{key}.{part}"]) for part in ("weight", "bias")]
        return add(kind, [at, *named], output, **attributes)

    def prelu(at: str, number: str) -> str:
        slopes = weights[f"prelu{number}.weight"].reshape(-1, 1, 1, 1)
        above = add("Relu", [at], f"above{number}")
        parts = [
            add("Conv", [of, constant(f"prelu{number}.{part}", values)], part + number,
                group=len(slopes))
            for of, part, values in ((above, "steep", 1 - slopes), (at, "slope", slopes))
        ]  # fmt: skip
        return add("Add", parts, f"active{number}")

    at = add("Transpose", ["images"], "planes", perm=[0, 3, 1, 2])
    at = add("Cast", [at], "levels", to=TensorProto.FLOAT)
    for i, step in enumerate(LAYERS[name]):
        if isinstance(step, int):
            at = layer("Conv", at, f"conv{step}", f"convolved{step}")
            at = prelu(at, str(step))
        else:
            (kernel, stride), shape = step, f"pooled{i}"
            at = add(
                "MaxPool", [at], shape, kernel_shape=[kernel] * 2, strides=[stride] * 2, ceil_mode=1
            )
    outputs = OUTPUTS[len(HEADS[name])]
    if name in DENSE:  # flattened as the weights were converted from Caffe: [n,w,h,c]
        at = add("Transpose", [at], "turned", perm=[0, 3, 2, 1])
        at = add("Flatten", [at], "flat")
        at = layer("Gemm", at, f"dense{DENSE[name]}", "dense", transB=1)
        key = f"prelu{DENSE[name]}.weight"
        at = add("PRelu", [at, constant(key, weights[key])], "active")
    for head, output in zip(HEADS[name], outputs, strict=True):
        raw = "face" if output == "scores" else output
        if name in DENSE:
            layer("Gemm", at, f"dense{head}", raw, transB=1)
        else:
            layer("Conv", at, f"conv{head}", raw)
        if raw == "face":
            add("Sigmoid", [raw], output)
    where = [] if name in DENSE else ["y", "x"]
    sizes = [2 if output == "scores" else 10 if output == "landmarks" else 4 for output in outputs]
    side = {"p": ["h", "w"], "r": [24, 24], "o": [48, 48]}[name]
    graph = helper.make_graph(
        nodes,
        f"MTCNN {name.upper()}-Net",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", *side, 3])],
        [
            helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", size, *where])
            for output, size in zip(outputs, sizes, strict=True)
        ],
        list(constants.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    for letter in "pro":
        (ASSETS / f"{letter}net.onnx").write_bytes(build(letter).SerializeToString())
