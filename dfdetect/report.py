"""report: what eval found of one or several models -> tables, figures with their data, one page.

All of it comes from what eval and sweep wrote; no network runs.
"""

import csv
import io
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from dfdetect.cells import ALL, MEAN, POOLED, WORST, Cell, entries_of
from dfdetect.errors import DfdetectError
from dfdetect.files import make_folder, write_whole
from dfdetect.metrics import roc
from dfdetect.predictions import Columns
from dfdetect.reports.documents import Number, Table, as_csv, as_latex, as_markdown
from dfdetect.reports.plots import (
    LEAST_RATE,
    MOST_LINES,
    Curve,
    HeatMap,
    Histogram,
    Line,
    Place,
    Reliability,
    curve_rows,
    draw_det,
    draw_heat_maps,
    draw_histograms,
    draw_reliability,
    draw_roc,
    draw_sizes,
    heat_rows,
    histogram_rows,
    reliability_rows,
    size_rows,
)
from dfdetect.reports.results_page import Figure, results_page
from dfdetect.reports.tabulation import tables_of
from dfdetect.resampling import Entries

FIGURES = ("roc", "det", "histograms", "reliability", "heatmap", "sizes")
"""Each is a .png and the .csv that it shows."""
FROM_EVAL = {
    "robustness.png": ("robustness.csv", "AUC against the severity of corruptions"),
    "domains.png": ("domains.csv", "What the domain head takes each manipulation for"),
    "tsne.png": ("features.npz", "t-SNE of pooled features"),
}
"""Figures that eval draws, the files of their data, and what they show."""
SWEEP = "sweep.csv"
MOST_VERTICES = 1000
"""Of a curve; of more, those spread evenly along it, half of them along its DET."""
N_BINS = 25
"""Of a histogram."""


class Sources(NamedTuple):
    """`results` are folders that eval wrote, among them those of the cells of `sweeps`."""

    results: list[Path]
    sweeps: list[Path]


class Report(NamedTuple):
    """`files` are names in `out`."""

    tables: list[Table]
    warnings: list[str]
    out: Path
    files: list[str]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "tables": [table.as_json() for table in self.tables],
            "warnings": self.warnings,
            "out": str(self.out),
            "files": self.files,
        }


def find_results(folders: Sequence[Path]) -> Sources:
    """Folders of results among `folders`, each of them eval's own or a sweep's.

    Errors: DfdetectError for a sweep of which no cell is measured, and a folder given twice.
    """
    results: list[Path] = []
    sweeps = []
    for folder in folders:
        if (folder / SWEEP).exists():
            sweeps.append(folder)
            names = dict.fromkeys(row["cell"] for row in _read(folder) if row["auc"])
            measured = [folder / name / "eval" for name in names]
            measured = [cell for cell in measured if cell.exists()]
            if not measured:
                raise DfdetectError(
                    f"{folder}: no cell of this sweep is measured yet",
                    "run `dfdetect sweep` again, which goes on",
                )
            results += measured
        else:
            results.append(folder)
    places = [folder.resolve() for folder in results]
    for i, folder in enumerate(results):
        if places[i] in places[:i]:
            raise DfdetectError(f"{folder}: is given twice", "name each folder of results once")
    return Sources(results, sweeps)


def report(
    results: Mapping[Path, Any], sweeps: Sequence[Path] = (), out: Path | None = None,
    command: Sequence[str] = (),
) -> Report:  # fmt: skip
    """Write tables, figures and the page of `results`, an EvalResult for each folder, into `out`
    (default: the first of the sweeps and folders); `command` is what makes this again.

    Errors: DfdetectError for an `out` that cannot be written.
    """
    out = out or (*sweeps, *results)[0]
    make_folder(out)
    models = {
        name: Measured(folder, result, result.predictions.folders())
        for name, (folder, result) in zip(_names(results), results.items(), strict=True)
    }
    several = len(models) > 1
    title = f"Results of {f'{len(models)} models' if several else next(iter(models))}"
    tables = tables_of({name: m.result for name, m in models.items()})
    warnings = [*_warnings(models), *_different_items(models)]
    drawn = list(_drawn(models, sweeps))
    figures = [figure for figure, _ in drawn]
    for name, m in models.items():
        figures += _of_eval(m.folder, f"{name}: " if several else "")
    facts = [_facts(name, m) for name, m in models.items()]
    commands = [*map(_eval_command, models.values()), *([shlex.join(command)] if command else [])]
    files: dict[str, str | bytes] = {
        "tables.md": as_markdown(title, tables),
        "tables.tex": as_latex(tables),
        "tables.csv": as_csv(tables),
        "report.html": results_page(title, facts, warnings, tables, figures, commands),
    }
    for figure, rows in drawn:
        files |= {figure.name: figure.png, figure.data: _csv(rows)}
    for name in {f"{stem}{ending}" for stem in FIGURES for ending in (".png", ".csv")} - set(files):
        (out / name).unlink(missing_ok=True)  # of an earlier report
    for name, content in files.items():
        write_whole(out / name, content)
    return Report(tables, warnings, out, list(files))


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# --- models ------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What eval found of a model: its EvalResult, and its predictions by folder of data."""

    folder: Path
    result: Any
    predictions: Mapping[str, Columns]


