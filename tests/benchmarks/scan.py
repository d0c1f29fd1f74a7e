"""What a scan costs beside the decoding and the scoring that it cannot do without, and beside a
naive script.

    python tests/benchmarks/scan.py [--clips A.mp4 B.mp4] [--model RUN] [--rounds 3] [--no-naive]

Four ways over the same file, in turn, in one process, on one core, imports and loading excluded:

    decode   every frame is decoded, and 32 are converted to RGB
    score    32 crops through the network
    scan     ours: decode, find and follow faces, cut, score
    naive    OpenCV reads every frame, stock MTCNN looks at 32 at full resolution, the network
             scores them one by one in PyTorch; all frames are in memory, so not for long clips

Printed are medians of the ratios within a round. Without --clips two are made of the portrait, of
300 frames at 1080p and 480p; without --model an untrained EfficientNet-B1 is exported and used.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN
from start import untrained

from dfdetect.checkpoint import load_checkpoint
from dfdetect.engine import load_engine
from dfdetect.examining import examine
from dfdetect.faces import align, to_input
from dfdetect.scoring import FaceScorer
from dfdetect.shipped import read_portrait
from dfdetect.video import open_media, sample_indices, write_video

FRAMES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, nargs="+", default=[])
    parser.add_argument("--model", type=Path, help="a run folder that `dfdetect export` has seen")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-naive", action="store_true")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or untrained(Path(folder))
        clips = options.clips or [
            written(Path(folder, f"{height}p.mp4"), width, height)
            for width, height in ((1920, 1080), (854, 480))
        ]
        for clip in clips:
            compare(clip, model, options.rounds, not options.no_naive)


def compare(clip: Path, model: Path, n_rounds: int, with_naive: bool) -> None:
    scorer = FaceScorer(load_engine(model, "onnx"), FRAMES)
    checkpoint = load_checkpoint(model, "cpu")
    stock = MTCNN(keep_all=True)
    crops = [np.zeros((scorer.checkpoint.image_size,) * 2 + (3,), np.uint8)] * FRAMES

    def scan() -> None:
        look = scorer.look(clip)
        scorer.score(look, examine(look))

    ways: dict[str, Callable[[], object]] = {
        "decode": lambda: decode(clip),
        "score": lambda: scorer.checkpoint.logits(crops),
        "scan": scan,
    }
    if with_naive:
        ways["naive"] = lambda: naive(clip, stock, checkpoint)
    scan()  # loads the face networks
    rounds = [{name: seconds(way) for name, way in ways.items()} for _ in range(n_rounds)]
    for name in ways:
        print(f"{clip.name}: {name} {statistics.median(r[name] for r in rounds):.2f} s")
    ratios = {
        "scan / decode": [r["scan"] / r["decode"] for r in rounds],
        "scan / (decode + score)": [r["scan"] / (r["decode"] + r["score"]) for r in rounds],
    }
    if with_naive:
        ratios["naive / scan"] = [r["naive"] / r["scan"] for r in rounds]
    for name, values in ratios.items():
        print(f"{clip.name}: {name} {statistics.median(values):.2f}")


def seconds(way: Callable[[], object]) -> float:
    """Of the processor, which waits for nobody here: a busy machine counts less."""
    began = time.process_time()
    way()
    return time.process_time() - began


def decode(clip: Path) -> list[np.ndarray]:
    with open_media(clip) as media:
        wanted = set(sample_indices(media.count_frames(), FRAMES))
        return [picture.rgb() for picture in media.pictures() if picture.index in wanted]


def naive(clip: Path, stock: MTCNN, checkpoint) -> list[float]:
    video, images = cv2.VideoCapture(str(clip)), []
    while True:
        found, image = video.read()
        if not found:
            break
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    logits = []
    for index in sample_indices(len(images), FRAMES):
        _, _, landmarks = stock.detect(images[index], landmarks=True)
        if landmarks is None:
            continue
        points = np.asarray(landmarks[0], np.float64)
        crop = to_input(align(images[index], points, checkpoint.info.crop), checkpoint.image_size)
        pixels = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
        logits.append(checkpoint.detector(pixels).item())
    return logits


def written(path: Path, width: int, height: int) -> Path:
    """300 frames of the portrait, two fifths of the picture high, before a textured wall."""
    rng = np.random.default_rng(0)
    wall = rng.integers(60, 160, (height // 4, width // 4, 3), dtype=np.uint8)
    wall = cv2.GaussianBlur(cv2.resize(wall, (width, height)), (0, 0), 2)
    portrait = read_portrait()
    side = int(0.8 * height)
    portrait = cv2.resize(portrait, (side * portrait.shape[1] // portrait.shape[0], side))
    frames = Frames(wall, portrait)
    path.write_bytes(write_video(frames, 30, crf=23))
    return path


class Frames:
    """Frames made when they are asked for: 300 at 1080p are two gigabytes."""

    def __init__(self, wall: np.ndarray, portrait: np.ndarray) -> None:
        self._wall, self._portrait = wall, portrait

    def __getitem__(self, i: int) -> np.ndarray:
        if i >= 300:
            raise IndexError
        frame = np.roll(self._wall, i // 2, 1)
        height, width = self._portrait.shape[:2]
        left = (frame.shape[1] - width) // 2 + round(0.1 * width * np.sin(i / 40))
        top = (frame.shape[0] - height) // 2 + round(0.05 * height * np.cos(i / 30))
        frame[top : top + height, left : left + width] = self._portrait
        return frame


if __name__ == "__main__":
    sys.exit(main())
