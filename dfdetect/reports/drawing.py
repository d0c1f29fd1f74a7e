"""How figures are drawn: one style, whatever a user's matplotlibrc says, and text that fits.

White, no mathtext, Agg without pyplot's state; what a colour says is also said by a number, a shape
or a word.
"""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dfdetect.errors import printable

STYLE = {
    "figure.dpi": 100, "figure.facecolor": "white", "font.family": "DejaVu Sans", "font.size": 10,
    "text.parse_math": False, "text.usetex": False, "legend.frameon": False,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
}  # fmt: skip
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart by most colour-blind eyes."""
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", "p", "*", ">", "h", "d")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
"""Of lines, one for each colour."""
LONGEST_NAME = 32
"""Characters of a name in a figure."""
CHARACTER, LINE = 0.08, 0.19
"""Width and height of text of 10 points, inches."""


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # drawn as a box
        yield


def png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def wrapped(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, int((width - 0.3) / CHARACTER))


def write(figure: Figure, lines: Sequence[str], top: float) -> None:
    """Lines of text, the first below `top` inches from the bottom of the figure."""
    width, height = figure.get_size_inches()
    for i, line in enumerate(lines):
        figure.text(0.15 / width, (top - i * LINE) / height, line, va="top")


def fractions(box: tuple[float, ...], width: float, height: float) -> tuple[float, ...]:
    left, bottom, across, up = box
    return left / width, bottom / height, across / width, up / height


def short_names(names: Sequence[str], longest: int = LONGEST_NAME) -> list[str]:
    """`names` of strangers, printable, distinct and of at most `longest` characters: what is left
    out is …, and where two would be alike a number follows."""
    shown: list[str] = []
    for name in map(printable, names):
        text = name if len(name) <= longest else f"{name[: longest - 1].rstrip()}…"
        number = 1
        while text in shown:
            number += 1
            end = f"… {number}"
            text = f"{name[: longest - len(end)].rstrip()}{end}"
        shown.append(text)
    return shown
