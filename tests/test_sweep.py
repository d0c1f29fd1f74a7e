"""sweep: cells in children, what finished is kept, what failed is tried again, one table."""

import csv
import json
import os
import shutil
import signal
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.files import folder_lock, read_json
from dfdetect.grids import Grid, expand, load_grid
from dfdetect.manifest import read_table, write_part
from dfdetect.presets import load_preset
from dfdetect.sweep import plan_sweep, sweep
from dfdetect.train import train

SMALL = {"epochs": 1, "steps_per_epoch": 2, "image_size": 64}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the children, as of these tests


def grid_file(path, **content):
    """A grid of tiny trainings on val, whose preset is bce-tiny if nothing else is said."""
    content = {"reproduces": "nothing", "preset": "bce-tiny", "set": SMALL} | content
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def statuses(grid, data, out):
    return {s.cell.name: s.status for s in plan_sweep(load_grid(str(grid)), [data], out)}


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory):
    """Two seeds that work and a cell that no network can be, swept once through the command line:
    (grid, out, result)."""
    from conftest import CliRunner, app

    folder = tmp_path_factory.mktemp("sweep")
    grid = grid_file(
        folder / "try.yaml",
        cells={"bce": {}, "bad": {"preset": "qad-tiny", "set": {"method.layers": [3]}}},
        seeds=[0, 1],
        split="test",
    )
    out = folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        result = CliRunner().invoke(
            app, ["sweep", str(grid), "--data", str(data), "--out", str(out), "--json",
                  "--devices", "cpu,cpu", "--only", "bce,*", "--only", "bad,seed=0"],
        )  # fmt: skip
    return grid, out, result


def test_a_sweep_goes_on_past_a_cell_that_fails_and_exits_3(swept, data):
    grid, out, result = swept
    assert result.exit_code == 3, result.stderr
    assert statuses(grid, data, out) == {
        "bce,seed=0": "finished", "bad,seed=0": "failed",
        "bce,seed=1": "finished", "bad,seed=1": "not begun",
    }  # fmt: skip
    cause = "method.layers: test_efficientnet.r160_in1k has no map of stride 3"
    assert f"warning: bad,seed=0 failed: {cause}" in result.stderr
    (failed,) = [c for c in json.loads(result.stdout)["cells"] if c["status"] == "failed"]
    assert failed["cell"] == "bad,seed=0" and failed["error"].startswith(cause)
    assert "$ dfdetect train --preset bce-tiny" in (out / "bce,seed=0/log.txt").read_text()


def test_the_csv_holds_what_the_predictions_say(swept):
    _, out, result = swept
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    predictions = pq.read_table(out / "bce,seed=1/eval/predictions.parquet").to_pylist()
    for quality in ("raw", "c23", "c40"):
        scored = [(p["logit"], p["label"]) for p in predictions if p["quality"] == quality]
        pairs = [(f > r) + 0.5 * (f == r) for f, y in scored if y for r, x in scored if not x]
        (row,) = [
            r for r in rows
            if (r["cell"], r["level"], r["quality"]) == ("bce,seed=1", "frame", quality)
        ]  # fmt: skip
        assert float(row["auc"]) == pytest.approx(np.mean(pairs))
        assert row["low"] == row["high"] == ""  # of a single real video there is no interval
        assert (row["seed"], row["split"], row["best_step"]) == ("1", "test", "2")
        n_fake = sum(y for _, y in scored)
        assert (int(row["n_real"]), int(row["n_fake"])) == (len(scored) - n_fake, n_fake)
    (failed,) = [r for r in rows if r["status"] == "failed"]
    assert failed["cell"] == "bad,seed=0" and failed["auc"] == ""
    pooled = [r for r in rows if (r["level"], r["quality"]) == ("video", "pooled")]
    one, two, mean = (float(r["auc"]) for r in pooled)
    assert mean == pytest.approx((one + two) / 2)
    assert pooled[-1]["cell"] == "bce" and pooled[-1]["spread"] == "range of 2 seeds"
    means = json.loads(result.stdout)["means"]
    assert {m["cell"] for m in means} == {"bce"}


def test_the_table_names_split_level_and_n_and_warns_of_choosing_on_test(swept, data):
    from rich.console import Console

    from dfdetect.reports.table import sweep_tables

    grid, out, _ = swept
    result = sweep(load_grid(str(grid)), [data], out, ["cpu"], only=["bce*"])  # nothing to do
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(sweep_tables(result))
    text = console.export_text()
    single = next(f for s in result.cells for f in s.figures if f.quality == "raw")
    n = f"n {single.n_real}/{single.n_fake} real/fake"
    assert f"try on {data.name}, test split, frame level, {n} at one quality" in text
    assert "mean of 2 seeds" in text and "AUC raw-c40" in text
    assert f"{single.auc:.3f}" in text and single.low is None  # a single real video
    assert "Choose nothing by them" in text
    assert "bad,seed=0: failed: method.layers" in text and "bad,seed=1: not begun" in text


