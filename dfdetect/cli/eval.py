"""dfdetect eval"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    Data,
    Device,
    Json,
    Loaders,
    Quiet,
    progress,
    show,
    show_json,
    warn,
)  # fmt: skip


def eval_(
    model: Annotated[
        Path, typer.Argument(help="Run folder or detector.safetensors.", rich_help_panel=MODEL)
    ],
    *,
    data: Data,
    qualities: Annotated[
        str | None,
        typer.Option(
            help="Default: all that were prepared. jNN (JPEG at quality NN) and jA-B (at one in "
            "A..B per crop, always the same for a crop) are made of the raw crops.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.", rich_help_panel=INPUT)] = "test",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for predictions and metrics.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
    workers: Loaders = None,
) -> None:
    """Measure a detector: AUC, EER and accuracy per manipulation and quality.

    Example: dfdetect eval runs/qad --data data/ --out results/

    Each manipulation is compared with all reals of its folder, by frame and by video.
    """
    from dfdetect.evaluate import evaluate
    from dfdetect.processes import processes

    with progress("eval", quiet or as_json or not processes().is_main) as update:
        result = evaluate(
            model,
            data,
            qualities,
            split,
            out,
            device,
            lambda done, total: update(done, total, "crops"),
            workers,
        )
    if not processes().is_main:
        return
    for warning in result.warnings:
        warn(warning)
    if as_json:
        show_json(result.as_json())
        return
    from dfdetect.reports.table import eval_tables

    show(eval_tables(result))
    if out:
        show(f"written to {out}: predictions.parquet, metrics.json, metrics.csv")
