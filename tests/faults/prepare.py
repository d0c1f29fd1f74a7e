"""The fault plan of `dfdetect prepare`, run by hand: python tests/faults/prepare.py [--only P2,P5]

A small folder of made clips is prepared by processes that are killed, starved, started twice or
given damaged folders; what must come out is the tree of an undisturbed run, or one clear error.
tests/test_faults.py runs a few of these on every change, this script all of them (about an hour).
Linux only. Checks that need strace, root or hostile files say so where they cannot run.
"""

# ruff: noqa: E402, I001 (tests are importable only from here on)

import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import write_clip, write_scenery

from faults.plan import Check, carry_out, clean, refused
from faults.processes import (
    Ended,
    Run,
    Skipped,
    cpu_ticks,
    difference,
    in_this_process,
    mounted,
    open_files,
    strace,
    tree,
    written,
)

OPTIONS = ("--frames", "3", "--qualities", "raw,c40", "--size", "64", "--workers", "2", "--quiet")


class Place:
    """A source, the tree that an undisturbed run makes of it, and how long that took."""

    def __init__(self, folder: Path, n_clips: int = 12, here: bool = False) -> None:
        """With `here`, runs that are not to be disturbed are made in this process, which is much
        quicker to start."""
        self.here, self.folder, self.source = here, folder, folder / "clips"
        for i in range(n_clips // 2):
            write_clip(self.source / f"real/{i}.mp4", i, 8)
            write_clip(self.source / f"fake/self-blend/{i}.mp4", 10 + i, 8, "self-blend")
        folder.chmod(0o755)
        ended = self.do(folder / "whole")
        assert ended.code == 0, ended.err
        self.whole, self.seconds = tree(folder / "whole"), ended.seconds
        self._numbers = iter(range(10**9))

    def do(self, out: Path | str, *more: object, source: Path | None = None) -> Ended:
        """A run that nobody disturbs."""
        arguments = ("prepare", source or self.source, "--out", out, *OPTIONS, *more)
        return in_this_process(*arguments) if self.here else Run(*arguments).wait()

    def run(self, out: Path | str, *more: object, source: Path | None = None, **how: Any) -> Run:
        return Run("prepare", source or self.source, "--out", out, *OPTIONS, *more, **how)

    def new(self, kind: str = "out") -> Path:
        """A path that nothing lies at."""
        return self.folder / f"{kind}{next(self._numbers)}"

    def prepared(self) -> Path:
        """A copy of the finished folder, as one run would have left it; times are kept."""
        out = self.new()
        shutil.copytree(self.folder / "whole", out)
        return out

    def copy_of_source(self) -> Path:
        """The clips in another place under the same names, to be changed."""
        copy = self.new("source") / self.source.name
        shutil.copytree(self.source, copy)
        return copy


def resumed(place: Place, out: Path, *more: object, whole: dict | None = None) -> Ended:
    """Another run on `out` makes it the tree of an undisturbed run, and redoes nothing."""
    before = written(out)
    ended = place.do(out, *more)
    assert ended.code == 0, f"resuming: exit {ended.code}: {ended.err}"
    now, whole = tree(out), whole or place.whole
    assert now == whole, f"after resuming: {difference(now, whole)}"
    after = written(out)
    redone = [name for name, when in before.items() if after[name] != when]
    assert not redone, f"finished work was done again: {redone[:3]}"
    return ended


def verified(place: Place, out: Path) -> list[str]:
    """What --verify names, one line per problem."""
    arguments = ("prepare", "--verify", "--out", out)
    ended = in_this_process(*arguments) if place.here else Run(*arguments).wait()
    clean(ended, 0, 3)
    lines = [line for line in ended.err.splitlines() if line.startswith("warning: ")]
    assert bool(lines) == (ended.code == 3), f"exit {ended.code} and {len(lines)} problems"
    return lines


def failures(out: Path) -> dict[str, dict]:
    with (out / "failures.csv").open(newline="") as file:
        return {row["source"]: row for row in csv.DictReader(file)}


def a_part(out: Path, rng: random.Random) -> Path:
    return rng.choice(sorted((out / "manifest").glob("*.parquet")))


# --- P1: hostile files -----------------------------------------------------------------------


def hostile_files(place: Place, number: int, rng: random.Random) -> None:
    import pytest
    from conftest import SHARED, beside
    from test_badmedia import folders_of, path_of, prepared_class

    try:
        root = beside("DFDETECT_BADMEDIA", SHARED / "badmedia")
    except pytest.skip.Exception as absent:
        raise Skipped(str(absent)) from None
    sets = folders_of(root, place.new("badmedia"))
    for folder, cases in sets:
        link, table = place.new("in"), place.new("table").with_suffix(".csv")
        link.symlink_to(folder)
        with table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("path", "label"))
            cases = [c for c in cases if c.get("path") and path_of(folder, c).exists()]
            if os.getuid() == 0:  # who may read everything
                cases = [c for c in cases if "noperm" not in c["path"]]
            rows.writerows((f"{link.name}/{case['path']}", "real") for case in cases)
        results = []
        for workers in (1, 2, 4):
            out = place.new()
            options = ("--frames", "4", "--workers", workers, "--max-frames", "400")
            clean(place.run(out, *options, source=table).wait(1200), 3)
            results.append((tree(out), failures(out)))
            shutil.rmtree(out)
        for other, workers in zip(results[1:], (2, 4), strict=True):
            assert other[1] == results[0][1], f"{workers} workers list other failures"
            found = difference(other[0], results[0][0])
            assert other[0] == results[0][0], f"{workers} workers: {found}"
        listed = {name: row["kind"] for name, row in results[0][1].items()}
        wrong = []
        for case in cases:
            found = prepared_class(listed.get(f"{link.name}/{case['path']}"))
            if found not in [*case["expect"], "clean-error"]:
                wrong.append((case["path"], found, case["expect"]))
        assert not wrong, wrong


