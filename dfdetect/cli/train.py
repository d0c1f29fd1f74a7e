"""dfdetect train"""

import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    RUNTIME,
    AllowAuditFail,
    Device,
    DryRun,
    Json,
    Loaders,
    Quiet,
    Weights,
    below,
    is_watched,
    say,
    show,
    show_json,
    warn,
)  # fmt: skip
from dfdetect.errors import DfdetectError, printable


def train(
    *,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data", help="A folder that prepare made; repeat for more.", rich_help_panel=INPUT
        ),
    ] = [],  # noqa: B006
    preset: Annotated[
        str | None,
        typer.Option(help="Name (see `dfdetect presets`) or YAML file.", rich_help_panel=MODEL),
    ] = None,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set", help="Preset option as epochs=2 or optimizer.lr=1e-3.", rich_help_panel=MODEL
        ),
    ] = [],  # noqa: B006
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.", rich_help_panel=OUTPUT)],
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Also write curves for TensorBoard, into OUT/tensorboard.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    device: Device = "auto",
    workers: Loaders = None,
    save_minutes: Annotated[
        float,
        typer.Option(min=0, help="Minutes between saved states, at most.", rich_help_panel=RUNTIME),
    ] = 15.0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out; with --data if its data was moved.",
            rich_help_panel=RUNTIME,
        ),
    ] = False,
    allow_audit_fail: AllowAuditFail = False,
    dry_run: DryRun = False,
) -> None:
    """Train a detector on prepared crops.

    Example: dfdetect train --preset qad-effb1 --data data/ --out runs/qad

    The best checkpoint on val becomes OUT/detector.safetensors; the test split is not read.
    """
    from dfdetect.presets import load_preset
    from dfdetect.processes import processes
    from dfdetect.runs import stored_run
    from dfdetect.train import plan_training
    from dfdetect.train import train as verb

    if resume and not preset:
        if overrides or weights:
            raise DfdetectError(
                "--resume continues with the run's own options",
                "leave --set and --weights out, or start another run with another --out",
            )
        recipe, began_on = stored_run(out)
        data = data or began_on
    elif not preset or not data:
        raise DfdetectError(
            "train needs --preset and --data",
            "for example: dfdetect train --preset qad-effb1 --data DATA --out RUN",
        )
    else:
        recipe = load_preset(preset, overrides)
    if dry_run:
        plan = plan_training(recipe, data, weights, allow_audit_fail, device)
        if processes().is_main:
            _show_plan(plan, as_json)
        return
    with _told(quiet or as_json, out / "tensorboard" if tensorboard else None) as tell:
        summary = verb(
            recipe, data, out, weights, device, resume, tell, allow_audit_fail, workers,
            save_minutes,
        )  # fmt: skip
    if processes().is_main:  # the others know the same and keep silent
        _show_end(summary, out, data, as_json)


@contextmanager
def _told(quiet: bool, curves: Path | None) -> Iterator[Callable[[dict], None]]:
    """What hears of a run's events: a view on a terminal, else lines; TensorBoard; warnings."""
    from dfdetect.processes import processes
    from dfdetect.reports.live import TrainLines, TrainView
    from dfdetect.reports.tensorboard import TensorBoard

    is_main = processes().is_main
    is_viewed = is_main and is_watched(quiet)
    view, lines = TrainView(), TrainLines(steps=not is_viewed)
    with ExitStack() as stack:
        listeners: list[Callable[[dict], None]] = []
        if curves and is_main:
            listeners.append(stack.enter_context(TensorBoard(curves)))
        if is_viewed:
            stack.enter_context(below(view))
            listeners.append(view.take)

        def tell(event: dict) -> None:
            for listener in listeners:
                listener(event)
            if event["kind"] == "warning":
                warn(event["message"])
            elif not quiet and (line := lines(event)):
                say(line)

        yield tell


def _show_plan(plan, as_json: bool) -> None:
    from dfdetect.methods import method_options
    from dfdetect.reports.table import train_plan_tables

    def preset(**which: bool) -> dict:
        options = method_options(plan.preset)[1].model_dump(mode="json", by_alias=True, **which)
        content = plan.preset.model_dump(mode="json", **which)
        return content | {"method": {"name": plan.preset.method.name} | options}

    if not as_json:
        show(train_plan_tables(plan, preset(), preset(exclude_defaults=True)))
        return
    memory = plan.memory._asdict() | {"total": plan.memory.total}
    if not isfinite(memory["loss"]):
        memory["loss"] = None
    show_json({"schema_version": 1, **plan._asdict(), "preset": preset(), "memory": memory})


def _show_end(summary, out: Path, data: list[Path], as_json: bool) -> None:
    from dfdetect.checkpoint import read_info
    from dfdetect.reports.table import train_summary
    from dfdetect.runs import logged

    info, ratios = read_info(summary.checkpoint), logged(out, "reg_ratio")
    if as_json:
        show_json(
            {
                "schema_version": 1,
                "checkpoint": str(summary.checkpoint),
                "n_steps": summary.n_steps,
                "best_step": summary.best_step,
                "elapsed_s": round(summary.elapsed_s, 2),
                "val": summary.val,
                "threshold": info.threshold,
                "band": info.band,
                "band_basis": info.band_basis,
                "notes": info.data["notes"],
                "reg_ratio_median": median(ratios) if ratios else None,
            }
        )
        return
    evaluate = ["dfdetect", "eval", str(out)]
    for folder in data:
        evaluate += ["--data", str(folder)]
    show(
        train_summary(summary, info, ratios),
        f"written to {printable(out)}: {summary.checkpoint.name}, preset.yaml, metrics.jsonl",
        f"next: {shlex.join(evaluate)}",
        f"next: {shlex.join(['dfdetect', 'scan', 'VIDEO', '--model', str(out)])}",
    )
