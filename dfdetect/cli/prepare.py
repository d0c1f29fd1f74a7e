"""dfdetect prepare"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    RUNTIME,
    DryRun,
    Json,
    Quiet,
    key_values,
    progress,
    show,
    show_json,
    warn,
)  # fmt: skip
from dfdetect.errors import ExitCode


def prepare(
    source: Annotated[
        Path,
        typer.Argument(help="Folder, CSV table or FaceForensics++ tree.", rich_help_panel=INPUT),
    ],
    *,
    dataset: Annotated[
        str, typer.Option(help="auto, folder, table or ffpp.", rich_help_panel=INPUT)
    ] = "auto",
    splits: Annotated[
        Path | None,
        typer.Option(
            help="A CSV of path (or identity) and split, or a folder of train/val/test.json.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    columns: Annotated[
        list[str],
        typer.Option(
            help="Headings of a table, as manipulation=method,identity=person.",
            rich_help_panel=INPUT,
        ),
    ] = [],  # noqa: B006
    where: Annotated[
        list[str], typer.Option(help="Keep table rows where part=main.", rich_help_panel=INPUT)
    ] = [],  # noqa: B006
    template: Annotated[
        str, typer.Option(help="Landmark template: arcface or symmetric.", rich_help_panel=MODEL)
    ] = "arcface",
    margin: Annotated[
        float,
        typer.Option(min=1, max=3, help="Room around the face, 1.3 = 30 %.", rich_help_panel=MODEL),
    ] = 1.3,
    out: Annotated[Path, typer.Option(help="Folder for the crops.", rich_help_panel=OUTPUT)],
    qualities: Annotated[
        str,
        typer.Option(
            help="raw, cNN (H.264 at CRF NN), jNN (JPEG at quality NN).", rich_help_panel=OUTPUT
        ),
    ] = "raw,c23,c40",
    frames: Annotated[
        int, typer.Option(min=1, help="Frames per video, evenly spread.", rich_help_panel=OUTPUT)
    ] = 32,
    size: Annotated[
        int, typer.Option(min=32, max=1024, help="Side of a crop, px.", rich_help_panel=OUTPUT)
    ] = 256,
    tracks: Annotated[
        str, typer.Option(help="Faces kept per video: main or all.", rich_help_panel=OUTPUT)
    ] = "main",
    quiet: Quiet = False,
    as_json: Json = False,
    seed: Annotated[
        int, typer.Option(help="Deals identities to splits.", rich_help_panel=RUNTIME)
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; default one per core.", rich_help_panel=RUNTIME),
    ] = None,
    allow_identity_overlap: Annotated[
        bool,
        typer.Option(
            "--allow-identity-overlap",
            help="Accept a person in two splits.",
            rich_help_panel=RUNTIME,
        ),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Cut aligned face crops at every quality from videos and photos.

    Example: dfdetect prepare videos/ --out data/ --qualities raw,c23,c40

    A folder holds real/** and fake/MANIPULATION/**. Rerunning skips what is finished.
    """
    from dfdetect import prepare as verb
    from dfdetect.datasets.base import DatasetOptions
    from dfdetect.errors import unknown
    from dfdetect.faces import TEMPLATES, CropRecipe
    from dfdetect.quality import parse_qualities

    if template not in TEMPLATES:
        raise unknown("template", template, TEMPLATES)
    if tracks not in ("main", "all"):
        raise unknown("choice of tracks", tracks, ("main", "all"))
    crop = CropRecipe(size=size, template=template, margin=margin)
    names = tuple(quality.name for quality in parse_qualities(qualities))
    recipe = verb.PrepareRecipe(names, frames, tracks, crop)
    options = DatasetOptions(splits, key_values(columns, "--columns"), key_values(where, "--where"))
    if dry_run:
        plan = verb.plan(source, out, recipe, dataset, options, seed, allow_identity_overlap)
        _show_plan(plan, recipe, as_json)
        return
    with progress("prepare", quiet or as_json) as update:
        summary = verb.prepare(
            source, out, recipe, dataset, options, workers, seed, allow_identity_overlap,
            lambda done, total, last: update(done, total, last.video.source),
        )  # fmt: skip
    for failure in summary.failures[:10]:
        warn(f"{failure.message}; {failure.hint}" if failure.hint else failure.message)
    if len(summary.failures) > 10:
        warn(f"{len(summary.failures) - 10} more failures are listed in {out / 'failures.csv'}")
    if as_json:
        show_json(_summary_json(summary))
    else:
        from dfdetect.reports.table import prepare_table

        show(prepare_table(summary))
    if summary.failures:
        raise typer.Exit(int(ExitCode.PARTIAL))


def _show_plan(plan, recipe, as_json: bool) -> None:
    from dfdetect.prepare import BYTES_PER_CROP
    from dfdetect.reports.table import plan_table
    from dfdetect.video import IMAGE_SUFFIXES

    n_stills = sum(v.path.suffix.lower() in IMAGE_SUFFIXES for v in plan.videos)
    n_videos = len(plan.videos) - n_stills
    n_crops = (n_videos * recipe.frames + n_stills) * len(recipe.qualities)
    megabytes = n_crops * BYTES_PER_CROP * (recipe.crop.size / 256) ** 2 / 1e6
    if as_json:
        show_json(
            {
                "schema_version": 1,
                "videos": n_videos,
                "pictures": n_stills,
                "finished": len(plan.finished),
                "crops_at_most": n_crops,
                "megabytes_at_most": round(megabytes),
            }
        )
        return
    show(
        plan_table(plan),
        f"{n_videos} videos and {n_stills} pictures ({len(plan.finished)} finished already), "
        f"up to {n_crops} crops, about {megabytes:,.0f} MB; nothing was written",
    )


def _summary_json(summary) -> dict:
    return {
        "schema_version": 1,
        "videos": {f"{split}/{label}": n for (split, label), n in summary.videos.items()},
        "crops": {f"{quality}/{label}": n for (quality, label), n in summary.crops.items()},
        "finished_before": summary.n_skipped,
        "failures": [failure._asdict() for failure in summary.failures],
        "stage_s": {stage: round(seconds, 2) for stage, seconds in summary.stage_s.items()},
        "elapsed_s": round(summary.elapsed_s, 2),
    }
