"""Figures of a report as PNG, and the rows of the CSV that each shows: ROC and DET curves,
histograms of scores, reliability, the heat map of a sweep, AUC against the input's size.

A figure is drawn from the very values that go into its rows.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfdetect.errors import cell, printable
from dfdetect.metrics import Bin
from dfdetect.reports.documents import Number
from dfdetect.reports.drawing import (
    COLOURS,
    DASHES,
    LINE,
    SHAPES,
    fractions,
    png,
    short_names,
    style,
    wrapped,
    write,
)

MOST_LINES = len(COLOURS)
"""Lines in one panel."""
RATES = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995, 0.999)
"""Where a DET curve's axes may have a tick."""
LEAST_RATE = RATES[0] / 2
"""Where they begin at the least; they end at 1 less it."""
PALE, DARK = "#d9e6f2", "#333333"
N_MARKS = 6
"""Shapes along a curve."""


class Place(NamedTuple):
    """What figures are of: level "video" or "frame", a quality or "pooled"."""

    model: str
    data: str
    level: str
    quality: str


class Curve(NamedTuple):
    """Error rates 0..1 as the threshold falls, [k] each: its first calls nothing fake."""

    place: Place
    n_real: int
    n_fake: int
    auc: Number
    threshold: np.ndarray
    fpr: np.ndarray
    tpr: np.ndarray


class Histogram(NamedTuple):
    """How many `real` and `fake` scores [k] lie between `edges` [k+1]; `threshold` is the
    model's."""

    place: Place
    edges: np.ndarray
    real: np.ndarray
    fake: np.ndarray
    threshold: float


class Reliability(NamedTuple):
    """Bins of scores as the network gives them, and after the calibration where there is one, with
    the expected calibration error of each; classes weigh the same."""

    place: Place
    n_real: int
    n_fake: int
    bins: dict[str, list[Bin]]
    error: dict[str, float]


class HeatMap(NamedTuple):
    """AUC [len(ys)][len(xs)] of a sweep over two options, None where there is no cell."""

    title: str
    x: str
    y: str
    xs: list[float]
    ys: list[float]
    auc: list[list[Number]]


class Line(NamedTuple):
    """AUC of one method at each of the inputs' sides, px."""

    title: str
    name: str
    sides: list[int]
    auc: list[Number]


# --- rows --------------------------------------------------------------------------------------


def curve_rows(curves: Sequence[Curve], det: bool = False) -> Iterator[Sequence[object]]:
    """Of a ROC fpr and tpr, of a DET curve fpr and fnr."""
    yield (*Place._fields, "n_real", "n_fake", "threshold", "fpr", "fnr" if det else "tpr")
    for c in curves:
        head = (*map(cell, c.place), c.n_real, c.n_fake)
        for threshold, fpr, tpr in zip(c.threshold, c.fpr, c.tpr, strict=True):
            yield *head, threshold, fpr, 1 - tpr if det else tpr


def histogram_rows(histograms: Sequence[Histogram]) -> Iterator[Sequence[object]]:
    yield (*Place._fields, "from", "to", "n_real", "n_fake")
    for h in histograms:
        for bounds in zip(h.edges, h.edges[1:], h.real, h.fake):  # noqa: B905 (one edge more)
            yield *map(cell, h.place), *bounds


def reliability_rows(found: Sequence[Reliability]) -> Iterator[Sequence[object]]:
    yield (*Place._fields, "scores", "from", "to", "weight", "mean_score", "share_of_fakes", "ece")
    for r in found:
        for when, bins in r.bins.items():
            for b in bins:
                yield (*map(cell, r.place), when, b.low, b.high, b.share, b.score, b.fake,
                       r.error[when])  # fmt: skip


def heat_rows(maps: Sequence[HeatMap]) -> Iterator[Sequence[object]]:
    yield ("map", "x", "x_value", "y", "y_value", "auc", "low", "high")
    for m in maps:
        for y, row in zip(m.ys, m.auc, strict=True):
            for x, number in zip(m.xs, row, strict=True):
                if number.value is not None:
                    yield cell(m.title), m.x, x, m.y, y, *number


def size_rows(lines: Sequence[Line]) -> Iterator[Sequence[object]]:
    yield ("panel", "line", "image_size", "auc", "low", "high")
    for line in lines:
        for side, number in zip(line.sides, line.auc, strict=True):
            yield cell(line.title), cell(line.name), side, *number


