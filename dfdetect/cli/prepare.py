"""dfdetect prepare"""

import os
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
    say,
    show,
    show_json,
    warn,
)  # fmt: skip
from dfdetect.errors import DfdetectError, ExitCode


def prepare(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="Folder, CSV table or a dataset's official tree.", rich_help_panel=INPUT
        ),
    ] = None,
    *,
    dataset: Annotated[
        str,
        typer.Option(
            help="auto, folder, table, ffpp, celebdf, ffiw, dffd, dfdc, dfdcp, deeperforensics, "
            "wilddeepfake, df40 or deepfakebench.",
            rich_help_panel=INPUT,
        ),
    ] = "auto",
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import",
            help="A DeepfakeBench JSON; its paths start at --root.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Where an imported list's paths start, or DeeperForensics' FF++ tree.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            help="A CSV of path (or identity) and split, or a folder of train/val/test.json.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    identity_disjoint: Annotated[
        bool,
        typer.Option(
            "--identity-disjoint",
            help="Deal people to splits anew, instead of an official split.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    drop_cross_source: Annotated[
        bool,
        typer.Option(
            "--drop-cross-source",
            help="Leave out videos cut from the same footage as another split's.",
            rich_help_panel=INPUT,
        ),
    ] = False,
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
    manipulations: Annotated[
        str | None,
        typer.Option(
            help="Only these fakes, as Deepfakes,FaceSwap, and the reals of their dataset.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="At most so many videos of each manipulation and split, to try things out.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    template: Annotated[
        str, typer.Option(help="Landmark template: arcface or symmetric.", rich_help_panel=MODEL)
    ] = "arcface",
    margin: Annotated[
        float,
        typer.Option(min=1, max=3, help="Room around the face, 1.3 = 30 %.", rich_help_panel=MODEL),
    ] = 1.3,
    out: Annotated[Path, typer.Option(help="Folder for the crops.", rich_help_panel=OUTPUT)],
    qualities: Annotated[
        str | None,
        typer.Option(
            help="raw, cNN (H.264 at CRF NN), jNN (JPEG at quality NN); default raw,c23,c40, and "
            "for shipped face crops whatever there is.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    use_shipped: Annotated[
        bool,
        typer.Option(
            "--use-shipped",
            help="Take qualities that the dataset ships instead of making them.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    frames: Annotated[
        int, typer.Option(min=1, help="Frames per video, evenly spread.", rich_help_panel=OUTPUT)
    ] = 32,
    size: Annotated[
        int, typer.Option(min=32, max=1024, help="Side of a crop, px.", rich_help_panel=OUTPUT)
    ] = 256,
    tracks: Annotated[
        str, typer.Option(help="Faces kept per video: main or all.", rich_help_panel=OUTPUT)
    ] = "main",
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="png, or webp: lossless too, about half the size, slow to write.",
            rich_help_panel=OUTPUT,
        ),
    ] = "png",
    quiet: Quiet = False,
    as_json: Json = False,
    seed: Annotated[
        int, typer.Option(help="Deals identities to splits.", rich_help_panel=RUNTIME)
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; default one per core.", rich_help_panel=RUNTIME),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A Dask scheduler, as tcp://HOST:8786, whose workers do the work.",
            rich_help_panel=RUNTIME,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Look for damage in --out, and change nothing.",
            rich_help_panel=RUNTIME,
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Remove what is damaged in --out, and make it again.",
            rich_help_panel=RUNTIME,
        ),
    ] = False,
    allow_identity_overlap: Annotated[
        bool,
        typer.Option(
            "--allow-identity-overlap",
            help="Accept a person in two splits.",
            rich_help_panel=RUNTIME,
        ),
    ] = False,
    allow_other_versions: Annotated[
        bool,
        typer.Option(
            "--allow-other-versions",
            help="Continue a folder that other library versions began.",
            rich_help_panel=RUNTIME,
        ),
    ] = False,
    allow_other_files: Annotated[
        bool,
        typer.Option(
            "--allow-other-files",
            help="Replace finished videos though most come from other files now.",
            rich_help_panel=RUNTIME,
        ),
    ] = False,
    max_frames: Annotated[
        int,
        typer.Option(min=1, help="Decode no more of a video.", rich_help_panel=RUNTIME),
    ] = 3000,
    max_megapixels: Annotated[
        float,
        typer.Option(min=0.01, help="Refuse larger pictures and frames.", rich_help_panel=RUNTIME),
    ] = 40,
    max_gigabytes: Annotated[
        float, typer.Option(min=0.001, help="Refuse larger files.", rich_help_panel=RUNTIME)
    ] = 4,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Give up on a file after.", rich_help_panel=RUNTIME)
    ] = 1800,
    max_memory: Annotated[
        float,
        typer.Option(min=0.1, help="GB that one file may need.", rich_help_panel=RUNTIME),
    ] = 6,
    dry_run: DryRun = False,
) -> None:
    """Cut aligned face crops at every quality from videos and photos.

    Example: dfdetect prepare videos/ --out data/ --qualities raw,c23,c40

    A folder holds real/** and fake/MANIPULATION/**. Rerunning skips what is finished.
    """
    from dfdetect import prepare as verb
    from dfdetect.audit import audit
    from dfdetect.datasets.base import DatasetOptions
    from dfdetect.errors import unknown
    from dfdetect.faces import TEMPLATES, CropRecipe
    from dfdetect.quality import parse_qualities
    from dfdetect.video import Limits

    if verify:
        _verify(out, quiet, as_json)
        return
    for given, choices, what in (
        (template, TEMPLATES, "template"),
        (tracks, ("main", "all"), "choice of tracks"),
        (format_, ("png", "webp"), "format"),
    ):
        if given not in choices:
            raise unknown(what, given, choices)
    if import_:
        root, source, dataset = root or source, import_, "deepfakebench"
    if source is None:
        raise DfdetectError("no source given", "name a folder, a table or --import FILE.json")
    options = DatasetOptions(
        splits, key_values(columns, "--columns"), key_values(where, "--where"),
        identity_disjoint, drop_cross_source, root,
        tuple(n.strip() for n in (manipulations or "").split(",") if n.strip()), limit,
    )  # fmt: skip
    names = tuple(q.name for q in parse_qualities(qualities)) if qualities else ()
    crop = CropRecipe(size=size, template=template, margin=margin)
    recipe = verb.PrepareRecipe(names, frames, tracks, format_, use_shipped, max_frames, crop)
    allowed = verb.Allowed(allow_identity_overlap, allow_other_versions, allow_other_files)
    if dry_run:
        plan = verb.plan(source, out, recipe, dataset, options, seed, allowed)
        _show_plan(plan, as_json)
        return
    limits = Limits(int(max_gigabytes * 2**30), int(max_megapixels * 1e6))
    running = verb.Running(workers or os.cpu_count() or 1, limits, max_seconds, max_memory, cluster)
    with progress("prepare", quiet or as_json) as update:
        summary = verb.prepare(
            source, out, recipe, dataset, options, running, seed, allowed, repair,
            lambda plan: _say_listing(plan.listing, quiet or as_json),
            lambda n_done, n_total, video, _: update(n_done, n_total, video.source),
        )  # fmt: skip
    for failure in summary.failures[:10]:
        warn(f"{failure.message}; {failure.hint}" if failure.hint else failure.message)
    if len(summary.failures) > 10:
        warn(f"{len(summary.failures) - 10} more failures are listed in {out / 'failures.csv'}")
    if summary.unmended:
        first, n = summary.unmended[0], len(summary.unmended)
        warn(f"{n} damaged videos are not in this source and stay damaged, the first {first}")
    with progress("audit", quiet or as_json) as update:
        findings = audit([out], False, update)
    if as_json:
        rows = [finding._asdict() for finding in findings if finding.status != "OK"]
        show_json(_summary_json(summary) | {"audit": rows})
    else:
        from dfdetect.reports.table import audit_note, prepare_table

        show(prepare_table(summary), audit_note(findings))
    if summary.failures:
        raise typer.Exit(int(ExitCode.PARTIAL))


