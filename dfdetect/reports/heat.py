"""Heat maps over face crops: one overlay, and a sheet of them as PNG.

Readable without colour: the colours rise in lightness with the map, over a crop in faint grey; a
line runs where the map is half way up, a cross stands on its highest place, and its range is
written below.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfdetect.faces import to_input
from dfdetect.reports.sheet import BACKGROUND, FAINT, GAP_PX, INK, fit

COLOURS = cv2.COLORMAP_VIRIDIS
TILE_PX, LABEL_PX, LINE_PX = 224, 150, 20
MOST_ROWS = 60
"""Rows on one sheet; of more, it says how many are not drawn."""


class Panel(NamedTuple):
    """A map float [S,S] in 0..1, and the lines written below it."""

    values: np.ndarray
    caption: Sequence[str]


class Row(NamedTuple):
    """One crop uint8 [S,S,3] RGB, the lines written beside it, and its maps."""

    crop: np.ndarray
    label: Sequence[str]
    panels: Sequence[Panel]


def overlay(crop: np.ndarray, values: np.ndarray, side_px: int = TILE_PX) -> np.ndarray:
    """`values` float [S,S] in 0..1 over the crop uint8 [S,S,3] RGB -> uint8 [side,side,3] RGB.

    A map that is 0 everywhere gives the grey crop alone.
    """
    grey = cv2.cvtColor(to_input(crop, side_px), cv2.COLOR_RGB2GRAY)
    if not values.any():
        return np.repeat(grey[..., None], 3, 2)
    heat = cv2.resize(values.astype(np.float32), (side_px, side_px))
    colours = cv2.applyColorMap((heat * 255).round().astype(np.uint8), COLOURS)[..., ::-1]
    picture = np.ascontiguousarray((0.65 * colours + 0.35 * grey[..., None]).round(), np.uint8)
    above = np.pad((heat >= 0.5).astype(np.uint8), 9, "edge")  # lines close outside the picture
    lines, _ = cv2.findContours(above, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(-9, -9))
    highest = np.unravel_index(heat.argmax(), heat.shape)
    y, x = (int(np.clip(v, 8, side_px - 9)) for v in highest)  # all of the cross is seen
    for ink, width in ((0, 4), (255, 2)):  # white on black, seen on every colour
        cv2.drawContours(picture, lines, -1, (ink,) * 3, width, cv2.LINE_AA)
    for ink, width in ((0, 5), (255, 2)):
        cv2.drawMarker(picture, (x, y), (ink,) * 3, cv2.MARKER_TILTED_CROSS, 14, width)
    return picture


def draw_sheet(
    title: str, subtitle: str, headings: Sequence[str], rows: Sequence[Row], note: str
) -> bytes:
    """A row per crop: its lines, the crop, and an overlay under each of `headings`; PNG bytes."""
    small, large = ImageFont.load_default(14), ImageFont.load_default(18)
    shown = rows[:MOST_ROWS]
    n_captions = max(len(panel.caption) for row in shown for panel in row.panels)
    step_x, step_y = TILE_PX + GAP_PX, TILE_PX + n_captions * LINE_PX + GAP_PX
    width = max(GAP_PX + LABEL_PX + (1 + len(headings)) * step_x, 560)
    lines = _wrapped(note, small, width - 2 * GAP_PX)
    if len(rows) > len(shown):
        lines.insert(0, f"{len(rows) - len(shown)} more rows are not drawn; the arrays hold all.")
    head = 5 * LINE_PX + 2 * GAP_PX
    height = head + len(shown) * step_y + len(lines) * LINE_PX + GAP_PX
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX, GAP_PX), fit(title, large, width - 2 * GAP_PX), INK, large)
    draw.text((GAP_PX, GAP_PX + LINE_PX + 4), fit(subtitle, small, width - 2 * GAP_PX), INK, small)
    _legend(sheet, draw, GAP_PX + int(2.4 * LINE_PX), small)
    for x, heading in enumerate(("what the network sees", *headings)):
        at = (GAP_PX + LABEL_PX + x * step_x, head - GAP_PX // 2)
        draw.text(at, fit(heading, small, TILE_PX), INK, small, anchor="ls")
    for y, row in enumerate(shown):
        top = head + y * step_y
        for i, text in enumerate(row.label):
            at = (GAP_PX, top + i * LINE_PX)
            draw.text(at, fit(text, small, LABEL_PX - GAP_PX), FAINT if i else INK, small)
        sheet.paste(Image.fromarray(to_input(row.crop, TILE_PX)), (GAP_PX + LABEL_PX, top))
        for x, panel in enumerate(row.panels, start=1):
            left = GAP_PX + LABEL_PX + x * step_x
            sheet.paste(Image.fromarray(overlay(row.crop, panel.values)), (left, top))
            for i, text in enumerate(panel.caption):
                at = (left, top + TILE_PX + 2 + i * LINE_PX)
                draw.text(at, fit(text, small, TILE_PX), FAINT if i else INK, small)
    for i, line in enumerate(lines):
        draw.text((GAP_PX, head + len(shown) * step_y + i * LINE_PX), line, INK, small)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, font) -> None:
    """The colours from a map's lowest to its highest value, and what line and cross are."""
    ramp = np.tile(np.linspace(0, 255, 120).astype(np.uint8), (14, 1))
    bar = Image.fromarray(np.ascontiguousarray(cv2.applyColorMap(ramp, COLOURS)[..., ::-1]))
    left = GAP_PX + draw.textlength("lowest", font) + GAP_PX
    draw.text((GAP_PX, top), "lowest", INK, font)
    sheet.paste(bar, (round(left), top + 2))
    words = "highest of each map;  line: half way up;  cross: highest place"
    draw.text((left + bar.width + GAP_PX, top), words, INK, font)


def _wrapped(text: str, font, width_px: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
