"""Which forgery a sample gets, and what it takes: an object that makes fakes of crops.

The loader calls it in its processes (`augment.forge` of a preset), the verb `forge` in its own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dfdetect.data import FORGED, Forging
from dfdetect.errors import DfdetectError, unknown
from dfdetect.forgeries import NEEDS_DECODERS, NEEDS_PARTNER, SHELF
from dfdetect.forgeries.base import Bank, Decoder, Forged, Portrait
from dfdetect.presets import Forge
from dfdetect.training_data import TrainingData

DRAWS = 20
"""How often a forgery is drawn anew where it left a crop as it was."""


class Forger:
    """Called with a crop uint8 [S,S,3] RGB and its landmarks [5,2] px, makes a fake of it by one
    of the forgeries, drawn by weight; `partner()` gives crop and landmarks of somebody else.

    Errors: DfdetectError for unknown forgeries, and for decoders that are needed and not there.
    """

    def __init__(self, weights: Mapping[str, float], decoders: Path | None = None) -> None:
        for name in weights:
            if name not in SHELF:
                raise unknown("forgery", name, SHELF)
        self._names = sorted(weights)
        shares = np.array([weights[name] for name in self._names], float)
        self._shares = shares / shares.sum()
        self._decoders: list[Decoder] = []
        if NEEDS_DECODERS & set(weights):
            from dfdetect.forgeries.decoders import load_decoders

            if decoders is None:
                raise DfdetectError(
                    f"{min(NEEDS_DECODERS & set(weights))} needs trained decoders",
                    "`dfdetect forge` trains and stores them; name the file with "
                    "augment.forge.decoders",
                )
            self._decoders = load_decoders(decoders)

    def __call__(
        self, crop: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator,
        partner: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> np.ndarray:  # fmt: skip
        bank = Bank(lambda: Portrait(*partner()), self._decoders)
        name = str(rng.choice(self._names, p=self._shares))
        for _ in range(DRAWS):  # a weak draw on a smooth face may round to nothing
            forged: Forged = SHELF[name](crop, landmarks, rng, bank)
            if (forged.image != crop).any():
                break
        return forged.image


def training_forging(options: Forge, rows: TrainingData) -> Forging | None:
    """What the loader needs to make fakes of the reals of `rows`; None where `share` is 0.

    Errors: those of Forger; DfdetectError if a partner is needed and there is one person only.
    """
    if not options.share:
        return None
    forger = Forger(options.forgeries, Path(options.decoders) if options.decoders else None)
    if needing := NEEDS_PARTNER & set(options.forgeries):
        reals = [s for s in rows.train if not s.label]
        if len({s.video_id for s in reals}) < 2:
            raise DfdetectError(
                f"{min(needing)} needs the faces of two people, and one real is there to train on",
                "prepare more people, or leave it out of augment.forge.forgeries",
            )
    return Forging(options.share, rows.landmarks, forger)


def domains_with_forged(domains: list[str], rows: TrainingData) -> list[str]:
    """A method's `domains`, and that of forged samples where there are such."""
    return [*domains, FORGED] if FORGED in rows.domains and FORGED not in domains else domains
