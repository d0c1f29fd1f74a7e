"""A checkpoint as one ONNX file, which scan and any ONNX runtime can use without PyTorch.

Input `images`: uint8 [n,S,S,3] RGB, face crops at the side that the metadata names, any n; output
`logits`: float32 [n], positive = fake. Normalisation is inside the graph; a domain head, which has
no part in the logit, is left out. The metadata is the checkpoint's own, crop recipe, calibration
and calling band with it, beside the SHA-256 of the checkpoint.
"""

import contextlib
import io
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from dfdetect.checkpoint import METADATA_KEY, Checkpoint, load_checkpoint
from dfdetect.corruptions import jpeg_round_trip
from dfdetect.detector import Detector
from dfdetect.engine import CHECKPOINT_KEY
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.faces import CropRecipe, FaceFinder, align, to_input
from dfdetect.files import write_whole
from dfdetect.results import score_images
from dfdetect.sessions import Session
from dfdetect.shipped import read_portrait

TOLERANCE = 1e-4
"""Between the logits of PyTorch and of ONNX Runtime; a part of the logit where that is above 1."""


class Exported(NamedTuple):
    """`difference` is the largest between a logit of PyTorch and of ONNX Runtime, of `n_crops`."""

    path: Path
    checkpoint_sha256: str
    n_bytes: int
    difference: float
    n_crops: int


def export_onnx(model: str | Path, out: Path | None = None) -> Exported:
    """Write the ONNX file of a run folder or a detector.safetensors, by default beside it.

    The file is written only if ONNX Runtime gives PyTorch's logits of crops of the shipped
    portrait, one by one and as a batch. Errors: DfdetectError if it does not, if the network has
    no ONNX form, if onnx or onnxscript is not installed; as `load_checkpoint`.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise DfdetectError(
            f"{' and '.join(missing)}, which export needs, cannot be imported",
            f"pip install {' '.join(missing)}",
            ExitCode.ENVIRONMENT,
        )
    checkpoint = load_checkpoint(model, "cpu")
    out = out or checkpoint.path.with_suffix(".onnx")
    content = _converted(checkpoint)
    crops = _crops(checkpoint.info.crop, checkpoint.detector.image_size)
    difference = _difference(checkpoint, Session(content), crops)
    write_whole(out, content)
    return Exported(out, checkpoint.sha256, len(content), difference, len(crops))


class _FromPixels(nn.Module):
    """uint8 [n,S,S,3] -> logits [n]"""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        return self.detector(images.permute(0, 3, 1, 2).float() / 255)


def _converted(checkpoint: Checkpoint) -> bytes:
    detector = _without_domain_head(checkpoint.detector)
    side = detector.image_size
    example = torch.zeros((2, side, side, 3), dtype=torch.uint8)
    try:
        with _silence():
            program = torch.onnx.export(
                _FromPixels(detector).eval(), (example,), dynamo=True, input_names=["images"],
                output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("n")},),
                optimize=False,
            )  # fmt: skip
            _tidy(program.model)
    except torch.onnx.errors.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        raise DfdetectError(
            f"{checkpoint.path}: {detector.settings['backbone']} has no ONNX form ({cause})",
            "scan it by PyTorch, --engine torch",
        ) from error
    proto = program.model_proto
    _halve(proto.graph)
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info):
        part.ClearField("metadata_props")  # lines of code and paths of this machine
    proto.doc_string = f"images: uint8 [n,{side},{side},3] RGB; logits: float [n], positive = fake"
    metadata = {METADATA_KEY: checkpoint.info.text, CHECKPOINT_KEY: checkpoint.sha256}
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def _tidy(model: Any) -> None:
    """Of the exporter's optimisations those that leave the weights as they are; ONNX Runtime does
    the others, normalisation into convolutions among them, when it loads the file."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants_ir

    common.InlinePass()(model)
    fold_constants_ir(model)
    for tidy in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    ):
        tidy(model)


def _halve(graph: Any) -> None:
    """Store weights that half precision holds exactly, as those of a published checkpoint, in it
    and widen them in the graph: half the file, the same numbers."""
    from onnx import TensorProto, helper, numpy_helper

    widened = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size > 1 and np.array_equal(half, values):
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            widened.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*widened, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _without_domain_head(detector: Detector) -> Detector:
    if not detector.tells_domains:
        return detector
    bare = Detector(**{**detector.settings, "domains": 0})
    wanted = bare.state_dict().keys()
    bare.load_state_dict({k: v for k, v in detector.state_dict().items() if k in wanted})
    return bare


@contextlib.contextmanager
def _silence():
    """The exporter tells of its progress on stdout, and warns of what does not concern a user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _difference(checkpoint: Checkpoint, session: Session, crops: list[np.ndarray]) -> float:
    """Largest difference of logits. Errors: DfdetectError where it is above TOLERANCE."""
    expected = score_images(checkpoint.detector, crops, "cpu")
    (batch,) = session(np.stack(crops))
    single = np.concatenate([session(crop[None])[0] for crop in crops])
    differences = np.maximum(abs(batch - expected), abs(single - expected))
    if not (differences <= TOLERANCE * np.maximum(1, abs(expected))).all():
        raise DfdetectError(
            f"{checkpoint.path}: its ONNX form gives other logits, up to {differences.max():.2g}",
            "nothing was written; scan it by PyTorch, --engine torch",
        )
    return float(differences.max())


def _crops(recipe: CropRecipe, side: int) -> list[np.ndarray]:
    """The shipped portrait as `recipe` crops it: as it is, mirrored, dark, as a poor JPEG, blurred,
    turned upside down."""
    portrait = read_portrait()
    face = FaceFinder(recipe, "onnx")(portrait)[0]
    crop = to_input(align(portrait, face.landmarks, recipe), side)
    return [
        crop,
        np.ascontiguousarray(crop[:, ::-1]),
        crop // 3,
        jpeg_round_trip(crop, 15),
        cv2.GaussianBlur(crop, (0, 0), side / 40),
        np.ascontiguousarray(crop[::-1]),
    ]