def _names(results: Mapping[Path, Any]) -> list[str]:
    """Names of the models, those of their folders where two models have one name."""
    names = [result.model["name"] for result in results.values()]
    folders = [folder.resolve() for folder in results]
    tags = [folder.parent.name if folder.name == "eval" else folder.name for folder in folders]
    for distinct in (names, tags):
        if len(set(distinct)) == len(distinct):
            return distinct
    return list(map(str, results))


def _warnings(models: Mapping[str, Measured]) -> Iterator[str]:
    """Those of eval, each once, of whom it is where it is not of all."""
    of_whom: dict[str, list[str]] = {}
    for name, m in models.items():
        for warning in m.result.warnings:
            of_whom.setdefault(warning, []).append(name)
    for warning, names in of_whom.items():
        yield warning if len(names) == len(models) else f"{', '.join(names)}: {warning}"


def _different_items(models: Mapping[str, Measured]) -> Iterator[str]:
    """Folders of which not all models scored the same crops."""
    items: dict[str, set[int]] = {}
    for m in models.values():
        table = m.result.predictions.table
        crops = zip(*(table[c].to_pylist() for c in ("data", "sample_id", "quality")), strict=True)
        by_data: dict[str, list] = {}
        for data, *crop in crops:
            by_data.setdefault(data, []).append(tuple(crop))
        for data, found in by_data.items():
            items.setdefault(data, set()).add(hash(frozenset(found)))
    for data, sets in items.items():
        if len(sets) > 1:
            yield (
                f"{data}: the models were not measured on the same crops; `dfdetect compare` takes "
                "those that they share"
            )


def _facts(name: str, m: Measured) -> dict[str, object]:
    """What a reader must know of a model and its data; the first is its name."""
    model = m.result.model
    written = datetime.fromtimestamp((m.folder / "predictions.parquet").stat().st_mtime, UTC)
    trained = model.get("trained_on", {}).get("manipulations")
    facts: dict[str, object] = {
        "name": name,
        "checkpoint": f"{model['name']}, {model['path']}",
        "checkpoint SHA-256": model["sha256"],
        "threshold": f"{model['threshold']:.4g}, chosen on val",
    }
    if trained is not None:
        facts["trained on"] = ", ".join(trained) or "no manipulation by name"
    for data, rows in m.predictions.items():
        n = [len(np.unique(rows.video.codes[rows.label == label])) for label in (0, 1)]
        facts[f"data {data}"] = (
            f"{_split([m])} split, {n[0]} real and {n[1]} fake videos or pictures "
            f"({len(rows.label)} scores) at {', '.join(rows.qualities)}"
        )
    facts["predictions written"] = f"{written:%Y-%m-%d %H:%M} UTC"
    return facts


def _eval_command(m: Measured) -> str:
    """What makes the results again; folders of data are known by name alone."""
    qualities = dict.fromkeys(q for rows in m.predictions.values() for q in rows.qualities)
    data = [word for name in m.predictions for word in ("--data", name)]
    return shlex.join(
        ["dfdetect", "eval", m.result.model["path"], *data, "--split", _split([m]), "--qualities",
         ",".join(qualities), "--out", str(m.folder)]
    )  # fmt: skip


def _split(models: Iterable[Measured]) -> str:
    return ", ".join(dict.fromkeys(c.split for m in models for c in m.result.cells))


# --- figures -----------------------------------------------------------------------------------


