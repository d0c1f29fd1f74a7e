"""The training loop: choice on val, resume, divergence, refusals, what is logged."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dfdetect import train as verb
from dfdetect.checkpoint import read_info
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.evaluate import evaluate
from dfdetect.manifest import read_table, write_part
from dfdetect.metrics import auc
from dfdetect.optim import make_optimizer, make_scheduler
from dfdetect.presets import load_preset
from dfdetect.results import Prediction
from dfdetect.runs import load_state, save_state, stored_run
from dfdetect.train import (
    plan_training,
    train,
)
from dfdetect.training_data import load_training_data
from dfdetect.validation import choose_decision, validation_figures

SMALL = ["epochs=2", "steps_per_epoch=3", "image_size=64"]


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run):
    from safetensors.torch import load_file

    return load_file(run / "detector.safetensors")


def test_a_run_holds_its_preset_metrics_and_checkpoint(run):
    assert load_preset(str(run / "preset.yaml")).name == "qad-tiny"
    rows = lines(run)
    steps = [r for r in rows if r["kind"] == "train"]
    assert [r["step"] for r in steps] == list(range(1, 9))
    assert all(set(r["terms"]) == {"ce", "hsic"} for r in steps)
    assert steps[0]["reg_ratio"] > 1e-5
    assert [r["step"] for r in rows if r["kind"] == "val"] == [4, 8]
    assert (run / "detector.safetensors").exists()


def interrupt_at(step):
    """An on_event that presses Ctrl-C when `step` is done."""

    def on_event(event):
        if event["kind"] == "train" and event["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_event


@pytest.mark.parametrize("step", [3, 5])  # at the end of an epoch, and in the middle of one
@pytest.mark.parametrize("name", ["qad-tiny", "did-tiny", "qadid-tiny"])
def test_a_run_stopped_and_resumed_ends_with_the_same_bits(name, step, data, tmp_path):
    preset = load_preset(name, [*SMALL, "epochs=3", "augment.scale=0.1"])
    train(preset, [data], tmp_path / "straight", device="cpu")
    with pytest.raises(
        DfdetectError, match=f"stopped at step {step} of 9; the state is saved"
    ) as e:
        train(preset, [data], tmp_path / "broken", device="cpu", on_event=interrupt_at(step))
    assert e.value.exit_code == ExitCode.INTERRUPTED and "--resume" in e.value.hint
    preset, folders = stored_run(tmp_path / "broken")
    assert train(preset, folders, tmp_path / "broken", device="cpu", resume=True).n_steps == 9
    straight, resumed = weights_of(tmp_path / "straight"), weights_of(tmp_path / "broken")
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("straight", "broken")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [("qad-tiny", "optimizer"), ("qad-tiny", "scheduler"), ("did-tiny", "rng")],
)
def test_resuming_without_part_of_the_state_would_show(name, forgotten, data, tmp_path):
    """Negative control: the comparison above has the power to notice a forgotten state."""
    preset = load_preset(name, [*SMALL, "epochs=3"])
    train(preset, [data], tmp_path / "straight", device="cpu")

    with pytest.raises(DfdetectError, match="the state is saved"):
        train(preset, [data], tmp_path / "broken", device="cpu", on_event=interrupt_at(4))
    state = load_state(tmp_path / "broken", preset, print)
    if forgotten == "optimizer":
        state["optimizer"]["state"] = {}
    elif forgotten == "scheduler":
        state["scheduler"]["last_epoch"] = 0
    else:
        state["rng"] = torch.Generator().manual_seed(99).get_state()
    save_state(tmp_path / "broken", state)
    train(preset, [data], tmp_path / "broken", device="cpu", resume=True)
    rows = [
        [r["loss"] for r in lines(tmp_path / n) if r["kind"] == "train"]
        for n in ("straight", "broken")
    ]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("rule", ["auc", "last"])
def test_the_checkpoint_kept_is_the_best_by_a_val_figure_or_the_last(data, tmp_path, rule):
    preset = load_preset("bce-tiny", [*SMALL, "epochs=4", f"select={rule}"])
    summary = train(preset, [data], tmp_path / "run", device="cpu")
    val = [r for r in lines(tmp_path / "run") if r["kind"] == "val"]
    kept = val[-1] if rule == "last" else max(val, key=lambda r: r["frame"]["auc"])
    assert summary.val["frame"]["auc"] == kept["frame"]["auc"]
    assert summary.best_step == read_info(tmp_path / "run").step == kept["step"]


def test_rows_of_the_test_split_are_never_read(data, tmp_path):
    """With every test crop deleted, training goes on as if nothing had happened."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    for row in read_table(copy).to_pylist():
        if row["split"] == "test":
            (copy / row["path"]).unlink()
    train(load_preset("bce-tiny", SMALL), [copy], tmp_path / "run", device="cpu")


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoint(data, tmp_path):
    preset = load_preset("bce-tiny", [*SMALL, "optimizer.lr=1e18", "schedule.name=constant"])
    with pytest.raises(DfdetectError, match=r"training diverged at step \d+: the loss is") as error:
        train(preset, [data], tmp_path / "run", device="cpu")
    assert error.value.exit_code == ExitCode.DIVERGED


