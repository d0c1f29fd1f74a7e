"""dfdetect compare"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import INPUT, Json, Rounds, show, show_json, warn


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B ...",
            help="Folders that `dfdetect eval --out` wrote, of two or more models.",
            rich_help_panel=INPUT,
        ),
    ],
    *,
    rounds: Rounds = 1000,
    as_json: Json = False,
) -> None:
    """Tell whether one detector is better than another on the same crops.

    Example: dfdetect compare results/bce results/qad

    Each is held against the first on the crops that both have scored: videos are drawn anew, the
    same for both, and the difference of every figure taken round by round (the paired bootstrap).
    """
    from dfdetect.comparison import compare as compare_results

    compared = compare_results(results, rounds)
    for warning in compared.warnings:
        warn(warning)
    if as_json:
        show_json(compared.as_json())
        return
    from dfdetect.reports.table import compare_tables

    show(compare_tables(compared))
