"""One file, `detector.safetensors`: the weights that inference needs, and how to use them.

Its metadata holds everything to rebuild the detector and to crop faces as training did; it is read
from safetensors and JSON alone, so loading a stranger's checkpoint runs no code of theirs.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dfdetect import __version__
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError
from dfdetect.faces import CropRecipe
from dfdetect.files import sha256_of, write_whole
from dfdetect.metrics import Band

FILE_NAME = "detector.safetensors"
FORMAT = 1


class CheckpointInfo(BaseModel):
    """What the metadata says; every figure in `val` carries its level, quality and n."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    detector: dict[str, Any]
    preset: dict[str, Any]
    crop: CropRecipe
    domains: list[str]
    threshold: float
    band: tuple[float, float] | None
    band_basis: str
    val: dict[str, Any]
    data: dict[str, Any]
    step: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A detector ready to score (eval mode, on `device`) and what is known about it."""

    detector: Detector
    info: CheckpointInfo
    path: Path
    sha256: str
    device: str

    @property
    def band(self) -> Band | None:
        return Band(*self.info.band) if self.info.band else None

    @property
    def name(self) -> str:
        return str(self.info.preset["name"])


def save_checkpoint(path: Path, detector: Detector, info: CheckpointInfo) -> None:
    """Write the file whole or not at all, into a folder that is there."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in detector.state_dict().items()}
    content = json.dumps(info.model_dump(), allow_nan=False, sort_keys=True)
    write_whole(path, save(tensors, metadata={"dfdetect": content}), make_folder=False)


def read_info(path: Path) -> CheckpointInfo:
    """The metadata alone, without the weights. Errors: as `load_checkpoint`."""
    path = checkpoint_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            content = (file.metadata() or {}).get("dfdetect")
    except (SafetensorError, OSError) as error:
        raise DfdetectError(
            f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})",
            "it must be a detector.safetensors written by `dfdetect train`",
        ) from error
    if content is None:
        raise DfdetectError(f"{path}: safetensors, but not written by `dfdetect train`")
    try:
        values = json.loads(content)
        if values.get("format") != FORMAT:
            raise DfdetectError(
                f"{path}: checkpoint format {values.get('format')}, this dfdetect reads {FORMAT}",
                "use the dfdetect that wrote it",
            )
        return CheckpointInfo.model_validate(values)
    except (ValueError, ValidationError, AttributeError) as error:
        raise DfdetectError(
            f"{path}: its metadata is damaged ({str(error).splitlines()[0]})"
        ) from error


def load_checkpoint(path: str | Path, device: str = "auto") -> Checkpoint:
    """Load a run folder or a detector.safetensors.

    Errors: DfdetectError when it is missing, damaged, of another format, or holds NaN.
    """
    file = checkpoint_path(Path(path))
    info = read_info(file)
    device = choose_device(device)
    detector = Detector(**info.detector)
    try:
        with safe_open(file, framework="pt") as tensors:
            state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        detector.load_state_dict(state)
    except (SafetensorError, RuntimeError, OSError) as error:
        cause = " ".join(str(error).split())[:200]
        raise DfdetectError(
            f"{file}: its weights do not fit its own description ({cause})"
        ) from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DfdetectError(
                f"{file}: {name} holds values that are not finite", "train it again"
            )
    return Checkpoint(detector.to(device).eval(), info, file, sha256_of(file), device)


def checkpoint_path(path: Path) -> Path:
    """A run folder's checkpoint, or the file itself. Errors: DfdetectError if it is not there."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise DfdetectError(
            f"{file}: no checkpoint there",
            "train one: dfdetect train --preset qad-effb1 --data DATA --out RUN",
        )
    return file


def choose_device(name: str) -> str:
    """`auto` is cuda, then mps, then cpu. Errors: DfdetectError for a device this machine lacks."""
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if has_cuda else "mps" if has_mps else "cpu"
    usable = ["cpu"]
    if has_cuda:
        usable += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    usable += ["mps"] if has_mps else []
    if name not in usable:
        raise DfdetectError(
            f"device {name!r} is not available here", f"usable: {', '.join(usable)}"
        )
    return name


def versions() -> Mapping[str, str]:
    import timm

    return {
        "dfdetect": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
