"""A paper's table beside ours, on a terminal and as Markdown: up to five lines for each model."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dfdetect.errors import printable

WORDS = {
    "finished": "-", "failed": "failed", "begun": "begun", "not begun": "to do",
    "lacks data": "no data",
}  # fmt: skip
"""What stands in the place of a number that there is not."""
SCALE_NOTE = "smoke scale: tiny networks, two steps, few videos; the numbers mean nothing"


def tables_table(tables) -> RenderableType:
    """What can be reproduced, and which data sets it needs."""
    rows = Table()
    for heading in ("name", "reproduces", "data sets"):
        rows.add_column(heading, overflow="fold")
    for table in tables:
        rows.add_row(table.name, Text(table.reproduces), ", ".join(table.data))
    return rows


def plan_table(result) -> RenderableType:
    """How far each cell that can be trained has come."""
    rows = Table()
    for heading in ("cell", "status", "run and test"):
        rows.add_column(heading, overflow="fold")
    for value in result.values:
        if value.evals:
            done = f"{value.status}: {value.reason}" if value.reason else value.status
            tests = "\n".join(name.removeprefix("eval/") for name in value.evals)
            rows.add_row(printable(value.name), printable(done), printable(tests))
    head = Text(f"{result.table.name}: {printable(result.table.reproduces)}")
    return Group(head, rows, *(Text(printable(line)) for line in result.lacking.values()))


class _Line(NamedTuple):
    """What stands in a line of one model, and an entry for each heading."""

    what: str
    entries: list[str]


def reproduction_table(result) -> RenderableType:
    """The paper's numbers, ours with their interval, and the difference, below each model's name:
    seven data sets and their mean fit beside each other into 80 columns."""
    headings = [printable(heading) for heading in result.table.headings]
    models = list(_models(result))
    lines = [line.entries for _, of_model in models for line in of_model]
    widths = [max(map(len, column)) + 2 for column in zip(headings, *lines, strict=True)]

    def row(what: str, entries: Sequence[str]) -> str:
        return f"  {what:5}" + "".join(e.rjust(w) for e, w in zip(entries, widths, strict=True))

    text = Text(no_wrap=True, overflow="ignore")
    text.append(row("", headings) + "\n")
    for model, of_model in models:
        text.append(model + "\n", "bold")
        text.append("".join(row(*line).rstrip() + "\n" for line in of_model))
    head = Text(f"{result.table.name}: {printable(result.table.reproduces)}")
    return Group(head, Text(_about(result)), Text(), text, *map(Text, _remarks(result)))


def reproduction_markdown(result) -> str:
    """The same as a document, with the pictures."""
    headings = [printable(heading) for heading in result.table.headings]
    lines = [f"# {result.table.name}", "", printable(result.table.reproduces), "", _about(result)]
    lines += ["", _row(["model", "", *headings]), "|---|---|" + "---:|" * len(headings)]
    for model, of_model in _models(result):
        lines += [
            _row(["" if i else model, line.what, *line.entries])
            for i, line in enumerate(of_model)
        ]  # fmt: skip
    lines += ["", *(f"* {remark}" for remark in _remarks(result))]
    pictures = [name for name in result.files if name.endswith(".png")]
    lines += [f"\n![{name}](<{name}>)" for name in pictures]
    return "\n".join(lines) + "\n"


def _row(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"


def _about(result) -> str:
    """What the numbers are and where they were taken."""
    table = result.table
    unit = "in percent" if table.unit == "percent" else "as fractions"
    intervals = "from .. to: the middle 95 % of a bootstrap of videos"
    smoke = f"; {SCALE_NOTE}" if result.scale == "smoke" else ""
    return f"{table.level} level, {table.split} split, {unit}; {intervals}{smoke}"


def _models(result) -> Iterator[tuple[str, list[_Line]]]:
    """Each model and its lines: the paper's numbers; of those trained here ours below."""
    digits = 2 if result.table.unit == "percent" else 3
    for _, of_row in groupby(result.values, key=lambda value: value.row):
        values = list(of_row)
        lines = [_line("paper", [v.paper for v in values], f".{digits}f")]
        if values[0].status in ("quoted", "not available here"):
            yield f"{printable(values[0].model)} ({values[0].status})", lines
            continue
        ours = _line("ours", [v.ours for v in values], f".{digits}f")
        words = [WORDS[v.status] for v in values]
        told = [word if v.ours is None else entry
                for word, v, entry in zip(words, values, ours.entries, strict=True)]  # fmt: skip
        lines.append(_Line("ours", told))
        if any(v.low is not None for v in values):
            lines.append(_line("from", [v.low for v in values], f".{digits - 1}f", ""))
            lines.append(_line("to", [v.high for v in values], f".{digits - 1}f", ""))
        if any(v.difference is not None for v in values):
            lines.append(_line("diff", [v.difference for v in values], f"+.{digits}f", ""))
        yield printable(values[0].model), lines


def _line(what: str, numbers: Sequence[float | None], form: str, none: str = "-") -> _Line:
    return _Line(what, [none if n is None else f"{n:{form}}" for n in numbers])


def _remarks(result) -> Iterator[str]:
    """What each column's data and n are, what failed or is lacking, what the paper leaves open."""
    yield from (printable(note) for note in result.table.notes)
    if any(v.status == "quoted" for v in result.values):
        yield "Quoted rows are from others' weights or papers, not trained like the other rows."
    told: dict[str, None] = {}
    for value in result.values:
        if value.n_real is not None:
            told[f"{value.column}: n {value.n_real} real, {value.n_fake} fake"] = None
        told |= dict.fromkeys(f"{value.model}: {warning}" for warning in value.warnings)
        if value.status == "failed":
            told[f"{value.name} failed: {value.reason}"] = None
        elif value.status == "finished" and value.ours is None and value.reason:
            told[f"{value.name}: {value.reason}"] = None
    yield from map(printable, told)
    yield from map(printable, result.lacking.values())
