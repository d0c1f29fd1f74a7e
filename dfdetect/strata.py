"""Predictions by the width of their faces: the figures of small faces apart from those of large.

The width is that of the face's box in its source picture, before it was cut and resized: a small
one has less to see, and where fakes have other sizes than reals, size itself tells them apart.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import NamedTuple

import numpy as np

from dfdetect.cells import LEVELS, Cell, measure
from dfdetect.errors import DfdetectError
from dfdetect.predictions import Columns
from dfdetect.resampling import ROUNDS


class Stratum(NamedTuple):
    """Faces of `low` <= width < `high` px."""

    name: str
    low: float
    high: float


def parse_edges(text: str) -> list[float]:
    """`64,128` -> [64, 128], px. Errors: DfdetectError for anything but rising positive numbers."""
    try:
        edges = [float(part) for part in text.split(",")]
    except ValueError:
        edges = []
    rising = all(a < b for a, b in pairwise(edges))
    if not edges or not rising or edges[0] <= 0 or not np.isfinite(edges).all():
        raise DfdetectError(
            f"--face-sizes {text}: not widths in px that rise", "for example --face-sizes 64,128"
        )
    return edges


def strata_of(edges: Sequence[float]) -> list[Stratum]:
    """[64, 128] -> `<64 px`, `64-128 px`, `>=128 px`."""
    between = [Stratum(f"{a:g}-{b:g} px", a, b) for a, b in pairwise(edges)]
    return [
        Stratum(f"<{edges[0]:g} px", 0, edges[0]),
        *between,
        Stratum(f">={edges[-1]:g} px", edges[-1], inf),
    ]


def measure_faces(
    folders: Mapping[str, Columns], edges: Sequence[float], split: str, threshold: float,
    trained: Collection[str] | None = None, rounds: int = ROUNDS,
    quality_seen: Mapping[str, bool] | None = None,
) -> list[Cell]:  # fmt: skip
    """Cells of each stratum, as `measure` makes them of all faces.

    A frame belongs to the stratum of its own face, a track or video to that of the median over its
    crops. Crops whose width nobody knows are in none, and a folder without any of a stratum has no
    cells there.
    """
    cells = []
    for level in LEVELS:
        widths = {data: _widths(columns, level) for data, columns in folders.items()}
        for name, low, high in strata_of(edges):
            inside = {data: (px >= low) & (px < high) for data, px in widths.items()}
            chosen = {
                data: folders[data].where(rows) for data, rows in inside.items() if rows.any()
            }
            if chosen:
                cells += measure(
                    chosen, split, threshold, trained, rounds, [level], name, quality_seen
                )
    return cells


def _widths(columns: Columns, level: str) -> np.ndarray:
    """For each crop the width that decides, px [n]: NaN where unknown."""
    if level == "frame":
        return columns.face_px
    group = columns.video.codes
    if level == "track":
        tracks, track = np.unique(columns.track, return_inverse=True)
        group = group * len(tracks) + track
    _, group = np.unique(group, return_inverse=True)
    order = np.flatnonzero(~np.isnan(columns.face_px))
    order = order[np.lexsort((columns.face_px[order], group[order]))]
    px, known = columns.face_px[order], group[order]
    numbers, starts, counts = np.unique(known, return_index=True, return_counts=True)
    medians = np.full(len(group), np.nan)  # no more groups than crops
    medians[numbers] = (px[starts + (counts - 1) // 2] + px[starts + counts // 2]) / 2
    return medians[group]
