"""scan of many inputs: workers and order change nothing, a batch is continued, tables are inert;
and scan from Python: in threads, in a script without a guard, behind a web server."""

import copy
import csv
import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT, write_clip

from dfdetect.checkpoint import load_checkpoint
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.records import COLUMNS, Records, as_csv, row
from dfdetect.results import Verdict, score_images
from dfdetect.scanning import Scanner, scan_many
from dfdetect.workers import Children

if sys.platform != "linux":
    pytest.skip("processes are found in /proc", allow_module_level=True)

from faults import scan as faults
from faults.processes import wait_for


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = faults.Place(tmp_path_factory.mktemp("scan"))
    (place.clips / "bad.mp4").write_text("no video")
    return place


@pytest.fixture(scope="module")
def whole(place):
    """What one undisturbed run makes of the clips: records by input."""
    ended = place.do(place.clips, "--json", "--workers", 1)
    assert ended.code == 3
    return {r["input"]: r for r in faults.lasting(faults.lines(ended.out))}


# --- workers and order -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_and_order_change_nothing_but_the_order_of_lines(place, whole, workers):
    paths = sorted(place.clips.iterdir(), reverse=True)
    ended = place.do(*paths, "--json", "--workers", workers)
    assert faults.lasting(faults.lines(ended.out)) == [whole[str(p)] for p in paths]


def test_faces_of_several_files_are_scored_together_where_it_pays_and_alike(
    place, whole, monkeypatch
):
    """As on a GPU, whose batches are filled up: "cpu:0" is the CPU by another name."""
    sizes = []
    counted = Detector.forward
    monkeypatch.setattr(
        Detector, "forward", lambda self, x: (sizes.append(len(x)), counted(self, x))[1]
    )
    model = load_checkpoint(place.model, "cpu")
    scanner = Scanner(dataclasses.replace(model, device="cpu:0"), faults.FRAMES)
    found = []
    scan_many(scanner, sorted(place.clips.iterdir()), lambda path, result: found.append(result), 2)
    assert sizes == [32]  # three clips of four frames with one face, in one batch
    told = [r.as_json() for r in found if isinstance(r, Verdict)]
    expected = [r for r in whole.values() if "error" not in r]
    assert len(found) == len(whole) and len(told) == len(expected)
    for verdict, alone in zip(told, expected, strict=True):
        assert verdict["score"] == pytest.approx(alone["score"], abs=2e-6)


def test_the_company_in_a_filled_batch_changes_no_bit(place):
    detector = load_checkpoint(place.model, "cpu").detector
    side = detector.image_size
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (40, side, side, 3), np.uint8))
    together = score_images(detector, images, "cpu:0")
    for i in (0, 31, 39):
        assert score_images(detector, [images[i]], "cpu:0") == together[i]
    assert score_images(detector, [], "cpu:0").shape == (0,)


def test_a_cluster_gives_the_same(place, whole, monkeypatch):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        monkeypatch.chdir(place.clips)  # where its workers are not
        ended = place.do("0.mp4", "bad.mp4", "--json", "--cluster", cluster.scheduler_address)
    told = faults.lasting(faults.lines(ended.out))
    named = copy.deepcopy([whole[str(place.clips / name)] for name in ("0.mp4", "bad.mp4")])
    named[1]["error"]["message"] = told[1]["error"]["message"]
    assert told == [n | {"input": t["input"]} for n, t in zip(named, told, strict=True)]
    assert told[1]["error"]["message"].startswith("bad.mp4: not a video")


# --- a batch that is continued ---------------------------------------------------------------


def test_a_batch_is_continued_where_it_was_torn(place, whole):
    out, first = place.new("out"), sorted(place.clips.iterdir())[:2]
    assert place.do(*first, "--out", out).code == 0
    with out.open("a") as file:
        file.write('{"input": "torn')
    held = faults.lines(out.read_text().rpartition("\n")[0])
    ended = place.do(place.clips, "--out", out)
    assert ended.code == 3 and ended.out.strip().startswith(f"{out}: 1 error, ")
    records = faults.lines(out.read_text())
    assert records[:2] == held
    assert {r["input"]: r for r in faults.lasting(records)} == whole
    again = place.do(place.clips, "--out", out, "--json")
    assert again.code == 3 and faults.lines(out.read_text()) == records
    assert [r["input"] for r in faults.lines(again.out)] == sorted(whole)


def test_what_failed_is_tried_again_only_when_asked(place):
    folder, out = place.new("folder"), place.new("out")
    shutil.copytree(place.clips, folder)
    assert place.do(folder, "--out", out).code == 3
    before = out.read_text()
    assert place.do(folder, "--out", out).code == 3 and out.read_text() == before
    assert place.do(folder, "--out", out, "--retry-failed").code == 3
    assert [r["input"] for r in faults.lines(out.read_text()) if "error" in r] == [
        str(folder / "bad.mp4")
    ]
    shutil.copy(place.clips / "0.mp4", folder / "bad.mp4")  # other bytes are another input
    assert place.do(folder, "--out", out).code == 0


def test_a_file_of_another_name_is_not_scanned_again_and_other_settings_are(place, monkeypatch):
    folder, out = place.new("folder"), place.new("out")
    folder.mkdir()
    shutil.copy(place.clips / "0.mp4", folder / "a.mp4")
    place.do(folder, "--out", out)
    shutil.copy(place.clips / "0.mp4", folder / "b.mp4")
    with monkeypatch.context() as context:
        context.setattr("dfdetect.scanning.run_all", nothing_to_do)
        assert place.do(folder, "--out", out).code == 0
    first, second = faults.lines(out.read_text())
    assert second == first | {"input": str(folder / "b.mp4")}
    place.do(folder / "a.mp4", "--out", out, "--max-faces", 3)
    assert len(faults.lines(out.read_text())) == 3


