"""Contact sheet of forgeries as PNG: a row per draw; original, forged, mask and difference."""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfdetect.faces import to_input
from dfdetect.reports.sheet import BACKGROUND, FAINT, GAP_PX, INK, fit

AMPLIFIED = 8
TILE_PX, LABEL_PX, HEAD_PX, LINE_PX = 192, 130, 66, 20


class Draw(NamedTuple):
    """original and forged uint8 [S,S,3] RGB, mask float [S,S] in 0..1."""

    forgery: str
    original: np.ndarray
    forged: np.ndarray
    mask: np.ndarray


def draw_forgeries(title: str, draws: Sequence[Draw]) -> bytes:
    """The sheet as PNG bytes."""
    small, large = ImageFont.load_default(14), ImageFont.load_default(18)
    headings = ("original", "forged", "mask", f"difference x{AMPLIFIED}")
    step = TILE_PX + GAP_PX
    size = (LABEL_PX + len(headings) * step + GAP_PX, HEAD_PX + len(draws) * step)
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP_PX, GAP_PX), fit(title, large, size[0] - 2 * GAP_PX), INK, large)
    for x, heading in enumerate(headings):
        pen.text((LABEL_PX + x * step, HEAD_PX - GAP_PX), heading, INK, small, anchor="ls")
    for y, draw in enumerate(draws):
        top = HEAD_PX + y * step
        strongest = np.abs(draw.forged.astype(int) - draw.original).max()
        lines = (
            draw.forgery,
            f"strength {draw.mask.max():.2f}",
            f"{100 * (draw.mask > 0.01).mean():.0f} % of the crop",
            f"up to {strongest} of 255",
        )
        for i, line in enumerate(lines):
            ink = FAINT if i else INK
            at = (GAP_PX, top + i * LINE_PX)
            pen.text(at, fit(line, small, LABEL_PX - 2 * GAP_PX), ink, small)
        for x, tile in enumerate(_tiles(draw)):
            pixels = to_input(tile, TILE_PX)
            sheet.paste(Image.fromarray(pixels), (LABEL_PX + x * step, top))
    for y, (above, below) in enumerate(pairwise(draws), start=1):
        if above.forgery != below.forgery:
            line = HEAD_PX + y * step - GAP_PX // 2
            pen.line((GAP_PX, line, size[0] - GAP_PX, line), FAINT)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _tiles(draw: Draw) -> list[np.ndarray]:
    mask = np.repeat((255 * draw.mask).round().astype(np.uint8)[..., None], 3, 2)
    difference = AMPLIFIED * np.abs(draw.forged.astype(int) - draw.original)
    return [draw.original, draw.forged, mask, np.minimum(difference, 255).astype(np.uint8)]
