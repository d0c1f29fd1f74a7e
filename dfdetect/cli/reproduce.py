"""dfdetect reproduce"""

from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    RUNTIME,
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
from dfdetect.errors import DfdetectError, ExitCode, unknown


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A table or figure, as qad-table1, or a YAML file; without one, all are listed.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder of the data sets' official trees: ffpp, celebdf, ffiw, dffd in it.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    weights: Weights = None,
    only: Annotated[
        list[str],
        typer.Option(
            help="Only this cell, as qad-r@NT, or those that match a pattern as 'qad-*@*'; "
            "repeatable.",
            rich_help_panel=INPUT,
        ),
    ] = [],  # noqa: B006
    scale: Annotated[
        str,
        typer.Option(
            help="full, or smoke: every cell with a tiny network, two steps and a few videos.",
            rich_help_panel=MODEL,
        ),
    ] = "full",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of data, runs and tables; share it.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    devices: Annotated[
        str,
        typer.Option(
            "--device",
            "--devices",
            help="One run at a time on each, as cuda:0,cuda:1; cpu,cpu runs two on the CPU.",
            rich_help_panel=RUNTIME,
        ),
    ] = "auto",
    dry_run: DryRun = False,
) -> None:
    """Train and measure what a table or figure of the papers shows, and set it beside theirs.

    Example: dfdetect reproduce qad-table1 --data datasets/ --out repro/ --only 'qad-r@*'

    Rerunning continues: what is finished is not done again. Cells whose data is absent say what
    they need. Exit 3 if a cell failed.
    """
    from dfdetect.reports.live import duration
    from dfdetect.reports.reproduction import plan_table, reproduction_table, tables_table
    from dfdetect.reproduce import plan_reproduction
    from dfdetect.reproduce import reproduce as verb
    from dfdetect.tables import list_tables, load_table

    if name is None:
        tables = [load_table(shipped) for shipped in list_tables()]
        if as_json:
            listed = [{"name": t.name, "reproduces": t.reproduces, "data": t.data} for t in tables]
            show_json({"schema_version": 1, "tables": listed})
        else:
            show(tables_table(tables))
        return
    table = load_table(name)
    if scale not in ("full", "smoke"):
        raise unknown("scale", scale, ("full", "smoke"))
    if data is None or out is None:
        raise DfdetectError(
            "reproduce needs --data and --out",
            f"for example: dfdetect reproduce {name} --data datasets/ --out repro/",
        )
    if dry_run:
        plan = plan_reproduction(table, data, out, only, scale, weights)
        if as_json:
            show_json(plan.as_json())
        else:
            show(plan_table(plan))
        return
    with progress("reproduce", quiet or as_json) as update:
        chosen = [device.strip() for device in devices.split(",")]
        seconds: list[float] = []

        def tell(event: dict) -> None:
            if event["kind"] == "progress":
                update(event["done"], event["total"], event["text"])
            elif event["kind"] == "begin" and not quiet:
                say(f"{event['cell']}: {'resumed' if event['resumed'] else 'begun'}, "
                    f"device {event['device']}")  # fmt: skip
            elif event["kind"] == "end" and event["status"] == "failed":
                warn(f"{event['cell']} failed: {event['error']} ({event['log']})")
            elif event["kind"] == "end" and not quiet:
                seconds.append(event["seconds"])
                waiting = (event["total"] - event["done"]) / len(chosen)
                left = f", about {duration(waiting * fmean(seconds))} left" if waiting else ""
                say(f"{event['cell']}: finished in {duration(event['seconds'])}, "
                    f"{event['done']} of {event['total']}{left}")  # fmt: skip

        result = verb(table, data, out, only, scale, chosen, weights, tell)
    if as_json:
        show_json(result.as_json())
    else:
        show(reproduction_table(result), f"written to {out}: {', '.join(result.files)}")
    if result.failed:
        raise typer.Exit(int(ExitCode.PARTIAL))
