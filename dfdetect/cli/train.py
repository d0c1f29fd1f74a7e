"""dfdetect train"""

from pathlib import Path
from typing import Annotated

import typer

from dfdetect.cli.edge import (
    INPUT,
    MODEL,
    OUTPUT,
    RUNTIME,
    Device,
    DryRun,
    Quiet,
    progress,
    say,
    show,
    warn,
)  # fmt: skip
from dfdetect.errors import DfdetectError


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
    weights: Annotated[
        str | None,
        typer.Option(
            help="Start from pretrained (ImageNet, fetched), none, or a weights file.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.", rich_help_panel=OUTPUT)],
    quiet: Quiet = False,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out.", rich_help_panel=RUNTIME)
    ] = False,
    allow_audit_fail: Annotated[
        bool,
        typer.Option(
            "--allow-audit-fail",
            help="Accept what `dfdetect audit` calls a FAIL.",
            rich_help_panel=RUNTIME,
        ),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Train a detector on prepared crops.

    Example: dfdetect train --preset qad-effb1 --data data/ --out runs/qad

    The best checkpoint on val becomes OUT/detector.safetensors; the test split is not read.
    """
    from dfdetect.presets import load_preset
    from dfdetect.runs import stored_run
    from dfdetect.train import plan_training
    from dfdetect.train import train as verb

    if resume and not preset and not data:
        if overrides or weights:
            raise DfdetectError(
                "--resume continues with the run's own options",
                "leave --set and --weights out, or start another run with another --out",
            )
        recipe, data = stored_run(out)
    elif not preset or not data:
        raise DfdetectError(
            "train needs --preset and --data",
            "for example: dfdetect train --preset qad-effb1 --data DATA --out RUN",
        )
    else:
        recipe = load_preset(preset, overrides)
    if dry_run:
        from dfdetect.reports.table import mapping_table

        plan = plan_training(recipe, data, weights, allow_audit_fail)
        show(
            mapping_table("preset", recipe.model_dump(mode="json")),
            mapping_table("run", plan._asdict()),
        )
        return
    log = _Log(quiet)
    with progress("train", quiet) as update:
        log.update = update
        summary = verb(recipe, data, out, weights, device, resume, log, allow_audit_fail)
    _show_end(summary, out, data)


class _Log:
    """Turns training events into a bar, warnings and one line per validation."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self.update = lambda done, total, text: None

    def __call__(self, event: dict) -> None:
        if event["kind"] == "warning":
            warn(event["message"])
        elif event["kind"] == "note" and not self._quiet:
            say(event["message"])
        elif event["kind"] == "start" and not self._quiet:
            begins = f"from step {event['step']}" if event["resumed"] else "from the start"
            say(
                f"{event['preset']} on {event['device']}: {event['train_samples']} samples, "
                f"{event['n_steps']} steps, {begins}"
            )
        elif event["kind"] == "train":
            terms = " ".join(f"{name} {value:.4f}" for name, value in event["terms"].items())
            self.update(
                event["step"],
                event["n_steps"],
                f"loss {event['loss']:.4f} ({terms}) lr {event['lr']:.1e}",
            )
        elif event["kind"] == "val" and not self._quiet:
            frame = event["frame"]
            best = ", best so far" if event["is_best"] else ""
            say(
                f"step {event['step']}/{event['n_steps']}: val frames AUC {frame['auc']:.3f} "
                f"ACC {frame['accuracy']:.3f} "
                f"(n {frame['n_real']}/{frame['n_fake']} real/fake, qualities pooled){best}"
            )


def _show_end(summary, out: Path, data: list[Path]) -> None:
    frame, video = summary.val["frame"], summary.val["video"]
    show(
        f"{summary.n_steps} steps in {summary.elapsed_s:.0f} s; best at step {summary.best_step}: "
        f"val AUC {frame['auc']:.3f} at frame level "
        f"(n {frame['n_real']}/{frame['n_fake']} real/fake), "
        f"{video['auc']:.3f} at video level (n {video['n_real']}/{video['n_fake']})",
        f"{summary.checkpoint}",
        f"next: dfdetect eval {out} --data {data[0]}",
    )
