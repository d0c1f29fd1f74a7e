"""Cells of one or several models -> tables shaped like the papers': models as rows, datasets,
qualities or manipulations as columns.

No figure is set in bold: a best of its column means nothing where intervals overlap.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dfdetect.cells import ALL, MEAN, POOLED, UNSEEN, WORST, Cell
from dfdetect.quality import ordered
from dfdetect.reports.documents import Number, Table

MOST_COLUMNS = 6
"""Columns of numbers in a table; of more, a further table."""
LEVELS = ("video", "track", "frame")
SUMMARIES = (MEAN, POOLED, WORST)
RANKING = {"auc": "AUC", "eer": "EER", "accuracy": "ACC"}
OPERATING = {
    "ap": "AP", "balanced_accuracy": "balanced ACC",
    "tpr_at_1": "TPR at 1% FPR", "tpr_at_5": "TPR at 5% FPR",
}  # fmt: skip
PROBABILITY = {
    "brier": "Brier", "cllr": "Cllr (bits)", "min_cllr": "min-Cllr (bits)", "ece": "ECE"
}  # fmt: skip
PARTS = {"ranking": RANKING, "operating points": OPERATING, "as probabilities": PROBABILITY}
COUNTS = "n real/fake"

Models = Mapping[str, Any]
"""What eval found of each model (an EvalResult), by the name it has in the tables."""


class _Column(NamedTuple):
    """Its heading, the cell of a row (quality, model) in it, and of a cell whether training saw its
    kind."""

    heading: str
    cell: Callable[[str, str], Cell | None]
    seen: Callable[[Cell], bool | None] = lambda cell: None

    def is_new(self, quality: str, model: str) -> bool:
        """Whether the model never trained on it."""
        cell = self.cell(quality, model)
        return cell is not None and self.seen(cell) is False


class _Folder(NamedTuple):
    """All cells of one folder at one level, whatever the model."""

    data: str
    split: str
    level: str
    by_place: Mapping[tuple[str, str, str, str], Cell]
    """By model, quality, manipulation and faces."""

    def values(self, place: int) -> list[str]:
        return list(dict.fromkeys(key[place] for key in self.by_place))

    @property
    def manipulations(self) -> list[str]:
        """Single ones, without what sums them up."""
        return [m for m in self.values(2) if m not in (UNSEEN, ALL, *SUMMARIES)]

    @property
    def together(self) -> str:
        """What the cells of all manipulations are of, in words."""
        return (
            self.manipulations[0] if len(self.manipulations) == 1 else "all manipulations together"
        )

    @property
    def qualities(self) -> list[str]:
        return ordered([q for q in self.values(1) if q not in SUMMARIES])

    def overall(self, model: str, faces: str = ALL) -> Cell | None:
        """The cell of all manipulations and of what stands for all qualities of the model."""
        found = {q: c for (m, q, *place), c in self.by_place.items()
                 if m == model and place == [ALL, faces]}  # fmt: skip
        return found.get(POOLED) or next(iter(found.values()), None)

    def at(self, model: str, quality: str, manipulation: str) -> Cell | None:
        return self.by_place.get((model, quality, manipulation, ALL))


def tables_of(models: Models) -> list[Table]:
    """Of each level: all folders side by side; of each folder its qualities (rank, operating
    points, probabilities), its manipulations and its sizes of faces, where there are several. Then
    corruptions, what calibration changes, and how much was scored.

    Tracks have tables only where some video has several.
    """
    cells = [cell for result in models.values() for cell in result.cells]
    places = dict.fromkeys((c.split, c.level) for c in cells)
    tables: list[Table] = []
    for split, level in sorted(places, key=lambda place: LEVELS.index(place[1])):
        folders = [
            _Folder(data, split, level, {
                (model, c.quality, c.manipulation, c.faces): c
                for model, result in models.items() for c in result.cells
                if (c.data, c.split, c.level) == (data, split, level)
            })
            for data in dict.fromkeys(c.data for c in cells if c.split == split)
        ]  # fmt: skip
        single = [folder for folder in folders if folder.data not in SUMMARIES]
        if level == "track" and not any(_has_more_tracks(f, cells) for f in single):
            continue
        if len(single) > 1:
            tables += _by_folder(folders, list(models))
        for folder in single:
            tables += _of_folder(folder, list(models))
    return [*tables, *_robustness(models), *_calibration(models), *_coverage(models)]


def _has_more_tracks(folder: _Folder, cells: Sequence[Cell]) -> bool:
    n_videos = {
        (c.quality, c.manipulation, c.faces): (c.n_real, c.n_fake)
        for c in cells if (c.data, c.split, c.level) == (folder.data, folder.split, "video")
    }  # fmt: skip
    return any(
        (c.n_real, c.n_fake) != n_videos.get(place[1:]) for place, c in folder.by_place.items()
    )


# --- tables ------------------------------------------------------------------------------------


def _by_folder(folders: Sequence[_Folder], models: Sequence[str]) -> Iterator[Table]:
    columns = [_Column(f.data, lambda _, model, f=f: f.overall(model)) for f in folders]
    qualities = list(dict.fromkeys(quality for f in folders for quality in f.qualities))
    title = "By dataset, all manipulations together"
    yield from _grid(folders[0], title, _pooled(qualities), RANKING, [""], models, columns)


def _of_folder(folder: _Folder, models: Sequence[str]) -> Iterator[Table]:
    qualities = [*folder.qualities, *(q for q in SUMMARIES if q in folder.values(1))]
    by_quality = [
        _Column(q, lambda _, model, q=q: folder.at(model, q, ALL), lambda c: c.quality_seen)
        for q in qualities
    ]
    several = f"at {', '.join(folder.qualities)}"
    for what, metrics in PARTS.items():
        title = f"{folder.data} by quality, {what}, {folder.together}"
        yield from _grid(folder, title, several, metrics, [""], models, by_quality)
    summed = [m for m in (UNSEEN, *SUMMARIES, ALL) if m in folder.values(2)]
    columns = [
        _Column(m, lambda q, model, m=m: folder.at(model, q, m), lambda c: c.seen_in_training)
        for m in [*folder.manipulations, *(summed if len(folder.manipulations) > 1 else [])]
    ]
    rows = [*folder.qualities, *([POOLED] if POOLED in folder.values(1) else [])]
    yield from _grid(
        folder, f"{folder.data} by manipulation", several, RANKING, rows, models, columns
    )
    strata = [faces for faces in folder.values(3) if faces != ALL]
    if strata:
        columns = [
            _Column(f, lambda _, model, f=f: folder.overall(model, f)) for f in (*strata, ALL)
        ]
        title = f"{folder.data} by width of the face in its source, {folder.together}"
        pooled = _pooled(folder.qualities)
        yield from _grid(folder, title, pooled, RANKING, [""], models, columns)


def _pooled(qualities: Sequence[str]) -> str:
    return f"{', '.join(qualities)} pooled" if len(qualities) > 1 else f"at {qualities[0]}"


def _robustness(models: Models) -> Iterator[Table]:
    """AUC against severity: qualities are rows, models columns."""
    points = {
        (p.split, p.level, p.data, p.kind, p.quality, model): p
        for model, result in models.items() if result.robustness
        for p in result.robustness.points
    }  # fmt: skip
    names = list(dict.fromkeys(place[-1] for place in points))
    for split, level, data in dict.fromkeys(place[:3] for place in points):
        here = {place[3:]: p for place, p in points.items() if place[:3] == (split, level, data)}
        new = {(kind, quality) for (kind, quality, _), p in here.items() if p.seen == "no"}
        rows = []
        for kind, quality in dict.fromkeys(place[:2] for place in here):
            found = [here.get((kind, quality, name)) for name in names]
            numbers = [Number(p.auc, p.low, p.high) if p else Number(None) for p in found]
            rows.append((kind, quality + " *" * ((kind, quality) in new), *numbers))
        n = {name: f"{name} {p.n_real}/{p.n_fake}" for (*_, name), p in here.items()}
        never = ["* a model here never trained on it, nor augmented by it."] if new else []
        yield Table(
            title=f"{data} by corruption, AUC, all manipulations together",
            level=level,
            split=split,
            quality="made of the raw crops",
            n_keys=2,
            headings=("corruption", "quality", *names),
            rows=tuple(rows),
            notes=(
                f"n: real/fake {level}s, {', '.join(n.values())}.",
                "In brackets: the middle 95% of a bootstrap that draws whole videos.",
                *never,
            ),
        )


def _calibration(models: Models) -> Iterator[Table]:
    """Before and after, where a model is calibrated."""
    for split in _splits(models, "calibration"):
        found = [
            (model, c)
            for model, result in models.items()
            for c in result.calibration
            if c.split == split and any(one.after for one in result.calibration)
        ]
        rows = [
            (word, c.data, c.quality, model, f"{c.n_real}/{c.n_fake}",
             Number(getattr(c.before, key)), Number(c.after and getattr(c.after, key)))
            for key, word in PROBABILITY.items()
            for model, c in found
        ]  # fmt: skip
        if rows:
            yield Table(
                title="Scores as probabilities, before and after calibration",
                level="video",
                split=split,
                quality="at each quality",
                n_keys=4,
                headings=("metric", "dataset", "quality", "model", COUNTS, "before", "after"),
                rows=tuple(rows),
                notes=("Both classes weigh the same.",),
            )


def _coverage(models: Models) -> Iterator[Table]:
    """How many inputs have a score, and the figures if the model were wrong about all others."""
    for split in _splits(models, "coverage"):
        found = [(m, c) for m, r in models.items() for c in r.coverage if c.split == split]
        counts = [
            (c.data, model, word, *(str(n) for n in vars(inputs).values()))
            for model, c in found
            for word, inputs in (("real", c.real), ("fake", c.fake))
        ]
        yield Table(
            title="How much was scored",
            level="video",
            split=split,
            quality="at whatever quality",
            n_keys=2,
            headings=("dataset", "model", "class", "inputs", "scored", "no face", "unreadable"),
            rows=tuple(counts),
            notes=("Figures are of what was scored.",),
        )
        worst = [
            (c.data, one.quality, model, Number(one.auc), Number(one.eer))
            for model, c in found if any(c.n_failed)
            for one in c.worst_case
        ]  # fmt: skip
        if worst:
            yield Table(
                title="With what has no score counted as the worst case",
                level="video",
                split=split,
                quality="at each quality",
                n_keys=3,
                headings=("dataset", "quality", "model", "AUC", "EER"),
                rows=tuple(worst),
                notes=("As if a real one scored above all others, and a fake one below.",),
            )


def _splits(models: Models, of: str) -> list[str]:
    return list(dict.fromkeys(c.split for r in models.values() for c in getattr(r, of)))


class _Line(NamedTuple):
    """A row's quality ("": none is said) and model."""

    quality: str
    model: str


