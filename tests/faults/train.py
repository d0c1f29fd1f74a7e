"""The fault plan of `dfdetect train`, run by hand: python tests/faults/train.py [--only T2,T5]

Tiny detectors are trained by processes that are killed, starved, stopped, started twice or given
damaged states and data; what must come out is the run that nobody disturbed, bit for bit, or one
clear error. tests/test_faults.py runs a few of these on every change, this script all of them
(about half an hour on an idle machine). Linux only. Checks that need strace, root or a second file
system say so where they cannot run.
"""

# ruff: noqa: E402, I001 (tests are importable only from here on)

import csv
import hashlib
import io
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import clip
from safetensors.torch import load_file, save_file

import dfdetect.train as verb
from dfdetect.data import training_batches
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.files import write_whole
from dfdetect.manifest import read_table, write_part
from dfdetect.presets import Preset, load_preset
from dfdetect.runs import load_state, save_state
from dfdetect.video import write_video
from faults.plan import Check, carry_out, clean, refused
from faults.processes import (
    Ended,
    Run,
    Skipped,
    difference,
    in_this_process,
    mounted,
    strace,
    tree,
)


class Kind(NamedTuple):
    """A preset, what is set in it, and the other options of its runs."""

    preset: str
    overrides: tuple[str, ...]
    options: tuple[str, ...] = ()


N_STEPS = 36
SHORT = ("image_size=32", "epochs=6", "steps_per_epoch=6", "ema=0.9", "seed=0")
KINDS = {
    "qad": Kind("qad-tiny", SHORT),
    "did": Kind("did-tiny", SHORT),  # each of its steps draws random numbers
    "often": Kind("qad-tiny", SHORT, ("--save-minutes", "0")),  # a state after every step
}
RESUME = ("train", "--resume", "--device", "cpu")
TINTS = {"real": (1, 1, 1), "fake/warm": (1, 0.8, 0.6), "fake/cold": (0.6, 0.8, 1)}
"""Fakes so easy that the figures on val rise from one validation to the next."""


class Place:
    """Prepared data, and what runs that nobody disturbed end with."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder, self.data, self.kept = folder, folder / "data", folder / "kept"
        self.kept.mkdir(parents=True)
        for kind, tint in TINTS.items():
            for i in range(6):
                frames = [(f * np.array(tint)).astype(np.uint8) for f in clip(i, 8)]
                write_whole(folder / "clips" / kind / f"{i}.mp4", write_video(frames, 12))
        prepared = in_this_process(
            *("prepare", folder / "clips", "--out", self.data, "--frames", "4"),
            *("--size", "64", "--workers", "1", "--quiet"),
        )
        assert prepared.code == 0, prepared.err
        self._numbers = iter(range(10**9))
        self._whole: dict[str, dict[str, str]] = {}

    def new(self, kind: str = "run") -> Path:
        """A path that nothing lies at."""
        return self.folder / f"{kind}{next(self._numbers)}"

    def begin(self, out: Path, *more: object, kind: str = "qad", **how: Any) -> Run:
        """A run in a process of its own."""
        return _run(*self.arguments(out, *more, kind=kind), **how)

    def do(self, out: Path, *more: object, kind: str = "qad") -> Ended:
        """A run in this process, which is quicker to start."""
        return in_this_process(*self.arguments(out, *more, kind=kind))

    def arguments(
        self, out: Path, *more: object, kind: str = "qad", data: Path | None = None
    ) -> list[object]:
        preset, overrides, options = KINDS[kind]
        sets = [part for override in overrides for part in ("--set", override)]
        where = ("--data", data or self.data, "--out", out, "--device", "cpu")
        return ["train", "--preset", preset, *sets, *where, *options, *more]

    def preset(self, kind: str = "qad") -> Preset:
        return load_preset(KINDS[kind].preset, KINDS[kind].overrides)

    def train(self, out: Path, kind: str = "qad", **how: Any) -> None:
        """The verb itself, which can be told what to do at each event."""
        verb.train(self.preset(kind), [self.data], out, device="cpu", **how)

    def whole(self, kind: str = "qad") -> dict[str, str]:
        """What a run that nobody disturbs ends with."""
        if kind not in self._whole:
            out = self.kept / f"whole-{kind}"
            clean(self.do(out, kind=kind), 0)
            self._whole[kind] = result(out, self.preset(kind))
        return self._whole[kind]

    def stopped(self, step: int = 27, kind: str = "qad") -> Path:
        """A run that was interrupted after `step`; its states are of that and the one validated
        before it."""
        out = self.new()
        with suppress_interruption():
            self.train(out, kind, on_event=at_step(step, press(signal.SIGINT)))
        return out

    def copy_of_data(self) -> Path:
        copy = self.new("data")
        shutil.copytree(self.data, copy)
        return copy


def result(out: Path, preset: Preset) -> dict[str, str]:
    """Hash of every file of a run but for what the clock says, of states each part of the newest,
    by name: the one before it may be of a moment when the run was stopped."""
    hashes = tree(out, without=["timing.jsonl"])
    found = {name: value for name, value in hashes.items() if not name.startswith("resume/")}
    found["states"] = str(len(hashes) - len(found))
    state = load_state(out, preset, lambda warning: None)
    return found | {f"state {key}": _digest(part) for key, part in (state or {}).items()}


def _digest(value: Any) -> str:
    hashed = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            hashed.update(f"{part.dtype}{tuple(part.shape)}".encode())
            hashed.update(part.contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key, inner in part.items():
                hashed.update(f"{key!r}:".encode())
                add(inner)
        elif isinstance(part, list | tuple):
            hashed.update(f"[{len(part)}".encode())
            for inner in part:
                add(inner)
        else:
            hashed.update(repr(part).encode())

    add(value)
    return hashed.hexdigest()


def ends_the_same(place: Place, out: Path, kind: str = "qad") -> None:
    now, whole = result(out, place.preset(kind)), place.whole(kind)
    assert now == whole, f"not as undisturbed: {difference(now, whole)}"


def resumed(place: Place, out: Path, kind: str = "qad", here: bool = True) -> Ended:
    """Going on, or beginning if it had not begun, ends as if nothing had happened."""
    arguments = [*RESUME, "--out", out, *KINDS[kind].options]
    if not (out / "run.json").exists():
        arguments = place.arguments(out, kind=kind)
    ended = in_this_process(*arguments) if here else _run(*arguments).wait()
    clean(ended, 0)
    ends_the_same(place, out, kind)
    return ended


def warnings_of(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if line.startswith("warning: ")]


def _run(*arguments: object, **how: Any) -> Run:
    return Run(*arguments, **{"environ": _threads(1)} | how)


def _threads(n: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(n), "MKL_NUM_THREADS": str(n)}


# --- moments ---------------------------------------------------------------------------------


def until(run: Run, condition: Callable[[], bool]) -> None:
    """Wait for `condition`, or for the run's end."""
    while run.process.poll() is None and not condition():
        time.sleep(0.004)


