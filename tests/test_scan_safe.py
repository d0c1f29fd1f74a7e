"""scan and strangers' files: every limit bites, every hostile file gives its class, nothing else is
opened, whatever a child does; and what the report keeps as evidence.

A short form of tests/faults/scan.py, which does all of it when it is run by hand.
"""

import hashlib
import json
import random
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import clip, write_clip, write_scenery

from dfdetect.errors import DfdetectError
from dfdetect.examining import examine
from dfdetect.results import Verdict
from dfdetect.scanning import Scanner, scan_many
from dfdetect.scoring import Bounds
from dfdetect.video import Limits, write_video

if sys.platform != "linux":
    pytest.skip("limits of child processes are those of Linux", allow_module_level=True)

from faults import scan as faults


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return faults.Place(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def scanner(place):
    return Scanner(place.model, 4, "cpu")


def result_of(scanner, path):
    (result,) = results_of(scanner, [path])
    return result


def results_of(scanner, paths, **how):
    results = []
    scan_many(scanner, paths, lambda path, result: results.append(result), **how)
    return results


# --- hostile files ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(place):
    """{case id: (path, case, result)} of all sets, scanned by two workers in one go."""
    bounds = Bounds(Limits(max_frames=2000))
    scanner, found = Scanner(place.model, 2, "cpu", bounds), {}
    try:
        sets = place.hostile()
    except faults.Skipped as absent:
        pytest.skip(str(absent))
    for folder, cases in sets:
        results = results_of(scanner, [folder / faults.name_of(c) for c in cases], workers=2)
        for case, result in zip(cases, results, strict=True):
            told = {"error": result.line} if isinstance(result, DfdetectError) else result.as_json()
            found[case["id"]] = (folder / faults.name_of(case), case, told)
    return found


GROUPS = ("control", "broken", "valid-odd", "codec", "mismatch", "image", "bomb", "name", "fs",
          "time", "playlist")  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_hostile_files_give_their_class(hostile, group):
    of_it = [(case, told) for _, case, told in hostile.values() if case["group"] == group]
    assert of_it
    assert faults.wrong([case for case, _ in of_it], [told for _, told in of_it]) == []


def test_an_error_names_its_file_and_shows_nothing_of_what_is_in_it(hostile):
    for path, _, told in hostile.values():
        if "error" in told:
            assert told["error"].startswith(f"{path}: ") and "root:x" not in told["error"]


def test_a_playlist_opens_no_sibling_and_reaches_no_network(place):
    try:
        faults.nothing_else_opened(place, 3, random.Random(0))
        faults.nobody_is_called(place, 0, random.Random(0))
    except faults.Skipped as reason:
        pytest.skip(str(reason))


def test_mutated_files_are_errors_or_verdicts_and_no_surprise(place, monkeypatch):
    monkeypatch.setattr(faults, "SEEDS_PER_RUN", 16)
    faults.mutations(place, 0, random.Random("suite"))


@pytest.mark.parametrize("number", range(0, len(faults.NAMES), 3))
def test_hostile_names_are_whole_and_inert_in_every_output(place, number):
    faults.hostile_names(place, number, random.Random(0))


# --- limits ----------------------------------------------------------------------------------


def bounded(place, frames=4, **limits):
    own = {k: limits.pop(k) for k in ("max_faces", "max_seconds", "max_memory_gb") if k in limits}
    return Scanner(place.model, frames, "cpu", Bounds(Limits(**limits), **own))


def test_a_larger_file_is_refused(place):
    path = place.clips / "0.mp4"
    size = path.stat().st_size
    assert isinstance(result_of(bounded(place, max_bytes=size), path), Verdict)
    assert "larger than" in result_of(bounded(place, max_bytes=size - 1), path).message


@pytest.mark.parametrize("suffix", ["mp4", "png"])
def test_a_larger_picture_is_refused(place, tmp_path, suffix):
    path = tmp_path / f"file.{suffix}"
    frames = clip(1, 2)  # 256 x 256
    cv2.imwrite(str(path), frames[0]) if suffix == "png" else path.write_bytes(
        write_video(frames, 12)
    )
    assert isinstance(result_of(bounded(place, max_pixels=65536), path), Verdict)
    assert "256x256 exceeds the limit" in result_of(bounded(place, max_pixels=65535), path).message


def test_of_a_longer_video_the_first_frames_are_used_and_it_says_so(place, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 1, 12)
    verdict = result_of(bounded(place, max_frames=5), path)
    assert verdict.media.limits_hit == ["max_frames"] and verdict.media.n_frames == 5
    assert max(index for index, _ in verdict.media.frames_used) < 5
    assert "only the first 5 frames were decoded, the limit" in verdict.warnings
    assert result_of(bounded(place, max_frames=12), path).media.limits_hit == []


def test_of_more_faces_the_largest_are_judged_and_it_says_so(place, tmp_path):
    face = clip(1, 1)[0]
    small = cv2.resize(face, (160, 160), interpolation=cv2.INTER_AREA)
    beside = np.full((256, 160, 3), 90, np.uint8)
    beside[:160] = small
    cv2.imwrite(str(tmp_path / "two.png"), np.hstack([face, beside])[..., ::-1])
    both = result_of(bounded(place), tmp_path / "two.png")
    one = result_of(bounded(place, max_faces=1), tmp_path / "two.png")
    assert (len(both.tracks), len(one.tracks)) == (2, 1)
    assert one.tracks[0].frames[0].box == both.tracks[0].frames[0].box
    assert one.media.limits_hit == ["max_faces"] and both.media.limits_hit == []
    assert any("more than 1 faces in a frame" in w for w in one.warnings)


def test_too_long_and_too_much_memory_cost_the_file(place, tmp_path):
    path = tmp_path / "large.png"  # 40 megapixels: 120 MB, and twice that while it is converted
    cv2.imwrite(str(path), np.zeros((6300, 6300, 3), np.uint8))
    hungry, plain = results_of(
        bounded(place, max_memory_gb=0.4), [path, place.clips / "scenery.mp4"]
    )
    assert "needs more than 0.4 GB" in hungry.message
    assert hungry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert isinstance(plain, Verdict)
    late = result_of(bounded(place, max_seconds=0.001), place.clips / "0.mp4")
    assert "gave up after 0.001 s" in late.message


def test_the_kernel_ends_what_works_for_too_long():
    code = "from dfdetect.workers import limit_cpu; limit_cpu(0)\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGXCPU


def test_a_codec_that_is_not_on_the_list_is_named(place, tmp_path):
    import av

    path = tmp_path / "rare.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("asv1", rate=12)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for image in clip(1, 2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    message = f"{path}: the codec asv1 is not supported"
    assert result_of(bounded(place), path).message == message


# --- evidence --------------------------------------------------------------------------------


def test_the_report_tells_what_was_examined_and_with_what(place, scanner, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 1, 12)
    told = scanner(path).as_json()
    assert json.loads(json.dumps(told, allow_nan=False))["schema_version"] == 3
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    media = told["media"]
    assert (media["n_bytes"], media["container"], media["codec"]) == (
        path.stat().st_size, "mov", "h264",
    )  # fmt: skip
    assert (media["width"], media["height"], media["rotation"]) == (256, 256, 0)
    assert (media["n_frames"], media["n_announced"], media["n_faces"]) == (12, 12, 4)
    assert media["frames_used"] == [(1, 0.083), (4, 0.333), (7, 0.583), (10, 0.833)]
    assert media["bits_per_pixel"] == pytest.approx(
        8 * path.stat().st_size / (12 * 256 * 256), abs=1e-6
    )
    model = hashlib.sha256(place.model.read_bytes()).hexdigest()
    assert told["model"]["sha256"] == model and told["settings"]["frames"] == 4
    assert {"av", "libavcodec", "pillow", "opencv", "numpy"} <= set(told["tool"]["libraries"])
    assert set(told["run"]) == {"started", "finished", "host", "command"}


def test_the_hash_of_settings_changes_with_whatever_decides_a_verdict(place, scanner):
    same = Scanner(place.model, 4, "cpu", Bounds(max_seconds=9, max_memory_gb=1), workers=3)
    assert same.settings_sha256 == scanner.settings_sha256
    others = (
        Scanner(place.model, 5, "cpu"),
        bounded(place, max_faces=3),
        bounded(place, max_frames=3),
        Scanner(faults.write_model(place.new("model"), (0.1, 0.2)), 4, "cpu"),
    )
    assert len({s.settings_sha256 for s in (scanner, *others)}) == 5


def test_how_a_file_was_turned_upright_is_told(scanner, tmp_path):
    from PIL import Image

    picture = Image.fromarray(np.rot90(clip(1, 1)[0][:, :200]))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    media = scanner(tmp_path / "turned.jpg").media
    assert (media.rotation, media.mirrored, media.width, media.height) == (90, False, 200, 256)


def test_a_file_that_changes_while_it_is_read_gives_no_verdict(scanner, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", 1)
    hashes = iter(("first", "second"))
    monkeypatch.setattr("dfdetect.video.Media.sha256", lambda media: next(hashes))
    found = examine(scanner.scorer.look(path))
    assert (found.cause, found.sha256) == ("changed while it was read", None)


def test_weak_evidence_is_said_in_words(scanner, tmp_path):
    path = tmp_path / "weak.mp4"
    path.write_bytes(write_video(clip(3, 1) * 24, 12, crf=45))
    assert any(w.startswith("heavily compressed: 0.0") for w in scanner(path).warnings)
    few = scanner(write_clip(tmp_path / "few.mp4", 3, 3)).warnings
    assert "only 3 frames could be looked at" in few and not any("heavily" in w for w in few)
    path = write_scenery(tmp_path / "scenery.mp4")
    verdict = scanner(path)
    assert verdict.reasons == ["no face was found in 4 frames looked at"]


def test_each_person_has_a_call_and_the_most_suspicious_one_s_is_the_verdict(place, tmp_path):
    twins = [np.hstack(pair) for pair in zip(clip(7), clip(8, forgery="self-blend"), strict=True)]
    path = tmp_path / "twins.mp4"
    path.write_bytes(write_video(twins, 12))
    first = Scanner(place.model, 4, "cpu")(path)
    low, high = sorted(track.score for track in first.tracks)
    assert low < high
    between = (low + high) / 2
    model = faults.write_model(place.new("model"), (between - 1e-9, between + 1e-9))
    verdict = Scanner(model, 4, "cpu")(path)
    assert {t.score: t.call for t in verdict.tracks} == {low: "likely-real", high: "likely-fake"}
    assert (verdict.call, verdict.score, verdict.reasons) == ("likely-fake", high, [])
    unsure = Scanner(faults.write_model(place.new("model"), (low, 1.0)), 4, "cpu")(path)
    assert unsure.call == "inconclusive" and "the score lies from" in unsure.reasons[0]


def test_what_finds_faces_reports_to_nobody():
    """Builds of ONNX Runtime send what they are used for to their maker, unless told not to."""
    code = "import dfdetect.sessions, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "1"
