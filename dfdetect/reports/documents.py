"""Tables as documents: one model of a table, on a terminal and as Markdown, LaTeX, CSV and JSON.

What strangers named (models, folders, manipulations) goes through `printable`, then through the
escapes of each format, so that no name changes a document.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from dfdetect.errors import cell as csv_cell
from dfdetect.errors import printable

KEYS = ("metric", "dataset", "corruption", "quality", "model")
"""Headings of columns that say what a row is."""
LATEX_HEAD = "% \\usepackage{booktabs}; names beyond ASCII need LuaLaTeX or XeLaTeX\n"


class Number(NamedTuple):
    """A figure and its 95% interval; `value` None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """As 0.873 [.84, .90]; a dash for none."""
        if self.value is None:
            return "-"
        text = f"{self.value + 0.0:.3f}"
        if self.low is None or self.high is None:
            return text
        low, high = (f"{bound + 0.0:.2f}".removeprefix("0") for bound in (self.low, self.high))
        return f"{text} [{low}, {high}]"


@dataclass(frozen=True)
class Table:
    """`rows` hold as many entries as there are `headings`, of which the first `n_keys` say what a
    row is and are among KEYS. A change in the first column begins a new part. `level`, `split` and
    `quality` hold for all of it, `notes` are sentences below it."""

    title: str
    level: str
    split: str
    quality: str
    n_keys: int
    headings: tuple[str, ...]
    rows: tuple[tuple[str | Number, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """Where its numbers were taken."""
        return f"{self.level} level, {self.split} split, {self.quality}"

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title, "level": self.level, "split": self.split, "quality": self.quality,
            "headings": self.headings,
            "rows": [[e._asdict() if isinstance(e, Number) else e for e in r] for r in self.rows],
            "notes": self.notes,
        }  # fmt: skip

    def parts(self) -> Iterator[tuple[tuple[str | Number, ...], bool]]:
        """Each row, and whether it begins a new part, if any part has several rows."""
        first = [row[0] for row in self.rows]
        several = len(set(first)) < len(first)
        for i, row in enumerate(self.rows):
            yield row, several and i > 0 and row[0] != first[i - 1]


# --- the terminal ------------------------------------------------------------------------------


def on_terminal(tables: Sequence[Table]) -> RenderableType:
    return Group(*(part for table in tables for part in _rich(table)))


def _rich(table: Table) -> Iterator[RenderableType]:
    yield Text(f"{printable(table.title)}: {printable(table.about)}")
    shown = RichTable()
    for i, heading in enumerate(table.headings):
        is_key = i < table.n_keys
        shown.add_column(
            Text(printable(heading)), justify="left" if is_key else "right", overflow="fold"
        )
    for row, begins in table.parts():
        if begins:
            shown.add_section()
        shown.add_row(*(Text(printable(entry)) for entry in row))
    yield shown
    yield Text("\n".join(map(printable, table.notes)) + "\n")


# --- Markdown ----------------------------------------------------------------------------------


def as_markdown(title: str, tables: Sequence[Table]) -> str:
    parts = [f"# {markdown(title)}"]
    for table in tables:
        rule = ["---"] * table.n_keys + ["---:"] * (len(table.headings) - table.n_keys)
        lines = [[markdown(heading) for heading in table.headings], rule]
        lines += [[markdown(entry) for entry in row] for row in table.rows]
        parts += [
            f"## {markdown(table.title)}",
            f"{markdown(table.about[:1].upper() + table.about[1:])}.",
            "\n".join(f"| {' | '.join(line)} |" for line in lines),
            "\n".join(f"- {markdown(note)}" for note in table.notes),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(value: object) -> str:
    """Text that Markdown, and the HTML inside it, takes for nothing but text."""
    text = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


# --- LaTeX -------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "[": "{[}", "*": "{*}",
}  # fmt: skip
"""Beside what is special everywhere, what is so after a line's end or beside its like."""


def as_latex(tables: Sequence[Table]) -> str:
    """A table environment each, with booktabs' rules."""
    return LATEX_HEAD + "\n".join("\n".join(_latex(table)) for table in tables)


def _latex(table: Table) -> Iterator[str]:
    notes = " ".join(latex(note) for note in table.notes)
    n_numbers = len(table.headings) - table.n_keys
    yield r"\begin{table}"
    yield r"\centering"
    yield rf"\caption{{{latex(table.title)}: {latex(table.about)}. {notes}}}"
    yield rf"\begin{{tabular}}{{{'l' * table.n_keys}{'r' * n_numbers}}}"
    yield r"\toprule"
    yield _latex_row(table.headings)
    yield r"\midrule"
    for row, begins in table.parts():
        if begins:
            yield r"\midrule"
        yield _latex_row(row)
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"
    yield ""


def _latex_row(entries: Sequence[object]) -> str:
    return f"{' & '.join(map(latex, entries))} \\\\"


def latex(value: object) -> str:
    """Text with every character that means something to LaTeX escaped."""
    return "".join(_LATEX.get(char, char) for char in printable(value))


# --- CSV ---------------------------------------------------------------------------------------

COLUMNS = (
    "table", "title", "level", "split", "evaluated", *KEYS, "column", "value", "low", "high", "text"
)  # fmt: skip


def as_csv(tables: Sequence[Table]) -> str:
    """A line for each entry, its number in full; `text` holds what is no number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for number, table in enumerate(tables, start=1):
        place = {"table": number, "title": csv_cell(table.title), "level": table.level,
                 "split": table.split, "evaluated": csv_cell(table.quality)}  # fmt: skip
        for row in table.rows:
            entries = list(zip(table.headings, row, strict=True))
            keys = {heading: csv_cell(str(key)) for heading, key in entries[: table.n_keys]}
            for heading, entry in entries[table.n_keys :]:
                found = entry._asdict() if isinstance(entry, Number) else {"text": csv_cell(entry)}
                writer.writerow(place | keys | {"column": csv_cell(heading)} | found)
    return text.getvalue()
