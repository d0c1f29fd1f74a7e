"""A plan of faults, carried out by hand: rows of checks, each run some number of times.

tests/faults/prepare.py and tests/faults/train.py hold the plans; what their checks say about how a
run ended is here too.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from faults.processes import Ended, Skipped


class Check(NamedTuple):
    """`n` runs of a function of (place, number, rng); of those that are `drawn` at random, --scale
    runs fewer or more."""

    row: str
    function: Callable[[Any, int, random.Random], None]
    n: int
    drawn: bool = False


def clean(ended: Ended, *codes: int) -> None:
    """It ended with one of the codes, left no process, and printed no traceback."""
    assert ended.code in codes, f"exit {ended.code}, expected {codes}: {ended.err[-800:]}"
    assert not ended.left, f"{len(ended.left)} processes outlived it"
    assert "Traceback" not in ended.err and "a bug in" not in ended.err, ended.err[-1500:]
    assert "Exception ignored" not in ended.err, ended.err[-1500:]


def refused(ended: Ended, code: int, *words: str) -> None:
    """One line of error with all the words."""
    clean(ended, code)
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, f"{len(errors)} error lines: {ended.err[-800:]}"
    for word in words:
        assert word in errors[0], f"{word!r} is not in {errors[0]!r}"


def random_of(check: Check, number: int, seed: int) -> random.Random:
    return random.Random(f"{seed}/{check.function.__name__}/{number}")


def carry_out(
    description: str, plan: Sequence[Check], place_of: Callable[[Check, Path], Any]
) -> int:
    """The rows that the command line asks for, in places below a temporary folder; 1 if any failed.

    `place_of(check, folder)` gives the place that a check works in; paths that appear in its
    `folder` while a check runs are removed after it.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", default="", help="rows of the plan or functions, as P2,twins")
    parser.add_argument("--number", type=int, help="only this run of each check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the drawn runs")
    asked = parser.parse_args()
    only = set(filter(None, asked.only.split(",")))
    checks = [c for c in plan if not only or only & {c.row, c.function.__name__}]
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    rows: dict[str, Counter] = {}
    print(f"seed {asked.seed}", flush=True)
    try:
        for check in checks:
            place = place_of(check, folder)
            n = max(1, round(check.n * asked.scale)) if check.drawn else check.n
            numbers = [round(i * check.n / n) for i in range(n)]
            numbers = [asked.number] if asked.number is not None else numbers
            counts = _run_check(place, check, numbers, asked.seed)
            rows.setdefault(check.row, Counter()).update(counts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row, counts in rows.items():
        print(f"{row:4} {_in_words(counts)}")
    total = sum(rows.values(), Counter())
    print(f"all  {_in_words(total)}")
    return 1 if total["failed"] else 0


def _run_check(place: Any, check: Check, numbers: list[int], seed: int) -> Counter:
    failed: dict[int, str] = {}
    skipped: Counter[str] = Counter()
    keep, started = set(place.folder.iterdir()), time.monotonic()
    for number in numbers:
        try:
            check.function(place, number, random_of(check, number, seed))
        except Skipped as reason:
            skipped[str(reason)] += 1
        except (Exception, AssertionError) as error:
            failed[number] = f"{type(error).__name__}: {error}"
        for path in set(place.folder.iterdir()) - keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    n_skipped = skipped.total()
    counts = Counter(
        passed=len(numbers) - len(failed) - n_skipped, failed=len(failed), skipped=n_skipped
    )
    name = check.function.__name__.replace("_", " ")
    notes = "".join(f"; {n} skipped ({reason})" for reason, n in skipped.items())
    at = f" (numbers {sorted(failed)})" if failed else ""
    seconds = time.monotonic() - started
    print(f"{check.row:4} {name}: {_in_words(counts)}{at}{notes}; {seconds:.0f} s", flush=True)
    for number, message in failed.items():
        print(f"     {number}: {message[:1500]}", flush=True)
    return counts


def _in_words(counts: Counter) -> str:
    passed = f"{counts['passed']} passed, {counts['failed']} failed"
    return passed + (f", {counts['skipped']} skipped" if counts["skipped"] else "")
