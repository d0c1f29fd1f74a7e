"""demo: a handful of clips from the portrait that ships with the package, and the commands to run.

Real clips move a virtual camera over the photo; fakes do the same over a photo whose face was
altered first. It shows the pipeline, not accuracy: there is one person, and the fakes are ours.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from dfdetect.errors import DfdetectError
from dfdetect.faces import CropRecipe, FaceFinder
from dfdetect.files import write_whole
from dfdetect.forgeries import SHELF
from dfdetect.shipped import read_portrait
from dfdetect.video import write_video

CLIPS_PER_SPLIT = {"train": 8, "val": 10, "test": 4}
N_FRAMES, FRAME_RATE, CLIP_PX = 24, 12, 256
FORGERIES = ("self-blend", "local-warp")
"""Those that need nothing but the portrait, and can be seen in it."""


def make_clips(out: Path, seed: int = 0) -> Path:
    """Write real and fake clips and the table that labels them; returns the table's path."""
    portrait = read_portrait()
    faces = FaceFinder(CropRecipe())(portrait)
    if not faces:
        raise DfdetectError(
            "no face was found in the portrait that ships with dfdetect", "reinstall it"
        )
    rows = []
    for kind in ("real", *FORGERIES):
        number = 0
        for split, n_clips in CLIPS_PER_SPLIT.items():
            for _ in range(n_clips):
                rng = np.random.default_rng([seed, len(rows)])
                photo = portrait
                if kind != "real":
                    photo = SHELF[kind](portrait, faces[0].landmarks, rng).image
                name = f"{kind}/{number:02d}.mp4"
                write_whole(out / name, write_video(list(camera(photo, rng)), FRAME_RATE))
                label = "real" if kind == "real" else "fake"
                rows.append((name, label, kind, "collins", split))
                number += 1
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "manipulation", "identity", "split"))
    writer.writerows(rows)
    write_whole(out / "clips.csv", text.getvalue())
    return out / "clips.csv"


def camera(photo: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A slow pan, zoom and turn over the photo with a little sensor noise: uint8 [P,P,3] frames."""
    height, width = photo.shape[:2]
    start, end = (
        {
            "zoom": rng.uniform(1.15, 1.5),
            "turn": rng.uniform(-6, 6),
            "shift": rng.uniform(-14, 14, 2),
        }
        for _ in range(2)
    )
    for i in range(N_FRAMES):
        t = i / (N_FRAMES - 1)
        zoom, turn = ((1 - t) * start[k] + t * end[k] for k in ("zoom", "turn"))
        shift = (1 - t) * start["shift"] + t * end["shift"]
        matrix = cv2.getRotationMatrix2D((width / 2, height * 0.3), turn, zoom)
        matrix[:, 2] += np.array([CLIP_PX / 2 - width / 2, CLIP_PX / 2 - height * 0.3]) + shift
        frame = cv2.warpAffine(
            photo, matrix, (CLIP_PX, CLIP_PX), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
        )
        noisy = frame + rng.normal(0, 1.5, frame.shape)
        yield np.clip(noisy, 0, 255).round().astype(np.uint8)


def commands(out: Path) -> list[list[str]]:
    """The four verbs on the clips, as a user would type them after `dfdetect`; and scan once more,
    by the starter detector."""
    data, run = str(out / "data"), str(out / "run")
    clips = [str(out / "clips" / kind / "21.mp4") for kind in ("real", *FORGERIES)]
    return [
        ["prepare", str(out / "clips" / "clips.csv"), "--out", data, "--frames", "8",
         "--allow-identity-overlap", "--workers", "1"],
        ["train", "--preset", "qad-tiny", "--data", data, "--out", run, "--device", "cpu"],
        ["eval", run, "--data", data, "--out", str(out / "eval"), "--device", "cpu"],
        ["scan", *clips, "--model", run, "--device", "cpu"],
        ["scan", *clips],
    ]  # fmt: skip