def test_the_resolved_grid_is_a_grid_of_the_same_trainings(swept):
    grid, out, _ = swept
    recipes = {c.name: c.recipe for c in expand(load_grid(str(grid)))}
    assert {c.name: c.recipe for c in expand(load_grid(str(out / "sweep.yaml")))} == recipes


def test_a_cell_whose_options_changed_is_refused_with_both_values(swept, data, tmp_path):
    _, out, _ = swept
    grid = grid_file(tmp_path / "g.yaml", set=SMALL | {"epochs": 3}, cells={"bce": {}}, seeds=[0])
    with pytest.raises(DfdetectError) as caught:
        sweep(load_grid(str(grid)), [data], out, ["cpu"])
    assert caught.value.message == f"{out / 'bce,seed=0'}: the run has epochs = 1, now asked for 3"
    assert "another name" in caught.value.hint


def test_a_cell_trained_on_other_data_is_refused(swept, data, tmp_path):
    grid, out, _ = swept
    other = tmp_path / "prepared"
    shutil.copytree(data, other)
    rows = read_table(other).to_pylist()[:-1]
    for part in (other / "manifest").glob("*"):
        part.unlink()
    write_part(other, "all", rows)
    with pytest.raises(DfdetectError, match=r"was trained on data \w+, --data now holds \w+"):
        plan_sweep(load_grid(str(grid)), [other], out)


def test_another_split_is_measured_and_not_trained_anew(swept, data, tmp_path):
    grid, out, _ = swept
    content = yaml.safe_load(grid.read_text()) | {"split": "val"}
    on_val = grid_file(tmp_path / "g.yaml", **content)
    assert statuses(on_val, data, out)["bce,seed=0"] == "begun"