# --- figures -----------------------------------------------------------------------------------


def draw_roc(curves: Sequence[Curve], caption: str) -> bytes:
    """A panel for each folder and level: true against false positives, with AUC and its interval
    in words."""

    def panel(axes: Axes, here: Sequence[Curve]) -> list:
        axes.plot((0, 1), (0, 1), color="#999999", lw=1)
        lines = [_line(axes, c.fpr, c.tpr, i) for i, c in enumerate(here)]
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false positive rate")
        axes.set_ylabel("true positive rate")
        return lines

    return _curves(curves, panel, caption)


def draw_det(curves: Sequence[Curve], caption: str) -> bytes:
    """As `draw_roc`, misses against false positives, both on normal deviate scales (Martin et al.,
    Eurospeech 1997): scores of two normal classes give a straight line.

    Rates of 0 and 1, which these scales do not have, lie on the panel's edge.
    """
    from scipy.stats import norm

    def panel(axes: Axes, here: Sequence[Curve]) -> list:
        least = max(min(0.5 / min(c.n_real, c.n_fake) for c in here), LEAST_RATE)
        least = min(least, 0.05)
        ticks = [rate for rate in RATES if least <= rate <= 1 - least]
        edges = norm.ppf((least, 1 - least))
        axes.plot(edges, edges, color="#999999", lw=1)
        lines = []
        for i, c in enumerate(here):
            x, y = (norm.ppf(np.clip(rate, least, 1 - least)) for rate in (c.fpr, 1 - c.tpr))
            lines.append(_line(axes, x, y, i))
        places, names = norm.ppf(ticks), [f"{100 * t:g}" for t in ticks]
        axes.set_xticks(places, names, rotation=90)
        axes.set_yticks(places, names)
        axes.set(xlim=edges, ylim=edges, xlabel="false positive rate, %")
        axes.set_ylabel("false negative rate, %")
        axes.grid(color="#e5e5e5", lw=0.6)
        return lines

    return _curves(curves, panel, caption, below=0.7)


def draw_histograms(histograms: Sequence[Histogram], caption: str) -> bytes:
    """A panel for each model, folder and quality: shares of each class, reals hatched."""

    def panel(axes: Axes, h: Histogram) -> list:
        axes.axvline(h.threshold, color="black", ls=":", lw=1.2)
        widths = np.diff(h.edges)
        real = axes.bar(
            h.edges[:-1], _shares(h.real), widths, align="edge", hatch="////", facecolor="none",
            edgecolor=COLOURS[0], lw=0.8,
        )  # fmt: skip
        fake = axes.stairs(_shares(h.fake), h.edges, color=COLOURS[1], lw=1.8, fill=False)
        axes.set(xlim=(0, 1), xlabel="score", ylabel="share of the class")
        return [real, fake]

    def names(h: Histogram) -> list[str]:
        return [f"real, n {h.real.sum()} (hatched)", f"fake, n {h.fake.sum()} (outline)"]

    rows = []
    for key in dict.fromkeys(h.place[:3] for h in histograms):
        here = [h for h in histograms if h.place[:3] == key]
        panels = [Panel(partial(panel, h=h), names(h), h.place.quality) for h in here]
        rows.append(Row(_head(*key), panels))
    return _sheet(rows, caption, side=(2.6, 1.9), most=4)


