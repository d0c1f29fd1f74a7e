"""scan: verdicts, JSON lines, exit codes, batches that go on."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import clip, write_clip, write_scenery
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dfdetect
from dfdetect.metrics import Band
from dfdetect.results import decide
from dfdetect.scanning import Scanner
from dfdetect.video import write_video


@pytest.fixture(scope="module")
def scanner(run):
    return Scanner(run, frames=6, device="cpu")


@pytest.fixture
def deciding(run, tmp_path):
    """`make(low, high)` -> a checkpoint like `run` with that band."""

    def make(low, high, pictures=20):
        file = run / "detector.safetensors"
        with safe_open(file, framework="pt") as handle:
            info = json.loads(handle.metadata()["dfdetect"])
        info |= {"band": [low, high], "band_basis": "made for a test"}
        info["val"]["video"] |= {"n_real_pictures": pictures, "n_fake_pictures": pictures}
        path = tmp_path / f"{low}-{high}-{pictures}.safetensors"
        save_file(load_file(file), path, metadata={"dfdetect": json.dumps(info)})
        return path

    return make


def test_a_verdict_follows_one_face_through_the_sampled_frames(scanner, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 1)
    verdict = scanner(path)
    (track,) = verdict.tracks
    assert [f.index for f in track.frames] == [1, 3, 5, 7, 9, 11]
    assert [f.time_s for f in track.frames] == pytest.approx(
        [i / 12 for i in (1, 3, 5, 7, 9, 11)], abs=1e-3
    )
    assert (
        verdict.score
        == track.score
        == pytest.approx(np.mean([f.score for f in track.frames]), abs=1e-5)
    )
    assert verdict.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(0 <= f.score <= 1 for f in track.frames)


def test_the_same_file_gives_the_same_verdict(scanner, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 2)
    first, second = (scanner(path).as_json() for _ in range(2))
    assert first | {"run": None} == second | {"run": None}


def test_a_model_with_thin_evidence_makes_no_calls(scanner, tmp_path):
    verdict = scanner(write_clip(tmp_path / "clip.mp4", 3))
    assert verdict.call == "inconclusive"
    assert any("validation videos are too few" in w for w in verdict.warnings)


def test_the_band_of_the_checkpoint_decides(deciding, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 4)
    calls = [
        Scanner(deciding(*band), 6, "cpu")(path).call
        for band in ((0, 1e-9), (0.99999, 1), (1e-9, 0.99999))
    ]
    assert calls == ["likely-fake", "likely-real", "inconclusive"]
    assert decide(0.5, Band(0.5, 0.5)) == "inconclusive"


def test_no_face_is_a_verdict_of_its_own_without_a_score(scanner, tmp_path):
    verdict = scanner(write_scenery(tmp_path / "scenery.mp4"))
    assert (verdict.call, verdict.score, verdict.tracks) == ("no-face", None, [])


def test_a_photo_is_judged_too(deciding, tmp_path):
    cv2.imwrite(str(tmp_path / "photo.png"), clip(5, 1)[0][..., ::-1])
    verdict = Scanner(deciding(0, 1e-9), 6, "cpu")(tmp_path / "photo.png")
    assert verdict.call == "likely-fake"
    assert len(verdict.tracks[0].frames) == 1


def test_a_photo_is_not_called_by_a_model_that_was_validated_on_videos(deciding, tmp_path):
    cv2.imwrite(str(tmp_path / "photo.png"), clip(5, 1)[0][..., ::-1])
    verdict = Scanner(deciding(0, 1e-9, pictures=8), 6, "cpu")(tmp_path / "photo.png")
    assert verdict.call == "inconclusive"
    assert any("validated on videos" in w for w in verdict.warnings)


def test_a_video_with_a_face_in_one_frame_is_not_called(deciding, tmp_path):
    frames = clip(6, 6)
    blank = [np.full_like(frames[0], 90)] * 5
    (tmp_path / "flash.mp4").write_bytes(write_video([frames[0], *blank], 12))
    verdict = Scanner(deciding(0, 1e-9), 6, "cpu")(tmp_path / "flash.mp4")
    assert verdict.call == "inconclusive"
    assert "inconclusive: a face in only 1 of 6 frames" in verdict.warnings


def test_the_most_suspicious_of_several_people_decides(scanner, tmp_path):
    twins = [np.hstack(pair) for pair in zip(clip(7), clip(8, forgery="self-blend"), strict=True)]
    (tmp_path / "twins.mp4").write_bytes(write_video(twins, 12))
    verdict = scanner(tmp_path / "twins.mp4")
    assert len(verdict.tracks) == 2
    assert verdict.score == max(t.score for t in verdict.tracks)
    assert any(w.startswith("2 people") for w in verdict.warnings)


def test_the_crop_recipe_comes_from_the_checkpoint(scanner, run, tmp_path):
    """Another margin in the metadata shows the network another crop, and another score."""
    file = run / "detector.safetensors"
    with safe_open(file, framework="pt") as handle:
        info = json.loads(handle.metadata()["dfdetect"])
    info["crop"]["margin"] = 2.0
    save_file(load_file(file), tmp_path / "wide.st", metadata={"dfdetect": json.dumps(info)})
    path = write_clip(tmp_path / "clip.mp4", 9)
    assert Scanner(tmp_path / "wide.st", 6, "cpu")(path).score != scanner(path).score


def test_python_users_call_scan(run, tmp_path):
    verdict = dfdetect.scan(write_clip(tmp_path / "clip.mp4", 1), model=run, frames=3, device="cpu")
    assert isinstance(verdict, dfdetect.Verdict)


# --- the command -----------------------------------------------------------------------------


def test_json_gives_one_object_per_input_and_one_bad_file_does_not_stop_the_rest(
    cli, run, tmp_path
):
    good = write_clip(tmp_path / "good.mp4", 1)
    (tmp_path / "bad.mp4").write_text("no video")
    scenery = write_scenery(tmp_path / "scenery.mp4")
    result = cli(
        "scan", good, tmp_path / "bad.mp4", scenery, "--model", run, "--json", "--frames", 3
    )
    assert result.exit_code == 3
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert list(first) == [
        "schema_version", "input", "sha256", "call", "reasons", "experimental", "score",
        "score_meaning", "threshold", "tracks", "model", "warnings", "media", "tool", "settings",
        "settings_sha256", "run",
    ]  # fmt: skip
    assert set(first["tracks"][0]) == {"track", "score", "frames", "call", "reasons"}
    assert set(first["tracks"][0]["frames"][0]) == {"index", "time_s", "box", "score"}
    assert set(second["error"]) == {"message", "hint"}
    assert "bad.mp4" in second["error"]["message"]
    assert third["call"] == "no-face" and third["score"] is None


def test_the_only_input_unreadable_exits_2_with_one_line(cli, run, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    result = cli("scan", tmp_path / "bad.mp4", "--model", run)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/bad.mp4: not a video or picture")


def test_fail_on_turns_a_match_into_exit_1_and_nothing_else(cli, deciding, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 1)
    fake, real = deciding(0, 1e-9), deciding(0.99999, 1)
    codes = [
        cli("scan", path, "--model", model, "--fail-on", on, "--frames", 3).exit_code
        for on in ("likely-fake", "inconclusive")
        for model in (fake, real)
    ]
    assert codes == [1, 0, 1, 0]
    assert cli("scan", path, "--model", fake, "--frames", 3).exit_code == 0


def test_folders_lists_and_stdin_name_inputs(cli, run, tmp_path):
    write_clip(tmp_path / "many/a.mp4", 1)
    write_clip(tmp_path / "many/deep/b.mp4", 2)
    (tmp_path / "many/notes.txt").write_text("not media, not opened")
    (tmp_path / "list").write_text(f"{tmp_path}/many/a.mp4\n\n")
    arguments = ("--model", run, "--json", "--frames", 2)
    for inputs, n in (((tmp_path / "many",), 2), (("--files-from", tmp_path / "list"), 1)):
        result = cli("scan", *inputs, *arguments)
        assert (result.exit_code, len(result.stdout.splitlines())) == (0, n)
    command = [sys.executable, "-m", "dfdetect", "scan", "--files-from", "-", *map(str, arguments)]
    (tmp_path / "empty").mkdir()
    result = cli("scan", tmp_path / "empty", tmp_path / "many/a.mp4", *arguments)
    assert result.exit_code == 3
    first, second = map(json.loads, result.stdout.splitlines())
    assert "no video or picture in this folder" in first["error"]["message"] and second["call"]
    piped = subprocess.run(
        command, input=f"{tmp_path}/many/a.mp4\n", capture_output=True, text=True
    )
    assert json.loads(piped.stdout)["input"].endswith("a.mp4")


def test_a_reader_that_closes_the_pipe_is_no_match(run, tmp_path):
    """`scan ... | head -1` must not look like --fail-on."""
    for i in range(3):
        write_clip(tmp_path / f"{i}.mp4", i, n_frames=2)
    command = f"{sys.executable} -m dfdetect scan {tmp_path} --model {run} --json --frames 1"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -c 1 > {tmp_path}/byte; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() in ("0", "141") and "Traceback" not in done.stderr


def test_names_cannot_write_to_the_terminal(cli, run, tmp_path):
    path = tmp_path / "esc\x1b[31m\nname.mp4"
    path.write_text("no video")
    result = cli("scan", path, "--model", run)
    assert "\x1b" not in result.stderr and len(result.stderr.splitlines()) == 1
    shutil.copy(write_clip(tmp_path / "c.mp4", 1), tmp_path / "esc\x1b[31m.mp4")
    result = cli("scan", tmp_path / "esc\x1b[31m.mp4", "--model", run, "--frames", 2)
    assert "\x1b" not in result.stdout and "\\x1b[31m" in result.stdout


def test_a_terminal_of_few_characters_sees_escapes(run, tmp_path):
    path = write_clip(tmp_path / "人脸.mp4", 1, n_frames=2)
    command = [sys.executable, "-m", "dfdetect", "scan", path, "--model", run, "--frames", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0 and rb"\u4eba\u8138.mp4" in done.stdout


def test_names_that_are_no_utf_8_stay_valid_json(cli, run, tmp_path):
    import os

    name = os.fsdecode(b"bad\xff.mp4")
    shutil.copy(write_clip(tmp_path / "c.mp4", 1), tmp_path / name)
    result = cli("scan", tmp_path / name, "--model", run, "--json", "--frames", 2)
    assert json.loads(result.stdout)["input"].endswith("bad\\udcff.mp4")
