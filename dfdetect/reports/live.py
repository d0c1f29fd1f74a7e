"""A training run as it happens: a view that renews itself on a terminal, lines for a log.

Both are given the events of `dfdetect.train` one by one and remember what they show. Neither knows
a method: loss terms and qualities bring their names along.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from threading import Lock
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dfdetect.errors import printable
from dfdetect.reports.timeline import sparkline

WIDTH = 88
"""Columns of the view at most: a terminal that is made narrower later than this wraps no line."""
CURVE_POINTS = 256
SPARK_COLUMNS = 24
LARGEST = 1e100
"""Of what a curve takes: sums stay finite."""
SMOOTHING = 0.95
"""Share of the smoothed loss that stays at each step."""
QUIET_S = 60.0
"""Longest silence of a log while steps are made."""
FIGURES = {
    "frame AUC": ("frame", "auc"), "frame ACC": ("frame", "accuracy"), "video AUC": ("video", "auc")
}  # fmt: skip
_NO_NOTES = {"step", "epoch", "lr", "loss", "n_steps"}
"""Numbers of a step that are shown in places of their own."""

Event = Mapping[str, Any]
Clock = Callable[[], float]


class TrainLines:
    """Called with an event, gives the line that a log should show, or None.

    Steps get a line after each tenth of the run, and otherwise when QUIET_S have passed without
    one; with `steps=False` (a view shows them) none.
    """

    def __init__(self, steps: bool = True, clock: Clock = time.monotonic) -> None:
        self._steps, self._clock = steps, clock
        self._told = self._tenth = None

    def __call__(self, event: Event) -> str | None:
        if event["kind"] == "train":
            return self._step_line(event) if self._steps and self._is_time(event) else None
        lines = {"start": _start_line, "val": _val_line, "groups": _groups_line}
        if event["kind"] not in (*lines, "note"):
            return None
        self._told = self._clock()
        if event["kind"] == "note":
            return str(event["message"])
        return lines[event["kind"]](event)

    def _is_time(self, event: Event) -> bool:
        tenth = 10 * event["step"] // max(1, event.get("n_steps", 0))
        now = self._clock()
        is_time = tenth != self._tenth or self._told is None or now - self._told >= QUIET_S
        self._tenth = tenth
        if is_time:
            self._told = now
        return is_time

    def _step_line(self, event: Event) -> str:
        return (
            f"step {event['step']}/{event.get('n_steps', '?')}: loss {number(event['loss'])} "
            f"({_named(event['terms'])}), lr {number(event['lr'])}, {_speed(event)}"
        )


class TrainView:
    """A Rich renderable of the run so far, for `rich.live.Live`; give it events with `take`."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._lock = clock, Lock()  # Live draws from a thread of its own
        self._start: Event = {}
        self._train: Event = {}
        self._val: Event = {}
        self._scored: Event | None = None  # progress inside a validation
        self._began = self._clock()
        self._smooth = math.nan
        self._notes: dict[str, float] = {}  # the last of each: some come with few steps
        self._loss, self._auc = Curve(), Curve()

    def take(self, event: Event) -> None:
        with self._lock:
            if event["kind"] == "start":
                self._start, self._began = event, self._clock()
            elif event["kind"] == "train":
                self._train, self._scored = event, None
                self._smooth = _smoothed(self._smooth, event["loss"])
                self._loss.add(event["loss"])
                self._notes |= _notes(event)
            elif event["kind"] == "validating":
                self._scored = event
            elif event["kind"] == "val":
                self._val, self._scored = event, None
                self._auc.add(event["frame"]["auc"])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, min(options.max_width - 1, WIDTH))  # the last column wraps on some terminals
        with self._lock:
            parts = self._parts(width) if self._start else [Text("reading the data")]
        # What a terminal has no row for must not be drawn: the cursor cannot come back from there.
        n_rows = max(1, options.max_height - 1)
        lines = console.render_lines(Group(*parts), options.update(width=width), pad=False)
        for row, line in enumerate(lines[:n_rows]):
            yield from [Segment.line()] if row else []
            yield from line

    def _parts(self, width: int) -> list[RenderableType]:
        start, n_processes = self._start, self._start.get("n_processes", 1)
        together = f", {n_processes} processes" if n_processes > 1 else ""
        title = Text(f"{printable(start['preset'])} on {printable(start['device'])}{together}")
        rows = Table.grid(padding=(0, 1, 0, 0))
        rows.add_column(style="dim")
        rows.add_column(overflow="fold")
        columns = max(1, min(SPARK_COLUMNS, width - 20))
        for name, value in (*self._progress(columns), *self._state(columns)):
            rows.add_row(name, Text(value) if isinstance(value, str) else value)
        return [title, rows, *([self._validation()] if self._val else [])]

    def _progress(self, columns: int) -> Iterator[tuple[str, RenderableType]]:
        first, n_steps = self._start.get("step", 0), self._start.get("n_steps", 0)
        step = self._train.get("step", first)
        elapsed = self._clock() - self._began
        left = elapsed / (step - first) * (n_steps - step) if step > first else math.nan
        yield "", ProgressBar(total=max(1, n_steps), completed=step, width=2 * columns)
        epoch, epochs = self._train.get("epoch", 0) + 1, self._start.get("epochs", "?")
        yield "step", f"{step}/{n_steps} ({step / max(1, n_steps):.0%}), epoch {epoch}/{epochs}"
        yield "time", f"{duration(elapsed)}, {duration(left)} left"
        if self._scored:
            yield "now", f"validating, crop {self._scored['done']}/{self._scored['total']}"

    def _state(self, columns: int) -> Iterator[tuple[str, RenderableType]]:
        if self._train:
            yield "loss", f"{number(self._smooth)} {self._loss.bars(columns)}"
            yield "terms", _named(self._train["terms"])
            if self._notes:
                yield "notes", _named(self._notes)
            yield "lr", number(self._train["lr"])
            yield "speed", _speed(self._train)
        if self._val:
            frame, video = self._val["frame"], self._val["video"]
            yield "val", f"frame AUC {self._auc.bars(columns)}"
            yield (
                "",
                f"n {frame['n_real']}/{frame['n_fake']} frames, "
                f"{video['n_real']}/{video['n_fake']} videos (real/fake)",
            )

    def _validation(self) -> Table:
        """The last one and the best, side by side."""
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
        shown = [("last", self._val)] + [("best", best) for best in [self._val.get("best")] if best]
        table.add_column("validation", style="dim")
        for name, _ in shown:
            table.add_column(name, justify="right")
        table.add_row("step", *(str(val["step"]) for _, val in shown))
        for name, (level, key) in FIGURES.items():
            table.add_row(name, *(share(val[level][key]) for _, val in shown))
            if (level, key) == ("frame", "auc"):
                for quality in self._val["by_quality"]["auc"]:
                    by_quality = (val["by_quality"]["auc"].get(quality) for _, val in shown)
                    table.add_row(f"  {printable(quality)}", *map(share, by_quality))
        return table


