"""Grids: a YAML file that names many trainings at once -> one cell per training.

A grid holds named `cells`, `axes` of options with their values, and `seeds`; every combination is
one cell. Options are those of a preset, written as for `train --set`.
"""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dfdetect.errors import DfdetectError, unknown
from dfdetect.files import read_yaml
from dfdetect.presets import Preset, listed, load_preset, preset_folders
from dfdetect.quality import parse_qualities

LONGEST_NAME = 120
"""Characters of a cell's name, which is a folder's name too."""

Options = dict[str, Any]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CellChoice(_Section):
    """What makes a named cell different."""

    preset: str | None = None
    set: Options = {}


class Grid(_Section):
    """Cells x axes x seeds, all trained from `preset` with the options of `set`."""

    name: str
    reproduces: str = Field(description="which figure or table of which paper, or what it is for")
    preset: str | None = Field(None, description="preset of the cells that name none")
    set: Options = Field({}, description="options of every cell, as optimizer.lr: 1e-3")
    axes: dict[str, list[Any]] = Field({}, description="values an option takes, as a list")
    cells: dict[str, CellChoice] = Field({}, description="named cells: preset, set")
    seeds: list[int] = Field([], description="default: the preset's own")
    split: Literal["val", "test"] = Field("val", description="measured on it")
    qualities: str | None = Field(None, description="measured at these; default: as prepared")

    @field_validator("qualities", mode="before")
    @classmethod
    def _qualities(cls, value: Any) -> Any:
        return value and ",".join(q.name for q in parse_qualities(listed(value), made=True))

    @field_validator("axes")
    @classmethod
    def _axes(cls, axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if empty := [option for option, values in axes.items() if not values]:
            raise ValueError(f"{empty[0]} has no values")
        return axes


@dataclass(frozen=True)
class GridCell:
    """One training: its preset by name, what is set on top, and the whole recipe that gives.

    `axes` are the values of the grid's axes, `group` the name without the seed, `seed` None where
    the grid names no seeds.
    """

    name: str
    group: str
    preset: str
    axes: Options
    seed: int | None
    overrides: tuple[str, ...]
    recipe: Preset


def list_grids() -> dict[str, Path]:
    """{name: file} of the grids that come with the tool; tables of the papers (tables.py) are some
    of them."""
    folders = [f / kind for f in reversed(preset_folders()) for kind in ("tables", "sweeps")]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def load_grid(name: str) -> Grid:
    """A grid by name or path of a YAML file.

    Errors: DfdetectError for an unknown name or a file that is not a grid, naming the key.
    """
    known = list_grids()
    is_path = name.endswith((".yaml", ".yml")) or os.sep in name
    if not is_path and name not in known:
        raise unknown("grid", name, known)
    path = Path(name) if is_path else known[name]
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise DfdetectError(f"{path}: not a grid (a mapping with preset, axes or cells)")
    if "columns" in content:  # a table: what is on top of its grid is for `reproduce`
        content = {key: value for key, value in content.items() if key in Grid.model_fields}
    try:
        return Grid.model_validate({"name": path.stem} | content)
    except ValidationError as error:
        raise _invalid(error, f"grid {path.stem}") from error


def expand(grid: Grid, weights: str | None = None) -> list[GridCell]:
    """Every cell of `grid`, seed by seed; `weights` replaces the choice of every preset.

    Errors: DfdetectError for a cell without a preset, an option that its preset does not have, an
    axis that seeds or weights would replace, or two cells of one name.
    """
    choices = grid.cells or {"": CellChoice()}
    later = ({"seed"} if grid.seeds else set()) | ({"backbone.weights"} if weights else set())
    if replaced := sorted(later & set(grid.axes)):
        raise DfdetectError(
            f"grid {grid.name}: {replaced[0]} is an axis, and its values would be replaced",
            "leave seeds, or --weights, out",
        )
    combinations = [dict(zip(grid.axes, v, strict=True)) for v in product(*grid.axes.values())]
    cells = [
        _cell(grid, name, choice, axes, seed, weights)
        for seed in grid.seeds or [None]  # first, so that an unfinished sweep compares something
        for name, choice in choices.items()
        for axes in combinations
    ]
    names = [cell.name for cell in cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DfdetectError(
            f"grid {grid.name}: two cells are called {twice[0]!r}", "list no value or seed twice"
        )
    return cells


def _cell(
    grid: Grid, name: str, choice: CellChoice, axes: Options, seed: int | None, weights: str | None
) -> GridCell:
    preset = choice.preset or grid.preset
    if preset is None:
        raise DfdetectError(
            f"grid {grid.name}: cell {name or 'of the axes'} has no preset",
            "write preset: NAME in the grid or in the cell",
        )
    options = grid.set | choice.set | axes
    options |= {} if seed is None else {"seed": seed}
    options |= {} if weights is None else {"backbone.weights": weights}
    overrides = tuple(f"{key}={as_yaml(value)}" for key, value in options.items())
    parts = [name] if name else []
    parts += [f"{_short(option, grid.axes)}={_readable(value)}" for option, value in axes.items()]
    group = _checked_name(",".join(parts) or Path(preset).stem, grid)
    where = f"grid {grid.name}, cell {group}"
    try:
        recipe = load_preset(preset, overrides)
    except DfdetectError as error:
        raise DfdetectError(f"{where}: {error.message}", error.hint) from error
    full = group if seed is None else f"{group},seed={seed}"
    return GridCell(full, group, preset, axes, seed, overrides, recipe)


def as_yaml(value: Any) -> str:
    """`value` on one line, as `--set` reads it back."""
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf).strip()[1:-1]


def _short(option: str, options: Iterable[str]) -> str:
    """The last part of a dotted option, where no other ends alike."""
    last = option.rpartition(".")[2]
    return last if [o.rpartition(".")[2] for o in options].count(last) == 1 else option


def _readable(value: Any) -> str:
    """`value` as part of a name: a list's entries joined by +."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-")


def _checked_name(name: str, grid: Grid) -> str:
    """Errors: DfdetectError for a name that is no safe name of a folder."""
    if len(name) > LONGEST_NAME or not re.fullmatch(r"\w[\w.=,+-]*", name, re.ASCII):
        raise DfdetectError(
            f"grid {grid.name}: {name[:LONGEST_NAME]!r} cannot name a cell",
            f"letters, digits and . = , + - _, at most {LONGEST_NAME}; list long values as cells",
        )
    return name


def _invalid(error: ValidationError, where: str) -> DfdetectError:
    """The first problem of a validation as one line, with the nearest known key."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = CellChoice.model_fields if first["loc"][0] == "cells" else Grid.model_fields
        return unknown(f"key in {where}:", str(first["loc"][-1]), known)
    return DfdetectError(
        f"{where}: {place}: {first['msg'].lower()} (got {first.get('input')!r})",
        f"a grid has the keys {', '.join(Grid.model_fields)}",
    )
