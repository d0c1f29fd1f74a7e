"""How long `dfdetect --help` takes beside Python importing Typer and Rich alone.

    python tests/benchmarks/help.py

Both are whole processes, run in turn, so that a busy machine slows them alike.
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "typer and rich": [sys.executable, "-c", "import typer, rich.console, rich.panel, rich.table"],
    "dfdetect --help": [sys.executable, "-m", "dfdetect", "--help"],
}
ROUNDS = 9


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    rounds = [{name: seconds(c) for name, c in COMMANDS.items()} for _ in range(ROUNDS)]
    for name in COMMANDS:
        print(f"{name}: median {statistics.median(r[name] for r in rounds):.3f} s of {ROUNDS}")
    ratios = [r["dfdetect --help"] / r["typer and rich"] for r in rounds]
    print(f"ratio: median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