class Curve:
    """A curve of any length in at most CURVE_POINTS points: when full, neighbours are averaged."""

    def __init__(self) -> None:
        self._points: list[float] = []
        self._waiting: list[float] = []
        self._stride = 1

    def add(self, value: float | None) -> None:
        """What is not finite, or nearly so, leaves no trace."""
        if value is None or not abs(value) < LARGEST:
            return
        self._waiting.append(value)
        if len(self._waiting) == self._stride:
            self._points.append(_mean(self._waiting))
            self._waiting = []
        if len(self._points) == CURVE_POINTS:
            self._points = [_mean(self._points[i : i + 2]) for i in range(0, CURVE_POINTS, 2)]
            self._stride *= 2

    def bars(self, columns: int) -> str:
        """From the lowest to the highest mean of a column; a constant is in the middle."""
        n = len(self._points)
        columns = min(columns, n)
        means = [
            _mean(self._points[i * n // columns : (i + 1) * n // columns]) for i in range(columns)
        ]
        if not means:
            return ""
        low, span = min(means), max(means) - min(means)
        return sparkline([(m - low) / span if span > 0 else 0.5 for m in means])


def number(value: float | None) -> str:
    """Four digits that matter, whatever the size."""
    return "-" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """As 1:02:03; a dash where it is not known."""
    return str(timedelta(seconds=round(seconds))) if abs(seconds) < 1e9 else "-"


def _start_line(event: Event) -> str:
    begins = f"from step {event['step']}" if event["resumed"] else "from the start"
    return (
        f"{event['preset']} on {event['device']}: {event['train_samples']} samples, "
        f"{event['n_steps']} steps, {begins}"
    )


def _groups_line(event: Event) -> str:
    sizes = ", ".join(f"{name} {n}" for name, n in event["videos"].items())
    agreement = event["agreement"]
    beside = "" if agreement is None else f"; adjusted Rand index {agreement:.3f} with the manifest"
    return f"step {event['step']}: videos of fakes by what they look like: {sizes}{beside}"


def _val_line(event: Event) -> str:
    best = ", best so far" if event["is_best"] else ""
    return f"step {event['step']}/{event.get('n_steps', '?')}: val {_val_figures(event)}{best}"


def _val_figures(val: Event) -> str:
    """Figures with their level, quality and n."""
    frame, video = val["frame"], val["video"]
    qualities = ", ".join(f"{q} {share(auc)}" for q, auc in val["by_quality"]["auc"].items())
    return (
        f"pooled frames AUC {share(frame['auc'])} ACC {share(frame['accuracy'])} "
        f"(n {frame['n_real']}/{frame['n_fake']} real/fake), AUC {printable(qualities)}; "
        f"videos AUC {share(video['auc'])} (n {video['n_real']}/{video['n_fake']})"
    )


def share(value: float | None) -> str:
    """Three digits of a figure between 0 and 1."""
    return "-" if value is None else f"{value:.3f}"


def _named(terms: Mapping[str, float]) -> str:
    return ", ".join(f"{printable(name)} {number(value)}" for name, value in terms.items())


def _speed(event: Event) -> str:
    timing = event.get("timing", {})
    return (
        f"{number(timing.get('images_per_s'))} images/s, "
        f"{timing.get('data_wait', 0.0):.0%} of the time waiting for data"
    )


def _notes(event: Event) -> dict[str, float]:
    """What the method says beside its loss."""
    return {
        name: value
        for name, value in event.items()
        if isinstance(value, int | float) and name not in _NO_NOTES
    }


def _smoothed(before: float, value: float) -> float:
    if not math.isfinite(value):
        return before
    return SMOOTHING * before + (1 - SMOOTHING) * value if math.isfinite(before) else value


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
