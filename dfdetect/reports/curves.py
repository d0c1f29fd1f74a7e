"""Robustness curves as PNG: AUC against the severity of a corruption, what robustness.csv holds."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dfdetect.corruptions import AUGMENTED, TRAINED, UNSEEN
from dfdetect.quality import KINDS
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
from dfdetect.robustness import Point, Robustness

AXES = {
    "crf": "CRF of H.264, the crop alone",
    "jpeg": "JPEG quality",
    "scale": "size before enlarging, share of the side",
    "blur": "sigma of the blur, px of the stored crop",
    "noise": "standard deviation of the noise, of 0 to 255",
}
HATCHES = {TRAINED: "////", AUGMENTED: "...."}
LEGEND = {TRAINED: "trained on", AUGMENTED: "an augmentation of the training"}
SIDE = (3.5, 2.7)
"""Width and height of a panel, inches."""
MOST_ACROSS = 3
MOST_TICKS = 8


def draw_curves(found: Robustness, model: str) -> bytes:
    """A panel for each corruption, a row of them for each folder: AUC at video and at frame level
    with its 95 % interval, from raw on the left to the worst; what training saw is hatched."""
    points = found.points
    folders = list(dict.fromkeys(p.data for p in points))
    kinds = list(dict.fromkeys(p.kind for p in points))
    n_rows = -(-len(kinds) // MOST_ACROSS)
    across = -(-len(kinds) // n_rows)
    left, right, above, below = 0.75, 0.2, 0.3, 0.65
    width = max(across * (left + SIDE[0] + right), 7.5)
    tall = above + SIDE[1] + below
    first = points[0]
    said = wrapped(
        f"{first.split} split, all fakes against all reals: AUC and 95 % interval (videos drawn "
        "anew). From the left, raw crops, to the worst on the right; each level is made of the raw "
        "crop alone. H.264 of a crop alone is one intra-coded picture, not a video at this CRF. "
        f"Hatched: what {short_names([model])[0]} saw in training (c23 counts as crf23).",
        width,
    )
    legend_tall = 2.6 * LINE
    height = len(folders) * (n_rows * tall + 1.6 * LINE) + legend_tall + LINE * len(said) + 0.4
    known = [value for p in points for value in (p.auc, p.low) if value is not None]
    lowest = min(0.45, *known) - 0.03
    with style():
        figure, top = Figure((width, height)), height - 0.1
        handles: dict[str, object] = {}
        for folder, name in zip(folders, short_names(folders), strict=True):
            head = f"{name}, real/fake: {_counts([p for p in points if p.data == folder])}"
            figure.text(0.15 / width, top / height, head, va="top", weight="bold")
            top -= 1.6 * LINE
            for i, kind in enumerate(kinds):
                if i and not i % across:
                    top -= tall
                x = left + (i % across) * (left + SIDE[0] + right)
                box = (x, top - above - SIDE[1], *SIDE)
                axes = figure.add_axes(fractions(box, width, height))
                of_panel = [
                    c for _, c in found.curves() if (c[0].data, c[0].kind) == (folder, kind)
                ]
                handles |= _panel(axes, of_panel, found.seen[kind], lowest)
            top -= tall
        figure.legend(
            handles.values(), handles.keys(), loc="upper left", ncols=3,
            bbox_to_anchor=(0.15 / width, top / height), borderaxespad=0, handlelength=3.2,
        )  # fmt: skip
        write(figure, said, LINE * len(said) + 0.15)
        return png(figure)


def _panel(
    axes: Axes,
    of_panel: Sequence[Sequence[Point]],
    seen: Sequence[tuple[float, float, str]],
    lowest: float,
) -> dict[str, object]:
    """The curves of one corruption; returns what the legend explains, by its words."""
    first = of_panel[0]
    kind = KINDS[first[0].kind]
    x = _places(first)
    handles: dict[str, object] = {}
    for i, curve in enumerate(of_panel):
        auc, low, high = (
            np.array([getattr(p, name) for p in curve], float) for name in ("auc", "low", "high")
        )
        look = {"color": COLOURS[i], "ls": DASHES[i]}
        axes.fill_between(x, low, high, color=COLOURS[i], alpha=0.15, lw=0)
        for bound in (low, high):
            axes.plot(x, bound, lw=0.6, **look)
        (line,) = axes.plot(x, auc, marker=SHAPES[i], ms=5, lw=1.6, **look)
        handles[f"{curve[0].level} level"] = line
    handles["chance"] = axes.axhline(0.5, color="#555555", lw=0.9, ls=(0, (1, 2)))
    margin = 0.025 * (max(x) - min(x))
    if first[0].seen != UNSEEN:  # raw
        seen = [*seen, (x[0], x[0], first[0].seen)]
    for low, high, how in seen:
        if high >= min(x) and low <= max(x):
            axes.axvspan(
                max(low, min(x)) - margin, min(high, max(x)) + margin, fill=False,
                hatch=HATCHES[how], ec="#bbbbbb", lw=0, zorder=0,
            )  # fmt: skip
            handles[LEGEND[how]] = Patch(fill=False, hatch=HATCHES[how], ec="#999999")
    step = -(-len(x) // MOST_TICKS)
    shown = [0, *range(len(x) - 1, 0, -step)]
    names = ["raw" if p.quality == "raw" else f"{p.severity:g}" for p in first]
    axes.set_xticks([x[i] for i in shown], [names[i] for i in shown])
    axes.set_xlim(min(x) - 2 * margin, max(x) + 2 * margin)
    if not kind.worse_upwards:
        axes.invert_xaxis()
    axes.set_ylim(lowest, 1.015)
    axes.set(xlabel=AXES[first[0].kind], ylabel="AUC", title=first[0].kind)
    axes.grid(axis="y", color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    return handles


def _counts(points: Sequence[Point]) -> str:
    of_level = {p.level: f"{p.n_real}/{p.n_fake} {p.level}s" for p in points}
    return ", ".join(of_level.values())


def _places(curve: Sequence[Point]) -> list[float]:
    """Where points lie on the axis; raw, where it has no level, one step before the mildest."""
    levels = [p.severity for p in curve if p.severity is not None]
    if len(levels) == len(curve):
        return levels
    step = (levels[-1] - levels[0]) / (len(levels) - 1) if len(levels) > 1 else 1.0
    return [levels[0] - step, *levels]
