"""The fault plan of `dfdetect scan`, run by hand: python tests/faults/scan.py [--only S1,S9]

Hostile files, names, mutations, crashes, files that change while they are read, signals and full
disks: each costs its own input, in words, and the rest of a batch goes on. tests/test_scan_safe.py
runs a short form of it on every change. Linux only; hostile files as in tests/test_badmedia.py.
"""

# ruff: noqa: E402, I001 (tests are importable only from here on)

import base64
import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from conftest import write_clip, write_scenery

from dfdetect.checkpoint import CheckpointInfo, save_checkpoint
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError
from dfdetect.faces import CropRecipe
from dfdetect.onnx_export import export_onnx
from dfdetect.results import Verdict
from dfdetect.scanning import Scanner, scan_many
from faults.plan import Check, carry_out, clean, refused
from faults.processes import Ended, Run, Skipped, in_this_process, mounted, open_files, strace

FRAMES = 4
LIMITS = ("--max-frames", 6000)


def write_model(path: Path, band: tuple[float, float] | None = (0.4, 0.6)) -> Path:
    """A tiny detector that has learnt nothing, with a band that lets it make calls."""
    torch.manual_seed(0)
    detector = Detector("test_resnet.r160_in1k", 64)
    n_pictures = {"n_real_pictures": 20, "n_fake_pictures": 20}
    info = CheckpointInfo(
        detector=detector.settings, preset={"name": "made"}, crop=CropRecipe(), domains=[],
        threshold=0.5, band=band, band_basis="made for a test", val={"video": n_pictures},
        data={}, step=0, versions={},
    )  # fmt: skip
    save_checkpoint(path, detector, info)
    return path


class Place:
    """A model, a few clips, and a folder for all that a check makes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.model = write_model(folder / "model.safetensors")
        self.clips = folder / "clips"
        for i in range(3):
            write_clip(self.clips / f"{i}.mp4", i, 6)
        write_scenery(self.clips / "scenery.mp4")
        self._numbers = iter(range(10**9))
        self._hostile: list[tuple[Path, list[dict]]] | None = None

    def new(self, kind: str = "at") -> Path:
        """A path that nothing lies at."""
        return self.folder / f"{kind}{next(self._numbers)}"

    def beside(self, kind: str) -> Path:
        """A folder that stays when a check is over."""
        folder = self.folder.with_name(f"{self.folder.name}-{kind}")
        folder.mkdir(exist_ok=True)
        return folder

    def arguments(self, *inputs: object) -> tuple:
        return ("scan", "--model", self.model, "--frames", FRAMES, "--device", "cpu", *inputs)

    def run(self, *inputs: object, **how: Any) -> Run:
        return Run(*self.arguments(*inputs), **how)

    def do(self, *inputs: object) -> Ended:
        """A scan in this process, which is quicker to start."""
        return in_this_process(*self.arguments(*inputs))

    def hostile(self) -> list[tuple[Path, list[dict]]]:
        """The sets of hostile files that there are: (folder, cases)."""
        import pytest
        from conftest import SHARED, beside
        from test_badmedia import folders_of

        if self._hostile is None:
            try:
                root = beside("DFDETECT_BADMEDIA", SHARED / "badmedia")
            except pytest.skip.Exception as absent:
                raise Skipped(str(absent)) from None
            self._hostile = folders_of(root, self.beside("hostile"))
        return self._hostile


def lines(text: str) -> list[dict]:
    """JSON lines, read strictly: no NaN, nothing twice in an object, ASCII."""

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict:
        assert len({key for key, _ in pairs}) == len(pairs), "a key stands twice"
        return dict(pairs)

    assert text.isascii(), "not ASCII"
    return [
        json.loads(line, parse_constant=no_constant, object_pairs_hook=once)
        for line in text.splitlines()
    ]


def lasting(records: Sequence[dict]) -> list[dict]:
    """Without the part that differs from run to run."""
    return [{key: value for key, value in r.items() if key != "run"} for r in records]


def class_of(result: dict | Verdict | DfdetectError) -> str:
    """As the hostile files' lists call it."""
    if isinstance(result, DfdetectError) or (isinstance(result, dict) and "error" in result):
        return "clean-error"
    call = result["call"] if isinstance(result, dict) else result.call
    return "ok-no-face" if call == "no-face" else "ok-with-faces"


