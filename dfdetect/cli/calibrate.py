"""dfdetect calibrate"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    RUNTIME,
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


def calibrate(
    model: Annotated[
        Path, typer.Argument(help="Run folder or detector.safetensors.", rich_help_panel=MODEL)
    ],
    *,
    data: Data = [],  # noqa: B006
    predictions: Annotated[
        list[Path],
        typer.Option(
            help="Instead of --data: predictions.parquet that eval wrote of another model of this "
            "recipe, on what it was not trained on; repeat for every fold.",
            rich_help_panel=INPUT,
        ),
    ] = [],  # noqa: B006
    method: Annotated[
        str,
        typer.Option(
            help="platt (slope and bias of the logit) or temperature (slope alone).",
            rich_help_panel=MODEL,
        ),
    ] = "platt",
    prior: Annotated[
        float,
        typer.Option(
            help="How frequent fakes are where scores are to be P(fake).", rich_help_panel=MODEL
        ),
    ] = 0.5,
    fpr: Annotated[
        float,
        typer.Option(
            help="Share of real videos that may lie above the threshold, and of fakes that may be "
            "called real.",
            rich_help_panel=MODEL,
        ),
    ] = 0.05,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for a calibrated copy. Default: the checkpoint itself is rewritten.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="Show, and write nothing.", rich_help_panel=RUNTIME),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
    workers: Loaders = None,
) -> None:
    """Make a detector's score the probability of a fake, and measure whether it may be believed.

    Example: dfdetect calibrate runs/qad --data other/

    Fits the val split of folders with people and videos that it was not trained on, or what the
    models of k folds predicted of the part that each left out. What is too weak on them is marked
    experimental in the checkpoint, and scan says so.
    """
    from dfdetect.calibrate import Options
    from dfdetect.calibrate import calibrate as fit

    with progress("calibrate", quiet or as_json) as update:
        result = fit(
            model, data, Options(method, prior, fpr), out, dry_run, device,
            lambda done, total: update(done, total, "crops"), workers, predictions,
        )  # fmt: skip
    for warning in result.warnings:
        warn(warning)
    if as_json:
        show_json(result.as_json())
        return
    from dfdetect.reports.table import calibration_tables

    on = ", ".join(result.data)
    split = "val split" if result.split == "val" else result.split
    show(calibration_tables(result.calibration, f"{result.model} on {on}, {split}, video level"))
    show(f"written to {result.written}" if result.written else "nothing written (--dry-run)")
