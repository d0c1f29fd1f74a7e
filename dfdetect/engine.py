"""A model that scores crops: a checkpoint by PyTorch, or its ONNX file (onnx_export.py) by ONNX
Runtime, which starts at once because nothing here imports PyTorch before it is needed."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfdetect.checkpoint import (
    METADATA_KEY,
    Checkpoint,
    Model,
    check_portrait,
    checkpoint_path,
    load_checkpoint,
    parse_info,
)
from dfdetect.errors import DfdetectError, unknown
from dfdetect.faces import to_input
from dfdetect.files import sha256_of
from dfdetect.sessions import Session
from dfdetect.shipped import read_portrait
from dfdetect.workers import available_cores

ENGINES = ("auto", "torch", "onnx")
CHECKPOINT_KEY = "checkpoint_sha256"
"""Beside METADATA_KEY in an ONNX file's metadata: which checkpoint it is."""
MOST_THREADS = 8
"""Of ONNX Runtime; it divides outputs between them, never sums, so that any number gives the same
bits."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnnxModel(Model):
    """An exported checkpoint; `sha256` is of the ONNX file, `checkpoint_sha256` what it was made
    of."""

    checkpoint_sha256: str
    session: Session

    engine = "onnx"

    def logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [N] of network inputs uint8 [S,S,3] RGB, one after the other: a batch would let
        the last bits of each depend on the others."""
        return np.array([self.session(image[None])[0][0] for image in images], np.float64)


def load_engine(
    path: str | Path, engine: str = "auto", device: str = "auto"
) -> Checkpoint | OnnxModel:
    """Load a run folder, a detector.safetensors or an ONNX file that was exported from one.

    `engine`: torch; onnx, on the CPU, for a checkpoint the file of its name beside it; auto, onnx
    wherever there is such a file, made from the checkpoint as it is now, and `device` lets it.

    Errors: DfdetectError when the file is missing, damaged, or not for that engine; as
    `load_checkpoint`.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    path = Path(path)
    if path.suffix == ".onnx":
        if engine == "torch":
            raise DfdetectError(
                f"{path}: PyTorch does not run ONNX files", "name the checkpoint it was made from"
            )
        return _load_onnx(path, device)
    checkpoint = checkpoint_path(path)
    exported = checkpoint.with_suffix(".onnx")
    if engine == "onnx" or (engine == "auto" and device in ("auto", "cpu") and exported.is_file()):
        model = _load_onnx(exported, device)
        if model.checkpoint_sha256 == sha256_of(checkpoint):
            return model
        stale = f"{exported}: not made from {checkpoint.name} as it is now"
        remedy = f"export it again: dfdetect export {checkpoint}"
        if engine == "onnx":
            raise DfdetectError(stale, remedy)
        log.warning("%s and so not used; %s", stale, remedy)
    return load_checkpoint(checkpoint, device)


def _load_onnx(path: Path, device: str) -> OnnxModel:
    if device not in ("auto", "cpu"):
        raise DfdetectError(
            f"{path}: ONNX Runtime is used on the CPU only, not on {device!r}",
            "leave --device out, or name the checkpoint it was made from",
        )
    if not path.is_file():
        raise DfdetectError(f"{path}: no ONNX file there", "write it with `dfdetect export`")
    hint = "it must be written by `dfdetect export`"
    try:
        content = path.read_bytes()
        session = Session(content, min(available_cores(), MOST_THREADS))
    except OSError as error:
        raise DfdetectError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # onnxruntime raises a dozen kinds for a damaged file
        cause = " ".join(str(error).split())[:200]
        raise DfdetectError(f"{path}: not a readable ONNX file ({cause})", hint) from error
    if not {METADATA_KEY, CHECKPOINT_KEY} <= session.metadata.keys():
        raise DfdetectError(f"{path}: ONNX, but not written by `dfdetect export`", hint)
    info = parse_info(path, session.metadata[METADATA_KEY])
    sha256 = hashlib.sha256(content).hexdigest()
    model = OnnxModel(info, path, sha256, "cpu", session.metadata[CHECKPOINT_KEY], session)
    if info.publication:
        (logit,) = model.logits([to_input(read_portrait(), model.image_size)])
        check_portrait(path, info.publication, logit)
    return model
