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
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from dfdetect.checkpoint import choose_device
from dfdetect.comparison import Figure, figures_of, over_seeds, read_measured
from dfdetect.errors import DfdetectError, ExitCode, unknown
from dfdetect.files import (
    folder_lock,
    make_folder,
    read_json,
    sweep_unfinished,
    write_json,
    write_whole,
)
from dfdetect.grids import Grid, GridCell, expand
from dfdetect.manifest import fingerprint, read_samples
from dfdetect.methods import method_options
from dfdetect.quality import ordered
from dfdetect.runs import refuse_other_preset

POLL_S = 0.2
"""How often the children are looked after."""
TAIL_BYTES = 20_000
"""Of a log, where its last lines are looked for."""

Event = dict[str, Any]
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
        with closing(_run(todo, task, out, devices, on_event)) as ended:
            for state in ended:
                states[state.cell.name] = state
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
    noted = _noted(folder)
    if noted.get("status") == "failed":
        return CellState(cell, "failed", noted["error"])
    if not begun or noted.get("status") != "finished":
        return CellState(cell, "begun" if begun else "not begun")
    if noted["data"] != task.fingerprints:
        raise DfdetectError(
            f"{folder}: was trained on data {', '.join(noted['data'])}, "
            f"--data now holds {', '.join(task.fingerprints)}",
            "give the data it was trained on, or choose another --out",
        )
    if (noted["split"], noted["qualities"]) != (task.split, task.qualities):
        return CellState(cell, "begun")  # trained, to be measured anew
    try:
        read_measured(folder / "eval")
    except DfdetectError:
        return CellState(cell, "begun")
    return CellState(cell, "finished")


def _noted(folder: Path) -> dict[str, Any]:
    """What is known of a cell besides its run; nothing if the note was damaged."""
    try:
        return read_json(folder / "cell.json")
    except DfdetectError:
        return {}


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


class _Attempt:
    """One cell on one device: its commands, one child process after the other."""

    def __init__(self, cell: GridCell, task: _Task, out: Path, device: str, n_cpu: int) -> None:
        self.cell, self.folder, self.device = cell, out / cell.name, device
        self.resumed = (self.folder / "run.json").exists()
        self._began = time.monotonic()
        self._environment = dict(os.environ)
        if device == "cpu" and n_cpu > 1:  # those on one CPU share its cores
            share = max(1, (os.cpu_count() or 1) // n_cpu)
            self._environment.setdefault("OMP_NUM_THREADS", str(share))
        self._commands = _commands(cell, task, self.folder, device, self.resumed)
        make_folder(self.folder)
        (self.folder / "cell.json").unlink(missing_ok=True)
        self._start_next()

    def is_over(self, stopped: bool) -> bool:
        """Whether no child runs any more; starts the next command after one that went well."""
        if self.child.poll() == 0 and self._commands and not stopped:
            self._start_next()
        return self.child.poll() is not None

    @property
    def is_finished(self) -> bool:
        return self.child.poll() == 0 and not self._commands

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def error(self) -> str:
        """Why the last command failed, in its own words where it left any."""
        if self.child.returncode < 0:
            name = signal.Signals(-self.child.returncode).name
            return f"killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")
        lines = [line for line in _tail(self.folder / "log.txt") if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines)[-1]

    @property
    def progress(self) -> str:
        """The cell and its newest step."""
        for line in reversed(_tail(self.folder / "metrics.jsonl")):
            with suppress(ValueError):  # half a line
                return f"{self.cell.name}: step {json.loads(line)['step']}"
        return self.cell.name

    def _start_next(self) -> None:
        command = self._commands.pop(0)
        with (self.folder / "log.txt").open("ab") as log:
            log.write(f"$ dfdetect {shlex.join(command)}\n".encode())
            log.flush()
            # In a group of its own: Ctrl-C reaches it through us, once.
            self.child = subprocess.Popen(
                [sys.executable, "-m", "dfdetect", *command], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=self._environment, start_new_session=True,
            )  # fmt: skip


