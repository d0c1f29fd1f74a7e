"""Presets: YAML recipes for training, checked field by field, with `--set key=value` on top."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from dfdetect.errors import DfdetectError, unknown
from dfdetect.files import read_yaml
from dfdetect.quality import parse_qualities


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Backbone(_Section):
    name: str = Field(description="timm model, with the tag of its ImageNet weights")
    weights: str = Field("pretrained", description="pretrained, none, or a file of this model")
    colour: Literal["rgb", "gray", "gray3"] = Field(
        "rgb", description="gray is one channel, gray3 the same three times"
    )
    frozen: tuple[str, ...] = Field(
        (), description="parts that keep their weights and statistics, as conv_stem, blocks.0"
    )

    @field_validator("frozen", mode="before")
    @classmethod
    def _frozen(cls, value: Any) -> Any:
        return tuple(listed(value))


class MethodChoice(BaseModel):
    """The name of a training method; its options stand beside it and are checked by the method."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Optimizer(_Section):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    backbone_lr_scale: float = Field(1.0, gt=0, description="the backbone learns at lr times this")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0, description="gradient norm ceiling")


class Schedule(_Section):
    name: Literal["onecycle", "constant"] = "onecycle"
    warmup: float = Field(0.05, gt=0, lt=1, description="share of the steps up to the peak")


Sigma = Annotated[float, Field(ge=0.1, le=10)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(gt=0)]
JpegQuality = Annotated[int, Field(ge=1, le=100)]


class Forge(_Section):
    """Fakes made of the real training samples as they are loaded.

    Each real gets a forged twin (`share` 1), or a twin stands for several reals in turn (below 1).
    Twins are samples of their own, with label 1 and the domain "forged", to every sampler. While
    this is on, all qualities of all training samples are made of the raw crop in the loader, H.264
    from a short stream of it: of a forgery none is stored, and only the forgery may differ.
    """

    share: float = Field(0.0, ge=0, le=1, description="forged twins per real training sample")
    forgeries: dict[str, Weight] = Field(
        {"self-blend": 1.0}, description="how often each is drawn, relative to the others"
    )
    only: bool = Field(
        False, description="train on reals and their forgeries alone; fakes of the data only in val"
    )
    decoders: str = Field(
        "", description="file of trained decoders, for reconstruct; without one the run trains them"
    )
    decoder_steps: int = Field(
        500, ge=1, description="steps of training each decoder, some 0.06 s of a core each"
    )

    @field_validator("forgeries")
    @classmethod
    def _some(cls, value: dict[str, float]) -> dict[str, float]:
        if not value:
            raise ValueError("at least one forgery is needed")
        return value

    @model_validator(mode="after")
    def _something(self) -> "Forge":
        if self.only and not self.share:
            raise ValueError("only=true without a share of forgeries leaves no fake to train on")
        return self


class Augment(_Section):
    """Drawn once per sample and applied to all its qualities alike."""

    forge: Forge = Forge()

    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirror image")
    scale: float = Field(0.0, ge=0, le=0.5, description="random crop down to 1 - scale of the side")
    brightness: float = Field(0.0, ge=0, le=0.5, description="additive, share of full range")
    contrast: float = Field(0.0, ge=0, le=0.5, description="multiplicative, 1 +- this")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")
    blur_sigma: tuple[Sigma, Sigma] = Field((0.5, 2.0), description="from, to; px of the crop")
    rescale: float = Field(0.0, ge=0, le=1, description="probability of shrinking and back")
    rescale_to: tuple[Share, Share] = Field((0.25, 1.0), description="from, to; share of the side")
    jpeg: float = Field(0.0, ge=0, le=1, description="probability of JPEG, after all the others")
    jpeg_quality: tuple[JpegQuality, JpegQuality] = Field((30, 95), description="from, to")

    @field_validator("blur_sigma", "rescale_to", "jpeg_quality")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("from is above to")
        return value


