"""dfdetect export"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import INPUT, OUTPUT, Json, show, show_json


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder or detector.safetensors.", rich_help_panel=INPUT)
    ],
    onnx: Annotated[
        Path | None,
        typer.Option(
            help="The ONNX file. Default: beside the checkpoint, where scan finds it.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as ONNX, which scans start with at once and other programs can run.

    Example: dfdetect export runs/qad

    Input: face crops, uint8 RGB, n x side x side x 3. Output: n logits, positive = fake. The crop
    recipe, calibration and the checkpoint's hash are in the metadata. It is compared with PyTorch
    before it is kept. Needs the packages onnx and onnxscript.
    """
    from dfdetect.onnx_export import export_onnx

    exported = export_onnx(checkpoint, onnx)
    if as_json:
        show_json({"schema_version": 1, **exported._asdict(), "path": str(exported.path)})
        return
    show(
        f"{exported.path}: {exported.n_bytes / 1e6:.1f} MB, logits of {exported.n_crops} crops "
        f"within {exported.difference:.1e} of PyTorch's"
    )
