"""dfdetect scan"""

import codecs
import os
import sys
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
from dfdetect.errors import DfdetectError, ExitCode, unknown

FAIL_ON = ("likely-fake", "inconclusive")


def scan(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT...", help="Videos, pictures or folders of them.", rich_help_panel=INPUT
        ),
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(help="A file with one input per line; - reads stdin.", rich_help_panel=INPUT),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Run folder or detector.safetensors.", rich_help_panel=MODEL)
    ] = None,
    frames: Annotated[
        int, typer.Option(min=1, help="Frames looked at per video.", rich_help_panel=MODEL)
    ] = 32,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="Exit 1 if a verdict is likely-fake (or inconclusive).", rich_help_panel=OUTPUT
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Judge whether the faces in videos and photos are real.

    Example: dfdetect scan video.mp4 --model runs/qad

    The call is likely-fake, likely-real, inconclusive or no-face. Exit 0 whatever it is, unless
    --fail-on is given; 3 if some of several inputs could not be read.
    """
    named = _inputs(inputs or [], files_from)
    if fail_on is not None and fail_on not in FAIL_ON:
        raise unknown("verdict for --fail-on", fail_on, FAIL_ON)
    if model is None:
        raise DfdetectError(
            "no model given",
            "pass --model RUN; make one with `dfdetect train`, or try `dfdetect demo`, "
            "which trains a tiny one in ./dfdetect-demo/run",
        )
    from dfdetect.scanning import Scanner, scan_many
    from dfdetect.scoring import expand_inputs

    scanner = Scanner(model, frames, device)
    paths = list(expand_inputs(named))
    outcomes: list[str] = []
    with progress("scan", quiet or as_json or len(paths) == 1) as update:

        def report(path: Path, result) -> None:
            failed = isinstance(result, DfdetectError)
            outcomes.append("error" if failed else result.call)
            update(len(outcomes), len(paths), path.name)
            if as_json:
                show_json(_error_json(path, result) if failed else _readable(result.as_json()))
            elif failed:
                complain(result.line)
            else:
                from dfdetect.reports.table import verdict_panel

                show(verdict_panel(result))

        scan_many(scanner, paths, report)
    raise typer.Exit(_exit_code(outcomes, fail_on))


def _inputs(inputs: list[Path], files_from: str | None) -> list[Path]:
    named = list(inputs)
    if files_from is not None:
        try:
            content = (
                sys.stdin.buffer.read() if files_from == "-" else Path(files_from).read_bytes()
            )
        except OSError as error:
            raise DfdetectError(
                f"{files_from}: cannot be read as a list of files ({error.strerror})",
                "give a file with one path per line",
            ) from error
        lines = os.fsdecode(content.removeprefix(codecs.BOM_UTF8)).splitlines()
        named += [Path(line) for line in lines if line.strip()]
    if not named:
        raise DfdetectError("nothing to scan", "for example: dfdetect scan video.mp4 --model RUN")
    return named


def _exit_code(outcomes: list[str], fail_on: str | None) -> int:
    """A match outranks a failure: who asked for --fail-on must not miss it."""
    matches = {"likely-fake", fail_on} if fail_on else set()
    if any(outcome in matches for outcome in outcomes):
        return ExitCode.MATCHED
    if "error" in outcomes:
        return ExitCode.INPUT if len(outcomes) == 1 else ExitCode.PARTIAL
    return ExitCode.OK


def _error_json(path: Path, error: DfdetectError) -> dict:
    from dfdetect.results import SCHEMA_VERSION

    return _readable(
        {
            "schema_version": SCHEMA_VERSION,
            "input": str(path),
            "error": {"message": error.message, "hint": error.hint},
        }
    )


def _readable(value):
    """Undecodable bytes of file names as \\udcXX text, so that every line is valid UTF-8 JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _readable(inner) for key, inner in value.items()}
    return [_readable(inner) for inner in value] if isinstance(value, list) else value
