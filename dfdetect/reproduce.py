"""reproduce: a table or figure of a paper -> cells trained and measured -> its numbers and ours.

    OUT/NAME.csv  NAME.md  NAME.json  NAME-*.png (with the data they show)
    OUT/data/DATASET@QUALITIES/   what prepare made; DATASET-FAKES@QUALITIES/: its part with those
    OUT/runs/RUN/  what train writes, log.txt, cell.json
    OUT/eval/RUN/TEST/  what eval writes

Everything is done by the commands a user would type, in child processes. A run is named after its
preset, its options and its data, so that tables which share an OUT share their runs. What has been
finished is not done again.
"""

import csv
import io
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfdetect.cells import ALL, MEAN, find
from dfdetect.cells import Place as CellPlace
from dfdetect.checkpoint import choose_device
from dfdetect.children import NOTE, Ended, Event, Job, noted, run_jobs
from dfdetect.datasets import SHELF, list_source
from dfdetect.datasets.base import DatasetOptions, folders_in
from dfdetect.domains import Confusion
from dfdetect.errors import DfdetectError, ExitCode, unknown
from dfdetect.files import (
    folder_lock,
    read_json,
    sweep_unfinished,
    write_json,
    write_whole,
)
from dfdetect.grids import GridCell, as_yaml, expand
from dfdetect.manifest import read_table
from dfdetect.methods import method_options
from dfdetect.metrics import roc
from dfdetect.predictions import Columns, Predictions, read_predictions
from dfdetect.presets import Preset, load_preset
from dfdetect.quality import ordered, to_prepare
from dfdetect.reports.documents import Number
from dfdetect.reports.reproduction import reproduction_markdown
from dfdetect.resampling import interval
from dfdetect.runs import refuse_other_preset
from dfdetect.tables import Column, DataName, Row, Table, parse_data

Scale = Literal["full", "smoke"]
SMOKE = {
    "backbone.name": "test_efficientnet.r160_in1k",
    "backbone.weights": "none",
    "image_size": 64,
    "batch_size": 4,
    "epochs": 1,
    "steps_per_epoch": 2,
    "validate_per_epoch": 1,
}
"""What a smoke run sets in every preset, but for what the table itself varies."""
FRAMES, LIMIT = {"full": 32, "smoke": 2}, {"smoke": 4}
"""Frames prepared of each video; videos of each manipulation and split."""
TSNE = {"full": 500, "smoke": 8}
"""Crops of each manipulation in a t-SNE."""
EXPLAINED = {"full": 4, "smoke": 1}
"""Frames shown of each video."""

UNUSED_THRESHOLD = 0.5
"""Of several models together, whose accuracy nobody asks for."""

Status = Literal[
    "finished", "failed", "begun", "not begun", "lacks data", "quoted", "not available here"
]


@dataclass(frozen=True)
class Value:
    """One number of the paper and ours, in the table's unit; None where there is none.

    `low` and `high` bound the middle 95 % of a bootstrap of videos, `reason` says why there is no
    number, `evals` where the measurements lie, `warnings` what eval said of them. n counts frames
    or videos.
    """

    row: str
    model: str
    column: str
    status: Status
    paper: float | None = None
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    n_real: int | None = None
    n_fake: int | None = None
    reason: str = ""
    evals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.row}@{self.column}"

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper


@dataclass(frozen=True)
class Reproduction:
    """Every cell of a table in its order, what it lacks, and the files made of it."""

    table: Table
    scale: Scale
    values: list[Value]
    lacking: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Value]:
        return [value for value in self.values if value.status == "failed"]

    def as_json(self) -> dict[str, Any]:
        table = self.table
        return {
            "schema_version": 1,
            "table": table.name,
            "reproduces": table.reproduces,
            "scale": self.scale,
            "unit": table.unit,
            "level": table.level,
            "split": table.split,
            "cells": [
                {"cell": v.name, **asdict(v), "difference": v.difference} for v in self.values
            ],
            "lacking": self.lacking,
            "notes": table.notes,
            "files": self.files,
        }


def plan_reproduction(
    table: Table,
    root: Path,
    out: Path,
    only: Sequence[str] = (),
    scale: Scale = "full",
    weights: str | None = None,
) -> Reproduction:
    """The cells that `reproduce` would look at and how far they have come; writes nothing.

    Errors: as `reproduce`, before any work.
    """
    plan = _Plan(table, root, out, scale, weights)
    chosen = plan.chosen(only)
    values = [v for v in plan.values() if not v.evals or v.name in chosen]
    return Reproduction(table, scale, values, plan.lacking)