class Preset(_Section):
    """A whole training recipe. A YAML file holds only what differs from these defaults, or from the
    preset that it names as `based_on`."""

    name: str
    reproduces: str = Field(description="which row of which paper, or what it is for")
    method: MethodChoice
    backbone: Backbone
    image_size: int = Field(224, ge=32, le=1024, description="side of the network's input, px")
    qualities: tuple[str, ...] = Field(
        ("raw", "c23", "c40"), description="as prepared; all but cNN are also made from raw"
    )
    leave_out: tuple[str, ...] = Field(
        (), description="manipulations neither trained nor validated on, for example EDTalk*"
    )
    batch_size: int = Field(64, ge=2, description="samples per step; each brings all its qualities")
    epochs: int = Field(32, ge=1)
    steps_per_epoch: int | None = Field(None, ge=1, description="default: one pass over the data")
    validate_per_epoch: int = Field(1, ge=1)
    select: Literal["accuracy", "auc", "last"] = Field(
        "accuracy", description="checkpoint kept: the best on val by a figure, or the last"
    )
    sampler: Literal[
        "shuffle", "uniform", "class_balanced", "domain_balanced", "video_balanced", "source_paired"
    ] = "shuffle"
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = Field(1, ge=1, description="parts in which a batch goes through the network")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, which is validated"
    )
    channels_last: bool = Field(False, description="memory layout that suits GPUs and bf16")
    compile: bool = Field(False, description="torch.compile the network; slow to start")
    seed: int = Field(0, ge=0, lt=2**32)

    @field_validator("qualities", mode="before")
    @classmethod
    def _qualities(cls, value: Any) -> Any:
        return tuple(quality.name for quality in parse_qualities(listed(value), made=True))

    @field_validator("leave_out", mode="before")
    @classmethod
    def _leave_out(cls, value: Any) -> Any:
        return tuple(listed(value))


def listed(value: Any) -> list[str]:
    """The names in `a,b` or [a, b]. Errors: ValueError for anything else."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("names as raw,c23,c40 are needed")
    return [name.strip() for name in names]


def preset_folders() -> list[Path]:
    """Where presets lie: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parent
    return [f for f in (package / "presets", package.parent / "presets") if f.is_dir()]


def list_presets() -> dict[str, Path]:
    """{name: file} of the presets that come with the tool."""
    return {
        p.stem: p for folder in reversed(preset_folders()) for p in sorted(folder.glob("*.yaml"))
    }


def load_preset(name: str, overrides: Sequence[str] = ()) -> Preset:
    """A preset by name or path of a YAML file, with `key=value` overrides (dots go deeper).

    Errors: DfdetectError for an unknown name, a file that is not a preset, an override that does
    not fit.
    """
    path = _find(name)
    content = _read(path)
    for override in overrides:
        _override(content, override)
    asked = f" with --set {' --set '.join(overrides)}" if overrides else ""
    return check_preset(content, f"preset {path.stem}{asked}")


def check_preset(content: Mapping[str, Any], where: str) -> Preset:
    """A Preset of a mapping. Errors: DfdetectError naming `where`, the field and the problem."""
    try:
        return Preset.model_validate(content)
    except ValidationError as error:
        raise invalid_field(error, where, Preset) from error


def invalid_field(error: ValidationError, where: str, model: type[BaseModel]) -> DfdetectError:
    """The first problem of a validation, as one line with the nearest known name."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown(f"option in {where}:", field, _field_names(model))
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] == "model_type":
        message = f"needs options of its own, as {field}.name=..."
    return DfdetectError(
        f"{where}: {field}: {message} (got {first['input']!r})", "see `dfdetect presets qad-effb1`"
    )


def _field_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, BaseModel)
        here = prefix + (field.alias or name)
        names += _field_names(inner, f"{here}.") if nested else [here]
    return names


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise DfdetectError(f"--set {override!r} is not key=value", "for example --set epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DfdetectError(f"--set {override!r}: the value is not valid YAML") from error
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        inner = content.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise DfdetectError(f"--set {key}: {parent} has no options of its own")
        content = inner
    content[leaf] = value


def _find(name: str, beside: Path = Path()) -> Path:
    """The file of a preset's name, or a path, which is relative to the folder `beside`."""
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return beside / name
    known = list_presets()
    if name not in known:
        raise unknown("preset", name, known)
    return known[name]


def _read(path: Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A preset file's content on top of what it is based on; `derived` are the files that are
    based on it. Name and `reproduces` are never taken from another file."""
    if path.resolve() in derived:
        raise DfdetectError(f"{path}: is based on itself", "let based_on name another preset")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise DfdetectError(f"{path}: not a preset (a mapping with name, method, backbone)")
    content.setdefault("name", path.stem)
    if "based_on" not in content:
        return content
    start = _find(str(content.pop("based_on")), path.parent)
    base = _read(start, (*derived, path.resolve()))
    del base["name"]
    base.pop("reproduces", None)
    return _merged(base, content)


def _merged(base: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """`content` over `base`, mapping by mapping; options of another method are not kept."""
    merged = dict(base)
    for key, value in content.items():
        under = merged.get(key)
        both = isinstance(value, dict) and isinstance(under, dict)
        if both and key == "method" and value.get("name", under.get("name")) != under.get("name"):
            both = False
        merged[key] = _merged(under, value) if both else value
    return merged
