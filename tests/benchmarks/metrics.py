"""What eval's figures and their intervals cost, away from the network.

    python tests/benchmarks/metrics.py [--rows 1000000] [--rounds 1000] [--naive-rounds 3]

Predictions are made up: videos of 32 crops at three qualities, a fifth of them real, the others of
four manipulations. Measured as `dfdetect eval` does, by frame, track and video: seconds, memory at
its highest, and how many times faster a round is than a loop that draws videos, repeats their rows
and calls scikit-learn for AUC, EER's curve and average precision, frame level at one quality and
pooled, all manipulations apart.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from dfdetect.cells import find, measure
from dfdetect.predictions import Columns, Predictions, read_predictions, write_predictions
from dfdetect.results import sigmoid

QUALITIES = ("raw", "c23", "c40")
KINDS = ("real", "DF", "F2F", "FS", "NT")
N_FRAMES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--naive-rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "predictions.parquet")
        write_predictions(path, made_up(options.rows))
        clock = time.monotonic()
        folders = read_predictions(path).folders()
    read_s = time.monotonic() - clock
    clock, worked = time.monotonic(), time.process_time()
    cells = measure(folders, "test", 0.5, rounds=options.rounds)
    whole_s, worked_s = time.monotonic() - clock, time.process_time() - worked
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    n = len(folders["made up"].label)
    print(f"{n:,} predictions, {options.rounds} rounds, {len(cells)} cells")
    print(f"read {read_s:.1f} s, measured {whole_s:.1f} s ({worked_s:.1f} s of all cores), at most "
          f"{peak_gb:.2f} GiB resident")  # fmt: skip
    clock = time.monotonic()
    find(folders, 0.5, rounds=options.rounds, levels=["frame"])
    ours = (time.monotonic() - clock) / (1 + options.rounds)
    clock = time.monotonic()
    for seed in range(options.naive_rounds):
        naive_round(folders["made up"], seed)
    theirs = (time.monotonic() - clock) / options.naive_rounds
    print(f"a round by frame: {1000 * ours:.1f} ms, naively {1000 * theirs:.0f} ms, "
          f"{theirs / ours:.0f} times as long")  # fmt: skip


def made_up(n: int) -> Predictions:
    rng = np.random.default_rng(0)
    n_videos = max(20, n // (N_FRAMES * len(QUALITIES)))
    quality, video, frame = np.meshgrid(
        np.arange(len(QUALITIES)), np.arange(n_videos), np.arange(N_FRAMES), indexing="ij"
    )
    quality, video, frame = quality.ravel(), video.ravel(), frame.ravel()
    kind = video % len(KINDS)
    mood = rng.normal(size=n_videos)[video]
    logit = mood + rng.normal((kind > 0) * (2 - 0.5 * quality))
    names = [f"video {i}" for i in range(n_videos)]
    columns = {
        "data": pa.array(["made up"] * len(video)),
        "sample_id": pa.array([f"{names[v]}/{f}/0" for v, f in zip(video, frame, strict=True)]),
        "video_id": pa.array(names).take(pa.array(video)),
        "track_id": video * 0,
        "dataset": pa.array(["made up"] * len(video)),
        "manipulation": pa.array(KINDS).take(pa.array(kind)),
        "quality": pa.array(QUALITIES).take(pa.array(quality)),
        "split": pa.array(["test"] * len(video)),
        "label": (kind > 0).astype(int),
        "logit": logit,
        "score": sigmoid(logit),
    }
    return Predictions({}, pa.table(columns))


def naive_round(columns: Columns, seed: int) -> None:
    """What many scripts do: rows of drawn videos, and scikit-learn."""
    rng = np.random.default_rng(seed)
    rows_of = np.split(np.argsort(columns.video.codes, kind="stable"),
                       np.cumsum(np.bincount(columns.video.codes))[:-1])  # fmt: skip
    drawn = np.concatenate([rows_of[v] for v in rng.integers(len(rows_of), size=len(rows_of))])
    for quality in (*QUALITIES, None):
        at = drawn if quality is None else drawn[columns.quality.is_(quality)[drawn]]
        for kind in (*KINDS[1:], None):
            fakes = np.ones(len(at), bool) if kind is None else columns.manipulation.is_(kind)[at]
            some = at[fakes | (columns.label[at] == 0)]
            label, logit = columns.label[some], columns.logit[some]
            roc_auc_score(label, logit)
            roc_curve(label, logit)
            average_precision_score(label, logit)


if __name__ == "__main__":
    main()
