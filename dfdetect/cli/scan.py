"""dfdetect scan"""

import codecs
import os
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    RUNTIME,
    Device,
    Json,
    Quiet,
    complain,
    progress,
    show,
    show_json,
    warn,
)  # fmt: skip
from dfdetect.errors import DfdetectError, ExitCode, printable, unknown

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
        Path | None,
        typer.Option(
            help="Run folder, detector.safetensors or ONNX file; default: the starter detector.",
            rich_help_panel=MODEL,
        ),
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
    out: Annotated[
        Path | None,
        typer.Option(
            help="Results as JSON lines; what they hold is not scanned again.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="A table with a row per input.", rich_help_panel=OUTPUT)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="A page (HTML): verdicts, scores over time, heat maps, custody.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="The video (.mp4) or picture (.png, .jpg) with boxes and scores, of one input.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="What runs the model: torch; onnx, at once, on the CPU; auto: onnx where `export` "
            "left a file beside the checkpoint.",
            rich_help_panel=RUNTIME,
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that decode; default one per core.", rich_help_panel=RUNTIME
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A Dask scheduler, as tcp://HOST:8786, whose workers decode.",
            rich_help_panel=RUNTIME,
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Scan again what failed in --out.", rich_help_panel=RUNTIME
        ),
    ] = False,
    max_frames: Annotated[
        int, typer.Option(min=1, help="Decode no more of a video.", rich_help_panel=RUNTIME)
    ] = 20_000,
    max_faces: Annotated[
        int, typer.Option(min=1, help="Judge no more in a frame.", rich_help_panel=RUNTIME)
    ] = 20,
    max_megapixels: Annotated[
        float,
        typer.Option(min=0.01, help="Refuse larger pictures and frames.", rich_help_panel=RUNTIME),
    ] = 40,
    max_gigabytes: Annotated[
        float, typer.Option(min=0.001, help="Refuse larger files.", rich_help_panel=RUNTIME)
    ] = 4,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Give up on a file after.", rich_help_panel=RUNTIME)
    ] = 600,
    max_memory: Annotated[
        float,
        typer.Option(min=0.1, help="GB that decoding a file may need.", rich_help_panel=RUNTIME),
    ] = 4,
) -> None:
    """Judge whether the faces in videos and photos are real.

    Example: dfdetect scan video.mp4

    The call is likely-fake, likely-real, inconclusive or no-face. Exit 0 whatever it is, unless
    --fail-on is given; 3 if some of several inputs could not be read. A long batch is interrupted
    and continued with --out results.jsonl.
    """
    named = _inputs(inputs or [], files_from)
    if fail_on is not None and fail_on not in FAIL_ON:
        raise unknown("verdict for --fail-on", fail_on, FAIL_ON)
    if retry_failed and out is None:
        raise DfdetectError("--retry-failed without --out", "name the file of results with --out")
    from dfdetect.files import write_whole
    from dfdetect.records import Records, as_csv, readable, row
    from dfdetect.results import Verdict
    from dfdetect.scanning import Scanner, scan_many
    from dfdetect.scoring import Bounds, expand_inputs
    from dfdetect.shipped import STARTER
    from dfdetect.video import Limits
    from dfdetect.workers import available_cores

    limits = Limits(int(max_gigabytes * 2**30), int(max_megapixels * 1e6), max_frames)
    scanner = Scanner(
        model or STARTER,
        frames,
        device,
        Bounds(limits, max_faces, max_seconds, max_memory),
        engine=engine,
    )
    paths = list(expand_inputs(named))
    if overlay:
        from dfdetect.reports.overlay import checked_suffix, write_overlay

        checked_suffix(overlay)
        if len(paths) != 1:
            raise DfdetectError(
                f"--overlay is of one input, these are {len(paths)}", "scan that one alone"
            )
    page = report and _page(scanner.checkpoint)
    outcomes: list[str] = []
    rows: list[tuple] = []
    with ExitStack() as stack:
        held = out and stack.enter_context(Records(out, scanner.settings_sha256, retry_failed))
        silent = quiet or as_json or len(paths) == 1
        update = stack.enter_context(progress("scan", silent))

        def tell(path: Path, record: dict) -> None:
            outcomes.append(record.get("call", "error"))
            update(len(outcomes), len(paths), path.name)
            if csv:
                rows.append(row(record))
            if as_json:
                show_json(record)

        def draw(path: Path, result) -> None:
            if page and isinstance(result, DfdetectError):
                page.add_error(path, result)
            elif overlay and not isinstance(result, DfdetectError):
                bounds, n_frames = scanner.scorer.bounds, result.media.n_frames
                with progress("overlay", quiet or as_json) as update:
                    notes = write_overlay(
                        result, overlay, bounds.limits, bounds.max_seconds, bounds.max_memory_gb,
                        on_frame=lambda n: update(n, n_frames, overlay.name),
                    )  # fmt: skip
                for note in notes:
                    warn(f"{overlay}: {note}")

        def tell_held(path: Path, record: dict) -> None:
            tell(path, record)
            result = (
                DfdetectError(**record["error"]) if "error" in record else Verdict.from_json(record)
            )
            if page and isinstance(result, Verdict):
                page.add(result)
            draw(path, result)

        def on_result(path: Path, result) -> None:
            failed = isinstance(result, DfdetectError)
            record = scanner.error_json(path, result) if failed else result.as_json()
            record = readable(record)
            if held:
                held.add(record)
            tell(path, record)
            if failed and not as_json:
                complain(result.line)
            elif not as_json and not out:
                from dfdetect.reports.table import verdict_panel

                show(verdict_panel(result))
            draw(path, result)

        todo = held.missing(paths, tell_held) if held else paths
        on_scored = page.add if page else lambda verdict, scored: None
        scan_many(scanner, todo, on_result, workers or available_cores(), cluster, on_scored)
    if csv:
        write_whole(csv, as_csv(rows))
    if page:
        write_whole(report, page.html())
    if out and not as_json:
        show(f"{printable(out)}: {_counted(outcomes)}")
    raise typer.Exit(_exit_code(outcomes, fail_on))


def _page(model):
    from dfdetect.reports.page import Page

    def maps(crops):
        from dfdetect.explain import fake_maps  # PyTorch, only where there is a face to show

        return fake_maps(model, crops)

    return Page(maps)


def _counted(outcomes: list[str]) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in sorted(Counter(outcomes).items()))


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
        raise DfdetectError("nothing to scan", "for example: dfdetect scan video.mp4")
    return named


def _exit_code(outcomes: list[str], fail_on: str | None) -> int:
    """A match outranks a failure: who asked for --fail-on must not miss it."""
    matches = {"likely-fake", fail_on} if fail_on else set()
    if any(outcome in matches for outcome in outcomes):
        return ExitCode.MATCHED
    if "error" in outcomes:
        return ExitCode.INPUT if len(outcomes) == 1 else ExitCode.PARTIAL
    return ExitCode.OK
