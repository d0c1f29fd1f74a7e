"""dfdetect audit"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import INPUT, RUNTIME, Json, Quiet, progress, show, show_json
from dfdetect.errors import ExitCode


def audit(
    data: Annotated[
        list[Path],
        typer.Argument(help="Folders that prepare made.", rich_help_panel=INPUT),
    ],
    *,
    quiet: Quiet = False,
    as_json: Json = False,
    manifest_only: Annotated[
        bool,
        typer.Option("--manifest-only", help="Do not look at the crops.", rich_help_panel=RUNTIME),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit 1 when a check says FAIL (not WARN).", rich_help_panel=RUNTIME
        ),
    ] = False,
) -> None:
    """Look for leaks, shortcuts and defects that would spoil figures on prepared folders.

    Example: dfdetect audit data/ --strict

    Several folders are looked at together, as train would take them. FAIL: figures would be
    wrong, and train refuses. WARN: know this when you read them. --json lists every id.
    """
    from dfdetect.audit import audit as look
    from dfdetect.reports.table import audit_line, audit_table

    with progress("audit", quiet or as_json) as update:
        findings = look(data, not manifest_only, update)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        folders = [str(folder) for folder in data]
        show_json({"schema_version": 1, "data": folders, "findings": rows})
    else:
        show(audit_table(findings), audit_line(findings))
    if strict and any(finding.status == "FAIL" for finding in findings):
        raise typer.Exit(int(ExitCode.MATCHED))
