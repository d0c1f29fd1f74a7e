"""What comes with the package: a portrait, and the starter detector that scan takes by default.

The portrait is NASA's photo of astronaut Eileen Collins, in the public domain.
"""

from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np

ASSETS = Path(str(files("dfdetect").joinpath("assets")))
STARTER = ASSETS / "starter.safetensors"


def read_portrait() -> np.ndarray:
    """uint8 [H,W,3] RGB."""
    content = np.frombuffer((ASSETS / "portrait.jpg").read_bytes(), np.uint8)
    return cv2.cvtColor(cv2.imdecode(content, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