def nothing_to_do(function, inputs, **how):
    assert list(inputs) == []
    return iter(())


def test_a_match_among_held_results_still_fails_the_run(place):
    out = place.new("out")
    model = faults.write_model(place.new("model"), (0.0, 1e-9))  # all are fakes to it
    codes = [
        place.do(
            place.clips / "0.mp4", "--out", out, "--model", model, "--fail-on", "likely-fake"
        ).code
        for _ in range(2)
    ]
    assert codes == [1, 1]


def test_two_runs_do_not_write_one_file_and_no_other_file_is_touched(place):
    out, other = place.new("out"), place.new("notes")
    with Records(out, "settings"), pytest.raises(DfdetectError, match="another run") as raised:
        Records(out, "settings")
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
    other.write_text("my notes\n")
    ended = place.do(place.clips, "--out", other)
    assert ended.code == 2 and "line 1 is not a result of scan" in ended.err
    assert other.read_text() == "my notes\n"


def test_a_line_is_written_whole_or_not_at_all(place, monkeypatch):
    out = place.new("out")
    record = {"input": "a", "sha256": "1", "settings_sha256": "s", "call": "no-face"}
    with Records(out, "s") as records:
        records.add(record)

        def disk_is_full(file, content):
            file.write(content[:5])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("dfdetect.records._write", disk_is_full)
        with pytest.raises(DfdetectError, match="No space left") as raised:
            records.add(record | {"input": "b"})
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
    assert faults.lines(out.read_text()) == [record]


# --- tables ----------------------------------------------------------------------------------


def test_the_table_has_a_row_per_input(place, whole):
    table = place.new("table")
    assert place.do(place.clips, "--csv", table, "--quiet").code == 3
    rows = {r["input"]: r for r in csv.DictReader(io.StringIO(table.read_text()))}
    assert rows.keys() == whole.keys()
    for name, record in whole.items():
        assert rows[name]["call"] == record.get("call", "error")
        assert rows[name]["sha256"] == record["sha256"]
        assert rows[name]["score"] == str(record.get("score") or "")
    assert "not a video" in rows[str(place.clips / "bad.mp4")]["error"]


def test_no_cell_is_a_formula_and_each_row_is_one_line():
    record = {
        "input": "=cmd|' /C calc'!A0\n\x1b[31m", "sha256": None,
        "error": {"message": "@SUM(1)", "hint": "x"},
    }  # fmt: skip
    heading, line = as_csv([row(record)]).splitlines()
    assert heading == ",".join(COLUMNS)
    (cells,) = csv.reader([line])
    assert cells[0] == "'=cmd|' /C calc'!A0\\n\\x1b[31m" and cells[-1] == "'@SUM(1); x"


# --- Python ----------------------------------------------------------------------------------


def test_one_scanner_serves_several_threads(place, whole):
    scanner = Scanner(place.model, faults.FRAMES, "cpu", workers=2)
    paths = [p for p in sorted(place.clips.iterdir()) if p.name != "bad.mp4"] * 2
    with ThreadPoolExecutor(4) as threads:
        verdicts = list(threads.map(scanner, paths))
    for path, verdict in zip(paths, verdicts, strict=True):
        told = json.loads(json.dumps(verdict.as_json()))
        assert (told["score"], told["tracks"], told["media"]) == tuple(
            whole[str(path)][key] for key in ("score", "tracks", "media")
        )
    scanner.close()


def test_children_serve_threads_side_by_side_and_end_with_their_owner():
    children = Children(wait_for, 2, 60, 1)
    with ThreadPoolExecutor(2) as threads:
        pids = set(threads.map(children, (0.5, 0.5)))
    assert len(pids) == 2
    assert children(0) in pids
    children.close()
    until = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert children(0) not in pids
    del children
    assert threading.active_count() < 20


def test_a_script_without_a_guard_scans_once_and_prints_nothing_of_its_own(place, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from dfdetect import scan\n"
        f"verdict = scan({str(place.clips / '0.mp4')!r}, model={str(place.model)!r}, frames=2)\n"
        "print(verdict.call)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in ("likely-fake\n", "likely-real\n", "inconclusive\n")


def test_the_web_server_of_the_readme_gives_verdicts_and_errors(place, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    source = re.search(r"```python\n(# app\.py.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len(source.splitlines()) <= 24
    (tmp_path / "app.py").write_text(source)
    monkeypatch.setenv("MODEL", str(place.model))
    spec = importlib.util.spec_from_file_location("app", tmp_path / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = TestClient(module.app)
    kind = {"content-type": "application/octet-stream"}
    good = client.post("/scan", content=(place.clips / "1.mp4").read_bytes(), headers=kind)
    assert good.status_code == 200 and good.json()["call"]
    bad = client.post("/scan", content=b"no video", headers=kind)
    assert bad.status_code == 422 and "not a video or picture" in bad.json()["detail"]
    module.scanner.close()


def test_a_clip_of_one_second_is_scanned_by_the_command(place, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 3)
    ended = place.run(path, "--json").wait()
    faults.clean(ended, 0)
    assert faults.lines(ended.out)[0]["input"] == str(path) and ended.err == ""