def _drawn(
    models: Mapping[str, Measured], sweeps: Sequence[Path]
) -> Iterator[tuple[Figure, list[Sequence[object]]]]:
    """Each figure, and the rows of the CSV that it shows."""
    shown = dict(list(models.items())[:MOST_LINES])
    more = "" if len(shown) == len(models) else f" The first {len(shown)} models are drawn."
    split = f"{_split(models.values())} split, all manipulations together"
    which = "each model at all its qualities pooled" if len(models) > 1 else "by quality"
    if curves := _curves(shown):
        said = f"{split}, {which}; n real/fake, in brackets the 95% interval of the AUC.{more}"
        title, caption = "ROC curves", f"True against false positives; {said}"
        figure = Figure("roc.png", "roc.csv", title, caption, draw_roc(curves, caption))
        yield figure, list(curve_rows(curves))
        title = "DET curves"
        caption = (
            f"Misses against false positives on normal deviate scales; {said} Rates beyond the "
            "panel lie on its edge."
        )
        figure = Figure("det.png", "det.csv", title, caption, draw_det(curves, caption))
        yield figure, list(curve_rows(curves, det=True))
    histograms = _histograms(shown)
    title = "Scores of each class"
    caption = (
        "Scores of videos, the mean of their crops as the network gives them, video level, "
        f"{split}; dotted: the threshold that val chose.{more}"
    )
    png = draw_histograms(histograms, caption)
    figure = Figure("histograms.png", "histograms.csv", title, caption, png)
    yield figure, list(histogram_rows(histograms))
    if found := _reliability(shown):
        title = "Reliability"
        caption = (
            f"The share of fakes among videos of a score, video level, {split}, both classes "
            "weighing the same: on the diagonal a score is P(fake) where half of the videos are "
            f"fake.{more}"
        )
        png = draw_reliability(found, caption)
        figure = Figure("reliability.png", "reliability.csv", title, caption, png)
        yield figure, list(reliability_rows(found))
    maps, lines = _of_sweeps(sweeps)
    bounds = "the 95% interval of a bootstrap of videos (of several seeds: mean and range)"
    if maps:
        title = "AUC over two options of a sweep"
        caption = (
            f"AUC, in brackets {bounds}; framed: the highest, which others may equal within their "
            "intervals."
        )
        figure = Figure("heatmap.png", "heatmap.csv", title, caption, draw_heat_maps(maps, caption))
        yield figure, list(heat_rows(maps))
    if lines:
        title = "AUC against the input's size"
        caption = f"AUC against the side of the network's input, with {bounds}."
        figure = Figure("sizes.png", "sizes.csv", title, caption, draw_sizes(lines, caption))
        yield figure, list(size_rows(lines))


def _of_eval(folder: Path, head: str) -> Iterator[Figure]:
    """Those that eval drew."""
    for name, (data, title) in FROM_EVAL.items():
        if (folder / name).exists():
            png = (folder / name).read_bytes()
            yield Figure(name, str(folder / data), head + title, "Drawn by eval.", png)


def _entries(rows: Columns, place: Place) -> Entries:
    """What was ranked there."""
    if place.quality != POOLED:
        rows = rows.where(rows.quality.is_(place.quality))
    return entries_of(rows, place.level)


def _overall(result: Any, data: str) -> dict[tuple[str, str], Cell]:
    """By level and quality the cells of all manipulations together; means and worst left out."""
    return {
        (c.level, c.quality): c
        for c in result.cells
        if (c.data, c.manipulation, c.faces) == (data, ALL, ALL) and c.quality not in (MEAN, WORST)
    }


def _curves(models: Mapping[str, Measured]) -> list[Curve]:
    """Of one model some qualities and all pooled; of several models what stands for all."""
    curves = []
    for name, m in models.items():
        for data, rows in m.predictions.items():
            cells = _overall(m.result, data)
            for level in ("video", "frame"):
                qualities = [quality for at, quality in cells if at == level]
                qualities = qualities[: MOST_LINES - 1] + qualities[MOST_LINES - 1 :][-1:]
                for quality in qualities[-1:] if len(models) > 1 else qualities:
                    cell = cells[level, quality]
                    if cell.auc is not None:
                        curves.append(_curve(Place(name, data, level, quality), rows, cell))
    return curves


def _curve(place: Place, rows: Columns, cell: Cell) -> Curve:
    entries = _entries(rows, place)
    fpr, tpr, threshold = roc(entries.rank, entries.label)
    if len(fpr) > MOST_VERTICES:
        deviates = (norm.ppf(np.clip(rate, LEAST_RATE, 1 - LEAST_RATE)) for rate in (fpr, tpr))
        kept = np.union1d(_spread(fpr, tpr), _spread(*deviates))
        fpr, tpr, threshold = fpr[kept], tpr[kept], threshold[kept]
    auc = Number(cell.auc, *cell.intervals.get("auc", (None, None)))
    return Curve(place, cell.n_real, cell.n_fake, auc, threshold, fpr, tpr)


