"""Forgeries: a real face in, a fake one and its mask out. Add one: a file here, a line in SHELF.

A forgery is a function `(image uint8 [H,W,3] RGB, landmarks [5,2] px, rng) -> Forged`.
"""

from collections.abc import Callable

import numpy as np

from dfdetect.forgeries.base import Forged
from dfdetect.forgeries.local_warp import local_warp
from dfdetect.forgeries.self_blend import self_blend

SHELF: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], Forged]] = {
    "self-blend": self_blend,
    "local-warp": local_warp,
}
