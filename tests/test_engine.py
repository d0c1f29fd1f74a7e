"""What the training loop does around a method: parts of a batch, averages, layouts, states."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from dfdetect import train as verb
from dfdetect.checkpoint import read_info
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.presets import load_preset
from dfdetect.runs import _began_with, load_state, stored_run
from dfdetect.train import plan_training, train

SMALL = ["epochs=1", "steps_per_epoch=3", "image_size=64"]
# Without batch norm the parts of a batch do not feel each other; plain SGD adds no magnifier.
NO_BATCH_NORM = [*SMALL, "backbone.name=test_convnext.r160_in1k", "optimizer.name=sgd",
                 "optimizer.lr=0.1", "schedule.name=constant"]  # fmt: skip


def weights(run):
    return load_file(run / "detector.safetensors")


def events_of(run, kind):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    ("name", "options"),
    [("bce-tiny", []), ("qad-tiny", ["method.alpha=0", "method.gamma=0.02"])],
    ids=["bce", "awp alone"],
)
def test_a_batch_in_parts_takes_the_same_steps(name, options, data, tmp_path):
    for parts in (1, 4):
        preset = load_preset(name, [*NO_BATCH_NORM, *options, f"accumulate={parts}"])
        train(preset, [data], tmp_path / str(parts), device="cpu")
    whole, in_parts = weights(tmp_path / "1"), weights(tmp_path / "4")
    for key, tensor in whole.items():
        assert torch.allclose(in_parts[key], tensor, rtol=1e-4, atol=1e-6), key
    losses = [[e["loss"] for e in events_of(tmp_path / n, "train")] for n in "14"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["accumulate=2"], "accumulate=2 would change the method: "),
        (["method.alpha=0", "accumulate=3"], "does not fall into accumulate=3 equal parts"),
        (["method.alpha=0", "accumulate=8"], "does not fall into accumulate=8 equal parts"),
    ],
)
def test_parts_that_would_change_the_method_or_do_not_come_out_even_are_refused(
    options, problem, data, tmp_path
):
    preset = load_preset("qad-tiny", [*SMALL, *options])
    with pytest.raises(DfdetectError, match=problem):
        train(preset, [data], tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_moving_average_is_validated_and_kept(data, tmp_path, monkeypatch):
    seen = []
    step = verb._Run._train_step

    def spy(self, batches):
        step(self, batches)
        state = self.method.detector.state_dict()
        seen.append({k: v.clone() for k, v in state.items()})

    monkeypatch.setattr(verb._Run, "_train_step", spy)
    preset = load_preset("qad-tiny", [*SMALL, "ema=0.15"])
    train(preset, [data], tmp_path / "run", device="cpu")
    average = {k: v.double() for k, v in seen[0].items()}
    for n, now in enumerate(seen[1:], start=1):
        decay = min(0.15, (1 + n) / (10 + n))  # 0.15 is below 2/11 already
        average = {k: decay * average[k] + (1 - decay) * now[k].double() for k in now}
    kept = weights(tmp_path / "run")
    for key, tensor in kept.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor.double(), average[key], atol=1e-6), key
            if "weight" in key:
                assert not torch.equal(tensor, seen[-1][key])


def test_the_average_follows_closely_at_first():
    """(1 + n) / (10 + n): the second step counts 9/11, whatever the final decay."""
    from dfdetect.optim import moving_average

    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 0.0)
    average = moving_average(module, 0.999)
    average.update_parameters(module)  # the first is a copy
    torch.nn.init.constant_(module.weight, 11.0)
    average.update_parameters(module)
    assert average.module.weight.item() == pytest.approx(9.0)


def test_layout_and_compilation_change_speed_and_not_the_method(data, tmp_path, monkeypatch):
    compiled = []
    compiler = torch.compile

    def eager(function, **options):
        compiled.append(function)
        return compiler(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", eager)
    runs = {"plain": [], "layout": ["channels_last=true"], "compiled": ["compile=true"]}
    for name, options in runs.items():
        preset = load_preset("qad-tiny", [*SMALL, *options])
        train(preset, [data], tmp_path / name, device="cpu")
    assert len(compiled) == 1
    losses = {n: [e["loss"] for e in events_of(tmp_path / n, "train")] for n in runs}
    assert losses["layout"] == pytest.approx(losses["plain"], rel=1e-2)
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-2)
    assert weights(tmp_path / "layout").keys() == weights(tmp_path / "plain").keys()


def test_gradients_are_clipped_to_the_norm_asked_for(data, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.SGD.step

    def spy(self, *arguments, **options):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.stack([g.norm() for g in gradients if g is not None]).norm()))
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    options = ["optimizer.name=sgd", "optimizer.clip_norm=0.01"]
    train(load_preset("bce-tiny", [*SMALL, *options]), [data], tmp_path / "run", device="cpu")
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_half_precision_that_a_cpu_cannot_scale_is_refused_and_planned_for_none(data, tmp_path):
    preset = load_preset("bce-tiny", [*SMALL, "precision=fp16"])
    with pytest.raises(DfdetectError, match="precision=fp16 needs a GPU") as caught:
        train(preset, [data], tmp_path / "run", device="cpu")
    assert "bf16" in caught.value.hint
    with pytest.raises(DfdetectError, match="precision=fp16 needs a GPU"):
        plan_training(preset, [data], device="cpu")


def test_a_gpu_by_its_number_is_the_one_that_is_used(monkeypatch):
    """Accelerate takes the current GPU, whatever it is called."""
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)

    class Told:
        distributed_type = None

        def __init__(self, cpu, **options):
            used.append(cpu)

    monkeypatch.setattr(verb, "Accelerator", Told)
    for device in ("cuda:1", "cuda", "cpu"):
        verb._accelerator(load_preset("bce-tiny"), device)
    assert used == ["cuda:1", False, False, True]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DfdetectError, match="--device cuda:1 with 2 processes"):
        verb._accelerator(load_preset("bce-tiny"), "cuda:1")


def test_a_launcher_s_own_accumulation_leaves_the_gradients_as_they_are(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    x = torch.ones(1, requires_grad=True)
    verb._accelerator(load_preset("bce-tiny"), "cpu").backward((2 * x).sum())
    assert x.grad.item() == 2


# --- states ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """An undisturbed run of six steps with a validation after every second."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(six_steps(), [data], out, device="cpu")
    return out