def draw_reliability(found: Sequence[Reliability], caption: str) -> bytes:
    """A panel for each model, folder and quality: the share of fakes among scores of a bin, before
    and after calibration, and as bars the share of all weight in the bin."""
    looks = {
        "before": (COLOURS[1], "o", "white", "--", "////"),
        "after": (COLOURS[0], "s", COLOURS[0], "-", ""),
    }

    def panel(axes: Axes, r: Reliability) -> list:
        axes.plot((0, 1), (0, 1), color="#999999", lw=1)
        lines = []
        for i, (when, bins) in enumerate(r.bins.items()):
            colour, shape, inside, dashes, hatch = looks[when]
            x, y = [b.score for b in bins], [b.fake for b in bins]
            lines += axes.plot(x, y, color=colour, ls=dashes, marker=shape, mfc=inside, lw=1.4)
            width = (bins[0].high - bins[0].low) / len(r.bins)
            axes.bar(
                [b.low + i * width for b in bins], [b.share for b in bins], width, align="edge",
                facecolor="none", edgecolor=colour, lw=0.7, alpha=0.6, zorder=0, hatch=hatch,
            )  # fmt: skip
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="score")
        axes.set_ylabel("share of fakes; bars: of weight")
        return lines

    def names(r: Reliability) -> list[str]:
        said = {
            "before": "before" if "after" in r.bins else "uncalibrated",
            "after": "after, solid",
        }
        n = f"n {r.n_real}/{r.n_fake}"
        return [f"{said[when]}: ECE {r.error[when]:.3f}, {n}" for when in r.bins]

    rows = []
    for key in dict.fromkeys(r.place[:3] for r in found):
        here = [r for r in found if r.place[:3] == key]
        panels = [Panel(partial(panel, r=r), names(r), r.place.quality) for r in here]
        rows.append(Row(_head(*key), panels))
    return _sheet(rows, caption, side=(2.8, 2.8), most=4)


def draw_heat_maps(maps: Sequence[HeatMap], caption: str) -> bytes:
    """A panel for each map, the AUC of each cell in it and its interval below, the highest
    framed (QAD Fig. 3)."""

    def panel(axes: Axes, m: HeatMap) -> list:
        values = np.array([[np.nan if n.value is None else n.value for n in row] for row in m.auc])
        low, high = np.nanmin(values), np.nanmax(values)
        axes.imshow(values, cmap="Blues", vmin=low - 0.2 * (high - low), vmax=high, aspect="auto")
        for y, row in enumerate(m.auc):
            for x, number in enumerate(row):
                dark = number.value is not None and number.value > low + 0.6 * (high - low)
                text = str(number).replace(" ", "\n", 1)
                axes.text(x, y, text, ha="center", va="center", color="white" if dark else "black",
                          fontsize=9)  # fmt: skip
        y, x = np.unravel_index(np.nanargmax(values), values.shape)
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, lw=2.2)).set_clip_on(False)
        axes.set_xticks(range(len(m.xs)), [f"{v:g}" for v in m.xs])
        axes.set_yticks(range(len(m.ys)), [f"{v:g}" for v in m.ys])
        axes.set(xlabel=m.x, ylabel=m.y)
        return []

    rows = [Row(printable(m.title), [Panel(partial(panel, m=m), [])]) for m in maps]
    widest = max(1.15 * max(len(m.xs) for m in maps), 3.0)
    return _sheet(rows, caption, (widest, max(0.5 * max(len(m.ys) for m in maps), 1.2)), most=1)


def draw_sizes(lines: Sequence[Line], caption: str) -> bytes:
    """A panel for each folder and level: AUC with intervals against the input's side (QAD
    Fig. 4)."""

    def panel(axes: Axes, here: Sequence[Line]) -> list:
        drawn = []
        for i, line in enumerate(here):
            values = np.array([n.value for n in line.auc], float)  # NaN for None, which has no mark
            bounds = [[n.value if b is None else b for b in (n.low, n.high)] for n in line.auc]
            low, high = np.array(bounds, float).T
            dodge = (i - (len(here) - 1) / 2) * 0.006 * max(line.sides)
            drawn.append(
                axes.errorbar(
                    np.array(line.sides) + dodge, values, (values - low, high - values),
                    color=COLOURS[i % MOST_LINES], ls=DASHES[i % MOST_LINES],
                    marker=SHAPES[i % len(SHAPES)], ms=6, capsize=3,
                )
            )  # fmt: skip
        axes.set_xticks(sorted({s for line in here for s in line.sides}))
        axes.set(xlabel="side of the input, px", ylabel="AUC")
        axes.grid(axis="y", color="#e5e5e5", lw=0.6)
        return drawn

    rows = []
    for title in dict.fromkeys(line.title for line in lines):
        here = [line for line in lines if line.title == title][:MOST_LINES]
        panels = [Panel(partial(panel, here=here), short_names([h.name for h in here]))]
        rows.append(Row(printable(title), panels))
    return _sheet(rows, caption, side=(5.5, 3.2), most=1)


# --- panels ------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """`draw` returns what the legend below it explains by `names`."""

    draw: Callable[[Axes], list]
    names: list[str]
    title: str = ""


