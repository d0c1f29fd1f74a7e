"""What eval found -> one HTML page: models and data, what is doubtful, tables, figures, commands.

It needs no network and no script, and all that strangers named goes through the gate of the scan's
page.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dfdetect import __version__
from dfdetect.errors import printable
from dfdetect.reports.documents import Number, Table
from dfdetect.reports.page import template


class Figure(NamedTuple):
    """A picture `png`, the file `name` it has beside the page, the file its `data` are in, what it
    shows (`title`), and how to read it (`caption`)."""

    name: str
    data: str
    title: str
    caption: str
    png: bytes


def results_page(
    title: str, models: Sequence[Mapping[str, object]], warnings: Sequence[str],
    tables: Sequence[Table], figures: Sequence[Figure], commands: Sequence[str],
) -> str:  # fmt: skip
    """`models` are facts of each, its name first; `commands` make the page again."""
    return template("results.html.j2").render(
        title=title,
        subtitle=f"dfdetect {__version__}",
        models=[list(model.items()) for model in models],
        warnings=warnings,
        tables=[_table(table) for table in tables],
        figures=[
            figure._asdict() | {"png": _data_uri(figure.png), "width": _width(figure.png)}
            for figure in figures
        ],
        commands=commands,
    )


def _table(table: Table) -> dict[str, object]:
    rows = [
        ([(_text(entry), i < table.n_keys) for i, entry in enumerate(row)], begins)
        for row, begins in table.parts()
    ]
    return {
        "title": table.title, "about": table.about, "headings": table.headings, "rows": rows,
        "notes": table.notes, "n_keys": table.n_keys,
    }  # fmt: skip


def _text(entry: str | Number) -> str:
    return printable(entry)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _width(png: bytes) -> int:
    """Pixels, as the file's head says."""
    return int.from_bytes(png[16:20])
