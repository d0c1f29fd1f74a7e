"""Contact sheet: prepared folder -> one PNG, a row per sample and a column per quality.

The rows are chosen without any chance: each class (real, and every manipulation) in turn gets one
until there are enough, spread over its videos and over the frames of a video. The same folder
therefore gives the same sheet.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dfdetect.data import read_crop
from dfdetect.errors import DfdetectError, printable
from dfdetect.faces import to_input
from dfdetect.files import write_whole
from dfdetect.manifest import read_samples, read_table
from dfdetect.quality import ordered

DEFAULT_ROWS = 12
MOST_ROWS = 500
GAP_PX, LABEL_PX, HEAD_PX, LINE_PX = 8, 270, 64, 22
BACKGROUND, INK, FAINT, EMPTY = "white", "black", (110, 110, 110), (225, 225, 225)
INK_OF = {"real": (0, 105, 40), "fake": (180, 0, 30)}  # repeats what the word says


class SheetRow(NamedTuple):
    """One sample: what its row says, and its crop at each quality that it has."""

    label: int
    manipulation: str
    dataset: str
    video_id: str
    frame_index: int
    track_id: int
    split: str
    face_px: float | None
    crops: dict[str, Path]

    @property
    def kind(self) -> tuple[int, str]:
        """The class that a row stands for; reals come first."""
        return self.label, self.manipulation


def write_sheet(data: Path, out: Path, n_rows: int | None = None) -> None:
    """Draw the contact sheet of a prepared folder into `out`, a PNG.

    Errors: DfdetectError for another suffix, a folder without a manifest, a crop that is missing
    or damaged, a number of rows outside 1 to 500.
    """
    if out.suffix.lower() != ".png":
        raise DfdetectError(f"{out}: the sheet is a PNG", "give a name that ends in .png")
    write_whole(out, draw_sheet(data, n_rows))


def draw_sheet(data: Path, n_rows: int | None = None, tile_px: int = 160) -> bytes:
    """The sheet as PNG bytes, crops drawn with a side of `tile_px`.

    `n_rows` is by default 12, or the number of classes where that is larger; fewer if there are
    not so many samples. Errors: as `write_sheet`.
    """
    everything = sheet_rows(data)
    rows = choose_rows(everything, n_rows)
    columns = ordered({quality for row in everything for quality in row.crops})
    step = tile_px + GAP_PX
    size = (LABEL_PX + len(columns) * step + GAP_PX, HEAD_PX + len(rows) * step)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(15), ImageFont.load_default(18)
    for line, text in enumerate(_title(data, everything, rows)):
        font = small if line else large
        at = (GAP_PX, GAP_PX + line * LINE_PX)
        draw.text(at, fit(text, font, LABEL_PX - 2 * GAP_PX), INK, font)
    for x, quality in enumerate(columns):
        at = (LABEL_PX + x * step + tile_px // 2, HEAD_PX - GAP_PX)
        draw.text(at, quality, INK, large, anchor="ms")
    for y, row in enumerate(rows):
        top = HEAD_PX + y * step
        _label(draw, row, top, small, large)
        for x, quality in enumerate(columns):
            corner = (LABEL_PX + x * step, top)
            if quality in row.crops:
                pixels = to_input(read_crop(row.crops[quality]), tile_px)
                sheet.paste(Image.fromarray(pixels), corner)
            else:
                box = (*corner, corner[0] + tile_px - 1, top + tile_px - 1)
                draw.rectangle(box, EMPTY)
                middle = (corner[0] + tile_px // 2, top + tile_px // 2)
                draw.text(middle, "none", FAINT, small, anchor="mm")
    for y, (above, below) in enumerate(pairwise(rows), start=1):
        if above.kind != below.kind:
            line = HEAD_PX + y * step - GAP_PX // 2
            draw.line((GAP_PX, line, size[0] - GAP_PX, line), FAINT)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def sheet_rows(data: Path) -> list[SheetRow]:
    """All samples of a prepared folder: reals first, then by manipulation, video and frame."""
    columns = read_table(data).select(["sample_id", "frame_index", "face_px"]).to_pydict()
    facts = dict(
        zip(
            columns["sample_id"],
            zip(columns["frame_index"], columns["face_px"], strict=True),
            strict=True,
        )
    )
    rows: dict[str, SheetRow] = {}
    for s in read_samples(data):
        frame_index, face_px = facts[s.sample_id]
        if s.sample_id not in rows:
            rows[s.sample_id] = SheetRow(
                s.label, s.manipulation, s.dataset, s.video_id, frame_index, s.track_id, s.split,
                face_px, {},
            )  # fmt: skip
        rows[s.sample_id].crops[s.quality] = s.path
    return sorted(rows.values(), key=lambda row: row[:6])


def choose_rows(rows: Sequence[SheetRow], n_rows: int | None = None) -> list[SheetRow]:
    """`n_rows` of `rows`, in their order: as equally many of each class as there are, spread over
    the videos of a class and the frames of a video.

    Errors: DfdetectError for a number of rows outside 1 to 500.
    """
    kinds: dict[tuple[int, str], list[SheetRow]] = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)
    default = min(max(DEFAULT_ROWS, len(kinds)), MOST_ROWS)
    wanted = default if n_rows is None else n_rows
    if not 1 <= wanted <= MOST_ROWS:
        raise DfdetectError(f"a sheet of {wanted} rows", f"--rows takes 1 to {MOST_ROWS}")
    chosen = []
    shares = _deal([len(members) for members in kinds.values()], wanted)
    for members, share in zip(kinds.values(), shares, strict=True):
        videos: dict[tuple[str, str], list[SheetRow]] = defaultdict(list)
        for row in members:
            videos[row.dataset, row.video_id].append(row)
        some = _spread([*videos.values()], min(share, len(videos)))
        of_each = _deal([len(video) for video in some], share)
        for video, n in zip(some, of_each, strict=True):
            chosen += _spread(video, n)
    return chosen


def _deal(sizes: Sequence[int], n: int) -> list[int]:
    """How many each of several groups gives, one in turn each, until there are `n` or no more."""
    shares = [0] * len(sizes)
    while n > 0 and shares != list(sizes):
        for i, size in enumerate(sizes):
            if n > 0 and shares[i] < size:
                shares[i] += 1
                n -= 1
    return shares


def _spread(items: Sequence, n: int) -> list:
    """`n` of `items`, in order and evenly far apart; one is the middle one."""
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


def _title(data: Path, everything: Sequence[SheetRow], rows: Sequence[SheetRow]) -> list[str]:
    n_kinds, n_shown = (len({row.kind for row in some}) for some in (everything, rows))
    classes = f"{n_shown} of {n_kinds}" if n_shown < n_kinds else f"all {n_kinds}"
    return [data.resolve().name, f"{len(rows)} of {len(everything)} samples, {classes} classes"]


def _label(draw: ImageDraw.ImageDraw, row: SheetRow, top: int, small, large) -> None:
    word = "fake" if row.label else "real"
    face = "face size not known" if row.face_px is None else f"face {row.face_px:.0f} px"
    lines = [
        (word, INK_OF[word], large),
        (row.manipulation, INK, small),
        (row.dataset, FAINT, small),
        (row.video_id, FAINT, small),
        (f"frame {row.frame_index}, track {row.track_id}, {row.split}", FAINT, small),
        (face, FAINT, small),
    ]
    if row.manipulation == word:
        del lines[1]
    for i, (text, ink, font) in enumerate(lines):
        at = (GAP_PX, top + GAP_PX + i * LINE_PX)
        draw.text(at, fit(text, font, LABEL_PX - 2 * GAP_PX), ink, font)


def fit(text: str, font, width_px: int) -> str:
    """`text` in the font's characters (ASCII, others as escapes), its middle cut to fit."""
    text = shown = printable(text).encode("ascii", "backslashreplace").decode()
    n = len(text)
    while n > 0 and font.getlength(shown) > width_px:
        n -= 1
        shown = text[: (n + 1) // 2] + "…" + text[len(text) - n // 2 :]
    return shown