class Row(NamedTuple):
    """Panels below one heading."""

    head: str
    panels: list[Panel]


def _sheet(
    rows: Sequence[Row], caption: str, side: tuple[float, float], most: int, below: float = 0.6
) -> bytes:
    """Rows of panels of `side` (width, height) inches, `most` beside each other, each with its
    legend below; `below`: inches for the axis's name and ticks."""
    left, right = 0.85, 0.25
    above = 0.35 if any(panel.title for row in rows for panel in row.panels) else 0.15
    across = min(most, max(len(row.panels) for row in rows))
    width = max(across * (left + side[0] + right), 7.5)
    lines = [
        (row.head if i == 0 else "", row.panels[i : i + most])
        for row in rows
        for i in range(0, len(row.panels), most)
    ]
    heads = [wrapped(head, 0.9 * width) for head, _ in lines]
    legends = [LINE * 1.2 * max(len(p.names) for p in panels) + 0.1 for _, panels in lines]
    heights = [
        LINE * 1.2 * len(head) + above + side[1] + below + legend
        for head, legend in zip(heads, legends, strict=True)
    ]
    said = wrapped(caption, width)
    height = sum(heights) + LINE * len(said) + 0.4
    with style():
        figure, top = Figure((width, height)), height - 0.1
        for head, (_, panels), legend, tall in zip(heads, lines, legends, heights, strict=True):
            text = "\n".join(head)
            figure.text(0.15 / width, top / height, text, va="top", weight="bold")
            bottom = top - tall + legend + below
            for i, panel in enumerate(panels):
                x = left + i * (left + side[0] + right)
                axes = figure.add_axes(fractions((x, bottom, *side), width, height))
                handles = panel.draw(axes)
                axes.set_title(short_names([panel.title])[0])
                if handles:
                    place = ((x - 0.55) / width, (bottom - below) / height)
                    shown = figure.legend(
                        handles, [str(j) for j in range(len(handles))], loc="upper left",
                        bbox_to_anchor=place, borderaxespad=0, handlelength=2.6, labelspacing=0.25,
                        fontsize=9,
                    )  # fmt: skip
                    for text, name in zip(shown.get_texts(), panel.names, strict=True):
                        text.set_text(name)  # matplotlib would leave out names that begin with _
            top -= tall
        write(figure, said, LINE * len(said) + 0.15)
        return png(figure)


def _curves(
    curves: Sequence[Curve], panel: Callable[[Axes, Sequence[Curve]], list], caption: str,
    below: float = 0.6,
) -> bytes:  # fmt: skip
    """Lines are models where there are several, else qualities."""
    several = len({c.place.model for c in curves}) > 1
    rows = []
    for data in dict.fromkeys(c.place.data for c in curves):
        panels = []
        for level in dict.fromkeys(c.place.level for c in curves):
            here = [c for c in curves if (c.place.data, c.place.level) == (data, level)]
            names = short_names([c.place.model if several else c.place.quality for c in here])
            said = [
                f"{name}: AUC {c.auc}, n {c.n_real}/{c.n_fake}"
                for name, c in zip(names, here, strict=True)
            ]

            draw = partial(panel, here=here)
            panels.append(Panel(draw, said, f"{level} level"))
        rows.append(Row(_head("" if several else curves[0].place.model, data), panels))
    return _sheet(rows, caption, side=(3.6, 3.6), most=2, below=below)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, i: int) -> object:
    """A curve that colour, dashes and shape tell from the others."""
    return axes.plot(
        x, y, color=COLOURS[i % MOST_LINES], ls=DASHES[i % MOST_LINES], lw=1.6,
        marker=SHAPES[i % len(SHAPES)], ms=5, markevery=_even(x, y),
    )[0]  # fmt: skip


def _even(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Vertices spread evenly along the curve, to be marked."""
    along = np.r_[0, np.cumsum(np.hypot(np.diff(x), np.diff(y)))]
    marks = np.linspace(0, along[-1], N_MARKS + 2)[1:-1]
    return sorted(set(np.searchsorted(along, marks).tolist()))


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(1, counts.sum())


def _head(model: str, data: str, level: str = "") -> str:
    names = short_names([name for name in (model, data) if name], 60)
    return " on ".join(names) + (f", {level} level" if level else "")