def reproduce(
    table: Table,
    root: Path,
    out: Path,
    only: Sequence[str] = (),
    scale: Scale = "full",
    devices: Sequence[str] = ("auto",),
    weights: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Reproduction:
    """Prepare, train and measure what is not finished, and set it beside what the paper prints.

    `root` holds the data sets' official trees, or folders that prepare made of them; `only` are
    names of cells as ROW@COLUMN, or patterns of them with * and ?; `scale` "smoke" trains tiny
    networks for two steps on a few videos. One job runs on each of `devices` at a time.

    Errors: DfdetectError for a table that does not fit its presets, two trees of one data set, none
    of the data there, a run with other options than now, a folder in use, 130 or 143 when
    interrupted (rerunning continues). A cell that fails or lacks its data is none: it is in the
    result.
    """
    for device in devices:
        choose_device(device)
    plan = _Plan(table, root, out, scale, weights)
    chosen = plan.chosen(only)
    wanted = [test for name in chosen for test in plan.spots[name] if not plan.missing(test)]
    if chosen and not wanted:
        raise DfdetectError(
            f"{root}: holds none of the data that {table.name} needs",
            "; ".join(plan.lacking.values()),
        )
    with folder_lock(out):
        sweep_unfinished(out)
        todo = [test for test in dict.fromkeys(wanted) if not plan.is_measured(test)]
        for ended in _each(plan.preparations(todo), ["cpu"], on_event):
            plan.note_prepared(ended)
        ready = plan.make_parts(todo)
        result = plan.write([])
        for ended in _each(plan.jobs(ready), devices, on_event):
            plan.note_measured(ended, ready)
            result = plan.write([])
        if table.figure:
            result = plan.write(_draw(plan, chosen, devices[0], on_event))
    return result


def _each(
    jobs: Sequence[Job], devices: Sequence[str], on_event: Callable[[Event], None]
) -> Iterator[Ended]:
    with closing(run_jobs(jobs, devices, on_event)) as ending:
        yield from ending


# --- what there is to do ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One training: of a preset with what is set on top, on one data set."""

    name: str
    preset: str
    overrides: tuple[str, ...]
    data: DataName
    recipe: Preset = field(compare=False)


class _Test(NamedTuple):
    """One measurement of a run."""

    run: _Run
    data: DataName
    qualities: tuple[str, ...]
    tsne: int | None

    @property
    def name(self) -> str:
        shown = ",".join(self.qualities) + (",tsne" if self.tsne else "")
        return f"{self.run.name}/{self.data.label}@{shown}"


class _Plan:
    """A table's cells, where their data lies, and how far each has come in OUT."""

    def __init__(
        self, table: Table, root: Path, out: Path, scale: Scale, weights: str | None
    ) -> None:
        if not root.is_dir():
            raise DfdetectError(
                f"{root}: no such folder", "give the folder of the data sets' trees"
            )
        self.table, self.out, self.scale = table, out, scale
        self.spots, self.rows = _spots(table, scale, weights)
        self.errors: dict[str, str] = {}
        self._preparing: dict[str, list[str]] = {}
        self._joined: dict[_Test, _Found] = {}
        self._means: dict[str, tuple[float | None, float | None]] = {}
        self.qualities = _qualities(self._tests())
        self.sources = {dataset: _source(root, dataset) for dataset in self.qualities}
        self._there = {
            dataset: _fakes_in(dataset, source)
            for dataset, source in self.sources.items()
            if source and self._fakes(dataset)
        }
        self.lacking = {
            str(part): _where_to_get(part, root)
            for test in self._tests() for part in self.missing(test)
        }  # fmt: skip

    def chosen(self, only: Sequence[str]) -> list[str]:
        """Errors: DfdetectError for a pattern that fits no cell."""
        for pattern in only:
            if not any(fnmatchcase(name, pattern) for name in self.spots):
                raise unknown("cell for --only", pattern, self.spots)
        return [n for n in self.spots if not only or any(fnmatchcase(n, p) for p in only)]

    def _tests(self) -> Iterator[_Test]:
        for tests in self.spots.values():
            yield from tests

    def missing(self, test: _Test) -> list[DataName]:
        """What is absent of the data that a test and its run need."""
        missing = []
        for data in (test.run.data, test.data):
            if self.sources[data.dataset] is None:
                missing.append(DataName(data.dataset))
            elif absent := set(data.manipulations) - self._there.get(data.dataset, set()):
                missing.append(DataName(data.dataset, tuple(sorted(absent))))
        return missing

    # folders

    def run_folder(self, run: _Run) -> Path:
        return self.out / "runs" / run.name

    def eval_folder(self, test: _Test) -> Path:
        return self.out / "eval" / test.name

    def prepared(self, dataset: str) -> Path:
        """Where the data set is prepared, or is to be: one that has more qualities will do."""
        source = self.sources[dataset]
        if source and _is_prepared(source):
            return source
        needed, smoke = self.qualities[dataset], "+smoke" * (self.scale == "smoke")
        folder = self.out / "data" / f"{dataset}@{'+'.join(needed)}{smoke}"
        for other in sorted((self.out / "data").glob(f"{dataset}@*")):
            has = other.name.partition("@")[2].split("+")
            if set(needed) <= set(has) and ("smoke" in has) == bool(smoke) and not folder.exists():
                return other
        return folder

    def part(self, data: DataName) -> Path:
        """The prepared folder, or that of its part with these fakes."""
        whole = self.prepared(data.dataset)
        if not data.manipulations:
            return whole
        suffix = whole.name.partition("@")[2] or "prepared"
        return self.out / "data" / f"{data.label}@{suffix}"

    # states

    def is_trained(self, run: _Run) -> bool:
        """Errors: DfdetectError for a run that was begun with other options."""
        folder = self.run_folder(run)
        if (folder / "run.json").exists():
            try:
                refuse_other_preset(folder, run.recipe)
            except DfdetectError as error:
                raise DfdetectError(
                    error.message, "delete its folder, or choose another --out"
                ) from error
        return noted(folder).get("status") == "finished"

    def is_measured(self, test: _Test) -> bool:
        """Whether eval has written all, and the run has not been trained anew since."""
        metrics = self.eval_folder(test) / "metrics.json"
        checkpoint = self.run_folder(test.run) / "detector.safetensors"
        if not (self.is_trained(test.run) and metrics.exists() and checkpoint.exists()):
            return False
        return metrics.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns

    def status(self, test: _Test) -> tuple[Status, str]:
        if missing := self.missing(test):
            return "lacks data", f"needs {missing[0]}"
        begun = (self.run_folder(test.run) / "run.json").exists()
        if self.is_measured(test):
            return "finished", ""
        if error := self._unprepared(test) or self.errors.get(test.name):
            return "failed", error
        note = noted(self.run_folder(test.run))
        if note.get("status") == "failed":
            return "failed", note["error"]
        return "begun" if begun else "not begun", ""

    # data

    def preparations(self, todo: Sequence[_Test]) -> list[Job]:
        """A job for each data set that has not been prepared with all that is needed of it."""
        jobs = []
        for dataset in dict.fromkeys(d.dataset for t in todo for d in (t.run.data, t.data)):
            folder, source = self.prepared(dataset), self.sources[dataset]
            if folder == source:
                continue
            fakes = [f for f in self._fakes(dataset) if f in self._there[dataset]]
            done = noted(folder)
            before = done["manipulations"] if done.get("status") == "finished" else None
            if before == [] or (before and fakes and set(fakes) <= set(before)):
                continue
            fakes = sorted({*fakes, *(before or [])}) if fakes else []
            self._preparing[dataset] = fakes
            names = folder.name.partition("@")[2].removesuffix("+smoke").split("+")
            command = [
                "prepare", str(source), "--dataset", dataset, "--out", str(folder),
                "--qualities", ",".join(names), "--frames", str(FRAMES[self.scale]),
                "--allow-identity-overlap",  # official splits, as in the papers
            ]  # fmt: skip
            command += ["--manipulations", ",".join(fakes)] if fakes else []
            command += ["--use-shipped"] if dataset == "ffpp" else []
            command += ["--limit", str(LIMIT[self.scale])] if self.scale in LIMIT else []
            accepted = frozenset({ExitCode.OK, ExitCode.PARTIAL})
            resumed = (folder / "manifest").exists()
            jobs.append(Job(dataset, folder, lambda _, c=command: [c], resumed, accepted))
        return jobs

    def _fakes(self, dataset: str) -> list[str]:
        """Of all the table's cells, so that a data set is prepared once; none named: all."""
        named = [
            data.manipulations
            for test in self._tests() for data in (test.run.data, test.data)
            if data.dataset == dataset
        ]  # fmt: skip
        return [] if () in named else sorted({name for names in named for name in names})

    def note_prepared(self, ended: Ended) -> None:
        dataset, folder = ended.job.name, ended.job.folder
        if ended.error:
            self.errors[dataset] = f"{dataset} was not prepared: {ended.error}"
            write_json(folder / NOTE, {"status": "failed", "error": ended.error})
        else:
            note = {"status": "finished", "manipulations": self._preparing[dataset]}
            write_json(folder / NOTE, note)

    def make_parts(self, todo: Sequence[_Test]) -> list[_Test]:
        """The tests whose data is prepared, the parts of it they need made."""
        for data in dict.fromkeys(d for t in todo for d in (t.run.data, t.data)):
            if data.dataset not in self.errors and data.manipulations:
                try:
                    _make_part(self.prepared(data.dataset), data, self.part(data))
                except DfdetectError as error:
                    self.errors[str(data)] = error.message
        return [test for test in todo if not self._unprepared(test)]

    def _unprepared(self, test: _Test) -> str:
        """Why the data of a test could not be prepared, if so."""
        parts = (test.run.data, test.data)
        causes = [self.errors.get(key) for d in parts for key in (d.dataset, str(d))]
        return next((cause for cause in causes if cause), "")

    # runs

    def jobs(self, todo: Sequence[_Test]) -> list[Job]:
        """One for each run: its training, then what is to be measured of it."""
        jobs = []
        for run in dict.fromkeys(test.run for test in todo):
            tests = [test for test in todo if test.run == run]
            resumed = (self.run_folder(run) / "run.json").exists()

            def commands(device: str, run=run, tests=tests, resumed=resumed) -> list[list[str]]:
                train = [] if self.is_trained(run) else [self._train(run, device, resumed)]
                return train + [self._eval(test, device) for test in tests]

            jobs.append(Job(run.name, self.run_folder(run), commands, resumed))
        return jobs

    def _train(self, run: _Run, device: str, resumed: bool) -> list[str]:
        command = [
            "train", "--preset", run.preset, "--data", str(self.part(run.data)),
            "--out", str(self.run_folder(run)), "--device", device, "--allow-audit-fail",
        ]  # fmt: skip
        command += [part for override in run.overrides for part in ("--set", override)]
        command += ["--resume"] if resumed else []
        return command + (["--workers", "0"] if self.scale == "smoke" else [])

    def _eval(self, test: _Test, device: str) -> list[str]:
        command = [
            "eval", str(self.run_folder(test.run)), "--data", str(self.part(test.data)),
            "--split", self.table.split, "--qualities", ",".join(test.qualities),
            "--out", str(self.eval_folder(test)), "--device", device,
        ]  # fmt: skip
        command += ["--tsne", str(test.tsne)] if test.tsne else []
        return command + (["--workers", "0"] if self.scale == "smoke" else [])

    def note_measured(self, ended: Ended, tests: Sequence[_Test]) -> None:
        """A run whose training went well is finished, whatever became of its measurements."""
        of_run = [test for test in tests if test.run.name == ended.job.name]
        note = {"status": "finished"}
        if ended.error:
            self.errors |= {test.name: ended.error for test in of_run}
        if ended.error and ended.command[0] == "train":
            note = {"status": "failed", "error": ended.error}
        write_json(ended.job.folder / NOTE, note)

    # results

    def values(self) -> list[Value]:
        """Every cell of the table, row by row, with what has been measured."""
        values = []
        for key, row in self.rows.items():
            paper = row.paper or [None] * len(self.table.headings)
            of_row = [
                self._value(key, row.name, name, column, number)
                for (name, column), number in zip(self.table.columns.items(), paper, strict=False)
            ]
            if self.table.average:
                of_row.append(self._average(of_row, paper[-1]))
            values += of_row
        return values

    def _value(
        self, row: str, model: str, column: str, about: Column, paper: float | None
    ) -> Value:
        place = Value(row, model, column, "not available here", paper)
        if self.rows[row].quoted:
            return replace(place, status="quoted")
        tests = self.spots.get(place.name)
        if not tests:
            return place
        place = replace(place, evals=tuple(str(Path("eval") / test.name) for test in tests))
        for test in tests:
            status, reason = self.status(test)
            if status != "finished":
                return replace(place, status=status, reason=reason)
        place = replace(place, status="finished")
        contents = [read_json(self.eval_folder(test) / "metrics.json") for test in tests]
        found = self._joint(tests) if len(tests) > 1 else _found(contents[0], about, self.table)
        warnings = dict.fromkeys(warning for c in contents for warning in c["warnings"])
        numbers = (found.ours, found.low, found.high)
        ours, low, high = (n if n is None else n * self.table.factor for n in numbers)
        return replace(place, ours=ours, low=low, high=high, n_real=found.n_real,
                       n_fake=found.n_fake, reason=found.reason,
                       warnings=tuple(warnings))  # fmt: skip

    def _average(self, values: Sequence[Value], paper: float | None) -> Value:
        """The mean of a row. Its interval takes the columns as drawn independently."""
        first = values[0]
        place = Value(first.row, first.model, str(self.table.average), first.status, paper)
        if missing := [v for v in values if v.ours is None]:
            status = next((v.status for v in missing if v.status != "finished"), first.status)
            reason = f"{missing[0].column} is missing" if first.evals else ""
            return replace(place, status=status, reason=reason)
        low, high = self._average_interval(first.row)
        ours = float(np.mean([v.ours for v in values]))
        return replace(place, status="finished", ours=ours, low=low, high=high)

    def _average_interval(self, row: str) -> tuple[float | None, float | None]:
        if row not in self._means:
            level, scale = self.table.level, self.table.factor
            tests = {column: self.spots[f"{row}@{column}"] for column in self.table.columns}
            folders = {column: self.predictions(of_it) for column, of_it in tests.items()}
            qualities = next(iter(folders.values())).qualities
            quality = qualities[0] if len(qualities) == 1 else self.table.quality
            found = find(folders, UNUSED_THRESHOLD, levels=(level,))
            bounds = interval(found[CellPlace(MEAN, level, quality, ALL)][self.table.metric])
            self._means[row] = tuple(b * scale for b in bounds) if bounds else (None, None)
        return self._means[row]

    def _joint(self, tests: Sequence[_Test]) -> "_Found":
        """Of several models, each at its own quality: the mean over qualities, round by round."""
        if tests[0] in self._joined:
            return self._joined[tests[0]]
        level, metric = self.table.level, self.table.metric
        (data,) = {test.data.label for test in tests}
        found = find({data: self.predictions(tests)}, UNUSED_THRESHOLD, levels=(level,))
        means = {p.manipulation: f for p, f in found.items() if p.quality == self.table.quality}
        mean = means[ALL] if ALL in means else next(iter(means.values()))
        if np.isnan(mean[metric][0]):
            return _Found(reason=mean.reason)
        bounds = interval(mean[metric]) or (None, None)
        joined = _Found(float(mean[metric][0]), *bounds, mean.n_real, mean.n_fake)
        return self._joined.setdefault(tests[0], joined)

    def predictions(self, tests: Sequence[_Test]) -> Columns:
        found = [read_predictions(self.eval_folder(t) / "predictions.parquet") for t in tests]
        joined = Predictions(found[0].model, pa.concat_tables([f.table for f in found]))
        (columns,) = joined.folders().values()
        return columns

    def write(self, files: Sequence[Path]) -> Reproduction:
        """The table as CSV, Markdown and JSON."""
        name = self.table.name
        written = [f"{name}.csv", f"{name}.md", f"{name}.json"]
        more = [str(path.relative_to(self.out)) for path in files]
        result = Reproduction(self.table, self.scale, self.values(), self.lacking, written + more)
        write_whole(self.out / written[0], _as_csv(result))
        write_whole(self.out / written[1], reproduction_markdown(result))
        write_json(self.out / written[2], result.as_json())
        return result


# --- which trainings and measurements --------------------------------------------------------


def _spots(
    table: Table, scale: Scale, weights: str | None
) -> tuple[dict[str, list[_Test]], dict[str, Row]]:
    """{ROW@COLUMN: what is measured for it}, and the rows.

    Errors: DfdetectError for a row of no cell, or a cell that its preset does not fit.
    """
    cells = {cell.name: cell for cell in expand(table, weights)}
    rows = table.rows or {name: Row(name=name, cell=name) for name in cells}
    spots: dict[str, list[_Test]] = {}
    for key, row in rows.items():
        for name in (used := row.cell_at or ({"": row.cell} if row.cell else {})).values():
            if name not in cells:
                raise unknown(f"cell in table {table.name}, row {key}:", name, cells)
        for heading, column in table.columns.items():
            tests = [
                _test(table, column, cells[name], quality, scale) for quality, name in used.items()
            ]
            if tests:
                spots[f"{key}@{heading}"] = tests
    return spots, rows


def _test(table: Table, column: Column, cell: GridCell, quality: str, scale: Scale) -> _Test:
    smoke = SMOKE if scale == "smoke" else {}
    overrides = (*cell.overrides, *_set({k: v for k, v in smoke.items() if k not in table.axes}))
    try:
        recipe = load_preset(cell.preset, overrides)
        method_options(recipe)
    except DfdetectError as error:
        where = f"table {table.name}, cell {cell.name}"
        raise DfdetectError(f"{where}: {error.message}", error.hint) from error
    data = table.trained_on(column)
    name = f"{_named(cell, _set(smoke))}@{data.label}" + "+smoke" * (scale == "smoke")
    run = _Run(name, cell.preset, overrides, data, recipe)
    qualities = (quality,) if quality else tuple(table.at(column))
    tsne = TSNE[scale] if table.figure == "tsne" else None
    return _Test(run, parse_data(column.test), qualities, tsne)


def _set(options: Mapping[str, Any]) -> list[str]:
    return [f"{key}={as_yaml(value)}" for key, value in options.items()]


def _named(cell: GridCell, smoke: Sequence[str]) -> str:
    """The preset and those options of the cell that are not the preset's own anyway."""
    plain = _resolved(load_preset(cell.preset, smoke))
    parts = [Path(cell.preset).stem]
    for override in cell.overrides:
        key, _, value = override.partition("=")
        changed = _resolved(load_preset(cell.preset, [*smoke, override])) != plain
        if key != "backbone.weights" and changed:
            parts.append(f"{key.rpartition('.')[2]}={re.sub(r'[^A-Za-z0-9.+-]+', '', value)}")
    return ",".join(parts)


def _resolved(recipe: Preset) -> tuple[object, ...]:
    """The whole recipe, the method's options with their defaults."""
    return recipe.model_dump(exclude={"method"}), recipe.method.name, method_options(recipe)[1]


def _qualities(tests: Iterable[_Test]) -> dict[str, list[str]]:
    """{data set: qualities that prepare has to store}"""
    needed: dict[str, list[str]] = {}
    for test in tests:
        needed.setdefault(test.run.data.dataset, []).extend(test.run.recipe.qualities)
        needed.setdefault(test.data.dataset, []).extend(test.qualities)
    return {name: ordered(to_prepare(names).split(",")) for name, names in needed.items()}


# --- data ------------------------------------------------------------------------------------


def _source(root: Path, dataset: str) -> Path | None:
    """The tree of a data set: ROOT/NAME, else ROOT or a folder in it that looks like one.

    Errors: DfdetectError for an unknown data set, or two trees of it.
    """
    if dataset not in SHELF:
        raise unknown("data set", dataset, SHELF)
    if (root / dataset).is_dir():
        return root / dataset
    found = [f for f in (root, *folders_in(root)) if SHELF[dataset].looks_right(f)]
    if len(found) > 1:
        raise DfdetectError(
            f"{root}: {' and '.join(f.name for f in found)} both look like {dataset}",
            f"call the one to use {root / dataset}",
        )
    return found[0] if found else None


def _is_prepared(folder: Path) -> bool:
    return (folder / "manifest").is_dir()


def _fakes_in(dataset: str, source: Path) -> set[str]:
    """Manipulations of a tree or of a prepared folder. Errors: those of listing it."""
    if _is_prepared(source):
        rows = read_table(source, ["label", "manipulation"])
        return set(rows.filter(pc.equal(rows["label"], 1))["manipulation"].unique().to_pylist())
    videos = list_source(dataset, source, DatasetOptions()).videos
    return {video.manipulation for video in videos if video.label}


def _where_to_get(data: DataName, root: Path) -> str:
    about = SHELF[data.dataset]
    home = f", from {about.home}," if about.home else ""
    what = f"put its official tree{home} at {root / data.dataset}"
    return f"{data} is absent: {what} ({about.expected})"


def _make_part(whole: Path, data: DataName, part: Path) -> None:
    """A prepared folder of some of the fakes of `whole` and their reals, whose crops it shares.

    Errors: DfdetectError for fakes that were not prepared.
    """
    table = read_table(whole)
    names = pa.array(data.manipulations)
    is_fake = pc.equal(table["label"], 1)
    fakes = pc.and_(is_fake, pc.is_in(table["manipulation"], names))
    there = set(table.filter(fakes)["manipulation"].to_pylist())
    if missing := set(data.manipulations) - there:
        raise DfdetectError(f"{whole}: holds no fakes of {', '.join(sorted(missing))}")
    datasets = table.filter(fakes)["dataset"].unique()
    reals = pc.and_(pc.invert(is_fake), pc.is_in(table["dataset"], datasets))
    rows = table.filter(pc.or_(fakes, reals)).sort_by([("sample_id", "ascending"),
                                                       ("quality", "ascending")])  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    write_whole(part / "manifest" / "part.parquet", buffer.getvalue())
    shutil.copyfile(whole / "prepare.json", part / "prepare.json")
    _part_of_failures(whole, part, set(data.manipulations), set(datasets.to_pylist()))
    crops = part / "faces"
    if not crops.is_symlink():
        crops.symlink_to((whole / "faces").resolve())


def _part_of_failures(whole: Path, part: Path, manipulations: set[str], datasets: set[str]) -> None:
    """failures.csv of the videos that the part is of."""
    if not (whole / "failures.csv").exists():
        return
    with (whole / "failures.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    kept = [
        row for row in rows
        if row["manipulation"] in manipulations | {"real"}
        and row["video_id"].partition("/")[0] in datasets
    ]  # fmt: skip
    names = list(reader.fieldnames or ())
    write_whole(part / "failures.csv", _lines([names, *(list(row.values()) for row in kept)]))


# --- numbers ---------------------------------------------------------------------------------


class _Found(NamedTuple):
    """One number 0..1 of a measurement, or why there is none."""

    ours: float | None = None
    low: float | None = None
    high: float | None = None
    n_real: int | None = None
    n_fake: int | None = None
    reason: str = ""


def _found(content: Mapping[str, Any], column: Column, table: Table) -> _Found:
    """The number of a column in what eval wrote of its one folder."""
    quality, metric = column.quality or table.quality, column.metric or table.metric
    if metric == "domains":
        return _of_domains(content, quality, column.manipulation)
    here = [
        c for c in content["cells"]
        if (c["level"], c["quality"], c.get("faces", ALL)) == (table.level, quality, ALL)
    ]  # fmt: skip
    of_all = [c for c in here if c["manipulation"] == (column.manipulation or ALL)]
    if not (cells := of_all or here[:1]):
        return _Found(reason=f"nothing was measured at {quality}")
    cell = cells[0]
    low, high = cell["intervals"].get(metric, (None, None))
    return _Found(cell[metric], low, high, cell["n_real"], cell["n_fake"], cell["reason"])


def _of_domains(content: Mapping[str, Any], quality: str, manipulation: str | None) -> _Found:
    """The mean diagonal of the confusion of domains, or one row's share on it."""
    found = [Confusion(**c) for c in content["domains"] if c["quality"] == quality]
    if not found:
        return _Found(reason="the detector tells no domains")
    (confusion,) = found
    if manipulation is None:
        n = confusion.n_diagonal
        return _Found(confusion.mean_diagonal, n_fake=n, reason=confusion.reason)
    row = confusion.manipulations.index(manipulation)
    right = confusion.right(row)
    share = None if right is None else float(confusion.shares()[row, right])
    return _Found(share, n_fake=sum(confusion.counts[row]))


# --- files -----------------------------------------------------------------------------------


def _as_csv(result: Reproduction) -> str:
    names = ["row", "model", "column", "status", "paper", "ours", "low", "high", "difference",
             "n_real", "n_fake", "reason"]  # fmt: skip
    return _lines([names, *([getattr(v, name) for name in names] for v in result.values)])


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _draw(
    plan: _Plan, chosen: Sequence[str], device: str, on_event: Callable[[Event], None]
) -> list[Path]:
    """The figure of what has been measured, and the data that it shows."""
    values = {v.name: v for v in plan.values() if v.name in chosen and v.ours is not None}
    done = {name: plan.spots[name][0] for name in chosen if name in values}
    if not done:
        return []
    kind = plan.table.figure
    if kind in ("tsne", "domains"):
        return _copied(plan, done, kind)
    if kind == "attention":
        return _explained(plan, done, device, on_event)
    return _plotted(plan, list(values.values()), done)


def _copied(plan: _Plan, done: Mapping[str, _Test], kind: str) -> list[Path]:
    """What eval drew of each row."""
    names = ("tsne.png", "features.npz") if kind == "tsne" else ("domains.png", "domains.csv")
    files = []
    for row in dict.fromkeys(name.partition("@")[0] for name in done):
        test = next(test for name, test in done.items() if name.startswith(f"{row}@"))
        for name in names:
            target = plan.out / f"{plan.table.name}-{row}-{name}"
            write_whole(target, (plan.eval_folder(test) / name).read_bytes())
            files.append(target)
    return files


def _plotted(plan: _Plan, values: Sequence[Value], done: Mapping[str, _Test]) -> list[Path]:
    """A heat map over two options, a curve over the input's side, or ROC curves."""
    from dfdetect.reports import plots

    table, one = plan.table, plan.table.factor
    first = values[0]
    about = f"{table.level} level, {table.split} split, {table.quality}"
    title = f"{table.name} on {done[first.name].data.label}, n {first.n_real}/{first.n_fake}"
    cells = {cell.name: cell for cell in expand(table)}
    axes = {v.row: cells[plan.rows[v.row].cell or v.row].axes for v in values}
    auc = {
        v.row: Number(*(None if n is None else n / one for n in (v.ours, v.low, v.high)))
        for v in values
    }  # fmt: skip
    if table.figure == "heatmap":
        y, x = table.axes
        found = {(axes[row][x], axes[row][y]): number for row, number in auc.items()}
        xs, ys = (sorted(table.axes[name]) for name in (x, y))
        grid = [[found.get((a, b), Number(None)) for a in xs] for b in ys]
        drawn = [plots.HeatMap(title, x, y, xs, ys, grid)]
        picture, rows = plots.draw_heat_maps(drawn, about), plots.heat_rows(drawn)
    elif table.figure == "sizes":
        (option,) = table.axes
        drawn = []
        for name in dict.fromkeys(row.partition(",")[0] for row in auc):
            of_it = {axes[r][option]: n for r, n in auc.items() if r.partition(",")[0] == name}
            sides = sorted(of_it)
            drawn.append(plots.Line(title, name, sides, [of_it[side] for side in sides]))
        picture, rows = plots.draw_sizes(drawn, about), plots.size_rows(drawn)
    else:
        drawn = [_curve(plan, v, done[v.name], auc[v.row]) for v in values]
        picture, rows = plots.draw_roc(drawn, about), plots.curve_rows(drawn)
    files = [plan.out / f"{table.name}-{table.figure}.{end}" for end in ("png", "csv")]
    write_whole(files[0], picture)
    write_whole(files[1], _lines(rows))
    return files


def _curve(plan: _Plan, value: Value, test: _Test, auc: Number):
    from dfdetect.reports.plots import Curve, Place

    rows = plan.predictions([test])
    fpr, tpr, threshold = roc(rows.logit, rows.label)
    place = Place(value.model, test.data.label, plan.table.level, plan.table.quality)
    return Curve(place, value.n_real, value.n_fake, auc, threshold, fpr, tpr)


def _explained(
    plan: _Plan, done: Mapping[str, _Test], device: str, on_event: Callable[[Event], None]
) -> list[Path]:
    """Sheets of heat maps of the first test video of each manipulation and of the reals."""
    jobs, folders = [], []
    for test in dict.fromkeys(done.values()):
        folder = plan.out / f"{plan.table.name}-{test.data.label}"
        videos = _examples(plan, test)
        command = [
            "explain", str(plan.run_folder(test.run)), *map(str, videos), "--out", str(folder),
            "--frames", str(EXPLAINED[plan.scale]), "--device", device,
        ]  # fmt: skip
        if videos:
            folders.append(folder)
            jobs.append(Job(folder.name, folder, lambda _, c=command: [c]))
    failed = {e.job.name: e.error for e in _each(jobs, [device], on_event) if e.error}
    plan.errors |= failed
    return [f for folder in folders for f in sorted(folder.glob("*.png"))]


def _examples(plan: _Plan, test: _Test) -> list[Path]:
    """None where only prepared crops are there, and not the videos that they were cut from."""
    source = plan.sources[test.data.dataset]
    if source is None or _is_prepared(source):
        return []
    rows = read_table(plan.part(test.data), ["manipulation", "split", "source"])
    of_split = sorted({
        (manipulation, name)
        for manipulation, split, name in zip(*rows.to_pydict().values(), strict=True)
        if split == plan.table.split
    })  # fmt: skip
    first = dict(reversed(of_split))
    return [source / PurePosixPath(name) for _, name in sorted(first.items())]