def _spread(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Numbers of vertices evenly along a curve, half of MOST_VERTICES, its ends among them."""
    along = np.cumsum(np.hypot(np.diff(x, prepend=x[0]), np.diff(y, prepend=y[0])))
    return np.searchsorted(along, np.linspace(0, along[-1], MOST_VERTICES // 2))


def _histograms(models: Mapping[str, Measured]) -> list[Histogram]:
    edges = np.linspace(0, 1, N_BINS + 1)
    found = []
    for name, m in models.items():
        for data, rows in m.predictions.items():
            for quality in rows.qualities:
                place = Place(name, data, "video", quality)
                entries = _entries(rows, place)
                real, fake = (
                    np.histogram(entries.score[entries.label == y], edges)[0] for y in (0, 1)
                )
                found.append(Histogram(place, edges, real, fake, m.result.model["threshold"]))
    return found


def _reliability(models: Mapping[str, Measured]) -> list[Reliability]:
    found = []
    for name, m in models.items():
        for c in m.result.calibration:
            honesty = {"before": c.before} | ({"after": c.after} if c.after else {})
            bins = {when: h.bins for when, h in honesty.items()}
            error = {when: h.ece for when, h in honesty.items()}
            place = Place(name, c.data, c.level, c.quality)
            found.append(Reliability(place, c.n_real, c.n_fake, bins, error))
    return found


# --- sweeps ------------------------------------------------------------------------------------

Row = dict[str, str]
"""A line of sweep.csv."""


def _of_sweeps(sweeps: Sequence[Path]) -> tuple[list[HeatMap], list[Line]]:
    """Heat maps of those over two options with numbers, lines of those over the input's size."""
    maps, lines = [], []
    for folder in sweeps:
        rows = [row for row in _read(folder) if row["auc"]]
        names = list(rows[0])
        options = names[names.index("preset") + 1 : names.index("seed")]
        axes = [name for name in options if len(_numbers(rows, name)) > 1]
        for panel in _panels(rows):
            where = "{data}, {split} split, {level} level, {quality}".format(**panel[0])
            where = (
                f"{folder.resolve().name} on {where}, n {panel[0]['n_real']}/{panel[0]['n_fake']}"
            )
            if len(axes) == 2:
                maps += _maps(panel, axes, where)
            if "image_size" in axes:
                lines += _lines(panel, where)
    return maps, lines


def _read(folder: Path) -> list[Row]:
    """Errors: DfdetectError for a table that sweep did not write."""
    path = folder / SWEEP
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"cell", "preset", "seed", "auc"} - set(reader.fieldnames or ())
        if missing:
            raise DfdetectError(f"{path}: has no column {min(missing)}", "run the sweep again")
        return list(reader)


def _numbers(rows: Sequence[Row], option: str) -> list[float]:
    """The values of an axis, ascending; none if one of them is no number."""
    try:
        return sorted({float(row[option]) for row in rows})
    except ValueError:
        return []


def _panels(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one folder and level, at all qualities pooled or the only one; of trainings that
    differ in their seed only the mean."""
    for place in dict.fromkeys((r["data"], r["level"]) for r in rows):
        here = [r for r in rows if (r["data"], r["level"]) == place]
        qualities = {r["quality"] for r in here}
        quality = POOLED if POOLED in qualities else here[0]["quality"]
        here = [r for r in here if r["quality"] == quality]
        means = [r for r in here if not r["status"]]
        averaged = {r["cell"] for r in means}
        yield means + [r for r in here if r["status"] and _unseeded(r["cell"]) not in averaged]


def _unseeded(cell: str) -> str:
    return cell.partition(",seed=")[0]


def _rest(row: Row, options: Sequence[str]) -> str:
    """What tells a cell from others beside `options`: the rest of its name, or its preset."""
    names = [name for option in options for name in (option, option.rpartition(".")[2])]
    shorts = tuple(f"{name}=" for name in names)
    parts = [p for p in _unseeded(row["cell"]).split(",") if not p.startswith(shorts)]
    return ", ".join(parts) or Path(row["preset"]).stem


def _number(row: Row) -> Number:
    return Number(*(float(row[key]) if row[key] else None for key in ("auc", "low", "high")))


def _maps(rows: Sequence[Row], axes: Sequence[str], where: str) -> Iterator[HeatMap]:
    y, x = axes
    for rest in dict.fromkeys(_rest(row, axes) for row in rows):
        here = [row for row in rows if _rest(row, axes) == rest]
        found = {(float(row[x]), float(row[y])): _number(row) for row in here}
        xs, ys = _numbers(here, x), _numbers(here, y)
        auc = [[found.get((a, b), Number(None)) for a in xs] for b in ys]
        yield HeatMap(f"{rest}: {where}", x, y, xs, ys, auc)


def _lines(rows: Sequence[Row], where: str) -> Iterator[Line]:
    for rest in dict.fromkeys(_rest(row, ["image_size"]) for row in rows):
        found = {
            int(float(row["image_size"])): _number(row)
            for row in rows if _rest(row, ["image_size"]) == rest
        }  # fmt: skip
        sides = sorted(found)
        yield Line(where, rest, sides, [found[side] for side in sides])
