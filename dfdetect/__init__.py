"""dfdetect: prepare, train, eval and scan face videos and photos for deepfakes.

The public names load on first use, so that ``import dfdetect`` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "scan": "dfdetect.scanning",
    "load_checkpoint": "dfdetect.checkpoint",
    "Verdict": "dfdetect.results",
    "DfdetectError": "dfdetect.errors",
}
__all__ = ["DfdetectError", "Verdict", "__version__", "load_checkpoint", "scan"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'dfdetect' has no attribute {name!r}")
