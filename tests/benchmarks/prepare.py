"""What prepare costs for one video, beside the two encodes that it cannot do without.

    python tests/benchmarks/prepare.py [VIDEO ...] [--rounds 3]

Baselines, in turns with prepare: both H.264 encodes of frames decoded before, side by side in two
threads (the floor of raw,c23,c40); decoding with one thread (of raw alone). Also the peak memory
of the worker, and seconds by stage. VIDEO: by default a 1080p and a 480p clip of DFDETECT_MEDIA
(default: ../shared/media beside the checkout).
"""

import argparse
import csv
import os
import resource
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import av

from dfdetect.cutting import PrepareRecipe, Task, prepare_video
from dfdetect.manifest import SourceVideo
from dfdetect.video import H264Loop, Limits, open_media
from dfdetect.workers import run_all

MEDIA = Path(os.environ.get("DFDETECT_MEDIA", Path(__file__).parents[3] / "shared" / "media"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for path in options.videos or default_videos():
        with open_media(path) as media:
            size = f"{media.info.width}x{media.info.height}"
            print(f"{path.name}: {size}, {media.count_frames()} frames")
        rounds = [one_round(path) for _ in range(options.rounds)]
        for name, over in (("raw,c23,c40", "encodes side by side"), ("raw", "decode")):
            ratios = [r[name] / r[over] for r in rounds]
            print(
                f"  prepare {name}: {statistics.median(ratios):.2f} times the {over} "
                f"(median of {len(rounds)}; {min(r[name] for r in rounds):.1f} s and "
                f"{min(r[over] for r in rounds):.1f} s at best)"
            )
        both = statistics.median(r["raw,c23,c40"] / r["encodes in turn"] for r in rounds)
        print(f"  prepare raw,c23,c40: {both:.2f} times the encodes in turn")
        (_, peak), *_ = run_all(peak_mb, [task(path, ("raw", "c23", "c40"))], 1, 3600, 32)
        print(f"  peak memory of the worker: {peak:.0f} MB")


def one_round(path: Path) -> dict[str, float]:
    """Seconds of each way."""
    spent = {"decode": timed(lambda: decode(path))} | encodes(path)
    for qualities in (("raw", "c23", "c40"), ("raw",)):
        work = task(path, qualities)
        spent[",".join(qualities)] = timed(lambda work=work: prepare_video(work))
    return spent


def encodes(path: Path) -> dict[str, float]:
    with open_media(path) as media:
        pictures, info = [p.for_h264() for p in media.pictures()], media.info
    encoders = [partial(encode, pictures, info, crf) for crf in (23, 40)]
    return {
        "encodes side by side": timed(lambda: side_by_side(encoders)),
        "encodes in turn": timed(lambda: [encoder() for encoder in encoders]),
    }


def task(path: Path, qualities: tuple[str, ...]) -> Task:
    video = SourceVideo(path, f"benchmark/{path.stem}", 0, "benchmark", "real", (path.stem,))
    out = Path(tempfile.mkdtemp(prefix="dfdetect-"))
    return Task(video, "train", out, PrepareRecipe(qualities), Limits())


def decode(path: Path) -> None:
    with open_media(path) as media:
        for _ in media.pictures():
            pass


def encode(pictures: list, info, crf: int) -> None:
    """The encoder of H264Loop alone, without decoding what it gives."""
    loop = H264Loop(crf, info.frame_rate)
    loop._decoder = type("Nothing", (), {"decode": staticmethod(lambda packet: [])})()
    for picture in pictures:
        loop.push(picture)
    loop.flush()


def side_by_side(calls: list) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def timed(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_mb(work: Task) -> float:
    prepare_video(work)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def default_videos() -> list[Path]:
    with (MEDIA / "INDEX.csv").open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["kind"] == "video" and r["part"] == "main"]
    rows.sort(key=lambda r: abs(int(r["frames"] or 0) - 300))
    sizes = {min(int(r["width"]), int(r["height"])): MEDIA / r["path"] for r in reversed(rows)}
    return [sizes[side] for side in (1080, 480) if side in sizes]


if __name__ == "__main__":
    print(f"PyAV {av.__version__}, {os.cpu_count()} cores")
    main()