# --- P2, P3: kill -9 -------------------------------------------------------------------------


def killed_and_resumed(place: Place, number: int, rng: random.Random) -> None:
    out = place.new()
    run = place.run(out)
    time.sleep(rng.uniform(0.1, 1) * place.seconds)
    assert not run.kill().left, "processes outlived the kill"
    resumed(place, out)


def killed_again_and_again(place: Place, number: int, rng: random.Random) -> None:
    out = place.new()
    for _ in range(5):
        finished = written(out)
        run = place.run(out)
        time.sleep(rng.uniform(0.3, 1) * place.seconds)
        run.kill()
        now = written(out)
        assert all(now.get(n) == when for n, when in finished.items()), "finished work was redone"
    resumed(place, out)


# --- P4: a fault at the n-th system call -----------------------------------------------------


RENAMES = "rename,renameat,renameat2"
KILLED = "killed by SIGKILL"


def killed_at_a_rename(place: Place, number: int, rng: random.Random) -> None:
    """The whole group dies as soon as one process is killed at its n-th rename."""
    out, log = place.new(), place.new("log")
    inject = f"signal=KILL:when={number + 1}"
    run = place.run(out, "--workers", "1", through=strace(log, RENAMES, inject))
    while run.process.poll() is None:
        if log.exists() and KILLED in log.read_text(errors="replace"):
            break
        time.sleep(0.01)
    run.kill()
    if KILLED not in log.read_text(errors="replace"):
        raise Skipped("each process renames less often")
    resumed(place, out)


def child_killed_at_a_rename(place: Place, number: int, rng: random.Random) -> None:
    """Whichever process is at its n-th rename dies alone, and so does each that takes its place."""
    out, log = place.new(), place.new("log")
    inject = f"signal=KILL:when={number + 1}"
    ended = place.run(out, "--workers", "1", through=strace(log, RENAMES, inject)).wait()
    assert ended.code in (0, 2, 3, 128 + signal.SIGKILL), f"exit {ended.code}: {ended.err}"
    if KILLED not in log.read_text(errors="replace"):
        raise Skipped("each process renames less often")
    if ended.code == 3:
        causes = {row["message"].partition(": ")[2] for row in failures(out).values()}
        assert causes == {"the decoder crashed (SIGKILL)"}, causes
    resumed(place, out)


def failed_at_an_fsync(place: Place, number: int, rng: random.Random) -> None:
    out, log = place.new(), place.new("log")
    inject = f"error=EIO:when={number + 1}"
    ended = place.run(out, "--workers", "1", through=strace(log, "fsync", inject)).wait()
    if "INJECTED" in log.read_text(errors="replace"):
        refused(ended, 4, f"{out}/", "cannot be written (Input/output error)")
    else:
        clean(ended, 0)
    resumed(place, out)


def failed_at_a_read(place: Place, number: int, rng: random.Random) -> None:
    """Of the bytes of one video, the n-th time that they are read."""
    out, log = place.new(), place.new("log")
    clips = sorted(place.source.rglob("*.mp4"))
    clip, n = clips[number % len(clips)], number // len(clips) + 1
    through = strace(log, "read,pread64", f"error=EIO:when={n}", clip)
    ended = place.run(out, "--workers", "1", through=through).wait()
    if "INJECTED" not in log.read_text(errors="replace"):
        raise Skipped("the file is read less often")
    clean(ended, 3)
    (failure,) = failures(out).values()
    assert clip.match(f"*/{failure['source']}"), f"{failure} is not about {clip}"
    resumed(place, out)


def failed_at_a_read_of_a_part(place: Place, number: int, rng: random.Random) -> None:
    """On a finished folder; a read that fails changes nothing, and the part is named."""
    out, log = place.prepared(), place.new("log")
    part = a_part(out, rng)
    through = strace(log, "read,pread64", f"error=EIO:when={number + 1}", part)
    ended = place.run(out, "--workers", "1", through=through).wait()
    if "INJECTED" not in log.read_text(errors="replace"):
        raise Skipped("the file is read less often")
    clean(ended, 0, 2, 4)
    assert ended.code == 0 or str(part) in ended.err, ended.err
    assert tree(out) == place.whole, "a failed read changed the folder"