def _grid(
    folder: _Folder, title: str, quality: str, metrics: Mapping[str, str],
    rows: Sequence[str], models: Sequence[str], columns: Sequence[_Column],
) -> Iterator[Table]:  # fmt: skip
    """A part for how many there were and for each metric, in it a row for each of the qualities
    `rows` and each model; as many tables as `columns` take."""
    if not columns:
        return
    lines = [_Line(row, model) for row in rows for model in models]
    keys = ("metric", "quality", "model") if len(rows) > 1 else ("metric", "model")
    n_tables = -(-len(columns) // MOST_COLUMNS)
    width = -(-len(columns) // n_tables)
    for i in range(n_tables):
        shown = columns[i * width : (i + 1) * width]
        entries = [
            (COUNTS, *line, *counts) for line, counts in _counts(lines, shown)
        ] + [
            (word, *line, *(_number(column.cell(*line), key) for column in shown))
            for key, word in metrics.items()
            for line in lines
        ]  # fmt: skip
        never = {
            column.heading: models_of
            for column in shown
            if (models_of := {line.model for line in lines if column.is_new(*line)})
        }
        yield Table(
            title=title + (f" ({i + 1} of {n_tables})" if n_tables > 1 else ""),
            level=folder.level,
            split=folder.split,
            quality=quality,
            n_keys=len(keys),
            headings=(*keys, *(c.heading + " *" * (c.heading in never) for c in shown)),
            rows=tuple(e if len(rows) > 1 else (e[0], *e[2:]) for e in entries),
            notes=tuple(_notes(folder, metrics, lines, shown, never)),
        )


def _counts(
    lines: Sequence[_Line], columns: Sequence[_Column]
) -> Iterator[tuple[_Line, tuple[str, ...]]]:
    """How many reals and fakes each number is of; lines that agree are one."""
    by_counts: dict[tuple[str, ...], list[_Line]] = {}
    for line in lines:
        cells = [column.cell(*line) for column in columns]
        counts = tuple(f"{c.n_real}/{c.n_fake}" if c else "-" for c in cells)
        by_counts.setdefault(counts, []).append(line)
    models = {line.model for line in lines}
    for counts, same in by_counts.items():
        qualities, names = (dict.fromkeys(words) for words in zip(*same, strict=True))
        name = "each" if len(models) > 1 and set(names) == models else ", ".join(names)
        yield _Line(", ".join(qualities), name), counts


def _number(cell: Cell | None, metric: str) -> Number:
    if cell is None:
        return Number(None)
    return Number(getattr(cell, metric), *cell.intervals.get(metric, (None, None)))


def _notes(
    folder: _Folder, metrics: Mapping[str, str], lines: Sequence[_Line],
    columns: Sequence[_Column], never: Mapping[str, set[str]],
) -> Iterator[str]:  # fmt: skip
    found = [(line, c) for line in lines for col in columns if (c := col.cell(*line))]
    summed = {c.quality for _, c in found} & set(SUMMARIES)
    again = "; pooled counts each once per quality, mean and worst those of one" if summed else ""
    yield f"n: real/fake {folder.level}s{again}."
    if any(metric in c.intervals for _, c in found for metric in metrics):
        yield "In brackets: the middle 95% of a bootstrap that draws whole videos."
    if {"accuracy", "balanced_accuracy"} & set(metrics):
        thresholds = {line.model: f"{line.model} {c.threshold:.3f}" for line, c in found}
        yield f"ACC at the threshold that val chose: {', '.join(thresholds.values())}."
    if never:
        who = {model for models in never.values() for model in models}
        some = "" if len(who) == len({line.model for line in lines}) else f" by {', '.join(who)}"
        yield f"* never trained on{some}."
    if reasons := {c.reason: None for _, c in found if c.reason}:
        yield f"Empty: {'; '.join(reasons)}."
