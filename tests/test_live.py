"""What is seen of a training run: the view, the lines of a log, TensorBoard's curves."""

import io
import math
import re
import sys

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfdetect.cli import edge
from dfdetect.errors import DfdetectError
from dfdetect.reports.live import CURVE_POINTS, Curve, TrainLines, TrainView
from dfdetect.reports.tensorboard import TensorBoard


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def start(step=0, n_steps=40, **more):
    return {
        "kind": "start", "step": step, "n_steps": n_steps, "steps_per_epoch": 10, "epochs": 4,
        "preset": "qad-tiny", "device": "cuda:0", "n_processes": 2, "train_samples": 64,
        "resumed": step > 0, **more,
    }  # fmt: skip


def train(step, loss=0.5, **more):
    return {
        "kind": "train", "step": step, "epoch": (step - 1) // 10, "lr": 1.25e-3, "loss": loss,
        "terms": {"ce": 0.625, "hsic": -1.5e-7}, "n_steps": 40,
        "timing": {"images_per_s": 412.0, "data_wait": 0.03, "seconds": 0.25}, **more,
    }  # fmt: skip


def figures(step, auc):
    return {
        "step": step, "split": "val",
        "frame": {"accuracy": 0.75, "auc": auc, "eer": 0.1, "n_real": 30, "n_fake": 60,
                  "qualities": "pooled"},
        "video": {"auc": 0.875, "n_real": 5, "n_fake": 10, "qualities": "mean score"},
        "by_quality": {"level": "frame", "auc": {"raw": 0.99, "c40": 0.625},
                       "n_real": {"raw": 15, "c40": 15}, "n_fake": {"raw": 30, "c40": 30}},
    }  # fmt: skip


def val(step, auc=0.95, best=None):
    return {
        "kind": "val", **figures(step, auc), "is_best": best is None,
        "best": best or figures(step, auc), "threshold": 0.5, "band": None, "n_steps": 40,
        "timing": {"seconds": 2.0},
    }  # fmt: skip


def seen(view, width=80, height=50):
    """The view's text, as a terminal of that size gets it."""
    console = Console(
        file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=height
    )
    console.print(view, end="")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def test_the_view_shows_where_the_run_stands():
    clock = Clock()
    view = TrainView(clock)
    assert "reading the data" in seen(view)
    view.take(start())
    for step in range(1, 11):
        clock.now += 2
        view.take(train(step, reg_ratio=0.0125))
    view.take(val(10))
    text = seen(view)
    for part in (
        "qad-tiny on cuda:0, 2 processes",
        "10/40 (25%), epoch 1/4",
        "0:00:20, 0:01:00 left",  # 10 steps took 20 s, 30 are to come
        "ce 0.625, hsic -1.5e-07",
        "reg_ratio 0.0125",
        "0.00125",
        "412 images/s, 3% of the time waiting for data",
        "n 30/60 frames, 5/10 videos (real/fake)",
    ):
        assert part in text, part


def test_the_best_validation_stands_beside_the_last():
    view = TrainView()
    view.take(start())
    view.take(val(10, 0.9375))
    view.take(val(20, 0.8125, best=figures(10, 0.9375)))
    rows = [line.split() for line in seen(view).splitlines()]
    assert ["validation", "last", "best"] in rows
    assert ["step", "20", "10"] in rows
    assert ["frame", "AUC", "0.812", "0.938"] in rows  # 0.8125 and 0.9375, half to even
    assert ["c40", "0.625", "0.625"] in rows
    assert ["video", "AUC", "0.875", "0.875"] in rows


def test_a_resumed_run_counts_only_its_own_time():
    clock = Clock()
    view = TrainView(clock)
    view.take(start(step=20))
    clock.now = 10
    view.take(train(30))
    assert "0:00:10, 0:00:10 left" in seen(view)


def test_progress_inside_a_validation_is_shown_until_it_ends():
    view = TrainView()
    view.take(start())
    view.take({"kind": "validating", "done": 16, "total": 90})
    assert "validating, crop 16/90" in seen(view)
    view.take(val(10))
    assert "validating" not in seen(view)


@pytest.mark.parametrize("width", [1, 5, 12, 40, 80, 300])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0])
def test_no_number_and_no_width_breaks_the_view(width, odd):
    view = TrainView()
    view.take(start(n_steps=0, preset="p" * 200))
    for step in range(1, 6):
        strange = {"images_per_s": odd, "data_wait": odd}
        view.take(train(step, loss=odd if step % 2 else 1.0, lr=odd, note=odd, timing=strange))
    view.take(train(6, terms={"x" * 50: odd}, timing={}))
    view.take(val(6, auc=odd))
    assert max(map(len, seen(view, width).split("\n"))) <= width