def until_line(run: Run, out: Path, n: int) -> None:
    """Wait until the run has the folder and has written `n` lines of its log: how quickly it goes
    depends on the machine, and lines are spread evenly over steps and validations."""

    def n_lines() -> int:
        with suppress(OSError):
            return (out / "timing.jsonl").read_bytes().count(b"\n")
        return 0

    def has_it() -> bool:
        with suppress(OSError):
            return (out / ".lock").read_text() == f"{run.process.pid}\n"
        return False

    before = n_lines()
    until(run, has_it)
    until(run, lambda: n_lines() >= before + n)


def press(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def at_step(
    step: int, what: Callable[[], None], kind: str = "train"
) -> Callable[[dict[str, Any]], None]:
    """An on_event that does something when `step` is done."""
    return lambda event: what() if (event["kind"], event.get("step")) == (kind, step) else None


@contextmanager
def suppress_interruption() -> Iterator[None]:
    try:
        yield
    except DfdetectError as error:
        assert error.exit_code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED), error
    else:
        raise AssertionError("the run was not interrupted")


# --- T1, T2: kill -9 -------------------------------------------------------------------------


def killed_and_resumed(place: Place, number: int, rng: random.Random) -> None:
    """Every fifth while Python still loads."""
    kind, out = tuple(KINDS)[number % 3], place.new()
    run = place.begin(out, kind=kind)
    if number % 5:
        until_line(run, out, rng.randrange(N_STEPS + 6))
        time.sleep(rng.uniform(0, 0.1))
    else:
        time.sleep(rng.uniform(0, 4))
    assert not run.kill().left, "processes outlived the kill"
    resumed(place, out, kind, here=False)


def killed_again_and_again(place: Place, number: int, rng: random.Random) -> None:
    kind, out = ("qad", "did")[number % 2], place.new()
    for _ in range(4):
        more = ["--resume"] if (out / "run.json").exists() else []
        run = place.begin(out, *more, kind=kind)
        until_line(run, out, rng.randrange(4, 14))
        time.sleep(rng.uniform(0, 0.1))
        run.kill()
    resumed(place, out, kind)


def killed_while_resuming(place: Place, number: int, rng: random.Random) -> None:
    """From the moment that the folder is its own, until the first step after it is done."""
    out = place.stopped(rng.randrange(7, N_STEPS))
    for _ in range(2):
        run = place.begin(out, "--resume")
        until_line(run, out, 0)
        time.sleep(rng.uniform(0, 0.5))
        run.kill()
    resumed(place, out)


# --- T3: negative controls -------------------------------------------------------------------


PARTS = ("optimizer", "scheduler", "rng", "position", "average")


