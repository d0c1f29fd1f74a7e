"""The starter detector that comes with the package: scan takes it unless told otherwise."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_clip

from dfdetect.checkpoint import load_checkpoint, portrait_logit
from dfdetect.engine import load_engine
from dfdetect.shipped import ASSETS, STARTER


@pytest.fixture(scope="module")
def starter():
    return load_checkpoint(STARTER, "cpu")


def test_it_gives_the_shipped_portrait_the_logit_that_was_stored(starter):
    stored = starter.info.publication.portrait_logit
    assert portrait_logit(starter.detector, "cpu") == pytest.approx(stored, abs=0.01)


def test_both_its_forms_are_one_model_and_small():
    model = load_engine(STARTER)
    assert model.engine == "onnx" and model.checkpoint_sha256 == load_checkpoint(STARTER).sha256
    assert sum(path.stat().st_size for path in ASSETS.glob("starter.*")) < 15e6


def test_its_card_tells_data_figures_limits_and_licence(starter, cli):
    card = cli("info").stdout
    for text in ("## Data", "| raw |", "| c23 |", "| c40 |", "does not", "research"):
        assert text in card
    assert starter.info.publication.date in card


def test_scan_takes_it_when_no_model_is_named_and_says_so(cli, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 1)
    result = cli("scan", path, "--json", "--frames", 4)
    verdict = json.loads(result.stdout)
    assert result.exit_code == 0 and verdict["model"]["comes_with_dfdetect"]
    assert verdict["score_meaning"] == "P(fake) at prior 0.5"
    shown = cli("scan", path, "--frames", 4).stdout
    assert "starter, which comes with dfdetect" in shown


def test_it_says_why_noise_smears_and_a_small_face_get_no_call(cli, tmp_path):
    portrait = cv2.imread(str(ASSETS / "portrait.jpg"))
    small = cv2.resize(portrait, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    smeared = cv2.resize(small, portrait.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    rng = np.random.default_rng(0)
    pictures = {
        "noise": rng.integers(0, 256, portrait.shape, np.uint8),
        "small": small,
        "smeared": cv2.GaussianBlur(smeared, (0, 0), 4),
        "grainy": np.clip(portrait + rng.normal(0, 60, portrait.shape), 0, 255).astype(np.uint8),
    }
    for name, picture in pictures.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    told = cli("scan", *(tmp_path / f"{name}.png" for name in pictures), "--json").stdout
    reasons = {}
    for verdict in map(json.loads, told.splitlines()):
        assert verdict["call"] in ("inconclusive", "no-face")
        reasons[Path(verdict["input"]).stem] = " ".join(verdict["reasons"])
    assert "no face" in reasons["noise"] and "px wide" in reasons["small"]
    assert "less fine detail" in reasons["smeared"] and "more fine detail" in reasons["grainy"]
