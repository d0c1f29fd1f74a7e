"""dfdetect info"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import INPUT, OUTPUT, Json, show, show_json


def info(
    path: Annotated[
        Path,
        typer.Argument(help="A prepared folder, a run or a checkpoint.", rich_help_panel=INPUT),
    ],
    as_json: Json = False,
    export: Annotated[
        str,
        typer.Option(
            help="Print a prepared folder as a list: deepfakebench (JSON) or csv.",
            rich_help_panel=OUTPUT,
        ),
    ] = "",
) -> None:
    """Describe a prepared folder or a checkpoint.

    Example: dfdetect info data/
    """
    from dfdetect.describe import describe
    from dfdetect.reports.table import mapping_table, rows_table

    if export:
        _export(path, export)
        return
    description = describe(path)
    if as_json:
        show_json({"schema_version": 1, **description.facts, "rows": description.rows})
        return
    show(mapping_table(str(path), description.facts))
    if description.rows:
        headings = list(description.rows[0])
        show(rows_table("contents", headings, [list(row.values()) for row in description.rows]))


def _export(data: Path, name: str) -> None:
    from dfdetect.errors import unknown
    from dfdetect.exports import FORMATS

    if name not in FORMATS:
        raise unknown("export", name, FORMATS)
    content = FORMATS[name](data)
    if isinstance(content, str):
        typer.echo(content, nl=False)
    else:
        show_json(content)