def without_a_part(place: Place, number: int, rng: random.Random) -> None:
    """A part of the state that is left out shows in the end: what all the others compare has the
    power to notice it."""
    part = PARTS[number]
    kind = "did" if part == "rng" else "qad"
    preset, out = place.preset(kind), place.stopped(27, kind)
    state = load_state(out, preset, print)
    # Not the checkpoint: the best may be older than the state that was tampered with.
    changed = ("state method", "metrics.jsonl")
    from_the_start = mock.patch.object(verb, "training_batches", _from_the_start)
    if part == "optimizer":
        state["optimizer"]["state"] = {}
    elif part == "scheduler":
        state["scheduler"]["last_epoch"] = 0
    elif part == "rng":
        state["rng"] = torch.Generator().manual_seed(99).get_state()
        changed = ("state method", "state rng", "metrics.jsonl")
    elif part == "average":  # begun anew from the weights of the moment
        weights = {n: t for n, t in state["method"].items() if n.startswith("detector.")}
        averaged = {"module." + n.removeprefix("detector."): t for n, t in weights.items()}
        assert averaged.keys() | {"n_averaged"} == state["average"].keys()
        state["average"] = {**averaged, "n_averaged": torch.tensor(0)}
        changed = ("state average",)  # a few frames of val may not show it
    save_state(out, state)
    with from_the_start if part == "position" else mock.patch.object(verb, "MEASURE_EVERY", 10):
        place.train(out, kind, resume=True)
    now, whole = result(out, preset), place.whole(kind)
    same = [name for name in changed if now[name] == whole[name]]
    assert not same, f"without its {part}, a resumed run ends with the same {same}"
    if part == "average":
        assert now["state method"] == whole["state method"], "it is not the weights that differ"


def _from_the_start(*arguments: Any) -> Any:
    """`training_batches` that have forgotten at which step the run is."""
    *before, _, rank, n_ranks, workers = arguments
    return training_batches(*before, 0, rank, n_ranks, workers)


# --- T4: a fault at the n-th system call -----------------------------------------------------

RENAMES, UNLINKS = "rename,renameat,renameat2", "unlink,unlinkat"


def killed_at_a_rename(place: Place, number: int, rng: random.Random) -> None:
    killed_at(place, RENAMES, number + 1)


def killed_at_an_unlink(place: Place, number: int, rng: random.Random) -> None:
    killed_at(place, UNLINKS, number + 1)


def killed_at(place: Place, calls: str, n: int, kind: str = "qad") -> None:
    """The run dies at its n-th call, before it is made; a state that was whole still is."""
    out, log = place.new(), place.new("log")
    through = strace(log, calls, f"signal=KILL:when={n}")
    ended = place.begin(out, kind=kind, through=through).wait()
    if ended.code == 0:
        raise Skipped("it makes fewer of these calls")
    assert ended.code == 128 + signal.SIGKILL, f"exit {ended.code}: {ended.err}"
    if any((out / "resume").glob("state-*")):
        warned: list[str] = []
        assert load_state(out, place.preset(kind), warned.append), "no state can be loaded"
        assert not warned, warned
    resumed(place, out, kind)


def failed_at_an_fsync(place: Place, number: int, rng: random.Random) -> None:
    failed_at(place, "fsync", ("EIO", "ENOSPC")[number % 2], number + 1)


def failed_at_a_line(place: Place, number: int, rng: random.Random) -> None:
    """A line of the metrics log that cannot be written."""
    n = 1 + (N_STEPS + 5) * number // 10
    failed_at(place, "write", ("ENOSPC", "EIO")[number % 2], n, "metrics.jsonl")


CAUSES = {"EIO": "Input/output error", "ENOSPC": "No space left on device"}


def failed_at(place: Place, call: str, error: str, n: int, name: str = "") -> None:
    out, log = place.new(), place.new("log")
    through = strace(log, call, f"error={error}:when={n}", out / name if name else None)
    ended = place.begin(out, through=through).wait()
    if "INJECTED" not in log.read_text(errors="replace"):
        raise Skipped("it makes fewer of these calls")
    refused(ended, 4, f"{out}/{name}", f"cannot be written ({CAUSES[error]})")
    assert not list(out.rglob(".tmp-*")), "half a file is left"
    resumed(place, out)


# --- T5: damaged states ----------------------------------------------------------------------


class Damage(NamedTuple):
    """What becomes of a state's bytes, and a word of what is said of it."""

    change: Callable[[bytes, random.Random], bytes]
    cause: str


def _sealed(content: bytes, payload: bytes) -> bytes:
    """`payload` as a state whose hash fits."""
    head = content[: content.index(b"\n") + 1]
    return head + hashlib.sha256(payload).digest() + payload


def _with(change: Callable[[dict], None]) -> Callable[[bytes, random.Random], bytes]:
    def rewritten(content: bytes, rng: random.Random) -> bytes:
        state = torch.load(io.BytesIO(content[content.index(b"\n") + 33 :]), weights_only=True)
        change(state)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return _sealed(content, buffer.getvalue())

    return rewritten