def name_of(case: dict) -> str:
    return case["path"] or os.fsdecode(base64.b64decode(case["path_b64"]))


def wrong(cases: Sequence[dict], results: Sequence[dict]) -> list[tuple]:
    """Cases whose result is of another class than is expected, or no clear one."""
    found = []
    for case, result in zip(cases, results, strict=True):
        text = json.dumps(result)
        if case["id"] and "noperm" in name_of(case) and os.getuid() == 0:
            continue  # who may read everything
        if class_of(result) not in case["expect"] or "unexpected" in text or "root:" in text:
            found.append((case["id"], name_of(case), class_of(result), text[:300]))
    return found


# --- S1: hostile files -----------------------------------------------------------------------


def hostile_at_once(place: Place, number: int, rng: random.Random) -> None:
    """All of a set in one run, by 1, 2 and 4 workers; then in another order."""
    for folder, cases in place.hostile():
        paths = [folder / name_of(case) for case in cases]
        before = None
        for workers in (1, 2, 4):
            ended = place.run(*paths, "--json", "--workers", workers, *LIMITS).wait(1800)
            clean(ended, 3)
            records = lines(ended.out)
            assert not (found := wrong(cases, records)), found
            assert before is None or lasting(records) == before, f"{workers} workers differ"
            before = lasting(records)
        order = rng.sample(range(len(paths)), len(paths))
        ended = place.run(*(paths[i] for i in order), "--json", *LIMITS).wait(1800)
        shuffled = dict(zip(order, lasting(lines(ended.out)), strict=True))
        assert [shuffled[i] for i in range(len(paths))] == before, "another order, other results"
        clean(place.run(folder, "--json", *LIMITS).wait(1800), 3)


def hostile_one_by_one(place: Place, number: int, rng: random.Random) -> None:
    """Each for itself, within the time and memory that its list allows."""
    for folder, cases in place.hostile():
        found = []
        for case in cases:
            run = place.run(folder / name_of(case), "--json", *LIMITS)
            most = 0
            with _watched(run) as peaks:
                ended = run.wait(4 * case["max_seconds"] + 60)
            clean(ended, 0, 2)
            most = max(peaks, default=0)
            records = lines(ended.out)
            found += wrong([case], records)
            if most > case["max_rss_mb"]:
                found.append((case["id"], f"{most} MB in one process"))
        assert not found, found


