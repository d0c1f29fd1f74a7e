"""dfdetect eval"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    Data,
    Device,
    Json,
    Loaders,
    Quiet,
    Rounds,
    progress,
    show,
    show_json,
    warn,
)  # fmt: skip


def eval_(
    model: Annotated[
        Path, typer.Argument(help="Run folder or detector.safetensors.", rich_help_panel=MODEL)
    ],
    *,
    data: Data,
    qualities: Annotated[
        str | None,
        typer.Option(
            help="Default: all that were prepared. Made of the raw crops are jNN (JPEG at quality "
            "NN), jA-B (at one in A..B, always the same for a crop), crfNN (H.264 of the crop "
            "alone), scaleX (to that share of the side and back), blurX (sigma, px), noiseX "
            "(standard deviation of 0..255).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="KIND=LEVELS,...",
            help="Curves of AUC against severity, as crf=0:51:8 (from, to, step), scale=0.25:1 "
            "(five levels), blur=0.5/1/2 (a list). Kinds: crf, jpeg, scale, blur, noise.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    face_sizes: Annotated[
        str | None,
        typer.Option(
            metavar="PX,...",
            help="Measure faces of these widths in their source apart, as 64,128.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.", rich_help_panel=INPUT)] = "test",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for predictions, metrics and figures.", rich_help_panel=OUTPUT),
    ] = None,
    tsne: Annotated[
        int | None,
        typer.Option(
            "--tsne",
            metavar="N",
            min=1,
            help="Write pooled features of up to N crops per manipulation, and their t-SNE.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    rounds: Rounds = 1000,
    device: Device = "auto",
    workers: Loaders = None,
) -> None:
    """Measure a detector: AUC, EER and more per manipulation and quality, with intervals.

    Example: dfdetect eval runs/qad --data data/ --out results/

    Each manipulation is compared with all reals of its folder, by frame, track and video. Of a
    detector with a domain head (DID) it also tells which technique it takes each manipulation for.
    """
    from dfdetect.evaluate import evaluate
    from dfdetect.processes import processes

    with progress("eval", quiet or as_json or not processes().is_main) as update:
        result = evaluate(
            model,
            data,
            qualities,
            split,
            out,
            device,
            lambda done, total: update(done, total, "crops"),
            workers,
            tsne,
            rounds,
            sweep,
            face_sizes,
        )
    if not processes().is_main:
        return
    for warning in result.warnings:
        warn(warning)
    if as_json:
        show_json(result.as_json())
        return
    from dfdetect.reports.table import domain_tables, eval_tables, face_tables, robustness_tables

    show(eval_tables(result))
    if result.face_sizes:
        show(face_tables(result.cells))
    if result.robustness:
        show(robustness_tables(result.robustness))
    if result.domains:
        show(domain_tables(result.domains))
    if out:
        show(f"written to {out}: {', '.join(result.files)}")