def _cut(tenths: int) -> Callable[[bytes, random.Random], bytes]:
    return lambda content, rng: content[: 10 + len(content) * tenths // 10]


def _flipped(twentieths: int) -> Callable[[bytes, random.Random], bytes]:
    """One bit, in one of twenty equal parts of the file."""

    def change(content: bytes, rng: random.Random) -> bytes:
        part = len(content) // 20
        changed = bytearray(content)
        changed[twentieths * part + rng.randrange(part)] ^= 1 << rng.randrange(8)
        return bytes(changed)

    return change


def _zip(content: bytes, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("state.pt", content)
    return buffer.getvalue()


class _Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


CANARY = Path(tempfile.gettempdir()) / f"canary-{os.getpid()}"


def _pickle(content: bytes, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    torch.save({"format": 1, "method": _Canary(CANARY)}, buffer)
    return _sealed(content, rng.choice((buffer.getvalue(), pickle.dumps(_Canary(CANARY)))))


def _other_model(state: dict) -> None:
    state["preset"]["backbone"]["name"] = "test_resnet.r160_in1k"


def _lacks_a_part(state: dict) -> None:
    del state["optimizer"]


def _not_finite(part: str) -> Callable[[dict], None]:
    def change(state: dict) -> None:
        name = next(k for k, t in state[part].items() if t.is_floating_point())
        state[part][name].flatten()[0] = math.nan

    return change


DAMAGES = {
    **{f"cut at {10 * n} %": Damage(_cut(n), "") for n in range(10)},
    **{f"a bit flipped in part {n} of 20": Damage(_flipped(n), "") for n in range(20)},
    "empty": Damage(lambda content, rng: b"", "not a training state"),
    "a text": Damage(lambda content, rng: b"state\n" * 1000, "not a training state"),
    "a ZIP": Damage(_zip, "not a training state"),
    "another model": Damage(_with(_other_model), "belongs to another run"),
    "a part missing": Damage(_with(_lacks_a_part), "lacks optimizer"),
    "a pickle that runs code": Damage(_pickle, "not a training state"),
    "200 MB": Damage(lambda content, rng: content[:24] + bytes(200 << 20), "its hash"),
    "NaN": Damage(_with(_not_finite("method")), "not finite"),
}


def damaged_state(place: Place, number: int, rng: random.Random) -> None:
    """The newest: named, with its cause, and passed over for the one before. Both: refused."""
    damage = list(DAMAGES.values())[number]
    _stopped_once(place, out := place.new())
    _, newest = sorted((out / "resume").iterdir())
    newest.write_bytes(damage.change(newest.read_bytes(), rng))
    ended = resumed(place, out)
    (warning,) = warnings_of(ended)
    assert str(newest) in warning and damage.cause in warning, warning
    assert "the state before it" in warning
    _stopped_once(place, out := place.new())
    for state in (out / "resume").iterdir():
        state.write_bytes(damage.change(state.read_bytes(), rng))
    before = tree(out)
    ended = in_this_process(*RESUME, "--out", out)
    refused(ended, 4, str(out / "resume" / newest.name), damage.cause)
    assert tree(out) == before, "a run that cannot go on was changed"
    assert not CANARY.exists(), "a damaged state ran code"


def _stopped_once(place: Place, out: Path) -> None:
    """A copy of a run that was stopped at step 27."""
    once = place.kept / "stopped"
    if not once.exists():
        place.stopped().rename(once)
    shutil.copytree(once, out)


# --- T6: something else than before ----------------------------------------------------------


def other_than_before(place: Place, number: int, rng: random.Random) -> None:
    """Refused with both values, and nothing of the run changes."""
    _stopped_once(place, out := place.new())
    copy, words, code = place.data, (), 2
    more: tuple[object, ...] = ()
    if number == 0:
        more = ("--preset", "bce-tiny")
        words = ("name = qad-tiny", "now asked for bce-tiny")
    elif number == 1:
        more = ("--set", "backbone.name=test_resnet.r160_in1k")
        words = ("test_efficientnet.r160_in1k", "now asked for test_resnet.r160_in1k")
    elif number == 2:
        more = ("--set", "image_size=64")
        words = ("image_size = 32", "now asked for 64")
    elif number == 3:
        copy = place.copy_of_data()
        rename = {"cold": "yellow", "warm": "red", "real": "real"}
        edit(copy, lambda row: row | {"manipulation": rename[row["manipulation"]]})
        words = ("classes", "'cold', 'warm'", "'red', 'yellow'")
    elif number in (4, 5):
        other = (0, 2)[number - 4]
        for state in (out / "resume").iterdir():
            change = _with(lambda content: content.update(format=other))
            state.write_bytes(change(state.read_bytes(), rng))
        words, code = (f"format {other}", "reads 1"), 4
    elif number == 6:
        copy = place.copy_of_data()
        next((copy / "manifest").iterdir()).unlink()
        words = ("the run began on data", "these folders hold")
    before = tree(out)
    if number == 7:
        ended = _run(*RESUME, "--out", out, environ=_threads(2)).wait()
        clean(ended, 0)
        (warning,) = warnings_of(ended)
        assert "1 threads before, now with 2: not bit-identical" in warning
        return
    arguments = place.arguments(out, "--resume", *more, data=copy)
    refused(in_this_process(*arguments), code, *words)
    assert tree(out) == before, "a refused run was changed"


def edit(data: Path, change: Callable[[dict], dict]) -> None:
    """Every row of the manifest, changed; its parts become one."""
    rows = read_table(data).to_pylist()
    for part in (data / "manifest").iterdir():
        part.unlink()
    write_part(data, "all", [change(row) for row in rows])


# --- T7: faults of the data ------------------------------------------------------------------


class DataFault(NamedTuple):
    """What is done to prepared data, what is said of it, and by whom: train before its first step;
    where train does not look, the audit; nobody where it is no fault."""

    change: Callable[[Path], None]
    words: tuple[str, ...]
    code: int = 2
    by: str = "train"


def rows_of(data: Path, split: str) -> list[dict]:
    return [row for row in read_table(data).to_pylist() if row["split"] == split]


def _crops(data: Path, split: str, n: int) -> list[Path]:
    return [data / row["path"] for row in rows_of(data, split)[:n]]


def _each_crop(split: str, n: int, what: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda data: [what(crop) for crop in _crops(data, split, n)] and None


def _part(data: Path, split: str = "train", label: int = 0) -> Path:
    """Of the first video with this split and label."""
    for part in sorted((data / "manifest").iterdir()):
        row = pq.read_table(part).to_pylist()[0]
        if (row["split"], row["label"]) == (split, label):
            return part
    raise AssertionError("no such video")


def _rewrite(part: Path, change: Callable[[list[dict]], list[dict]]) -> None:
    table = pq.read_table(part)
    rows = change(table.to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part, compression="zstd")


def _rows(change: Callable[[list[dict]], list[dict]], **which: Any) -> Callable[[Path], None]:
    return lambda data: _rewrite(_part(data, **which), change)


def _first_row(**values: Any) -> Callable[[Path], None]:
    return _rows(lambda rows: [rows[0] | values, *rows[1:]])


def _second_part(prefix: str = "", **values: Any) -> Callable[[Path], None]:
    """A video's part once more under another name, with other values; its samples may be others."""

    def change(data: Path) -> None:
        part = _part(data)
        copy = Path(shutil.copy(part, part.with_name("copy.parquet")))
        _rewrite(
            copy,
            lambda rows: [row | {"sample_id": prefix + row["sample_id"]} | values for row in rows],
        )

    return change


def _as_text(data: Path) -> None:
    part = _part(data)
    table = pq.read_table(part)
    with part.open("w", encoding="utf-8-sig", newline="") as file:
        rows = csv.DictWriter(file, table.column_names, lineterminator="\r\n")
        rows.writeheader()
        rows.writerows(table.to_pylist())


def _without_column(data: Path) -> None:
    part = _part(data)
    pq.write_table(pq.read_table(part).drop_columns(["track_id"]), part)


def _link_out(data: Path) -> None:
    (crop,) = _crops(data, "train", 1)
    outside = data.parent / f"outside-{data.name}.png"
    crop.rename(outside)
    crop.symlink_to(outside)


def _another_picture(crop: Path) -> None:
    cv2.imwrite(str(crop), np.full((64, 64, 3), 99, np.uint8))


def _several(data: Path) -> None:
    one, two, *_, last = _crops(data, "train", 25)
    one.unlink()
    two.write_bytes(b"")
    last.unlink()


DATA_FAULTS = {
    "a crop missing in train": DataFault(
        _each_crop("train", 1, Path.unlink), ("1 of 180 face crops", "(missing)")
    ),
    "a crop missing in val": DataFault(
        _each_crop("val", 1, Path.unlink), ("1 of 180 face crops", "(missing)")
    ),
    "25 crops missing": DataFault(
        _each_crop("train", 25, Path.unlink), ("25 of 180 face crops", "and 5 more")
    ),
    "a row twice": DataFault(_rows(lambda rows: [*rows, rows[0]]), ("twice",)),
    "a video twice": DataFault(_second_part(), ("twice",)),
    "a video in two splits": DataFault(_second_part(split="test"), ("twice",)),
    "a file under two names in two splits": DataFault(
        _second_part("copy", split="val", video_id="copy", identities=["copy"]),
        ("audit says FAIL",),
    ),
    "an empty part": DataFault(
        lambda data: _part(data).write_bytes(b"") and None, ("damaged manifest part",)
    ),
    "a part without rows": DataFault(_rows(lambda rows: []), ("holds no rows",)),
    "one class": DataFault(
        lambda data: edit(data, lambda row: row | {"label": 0, "manipulation": "real"}),
        ("the train split has only real crops",),
    ),
    "label 7": DataFault(_first_row(label=7), ("label 7",)),
    "no label": DataFault(_first_row(label=None), ("label None",)),
    "a text, CRLF and BOM": DataFault(_as_text, ("damaged manifest part",)),
    "a column missing": DataFault(_without_column, ("no column track_id",)),
    "another picture under a crop's name": DataFault(
        _each_crop("train", 1, _another_picture), ("damaged",), 1, "audit"
    ),
    "another hash": DataFault(_first_row(crop_sha256="0" * 64), ("damaged",), 1, "audit"),
    "a path that leads out": DataFault(_first_row(path="../clips/real/0.mp4"), ("outside",)),
    "an absolute path": DataFault(_first_row(path="/etc/passwd"), ("outside",)),
    "a link that leads out": DataFault(_link_out, (), 0, "nobody"),
    "a person in train and test": DataFault(
        lambda data: edit(
            data,
            lambda row: row | ({"identities": ["ann"]} if row["split"] != "val" else {}),
        ),
        ("more than one split", "ann (test+train)"),
    ),
    "three crops, two of them missing and one empty": DataFault(
        _several, ("3 of 180 face crops", "(missing)", "(empty)")
    ),
    "a web page as a crop": DataFault(
        _each_crop("train", 1, lambda crop: crop.write_text("<html></html>")),
        ("damaged",),
        1,
        "audit",
    ),
}


def data_fault(place: Place, number: int, rng: random.Random) -> None:
    """Refused before a run's folder is begun."""
    fault = list(DATA_FAULTS.values())[number]
    data, out = place.copy_of_data(), place.new()
    fault.change(data)
    if fault.by == "audit":
        ended = in_this_process("audit", data, "--strict")
        clean(ended, fault.code)
        assert all(word in ended.out for word in fault.words), ended.out
        return
    ended = in_this_process(*place.arguments(out, data=data))
    if fault.by == "nobody":
        clean(ended, 0)
        metrics = hashlib.sha256((out / "metrics.jsonl").read_bytes()).hexdigest()
        assert metrics == place.whole()["metrics.jsonl"]
        return
    refused(ended, fault.code, str(data), *fault.words)
    assert not (out / "run.json").exists(), "a run was begun"


# --- T8: not a number ------------------------------------------------------------------------


def diverging(place: Place, number: int, rng: random.Random) -> None:
    """Exit 5 that names the step and the samples; what lies on the disk stays finite."""
    out, preset = place.new(), place.preset()
    if number == 0:
        ended = place.do(out, "--set", "optimizer.lr=1e9", "--set", "schedule.name=constant")
        refused(ended, 5, "training diverged at step", "samples")
    elif number == 1:
        import timm

        bad = place.new("weights").with_suffix(".safetensors")
        network = timm.create_model(preset.backbone.name, num_classes=0).state_dict()
        first = next(name for name, tensor in network.items() if tensor.is_floating_point())
        network[first].flatten()[0] = math.nan
        save_file(network, bad)
        refused(place.do(out, "--weights", bad), 5, "training diverged at step 1", "samples")
    elif number == 2:
        with _at_forward(20, lambda loss: loss._replace(total=loss.total * math.inf)):
            _diverges(place, out, "at step 20: the loss is inf on samples")
    elif number == 3:  # the loss is finite, its gradient is not
        with _at_forward(20, lambda loss: loss._replace(total=_Steep.apply(loss.total))):
            _diverges(place, out, "diverged at step 2")
    elif number == 4:
        refused(place.do(out, "--set", "precision=fp16"), 2, "fp16 needs a GPU")
        steep = ("--set", "optimizer.lr=1e9", "--set", "schedule.name=constant")
        half = place.do(out, "--set", "precision=bf16", *steep)
        refused(half, 5, "training diverged at step", "samples")
    for state in (out / "resume").glob("*"):
        content = load_state(out, preset, lambda warning: None)
        assert content is None or all(t.isfinite().all() for t in content["method"].values()), state
    if (out / "detector.safetensors").exists():
        tensors = load_file(out / "detector.safetensors").values()
        assert all(tensor.isfinite().all() for tensor in tensors), "the checkpoint is not finite"


class _Steep(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


def _diverges(place: Place, out: Path, words: str) -> None:
    try:
        place.train(out)
    except DfdetectError as error:
        assert error.exit_code == ExitCode.DIVERGED and words in error.message, error.message
        assert "the last good checkpoint is" in error.message
    else:
        raise AssertionError("it did not stop")


@contextmanager
def _at_forward(step: int, change: Callable[[Any], Any]) -> Iterator[None]:
    """What the method's loss of one step is changed to."""
    from dfdetect.methods.qad import Qad

    plain_at, plain = Qad.at, Qad.forward
    now = 0

    def at(self: Any, done: int, *more: int) -> None:
        nonlocal now
        now = done + 1
        plain_at(self, done, *more)

    def forward(self: Any, batch: Any) -> Any:
        loss = plain(self, batch)
        return change(loss) if now == step else loss

    with mock.patch.object(Qad, "at", at), mock.patch.object(Qad, "forward", forward):
        yield


# --- T9: memory ------------------------------------------------------------------------------


def a_million_samples(place: Place, number: int, rng: random.Random) -> None:
    """A batch larger than the data is the data."""
    out = place.new()
    sizes = ("--set", "batch_size=1000000", "--set", "steps_per_epoch=1", "--set", "epochs=1")
    ended = place.do(out, *sizes)
    clean(ended, 0)
    assert "only 48 training samples: batches of 48" in ended.err


def little_memory(place: Place, number: int, rng: random.Random) -> None:
    """The address space is closed when the run has come to some step: as on a full machine."""
    out = place.new()
    large = ("--set", "image_size=224", "--set", "batch_size=48")
    run = place.begin(out, *large)
    until_line(run, out, (0, 1, 3)[number])
    used = (
        int(Path(f"/proc/{run.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    )
    resource.prlimit(run.process.pid, resource.RLIMIT_AS, (used, used))
    refused(run.wait(), 4, "out of memory", "batch_size")


def loader_killed(place: Place, number: int, rng: random.Random) -> None:
    """As by a system that is out of memory."""
    out = place.new()
    run = place.begin(out, "--workers", "2")
    until_line(run, out, (3, 12)[number])
    loaders = run.workers()
    assert len(loaders) in (2, 4), loaders
    with suppress(ProcessLookupError):
        os.kill(rng.choice(loaders), signal.SIGKILL)
    refused(run.wait(), 4, "a loader process was killed by signal 9", "--workers")
    resumed(place, out)


# --- T10: a place that takes nothing ---------------------------------------------------------


def disk_full(place: Place, number: int, rng: random.Random) -> None:
    """At a sixth to all but nothing of what is needed."""
    whole = place.kept / "whole-qad"
    place.whole()
    pages = sum(-(-p.stat().st_size // 4096) for p in whole.rglob("*") if p.is_file())
    pages += pages // 3  # a third state, before the first is removed
    size = max(1, int(pages * (0.03, 0.1, 0.3, 0.5, 0.7, 0.9)[number]))
    with mounted(place.new("mount"), "-o", f"size={4 * size}k") as point:
        out = point / "run"
        ended = place.do(out)
        refused(ended, 4, str(out), "No space left on device")
        saved = [int(w) for w in _words(ended.err, "state saved at step")]
        assert all((out / "resume" / f"state-{n:08d}.pt").exists() for n in saved[-1:])
        grow = ["mount", "-o", f"remount,size={pages * 16}k", str(point)]
        subprocess.run(grow, check=True)
        resumed(place, out)


def _words(text: str, before: str) -> list[str]:
    """The word after each `before`."""
    return [part.split()[0] for part in text.split(before)[1:]]


def output_refused(place: Place, number: int, rng: random.Random) -> None:
    """A read-only file system, a file instead of a folder, a name that is too long."""
    if number == 0:
        with mounted(place.new("mount"), "-o", "ro") as out:
            refused(place.do(out), 4, str(out), "cannot be written")
        return
    out = place.new()
    if number == 1:
        out.write_text("a file")
    else:
        out = out / ("n" * 256)
    refused(place.do(out), 4, str(out), "cannot be written")


def folder_removed(place: Place, number: int, rng: random.Random) -> None:
    """In mid-run, moved away or deleted: it says so, and saves nothing anywhere else."""
    out, elsewhere = place.new(), place.new()
    run = place.begin(out)
    until_line(run, out, rng.randrange(8, 20))
    run.signal(signal.SIGSTOP)
    out.rename(elsewhere)
    if number:
        shutil.rmtree(elsewhere)
    run.signal(signal.SIGCONT)
    refused(run.wait(), 4, str(out), "the run's folder was removed or emptied")
    assert not out.exists(), f"left behind: {list(out.rglob('*'))}"
    if not number:
        elsewhere.rename(out)
        resumed(place, out)


# --- T11: signals ----------------------------------------------------------------------------


def stopped_by_a_signal(place: Place, number: int, rng: random.Random) -> None:
    """4 Ctrl-C, 4 SIGTERM, 2 of either twice; to the group, as a terminal does, or to the process,
    as a batch system does; with and without a loader process."""
    which = (signal.SIGINT, signal.SIGTERM)[number in (4, 5, 6, 7, 9)]
    gap = rng.uniform(0, 0.05) if number >= 8 else None
    line, workers = rng.randrange(N_STEPS), ("--workers", number % 3 % 2)
    stop_by(place, which, *workers, line=line, whole_group=bool(number % 2), gap=gap)


def stop_by(
    place: Place,
    which: int,
    *more: object,
    line: int,
    whole_group: bool = True,
    gap: float | None = None,
) -> None:
    """After `line` lines of its log; once more after `gap` seconds."""
    out = place.new()
    run = place.begin(out, *more)
    until_line(run, out, line)
    sent = time.monotonic()
    run.signal(which, whole_group)
    if gap is not None:
        time.sleep(gap)
        run.signal(which, whole_group)
    ended = run.wait(60)
    took = time.monotonic() - sent
    if gap is not None:  # the second need not wait for the state
        assert ended.code in (130, 143), f"exit {ended.code}"
        refused(ended, ended.code)
    elif ended.code:
        refused(ended, 128 + which, "the state is saved", "dfdetect train --resume")
        step = int(_words(ended.err, "stopped at step ")[0])
        assert (out / "resume" / f"state-{step:08d}.pt").exists()
    assert took < 10, f"took {took:.1f} s to stop"
    resumed(place, out)


def stopped_while_validating(place: Place, number: int, rng: random.Random) -> None:
    """What was scored is forgotten, and the validation is made up for by who resumes."""
    out, n_seen = place.new(), 0
    wanted = rng.randrange(1, 31)  # of six validations with five batches each

    def on_event(event: dict[str, Any]) -> None:
        nonlocal n_seen
        n_seen += event["kind"] == "validating"
        if event["kind"] == "validating" and n_seen == wanted:
            press((signal.SIGINT, signal.SIGTERM)[number])()

    with suppress_interruption():
        place.train(out, on_event=on_event)
    state = load_state(out, place.preset(), print)
    assert state["step"] == -(-wanted // 5) * 6 and state["validated"] == state["step"] - 6
    resumed(place, out)


# --- T12: two trainers, one folder -----------------------------------------------------------


def two_trainers(place: Place, number: int, rng: random.Random) -> None:
    """At the same time; or the second in the midst of the first, with and without --resume."""
    out = place.new()
    first = place.begin(out)
    if number < 2:
        time.sleep(rng.uniform(0, 0.5))
        second = place.begin(out)
        ended = [first.wait(), second.wait()]
        winner, loser = (0, 1) if ended[0].code == 0 else (1, 0)
        clean(ended[winner], 0)
        refused(ended[loser], ended[loser].code, str(out))
        assert ended[loser].code in (2, 4)  # 2: the winner had ended, and the run is there
    else:
        until_line(first, out, rng.randrange(20))
        first.signal(signal.SIGSTOP)
        more = ("--resume",) if number == 3 else ()
        words = (str(out), f"another run (process {first.process.pid}) is writing here")
        before = tree(out)
        refused(place.do(out, *more), 4, *words)
        assert tree(out) == before, "the refused trainer wrote there"
        first.signal(signal.SIGCONT)
        clean(first.wait(), 0)
    ends_the_same(place, out)


def stale_lock(place: Place, number: int, rng: random.Random) -> None:
    """The lock of a killed run, or one with anything in it, stops nobody."""
    out = place.new()
    if number:
        _stopped_once(place, out)
        lock = (str(os.getpid()).encode(), bytes(range(256)))[number - 1]
        (out / ".lock").write_bytes(lock)
    else:
        run = place.begin(out)
        until_line(run, out, 8)
        run.kill()
        assert (out / ".lock").read_text() == f"{run.process.pid}\n"
    resumed(place, out)


# --- T13: the states that are kept -----------------------------------------------------------


def killed_while_pruning(place: Place, number: int, rng: random.Random) -> None:
    killed_at(place, UNLINKS, rng.randrange(1, N_STEPS - 2), "often")


def always_a_state(place: Place, number: int, rng: random.Random) -> None:
    """Looked at in any moment after the first is saved, one to three states lie there, and one can
    be loaded."""
    out, preset = place.new(), place.preset()
    run = place.begin(out, kind="often")
    until(run, lambda: any((out / "resume").glob("state-*")))
    looks = 0
    while run.process.poll() is None:
        run.signal(signal.SIGSTOP)
        states = sorted((out / "resume").glob("state-*"))
        assert 1 <= len(states) <= 3, states
        warned: list[str] = []
        assert load_state(out, preset, warned.append) and not warned, warned
        run.signal(signal.SIGCONT)
        looks += 1
        time.sleep(rng.uniform(0, 0.1))
    assert looks > 3, "it was hardly looked at"
    clean(run.wait(), 0)
    ends_the_same(place, out, "often")


# --- T14: the same again ---------------------------------------------------------------------


def straight(place: Place, number: int, rng: random.Random) -> None:
    """Two runs each with one and two threads, none and two loaders; loaders change nothing."""
    threads, workers = 1 + number // 2 % 2, number // 4 * 2
    out = place.new()
    clean(place.begin(out, "--workers", workers, environ=_threads(threads)).wait(), 0)
    now, name = result(out, place.preset()), f"{threads} threads"
    whole = place.whole() if threads == 1 else vars(place).setdefault(name, now)
    assert now == whole, difference(now, whole)


def resumed_at(place: Place, number: int, rng: random.Random) -> None:
    kind = ("qad", "did")[number % 2]
    resumed(place, place.stopped(1 + 3 * number, kind), kind)


# --- the plan --------------------------------------------------------------------------------

PLAN = [
    Check("T1", killed_and_resumed, 20, True),
    Check("T2", killed_again_and_again, 5, True),
    Check("T2", killed_while_resuming, 5, True),
    Check("T3", without_a_part, len(PARTS)),
    Check("T4", killed_at_a_rename, 12, True),
    Check("T4", killed_at_an_unlink, 6, True),
    Check("T4", failed_at_an_fsync, 12, True),
    Check("T4", failed_at_a_line, 10, True),
    Check("T5", damaged_state, len(DAMAGES)),
    Check("T6", other_than_before, 8),
    Check("T7", data_fault, len(DATA_FAULTS)),
    Check("T8", diverging, 5),
    Check("T9", a_million_samples, 1),
    Check("T9", little_memory, 3),
    Check("T9", loader_killed, 2),
    Check("T10", disk_full, 6),
    Check("T10", output_refused, 3),
    Check("T10", folder_removed, 2),
    Check("T11", stopped_by_a_signal, 10, True),
    Check("T11", stopped_while_validating, 2),
    Check("T12", two_trainers, 4, True),
    Check("T12", stale_lock, 3),
    Check("T13", killed_while_pruning, 5, True),
    Check("T13", always_a_state, 5, True),
    Check("T14", straight, 8),
    Check("T14", resumed_at, 12),
]


@cache
def _place(folder: Path) -> Place:
    return Place(folder / "place")


def main() -> int:
    return carry_out(__doc__.splitlines()[0], PLAN, lambda check, folder: _place(folder))


if __name__ == "__main__":
    sys.exit(main())