def test_a_process_whose_own_loss_is_finite_says_that_another_s_is_not(tmp_path):
    here = SimpleNamespace(step=6, best={}, out=tmp_path)
    error = verb._Run._diverged(here, ["a/0/0"], 0.5)
    assert error.message == "training diverged at step 7: the loss of another process is not finite"


def test_a_run_folder_is_not_overwritten(run, data):
    preset = load_preset("qad-tiny")
    with pytest.raises(DfdetectError, match="holds a run already"):
        train(preset, [data], run, device="cpu")


def test_a_folder_of_data_takes_no_run_and_a_damaged_run_is_named(run, data, tmp_path):
    with pytest.raises(DfdetectError, match="prepared: holds prepared data"):
        train(load_preset("bce-tiny", SMALL), [data], data, device="cpu")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for name, content in (("run.json", "[]"), ("run.json", "{}"), ("preset.yaml", "5")):
        (copy / name).write_text(content)
        with pytest.raises(DfdetectError, match=f"{name}: damaged"):
            stored_run(copy)


def test_resuming_with_another_preset_or_other_data_is_refused_with_both_values(
    run, data, tmp_path
):
    preset, folders = stored_run(run)
    other = preset.model_copy(update={"batch_size": 5})
    with pytest.raises(DfdetectError, match="batch_size = 8, now asked for 5"):
        train(other, folders, run, device="cpu", resume=True)
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    sorted((copy / "manifest").glob("*"))[0].unlink()
    with pytest.raises(DfdetectError, match="the run began on data"):
        train(preset, [copy], run, device="cpu", resume=True)


def damaged(run, out, *states):
    """A copy of `run` whose named states, newest first, are cut short."""
    shutil.copytree(run, out)
    for path in states:
        file = out / "resume" / path
        file.write_bytes(file.read_bytes()[:1000])
    return out


