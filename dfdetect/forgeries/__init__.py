"""Forgeries: a real face in, a fake one and its mask out. Add one: a file here, a line in SHELF.

A forgery is a function `(image uint8 [H,W,3] RGB, landmarks [5,2] px, rng, bank) -> Forged` of a
picture or an aligned crop; the bank holds what some of them need beside the face. The same rng
gives the same forgery; points that are no face raise DfdetectError.
"""

from collections.abc import Callable

from dfdetect.forgeries.base import Forged
from dfdetect.forgeries.cross_blend import cross_blend
from dfdetect.forgeries.local_warp import local_warp
from dfdetect.forgeries.reconstruct import reconstruct
from dfdetect.forgeries.resample import resample
from dfdetect.forgeries.self_blend import self_blend

SHELF: dict[str, Callable[..., Forged]] = {
    "self-blend": self_blend,
    "cross-blend": cross_blend,
    "reconstruct": reconstruct,
    "resample": resample,
    "local-warp": local_warp,
}
NEEDS_PARTNER = frozenset({"cross-blend"})
NEEDS_DECODERS = frozenset({"reconstruct"})
