"""One function over many inputs in child processes, where a crash, a hang or hunger for memory
costs that one input: on this machine by Pebble's pool, on a cluster by Dask's scheduler.

Decoders of strangers' files are native code; no `try` helps when they crash. The function and its
inputs travel by pickle, so it must be a module's own. Children are forked from a server process
that has imported that module once, so that starting one again costs milliseconds.
"""

import ctypes
import gc
import math
import multiprocessing
import os
import resource
import signal
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from importlib import import_module
from itertools import islice
from multiprocessing import context, forkserver, popen_forkserver, resource_tracker, spawn
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, Generic, NamedTuple, TypeVar

from dfdetect.errors import DfdetectError, ExitCode

CONNECT_S = 10
"""How long a scheduler may take to answer."""

Input = TypeVar("Input")


class Died(NamedTuple):
    """The child that worked on an input did not come back, and why."""

    cause: str
    hint: str


def run_all(
    function: Callable[[Input], Any],
    inputs: Iterable[Input],
    workers: int,
    max_seconds: float,
    max_memory_gb: float,
) -> Iterator[tuple[Input, Any | Died]]:
    """`function(input)` for each input, as they finish: (input, its result or Died).

    Inputs are taken from the iterable as there is room, two per worker. Closing the iterator, or
    an exception thrown into it, ends the children at once.

    Errors: what `function` raises; DfdetectError with ExitCode.ENVIRONMENT if children cannot be
    started or kept.
    """
    waiting = iter(inputs)
    first = list(islice(waiting, workers))
    if not first:
        return
    pool = _start_pool(function, min(workers, len(first)), max_memory_gb)
    running: dict[Future, Input] = {}

    def start(value: Input) -> None:
        running[_schedule(pool, function, value, max_seconds)] = value

    try:
        for value in (*first, *islice(waiting, workers)):
            start(value)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                value = running.pop(future)
                result = _result(future, max_seconds, max_memory_gb)
                if (following := next(waiting, None)) is not None:
                    start(following)
                yield value, result
        pool.close()
    except BrokenProcessPool as error:
        names = ", ".join(sorted({str(value) for value in running.values()})[:4])
        raise _broken(error, names) from error
    finally:
        pool.stop()  # nobody waits for what is in hand: it has written nothing final
        pool.join()


class Children(Generic[Input]):
    """`children(value)` is `function(value)` in a child that stays for the next; any number of
    threads may call, and wait for one of the `workers` to be free.

    Errors: as `run_all`, when called.
    """

    def __init__(
        self,
        function: Callable[[Input], Any],
        workers: int,
        max_seconds: float,
        max_memory_gb: float,
    ) -> None:
        self._function, self._workers = function, workers
        self._max_seconds, self._max_memory_gb = max_seconds, max_memory_gb
        self._lock = threading.Lock()
        self._pool: Any = None
        self._end: Callable[[], None] = lambda: None

    def __call__(self, value: Input) -> Any | Died:
        with self._lock:
            if self._pool is None or not self._pool.active:
                self.close()
                self._pool = _start_pool(self._function, self._workers, self._max_memory_gb)
                self._end = weakref.finalize(self, _stop, self._pool)
            future = _schedule(self._pool, self._function, value, self._max_seconds)
        try:
            return _result(future, self._max_seconds, self._max_memory_gb)
        except BrokenProcessPool as error:
            raise _broken(error, str(value)) from error
        finally:
            future.cancel()  # where an interrupt ended the wait

    def close(self) -> None:
        """End the children; a later call starts new ones."""
        self._end()