def six_steps():
    options = ["epochs=2", "steps_per_epoch=3", "image_size=64", "validate_per_epoch=3", "ema=0.9"]
    return load_preset("qad-tiny", options)


def test_validations_are_spread_evenly_over_an_epoch(data, tmp_path):
    """Two in five steps: after 2.5, that is with the third, and after the last."""
    options = ["epochs=2", "steps_per_epoch=5", "validate_per_epoch=2", "image_size=64"]
    train(load_preset("bce-tiny", options), [data], tmp_path / "run", device="cpu")
    assert [e["step"] for e in events_of(tmp_path / "run", "val")] == [3, 5, 8, 10]


def test_weights_that_a_launcher_cuts_into_pieces_are_refused(data, tmp_path, monkeypatch):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP, raising=False)
    with pytest.raises(DfdetectError, match="accelerate is set up for FSDP"):
        train(load_preset("bce-tiny", SMALL), [data], tmp_path / "run", device="cpu")


def test_two_states_are_kept(straight):
    names = sorted(p.name for p in (straight / "resume").iterdir())
    assert names == ["state-00000005.pt", "state-00000006.pt"]


def test_a_validation_that_was_cut_short_is_done_on_resuming(straight, data, tmp_path):
    def press_ctrl_c(event):
        if event["kind"] == "validating" and event["done"] and press_ctrl_c.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        press_ctrl_c.step = event.get("step", press_ctrl_c.step)

    press_ctrl_c.step = 0
    with pytest.raises(DfdetectError, match="stopped at step 4 of 6; the state is saved"):
        train(six_steps(), [data], tmp_path / "run", device="cpu", on_event=press_ctrl_c)
    assert [e["step"] for e in events_of(tmp_path / "run", "val")] == [1, 2, 3]
    train(six_steps(), [data], tmp_path / "run", device="cpu", resume=True)
    ours, theirs = tmp_path / "run", straight
    assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    assert same(weights(ours), weights(theirs))