def test_a_damaged_state_costs_the_steps_since_the_one_before_it(run, tmp_path):
    copy = damaged(run, tmp_path / "run", "state-00000008.pt")
    preset, folders = stored_run(copy)
    events = []
    train(preset, folders, copy, device="cpu", resume=True, on_event=events.append)
    (warning,) = [e["message"] for e in events if e["kind"] == "warning"]
    assert "state-00000008.pt: damaged" in warning and "the state before it" in warning
    assert [e["step"] for e in events if e["kind"] == "train"] == [5, 6, 7, 8]
    assert (copy / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    ours, theirs = weights_of(copy), weights_of(run)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_run_of_which_every_state_is_damaged_is_refused_by_name(run, tmp_path):
    copy = damaged(run, tmp_path / "run", "state-00000008.pt", "state-00000004.pt")
    preset, folders = stored_run(copy)
    with pytest.raises(DfdetectError, match=r"state-00000008\.pt: damaged \(1000 bytes") as caught:
        train(preset, folders, copy, device="cpu", resume=True)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def edited(data, out, change):
    """A copy of prepared data with `change(row)` applied to every manifest row."""
    shutil.copytree(data, out)
    rows = read_table(out).to_pylist()
    for part in (out / "manifest").glob("*"):
        part.unlink()
    write_part(out, "all", [row | change(row) for row in rows])
    return out


def test_data_with_one_class_or_a_person_on_both_sides_is_refused(data, tmp_path):
    preset = load_preset("bce-tiny", SMALL)
    one = edited(data, tmp_path / "one", lambda r: {"label": 0, "manipulation": "real"})
    with pytest.raises(DfdetectError, match="the train split has only real crops"):
        load_training_data(preset, [one])
    leak = edited(data, tmp_path / "leak", lambda r: {"identities": ["ann"]})
    with pytest.raises(DfdetectError, match=r"/ann \(test\+train\+val\)"):
        load_training_data(preset, [leak])


def test_manipulations_left_out_are_neither_trained_nor_validated_on(data, tmp_path):
    preset = load_preset("did-tiny", [*SMALL, "leave_out=self-*"])
    rows = load_training_data(preset, [data])
    assert rows.domains == ["real", "local-warp"]
    assert {s.manipulation for s in [*rows.train, *rows.val] if s.label} == {"local-warp"}
    everything = load_training_data(load_preset("did-tiny", SMALL), [data])
    assert rows.fingerprint != everything.fingerprint
    reals = [s for s in everything.train if not s.label]
    assert [s for s in rows.train if not s.label] == reals
    train(preset, [data], tmp_path / "run", device="cpu")
    info = read_info(tmp_path / "run" / "detector.safetensors")
    assert info.domains == ["real", "local-warp"]
    assert info.data["manipulations"] == ["local-warp"]


def test_leaving_out_what_is_not_there_or_all_of_it_is_refused(data):
    with pytest.raises(DfdetectError, match="manipulation in leave_out") as caught:
        load_training_data(load_preset("did-tiny", ["leave_out=self-blnd"]), [data])
    assert "self-blend" in caught.value.hint
    with pytest.raises(DfdetectError, match="the train split has only real crops"):
        load_training_data(load_preset("did-tiny", ["leave_out='*'"]), [data])


def test_data_named_twice_or_validated_on_one_class_at_a_quality_is_refused(data, tmp_path):
    preset = load_preset("bce-tiny", SMALL)
    with pytest.raises(DfdetectError, match="one folder twice"):
        load_training_data(preset, [data, data / "." / ".." / data.name])

    def no_real_at_c40(row):
        gone = (row["split"], row["label"], row["quality"]) == ("val", 0, "c40")
        return {"quality": "c30"} if gone else {}

    one = edited(data, tmp_path / "one", no_real_at_c40)
    with pytest.raises(DfdetectError, match="the val split at c40 has only fake crops"):
        load_training_data(preset, [one])


def test_a_model_validated_on_people_it_trained_on_makes_no_calls(data, tmp_path):
    leak = edited(data, tmp_path / "leak", lambda r: {"identities": ["ann"]})
    recipe = json.loads((leak / "prepare.json").read_text())
    (leak / "prepare.json").write_text(json.dumps(recipe | {"identity_overlap_allowed": True}))
    train(load_preset("bce-tiny", SMALL), [leak], tmp_path / "run", device="cpu")
    info = read_info(tmp_path / "run")
    assert info.band is None and "in its training too" in info.band_basis


def test_data_without_a_quality_of_the_preset_says_how_to_prepare_it(data):
    preset = load_preset("bce-tiny", ["qualities=raw,c30"])
    with pytest.raises(DfdetectError, match="holds no c30 crops") as error:
        load_training_data(preset, [data])
    assert "--qualities raw,c30" in error.value.hint


def test_jpeg_qualities_are_trained_and_validated_on_without_being_stored(data, tmp_path):
    options = ["epochs=1", "steps_per_epoch=3", "image_size=64", "qualities=j75,c23,j40-100"]
    train(load_preset("qad-tiny", options), [data], tmp_path / "run", device="cpu")
    info = read_info(tmp_path / "run")
    assert set(info.val["by_quality"]["auc"]) == {"j75", "c23", "j40-100"}
    assert info.preset["qualities"] == ["j75", "c23", "j40-100"]
    result = evaluate(tmp_path / "run", [data], "c23,j60,j39", device="cpu")
    assert result.warnings == ["prepared: the model never trained on j39"]  # j60 is in j40-100


def test_jpeg_without_raw_crops_to_make_it_of_says_what_to_prepare(data, tmp_path):
    rename = {"raw": "c30", "c23": "c23", "c40": "c40"}
    no_raw = edited(data, tmp_path / "c", lambda r: {"quality": rename[r["quality"]]})
    preset = load_preset("qad-tiny", ["qualities=c23,j40-100"])
    with pytest.raises(DfdetectError, match="holds no j40-100 crops") as caught:
        load_training_data(preset, [no_raw])
    assert "--qualities c23,raw" in caught.value.hint


def test_storing_jpeg_later_does_not_make_it_other_data(data, tmp_path):
    rename = {"raw": "raw", "c23": "c23", "c40": "j75"}
    stored = edited(data, tmp_path / "j75", lambda r: {"quality": rename[r["quality"]]})
    preset = load_preset("qad-tiny", ["qualities=raw,j75"])
    as_stored, as_made = (load_training_data(preset, [folder]) for folder in (stored, data))
    assert as_stored.train[1].made is None and as_made.train[1].made is not None
    assert as_stored.fingerprint == as_made.fingerprint


def test_a_plan_counts_parameters_and_steps(data):
    plan = plan_training(load_preset("did-tiny", ["epochs=3", "steps_per_epoch=7"]), [data])
    assert plan.n_steps == 21
    bare = plan_training(load_preset("did-tiny", ["method.lambda_dom=0"]), [data])
    assert plan.n_inference_parameters == bare.n_inference_parameters < bare.n_parameters
    assert bare.n_parameters < plan.n_parameters


@pytest.mark.parametrize("name", ["did", "qadid"])
def test_a_run_that_ends_before_its_automatic_domains_begin_is_refused(name, data, tmp_path):
    auto = f"method.{'did.' if name == 'qadid' else ''}domains=auto"
    with pytest.raises(DfdetectError, match="epochs=1 is too short: automatic domains"):
        train(load_preset(f"{name}-tiny", [auto, "epochs=1"]), [data], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_backbone_learns_at_its_own_rate(data):
    from dfdetect.methods import make_method

    preset = load_preset("did-tiny", ["optimizer.lr=1e-4", "optimizer.backbone_lr_scale=0.1"])
    method = make_method(preset, 3)
    groups = make_optimizer(method, preset.optimizer).param_groups
    assert [g["lr"] for g in groups] == pytest.approx([1e-5, 1e-4])
    assert sum(len(g["params"]) for g in groups) == len(list(method.parameters()))


@pytest.mark.parametrize(
    ("n_steps", "warmup"), [(20, 0.05), (5, 0.2), (2, 0.5), (1, 0.05), (3, 0.9)]
)
def test_one_cycle_works_for_runs_of_a_few_steps(n_steps, warmup):
    preset = load_preset("qad-tiny", [f"schedule.warmup={warmup}"])
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = make_scheduler(optimizer, preset, n_steps)
    for _ in range(n_steps):
        optimizer.step()
        scheduler.step()
        assert 0 <= scheduler.get_last_lr()[0] <= preset.optimizer.lr + 0.01


def test_weights_chosen_on_the_command_line_are_recorded(data, tmp_path):
    preset = load_preset("bce-tiny", [*SMALL, "backbone.weights=pretrained"])
    train(preset, [data], tmp_path / "run", weights="none", device="cpu")
    assert stored_run(tmp_path / "run")[0].backbone.weights == "none"


def test_folders_with_the_same_names_stay_apart(data, tmp_path):
    """Two tables may both list real/000.mp4; their crops must not be taken for one another's."""
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    preset = load_preset("bce-tiny", SMALL)
    one, two = load_training_data(preset, [data]), load_training_data(preset, [data, copy])
    assert len({s.sample_id for s in two.train}) == 2 * len({s.sample_id for s in one.train})


def test_two_precisions_in_one_process(data, tmp_path):
    for precision in ("fp32", "bf16"):
        preset = load_preset("qad-tiny", [*SMALL, "epochs=1", f"precision={precision}"])
        train(preset, [data], tmp_path / precision, device="cpu")


def test_one_cycle_rises_to_the_peak_and_falls_to_almost_nothing():
    preset = load_preset("qad-tiny", ["schedule.warmup=0.2", "optimizer.lr=0.01"])
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = make_scheduler(optimizer, preset, 100)
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.01 / 25)
    assert max(rates) == pytest.approx(0.01) and 15 <= int(np.argmax(rates)) <= 20
    assert rates[-1] == pytest.approx(0.01 / 25 / 1e4, rel=0.05)


# --- figures on val --------------------------------------------------------------------------


def prediction(video, label, quality, score):
    logit = float(np.log(score / (1 - score)))
    return Prediction(f"{video}/0/0", video, 0, "d", "x", quality, "val", label, logit, score)


def test_validation_figures_carry_level_quality_split_and_n():
    rows = [prediction(f"v{i}", i % 2, q, 0.2 + 0.1 * i) for i in range(6) for q in ("raw", "c40")]
    figures = validation_figures(rows, ("raw", "c40"))
    assert (figures["frame"]["n_real"], figures["frame"]["n_fake"]) == (6, 6)
    assert figures["frame"]["auc"] == auc([p.score for p in rows], [p.label for p in rows])
    assert (figures["video"]["n_real"], figures["video"]["n_fake"]) == (3, 3)
    assert set(figures["by_quality"]["auc"]) == {"raw", "c40"}


def test_few_validation_videos_allow_no_calls():
    decision = choose_decision(
        [prediction(f"v{i}", i % 2, "raw", 0.1 + 0.8 * (i % 2)) for i in range(8)]
    )
    assert decision.band is None
    assert "4 real and 4 fake validation videos are too few" in decision.basis
    assert 0.1 < decision.threshold < 0.9


def test_the_band_rests_on_each_video_s_worst_quality():
    """At raw the classes separate; at c40 they overlap: the band must cover the overlap."""
    rows = []
    for i in range(20):
        rows += [
            prediction(f"r{i}", 0, "raw", 0.05 + 0.01 * i),
            prediction(f"r{i}", 0, "c40", 0.3 + 0.01 * i),
        ]
        rows += [
            prediction(f"f{i}", 1, "raw", 0.95 - 0.01 * i),
            prediction(f"f{i}", 1, "c40", 0.6 - 0.01 * i),
        ]
    low, high = choose_decision(rows).band
    assert low <= 0.42 + 1e-9 and high >= 0.48 - 1e-9
