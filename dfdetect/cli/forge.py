"""dfdetect forge"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    Json,
    Quiet,
    complain,
    progress,
    show,
    show_json,
)  # fmt: skip
from dfdetect.errors import DfdetectError, ExitCode


def forge(
    source: Annotated[
        Path,
        typer.Argument(
            help="A prepared folder, or real faces as prepare takes them: a folder or CSV table.",
            rich_help_panel=INPUT,
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="Folder for reals and forged crops.", rich_help_panel=OUTPUT)
    ],
    forgeries: Annotated[
        str,
        typer.Option(
            help="Some of self-blend, cross-blend, reconstruct, resample, local-warp. Default: "
            "all.",
            rich_help_panel=MODEL,
        ),
    ] = "",
    per_face: Annotated[
        int, typer.Option(min=1, max=100, help="Fakes of each face.", rich_help_panel=MODEL)
    ] = 1,
    decoders: Annotated[
        Path | None,
        typer.Option(
            help="Trained decoders for reconstruct. Default: train them on the train split.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Decides every draw.", rich_help_panel=MODEL)
    ] = 0,
    qualities: Annotated[
        str, typer.Option(help="raw, cNN (H.264), jNN (JPEG).", rich_help_panel=OUTPUT)
    ] = "raw,c23,c40",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make fakes of real faces, as data to train and test detectors.

    Example: dfdetect forge data/ --out forged/ --forgeries self-blend,reconstruct

    The folder is one as prepare writes it, with the source's splits: reals, and forged crops that
    say in their files and in the manifest that they are synthetic. Exit 3 if some faces failed.
    """
    from dfdetect.forge import forge as make
    from dfdetect.forge import refuse_unknown

    names = [name.strip() for name in forgeries.split(",") if name.strip()]
    refuse_unknown(names)
    n_unprepared = 0
    with progress("forge", quiet or as_json) as update:
        data = source
        if not (source / "manifest").is_dir():
            data = out / "source"
            n_unprepared = _prepare(source, data, update)
        summary = make(data, out, names, qualities, per_face, seed, decoders, update)
    for failure in summary.failures if not as_json else ():
        complain(DfdetectError(failure.message, failure.hint).line)
    counts = {
        "faces": summary.n_faces,
        "finished before": summary.n_skipped,
        "failed": len(summary.failures) + n_unprepared,
        **{f"{name} crops": n for name, n in sorted(summary.crops.items())},
    }
    if as_json:
        show_json({"schema_version": 1, "out": str(out), **counts})
    else:
        from dfdetect.reports.table import mapping_table

        show(mapping_table(f"forged into {out}", counts))
    if counts["failed"]:
        raise typer.Exit(ExitCode.PARTIAL)


def _prepare(source: Path, out: Path, update) -> int:
    """Prepare what is not prepared yet, at raw alone; how many files could not be."""
    from dfdetect.prepare import PrepareRecipe, prepare

    def report(n_done: int, n_total: int, video, done) -> None:
        update(n_done, n_total, video.source)
        if done.failure:
            complain(DfdetectError(done.failure.message, done.failure.hint).line)

    recipe = PrepareRecipe(qualities=("raw",))
    return len(prepare(source, out, recipe, on_done=report).failures)
