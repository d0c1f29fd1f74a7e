"""dfdetect publish"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import INPUT, MODEL, OUTPUT, show


def publish(
    model: Annotated[
        Path, typer.Argument(help="Run folder or detector.safetensors.", rich_help_panel=MODEL)
    ],
    *,
    about: Annotated[
        Path,
        typer.Option(
            help="Markdown for its model card: data, limits, licence.", rich_help_panel=INPUT
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write.", rich_help_panel=OUTPUT)],
) -> None:
    """Make a small file of a checkpoint to give away, with a model card.

    Example: dfdetect publish runs/qad --about about.md --out qad.safetensors

    Weights in half precision; the file carries its card, and a logit that is checked at load.
    """
    from dfdetect.publish import publish as write

    show(f"written to {write(model, about, out)}")