def _say_listing(listing, quiet: bool) -> None:
    """What the dataset found and what it misses, before the work begins."""
    if quiet or not (listing.home or listing.notes or listing.missing):
        return
    from dfdetect.reports.table import listing_lines

    for line in listing_lines(listing):
        say(line)


def _verify(out: Path, quiet: bool, as_json: bool) -> None:
    from dfdetect.integrity import find_damage

    with progress("verify", quiet or as_json) as update:
        problems = find_damage(out, update)
    if as_json:
        rows = [{"path": str(p.path), "problem": p.what} for p in problems]
        show_json({"schema_version": 1, "problems": rows})
    else:
        for problem in problems:
            warn(f"{problem.path}: {problem.what}")
        show(
            f"{len(problems)} problems found; run prepare with --repair and the source"
            if problems
            else f"{out}: every part and every crop is as it was written"
        )
    if problems:
        raise typer.Exit(int(ExitCode.PARTIAL))


def _show_plan(plan, as_json: bool) -> None:
    from dfdetect.prepare import BYTES_PER_CROP
    from dfdetect.reports.table import listing_lines, plan_table
    from dfdetect.video import IMAGE_SUFFIXES

    recipe = plan.recipe
    n_stills = sum(v.path.suffix.lower() in IMAGE_SUFFIXES for v in plan.videos)
    n_videos = len(plan.videos) - n_stills
    n_crops = (n_videos * recipe.frames + n_stills) * len(recipe.qualities)
    megabytes = n_crops * BYTES_PER_CROP[recipe.format] * (recipe.crop.size / 256) ** 2 / 1e6
    if as_json:
        show_json(
            {
                "schema_version": 1,
                "videos": n_videos,
                "pictures": n_stills,
                "finished": len(plan.finished),
                "changed": len(plan.changed),
                "found": dict(plan.listing.found),
                "missing": {part: len(names) for part, names in plan.listing.missing.items()},
                "notes": list(plan.listing.notes),
                "crops_at_most": n_crops,
                "megabytes_at_most": round(megabytes),
            }
        )
        return
    show(
        *listing_lines(plan.listing),
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
        "changed": summary.n_changed,
        "from_other_sources": summary.n_elsewhere,
        "still_damaged": summary.unmended,
        "failures": [failure._asdict() for failure in summary.failures],
        "stage_s": {stage: round(seconds, 2) for stage, seconds in summary.stage_s.items()},
        "elapsed_s": round(summary.elapsed_s, 2),
    }
