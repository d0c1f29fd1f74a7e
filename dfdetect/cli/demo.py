"""dfdetect demo"""

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import OUTPUT
from dfdetect.errors import DfdetectError

NOTICE = """\
This shows the pipeline and not accuracy: the clips are made from one photo of one person
(NASA's portrait of astronaut Eileen Collins), the fakes are simple, the network is tiny.
One person cannot be in one split only, hence --allow-identity-overlap, and hence its verdicts
are inconclusive: look at the scores. In the end the starter detector that comes with dfdetect
scans the same clips."""


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for everything it makes.", rich_help_panel=OUTPUT)
    ] = Path("dfdetect-demo"),
) -> None:
    """Watch the whole tool work on clips made from a portrait that ships with it.

    Example: dfdetect demo --out demo/
    """
    from dfdetect.cli import app
    from dfdetect.demo import commands, make_clips

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DfdetectError(f"{out}: there already", "delete it or choose another --out")
    started = time.monotonic()
    typer.echo(NOTICE)
    typer.echo(f"\nMaking clips in {out / 'clips'}: real, self-blend and local-warp.")
    make_clips(out / "clips")
    for command in commands(out):
        typer.echo(f"\n$ dfdetect {shlex.join(command)}")
        code = app(command, standalone_mode=False)
        if code:
            raise typer.Exit(code)
    typer.echo(f"\nDone in {time.monotonic() - started:.0f} s. {NOTICE.splitlines()[0]}")
