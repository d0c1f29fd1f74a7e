"""The edge: help, exit codes, one line per error, stdout for results only."""

import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import clip, write_clip

from dfdetect.files import write_whole
from dfdetect.video import write_video

COMMANDS = ("prepare", "audit", "train", "eval", "sweep", "scan", "presets", "info", "demo")


def test_help_imports_neither_torch_nor_cv2():
    code = (
        "import sys; from dfdetect.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'cv2', 'av', 'timm', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_s_help_opens_with_an_example(cli, command, flag):
    result = cli(command, flag)
    assert result.exit_code == 0
    assert f"Example: dfdetect {command}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("prepare", "absent", "--out", "out"), "error: absent: no such file or folder; "),
        (("train", "--out", "r"), "error: train needs --preset and --data; "),
        (("train", "--preset", "qad-tiny", "--data", "no", "--out", "r"), "error: no: not a pre"),
        (("eval", "absent", "--data", "d"), "error: absent: no checkpoint there; train one: "),
        (("scan",), "error: nothing to scan; for example: "),
        (("scan", "x.mp4", "--model", "absent"), "error: absent: no checkpoint there; "),
        (("scan", "x.mp4", "--fail-on", "fake"), "error: unknown verdict for --fail-on 'fake'; "),
        (("scan", "--files-from", "absent"), "error: absent: cannot be read as a list of files"),
        (("presets", "qad"), "error: unknown preset 'qad'; "),
        (("info", "absent"), "error: absent: no such file or folder; "),
        (("prepare", ".", "--out", "o", "--qualities", "c99"), "error: unknown quality 'c99'; "),
        (("prepare", ".", "--out", "o", "--columns", "x"), "error: --columns 'x' is not name="),
        (("prepare", "."), "error: Missing option '--out'; see "),
        (("prepare", "--out", "o"), "error: no source given; "),
        (("prepare", ".", "--out", "o", "--format", "bmp"), "error: unknown format 'bmp'; "),
        (("prepare", ".", "--out", "o", "--tracks", "two"), "error: unknown choice of tracks "),
        (("prepare", "--import", "x.json", "--out", "o"), "error: x.json: no such file or fol"),
        (("prepare", "--out", "o", "--verify"), "error: o: not a prepared data folder"),
        (("prepare", ".", "--out", "o", "--max-frames", "0"), "error: Invalid value for '--max"),
        (("scan", "--frames", "many"), "error: Invalid value for '--frames': "),
        (("scna", "x.mp4"), "error: No such command 'scna'"),
        (("prepare", ".", "--out", "o", "--template", "arc"), "error: unknown template 'arc'; "),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_with_cause_and_remedy_and_exit_2(
    cli, tmp_path, monkeypatch, arguments, line
):
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_an_output_in_the_way_exits_4(cli, tmp_path):
    write_clip(tmp_path / "s/real/a.mp4")
    (tmp_path / "out").write_text("in the way")
    result = cli("prepare", tmp_path / "s", "--out", tmp_path / "out")
    assert result.exit_code == 4
    assert "cannot be written" in result.stderr


def test_a_bug_exits_70_without_a_traceback(cli, monkeypatch):
    monkeypatch.setattr("dfdetect.presets.list_presets", lambda: 1 / 0)
    result = cli("presets")
    assert result.exit_code == 70
    assert result.stderr.startswith("error: a bug in dfdetect: ZeroDivisionError")
    assert "Traceback" not in result.stderr


def test_prepare_train_eval_and_info_speak_through_the_command_line(cli, clips, tmp_path):
    """The whole loop as a user types it, results on stdout, the rest on stderr."""
    data, run = tmp_path / "data", tmp_path / "run"
    done = cli(
        "prepare",
        clips,
        "--out",
        data,
        "--frames",
        2,
        "--qualities",
        "raw,c40",
        "--json",
        "--workers",
        1,
    )
    assert done.exit_code == 0
    assert json.loads(done.stdout)["crops"] == {"raw/0": 12, "raw/1": 24, "c40/0": 12, "c40/1": 24}
    done = cli(
        "train", "--preset", "bce-tiny", "--data", data, "--out", run, "--device", "cpu",
        "--set", "qualities=raw,c40", "--set", "epochs=1", "--set", "image_size=64",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "next: dfdetect eval" in done.stdout
    done = cli("eval", run, "--data", data, "--device", "cpu", "--json")
    assert done.exit_code == 0
    cells = json.loads(done.stdout)["cells"]
    assert {c["quality"] for c in cells} == {"raw", "c40", "mean", "pooled", "worst"}
    done = cli("eval", run, "--data", data, "--device", "cpu", "--out", tmp_path / "results")
    assert "local-warp" in done.stdout and "video level" in done.stdout
    for path in (data, run):
        assert cli("info", path).exit_code == 0
        assert json.loads(cli("info", path, "--json").stdout)


@pytest.fixture
def train_tiny(cli, data, tmp_path):
    """A short run into tmp_path / "my run"; arguments are added to its command."""
    sizes = ("--set", "image_size=64", "--set", "epochs=1", "--set", "steps_per_epoch=2")
    out = tmp_path / "my run"
    command = ("train", "--preset", "qad-tiny", "--data", data, "--out", out, "--device", "cpu")
    return lambda *arguments: cli(*command, *sizes, *arguments)


def test_training_ends_with_figures_and_commands_that_can_be_pasted(train_tiny, data, tmp_path):
    other = tmp_path / "it's other"
    shutil.copytree(data, other)
    done = train_tiny("--data", other)
    assert done.exit_code == 0, done.stderr
    commands = [
        shlex.split(line.removeprefix("next: "))
        for line in done.stdout.splitlines()
        if line.startswith("next: ")
    ]
    run = str(tmp_path / "my run")
    assert commands == [
        ["dfdetect", "eval", run, "--data", str(data), "--data", str(other)],
        ["dfdetect", "scan", "VIDEO", "--model", run],
    ]
    for word in ("frame", "video", "pooled", "raw", "no calls: ", "gradient"):
        assert word in done.stdout
    lines = done.stderr.splitlines()
    assert any(line.startswith("step 1/2: loss ") for line in lines)
    assert any(line.startswith("step 2/2: val pooled frames AUC ") for line in lines)


def test_training_as_json_prints_one_object_and_nothing_else(train_tiny, tmp_path):
    done = train_tiny("--json", "--tensorboard")
    assert done.exit_code == 0 and done.stderr == ""
    summary = json.loads(done.stdout)
    assert summary["n_steps"] == summary["best_step"] == 2
    assert set(summary["val"]["by_quality"]["auc"]) == {"raw", "c23", "c40"}
    logged = [json.loads(x) for x in (tmp_path / "my run/metrics.jsonl").read_text().splitlines()]
    assert summary["reg_ratio_median"] == logged[0]["reg_ratio"]  # measured every tenth step
    assert len(list((tmp_path / "my run/tensorboard").iterdir())) == 1


def test_only_the_main_process_speaks(train_tiny, monkeypatch):
    from dfdetect.processes import Processes

    monkeypatch.setattr("dfdetect.processes.processes", lambda: Processes(1, 2))
    monkeypatch.setattr("dfdetect.train.train", lambda *arguments: None)
    done = train_tiny("--tensorboard")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_some_failures_in_a_batch_exit_3_and_are_named(cli, tmp_path):
    write_clip(tmp_path / "s/real/a.mp4")
    (tmp_path / "s/real/b.mp4").write_text("no video")
    result = cli(
        "prepare", tmp_path / "s", "--out", tmp_path / "d", "--qualities", "raw", "--workers", 1
    )
    assert result.exit_code == 3
    assert "b.mp4: not a video or picture" in result.stderr
    assert "1 prepared, 0 finished before, 1 failed" in result.stdout


def test_dry_runs_say_how_big_and_write_nothing(cli, clips, data, tmp_path):
    result = cli("prepare", clips, "--out", tmp_path / "d", "-n")
    assert result.exit_code == 0 and "18 videos and 0 pictures" in result.stdout
    train = ("train", "--preset", "qad-tiny", "--data", data, "--out", tmp_path / "r", "-n")
    shown = cli(*train, "--set", "image_size=64")
    assert shown.exit_code == 0, shown.stderr
    rows = [[part.strip() for part in line.split("│")] for line in shown.stdout.splitlines()]
    assert ["", "optimizer.lr", "0.002", "default", ""] in rows
    assert ["", "image_size", "64", "", ""] in rows  # the preset or --set chose it
    assert ["", "train real samples", "16", ""] in rows  # four videos, four frames each
    assert ["", "map of stride 8", "32 x 8 x 8", ""] in rows
    assert "memory of each device, estimated" in shown.stdout
    assert not list(tmp_path.iterdir())


def test_a_plan_as_json_holds_the_preset_and_the_memory(cli, data, tmp_path):
    train = ("train", "--preset", "bce-tiny", "--data", data, "--out", tmp_path / "r", "-n")
    plan = json.loads(cli(*train, "--set", "image_size=64", "--weights", "none", "--json").stdout)
    assert plan["preset"]["backbone"]["weights"] == "none"
    assert plan["preset"]["method"] == {"name": "bce", "head": "linear", "trains": "all"}
    assert plan["n_steps"] == plan["steps_per_epoch"] * plan["preset"]["epochs"]
    memory = plan["memory"]
    parts = (memory[part] for part in ("weights", "optimizer", "average", "step"))
    assert memory["total"] == sum(parts)
    assert memory["is_finite"]


def test_presets_are_listed_and_shown(cli):
    assert "qad-effb1-literal" in cli("presets").stdout
    shown = json.loads(cli("presets", "qad-effb1", "--json").stdout)
    assert shown["image_size"] == 240


def test_offline_training_from_imagenet_weights_says_what_to_do(cli, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    result = cli(
        "train", "--preset", "qad-effb0", "--data", data, "--out", tmp_path / "r", "--device", "cpu"
    )
    assert result.exit_code == 2
    assert "ImageNet weights" in result.stderr and "--weights none" in result.stderr
    assert not (tmp_path / "r/run.json").exists()  # the folder is free for another try


def test_the_demo_refuses_a_folder_with_something_in_it(cli, tmp_path):
    (tmp_path / "precious").write_text("")
    result = cli("demo", "--out", tmp_path)
    assert result.exit_code == 2 and "there already" in result.stderr


@pytest.fixture
def two(tmp_path):
    """A source of two clips, 256 px and 12 frames."""
    write_clip(tmp_path / "source/real/ann.mp4", 1)
    write_clip(tmp_path / "source/fake/swap/bob.mp4", 2, forgery="self-blend")
    return tmp_path / "source"


@pytest.mark.parametrize(
    ("limit", "cause"),
    [
        (("--max-megapixels", "0.5"), "a picture of 1280x720 exceeds the limit of 0.5 megapixels"),
        (("--max-gigabytes", "0.01"), "larger than 0.01 GiB"),
        (("--max-memory", "0.1"), "needs more than 0.1 GB of memory"),
    ],
)
def test_each_limit_of_prepare_bites_and_names_itself(cli, tmp_path, limit, cause):
    frames = [np.pad(frame, ((0, 464), (0, 1024), (0, 0))) for frame in clip(1, 40)]
    source = tmp_path / "source/real/ann.mp4"
    write_whole(source, write_video(frames, 12))
    with source.open("ab") as file:
        file.truncate(12 << 20)
    prepare = ("prepare", tmp_path / "source", "--out", tmp_path / "out", "--frames", 2)
    result = cli(*prepare, *limit)
    assert result.exit_code == 2
    assert f"real/ann.mp4: {cause}" in result.stderr
    assert cli(*prepare).exit_code == 0  # within the limits all is well


def test_damage_is_found_by_verify_and_mended_by_repair(cli, two, tmp_path):
    out = tmp_path / "out"
    prepare = ("prepare", two, "--out", out, "--frames", 2, "--qualities", "raw")
    assert cli(*prepare).exit_code == 0
    assert cli("prepare", "--out", out, "--verify").exit_code == 0
    crop = next(out.glob("faces/raw/*ann*/*.png"))
    before = crop.read_bytes()
    crop.write_bytes(before[:-10])
    found = cli("prepare", "--out", out, "--verify", "--json")
    assert found.exit_code == 3
    (problem,) = json.loads(found.stdout)["problems"]
    assert problem == {"path": str(crop), "problem": "is not what was written"}
    assert cli(*prepare).exit_code == 0  # a plain rerun trusts what is finished
    assert crop.read_bytes() != before
    assert cli(*prepare, "--repair").exit_code == 0
    assert crop.read_bytes() == before
    assert cli("prepare", "--out", out, "--verify").exit_code == 0


def test_what_info_exports_prepare_imports(cli, two, tmp_path):
    cli("prepare", two, "--out", tmp_path / "a", "--frames", 2, "--qualities", "raw,c23")
    exported = cli("info", tmp_path / "a", "--export", "deepfakebench")
    (tmp_path / "a/bench.json").write_text(exported.stdout)
    imported = cli(
        "prepare", "--import", tmp_path / "a/bench.json", "--out", tmp_path / "b", "--json",
        "--frames", 2,
    )  # fmt: skip
    assert imported.exit_code == 0, imported.stderr
    assert json.loads(imported.stdout)["crops"] == {
        "raw/0": 2, "c23/0": 2, "raw/1": 2, "c23/1": 2,
    }  # fmt: skip
    one, two = (
        sorted(p.read_bytes() for p in (tmp_path / x).glob("faces/*/*/*.png")) for x in "ab"
    )
    assert one == two


def test_crops_can_be_stored_as_webp(cli, two, tmp_path):
    out = tmp_path / "out"
    done = cli(
        "prepare", two, "--out", out, "--frames", 2, "--qualities", "raw", "--format", "webp"
    )
    assert done.exit_code == 0
    assert len(list(out.glob("faces/raw/*/*.webp"))) == 4
    assert cli("info", out, "--sheet", tmp_path / "sheet.png").exit_code == 0
    assert cli("audit", out).exit_code == 0


def test_prepare_says_what_a_dataset_misses_and_where_to_get_it(cli, tmp_path):
    tree = tmp_path / "ff"
    write_clip(tree / "original_sequences/youtube/c23/videos/000.mp4", 1)
    write_clip(tree / "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4", 2)
    (tree / "splits").mkdir()
    for split, pairs in (("train", [["000", "003"]]), ("val", []), ("test", [])):
        (tree / "splits" / f"{split}.json").write_text(json.dumps(pairs))
    done = cli("prepare", tree, "--out", tmp_path / "out", "-n")
    assert done.exit_code == 0
    assert "missing: 1 of" in done.stdout
    assert "github.com/ondyari/FaceForensics" in done.stdout
    plan = json.loads(cli("prepare", tree, "--out", tmp_path / "out", "-n", "--json").stdout)
    assert sum(plan["missing"].values()) >= 1 and sum(plan["found"].values()) == 2


def test_a_run_whose_data_was_moved_goes_on_with_the_new_folder(cli, run, data, tmp_path):
    copy, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(run, copy)
    shutil.copytree(data, moved)
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(about | {"data": [str(tmp_path / "gone")]}))
    resume = ("train", "--resume", "--out", copy, "--device", "cpu")
    assert cli(*resume).exit_code == 2
    assert cli(*resume, "--data", moved).exit_code == 0
