"""dfdetect sweep"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    RUNTIME,
    AllowAuditFail,
    Data,
    DryRun,
    Json,
    Quiet,
    Weights,
    progress,
    say,
    show,
    show_json,
    warn,
)  # fmt: skip
from dfdetect.errors import ExitCode


def sweep(
    grid: Annotated[
        str,
        typer.Argument(help="Name of a grid that ships, or YAML file.", rich_help_panel=MODEL),
    ],
    *,
    data: Data,
    weights: Weights = None,
    only: Annotated[
        list[str],
        typer.Option(
            help="Run only this cell, or those that match a pattern as 'alpha=0,*'; repeatable.",
            rich_help_panel=INPUT,
        ),
    ] = [],  # noqa: B006
    out: Annotated[
        Path, typer.Option(help="Folder of the cells and the table.", rich_help_panel=OUTPUT)
    ],
    as_json: Json = False,
    quiet: Quiet = False,
    devices: Annotated[
        str,
        typer.Option(
            help="One cell at a time on each, as cuda:0,cuda:1; cpu,cpu runs two on the CPU.",
            rich_help_panel=RUNTIME,
        ),
    ] = "auto",
    allow_audit_fail: AllowAuditFail = False,
    dry_run: DryRun = False,
) -> None:
    """Train and measure every cell of a grid, and compare them in one table.

    Example: dfdetect sweep qad-fig3 --data data/ffpp-nt --out sweeps/fig3 --devices cuda:0,cuda:1

    Rerunning continues: finished cells are skipped, begun ones resumed, failed ones tried again.
    """
    from dfdetect.grids import load_grid
    from dfdetect.reports.table import rows_table, sweep_tables
    from dfdetect.sweep import plan_sweep
    from dfdetect.sweep import sweep as verb

    chosen = load_grid(grid)
    if dry_run:
        states = plan_sweep(chosen, data, out, weights, only)
        rows = [(s.cell.name, s.cell.preset, " ".join(s.cell.overrides), s.status) for s in states]
        show(
            rows_table(
                f"{chosen.name}: {len(rows)} cells", ("cell", "preset", "set", "status"), rows
            )
        )
        return
    with progress("sweep", quiet or as_json) as update:

        def tell(event: dict) -> None:
            if event["kind"] == "progress":
                update(event["done"], event["total"], event["text"])
            elif event["kind"] == "begin" and not quiet:
                say(f"{event['cell']}: {'resumed' if event['resumed'] else 'begun'}, "
                    f"device {event['device']}")  # fmt: skip
            elif event["kind"] == "end" and event["status"] == "failed":
                warn(f"{event['cell']} failed: {event['error']} ({event['log']})")
            elif event["kind"] == "end" and not quiet:
                say(f"{event['cell']}: finished in {event['seconds']:.0f} s")

        devices_wanted = [device.strip() for device in devices.split(",")]
        result = verb(chosen, data, out, devices_wanted, weights, only, allow_audit_fail, tell)
    if as_json:
        show_json(result.as_json())
    else:
        show(sweep_tables(result), f"written to {out / 'sweep.csv'}")
    if result.failed:
        raise typer.Exit(int(ExitCode.PARTIAL))
