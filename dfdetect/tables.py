"""Tables and figures of the papers: a grid of trainings, what each is tested on, what is printed.

A table is a grid (grids.py) with columns and rows on top, and can be swept as one on other data. A
row is a cell of the grid, or a model that is not trained here; a column is a data set and which
number of the measurement stands there.
"""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dfdetect.errors import DfdetectError, unknown
from dfdetect.files import read_yaml
from dfdetect.grids import Grid
from dfdetect.presets import listed, preset_folders
from dfdetect.quality import parse_qualities

Metric = Literal["auc", "eer", "accuracy", "domains"]
"""`domains`: the share of crops whose forgery technique the domain head names rightly."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


SHORT = {
    "Deepfakes": "DF", "Face2Face": "F2F", "FaceSwap": "FS", "NeuralTextures": "NT",
    "FaceShifter": "FSH",
}  # fmt: skip
"""What the fakes of FaceForensics++ are called in names of folders, as in the papers."""


class DataName(NamedTuple):
    """A line of the datasets' shelf, and which of its fakes; all of them where none is named."""

    dataset: str
    manipulations: tuple[str, ...] = ()

    def __str__(self) -> str:
        fakes = "+".join(self.manipulations)
        return f"{self.dataset}:{fakes}" if fakes else self.dataset

    @property
    def label(self) -> str:
        """As part of a folder's name."""
        fakes = "+".join(SHORT.get(name, name) for name in self.manipulations)
        return f"{self.dataset}-{fakes}" if fakes else self.dataset


def parse_data(text: str) -> DataName:
    """`celebdf`, or `ffpp:Deepfakes+FaceSwap`: those fakes of it and their reals."""
    dataset, _, names = text.partition(":")
    return DataName(dataset.strip(), tuple(n.strip() for n in names.split("+") if n.strip()))


class Column(_Section):
    """A data set and a number of what is measured on it. What is not said is the table's."""

    test: str = Field(description="data set, as ffpp:NeuralTextures")
    train: str | None = Field(None, description="data set trained on; default: the tested one")
    qualities: str | None = Field(None, description="measured at these")
    quality: str | None = Field(None, description="shown: one of them, mean or pooled")
    metric: Metric | None = None
    manipulation: str | None = Field(None, description="default: all together")

    @field_validator("qualities", mode="before")
    @classmethod
    def _qualities(cls, value: Any) -> Any:
        return value and ",".join(listed(value))


class Row(_Section):
    """A model by the paper's name, the cell of the grid that it is, and what is printed of it."""

    name: str
    cell: str | None = Field(None, description="of the grid; none: not available here")
    cell_at: dict[str, str] = Field({}, description="several models: the cell for each quality")
    quoted: bool = Field(False, description="the paper's numbers are from others' weights or text")
    paper: list[float | None] = Field([], description="a number for each column, and the average")


class Table(Grid):
    """What one table or figure of a paper shows."""

    unit: Literal["percent", "fraction"] = "fraction"
    level: Literal["frame", "video"] = "frame"
    train: str | None = Field(None, description="data set that every column trains on")
    quality: str = "pooled"
    metric: Metric = "auc"
    columns: dict[str, Column]
    average: str | None = Field(None, description="heading of a last column, the others' mean")
    rows: dict[str, Row] = Field({}, description="default: the cells of the grid")
    figure: Literal["heatmap", "sizes", "tsne", "roc", "domains", "attention"] | None = None
    notes: list[str] = Field([], description="what the paper leaves open, and its slips")

    @model_validator(mode="after")
    def _complete(self) -> "Table":
        n = len(self.columns) + bool(self.average)
        for key, row in self.rows.items():
            if len(row.paper) not in (0, n):
                raise ValueError(f"row {key} has {len(row.paper)} numbers for {n} columns")
            if row.quoted and (row.cell or row.cell_at):
                raise ValueError(f"row {key} is quoted, and so trains no cell")
        for name, column in self.columns.items():
            if not (column.qualities or self.qualities):
                raise ValueError(f"column {name} says at which qualities it is measured nowhere")
        return self

    @property
    def factor(self) -> int:
        """What a fraction is multiplied by to be in the table's unit."""
        return 100 if self.unit == "percent" else 1

    @property
    def headings(self) -> list[str]:
        return [*self.columns, *([self.average] if self.average else [])]

    @property
    def data(self) -> list[str]:
        """The data sets that it needs."""
        names = [
            data.dataset
            for c in self.columns.values() for data in (self.trained_on(c), parse_data(c.test))
        ]  # fmt: skip
        return list(dict.fromkeys(names))

    def at(self, column: Column) -> list[str]:
        """The qualities that a column is measured at."""
        names = (column.qualities or self.qualities or "").split(",")
        return [q.name for q in parse_qualities(names, made=True)]

    def trained_on(self, column: Column) -> DataName:
        return parse_data(column.train or self.train or column.test)


def list_tables() -> dict[str, Path]:
    """{name: file} of the tables that come with the tool."""
    folders = [folder / "tables" for folder in reversed(preset_folders())]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def load_table(name: str) -> Table:
    """A table by name or path of a YAML file.

    Errors: DfdetectError for an unknown name or a file that is not a table, naming the key.
    """
    known = list_tables()
    is_path = name.endswith((".yaml", ".yml")) or os.sep in name
    if not is_path and name not in known:
        raise unknown("table", name, known)
    path = Path(name) if is_path else known[name]
    content = read_yaml(path)
    if not isinstance(content, dict) or "columns" not in content:
        raise DfdetectError(f"{path}: not a table (a mapping with columns, cells and rows)")
    try:
        return Table.model_validate({"name": path.stem} | content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = {"rows": Row, "columns": Column}.get(str(first["loc"][0]), Table)
            raise unknown(f"key in table {path.stem}:", place, known.model_fields) from error
        message = first["msg"].removeprefix("Value error, ")
        raise DfdetectError(
            f"table {path.stem}: {place + ': ' if place else ''}{message}",
            f"a table has the keys {', '.join(Table.model_fields)}",
        ) from error
