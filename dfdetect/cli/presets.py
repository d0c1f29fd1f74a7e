"""dfdetect presets"""

from typing import Annotated

import typer

from dfdetect.cli.edge import MODEL, Json, show, show_json


def presets(
    name: Annotated[
        str | None, typer.Argument(help="Show this one whole.", rich_help_panel=MODEL)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the training recipes, or show one.

    Example: dfdetect presets qad-effb1
    """
    from dfdetect.presets import list_presets, load_preset
    from dfdetect.reports.table import mapping_table, rows_table

    names = [name] if name else list(list_presets())
    loaded = [load_preset(n) for n in names]
    if as_json:
        for preset in loaded:
            show_json(preset.model_dump(mode="json"))
    elif name:
        show(mapping_table(name, loaded[0].model_dump(mode="json")))
    else:
        rows = [(p.name, p.method.name, p.backbone.name, p.reproduces) for p in loaded]
        show(rows_table("presets", ("name", "method", "backbone", "reproduces"), rows))
