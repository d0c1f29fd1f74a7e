"""Commands of this tool in child processes: one job on each device, one command after the other.

    JOB/log.txt (the commands and what they said)  cell.json (how the job ended)

A command that crashes, diverges or wants too much memory costs its job. What asks the parent to
stop is passed on to the children, which save their state.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.files import make_folder, read_json

POLL_S = 0.2
"""How often the children are looked after."""
TAIL_BYTES = 20_000
"""Of a log, where its last lines are looked for."""
NOTE = "cell.json"
"""How a job ended; written last, removed when it is tried again."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a user would type, after `dfdetect`: `commands` is a function of the device.

    `accepted` are the exit codes after which the next command is run.
    """

    name: str
    folder: Path
    commands: Callable[[str], list[list[str]]]
    resumed: bool = False
    accepted: frozenset[int] = frozenset({ExitCode.OK})


@dataclass(frozen=True)
class Ended:
    """A job that ended: `error` is why its last command failed, empty if none did."""

    job: Job
    command: list[str]
    error: str = ""


def noted(folder: Path) -> dict[str, Any]:
    """How the job of a folder ended; nothing if it did not, or the note was damaged."""
    try:
        return read_json(folder / NOTE)
    except DfdetectError:
        return {}


def run_jobs(
    todo: Sequence[Job], devices: Sequence[str], on_event: Callable[[Event], None]
) -> Iterator[Ended]:
    """Yields each job as it ends. Errors: DfdetectError when a signal stopped them."""
    waiting, n_done = list(todo), 0
    running: dict[int, _Attempt] = {}
    with _stop_signals(running) as stopped:
        while running or (waiting and not stopped):
            for slot, device in enumerate(devices):
                if slot not in running and waiting and not stopped:
                    attempt = _Attempt(waiting.pop(0), device, devices.count("cpu"))
                    running[slot] = attempt
                    on_event(attempt.event("begin"))
            for slot, attempt in list(running.items()):
                if not attempt.is_over(bool(stopped)):
                    continue
                del running[slot]
                if stopped and not attempt.is_finished:
                    continue  # begun, for the next time
                n_done += 1
                error = "" if attempt.is_finished else attempt.error
                status = "failed" if error else "finished"
                counts = {"done": n_done, "total": len(todo)}
                on_event(attempt.event("end") | counts | {"status": status, "error": error})
                yield Ended(attempt.job, attempt.command, error)
            text = "; ".join(attempt.progress for attempt in running.values())
            on_event({"kind": "progress", "done": n_done, "total": len(todo), "text": text})
            time.sleep(POLL_S)
    if stopped:
        raise DfdetectError(
            f"stopped with {n_done} of {len(todo)} cells done; those running saved their state",
            "the same command again continues",
            ExitCode.INTERRUPTED if stopped[0] == signal.SIGINT else ExitCode.TERMINATED,
        )


def start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """One command in a child, which appends to `log`."""
    with log.open("ab") as file:
        file.write(f"$ dfdetect {shlex.join(command)}\n".encode())
        file.flush()
        # In a group of its own: Ctrl-C reaches it through us, once.
        return subprocess.Popen(
            [sys.executable, "-m", "dfdetect", *command], stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, env=environment, start_new_session=True,
        )  # fmt: skip


class _Attempt:
    """One job on one device: its commands, one child process after the other."""

    def __init__(self, job: Job, device: str, n_cpu: int) -> None:
        self.job, self.device = job, device
        self._began = time.monotonic()
        self._environment = dict(os.environ)
        if device == "cpu" and n_cpu > 1:  # those on one CPU share its cores
            share = max(1, (os.cpu_count() or 1) // n_cpu)
            self._environment.setdefault("OMP_NUM_THREADS", str(share))
        self._commands = job.commands(device)
        self._log = job.folder / "log.txt"
        make_folder(job.folder)
        (job.folder / NOTE).unlink(missing_ok=True)
        self._start_next()

    def is_over(self, stopped: bool) -> bool:
        """Whether no child runs any more; starts the next command after one that went well."""
        if self.child.poll() in self.job.accepted and self._commands and not stopped:
            self._start_next()
            return False
        return self.child.poll() is not None

    @property
    def is_finished(self) -> bool:
        return self.child.poll() in self.job.accepted and not self._commands

    @property
    def error(self) -> str:
        """Why the last command failed, in its own words where it left any."""
        if self.child.returncode < 0:
            name = signal.Signals(-self.child.returncode).name
            return f"killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")
        lines = [line for line in _tail(self._log) if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines)[-1]

    @property
    def progress(self) -> str:
        """The job and the newest step of its training."""
        for line in reversed(_tail(self.job.folder / "metrics.jsonl")):
            with suppress(ValueError):  # half a line
                return f"{self.job.name}: step {json.loads(line)['step']}"
        return self.job.name

    def event(self, kind: str) -> Event:
        return {
            "kind": kind, "cell": self.job.name, "device": self.device,
            "resumed": self.job.resumed, "seconds": time.monotonic() - self._began,
            "log": str(self._log),
        }  # fmt: skip

    def _start_next(self) -> None:
        self.command = self._commands.pop(0)
        self.child = start(self.command, self._log, self._environment)


@contextmanager
def _stop_signals(running: Mapping[int, _Attempt]) -> Iterator[list[int]]:
    """Collects what asks us to stop and passes it on to the children, which save their state; a
    second one kills them. None is left running at the end, however that comes."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        for attempt in running.values():
            attempt.child.send_signal(signal.SIGKILL if received else number)
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    with suppress(ValueError):  # not in the main thread: whoever owns it decides
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for attempt in running.values():
            attempt.child.terminate()
            attempt.child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _tail(path: Path) -> list[str]:
    """The last lines of a file, none if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