def test_a_damaged_note_or_measurement_is_made_again(swept, data, tmp_path):
    grid, out, _ = swept
    for name in ("cell.json", "eval/metrics.json", "eval/predictions.parquet"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(out, copy)
        damaged = copy / "bce,seed=0" / name
        damaged.write_bytes(damaged.read_bytes()[:-9])
        assert statuses(grid, data, copy)["bce,seed=0"] == "begun"


def test_a_sweep_that_is_stopped_saves_its_cell_and_goes_on_from_there(data, tmp_path):
    """SIGTERM reaches the parent alone; in the end the run is that of an undisturbed one."""
    options = SMALL | {"steps_per_epoch": 30}
    grid = load_grid(str(grid_file(tmp_path / "g.yaml", set=options, cells={"a": {}, "b": {}})))
    out = tmp_path / "out"

    sent = []

    def terminate(event):
        if event["kind"] == "progress" and "step" in event["text"] and not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(DfdetectError, match="stopped with 0 of 2 cells done") as caught:
        sweep(grid, [data], out, ["cpu"], on_event=terminate)
    assert caught.value.exit_code == ExitCode.TERMINATED
    assert [s.status for s in plan_sweep(grid, [data], out)] == ["begun", "not begun"]
    n_steps = (out / "a/metrics.jsonl").read_text().count("\n")
    assert 0 < n_steps < 30
    result = sweep(grid, [data], out, ["cpu"], only=["a"])
    assert [s.status for s in result.cells] == ["finished", "not begun"]
    assert f"from step {n_steps}" in (out / "a/log.txt").read_text()
    recipe = load_preset("bce-tiny", [f"{k}={v}" for k, v in options.items()])
    train(recipe, [data], tmp_path / "straight", device="cpu")
    for name in ("detector.safetensors", "metrics.jsonl"):
        straight = (tmp_path / "straight" / name).read_bytes()
        assert (out / "a" / name).read_bytes() == straight, name


# --- with a stand-in for the child ------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a shell script in the place of `python`: its arguments are `-m dfdetect train ...`."""

    def put(script):
        path = tmp_path / "child"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


def many(n):
    """A grid of `n` cells."""
    content = {"name": "many", "reproduces": "nothing", "preset": "bce-tiny"}
    return Grid.model_validate(content | {"axes": {"batch_size": list(range(2, n + 2))}})


def test_a_killed_child_costs_its_cell_and_says_so(stand_in, data, tmp_path):
    stand_in("kill -9 $$")
    result = sweep(many(1), [data], tmp_path / "out", ["cpu"])
    (state,) = result.failed
    assert state.error == "killed by SIGKILL, perhaps out of memory"
    assert read_json(tmp_path / "out/batch_size=2/cell.json")["status"] == "failed"


def test_finished_cells_are_skipped_and_failed_ones_tried_again(stand_in, swept, data, tmp_path):
    """Of the cell that could not be built nothing was trained: it may get other options."""
    stand_in("echo error: not yet; exit 2")
    out = tmp_path / "out"
    shutil.copytree(swept[1], out)
    cells = {"bce": {}, "bad": {"preset": "qad-tiny", "set": {"method.layers": [32]}}}
    grid = grid_file(tmp_path / "try.yaml", cells=cells, seeds=[0], split="test")
    events = []
    result = sweep(load_grid(str(grid)), [data], out, ["cpu"], on_event=events.append)
    assert [e["cell"] for e in events if e["kind"] == "begin"] == ["bad,seed=0"]
    assert [(s.status, s.error) for s in result.cells] == [("finished", ""), ("failed", "not yet")]
    log = (out / "bad,seed=0/log.txt").read_text()
    assert "no map of stride 3" in log and "'method.layers=[32]'" in log


def test_as_many_cells_run_at_once_as_there_are_devices(stand_in, data, tmp_path):
    stand_in(f"echo + >> {tmp_path}/times; sleep 0.4; echo - >> {tmp_path}/times; exit 1")
    sweep(many(5), [data], tmp_path / "out", ["cpu", "cpu"])
    ends = [1 if line == "+" else -1 for line in (tmp_path / "times").read_text().split()]
    assert len(ends) == 10 and max(np.cumsum(ends)) == 2


def test_weights_and_device_are_handed_to_the_children(stand_in, data, tmp_path):
    stand_in(f'echo "$@" >> {tmp_path}/calls; exit 1')
    sweep(many(2), [data], tmp_path / "out", ["cpu", "auto"], weights="none")
    calls = (tmp_path / "calls").read_text()
    assert "--device cpu" in calls and "--device auto" in calls
    assert calls.count("--set backbone.weights=none") == 2


def test_each_gpu_is_handed_to_a_child_of_its_own(stand_in, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    stand_in(f'echo "$@" >> {tmp_path}/calls; sleep 0.4; exit 1')
    sweep(many(2), [data], tmp_path / "out", ["cuda:0", "cuda:1"])
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    devices = [call[call.index("--device") + 1] for call in calls]
    assert sorted(devices) == ["cuda:0", "cuda:1"]
    with pytest.raises(DfdetectError, match="device 'cuda:2' is not available here"):
        sweep(many(1), [data], tmp_path / "out", ["cuda:2"])


def test_cells_on_one_cpu_share_its_cores(stand_in, data, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    stand_in(f'echo "threads $OMP_NUM_THREADS" >> {tmp_path}/calls; exit 1')
    sweep(many(2), [data], tmp_path / "a", ["cpu", "cpu"])
    sweep(many(1), [data], tmp_path / "b", ["cpu"])
    assert (tmp_path / "calls").read_text().splitlines() == ["threads 4", "threads 4", "threads "]


def test_a_folder_in_use_is_refused_with_exit_4(cli, stand_in, data, tmp_path):
    stand_in("exit 1")
    with folder_lock(tmp_path / "out"):
        result = cli("sweep", "qad-fig3", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 4 and "another run" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("qad-fig9",), "error: unknown grid 'qad-fig9'; did you mean 'qad-fig"),
        (("qad-fig3", "--only", "alpha=1*"), "error: unknown cell for --only 'alpha=1*'; "),
        (("qad-fig3", "--devices", "tpu"), "error: device 'tpu' is not available here; "),
        (("absent.yaml",), "error: absent.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_bad_input_is_one_line_before_any_work(cli, data, tmp_path, arguments, line):
    result = cli("sweep", *arguments, "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 2 and result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_an_option_that_no_method_has_is_found_before_any_work(cli, data, tmp_path):
    grid = grid_file(tmp_path / "g.yaml", cells={"a": {}, "b": {"set": {"method.alpha": 1}}})
    result = cli("sweep", grid, "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: grid g, cell b: unknown option in preset bce-tiny")


def test_a_dry_run_lists_cells_and_writes_nothing(cli, data, tmp_path):
    out = tmp_path / "out"
    result = cli("sweep", "qad-fig3", "--data", data, "--out", out, "-n", "--only", "alpha=0,*")
    assert result.exit_code == 0 and "qad-fig3: 5 cells" in result.stdout
    assert "method.alpha=0 method.gamma=0.004" in result.stdout and "not begun" in result.stdout
    assert not out.exists()
