"""dfdetect explain"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    Device,
    Json,
    Quiet,
    complain,
    progress,
    show,
    show_json,
)  # fmt: skip
from dfdetect.errors import DfdetectError, ExitCode


def explain(
    model: Annotated[
        Path, typer.Argument(help="Run folder or detector.safetensors.", rich_help_panel=MODEL)
    ],
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...", help="Videos, pictures or folders of them.", rich_help_panel=INPUT
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="Folder for sheets, arrays, explain.json.", rich_help_panel=OUTPUT)
    ],
    frames: Annotated[
        int,
        typer.Option(
            min=1, help="Frames shown of each person: the most suspicious.", rich_help_panel=OUTPUT
        ),
    ] = 4,
    as_json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Draw what in each face the detector's score rests on.

    Example: dfdetect explain runs/did video.mp4 --out maps/

    Of each input a sheet of heat maps (PNG) and the maps as arrays (npz), and explain.json about
    all. A map shows what a logit is sensitive to, not where a forgery is. Exit 3 if some of several
    inputs could not be read.
    """
    from dfdetect.explain import NOTE, explain_many
    from dfdetect.scoring import expand_inputs

    paths = list(expand_inputs(inputs))
    results = []
    with progress("explain", quiet or as_json) as update:

        def report(path: Path, result) -> None:
            results.append(result)
            update(len(results), len(paths), path.name)
            if isinstance(result, DfdetectError) and not as_json:
                complain(result.line)

        content = explain_many(model, paths, out, frames, device, report)
    failed = [result for result in results if isinstance(result, DfdetectError)]
    if as_json:
        show_json(content)
    elif len(failed) < len(results):
        from dfdetect.reports.table import rows_table

        rows = [_cells(r) for r in results if not isinstance(r, DfdetectError)]
        show(rows_table(f"written to {out}", ("input", "score", "maps", "files"), rows), NOTE)
    if failed:
        raise typer.Exit(ExitCode.INPUT if len(results) == 1 else ExitCode.PARTIAL)


def _cells(result) -> tuple[str, str, str, str]:
    if result.score is None:
        return result.input, "no face", "0", "none"
    n_empty = sum(row["empty"] for row in result.maps)
    maps = f"{len(result.maps)}, {n_empty} empty" if n_empty else str(len(result.maps))
    return result.input, f"{result.score:.3f}", maps, f"{result.sheet}, .npz"