def run_on_cluster(
    function: Callable[[Input], Any],
    inputs: Iterable[Input],
    address: str,
    max_seconds: float,
    max_memory_gb: float,
    alike: Callable[[], Mapping[str, str]] = dict,
) -> Iterator[tuple[Input, Any | Died]]:
    """The same on the workers of a Dask scheduler at `address` (tcp://host:8786), which see the
    same files under the same paths. Each keeps children of its own; work of a worker that is lost
    is done again by another. `alike()` must give the same there as here.

    Errors: DfdetectError with ExitCode.ENVIRONMENT without dask.distributed or a scheduler, or
    where a worker is not alike.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise DfdetectError(
            "--cluster needs dask.distributed", "pip install 'dfdetect[cluster]'",
            ExitCode.ENVIRONMENT,
        ) from error  # fmt: skip
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise DfdetectError(
            f"{address}: no Dask scheduler answers ({error or type(error).__name__})",
            "start one with `dask scheduler`, and workers with `dask worker ADDRESS`",
            ExitCode.ENVIRONMENT,
        ) from error
    run = uuid.uuid4().hex
    with client:
        _refuse_unlike(client.run(alike), alike())
        waiting = iter(inputs)

        def start(value: Input) -> Future:
            future = client.submit(
                _run_in_child, run, function, value, max_seconds, max_memory_gb, pure=False
            )
            values[future.key] = value
            return future

        values: dict[str, Input] = {}
        room = max(8, 3 * sum(client.ncores().values()))
        first = [start(value) for value in islice(waiting, room)]
        running = as_completed(first, loop=client.loop)
        try:
            for future in running:
                value = values.pop(future.key)
                try:
                    result = future.result()
                except KilledWorker:
                    result = Died("several workers of the cluster died on it", _HINT)
                if (following := next(waiting, None)) is not None:
                    running.add(start(following))
                yield value, result
        finally:
            with suppress(Exception):  # a cluster that is gone has ended its children
                client.cancel(first + [future for future in running.futures])
                client.run(_end_children, run)


def warm_up(function: Callable) -> None:
    """Have the server of children for `function` import while this process does other things."""
    with _starting, suppress(OSError):  # an error comes again with the first input
        _spawn_server(function)


# --- in this process -------------------------------------------------------------------------

_HINT = "the file may be made to break decoders; leave it out, or look at it in a sandbox"


def available_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: by its affinity, and by its container's quota."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):  # cgroup v2: "QUOTA PERIOD" in us; v1
        quota = cgroups / name
        try:
            used, *period = quota.read_text().split()
            period = period or [quota.with_name("cpu.cfs_period_us").read_text()]
        except OSError:
            continue
        if used not in ("max", "-1"):
            n = min(n, max(1, math.ceil(int(used) / int(period[0]))))
    return n


def _start_pool(function: Callable, workers: int, max_memory_gb: float) -> Any:
    from pebble import ProcessPool

    with _starting:
        _start_server(function)
    return ProcessPool(
        workers,
        initializer=_prepare_child,
        initargs=(function.__module__, max_memory_gb),
        context=_CONTEXT,
    )


def _schedule(pool: Any, function: Callable, value: Any, max_seconds: float) -> Future:
    return pool.schedule(_run, args=(function, value, max_seconds), timeout=max_seconds)


def _stop(pool: Any) -> None:
    pool.stop()
    pool.join()


def _broken(error: Exception, names: str) -> DfdetectError:
    return DfdetectError(
        f"worker processes cannot be kept running ({error}), last at {names}",
        "see whether memory or the number of processes is limited; finished work is kept",
        ExitCode.ENVIRONMENT,
    )


class _Popen(popen_forkserver.Popen):
    """Starts a child that does not import the main module again, as multiprocessing has it do for
    the sake of functions defined there: a script that scans a file outside of
    `if __name__ == "__main__"` would scan it again in every child."""

    @staticmethod
    def _without_main(name: str) -> dict[str, Any]:
        told = spawn.get_preparation_data(name)
        return {key: value for key, value in told.items() if not key.startswith("init_main")}

    _launch = FunctionType(
        popen_forkserver.Popen._launch.__code__,
        vars(popen_forkserver) | {"spawn": SimpleNamespace(get_preparation_data=_without_main)},
    )


class _Process(context.ForkServerProcess):
    @staticmethod
    def _Popen(process: Any) -> _Popen:
        return _Popen(process)


class _Context(context.ForkServerContext):  # a forked torch may hang, and is large
    Process = _Process


_CONTEXT = _Context()
_starting = threading.Lock()


def _start_server(function: Callable) -> None:
    """Start the server and wait until it has imported, so that a signal in these seconds finds
    nothing half made."""
    first = _CONTEXT.Process(target=int, daemon=True)
    try:
        _spawn_server(function)
        first.start()
        first.join()
    except (OSError, EOFError) as error:
        raise DfdetectError(
            f"worker processes cannot be started ({error or 'the first ended'})",
            "see whether memory, processes or open files are limited; TMPDIR needs a short name",
            ExitCode.ENVIRONMENT,
        ) from error


def _spawn_server(function: Callable) -> None:
    """Ctrl-C reaches the whole group of processes; the server and its children must not answer it:
    what is blocked stays blocked in whatever is started."""
    _CONTEXT.set_forkserver_preload([function.__module__])
    resource_tracker.ensure_running()  # which unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(future: Future, max_seconds: float, max_memory_gb: float) -> Any | Died:
    from pebble import ProcessExpired

    try:
        return future.result()
    except TimeoutError:
        return Died(f"gave up after {max_seconds:g} s", "allow more with --max-seconds")
    except ProcessExpired as error:
        code = error.exitcode or 0
        with suppress(ValueError):
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Died(f"the decoder crashed ({name})", _HINT)
        return Died(f"the decoder crashed (signal {-code})", _HINT)
    except MemoryError:
        return Died(f"needs more than {max_memory_gb:g} GB of memory", "allow more: --max-memory")


# --- in a child ------------------------------------------------------------------------------

_PR_SET_PDEATHSIG, _M_MMAP_THRESHOLD = 1, -3
"""Of <sys/prctl.h> and <malloc.h>."""


def _prepare_child(module: str, max_memory_gb: float) -> None:
    import_module(module)  # if the server was started for another one
    gc.freeze()  # what is imported stays, so collecting what an input left behind is quick
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    with suppress(OSError, AttributeError):  # glibc on Linux
        libc = ctypes.CDLL("libc.so.6")
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # die with the server, however it dies
        libc.mallopt(_M_MMAP_THRESHOLD, 256 << 10)  # frames go back to the system when freed
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # What the process has already, libraries for the most part, is not the input's.
        limit = _data_bytes() + int(max_memory_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _data_bytes() -> int:
    """Private memory of this process, as the kernel counts it for RLIMIT_DATA."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024


