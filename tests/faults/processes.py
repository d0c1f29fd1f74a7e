"""dfdetect as a process of its own, to be disturbed and looked at from outside (Linux, /proc)."""

import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

HANGS = 180.0
"""Seconds after which a run that has not ended counts as hung."""
MARK = "DFDETECT_FAULTS_RUN"

_numbers = itertools.count()


class Skipped(Exception):
    """A check that cannot run here, and why."""


class Ended(NamedTuple):
    """How a run ended: its exit code as a shell would see it, what it printed, who outlived it."""

    code: int
    out: str
    err: str
    seconds: float
    left: list[int]


class Run:
    """`dfdetect ARGUMENTS` in a process group of its own, known by a mark in its environment."""

    def __init__(
        self,
        *arguments: object,
        through: Sequence[str] = (),
        cwd: str | Path | None = None,
        environ: Mapping[str, str | None] | None = None,
        before=None,
        stdout=None,
    ) -> None:
        """`through` is a command that runs it (strace ...), `environ` changes variables or, with
        None, takes them away, `before` is called in the child, before it becomes dfdetect."""
        self.mark = f"{os.getpid()}-{next(_numbers)}"
        changed = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | dict(environ or {})
        env = {k: v for k, v in changed.items() if v is not None} | {MARK: self.mark}
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            [*through, sys.executable, "-m", "dfdetect", *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=stdout or self._out, stderr=self._err,
            cwd=cwd, env=env, start_new_session=True, preexec_fn=before,
        )  # fmt: skip

    def alive(self) -> list[int]:
        """Its processes, children of children too, that have not ended."""
        found, wanted = [], f"{MARK}={self.mark}".encode()
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                with suppress(OSError):
                    if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        found.append(int(entry))
        return found

    def workers(self) -> list[int]:
        """Those that decode: children of the server that forks them."""
        parents = {pid: parent_of(pid) for pid in self.alive()}
        main = self.process.pid
        return [p for p, parent in parents.items() if parent in parents and parent != main]

    def signal(self, number: int, whole_group: bool = True) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if whole_group else os.kill)(self.process.pid, number)

    def wait(self, seconds: float = HANGS, grace: float = 5.0) -> Ended:
        """Wait for its end, and up to `grace` for its children's; AssertionError if it hangs."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(
                f"hung for {seconds:g} s; stderr: {self._read(self._err)}"
            ) from None
        took = time.monotonic() - self._started
        until = time.monotonic() + grace
        while (left := self.alive()) and time.monotonic() < until:
            time.sleep(0.02)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        out, err = self._read(self._out), self._read(self._err)
        return Ended(code if code >= 0 else 128 - code, out, err, took, left)

    def kill(self) -> Ended:
        """SIGKILL to the whole group, as a power cut or a batch system would."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def end(self) -> None:
        """Whatever of it still runs."""
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @staticmethod
    def _read(file) -> str:
        file.seek(0)
        return file.read().decode(errors="replace")


def wait_for(seconds: float) -> int:
    """What a child may be asked to do: it tells its process id."""
    time.sleep(seconds)
    return os.getpid()


def in_this_process(*arguments: object) -> Ended:
    """The same command line without a process of its own."""
    from typer.testing import CliRunner

    from dfdetect.cli import app

    started = time.monotonic()
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return Ended(
        result.exit_code, result.stdout, result.stderr, time.monotonic() - started, left=[]
    )


def strace(log: Path, calls: str, inject: str = "", path: Path | None = None) -> list[str]:
    """The command that runs another one under strace, with a fault at some of `calls`, of those
    on `path` if it is given. Who is killed is in the log."""
    if not shutil.which("strace"):
        raise Skipped("strace is not installed")
    options = ["-e", f"inject={calls}:{inject}"] if inject else []
    if path:
        options += ["-P", str(path)]
    elif "signal" not in inject:  # with it strace 6.1 runs faster, but forgets to send signals
        options.append("--seccomp-bpf")
    return ["strace", "-f", "-qq", "-y", "-o", str(log),
            "-e", f"trace={calls}", "-e", "signal=KILL", *options]  # fmt: skip


@contextmanager
def mounted(point: Path, *options: str) -> Iterator[Path]:
    """A small file system of its own at `point`, which is made."""
    point.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", point], capture_output=True)\
            .returncode:  # fmt: skip
        raise Skipped("mounting needs root")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def parent_of(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def cpu_ticks(pid: int) -> int:
    """Of its own work, so far; 0 where it has ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0


def open_files(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def tree(folder: Path, without: Sequence[str] = ()) -> dict[str, str]:
    """Hash of every file below `folder` by its name, but for the lock and those in `without`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in (".lock", *without):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def difference(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    """In words, for a message."""
    return (
        f"lacks {sorted(b.keys() - a.keys())[:4]}, has {sorted(a.keys() - b.keys())[:4]} besides, "
        f"differs in {sorted(k for k in a.keys() & b.keys() if a[k] != b[k])[:4]}"
    )


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """(inode, mtime) of every manifest part and of the crops of finished videos, by name."""
    found = {}
    for part in (folder / "manifest").glob("*.parquet"):
        for path in (part, *(folder / "faces").glob(f"*/{part.stem}/*")):
            status = path.lstat()
            found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns)
    return found