def test_a_best_checkpoint_that_was_not_written_in_time_comes_from_the_state(
    straight, data, tmp_path
):
    """Killed between the state of its best step and the checkpoint."""

    class Killed(Exception):
        pass

    def die(*arguments):
        raise Killed

    run, save = tmp_path / "run", verb.save_checkpoint
    verb.save_checkpoint = die
    try:
        with pytest.raises(Killed):
            train(six_steps(), [data], run, device="cpu")
    finally:
        verb.save_checkpoint = save
    assert not (run / "detector.safetensors").exists()

    def look(event):
        if event["kind"] == "start":
            assert read_info(run).step == event["step"] == 1

    train(six_steps(), [data], run, device="cpu", resume=True, on_event=look)
    assert same(weights(run), weights(straight))


def test_a_run_folder_that_is_gone_ends_the_run(data, tmp_path):
    def remove(event):
        if event["kind"] == "train" and event["step"] == 2:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(DfdetectError, match="folder was removed") as caught:
        train(load_preset("bce-tiny", SMALL), [data], tmp_path / "run", device="cpu",
              on_event=remove)  # fmt: skip
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert not (tmp_path / "run" / "detector.safetensors").exists()


def test_a_log_that_cannot_be_written_is_told_apart_from_a_reader_that_left(data, tmp_path):
    preset = load_preset("bce-tiny", SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(DfdetectError, match=r"metrics\.jsonl: cannot be written \(No space") as e:
        train(preset, [data], tmp_path / "full", device="cpu")
    assert e.value.exit_code == ExitCode.ENVIRONMENT

    def closed(event):
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):  # which the command line ends on with 141
        train(preset, [data], tmp_path / "piped", device="cpu", on_event=closed)


def test_other_versions_are_named_and_another_number_of_processes_is_refused(
    straight, data, tmp_path
):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    about = json.loads((copy / "run.json").read_text())
    about["versions"]["torch"] = "1.0"
    (copy / "run.json").write_text(json.dumps(about))
    preset, folders = stored_run(copy)
    events = []
    train(preset, folders, copy, device="cpu", resume=True, on_event=events.append)
    (warning,) = [e["message"] for e in events if e["kind"] == "warning"]
    assert warning.startswith("begun with torch 1.0, resumed with")
    (copy / "run.json").write_text(json.dumps(about | {"n_processes": 8}))
    with pytest.raises(DfdetectError, match="began with 8 processes, now there are 1"):
        train(preset, folders, copy, device="cpu", resume=True)


def test_a_state_of_another_run_or_with_code_in_it_is_passed_over(straight, tmp_path):
    import pickle

    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    newest = copy / "resume/state-00000006.pt"

    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    warnings = []
    for content in (b"", b"PK\x03\x04", pickle.dumps(Canary())):
        newest.write_bytes(content)
        assert load_state(copy, six_steps(), warnings.append)["step"] == 5
    assert not (tmp_path / "canary").exists()
    assert len(warnings) == 3 and all("state-00000006.pt: " in w for w in warnings)
    other = load_preset("qad-tiny")
    damage = "state-00000006.pt: belongs to another run, and no state before it is whole"
    with pytest.raises(DfdetectError, match=damage):
        load_state(straight, other, warnings.append)
    assert len(warnings) == 3


def test_a_state_saved_before_an_option_came_is_gone_on_from(straight):
    state = load_state(straight, six_steps(), print)
    del state["preset"]["augment"]["forge"]["decoder_steps"]
    assert _began_with(state, six_steps())
    state["preset"]["epochs"] += 1
    assert not _began_with(state, six_steps())


def test_memory_that_runs_out_is_told_with_the_batch_and_what_to_try(data, tmp_path, monkeypatch):
    def no_memory(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(verb._Run, "_forward_backward", no_memory)
    with pytest.raises(DfdetectError) as caught:
        train(load_preset("bce-tiny", SMALL), [data], tmp_path / "run", device="cpu")
    assert caught.value.message == "out of memory at step 1 with 8 samples x 3 qualities at 64 px"
    assert caught.value.hint == "--set batch_size=4, --set precision=bf16, or --set accumulate=2"
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