def _run(function: Callable[[Input], Any], value: Input, max_seconds: float) -> Any:
    limit_cpu(max_seconds * (os.cpu_count() or 1))
    try:
        return function(value)
    finally:
        _return_memory()


def limit_cpu(seconds: float) -> None:
    """The kernel ends this process after so much more work, also where nobody watches the clock."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 1, hard))


def _return_memory() -> None:
    """Give freed memory back to the system: two 1080p encoders hold 1 GB, and glibc would keep it
    in pieces for the life of the worker."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library: nothing to do
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# --- on a worker of a cluster ----------------------------------------------------------------

_pools: dict[str, Any] = {}  # by run
_pools_lock = threading.Lock()


def _run_in_child(
    run: str,
    function: Callable[[Input], Any],
    value: Input,
    max_seconds: float,
    max_memory_gb: float,
) -> Any | Died:
    """A Dask task: `function(value)` in a child of this worker, which stays for the next task."""
    from distributed import get_worker

    with _pools_lock:
        if run not in _pools or not _pools[run].active:
            # Dask marks workers daemonic, which forbids children only so that none is left over;
            # ours die with their server, and that with this process.
            multiprocessing.current_process()._config["daemon"] = False
            _pools[run] = _start_pool(function, get_worker().state.nthreads, max_memory_gb)
        pool = _pools[run]
    future = _schedule(pool, function, value, max_seconds)
    return _result(future, max_seconds, max_memory_gb)


def _end_children(run: str) -> None:
    """The run is over: whatever is still in hand writes nothing any more."""
    with _pools_lock:
        if pool := _pools.pop(run, None):
            pool.stop()


def _refuse_unlike(workers: Mapping[str, Mapping[str, str]], here: Mapping[str, str]) -> None:
    for address, there in workers.items():
        for name in here:
            if there.get(name) != here[name]:
                raise DfdetectError(
                    f"worker {address} has {name} {there.get(name)}, here it is {here[name]}",
                    "install the same versions on all machines",
                    ExitCode.ENVIRONMENT,
                )