@contextmanager
def _watched(run: Run) -> Iterator[list[int]]:
    """MB of resident memory of its processes, as it went."""
    peaks: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for pid in run.alive():
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                if found := re.search(r"VmHWM:\s+(\d+)", status):
                    peaks.append(int(found[1]) // 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


# --- S2: nothing else is opened --------------------------------------------------------------


def nothing_else_opened(place: Place, number: int, rng: random.Random) -> None:
    """No open of a file that an input names, and no connection, under strace."""
    for folder, cases in place.hostile():
        flagged = [c for c in cases if "must-not-open-other-files" in c["flags"]]
        case = flagged[number % len(flagged)]
        path, log = folder / name_of(case), place.new("log")
        ended = place.run(
            path, "--json", through=strace(log, "open,openat,openat2,connect,sendto")
        ).wait()
        clean(ended, 2)
        opened = opened_after(log.read_text(errors="replace"), path)
        assert not opened, opened


def opened_after(log: str, path: Path) -> list[str]:
    """Lines of an strace after `path` was opened that open media beside it or a secret, or reach
    out to a network. `path` may itself be a link to them: its user named it."""
    _, found, rest = log.partition(os.fsencode(path.name).decode("ascii", "replace"))
    assert found, f"{path} was not opened"
    beside = str(path.parent)
    return [
        line
        for line in rest.splitlines()[1:]
        if re.search(r"AF_INET", line)
        or (str(path) not in line and ("/etc/passwd" in line or beside in line))
    ]


def nobody_is_called(place: Place, number: int, rng: random.Random) -> None:
    """A listener at the port that the playlists name hears nothing."""
    heard: list[Any] = []
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            try:
                heard.append(server.accept())
            except TimeoutError:
                continue

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        for name in ("list.m3u8", "list.mp4"):
            bad = place.new("lists") / name
            bad.parent.mkdir()
            bad.write_text(f"#EXTM3U\n#EXTINF:1,\n{address}\n")
            clean(place.do(bad, "--json"), 2)
    finally:
        over.set()
        thread.join()
        server.close()
    assert not heard


# --- S3: names -------------------------------------------------------------------------------


NAMES = (
    "name with  spaces", "ünïcödé-人脸-😀", "new\nline", "-o leading dash", "tab\there",
    "<img src=x onerror=alert(1)>", "\"><script>alert(1)<.script>", "=1+1|cmd", "+1", "@SUM(A1)",
    "-2+3", "esc\x1b[31mred\x1b]0;owned\x07", "img%03d", "file:evil", "rtl\u202e4pm.exe",
    "carriage\rreturn", "a,b;c\"d'e", "back\\slash", "nul-like \\0", "\u2028separator", "$(id)`id`",
    "%s%n%x", "\x7f\x80\x9b31m", "..", "CON", "zero\u200bwidth", "L" * 240,
    os.fsdecode(b"bad\xff\xfe"),
)  # fmt: skip


def hostile_names(place: Place, number: int, rng: random.Random) -> None:
    """In JSON, a table and on the terminal: whole, well-formed and inert."""
    name = NAMES[number % len(NAMES)]
    folder = place.new("names")
    folder.mkdir()
    path = folder / f"{name}.mp4"
    shutil.copy(place.clips / "0.mp4", path)
    table, bad = place.new("table"), folder / f"{name}.avi"
    bad.write_bytes(b"no video")
    ended = place.do("--csv", table, "--json", "--", path, bad)
    clean(ended, 3)
    good, failed = lines(ended.out)
    told = str(path).encode("utf-8", "backslashreplace").decode()
    assert good["input"] == told and good["call"] and "error" in failed
    content = table.read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert len(rows) == 2 and inert(content.replace("\n", ""))
    assert all(not row["input"].startswith(tuple("=+-@\t\r")) for row in rows)
    plain = place.do("--", path, bad)
    clean(plain, 3)
    assert inert(plain.out.replace("\n", "")) and inert(plain.err.replace("\n", ""))
    assert plain.err.count("\n") == 1, plain.err


def inert(text: str) -> bool:
    """Nothing in it moves a cursor or turns the direction of writing."""
    return not re.search("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", text)


# --- S4: the same again ----------------------------------------------------------------------


def same_again(place: Place, number: int, rng: random.Random) -> None:
    paths = sorted(place.clips.iterdir())
    wanted = {r["input"]: r for r in lasting(lines(place.do(*paths, "--json").out))}
    order = rng.sample(paths, len(paths))
    ended = place.do(*order, "--json", "--workers", (1, 2, 4)[number % 3])
    assert lasting(lines(ended.out)) == [wanted[str(path)] for path in order]


# --- S5: very many ---------------------------------------------------------------------------


def very_many(place: Place, number: int, rng: random.Random) -> None:
    """Copies, each with bytes of its own, and one in a hundred bad: counts add up, and neither
    memory nor open files grow."""
    n = int(os.environ.get("DFDETECT_FAULTS_MANY", "10000"))
    folder, out = place.new("many"), place.new("out")
    folder.mkdir()
    content = (place.clips / "scenery.mp4").read_bytes()
    for i in range(n):
        own = i.to_bytes(4, "big")
        free = (12).to_bytes(4, "big") + b"free" + own  # an MP4 box that readers skip
        (folder / f"{i:05}.mp4").write_bytes(own if i % 100 == 0 else content + free)
    run = place.run(folder, "--out", out, "--frames", 1)
    memory, files = [], []
    while run.process.poll() is None:
        time.sleep(0.5)
        files.append(open_files(run.process.pid))
        try:
            status = Path(f"/proc/{run.process.pid}/status").read_text()
            memory.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024)
        except (OSError, TypeError):
            break
    clean(run.wait(), 3)
    records = lines(out.read_text())
    assert [class_of(r) for r in records].count("clean-error") == -(-n // 100)
    assert len(records) == n
    memory = memory[:-3]  # its summary, and its end
    half = len(memory) // 2
    if half > 20:  # of less, most is its beginning
        assert max(memory[half:]) <= max(memory[half // 2 : half]) + 50, memory
        assert max(files[half:]) <= max(files[half // 2 : half]) + 4, files


# --- S6: a child dies ------------------------------------------------------------------------


def child_dies(place: Place, number: int, rng: random.Random) -> None:
    """Killed, crashed, or stopped until its time is over: the input in hand is lost, no other."""
    slow = place.new("slow") / "slow.mp4"
    write_clip(slow, 5, 48)
    run = place.run(
        slow, *sorted(place.clips.iterdir()), "--json", "--workers", 1, "--frames", 48,
        "--max-seconds", 20,
    )  # fmt: skip
    children: list[int] = []
    until = time.monotonic() + 60
    while not children and time.monotonic() < until:
        seen = run.workers()
        time.sleep(0.1)  # the first one does nothing, and is gone
        children = [pid for pid in run.workers() if pid in seen]
    time.sleep(rng.uniform(0, 0.2))
    number = (signal.SIGSEGV, signal.SIGKILL, signal.SIGSTOP)[number % 3]
    for pid in children:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            raise Skipped("it had ended") from None
    ended = run.wait()
    clean(ended, 0, 3)
    failed = [r for r in lines(ended.out) if "error" in r]
    cause = "gave up after 20 s" if number == signal.SIGSTOP else f"crashed ({number.name})"
    assert len(failed) <= 1 and len(lines(ended.out)) == 5
    assert all(cause in r["error"]["message"] for r in failed), failed


# --- S7: the file changes --------------------------------------------------------------------


def file_changes(place: Place, number: int, rng: random.Random) -> None:
    """Written to, vanished or replaced while it is scanned: the hash is of what was decoded, or
    there is an error."""
    path = place.new("changing") / "clip.mp4"
    path.parent.mkdir()
    shutil.copy(place.clips / "0.mp4", path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    run = place.run(path, "--json")
    while not run.workers() and run.process.poll() is None:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.4))
    if number % 3 == 0:
        with path.open("r+b") as file:
            file.seek(-20, os.SEEK_END)
            file.write(rng.randbytes(8))
    elif number % 3 == 1:
        path.unlink()
    else:
        path.unlink()
        path.symlink_to("/etc/passwd")
    ended = run.wait()
    clean(ended, 0, 2)
    (record,) = lines(ended.out)
    digests = {digest, hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else {digest}
    assert "error" in record or record["sha256"] in digests
    assert "root:" not in ended.out


# --- S8: signals, closed pipes, full disks ---------------------------------------------------


def stopped_and_continued(place: Place, number: int, rng: random.Random) -> None:
    """Whole lines only, and the next run makes the file what an undisturbed one would be."""
    out, whole = place.new("out"), place.new("whole")
    clean(place.do(place.clips, "--out", whole), 0)
    run = place.run(place.clips, "--out", out, "--workers", 1)
    while not out.exists() and run.process.poll() is None:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.5))
    number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[number % 3]
    run.signal(number)
    ended = run.wait()
    if number != signal.SIGKILL:
        clean(ended, 0, 128 + number)
    text = out.read_text()
    assert not text or text.endswith("\n")
    before = lines(text)
    clean(place.do(place.clips, "--out", out), 0)
    after = lines(out.read_text())
    assert after[: len(before)] == before, "finished work was done again"
    key = lambda record: record["input"]  # noqa: E731
    assert sorted(lasting(after), key=key) == sorted(lasting(lines(whole.read_text())), key=key)


def disk_full(place: Place, number: int, rng: random.Random) -> None:
    """At any size of the disk: whole lines, one error; with more room it is continued."""
    whole = place.new("whole")
    clean(place.do(place.clips, "--out", whole), 0)
    pages = -(-whole.stat().st_size // 4096)
    room = 1 + number % max(1, pages - 1)
    with mounted(place.new("mount"), "-o", f"size={room * 4}k") as point:
        out = point / "results.jsonl"
        refused(place.do(place.clips, "--out", out), 4, str(out), "No space left on device")
        assert not (text := out.read_text()) or text.endswith("\n")
        subprocess.run(["mount", "-o", f"remount,size={pages * 16}k", str(point)], check=True)
        clean(place.do(place.clips, "--out", out), 0)
        assert lasting(lines(out.read_text())) == lasting(lines(whole.read_text()))


def nobody_listens(place: Place, number: int, rng: random.Random) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = place.run(place.clips, *(("--json",) if number % 2 else ()), stdout=writer).wait()
    os.close(writer)
    clean(ended, 128 + signal.SIGPIPE, 1)


# --- S9: mutations ---------------------------------------------------------------------------


SEEDS_PER_RUN = 50


def mutations(place: Place, number: int, rng: random.Random) -> None:
    """Small files with bytes changed, cut out, doubled or lost: a class for each, and no more."""
    folder = place.new("mutants")
    folder.mkdir()
    originals = small_files(place)
    paths = []
    for i in range(SEEDS_PER_RUN):
        original = originals[i % len(originals)]
        paths.append(folder / f"{i:03}{original.suffix}")
        paths[-1].write_bytes(mutated(original.read_bytes(), rng))
    results: list[Any] = []
    scanner = Scanner(place.model, 2, "cpu")
    scan_many(scanner, paths, lambda path, result: results.append((path, result)), workers=2)
    scanner.close()
    assert [path for path, _ in results] == paths
    surprises = [
        r.message for _, r in results if isinstance(r, DfdetectError) and "unexpected" in r.message
    ]
    assert not surprises, surprises
    json.dumps([r.as_json() for _, r in results if isinstance(r, Verdict)], allow_nan=False)


def small_files(place: Place) -> list[Path]:
    """A clip in several containers, and pictures."""
    import cv2
    from conftest import clip

    folder = place.beside("small")
    if not any(folder.iterdir()):
        shutil.copy(place.clips / "0.mp4", folder / "clip.mp4")
        image = clip(1, 1)[0][..., ::-1]
        for suffix in ("jpg", "png", "webp", "bmp"):
            small = cv2.resize(image, (96, 96)) if suffix == "bmp" else image
            (folder / f"picture.{suffix}").write_bytes(cv2.imencode(f".{suffix}", small)[1])
        for suffix in ("mkv", "mov", "ts"):
            remux(folder / "clip.mp4", folder / f"clip.{suffix}")
    return sorted(folder.iterdir())


def remux(source: Path, target: Path) -> None:
    """The same packets in another container, by its suffix."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to four changes, more of them in the head, where sizes and counts stand."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = int(len(changed) * rng.random() ** 3)
        length = rng.choice((1, 4, 16, 200))
        match rng.randrange(5):
            case 0:
                changed[at : at + length] = rng.randbytes(length)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3:
                changed[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
            case _:
                del changed[max(16, at) :]
    return bytes(changed)


# --- the plan --------------------------------------------------------------------------------


PLAN = [
    Check("S1", hostile_at_once, 1),
    Check("S1", hostile_one_by_one, 1),
    Check("S2", nothing_else_opened, 9),
    Check("S2", nobody_is_called, 1),
    Check("S3", hostile_names, len(NAMES)),
    Check("S4", same_again, 20, True),
    Check("S5", very_many, 1),
    Check("S6", child_dies, 12, True),
    Check("S7", file_changes, 9, True),
    Check("S8", stopped_and_continued, 12, True),
    Check("S8", disk_full, 4, True),
    Check("S8", nobody_listens, 2),
    Check("S9", mutations, 1000 // SEEDS_PER_RUN, True),
]


def main() -> int:
    places: list[Place] = []

    def place_of(check: Check, folder: Path) -> Place:
        if not places:
            places.append(Place(folder / "scan"))
            export_onnx(places[0].model)  # which starts sooner
        return places[0]

    return carry_out(__doc__.splitlines()[0], PLAN, place_of)


if __name__ == "__main__":
    sys.exit(main())
