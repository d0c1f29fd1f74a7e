"""How soon a scan begins: from the command to the first frame looked at, ONNX against PyTorch.

    python tests/benchmarks/start.py [--model RUN] [--rounds 5]

Each round runs both in turn, as whole processes, so that a busy machine slows them alike. Printed
are seconds of the clock and of the processor until the model is loaded, and until the verdict on a
clip of a few frames is out; how many modules were imported, and which large ones. Without --model
an untrained EfficientNet-B1 is exported and used.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

LARGE = ("torch", "torchvision", "timm", "onnxruntime", "scipy", "sklearn", "pyarrow", "cv2", "av")
# A scan that notes when the model is loaded; what the child processes use counts as well.
PROGRAM = """
import os, sys, time, json, atexit
began = float(sys.argv.pop(1))
times = {}
def note(name):
    times[name] = [time.time() - began, sum(os.times()[:4])]
def tell():
    note("verdict")
    print(json.dumps({"times": times, "modules": sorted(sys.modules)}), file=sys.stderr)
atexit.register(tell)
from dfdetect.cli import app
import dfdetect.scoring as scoring
load = scoring.load_engine
def noting(*arguments):
    model = load(*arguments)
    note("loaded")
    return model
scoring.load_engine = noting
app(sys.argv[1:])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a run folder that `dfdetect export` has seen")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or untrained(Path(folder))
        clip = Path(folder, "clip.mp4")
        clip.write_bytes(short_clip())
        rounds = [
            {engine: measured(engine, model, clip) for engine in ("onnx", "torch")}
            for _ in range(options.rounds + 1)
        ][1:]  # the first warms the page cache
    for engine in ("onnx", "torch"):
        told = [r[engine] for r in rounds]
        for step in ("loaded", "verdict"):
            clock, cpu = (statistics.median(t["times"][step][k] for t in told) for k in (0, 1))
            print(f"{engine}: {step} after {clock:.2f} s, {cpu:.2f} s of processor")
        modules = told[0]["modules"]
        large = ", ".join(name for name in LARGE if name in modules)
        print(f"{engine}: {len(modules)} modules imported, of the large ones {large}")
    for step in ("loaded", "verdict"):
        ratio = [r["torch"]["times"][step][0] / r["onnx"]["times"][step][0] for r in rounds]
        print(f"{step}: PyTorch takes {statistics.median(ratio):.1f} times as long")


def measured(engine: str, model: Path, clip: Path) -> dict:
    arguments = ["scan", str(clip), "--model", str(model), "--engine", engine, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr(time.time()), *arguments],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stderr.splitlines()[-1])


def short_clip() -> bytes:
    from conftest import clip

    from dfdetect.video import write_video

    return write_video(clip(0, n_frames=6), 12)


def untrained(folder: Path) -> Path:
    from test_export import write_checkpoint

    from dfdetect.onnx_export import export_onnx

    run = write_checkpoint(folder / "run", side=240, backbone="efficientnet_b1")
    export_onnx(run)
    return run


if __name__ == "__main__":
    main()
