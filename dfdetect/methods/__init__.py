"""Training methods: Detector -> training loss. Add one: a file here, a line in SHELF, a preset."""

from pydantic import ValidationError

from dfdetect.detector import Detector
from dfdetect.errors import unknown
from dfdetect.methods.base import Method, Options, StepLoss
from dfdetect.methods.bce import Bce
from dfdetect.methods.did import Did
from dfdetect.methods.qad import Qad
from dfdetect.methods.qadid import QadDid
from dfdetect.presets import Preset, invalid_field

__all__ = ["SHELF", "Method", "StepLoss", "make_method", "method_options"]

SHELF: dict[str, type[Method]] = {"bce": Bce, "qad": Qad, "did": Did, "qadid": QadDid}


def method_options(preset: Preset) -> tuple[type[Method], Options]:
    """The method of a preset and its checked options.

    Errors: DfdetectError for an unknown method, an unknown option or a value that does not fit.
    """
    if preset.method.name not in SHELF:
        raise unknown("method", preset.method.name, SHELF)
    kind = SHELF[preset.method.name]
    try:
        return kind, kind.Options.model_validate(preset.method.options)
    except ValidationError as error:
        raise invalid_field(error, f"preset {preset.name}, method", kind.Options) from error


def make_method(preset: Preset, n_domains: int) -> Method:
    """Detector and method of a preset. Errors: those of both, and of `Detector.freeze`."""
    kind, options = method_options(preset)
    detector = Detector(
        backbone=preset.backbone.name,
        image_size=preset.image_size,
        colour=preset.backbone.colour,
        weights=preset.backbone.weights,
        **kind.detector_settings(options, n_domains),
    )
    detector.freeze(preset.backbone.frozen)
    return kind(detector, options, n_domains)
