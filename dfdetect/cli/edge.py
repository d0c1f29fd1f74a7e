"""What all commands share: error -> one line and an exit code, progress, output, option types."""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dfdetect.errors import DfdetectError, ExitCode, printable

_ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class EdgeGroup(TyperGroup):
    """Translates errors for every command, in the shell and under Typer's test runner alike."""

    def invoke(self, ctx: Any) -> Any:
        with suppress(ValueError):  # not in the main thread: whoever owns it decides
            signal.signal(signal.SIGTERM, _terminate)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal may know fewer characters than we show
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except DfdetectError as error:
            complain(error.line)
            raise typer.Exit(int(error.exit_code)) from error
        except KeyboardInterrupt as error:
            complain("interrupted; finished work is kept, rerunning continues")
            raise typer.Exit(int(ExitCode.INTERRUPTED)) from error
        except _Terminated as error:
            complain("terminated; finished work is kept, rerunning continues")
            raise typer.Exit(int(ExitCode.TERMINATED)) from error
        except BrokenPipeError as error:  # whoever read our output has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
            raise typer.Exit(128 + signal.SIGPIPE) from error
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if hasattr(error, "format_message"):  # a usage error, of the Click inside Typer
                command = getattr(getattr(error, "ctx", None), "command_path", "dfdetect")
                complain(f"{error.format_message().rstrip('.')}; see {command} --help")
                raise typer.Exit(int(ExitCode.INPUT)) from error
            if os.environ.get("DFDETECT_DEBUG"):
                raise
            raise typer.Exit(_unexpected(error)) from error


class _Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is for SIGINT."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def _unexpected(error: Exception) -> int:
    out_of_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    if out_of_memory:
        complain("out of memory; use a smaller --set batch_size or fewer --workers")
        return ExitCode.ENVIRONMENT
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        complain(f"{error.filename or 'a file'}: {error.strerror}; free space or check permissions")
        return ExitCode.ENVIRONMENT
    complain(
        f"a bug in dfdetect: {type(error).__name__}: {error}; "
        "run again with DFDETECT_DEBUG=1 and report what it prints"
    )
    return ExitCode.BUG


def complain(message: str) -> None:
    say(f"error: {message}")


def warn(message: str) -> None:
    say(f"warning: {message}")


def say(message: str) -> None:
    """One line on stderr."""
    with _bar_aside():
        typer.echo(printable(message), err=True)


def show(*renderables: Any) -> None:
    """Results, on stdout; wide enough for every table where stdout is not a terminal.

    Plain strings are printed as they are, so that commands can be copied.
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout and sys.stdout.isatty() else 160, highlight=False)
    with _bar_aside():
        for renderable in renderables:
            console.print(renderable, markup=False, soft_wrap=isinstance(renderable, str))


def show_json(value: Any) -> None:
    """One JSON object on one line of stdout: ASCII, no NaN."""
    with _bar_aside():
        typer.echo(json.dumps(value, allow_nan=False))


_bars: list[Any] = []  # the progress bar or view on screen, if there is one


@contextmanager
def _bar_aside() -> Iterator[None]:
    """Lines and results appear above the bar and not in the middle of it."""
    for bar in _bars:
        bar.stop()
    yield
    for bar in _bars:
        bar.start()


def is_watched(quiet: bool) -> bool:
    """Whether stderr is a terminal, and nobody asked for quiet."""
    return not quiet and sys.stderr.isatty()


@contextmanager
def below(view: Any) -> Iterator[None]:
    """Draw a Rich renderable anew each second, below all that is printed meanwhile."""
    screen = _Screen(view)
    screen.start()
    _bars.append(screen)
    try:
        yield
    finally:
        _bars.remove(screen)
        screen.stop()


class _Screen:
    """Each start makes a new Live: one that is started again would erase what came between."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def start(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        self._live = Live(
            self._view, console=console, refresh_per_second=1, transient=True,
            redirect_stdout=False, vertical_overflow="crop",
        )  # fmt: skip
        self._live.start(refresh=True)

    def stop(self) -> None:
        self._live.stop()


@contextmanager
def progress(description: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with ETA on stderr, if that is a terminal and nobody asked for quiet.

    Yields `update(n_done, n_total, text)`.
    """
    if not is_watched(quiet):
        yield lambda done, total, text: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(), bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(), bars.TextColumn("ETA"), bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[text]}", markup=False),
    )  # fmt: skip
    with bars.Progress(
        *columns, console=Console(stderr=True), transient=True,
        redirect_stdout=False, redirect_stderr=False,
    ) as bar:  # fmt: skip
        task = bar.add_task(description, total=None, text="")
        _bars.append(bar)
        try:
            yield lambda done, total, text: bar.update(
                task, completed=done, total=total, text=printable(text)
            )
        finally:
            _bars.remove(bar)


def key_values(pairs: list[str], option: str) -> dict[str, str]:
    """`a=b,c=d` (repeatable) -> {a: b, c: d}."""
    parsed = {}
    for part in (p for pair in pairs for p in pair.split(",") if p.strip()):
        key, equals, value = part.partition("=")
        if not equals:
            raise DfdetectError(f"{option} {part!r} is not name=value")
        parsed[key.strip()] = value.strip()
    return parsed


INPUT, MODEL, OUTPUT, RUNTIME = "Input", "Model", "Output", "Runtime"

Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=RUNTIME)
]
Loaders = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Processes that load crops; default by the cores.",
        rich_help_panel=RUNTIME,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Start from pretrained (ImageNet, fetched), none, or a weights file.",
        rich_help_panel=MODEL,
    ),
]
AllowAuditFail = Annotated[
    bool,
    typer.Option(
        "--allow-audit-fail",
        help="Accept what `dfdetect audit` calls a FAIL.",
        rich_help_panel=RUNTIME,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, only results.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool, typer.Option("--json", help="JSON on stdout instead of tables.", rich_help_panel=OUTPUT)
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", "-n", help="Say what would happen and how big.", rich_help_panel=RUNTIME
    ),
]
Rounds = Annotated[
    int,
    typer.Option(
        min=0,
        help="Of the bootstrap of videos, from which intervals come; 0: no intervals.",
        rich_help_panel=RUNTIME,
    ),
]
Data = Annotated[
    list[Path],
    typer.Option(
        "--data", help="A folder that prepare made; repeat for more.", rich_help_panel=INPUT
    ),
]
