"""Finding faces: our cascade against stock facenet-pytorch, on the same frames, with one thread.

    python tests/benchmarks/faces.py [--clips 3] [--frames 16] [--accuracy-clips 20]

Baseline: `MTCNN(keep_all=True).detect`. Prints speed as ratios (larger is faster), recall of the
baseline's faces, and how far landmarks lie apart, in px, when both sides are refined. Clips come
from DFDETECT_MEDIA (default: ../shared/media beside the checkout), which has an INDEX.csv.
"""

import argparse
import csv
import os
import random
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN

from dfdetect.faces import CropRecipe, FaceFinder
from dfdetect.mtcnn import Cascade, Detections
from dfdetect.video import open_media, sample

MEDIA = Path(
    os.environ.get("DFDETECT_MEDIA", Path(__file__).parents[3] / "shared" / "media")
)  # fmt: skip
SURE, LARGE_PX = 0.95, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=3, help="per size, for speed")
    parser.add_argument("--frames", type=int, default=16, help="per clip, for speed")
    parser.add_argument("--accuracy-clips", type=int, default=20, help="real videos, 6 frames each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with (MEDIA / "INDEX.csv").open(newline="", encoding="utf-8") as file:
        videos = [r for r in csv.DictReader(file) if r["kind"] == "video" and r["part"] == "main"]
    random.Random(0).shuffle(videos)
    stock = MTCNN(keep_all=True)
    for name, low, high in (("1080p", 1080, 1080), ("480p", 400, 520)):
        fitting = [v for v in videos if low <= min(int(v["width"]), int(v["height"])) <= high]
        speed(name, fitting[: options.clips], options.frames, stock)
    real = [v for v in videos if v["label"] == "real"]
    accuracy(real[: options.accuracy_clips], stock)


def speed(name: str, videos: list[dict], n_frames: int, stock: MTCNN) -> None:
    """Median over clips of the ratio of seconds spent on the same frames, in turns."""
    ratios, stock_ms = defaultdict(list), []
    for video in videos:
        images = frames_of(video, n_frames)
        ways = {"stock": lambda image: stock.detect(image, landmarks=True)}
        for engine, device in (("PyTorch", "cpu"), ("ONNX Runtime", "onnx")):
            finder = FaceFinder(CropRecipe(), device)
            ways |= {f"{engine}, every frame": finder, f"{engine}, tracked": finder.follower()}
        spent = dict.fromkeys(ways, 0.0)
        for number, image in enumerate([images[0], *images]):  # the first time warms up
            for way, call in ways.items():
                started = time.perf_counter()
                call(image)
                spent[way] += (time.perf_counter() - started) * (number > 0)
        for way in list(ways)[1:]:
            ratios[way].append(spent["stock"] / spent[way])
        stock_ms.append(1000 * spent["stock"] / len(images))
    print(f"{name}: stock {np.median(stock_ms):.0f} ms a frame, {len(videos)} clips x {n_frames}")
    for way, of_clips in ratios.items():
        print(f"{name}: {way}: {np.median(of_clips):.1f}x, worst clip {min(of_clips):.1f}x")


def accuracy(videos: list[dict], stock: MTCNN) -> None:
    """Recall of stock's faces, and distances of landmarks in px over all five points."""
    recipe, cascade = CropRecipe(), Cascade()
    finder = FaceFinder(recipe)
    n_faces, n_main = 0, 0
    found = {"every frame": 0, "tracked": 0}
    main_found = dict.fromkeys(found, 0)
    apart: dict[str, list] = defaultdict(list)
    for video in videos:
        follow = finder.follower()
        for image in frames_of(video, 6):
            reference = stock_faces(stock, image)
            ours = {"every frame": finder(image), "tracked": follow(image)}
            refined = cascade.refine(image, reference)
            widths = reference.boxes[:, 2] - reference.boxes[:, 0]
            for i, marks in enumerate(refined.landmarks):
                n_faces += 1
                n_main += widths[i] == widths.max()
                for way, faces in ours.items():
                    nearest = closest(marks, [face.landmarks for face in faces])
                    if nearest is not None:
                        found[way] += 1
                        main_found[way] += widths[i] == widths.max()
                        pair = "ours" if way == "every frame" else way
                        apart[f"stock refined, {pair}"] += distances(marks, nearest)
            moved = np.ascontiguousarray(image[1:, 1:])
            again = stock_faces(stock, moved)
            again_ours = finder(moved)
            for marks in reference.landmarks:
                nearest = closest(marks - 1, again.landmarks)
                if nearest is not None:
                    apart["stock, shifted 1 px"] += distances(marks - 1, nearest)
            for face in ours["every frame"]:
                nearest = closest(face.landmarks - 1, [f.landmarks for f in again_ours])
                if nearest is not None and face.width_px >= LARGE_PX:
                    apart["ours, shifted 1 px"] += distances(face.landmarks - 1, nearest)
    for way in found:
        print(
            f"recall of faces of {LARGE_PX} px and more, {way}: {found[way]}/{n_faces}; "
            f"largest face of a frame: {main_found[way]}/{n_main}"
        )
    for name, px in apart.items():
        print(
            f"landmarks, {name}: median {np.median(px):.2f}, 90th percentile "
            f"{np.quantile(px, 0.9):.2f} px (n {len(px)})"
        )


def frames_of(video: dict, n: int) -> list[np.ndarray]:
    with open_media(MEDIA / video["path"]) as media:
        return sample(media, n, lambda pictures: [picture.rgb() for picture in pictures])


def stock_faces(stock: MTCNN, image: np.ndarray) -> Detections:
    """Faces of stock that are sure and large."""
    boxes, confidences, marks = stock.detect(image, landmarks=True)
    if boxes is None:
        return Detections(np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))
    boxes, marks = np.asarray(boxes, float), np.asarray(marks, float)
    confidences = np.asarray(confidences, float)
    kept = (confidences > SURE) & (boxes[:, 2] - boxes[:, 0] >= LARGE_PX)
    return Detections(boxes[kept], marks[kept], confidences[kept])


def closest(marks: np.ndarray, others) -> np.ndarray | None:
    """The landmarks [5,2] nearest on average, if within half the width of the face."""
    spread = np.ptp(marks[:, 0]) + np.ptp(marks[:, 1])
    best = min(others, key=lambda o: np.mean(distances(marks, o)), default=None)
    return None if best is None or np.mean(distances(marks, best)) > spread / 4 else best


def distances(marks: np.ndarray, other: np.ndarray) -> list[float]:
    return np.linalg.norm(marks - other, axis=1).tolist()


if __name__ == "__main__":
    main()