# --- P5: a full disk -------------------------------------------------------------------------


DISK_VARIANTS = ((), ("--format", "webp"), ("--qualities", "raw,j30"))


def disk_full(place: Place, number: int, rng: random.Random) -> None:
    """At 10 to 90 % of what is needed; then PNG, WebP and JPEG-degraded crops at 55 %."""
    share = (number + 1) / 10 if number < 9 else 0.55
    fill_the_disk(place, share, DISK_VARIANTS[max(0, number - 9) % 3])


def failed_at_a_write(place: Place, number: int, rng: random.Random) -> None:
    """Whichever write it is that finds the disk full."""
    fill_the_disk(place, rng.uniform(0.01, 0.97))


def fill_the_disk(place: Place, share: float, variant: tuple[str, ...] = ()) -> None:
    want = place.folder / "whole"
    if variant:
        want = place.new()
        clean(place.do(want, *variant), 0)
    whole = tree(want)
    pages = sum(-(-p.stat().st_size // 4096) for p in want.rglob("*") if p.is_file())
    with mounted(place.new("mount"), "-o", f"size={max(1, int(pages * share)) * 4}k") as point:
        out = point / "data"
        refused(place.do(out, *variant), 4, f"{out}", "No space left on device")
        parts = sorted((out / "manifest").glob("*.parquet"))
        hashes = tree(out)
        for row in pa.concat_tables([pq.read_table(p) for p in parts]).to_pylist() if parts else []:
            assert hashes[row["path"]] == row["crop_sha256"], f"{row['path']} is cut"
        grow = ["mount", "-o", f"remount,size={pages * 8}k", str(point)]
        subprocess.run(grow, check=True)
        resumed(place, out, *variant, whole=whole)


def file_size_limit(place: Place, number: int, rng: random.Random) -> None:
    """`ulimit -f`: below a crop, between a crop and a part, below a part."""
    whole = place.folder / "whole"
    crops, parts = (
        sorted(p.stat().st_size for p in whole.rglob(f"*.{suffix}"))
        for suffix in ("png", "parquet")
    )
    limit = (crops[0] // 2, crops[-1], parts[-1] - 1)[number]

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = place.new()
    refused(place.run(out, before=before).wait(), 4, f"{out}/", "File too large")
    resumed(place, out)


# --- P6: an output that cannot be written, a temporary folder that cannot be used ------------


def output_refused(place: Place, number: int, rng: random.Random) -> None:
    """Refused, before any file is decoded."""
    out, how = place.new(), {}
    if number == 0:
        out.mkdir(mode=0o555)
        if os.getuid() == 0:
            caps = "-dac_override,-dac_read_search"
            how["through"] = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"]
            if subprocess.run([*how["through"], "true"], capture_output=True).returncode:
                raise Skipped("root without its powers needs setpriv")
    elif number == 1:
        out.write_text("a file")
    elif number == 2:
        out = out / ("n" * 256)
    elif number == 3:
        out.write_text("a file")
        out = out / "data"
    elif number == 4:
        out.mkdir()
        (out / ".lock").mkdir()
    elif number == 5:
        with mounted(place.new("mount"), "-o", "ro") as out:
            _refused_unread(place, out, how)
        return
    elif number == 6:
        out.mkdir()
        (out / "manifest").write_text("a file")
        refused(place.do(out), 4, str(out), "cannot be written")
        return
    _refused_unread(place, out, how)


def _refused_unread(place: Place, out: Path, how: dict) -> None:
    log = place.new("log")
    log.touch()
    with suppress(Skipped):
        if not how and not place.here:
            how["through"] = strace(log, "openat")
    before = tree(out) if os.path.isdir(out) else {}
    ended = place.run(out, **how).wait() if how else place.do(out)
    refused(ended, 4, str(out)[:60], "cannot be written")
    opened = [x for x in log.read_text(errors="replace").splitlines() if ".mp4" in x]
    assert not opened, f"a source was opened: {opened[0]}"
    assert (tree(out) if os.path.isdir(out) else {}) == before, "something was written"


def output_made(place: Place, number: int, rng: random.Random) -> None:
    """Parents that are missing are made."""
    resumed(place, place.new() / "a" / "b" / "c")


def temporary_folder(place: Place, number: int, rng: random.Random) -> None:
    """Full, read-only, missing, on another file system: it works all the same. A name that is too
    long for a socket is one clear error."""
    if number < 3:
        options = (("-o", "size=4k"), ("-o", "ro"), ())[number]
        with mounted(place.new("mount"), *options) as point:
            if number == 0:
                with suppress(OSError):
                    (point / "full").write_bytes(bytes(1 << 16))
            _works_with(place, point)
    elif number == 3:
        _works_with(place, place.new("missing"))
    else:
        long = place.new("t" * 200)
        long.mkdir()
        out = place.new()
        refused(place.run(out, environ={"TMPDIR": str(long)}).wait(), 4, "TMPDIR")
        resumed(place, out)


def _works_with(place: Place, temporary: Path) -> None:
    out = place.new()
    clean(place.run(out, environ={"TMPDIR": str(temporary)}).wait(), 0)
    assert tree(out) == place.whole


# --- P7: two runs, one folder ----------------------------------------------------------------


def two_runs(place: Place, number: int, rng: random.Random) -> None:
    out = place.new()
    first = place.run(out)
    time.sleep(rng.uniform(0, 0.4) * place.seconds)
    second = place.run(out)
    ended = [first.wait(), second.wait()]
    codes = sorted(e.code for e in ended)
    if codes == [0, 0]:
        raise Skipped("the first had finished before the second began")
    winner, loser = (0, 1) if ended[0].code == 0 else (1, 0)
    pid = (first, second)[winner].process.pid
    clean(ended[winner], 0)
    refused(ended[loser], 4, str(out), f"another run (process {pid}) is writing here")
    assert tree(out) == place.whole


def stale_lock(place: Place, number: int, rng: random.Random) -> None:
    """The lock of a killed run, or one with anything in it, stops nobody."""
    out = place.new()
    if number % 2:
        run = place.run(out)
        while not (out / ".lock").exists() and run.process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2) * place.seconds)
        run.kill()
    else:
        out.mkdir()
        (out / ".lock").write_bytes(rng.choice((b"", b"1\n", b"99999999\n", bytes(range(256)))))
    resumed(place, out)


# --- P8: something else than before ----------------------------------------------------------


def other_settings(place: Place, number: int, rng: random.Random) -> None:
    options, key = (
        (("--frames", "4"), "frames = 3, now asked for 4"),
        (("--size", "96"), "crop.size = 64, now asked for 96"),
        (("--qualities", "raw,c30"), "qualities = "),
        (("--format", "webp"), "format = png, now asked for webp"),
    )[number]
    out = place.prepared()
    refused(place.do(out, *options), 2, key)
    assert tree(out) == place.whole


def other_settings_before_a_video_is_finished(
    place: Place, number: int, rng: random.Random
) -> None:
    """A run that was killed before its first video was finished binds nobody, and leaves nothing
    in the tree of a run with other settings."""
    out = place.prepared()
    shutil.rmtree(out / "manifest")
    options = (("--frames", "2"), ("--format", "webp"), ("--qualities", "raw"))[number]
    fresh = place.new()
    clean(place.do(fresh, *options), 0)
    clean(place.do(out, *options), 0)
    assert tree(out) == tree(fresh), difference(tree(out), tree(fresh))


def changed_source(place: Place, number: int, rng: random.Random) -> None:
    """Only what has changed is done again; the tree is that of a fresh run on what is there now."""
    source, out = place.copy_of_source(), place.prepared()
    before = written(out)
    clip = source / "real/1.mp4"
    if number == 0:
        write_clip(clip, 77, 8)
    elif number == 1:
        write_clip(clip, 1, 11)
    elif number == 2:
        clip.write_bytes(clip.read_bytes())
    elif number == 3:
        clip.write_bytes(clip.read_bytes())
        os.utime(clip, (1, 1))
    elif number == 4:
        write_scenery(clip)
    code = 3 if number == 4 else 0
    clean(place.do(out, source=source), code)
    fresh = place.new()
    clean(place.do(fresh, source=source), code)
    # Splits were dealt with one video more, if this one has failed.
    assert tree(out) == tree(fresh), difference(tree(out), tree(fresh))
    after = written(out)
    redone = {name.split("/")[-1 if "manifest" in name else -2].removesuffix(".parquet")
              for name in before if after.get(name) != before[name]}  # fmt: skip
    assert len(redone) == (0 if number in (2, 3) else 1), f"done again: {redone}"
    assert verified(place, out) == []


def source_removed(place: Place, number: int, rng: random.Random) -> None:
    source, out = place.copy_of_source(), place.prepared()
    for i in range((1, 3)[number]):
        (source / f"real/{i}.mp4").unlink()
    before = written(out)
    clean(place.do(out, source=source), 0)
    assert (written(out), tree(out)) == (before, place.whole)


def source_added(place: Place, number: int, rng: random.Random) -> None:
    source, out = place.copy_of_source(), place.prepared()
    for i in range((1, 3)[number]):
        write_clip(source / f"real/new{i}.mp4", 50 + i, 8)
    before = written(out)
    clean(place.do(out, source=source), 0)
    after = written(out)
    assert all(after[name] == when for name, when in before.items()), "finished work was redone"
    n_parts = len(list((out / "manifest").glob("*.parquet")))
    assert n_parts == sum("manifest/" in name for name in place.whole) + (1, 3)[number]
    assert verified(place, out) == []


def other_version(place: Place, number: int, rng: random.Random) -> None:
    out, name = place.prepared(), ("dfdetect", "libavcodec")[number]
    stored = json.loads((out / "prepare.json").read_text())
    stored["versions"][name] = "0.0.1"
    (out / "prepare.json").write_text(json.dumps(stored))
    before = tree(out)
    refused(place.do(out), 2, f"{name} 0.0.1", "--allow-other-versions")
    assert tree(out) == before
    clean(place.do(out, "--allow-other-versions"), 0)
    assert "0.0.1" in (out / "prepare.json").read_text(), "the first version was forgotten"


def edited_by_hand(place: Place, number: int, rng: random.Random) -> None:
    """Parts with other labels, a recipe that is gone or was edited: refused, nothing changes."""
    out = place.prepared()
    part, recipe = a_part(out, rng), out / "prepare.json"
    stored = json.loads(recipe.read_text())
    if number == 0:
        rewrite(part, lambda rows: [row | {"label": 1 - row["label"]} for row in rows])
        words = ("was prepared with label",)
    elif number == 1:
        rewrite(part, lambda rows: [row | {"manipulation": "other"} for row in rows])
        words = ("was prepared with manipulation",)
    elif number == 2:
        recipe.write_text(json.dumps(stored | {"recipe": stored["recipe"] | {"frames": 9}}))
        words = ("frames = 9, now asked for 3",)
    elif number == 3:
        recipe.unlink()
        words = ("prepare.json",)
    elif number == 4:
        recipe.write_text(recipe.read_text()[:100])
        words = ("prepare.json", "not valid JSON")
    elif number == 5:
        recipe.write_text(json.dumps({k: v for k, v in stored.items() if k != "versions"}))
        words = ("prepare.json",)
    elif number == 6:
        rewrite(part, lambda rows: [])
        words = (part.name, "--repair")
    before = tree(out)
    refused(place.do(out), 2, *words)
    assert tree(out) == before


def rewrite(part: Path, change: Callable[[list[dict]], list[dict]]) -> None:
    table = pq.read_table(part)
    rows = change(table.to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part, compression="zstd")


# --- P9: signals -----------------------------------------------------------------------------


def stopped(place: Place, number: int, rng: random.Random) -> None:
    """10 Ctrl-C, 3 of them twice, 5 SIGTERM, 2 SIGHUP; to the group, as a terminal does, or to the
    main process, as a batch system does."""
    which = [signal.SIGINT] * 13 + [signal.SIGTERM] * 5 + [signal.SIGHUP] * 2
    moment = rng.uniform(0.2, 0.9) * place.seconds
    gap = rng.uniform(0, 0.3) if 10 <= number < 13 else None
    stop_by(place, which[number], number % 2 == 0, moment, gap)


def stop_by(
    place: Place,
    which: int,
    whole_group: bool = True,
    moment: float | None = None,
    gap: float | None = None,
) -> None:
    """After `moment` seconds, or when the first video is finished; once more after `gap`."""
    out = place.new()
    run = place.run(out)
    if moment is None:
        until_a_video_is_finished(run, out)
    else:
        time.sleep(moment)
    sent = time.monotonic()
    run.signal(which, whole_group)
    if gap is not None:
        time.sleep(gap)
        run.signal(which, whole_group)
    ended = run.wait(60)
    took = time.monotonic() - sent
    clean(ended, 128 + which, *(() if moment is None else (0,)))
    assert took < 20, f"took {took:.1f} s to stop"
    resumed(place, out)


def until_a_video_is_finished(run: Run, out: Path) -> None:
    while not any((out / "manifest").glob("*.parquet")) and run.process.poll() is None:
        time.sleep(0.005)


# --- P10: a worker dies ----------------------------------------------------------------------


def worker_killed(place: Place, number: int, rng: random.Random) -> None:
    """SIGSEGV, or SIGKILL as by a system out of memory; with one and two workers."""
    which = (signal.SIGSEGV, signal.SIGKILL)[number % 2]
    kill_a_worker(place, which, 1 + number // 2 % 2, rng)


def kill_a_worker(place: Place, which: int, workers: int, rng: random.Random) -> None:
    out, options = place.new(), ("--frames", "8", "--size", "512", "--workers", workers)
    run = place.run(out, *options)
    victim = None
    while victim is None and run.process.poll() is None:
        ticks = {pid: cpu_ticks(pid) for pid in run.workers()}
        time.sleep(0.03)
        busy = [pid for pid, before in ticks.items() if cpu_ticks(pid) > before]
        if busy and len(written(out)) > 0:
            time.sleep(rng.uniform(0, 0.2))
            victim = rng.choice(busy)
            with suppress(ProcessLookupError):
                os.kill(victim, which)
    ended = run.wait()
    clean(ended, 0, 3)
    if ended.code == 0:
        raise Skipped("the worker was between two files, or had ended")
    (failure,) = failures(out).values()
    cause = f"the decoder crashed ({signal.Signals(which).name})"
    assert failure["message"].endswith(cause), failure
    n_parts = len(list((out / "manifest").glob("*.parquet")))
    assert n_parts == len([n for n in place.whole if n.endswith(".parquet")]) - 1
    clean(place.do(out, *options), 0)
    fresh = _once(place, *options)
    assert tree(out) == fresh, difference(tree(out), fresh)


def _once(place: Place, *options: object) -> dict[str, str]:
    """The tree of an undisturbed run with two workers and these options."""
    key = f"tree {options[:-1]}"
    if key not in vars(place):
        out = place.new()
        clean(place.do(out, *options[:-1], 2), 0)
        vars(place)[key] = tree(out)
    return vars(place)[key]


# --- P11: order and place --------------------------------------------------------------------


def elsewhere(place: Place, number: int, rng: random.Random) -> None:
    """Nothing of the surroundings is in the bytes."""
    out, more, how = place.new(), (), {}
    if number < 3:
        more = ("--workers", (1, 2, 4)[number])
    elif number < 8:
        how["environ"] = (
            {"LANG": "C", "LC_ALL": "C"},
            {"TZ": "Pacific/Kiritimati"},
            {"PYTHONHASHSEED": "1"},
            {"PYTHONHASHSEED": "2", "LC_ALL": None, "LANG": None},
            {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"},
        )[number - 3]
    elif number == 8:
        how |= {"cwd": place.source, "source": Path("../clips")}
    elif number == 9:
        how |= {"cwd": place.folder, "source": Path("clips")}
        out.mkdir()
        clean(place.run(out.name, **how).wait(), 0)
    elif number == 10:
        shm = Path("/dev/shm")
        if not os.access(shm, os.W_OK):
            raise Skipped("no second file system")
        out = Path(tempfile.mkdtemp(dir=shm))
    elif number == 11:
        how["source"] = place.copy_of_source()
    elif number == 12:  # most of it at once
        how |= {"cwd": place.source, "source": Path("../clips")}
        environ = {"LANG": "C", "LC_ALL": "C", "TZ": "Pacific/Kiritimati"}
        how["environ"] = environ | {"PYTHONHASHSEED": "3", "OMP_NUM_THREADS": "3"}
    source = how.pop("source", None)
    if how:
        clean(place.run(out, *more, source=source, **how).wait(), 0)
    else:
        clean(place.do(out, *more, source=source), 0)
    assert tree(out) == place.whole, difference(tree(out), place.whole)
    if number == 10:
        shutil.rmtree(out)


def shuffled(place: Place, number: int, rng: random.Random) -> None:
    """The rows of a table in another order, with splits that prepare deals."""
    names = sorted(str(p.relative_to(place.source)) for p in place.source.rglob("*.mp4"))
    trees = []
    for _ in range(2):
        table, out = place.source.parent / "table.csv", place.new()
        rows = [f"clips/{n},{'real' if n.startswith('real') else 'fake'}" for n in names]
        table.write_text("\n".join(["path,label", *rows]) + "\n")
        clean(place.do(out, source=table), 0)
        trees.append(tree(out))
        rng.shuffle(names)
    assert trees[0] == trees[1], difference(*trees)


# --- P12: damage -----------------------------------------------------------------------------


def _cut(tenths: int) -> Callable:
    def damage(out: Path, rng: random.Random) -> list[Path]:
        part = a_part(out, rng)
        content = part.read_bytes()
        part.write_bytes(content[: len(content) * tenths // 10])
        return [part]

    return damage


def _rewritten(change: Callable[[list[dict]], list[dict]]) -> Callable:
    def damage(out: Path, rng: random.Random) -> list[Path]:
        part = a_part(out, rng)
        rewrite(part, change)
        return [part]

    return damage


def _row_without_file(out: Path, rng: random.Random) -> list[Path]:
    crop = rng.choice(sorted(out.glob("faces/*/*/*")))
    crop.unlink()
    return [crop]


def _file_without_row(out: Path, rng: random.Random) -> list[Path]:
    part = a_part(out, rng)
    gone = pq.read_table(part).to_pylist()[0]["path"]
    rewrite(part, lambda rows: rows[1:])
    return [out / gone]


def _file_of_nobody(out: Path, rng: random.Random) -> list[Path]:
    crop = rng.choice(sorted(out.glob("faces/*/*/*")))
    return [Path(shutil.copy(crop, crop.with_name("999999_0.png")))]


def _part_gone(out: Path, rng: random.Random) -> list[Path]:
    part = a_part(out, rng)
    part.unlink()
    return sorted(out.glob(f"faces/*/{part.stem}/*"))[:1]


def _part_copied(out: Path, rng: random.Random) -> list[Path]:
    part = a_part(out, rng)
    return [Path(shutil.copy(part, part.with_name("copy.parquet")))]


def _crop_changed(how: str) -> Callable:
    def damage(out: Path, rng: random.Random) -> list[Path]:
        crop = rng.choice(sorted(out.glob("faces/*/*/*")))
        content = bytearray(crop.read_bytes())
        if how == "bit":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif how == "half":
            content = content[: len(content) // 2]
        elif how == "empty":
            content = b""
        crop.write_bytes(content)
        if how == "folder":
            crop.unlink()
            (crop / "below").mkdir(parents=True)
        elif how == "link":
            crop.unlink()
            crop.symlink_to("nowhere")
        return [crop]

    return damage


def _byte_changed(out: Path, rng: random.Random) -> list[Path]:
    part = a_part(out, rng)
    content = bytearray(part.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    part.write_bytes(content)
    return [part]


def _other(column: str, value: Any) -> Callable:
    return _rewritten(lambda rows: [rows[0] | {column: value}, *rows[1:]])


DAMAGE: dict[str, Callable[[Path, random.Random], list[Path]]] = {
    **{f"a part cut at {10 * n} %": _cut(n) for n in range(10)},
    "a row twice": _rewritten(lambda rows: [*rows, rows[0]]),
    "no rows": _rewritten(lambda rows: []),
    "a row without its file": _row_without_file,
    "a file without its row": _file_without_row,
    "a file of nobody's": _file_of_nobody,
    "a part that is gone": _part_gone,
    "a part twice": _part_copied,
    "another hash": _other("crop_sha256", "0" * 64),
    "another video's row": _other("video_id", "somebody"),
    "a path outside": _other("path", "../../etc/passwd"),
    "an absolute path": _other("path", "/etc/passwd"),
    "a path that is null": _other("path", None),
    "a crop with another bit": _crop_changed("bit"),
    "half a crop": _crop_changed("half"),
    "an empty crop": _crop_changed("empty"),
    "a folder instead of a crop": _crop_changed("folder"),
    "a dangling link instead of a crop": _crop_changed("link"),
}


def damaged(place: Place, number: int, rng: random.Random) -> None:
    damage_and_mend(place, list(DAMAGE.values())[number % len(DAMAGE)], rng)


def damage_and_mend(place: Place, damage: Callable, rng: random.Random) -> None:
    """--verify finds it and changes nothing, --repair mends it and redoes only what is damaged."""
    out = place.prepared()
    assert verified(place, out) == [], "an undamaged folder is called damaged"
    places = damage(out, rng)
    before, times = tree(out), written(out)
    named = verified(place, out)
    for path in places:
        assert any(str(path) in line or path.stem in line for line in named), (path, named)
    assert tree(out) == before, "--verify changed the folder"
    clean(place.do(out, "--repair"), 0)
    assert tree(out) == place.whole, difference(tree(out), place.whole)
    after = written(out)
    kept = sum(after.get(name) == when for name, when in times.items())
    assert kept >= len(times) * 0.8, f"only {kept} of {len(times)} files were kept"
    assert verified(place, out) == []


def one_bit(place: Place, number: int, rng: random.Random) -> None:
    """One bit of a part flipped anywhere: found, or without any effect on what is read."""
    out = place.prepared()
    whole = [pq.read_table(p).to_pylist() for p in sorted((out / "manifest").glob("*.parquet"))]
    (part,) = _byte_changed(out, rng)
    if named := verified(place, out):
        assert any(str(part) in line for line in named), named
        return
    now = [pq.read_table(p).to_pylist() for p in sorted((out / "manifest").glob("*.parquet"))]
    assert now == whole, f"{part.name} reads otherwise, and --verify does not see it"


# --- P13: names that look alike --------------------------------------------------------------


def twins(place: Place, number: int, rng: random.Random) -> None:
    """As many videos as files, and no crop overwritten."""
    source, out = place.new("source") / "s", place.new()
    names = (
        ("a.mp4", "a.mov", "a.mkv", "sub/a.mp4"),
        ("ann.mp4", "Ann.mp4", "ANN.mp4", "ann.MP4"),
        tuple(unicodedata.normalize(form, "Zoë Å.mp4") for form in ("NFC", "NFD")),
        ("first.mp4", "second.mp4"),
        ("a b.mp4", "a-b.mp4", "a_b.mp4", "a+b.mp4", "-a-b.mp4"),
        tuple("x" * n + "y" * 150 + ".mp4" for n in range(4)),
    )[number]
    for seed, name in enumerate(names):
        if number == 3 and seed:
            os.link(source / "real" / names[0], source / "real" / name)
        else:
            write_clip(source / "real" / name, seed, 4)
    clean(place.do(out, source=source), 0)
    tables = [pq.read_table(p).to_pylist() for p in (out / "manifest").glob("*.parquet")]
    assert len(tables) == len(names), f"{len(tables)} parts for {len(names)} files"
    rows = [row for table in tables for row in table]
    assert len({row["video_id"] for row in rows}) == len(names)
    assert len({row["path"] for row in rows}) == len(rows) == len(names) * 3 * 2
    assert len({row["path"].casefold() for row in rows}) == len(rows), "alike but for case"
    assert verified(place, out) == []


# --- P14: little to live on ------------------------------------------------------------------


def few_descriptors(place: Place, number: int, rng: random.Random) -> None:
    """64 open files are enough for many inputs, and their number does not grow."""
    source, out = place.new("source"), place.new()
    write_clip(source / "real/0.mp4", 0, 4)
    n = (60, 300)[number]
    for i in range(1, n):
        os.link(source / "real/0.mp4", source / f"real/{i}.mp4")

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    run = place.run(out, "--frames", "1", source=source, before=before)
    seen: dict[int, list[int]] = {}
    while run.process.poll() is None:
        for pid in run.alive():
            if count := open_files(pid):
                seen.setdefault(pid, []).append(count)
        time.sleep(0.05)
    clean(run.wait(), 0)
    assert len(list((out / "manifest").iterdir())) == n
    for counts in seen.values():
        half = len(counts) // 2
        if half > 10:
            early, late = max(counts[:half]), max(counts[half:])
            assert late <= early + 4, f"open files grew from {early} to {late}"


def without_home(place: Place, number: int, rng: random.Random) -> None:
    out = place.new()
    environ = ({"HOME": None}, {"HOME": "/nonexistent"}, {"HOME": None, "PATH": None})[number]
    clean(place.run(out, environ=environ).wait(), 0)
    assert tree(out) == place.whole


def in_a_deleted_folder(place: Place, number: int, rng: random.Random) -> None:
    out, here = place.new(), place.new("here")
    here.mkdir()

    def before() -> None:
        os.chdir(here)
        os.rmdir(here)

    ended = place.run(out, before=before).wait()
    clean(ended, 0, 2, 4)  # a numeric library may refuse to load there, in a line of its own
    assert ended.err.count("\n") <= 2, ended.err
    resumed(place, out)


def nobody_listens(place: Place, number: int, rng: random.Random) -> None:
    """stdout is a closed pipe, a full device, or closed from the start: the work is done."""
    out = place.new()
    if number == 0:
        reader, writer = os.pipe()
        os.close(reader)
        ended = place.run(out, stdout=writer).wait()
        os.close(writer)
        clean(ended, 128 + signal.SIGPIPE, 1)
    elif number == 1:
        with open("/dev/full", "w") as full:
            clean(place.run(out, stdout=full).wait(), 4)
    elif number == 2:
        clean(place.run(out, before=lambda: os.close(1)).wait(), 0, 4)
    elif number == 3:
        clean(place.run(out, before=lambda: (os.close(1), os.close(2))).wait(), 0, 4)
    elif number == 4:
        reader, writer = os.pipe()
        os.close(reader)
        ended = place.run(out, "--json", stdout=writer).wait()
        os.close(writer)
        clean(ended, 128 + signal.SIGPIPE)
    assert tree(out) == place.whole


def without_network(place: Place, number: int, rng: random.Random) -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        raise Skipped("unshare -n needs root")
    out = place.new()
    clean(place.run(out, through=["unshare", "-n"]).wait(), 0)
    assert tree(out) == place.whole


# --- the plan --------------------------------------------------------------------------------


PLAN = [
    Check("P1", hostile_files, 1),
    Check("P2", killed_and_resumed, 30, True),
    Check("P3", killed_again_and_again, 10, True),
    Check("P4", killed_at_a_rename, 24, True),
    Check("P4", child_killed_at_a_rename, 10, True),
    Check("P4", failed_at_an_fsync, 25, True),
    Check("P4", failed_at_a_write, 25, True),
    Check("P4", failed_at_a_read, 25, True),
    Check("P4", failed_at_a_read_of_a_part, 10, True),
    Check("P5", disk_full, 12),
    Check("P5", file_size_limit, 3),
    Check("P6", output_refused, 7),
    Check("P6", output_made, 1),
    Check("P6", temporary_folder, 5),
    Check("P7", two_runs, 10, True),
    Check("P7", stale_lock, 5, True),
    Check("P8", other_settings, 4),
    Check("P8", other_settings_before_a_video_is_finished, 3),
    Check("P8", changed_source, 5),
    Check("P8", source_removed, 2),
    Check("P8", source_added, 2),
    Check("P8", other_version, 2),
    Check("P8", edited_by_hand, 7),
    Check("P9", stopped, 20, True),
    Check("P10", worker_killed, 12, True),
    Check("P11", elsewhere, 13),
    Check("P11", shuffled, 2),
    Check("P12", damaged, len(DAMAGE)),
    Check("P12", one_bit, 40, True),
    Check("P13", twins, 6),
    Check("P14", few_descriptors, 2),
    Check("P14", without_home, 3),
    Check("P14", in_a_deleted_folder, 1),
    Check("P14", nobody_listens, 5),
    Check("P14", without_network, 1),
]


def main() -> int:
    places: dict[int, Place] = {}

    def place_of(check: Check, folder: Path) -> Place:
        n_clips = 4 if check.row == "P4" else 12
        if n_clips not in places:
            places[n_clips] = Place(folder / str(n_clips), n_clips)
            print(f"an undisturbed run takes {places[n_clips].seconds:.1f} s", flush=True)
        return places[n_clips]

    return carry_out(__doc__.splitlines()[0], PLAN, place_of)


if __name__ == "__main__":
    sys.exit(main())
