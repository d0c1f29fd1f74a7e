"""prepare on a made-up source of 100,000 entries: does time grow linearly, and memory stay small?

    python tests/benchmarks/scale.py [--sizes 12500,25000,50000,100000] [--workers 2]

The entries are tiny files and decoding is replaced by a stand-in that writes a manifest part of one
row; listing, splits, child processes, parts, resuming and reporting are the real ones. Each size
runs in a process of its own, which prints seconds of: planning, half the work and an interruption,
resuming, planning once more with everything finished, the short audit; and its peak memory.

Then, from the seconds that one video takes in each stage (see prepare.py beside this), what
FaceForensics++ at three qualities costs on 1 and on 50 machines: --video-seconds.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dfdetect.prepare as verb
from dfdetect.audit import audit
from dfdetect.cutting import Done, PrepareRecipe, Task
from dfdetect.manifest import write_part
from dfdetect.prepare import Running

RECIPE = PrepareRecipe(("raw",), 1)
FFPP_VIDEOS = 1000 + 5 * 1000
"""Reals and five manipulations."""


def stand_in(task: Task) -> Done:
    """What prepare_video leaves behind, without the pixels."""
    video = task.video
    row = {
        "path": f"faces/raw/{video.video_id}.png", "sample_id": f"{video.video_id}/0/0",
        "video_id": video.video_id, "label": video.label, "dataset": video.dataset,
        "manipulation": video.manipulation, "identities": list(video.identities),
        "split": task.split, "quality": "raw", "frame_index": 0, "track_id": 0, "face_px": 100.0,
        "source": video.source, "source_bytes": video.path.stat().st_size, "source_sha256": "",
    }  # fmt: skip
    write_part(task.out, video.video_id, [row])
    return Done(None, {"raw": 1}, 1, {})


class Interrupted(Exception):
    pass


def simulate(n: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        for i in range(n):
            place = source / ("real" if i % 2 else f"fake/m{i % 8}") / str(i % 100)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.mp4").write_bytes(b"x")
        verb.prepare_video = stand_in
        seconds = {}

        def lap(stage: str) -> None:
            nonlocal started
            seconds[stage] = time.perf_counter() - started
            started = time.perf_counter()

        def stop_halfway(n_done: int, n_total: int, *_) -> None:
            if n_done == n_total // 2:
                raise Interrupted

        started = time.perf_counter()
        verb.plan(source, out, RECIPE)
        lap("plan")
        running = Running(workers=workers)
        try:
            verb.prepare(source, out, RECIPE, running=running, on_done=stop_halfway)
        except Interrupted:
            lap("half")
        summary = verb.prepare(source, out, RECIPE, running=running)
        lap("resume")
        assert sum(summary.videos.values()) + summary.n_skipped == n
        assert summary.n_skipped >= n // 2
        assert len(verb.plan(source, out, RECIPE).finished) == n
        lap("plan again")
        audit([out], look_at_crops=False)
        lap("audit")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        parts = "  ".join(f"{stage} {s:.1f} s" for stage, s in seconds.items())
        total = sum(seconds.values())
        print(f"{n:7d} entries: {parts}; {1e3 * total / n:.2f} ms an entry; peak {peak:.0f} MB")


def cost(video_seconds: float, cores: int) -> None:
    """What FaceForensics++ takes, if every core works on one video."""
    for machines in (1, 50):
        hours = FFPP_VIDEOS * video_seconds / (machines * cores) / 3600
        print(f"FaceForensics++, {FFPP_VIDEOS} videos on {machines} x {cores} cores: {hours:.1f} h")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="12500,25000,50000,100000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--video-seconds", type=float, help="core seconds of one FF++ video")
    parser.add_argument("--cores", type=int, default=16, help="of one machine")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        simulate(options.one, options.workers)
        return
    if options.video_seconds:
        cost(options.video_seconds, options.cores)
        return
    for size in options.sizes.split(","):
        command = [sys.executable, __file__, "--one", size, "--workers", str(options.workers)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
