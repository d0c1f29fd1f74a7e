"""sweep: a grid of trainings -> a run folder and figures for each cell -> one table.

    OUT/sweep.yaml (the grid's cells, resolved)  sweep.csv
    OUT/CELL/  what train writes, log.txt, cell.json, eval/

Each cell is trained and measured by child processes that run the commands a user would type: one
that crashes, diverges or wants too much memory costs that cell and is listed. A cell is finished
when cell.json says so, which is written last and names the data and split that were measured.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from dfdetect.checkpoint import choose_device
from dfdetect.children import NOTE, Ended, Event, Job, noted, run_jobs
from dfdetect.comparison import Figure, figures_of, over_seeds
from dfdetect.errors import DfdetectError, unknown
from dfdetect.files import (
    folder_lock,
    sweep_unfinished,
    write_json,
    write_whole,
)
from dfdetect.grids import Grid, GridCell, expand
from dfdetect.manifest import fingerprint, read_samples
from dfdetect.methods import method_options
from dfdetect.predictions import read_results
from dfdetect.quality import ordered
from dfdetect.runs import refuse_other_preset

Status = Literal["finished", "failed", "begun", "not begun"]


@dataclass(frozen=True)
class CellState:
    """How far a cell has come: `error` of a failed one, the rest of a finished one."""

    cell: GridCell
    status: Status
    error: str = ""
    best_step: int | None = None
    figures: tuple[Figure, ...] = ()


class SweepResult(NamedTuple):
    """Every cell of the grid, and the means of those that differ only in their seed."""

    name: str
    split: str
    cells: list[CellState]
    means: list[Figure]

    @property
    def failed(self) -> list[CellState]:
        return [state for state in self.cells if state.status == "failed"]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "name": self.name,
            "split": self.split,
            "cells": [
                {
                    "cell": s.cell.name, "preset": s.cell.preset, "overrides": s.cell.overrides,
                    "axes": s.cell.axes, "seed": s.cell.seed, "status": s.status,
                    "error": s.error, "best_step": s.best_step,
                    "figures": [asdict(f) for f in s.figures],
                }
                for s in self.cells
            ],
            "means": [asdict(f) for f in self.means],
        }  # fmt: skip


class _Task(NamedTuple):
    """What the cells of a sweep share."""

    data: list[Path]
    fingerprints: list[str]
    split: str
    qualities: str
    allow_audit_fail: bool


def plan_sweep(
    grid: Grid,
    data: Sequence[Path],
    out: Path,
    weights: str | None = None,
    only: Sequence[str] = (),
) -> list[CellState]:
    """The cells `sweep` would look at and how far they have come; writes nothing.

    Errors: as `sweep`, before any work.
    """
    cells, task = _checked(grid, data, weights, False)
    return [_state(out / cell.name, cell, task) for cell in _chosen(cells, only)]


def sweep(
    grid: Grid,
    data: Sequence[Path],
    out: Path,
    devices: Sequence[str] = ("auto",),
    weights: str | None = None,
    only: Sequence[str] = (),
    allow_audit_fail: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> SweepResult:
    """Train and measure what is not finished, one cell at a time on each of `devices`.

    `only` are names of cells, or patterns of them with * and ?; the result holds all cells.

    Errors: DfdetectError for a grid that does not fit, a cell whose options or data are no longer
    those it was trained with, a folder in use, 130 or 143 when interrupted (rerunning continues).
    A cell that fails is none: it is in the result.
    """
    for device in devices:
        choose_device(device)
    cells, task = _checked(grid, data, weights, allow_audit_fail)
    chosen = _chosen(cells, only)
    with folder_lock(out):
        sweep_unfinished(out)
        states = {cell.name: _state(out / cell.name, cell, task) for cell in cells}
        for name, state in states.items():
            if state.status == "finished":
                states[name] = _with_figures(out / name, state)
        write_whole(out / "sweep.yaml", _resolved(grid, cells))
        todo = [cell for cell in chosen if states[cell.name].status != "finished"]
        write_whole(out / "sweep.csv", _as_csv(result := _result(grid, states)))
        by_name = {cell.name: cell for cell in cells}
        jobs = [_job(cell, task, out) for cell in todo]
        with closing(run_jobs(jobs, devices, on_event)) as ending:
            for ended in ending:
                cell = by_name[ended.job.name]
                states[cell.name] = _ended(ended, cell, task)
                write_whole(out / "sweep.csv", _as_csv(result := _result(grid, states)))
        return result


# --- before ----------------------------------------------------------------------------------


def _checked(
    grid: Grid, data: Sequence[Path], weights: str | None, allow_audit_fail: bool
) -> tuple[list[GridCell], _Task]:
    """Everything that can be known to be wrong before hours are spent."""
    cells = expand(grid, weights)
    for cell in cells:
        try:
            method_options(cell.recipe)
        except DfdetectError as error:
            where = f"grid {grid.name}, cell {cell.name}"
            raise DfdetectError(f"{where}: {error.message}", error.hint) from error
    samples = [read_samples(folder) for folder in data]
    prepared = ordered({s.quality for rows in samples for s in rows})
    task = _Task(
        list(data), [fingerprint(rows) for rows in samples], grid.split,
        grid.qualities or ",".join(prepared), allow_audit_fail,
    )  # fmt: skip
    return cells, task


def _state(folder: Path, cell: GridCell, task: _Task) -> CellState:
    """Errors: DfdetectError for a cell that was trained with other options or on other data."""
    begun = (folder / "run.json").exists()
    if begun:
        try:
            refuse_other_preset(folder, cell.recipe)
        except DfdetectError as error:
            hint = "give the cell another name, delete its folder, or choose another --out"
            raise DfdetectError(error.message, hint) from error
    note = noted(folder)
    if note.get("status") == "failed":
        return CellState(cell, "failed", note["error"])
    if not begun or note.get("status") != "finished":
        return CellState(cell, "begun" if begun else "not begun")
    if note["data"] != task.fingerprints:
        raise DfdetectError(
            f"{folder}: was trained on data {', '.join(note['data'])}, "
            f"--data now holds {', '.join(task.fingerprints)}",
            "give the data it was trained on, or choose another --out",
        )
    if (note["split"], note["qualities"]) != (task.split, task.qualities):
        return CellState(cell, "begun")  # trained, to be measured anew
    try:
        read_results(folder / "eval")
    except DfdetectError:
        return CellState(cell, "begun")
    return CellState(cell, "finished")


def _chosen(cells: Sequence[GridCell], only: Sequence[str]) -> list[GridCell]:
    """Errors: DfdetectError for a pattern that fits no cell."""
    names = [cell.name for cell in cells]
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unknown("cell for --only", pattern, names)
    return [c for c in cells if not only or any(fnmatchcase(c.name, p) for p in only)]


def _resolved(grid: Grid, cells: Sequence[GridCell]) -> str:
    """The grid again, every cell by name: it can be swept itself."""
    content = grid.model_dump(exclude={"preset", "set", "axes", "cells", "seeds"})
    content["cells"] = {
        cell.name: {
            "preset": cell.preset,
            "set": {
                key: yaml.safe_load(value)
                for key, _, value in (override.partition("=") for override in cell.overrides)
            },
        }
        for cell in cells
    }
    return yaml.safe_dump(content, sort_keys=False)


# --- running ---------------------------------------------------------------------------------


def _job(cell: GridCell, task: _Task, out: Path) -> Job:
    """What a user would type for the cell."""
    folder = out / cell.name
    resumed = (folder / "run.json").exists()
    data = [part for path in task.data for part in ("--data", str(path))]

    def commands(device: str) -> list[list[str]]:
        train = ["train", "--preset", cell.preset, *data, "--out", str(folder), "--device", device]
        train += [part for override in cell.overrides for part in ("--set", override)]
        train += ["--resume"] if resumed else []
        train += ["--allow-audit-fail"] if task.allow_audit_fail else []
        measure = [
            "eval", str(folder), *data, "--split", task.split, "--qualities", task.qualities,
            "--out", str(folder / "eval"), "--device", device,
        ]  # fmt: skip
        return [train, measure]

    return Job(cell.name, folder, commands, resumed)


def _ended(ended: Ended, cell: GridCell, task: _Task) -> CellState:
    """Note how a cell ended, last of all it leaves."""
    folder = ended.job.folder
    if ended.error:
        write_json(folder / NOTE, {"status": "failed", "error": ended.error})
        return CellState(cell, "failed", ended.error)
    state = _with_figures(folder, CellState(cell, "finished"))
    write_json(
        folder / NOTE,
        {
            "status": "finished",
            "data": task.fingerprints,
            "split": task.split,
            "qualities": task.qualities,
        },
    )
    return state


# --- after -----------------------------------------------------------------------------------


def _with_figures(folder: Path, state: CellState) -> CellState:
    """What eval wrote, with intervals, and the step of the best checkpoint."""
    best = None
    for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines():
        event = json.loads(line)
        best = event["step"] if event["kind"] == "val" and event["is_best"] else best
    figures = figures_of(state.cell.name, read_results(folder / "eval"))
    return replace(state, best_step=best, figures=tuple(figures))


def _result(grid: Grid, states: Mapping[str, CellState]) -> SweepResult:
    groups: dict[str, list[CellState]] = {}
    for state in states.values():
        if state.status == "finished":
            groups.setdefault(state.cell.group, []).append(state)
    means = [
        figure
        for group, same in groups.items() if len(same) > 1
        for figure in over_seeds(group, [state.figures for state in same])
    ]  # fmt: skip
    return SweepResult(grid.name, grid.split, list(states.values()), means)


def _as_csv(result: SweepResult) -> str:
    """A line per cell and figure; of a cell without figures one line that says why."""
    axes = list(dict.fromkeys(option for state in result.cells for option in state.cell.axes))
    names = [f.name for f in fields(Figure) if f.name != "cell"]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["cell", "preset", *axes, "seed", "status", "error", "best_step", *names],
        lineterminator="\n",
    )  # fmt: skip
    writer.writeheader()
    for state in result.cells:
        cell = state.cell
        line = cell.axes | {
            "cell": cell.name, "preset": cell.preset, "seed": cell.recipe.seed,
            "status": state.status, "error": state.error, "best_step": state.best_step,
        }  # fmt: skip
        writer.writerows([line | asdict(f) for f in state.figures] or [line])
    for figure in result.means:
        (cell, *_) = [s.cell for s in result.cells if s.cell.group == figure.cell]
        writer.writerow(cell.axes | {"preset": cell.preset} | asdict(figure))
    return text.getvalue()
