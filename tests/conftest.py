"""What tests share: seeds, a clip with a real face, prepared data and a trained tiny detector.

Folders beside a checkout hold golden numbers, real media and hostile files. Their places come from
DFDETECT_GOLDEN, DFDETECT_MEDIA and DFDETECT_BADMEDIA; a test whose folder is absent says so.
"""

import os
import random
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dfdetect.cli import app
from dfdetect.demo import camera, read_portrait
from dfdetect.files import write_whole
from dfdetect.forgeries import SHELF as FORGERIES
from dfdetect.prepare import PrepareRecipe, prepare
from dfdetect.presets import load_preset
from dfdetect.train import train
from dfdetect.video import write_video

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
# Eyes, nose and mouth corners of the shipped portrait, read off by eye, to some 3 px.
PORTRAIT_LANDMARKS = np.array([[204.0, 101], [247, 104], [225, 129], [203, 141], [245, 143]])


def beside(variable: str, default: Path) -> Path:
    """A file or folder that a checkout may have beside it; skips the test if it does not."""
    path = Path(os.environ.get(variable, default))
    if not path.exists():
        pytest.skip(f"{path} is absent; set {variable} to run this")
    return path


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_heard():
    """A shell that starts us in the background has Ctrl-C ignored, and so would all we start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # steady on a busy machine
    cv2.setNumThreads(1)


@pytest.fixture
def cli():
    """Run a command line: `cli("scan", path)` -> result with exit_code, stdout and stderr."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(a) for a in arguments])


def clip(seed: int, n_frames: int = 12, forgery: str | None = None) -> list[np.ndarray]:
    """Frames uint8 [256,256,3] of the portrait under a moving camera, forged first if asked."""
    rng = np.random.default_rng(seed)
    photo = read_portrait()
    if forgery:
        photo = FORGERIES[forgery](photo, PORTRAIT_LANDMARKS, rng).image
    return list(camera(photo, rng))[:n_frames]


def write_clip(path: Path, seed: int = 0, n_frames: int = 12, forgery: str | None = None) -> Path:
    write_whole(path, write_video(clip(seed, n_frames, forgery), 12))
    return path


def write_scenery(path: Path, n_frames: int = 6) -> Path:
    """A clip without any face."""
    ramp = np.linspace(40, 200, 128).astype(np.uint8)
    frames = [np.stack([np.tile(np.roll(ramp, 3 * i), (96, 1))] * 3, -1) for i in range(n_frames)]
    write_whole(path, write_video(frames, 12))
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder source: real/ and fake/{self-blend,local-warp}/, six clips each."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(6):
        write_clip(root / "real" / f"{i}.mp4", seed=i)
        write_clip(root / "fake" / "self-blend" / f"{i}.mp4", seed=10 + i, forgery="self-blend")
        write_clip(root / "fake" / "local-warp" / f"{i}.mp4", seed=20 + i, forgery="local-warp")
    return root


@pytest.fixture(scope="session")
def data(clips, tmp_path_factory) -> Path:
    """`clips` prepared at raw, c23 and c40, four frames each."""
    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare(clips, out, PrepareRecipe(frames=4))
    return out


@pytest.fixture(scope="session")
def run(data, tmp_path_factory) -> Path:
    """A tiny QAD trained for a few steps on `data`."""
    out = tmp_path_factory.mktemp("runs") / "qad"
    preset = load_preset("qad-tiny", ["epochs=2", "steps_per_epoch=4", "image_size=64"])
    train(preset, [data], out, device="cpu")
    return out
