"""dfdetect calibrate"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
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
    data: Data,
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

    Fits the val split of folders with people and videos that it was not trained on. What is too
    weak on them is marked experimental in the checkpoint, and scan says so.
    """
    from dfdetect.calibrate import Options
    from dfdetect.calibrate import calibrate as fit

    with progress("calibrate", quiet or as_json) as update:
        result = fit(
            model, data, Options(method, prior, fpr), out, dry_run, device,
            lambda done, total: update(done, total, "crops"), workers,
        )  # fmt: skip
    for warning in result.warnings:
        warn(warning)
    if as_json:
        show_json(result.as_json())
        return
    from dfdetect.reports.table import calibration_tables

    on = ", ".join(result.data)
    show(calibration_tables(result.calibration, f"{result.model} on {on}, val split, video level"))
    show(f"written to {result.written}" if result.written else "nothing written (--dry-run)")
