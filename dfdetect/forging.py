"""Which forgery a sample gets, and what it takes: an object that makes fakes of crops, and decoders
trained on the faces that are to be forged.

The loader calls the former in its processes (`augment.forge` of a preset); the latter are trained
by `train` and by the verb `forge`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfdetect.data import FORGED, Forging, read_crop
from dfdetect.errors import DfdetectError, unknown
from dfdetect.forgeries import NEEDS_DECODERS, NEEDS_PARTNER, SHELF
from dfdetect.forgeries.base import Bank, Decoder, Forged, Portrait
from dfdetect.presets import Forge
from dfdetect.training_data import TrainingData

DECODERS = "decoders.safetensors"
MOST_FACES = 600
"""Crops that decoders are trained on, one of each face as far as that goes."""
DRAWS = 20
"""How often a forgery is drawn anew where it left a crop as it was."""


class Forger:
    """Called with a crop uint8 [S,S,3] RGB and its landmarks [5,2] px, makes a fake of it by one
    of the forgeries, drawn by weight; `partner()` gives crop and landmarks of somebody else. The
    file of `decoders` is read when the first fake is made.

    Errors: DfdetectError for unknown forgeries, and for decoders that are needed and not given.
    """

    def __init__(self, weights: Mapping[str, float], decoders: Path | None = None) -> None:
        for name in weights:
            if name not in SHELF:
                raise unknown("forgery", name, SHELF)
        self._names = sorted(weights)
        shares = np.array([weights[name] for name in self._names], float)
        self._shares = shares / shares.sum()
        needing = NEEDS_DECODERS & set(weights)
        if needing and decoders is None:
            raise DfdetectError(
                f"{min(needing)} needs trained decoders", "`dfdetect forge` trains and stores them"
            )
        self._file = decoders if needing else None
        self._decoders: Sequence[Decoder] = ()

    def __call__(
        self, crop: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator,
        partner: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> np.ndarray:  # fmt: skip
        if self._file and not self._decoders:
            from dfdetect.forgeries.decoders import load_decoders

            self._decoders = load_decoders(self._file)
        bank = Bank(lambda: Portrait(*partner()), self._decoders)
        name = str(rng.choice(self._names, p=self._shares))
        for _ in range(DRAWS):  # a weak draw on a smooth face may round to nothing
            forged: Forged = SHELF[name](crop, landmarks, rng, bank)
            if (forged.image != crop).any():
                break
        return forged.image


def trains_decoders(options: Forge) -> bool:
    """Whether a run has to train decoders before it can forge."""
    needs = options.share and NEEDS_DECODERS & set(options.forgeries)
    return bool(needs) and not options.decoders


def training_forging(options: Forge, rows: TrainingData, out: Path) -> Forging | None:
    """What the loader of a run in `out` needs to make fakes of the reals of `rows`; None where
    `share` is 0. Decoders that the run trains need not be there yet.

    Errors: those of Forger; DfdetectError if a partner is needed and there is one person only, or
    for a file of decoders that is none.
    """
    if not options.share:
        return None
    forger = Forger(options.forgeries, Path(options.decoders or out / DECODERS))
    if options.decoders and NEEDS_DECODERS & set(options.forgeries):
        from dfdetect.forgeries.decoders import load_decoders

        load_decoders(Path(options.decoders))
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


class FaceCrop(NamedTuple):
    """A crop's file, and its landmarks [5,2], px of the crop."""

    path: Path
    landmarks: np.ndarray


def real_faces(rows: TrainingData) -> list[list[FaceCrop]]:
    """The reals to train on: of each track its crops, in the order of frames."""
    tracks: dict[tuple[str, int], list[FaceCrop]] = defaultdict(list)
    for s in rows.train:
        if not s.label:
            crop = FaceCrop(s.path, rows.landmarks[s.sample_id])
            tracks[s.video_id, s.track_id].append(crop)
    return list(tracks.values())


def store_decoders(
    faces: Sequence[Sequence[FaceCrop]], path: Path, seed: int, n_steps: int,
    on_step: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Train the family of decoders, `n_steps` each, on crops spread over the real `faces`, and
    write them to `path`; crops that cannot be read are left out. `on_step(n_done, n_total)`.

    Errors: DfdetectError if there are no crops.
    """
    from dfdetect.forgeries.decoders import train_decoders

    portraits = []
    for crop in _spread(faces):
        try:
            portraits.append(Portrait(read_crop(crop.path), crop.landmarks))
        except DfdetectError:  # told of when it is to be forged
            continue
    train_decoders(portraits, path, seed, n_steps=n_steps, on_step=on_step)


def _spread(faces: Sequence[Sequence[FaceCrop]]) -> list[FaceCrop]:
    """Up to MOST_FACES: the middle frame of every face, or of evenly many of them; of few faces
    several frames."""
    each = max(1, MOST_FACES // max(1, len(faces)))
    crops = []
    for face in faces:
        n = min(each, len(face))
        crops += [face[(2 * i + 1) * len(face) // (2 * n)] for i in range(n)]
    return crops[:: max(1, -(-len(crops) // MOST_FACES))]
