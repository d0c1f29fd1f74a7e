"""The edge: commands parse, call one verb, print its result. Errors become exit codes here."""

from typing import Annotated

import typer

from dfdetect.cli.audit import audit
from dfdetect.cli.calibrate import calibrate
from dfdetect.cli.compare import compare
from dfdetect.cli.demo import demo
from dfdetect.cli.edge import EdgeGroup
from dfdetect.cli.eval import eval_
from dfdetect.cli.explain import explain
from dfdetect.cli.export import export
from dfdetect.cli.forge import forge
from dfdetect.cli.info import info
from dfdetect.cli.prepare import prepare
from dfdetect.cli.presets import presets
from dfdetect.cli.publish import publish
from dfdetect.cli.report import report
from dfdetect.cli.reproduce import reproduce
from dfdetect.cli.scan import scan
from dfdetect.cli.sweep import sweep
from dfdetect.cli.train import train

app = typer.Typer(
    cls=EdgeGroup,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from dfdetect import __version__

        typer.echo(f"dfdetect {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Detect deepfakes in face videos and photos, and train detectors that do.

    Example: dfdetect demo

    Prepare cuts aligned faces, train learns a detector, eval measures it, scan judges files.
    """


app.command()(prepare)
app.command()(audit)
app.command()(train)
app.command("eval")(eval_)
app.command()(compare)
app.command()(report)
app.command()(calibrate)
app.command()(publish)
app.command()(sweep)
app.command()(reproduce)
app.command()(scan)
app.command()(explain)
app.command()(export)
app.command()(forge)
app.command()(presets)
app.command()(info)
app.command()(demo)
