"""dfdetect report"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import INPUT, OUTPUT, Json, Quiet, progress, show, show_json, warn


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that eval or sweep wrote; several are compared.",
            rich_help_panel=INPUT,
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the documents; default: the first of the results.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make tables, figures and a page of what eval found.

    Example: dfdetect report results/qad results/did --out report/

    Tables come as Markdown, LaTeX (booktabs) and CSV, figures with the data they
    show, and all of it as one HTML page that needs nothing else. No network runs.
    Of a sweep also a heat map over two options, or AUC against the input's size.
    """
    from dfdetect.evaluate import remeasure
    from dfdetect.report import find_results
    from dfdetect.report import report as verb
    from dfdetect.reports.documents import on_terminal

    found = find_results(results)
    measured = {}
    with progress("report", quiet or as_json) as update:
        for i, folder in enumerate(found.results):
            update(i, len(found.results), str(folder))
            measured[folder] = remeasure(folder)
        where = ["--out", str(out)] if out else []
        command = ["dfdetect", "report", *map(str, results), *where]
        made = verb(measured, found.sweeps, out, command)
    for warning in made.warnings:
        warn(warning)
    if as_json:
        show_json(made.as_json())
        return
    show(on_terminal(made.tables), f"written to {made.out}: {', '.join(made.files)}")
