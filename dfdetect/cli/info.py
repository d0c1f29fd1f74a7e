"""dfdetect info"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import INPUT, OUTPUT, Json, show, show_json
from dfdetect.errors import DfdetectError


def info(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A prepared folder, a run or a checkpoint. Default: the starter detector, which "
            "comes with dfdetect.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card", help="Print a checkpoint's model card (Markdown).", rich_help_panel=OUTPUT
        ),
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Draw crops of the folder into this PNG: a row per sample, a column per quality.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Rows of the sheet. Default: 12, or one per manipulation if those are more.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    forgeries: Annotated[
        bool,
        typer.Option(
            "--forgeries",
            help="PATH is a picture: draw every forgery of its face into --sheet.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    decoders: Annotated[
        Path | None,
        typer.Option(
            help="Trained decoders, which `forge` stores: the forgery reconstruct needs them.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    as_json: Json = False,
    export: Annotated[
        str,
        typer.Option(
            help="Print a prepared folder as a list: deepfakebench (JSON) or csv.",
            rich_help_panel=OUTPUT,
        ),
    ] = "",
) -> None:
    """Describe a prepared folder or a checkpoint.

    Example: dfdetect info data/ --sheet crops.png

    With --forgeries: what each forgery makes of the largest face in a picture.
    """
    from dfdetect.shipped import STARTER

    if path is None:
        if forgeries or sheet or export:
            raise DfdetectError("nothing to describe", "name a folder, a checkpoint or a picture")
        path = STARTER
    if forgeries:
        _show_forgeries(path, sheet or Path("forgeries.png"), decoders)
        return
    from dfdetect.describe import describe
    from dfdetect.reports.table import calibration_tables, mapping_table, rows_table

    if rows is not None and sheet is None:
        raise DfdetectError("--rows is for a sheet", "name its file with --sheet")
    if sheet:
        from dfdetect.reports.sheet import write_sheet

        write_sheet(path, sheet, rows)
    if export:
        _export(path, export)
        return
    if not as_json and (card or path == STARTER):
        from dfdetect.checkpoint import read_info
        from dfdetect.reports.card import model_card

        typer.echo(model_card(read_info(path)))
        return
    description = describe(path)
    if as_json:
        show_json({"schema_version": 1, **description.facts, "rows": description.rows})
        return
    facts = dict(description.facts)
    calibration = facts.pop("calibration") if facts.get("calibration") else None
    show(mapping_table(str(path), facts))
    if calibration:
        from dfdetect.checkpoint import Calibration

        show(calibration_tables(Calibration.model_validate(calibration), "its calibration"))
    if description.rows:
        headings = list(description.rows[0])
        show(rows_table("contents", headings, [list(row.values()) for row in description.rows]))
    if sheet:
        show(f"written to {sheet}")


def _show_forgeries(photo: Path, out: Path, decoders: Path | None) -> None:
    from dfdetect.files import write_whole
    from dfdetect.forge import preview
    from dfdetect.reports.forgeries import Draw, draw_forgeries
    from dfdetect.shipped import read_portrait

    if out.suffix.lower() != ".png":
        raise DfdetectError(f"{out}: the sheet is a PNG", "give a name that ends in .png")
    shown, left_out = preview(photo, read_portrait(), decoders)
    draws = [Draw(s.forgery, s.crop, s.forged.image, s.forged.mask) for s in shown]
    write_whole(out, draw_forgeries(photo.name, draws))
    show(f"written to {out}")
    for name in left_out:
        show(f"without {name}: name trained decoders with --decoders")


def _export(data: Path, name: str) -> None:
    from dfdetect.errors import unknown
    from dfdetect.exports import FORMATS

    if name not in FORMATS:
        raise unknown("export", name, FORMATS)
    content = FORMATS[name](data)
    if isinstance(content, str):
        typer.echo(content, nl=False)
    else:
        show_json(content)