def test_the_view_takes_no_more_rows_than_the_terminal_has():
    view = TrainView()
    view.take(start())
    view.take(train(1))
    view.take(val(1))
    assert len(seen(view, height=8).split("\n")) == 7
    assert "qad-tiny" in seen(view, height=1)


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([3.0], "▅"),  # nothing to compare with: the middle
        ([1.0, 2.0], "▁█"),
        ([8.0, 4.0, 0.0], "█▅▁"),
        ([1.0, math.nan, 2.0, None, math.inf], "▁█"),
        ([0.0, 2.0, 6.0, 8.0], "▁█"),  # two columns: means 1 and 7
    ],
)
def test_a_curve_is_drawn_from_its_lowest_to_its_highest_mean(values, bars):
    curve = Curve()
    for value in values:
        curve.add(value)
    assert curve.bars(2 if len(values) == 4 else 10) == bars


def test_a_long_curve_keeps_its_shape_in_few_points():
    curve = Curve()
    for i in range(100_000):
        curve.add(i)
    assert len(curve._points) < CURVE_POINTS
    assert curve.bars(8) == "▁▂▃▄▅▆▇█"


def test_a_log_shows_life_at_each_tenth_and_each_minute():
    clock = Clock()
    lines = TrainLines(clock=clock)
    assert lines(start(n_steps=1000)).startswith("qad-tiny on cuda:0: 64 samples, 1000 steps")
    told = []
    for step in range(1, 251):
        clock.now += 1
        if line := lines(train(step, n_steps=1000)):
            told.append(step)
            assert "loss 0.5 (ce 0.625, hsic -1.5e-07)" in line
    # The first; a minute after it; the tenth at 100; a minute later; the tenth at 200.
    assert told == [1, 61, 100, 160, 200]


def test_a_log_without_steps_still_has_validations():
    lines = TrainLines(steps=False)
    assert lines(train(1)) is None
    line = lines(val(10))
    assert line.startswith("step 10/40: val pooled frames AUC 0.950 ACC 0.750 (n 30/60")
    assert "raw 0.990, c40 0.625" in line and "videos AUC 0.875 (n 5/10)" in line
    assert line.endswith("best so far")
    assert not lines(val(20, best=figures(10, 0.96))).endswith("best so far")


class Terminal(io.StringIO):
    """A terminal that is asked what it shows: it knows the few controls a live view uses."""

    def isatty(self):
        return True

    def screen(self):
        rows, row = [""], 0
        for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\n]|[^\x1b\r\n]+", self.getvalue()):
            if part == "\n":
                row += 1
                rows += [""] * (row == len(rows))
            elif part == "\x1b[1A":
                row -= 1
            elif part == "\x1b[2K":
                rows[row] = ""
            elif part[0] not in "\x1b\r":
                rows[row] += part
        return [line.rstrip() for line in rows if line.strip()]


def test_lines_appear_above_the_view_and_stay_when_it_goes(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert edge.is_watched(quiet=False) and not edge.is_watched(quiet=True)
    view = TrainView()
    view.take(start())
    with edge.below(view):
        edge.say("one")
        view.take(train(1))
        edge.warn("two")
        print("from a library", file=sys.stderr)
        shown = terminal.screen()
        assert shown[:3] == ["one", "warning: two", "from a library"]
        assert shown[3] == "qad-tiny on cuda:0, 2 processes"
        assert len([line for line in shown if "qad-tiny" in line]) == 1
    assert terminal.screen() == ["one", "warning: two", "from a library"]


def curves(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: events.Scalars(name) for name in events.Tags()["scalars"]}


def test_tensorboard_gets_every_number_by_its_place(tmp_path):
    with TensorBoard(tmp_path / "t") as board:
        assert not (tmp_path / "t").exists()  # a run that is refused leaves nothing
        board(start())
        board({"kind": "warning", "message": "not a number"})
        board(train(1, reg_ratio=0.25))
        board(train(2))
        board(val(2))
    found = curves(tmp_path / "t")
    assert [e.step for e in found["train/loss"]] == [1, 2]
    assert [e.step for e in found["train/reg_ratio"]] == [1]
    last = {name: events[-1].value for name, events in found.items()}
    assert last["train/terms/hsic"] == pytest.approx(-1.5e-7)
    assert last["train/lr"] == pytest.approx(1.25e-3)
    assert last["train/timing/images_per_s"] == 412
    assert last["val/by_quality/auc/c40"] == 0.625
    assert last["val/timing/seconds"] == 2
    assert not any("n_real" in name or "best" in name for name in last)


def test_steps_after_the_state_of_a_resumed_run_appear_once(tmp_path):
    with TensorBoard(tmp_path) as board:
        board(start())
        for step in range(1, 8):
            board(train(step, loss=1.0))
    with TensorBoard(tmp_path) as board:
        board(start(step=5))
        for step in range(6, 9):
            board(train(step, loss=2.0))
    losses = [(e.step, e.value) for e in curves(tmp_path)["train/loss"]]
    assert losses == [(s, 1.0) for s in range(1, 6)] + [(s, 2.0) for s in range(6, 9)]


def test_without_the_package_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DfdetectError) as caught:
        TensorBoard(tmp_path)
    assert caught.value.hint == "pip install 'dfdetect[tensorboard]'"
