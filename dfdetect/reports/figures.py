"""Figures as PNG: what eval's domains.csv and features.npz hold."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfdetect.domains import REAL, Confusion
from dfdetect.embedding import DIRECTIONS, Plane
from dfdetect.reports.drawing import (
    CHARACTER,
    COLOURS,
    LINE,
    LONGEST_NAME,
    SHAPES,
    fractions,
    png,
    short_names,
    style,
    wrapped,
    write,
)

REAL_SHAPE, REAL_COLOUR = "+", "#555555"
NEVER = "* never trained on"
PANEL_OF = {
    "whole": "whole: GAP(I_X)", "deepfake": "deepfake: GAP(I_df)", "domain": "domain: GAP(I_dom)"
}  # fmt: skip


def draw_confusions(confusions: Sequence[Confusion]) -> bytes:
    """A heat map for each folder, of all its qualities pooled: each row's percentages, the right
    answers framed, below it the mean of the diagonal, at each quality too."""
    folders: dict[str, list[Confusion]] = {}
    for confusion in confusions:
        folders.setdefault(confusion.data, []).append(confusion)
    pooled = [group[-1] for group in folders.values()]
    names = [*confusions[0].domains, *(m for c in pooled for m in c.manipulations)]
    names = list(dict.fromkeys(names))
    short = dict(zip(names, short_names(names), strict=True))
    columns = [short[name] for name in confusions[0].domains]
    cell_w, cell_h = 0.46, 0.34
    rows = {c.data: _row_names(c, short) for c in pooled}
    left = CHARACTER * max(len(name) for names in rows.values() for name in names) + 0.3
    left = max(left, 0.7 * CHARACTER * max(map(len, columns)) + 0.3)
    width = max(left + cell_w * len(columns) + 0.4, 7.5)
    below = 0.7 * CHARACTER * max(map(len, columns)) + 0.35
    captions = [wrapped(_diagonal(group), width) for group in folders.values()]
    heads = [wrapped(_place(group), width) for group in folders.values()]
    heights = [
        LINE * (len(head) + 2) + cell_h * len(c.manipulations) + below + LINE * len(caption) + 0.3
        for head, c, caption in zip(heads, pooled, captions, strict=True)
    ]
    with style():
        figure = Figure((width, sum(heights)))
        top = sum(heights)
        for c, head, caption, height in zip(pooled, heads, captions, heights, strict=True):
            tall = cell_h * len(c.manipulations)
            heat_top = top - LINE * (len(head) + 1.5)
            box = (left, heat_top - tall, cell_w * len(columns), tall)
            axes = figure.add_axes(fractions(box, width, sum(heights)))
            _heat(axes, c, rows[c.data], columns)
            write(figure, head, top - 0.1)
            write(figure, caption, top - height + LINE * len(caption) + 0.15)
            top -= height
        return png(figure)


def draw_plane(columns: Mapping[str, np.ndarray], plane: Plane, split: str) -> bytes:
    """A panel for each set of features, crops marked by manipulation; a second row of panels with
    the same places marked by quality, where there are several (QAD Fig. 5).

    `columns` are an Embedding's, of crops of one `split`.
    """
    side, gap = 4.3, 0.35
    panels = list(plane.places)
    width = max(7.5, gap + len(panels) * (side + gap))
    groups = [_by_manipulation(columns)]
    if len(set(columns["quality"])) > 1:
        groups.append(_by_quality(columns))
    any_never = (columns["seen_in_training"] == 0).any()
    folders = ", ".join(short_names(sorted(set(columns["data"]))))
    note = (
        "t-SNE keeps neighbours near each other; distances between clusters, their sizes and their "
        "places mean nothing, and crops of one video lie together whatever they are. "
        f"{folders}, {split} split, {len(columns['label'])} crops, principal components (up to "
        f"{DIRECTIONS}) first, perplexity {plane.perplexity:.3g}, seed {plane.seed}."
    )
    caption = wrapped(note + (f" {NEVER}, and hollow." if any_never else ""), width)
    per_line = [_legend_columns(group, width) for group in groups]
    legends = [LINE * 1.35 * -(-len(g) // n) + 0.15 for g, n in zip(groups, per_line, strict=True)]
    height = sum(legends) + len(groups) * (side + 0.5) + LINE * len(caption) + 0.3
    with style():
        figure, top = Figure((width, height)), height - 0.35
        for group, legend, n in zip(groups, legends, per_line, strict=True):
            for i, name in enumerate(panels):
                box = (gap + i * (side + gap), top - side, side, side)
                axes = figure.add_axes(fractions(box, width, height))
                handles = _scatter(axes, plane.places[name], group)
                axes.set_title(PANEL_OF[name])
            place = (gap / 2 / width, (top - side - 0.05) / height)
            legend_box = figure.legend(
                handles, [str(i) for i in range(len(group))], loc="upper left",
                bbox_to_anchor=place, ncols=n, borderaxespad=0, handletextpad=0.3, markerscale=1.4,
            )  # fmt: skip
            for text, (label, _, _) in zip(legend_box.get_texts(), group, strict=True):
                text.set_text(label)  # matplotlib would leave out names that begin with _
            top -= side + legend + 0.5
        write(figure, caption, LINE * len(caption) + 0.15)
        return png(figure)


# --- heat maps ---------------------------------------------------------------------------------


def _heat(axes: Axes, c: Confusion, rows: Sequence[str], columns: Sequence[str]) -> None:
    shares = c.shares()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, counts in enumerate(c.counts):
        for x, n in enumerate(counts):
            ink = "white" if shares[y, x] > 0.55 else "black" if n else "#aaaaaa"
            axes.text(x, y, f"{100 * shares[y, x]:.0f}", color=ink, ha="center", va="center")
        right = c.right(y)
        if right is not None:
            frame = Rectangle((right - 0.5, y - 0.5), 1, 1, fill=False, lw=1.6, zorder=3)
            axes.add_patch(frame).set_clip_on(False)


def _row_names(c: Confusion, short: Mapping[str, str]) -> list[str]:
    rows = zip(c.manipulations, c.seen_in_training, c.counts, strict=True)
    return [
        f"{short[name]}{' *' if seen is False else ''}  n {sum(counts)}"
        for name, seen, counts in rows
    ]


def _place(group: Sequence[Confusion]) -> str:
    last = group[-1]
    names = [c.quality for c in group if c.quality != "pooled"]
    pooled = " pooled" if len(names) > 1 else ""
    return (
        f"{short_names([last.data])[0]}, {last.split} split, {last.level} level, "
        f"{', '.join(names)}{pooled}: the domain (column) predicted for crops of a manipulation "
        "(row), % of the row"
    )


def _diagonal(group: Sequence[Confusion]) -> str:
    last = group[-1]
    never = f" {NEVER}: no right answer." if False in last.seen_in_training else ""
    if last.mean_diagonal is None:
        return f"No diagonal: {last.reason}.{never}"
    n = sum(last.right(i) is not None for i, m in enumerate(last.manipulations) if m != REAL)
    by_quality = ", ".join(f"{c.quality} {c.mean_diagonal:.2f}" for c in group
                           if c.mean_diagonal is not None and c is not last)  # fmt: skip
    with_real = last.mean_diagonal_with_real
    return (
        f"Mean of the framed diagonal: {last.mean_diagonal:.2f} over {n} trained manipulations "
        f"(n {last.n_diagonal} crops)"
        + (
            f", {with_real:.2f} with real as one more (n {last.n_diagonal_with_real})"
            if with_real is not None
            else ""
        )
        + (f"; without real at {by_quality}" if by_quality else "")
        + f". Chance is {1 / len(last.domains):.2f}.{never}"
    )


# --- planes ------------------------------------------------------------------------------------

Group = list[tuple[str, np.ndarray, dict]]
"""Label in the legend, which crops bool [N], how they are drawn."""


def _by_manipulation(columns: Mapping[str, np.ndarray]) -> Group:
    """Reals as grey crosses, each trained manipulation with a filled shape, others hollow."""
    keys = list(zip(columns["data"], columns["label"], columns["manipulation"], strict=True))
    kinds = sorted(set(keys))
    folders = sorted(set(columns["data"]))
    several = len(folders) > 1
    short = (f"{name}: " if several else "" for name in short_names(folders, LONGEST_NAME // 2))
    folder = dict(zip(folders, short, strict=True))
    names = short_names(
        [folder[d] + m for d, _, m in kinds], LONGEST_NAME + several * LONGEST_NAME // 2
    )
    group: Group = []
    n_fakes = 0
    for kind, name in zip(kinds, names, strict=True):
        chosen = np.array([key == kind for key in keys])
        look: dict = {"marker": REAL_SHAPE, "color": REAL_COLOUR}
        if kind[1]:
            colour = COLOURS[n_fakes % len(COLOURS)]
            never = not columns["seen_in_training"][chosen].any()
            look = {"marker": SHAPES[n_fakes % len(SHAPES)], "edgecolors": colour,
                    "facecolors": "none" if never else colour}  # fmt: skip
            name += " *" if never else ""
            n_fakes += 1
        n_videos = len(set(columns["video_id"][chosen]))
        videos = "1 video" if n_videos == 1 else f"{n_videos} videos"
        group.append((f"{name} ({chosen.sum()} of {videos})", chosen, look))
    return group


def _by_quality(columns: Mapping[str, np.ndarray]) -> Group:
    """A shape for each quality, reals hollow and fakes filled."""
    group: Group = []
    for i, quality in enumerate(dict.fromkeys(columns["quality"])):
        for label, word in ((0, "real"), (1, "fake")):
            chosen = (columns["quality"] == quality) & (columns["label"] == label)
            colour = COLOURS[i % len(COLOURS)]
            look = {"marker": SHAPES[i % len(SHAPES)], "edgecolors": colour,
                    "facecolors": colour if label else "none"}  # fmt: skip
            group.append((f"{quality} {word} ({chosen.sum()})", chosen, look))
    return group


def _scatter(axes: Axes, places: np.ndarray, group: Group) -> list:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#999999")
    return [
        axes.scatter(*places[chosen].T, s=22, linewidths=0.9, alpha=0.8, **look)
        for _, chosen, look in group
    ]


def _legend_columns(group: Group, width: float) -> int:
    widest = CHARACTER * max(len(label) for label, _, _ in group) + 0.6
    return max(1, min(len(group), int(width / widest)))
