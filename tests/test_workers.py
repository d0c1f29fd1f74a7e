"""Child processes that crash, hang, or want too much memory cost one input and no more."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from dfdetect import workers
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.files import sha256_of
from dfdetect.prepare import PrepareRecipe, Running, prepare
from dfdetect.workers import Died, run_all, run_on_cluster

LIMITS = {"max_seconds": 60, "max_memory_gb": 1}


def work(task):
    """What the tests have done in a child: `task` is (what, value)."""
    what, value = task
    if what == "crash":
        os.kill(os.getpid(), value)
    if what == "exit":
        os._exit(value)
    if what == "hang":
        time.sleep(600)
    if what == "memory":
        np.ones((value << 30) // 8)
    if what == "refuse":
        raise DfdetectError("disk full", exit_code=ExitCode.ENVIRONMENT)
    if what == "once":  # crashes the first time, with a file as memory
        value.touch() if not value.exists() else None
    return value


@pytest.mark.parametrize("workers", [1, 3])
def test_a_crash_costs_its_own_input_and_the_others_come_back(workers):
    tasks = [("plain", i) for i in range(8)]
    tasks[2:2] = [("crash", signal.SIGSEGV), ("crash", signal.SIGKILL), ("exit", 3)]
    results = dict(run_all(work, tasks, workers, **LIMITS))
    assert [results["plain", i] for i in range(8)] == list(range(8))
    causes = [results[t].cause for t in tasks[2:5]]
    assert causes == [
        "the decoder crashed (SIGSEGV)", "the decoder crashed (SIGKILL)",
        "the decoder crashed (exit code 3)",
    ]  # fmt: skip


def test_a_hang_is_given_up_after_its_time_and_the_rest_goes_on():
    tasks = [("hang", 0), ("plain", 1), ("plain", 2)]
    started = time.monotonic()
    results = dict(run_all(work, tasks, 1, max_seconds=1, max_memory_gb=1))
    assert results["hang", 0] == Died("gave up after 1 s", "allow more with --max-seconds")
    assert (results["plain", 1], results["plain", 2]) == (1, 2)
    assert time.monotonic() - started < 20


def test_memory_beyond_the_limit_is_refused_and_the_child_lives_on():
    tasks = [("memory", 4), ("plain", 1)]
    results = dict(run_all(work, tasks, 1, **LIMITS))
    assert results["memory", 4].cause == "needs more than 1 GB of memory"
    assert results["plain", 1] == 1
    assert dict(run_all(work, [("memory", 1)], 1, max_seconds=60, max_memory_gb=3))


def test_an_error_that_stops_a_run_is_raised_and_ends_the_children():
    with pytest.raises(DfdetectError, match="disk full"):
        list(run_all(work, [("plain", 1), ("refuse", 0), ("hang", 0)], 2, **LIMITS))


def test_leaving_the_loop_ends_what_is_in_hand():
    started = time.monotonic()
    for _ in run_all(work, [("plain", 1), ("hang", 0), ("hang", 1)], 2, **LIMITS):
        break
    assert time.monotonic() - started < 10


def test_inputs_are_taken_as_there_is_room():
    taken = []

    def tasks():
        for i in range(1000):
            taken.append(i)
            yield "plain", i

    for _, value in run_all(work, tasks(), 2, **LIMITS):
        if value == 0:
            break
    assert len(taken) < 20


def test_no_inputs_need_no_children():
    assert list(run_all(work, [], 2, **LIMITS)) == []


# --- a cluster -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(address, worker processes) of a scheduler and two workers, each a process of its own."""
    folder = tmp_path_factory.mktemp("dask")
    contact = folder / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    options = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    here = {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.getcwd()])}
    options |= {"env": os.environ | here, "start_new_session": True}
    scheduler = subprocess.Popen(
        [*dask, "--host", "127.0.0.1", "--port", "0", "--scheduler-file", contact], **options
    )
    worker = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        "--nthreads",
        "1",
        "--no-dashboard",
    ]
    workers = [
        subprocess.Popen([*worker, "--scheduler-file", contact], **options) for _ in range(2)
    ]
    until = time.monotonic() + 60
    while not contact.exists() and time.monotonic() < until:
        time.sleep(0.1)
    address = json.loads(contact.read_text())["address"]
    yield address, workers
    for process in [*workers, scheduler]:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def test_a_cluster_gives_the_results_that_this_machine_gives(cluster):
    tasks = [("plain", i) for i in range(12)] + [("crash", signal.SIGSEGV)]
    results = dict(run_on_cluster(work, tasks, cluster[0], **LIMITS))
    assert [results["plain", i] for i in range(12)] == list(range(12))
    assert results["crash", signal.SIGSEGV].cause == "the decoder crashed (SIGSEGV)"


def test_prepare_on_a_cluster_writes_the_same_bytes_also_when_a_worker_is_killed(
    cluster, clips, tmp_path, monkeypatch
):
    monkeypatch.chdir(clips.parent)  # the workers are in another folder
    address, workers = cluster
    recipe = PrepareRecipe(("raw", "c23"), 3)
    killed = []

    def kill_one(n_done, n_total, video, done):
        assert done.failure is None
        if n_done == 3:
            os.killpg(workers[0].pid, signal.SIGKILL)
            killed.append(n_total - n_done)

    prepare(clips, tmp_path / "here", recipe)
    running = Running(cluster=address)
    prepare(Path(clips.name), tmp_path / "there", recipe, running=running, on_done=kill_one)
    assert killed == [15]
    hashes = [
        {str(p.relative_to(tmp_path / name)): sha256_of(p) for p in (tmp_path / name).rglob("*.p*")}
        for name in ("here", "there")
    ]
    assert len(hashes[0]) == 18 * (1 + 2 * 3)
    assert hashes[0] == hashes[1]


def one_python():
    return {"python": f"that of process {os.getpid()}"}


def test_a_worker_with_other_versions_is_refused(cluster):
    with pytest.raises(DfdetectError, match="has python that of process") as error:
        list(run_on_cluster(work, [("plain", 1)], cluster[0], alike=one_python, **LIMITS))
    assert error.value.exit_code == ExitCode.ENVIRONMENT


def test_an_address_where_no_scheduler_answers_is_one_error(monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_S", 1)
    with pytest.raises(DfdetectError, match="no Dask scheduler answers") as error:
        list(run_on_cluster(work, [("plain", 1)], "tcp://127.0.0.1:9", **LIMITS))
    assert error.value.exit_code == ExitCode.ENVIRONMENT
