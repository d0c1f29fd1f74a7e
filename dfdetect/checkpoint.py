"""One file, `detector.safetensors`: the weights that inference needs, and how to use them.

Its metadata holds everything to rebuild the detector and to crop faces as training did; it is read
from safetensors and JSON alone, so loading a stranger's checkpoint runs no code of theirs.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from dfdetect import __version__
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.faces import CropRecipe
from dfdetect.files import sha256_of, write_whole
from dfdetect.likeness import DetailRange
from dfdetect.metrics import Band, Bin, Sigmoid, score_logit
from dfdetect.shipped import read_portrait

if TYPE_CHECKING:  # PyTorch and timm take seconds, and a scan by ONNX Runtime needs neither
    from dfdetect.detector import Detector

FILE_NAME = "detector.safetensors"
METADATA_KEY = "dfdetect"
"""Of the safetensors file's metadata: the text of its CheckpointInfo."""
FORMAT = 1
PORTRAIT_TOLERANCE = 0.02
"""Of a published checkpoint's logit of the shipped portrait."""


class CalibrationFigures(BaseModel):
    """How far scores are from probabilities: log loss in nats, Brier score, expected calibration
    error and its bins; and the share of real videos, each at its worst quality, above the
    threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_loss: float
    brier: float
    ece: float
    bins: list[Bin]
    real_above_threshold: float


class AucBounds(BaseModel):
    """Video AUC with the middle 95 % of a bootstrap of videos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: float
    low: float
    high: float


class RateBounds(BaseModel):
    """A share of videos with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float
    low: float
    high: float


class Calibration(BaseModel):
    """From a video's score to P(fake) at a stated prior, and what may be called by it.

    The video's score is that of scan, the mean over a person's frames; its logit is taken, so that
    videos keep the order that eval ranks them in and no single frame outweighs the others. The
    threshold and the band are of P(fake).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["platt", "temperature"]
    slope: float  # a temperature is 1 / slope
    intercept: float
    prior: float
    fpr: float  # of real videos at most so many lie above the threshold
    threshold: float
    band: tuple[float, float] | None
    basis: str
    experimental: list[str]  # why its verdicts are no more than experiments; empty: they are not
    least_face_px: float | None  # 1st percentile, over people in videos, of the median face width
    n_videos: dict[str, dict[str, int]]  # quality -> real, fake
    n_pictures: dict[str, int]  # real, fake: those of a single frame
    fingerprint: str  # of the rows it was fitted on
    auc: dict[str, AucBounds]  # by quality
    eer: dict[str, RateBounds] = {}  # by quality; a bootstrap of videos
    false_positives: dict[str, RateBounds] = {}  # by quality, as `after`; exact binomial intervals
    before: CalibrationFigures  # score and threshold that training left
    after: CalibrationFigures | None  # of videos left out of the fit; None: too few to leave any

    def probability(self, scores: Any) -> np.ndarray:
        """P(fake) of the scores 0..1 of videos, any shape."""
        return Sigmoid(self.slope, self.intercept).at(self.prior, score_logit(scores))

    @property
    def meaning(self) -> str:
        return f"P(fake) at prior {self.prior:g}"


class Publication(BaseModel):
    """What a checkpoint made to be given away says of itself: the day it was made, a text on its
    data, limits and licence (Markdown), and the logit of the shipped portrait."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    about: str
    portrait_logit: float


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
    detail: DetailRange | None = None
    calibration: Calibration | None = None
    publication: Publication | None = None

    @property
    def text(self) -> str:
        """As files hold it, JSON."""
        optional = ("detail", "calibration", "publication")
        left_out = {name for name in optional if not getattr(self, name)}
        return json.dumps(self.model_dump(exclude=left_out), allow_nan=False, sort_keys=True)


@dataclass(frozen=True)
class Model:
    """What is known about a loaded model: `path` and `sha256` are of the file it came from."""

    info: CheckpointInfo
    path: Path
    sha256: str
    device: str

    @property
    def band(self) -> Band | None:
        """What scan calls: of its calibration, if there is one, else of the uncalibrated score."""
        band = (self.info.calibration or self.info).band
        return Band(*band) if band else None

    @property
    def threshold(self) -> float:
        """Of what scan shows; `info.threshold` is always that of the uncalibrated score."""
        return (self.info.calibration or self.info).threshold

    @property
    def basis(self) -> str:
        """What the calls rest on, in words."""
        calibration = self.info.calibration
        return calibration.basis if calibration else self.info.band_basis

    @property
    def name(self) -> str:
        return str(self.info.preset["name"])

    @property
    def image_size(self) -> int:
        """Side of the crops it scores, px."""
        return self.info.detector["image_size"]


@dataclass(frozen=True)
class Checkpoint(Model):
    """A detector ready to score, in eval mode, on `device`."""

    detector: "Detector"

    engine = "torch"

    @property
    def checkpoint_sha256(self) -> str:
        """Of the checkpoint, by whatever engine it is run."""
        return self.sha256

    def logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [N] of network inputs uint8 [S,S,3] RGB."""
        from dfdetect.results import score_images

        return score_images(self.detector, images, self.device)


def save_checkpoint(path: Path, detector: "Detector", info: CheckpointInfo) -> None:
    """Write the file whole or not at all, into a folder that is there. A publication's weights are
    stored in half precision."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in detector.state_dict().items()}
    if info.publication:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    write_whole(path, save(tensors, metadata={METADATA_KEY: info.text}), make_folder=False)


def read_info(path: Path) -> CheckpointInfo:
    """The metadata alone, without the weights. Errors: as `load_checkpoint`."""
    path = checkpoint_path(path)
    try:
        with safe_open(path, framework="np") as file:
            content = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise DfdetectError(
            f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})",
            "it must be a detector.safetensors written by `dfdetect train`",
        ) from error
    if content is None:
        raise DfdetectError(f"{path}: safetensors, but not written by `dfdetect train`")
    return parse_info(path, content)


def parse_info(path: Path, content: str) -> CheckpointInfo:
    """What `content`, the metadata of `path`, says. Errors: as `load_checkpoint`."""
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
    import torch

    from dfdetect.detector import Detector

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
    detector = detector.to(device).eval()
    if info.publication:
        check_portrait(file, info.publication, portrait_logit(detector, device))
    return Checkpoint(info, file, sha256_of(file), device, detector)


def portrait_logit(detector: "Detector", device: str) -> float:
    """What `detector`, in eval mode, makes of the whole shipped portrait at its input's size."""
    import torch

    from dfdetect.data import images_to_tensor, to_input

    image = to_input(read_portrait(), detector.image_size)
    with torch.inference_mode():
        return float(detector(images_to_tensor([image]).to(device).float().div_(255)))


def check_portrait(file: Path, publication: Publication, logit: float) -> None:
    """Errors: DfdetectError where the model gives the shipped portrait another logit than when it
    was published."""
    if not abs(logit - publication.portrait_logit) <= PORTRAIT_TOLERANCE:
        raise DfdetectError(
            f"{file}: gives the shipped portrait the logit {logit:.4f}, and gave it "
            f"{publication.portrait_logit:.4f} when it was published",
            "a library computes otherwise than it did: compare its version with those that "
            "`dfdetect info` tells of the file",
            ExitCode.ENVIRONMENT,
        )


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
    import torch

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
    import torch

    return {
        "dfdetect": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