def _commands(
    cell: GridCell, task: _Task, folder: Path, device: str, resume: bool
) -> list[list[str]]:
    """What a user would type for the cell, after `dfdetect`."""
    data = [part for path in task.data for part in ("--data", str(path))]
    train = ["train", "--preset", cell.preset, *data, "--out", str(folder), "--device", device]
    train += [part for override in cell.overrides for part in ("--set", override)]
    train += ["--resume"] if resume else []
    train += ["--allow-audit-fail"] if task.allow_audit_fail else []
    measure = [
        "eval", str(folder), *data, "--split", task.split, "--qualities", task.qualities,
        "--out", str(folder / "eval"), "--device", device,
    ]  # fmt: skip
    return [train, measure]


def _run(
    todo: Sequence[GridCell], task: _Task, out: Path, devices: Sequence[str],
    on_event: Callable[[Event], None],
) -> Iterator[CellState]:  # fmt: skip
    """Yields each cell as it ends. Errors: DfdetectError when a signal stopped it."""
    waiting, n_done = list(todo), 0
    running: dict[int, _Attempt] = {}
    with _stop_signals(running) as stopped:
        while running or (waiting and not stopped):
            for slot, device in enumerate(devices):
                if slot not in running and waiting and not stopped:
                    n_cpu = devices.count("cpu")
                    attempt = _Attempt(waiting.pop(0), task, out, device, n_cpu)
                    running[slot] = attempt
                    on_event(_event("begin", attempt))
            for slot, attempt in list(running.items()):
                if not attempt.is_over(bool(stopped)):
                    continue
                del running[slot]
                if stopped and not attempt.is_finished:
                    continue  # begun, for the next time
                n_done += 1
                state = _ended(attempt, task)
                on_event(_event("end", attempt) | {"status": state.status, "error": state.error})
                yield state
            text = "; ".join(attempt.progress for attempt in running.values())
            on_event({"kind": "progress", "done": n_done, "total": len(todo), "text": text})
            time.sleep(POLL_S)
    if stopped:
        raise DfdetectError(
            f"stopped with {n_done} of {len(todo)} cells done; those running saved their state",
            "the same command again continues",
            ExitCode.INTERRUPTED if stopped[0] == signal.SIGINT else ExitCode.TERMINATED,
        )


def _event(kind: str, attempt: _Attempt) -> Event:
    return {
        "kind": kind, "cell": attempt.cell.name, "device": attempt.device,
        "resumed": attempt.resumed, "seconds": attempt.seconds,
        "log": str(attempt.folder / "log.txt"),
    }  # fmt: skip


def _ended(attempt: _Attempt, task: _Task) -> CellState:
    """Note how a cell ended, last of all it leaves."""
    if not attempt.is_finished:
        state = CellState(attempt.cell, "failed", attempt.error)
        write_json(attempt.folder / "cell.json", {"status": "failed", "error": state.error})
        return state
    state = _with_figures(attempt.folder, CellState(attempt.cell, "finished"))
    write_json(
        attempt.folder / "cell.json",
        {
            "status": "finished",
            "data": task.fingerprints,
            "split": task.split,
            "qualities": task.qualities,
        },
    )
    return state


@contextmanager
def _stop_signals(running: Mapping[int, _Attempt]) -> Iterator[list[int]]:
    """Collects what asks us to stop and passes it on to the children, which save their state; a
    second one kills them. None is left running at the end, however that comes."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        for attempt in running.values():
            attempt.child.send_signal(signal.SIGKILL if received else number)
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    with suppress(ValueError):  # not in the main thread: whoever owns it decides
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for attempt in running.values():
            attempt.child.terminate()
            attempt.child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _tail(path: Path) -> list[str]:
    """The last lines of a file, none if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


# --- after -----------------------------------------------------------------------------------


def _with_figures(folder: Path, state: CellState) -> CellState:
    """What eval wrote, with intervals, and the step of the best checkpoint."""
    best = None
    for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines():
        event = json.loads(line)
        best = event["step"] if event["kind"] == "val" and event["is_best"] else best
    figures = figures_of(state.cell.name, read_measured(folder / "eval"))
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
