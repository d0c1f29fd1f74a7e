"""explain: maps point where the logit looks, the detector stays as it is, names are safe."""

import io
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import clip, write_clip, write_scenery
from PIL import Image
from torch import nn

from dfdetect.checkpoint import load_checkpoint
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError
from dfdetect.explain import TITLES, explain, explain_many, file_stem, most_suspicious
from dfdetect.presets import load_preset
from dfdetect.reports import heat
from dfdetect.reports.heat import Panel, Row, draw_sheet, overlay
from dfdetect.results import FrameScore
from dfdetect.scanning import Scanner
from dfdetect.scoring import ScoredFace
from dfdetect.train import train
from dfdetect.video import write_video

RNG = np.random.default_rng(0)
CROPS = [RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
VIT = "test_vit.r160_in1k"


class Cells(nn.Module):
    """A backbone whose last map is the picture's brightness in 4 x 4 cells, in `n` channels; the
    first channel is cut off below `floor`."""

    def __init__(self, n: int = 4, floor: float = 0.0) -> None:
        super().__init__()
        self.n, self.floor = n, floor

    def forward_features(self, images):
        cells = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 4)
        return (cells - self.floor).relu().repeat(1, self.n, 1, 1)

    def forward_head(self, final):
        """Fake: what the first channel has. Real: nothing."""
        fake = final[:, 0].mean((1, 2))
        return torch.stack([torch.zeros_like(fake), fake], 1)


@pytest.fixture
def by_hand():
    """A detector whose fake logit is the mean brightness above grey 128."""
    detector = Detector("test_resnet.r160_in1k", 64)
    detector.backbone = Cells(detector.n_features, 0.5)
    detector.mean.zero_()
    detector.std.fill_(1)
    return detector


@pytest.fixture
def attention():
    return Detector("test_resnet.r160_in1k", 64, "gray", head="attention", domains=3)


def bright(*quadrants):
    """Dark, with the quadrants (row, column) of a 64-px crop bright."""
    crop = np.full((64, 64, 3), 20, np.uint8)
    for row, column in quadrants:
        crop[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 230
    return crop


def highest(values):
    """The quadrant (row, column) of a map's peak."""
    y, x = np.unravel_index(values.argmax(), values.shape)
    return y // 32, x // 32


# --- maps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("quadrant", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_grad_cam_peaks_in_the_quadrant_that_the_logit_depends_on(by_hand, quadrant):
    (explained,) = explain(by_hand, [bright(quadrant)])
    (heatmap,) = explained.maps
    assert highest(heatmap.values) == quadrant
    away = heatmap.values[32:] if quadrant[0] == 0 else heatmap.values[:32]
    assert away[16:].max() < 0.5 and heatmap.grid == (4, 4)


def test_grad_cam_is_the_formula_worked_by_hand(by_hand):
    """The logit is the mean of 16 cells of one channel: its weight, the mean of the gradient, is
    1/16, and the map is the channel / 16. A bright cell has 230/255 - 1/2."""
    (explained,) = explain(by_hand, [bright((0, 0))])
    cell = 230 / 255 - 0.5
    assert explained.logit == pytest.approx(cell / 4, rel=1e-5)
    assert explained.maps[0].peak == pytest.approx(cell / 16, rel=1e-5)
    assert explained.maps[0].low == 0 and explained.maps[0].values.max() == 1


def test_a_mirrored_crop_has_the_mirrored_map(by_hand):
    crop = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    crop[:20, :20] = 240
    plain, mirrored = explain(by_hand, [crop, np.ascontiguousarray(crop[:, ::-1])])
    assert plain.maps[0].values.max() == 1
    np.testing.assert_allclose(mirrored.maps[0].values, plain.maps[0].values[:, ::-1], atol=1e-5)


def test_a_map_that_raises_nothing_is_empty_and_stays_zero(by_hand):
    (explained,) = explain(by_hand, [bright()])
    (heatmap,) = explained.maps
    assert heatmap.is_empty and heatmap.peak == 0 and not heatmap.values.any()
    negative = explain_with_logit(by_hand, lambda fake: -fake)
    assert negative.is_empty and not negative.values.any()


def explain_with_logit(detector, change):
    head = detector.backbone.forward_head
    detector.backbone.forward_head = lambda final: change(head(final))
    return explain(detector, [bright((0, 0))])[0].maps[0]


def test_the_masks_point_where_the_attention_does(attention):
    """An attention by hand: open where the first channel is high, and DID's mask with it."""

    class Open(nn.Module):
        def forward(self, features):
            return torch.sigmoid(9 * features[:, :1] - 3).expand_as(features)

    attention.backbone = Cells(attention.n_features)
    attention.mean.zero_()
    attention.std.fill_(1)
    attention.attention = Open()
    (explained,) = explain(attention, [bright((1, 0))])
    mask = next(m for m in explained.maps if m.name == "mask_deepfake")
    assert highest(mask.values) == (1, 0)
    dark, light = (1 / (1 + np.exp(3 - 9 * v / 255)) for v in (20, 230))
    assert (mask.low, mask.peak) == pytest.approx((dark, light), abs=1e-5)


def test_a_detector_with_attention_gives_four_maps_and_without_domains_two(attention):
    names = [[m.name for m in one.maps] for one in explain(attention, CROPS)]
    four = ["gradcam_deepfake", "gradcam_domain", "mask_deepfake", "mask_domain"]
    assert names == [four] * 3 and set(four) < set(TITLES)
    plain = Detector("test_resnet.r160_in1k", 64, head="attention")
    assert [m.name for m in explain(plain, CROPS)[0].maps] == ["gradcam_deepfake", "mask_deepfake"]


def test_the_domain_s_map_is_of_the_most_likely_domain(attention):
    with torch.no_grad():
        attention.domain_classifier[-1].bias[:] = torch.tensor([0.0, 0.0, 50.0])
    told = {m.name: m.target for m in explain(attention, CROPS)[0].maps}
    assert told["gradcam_domain"] == "domain logit: 2"
    assert told["gradcam_deepfake"] == "deepfake logit" and told["mask_domain"] == ""


@pytest.mark.parametrize(
    "detector",
    [
        ("test_efficientnet.r160_in1k", 64, "rgb", "linear"),
        ("test_resnet.r160_in1k", 64, "gray", "linear"),
        ("test_resnet.r160_in1k", 64, "rgb", "unit"),
        (VIT, 64, "rgb", "linear"),
        (VIT, 64, "rgb", "unit"),
        ("swin_tiny_patch4_window7_224", 224, "rgb", "linear"),
    ],
    ids=lambda d: f"{d[0].split('.')[0]}-{d[3]}-{d[2]}",
)
def test_every_kind_of_network_gets_maps_of_its_crop_s_size_and_its_own_logit(detector):
    detector = Detector(*detector).eval()
    images = torch.from_numpy(np.stack(CROPS)).permute(0, 3, 1, 2).float() / 255
    if detector.image_size == 64:
        with torch.no_grad():
            logits = detector(images).tolist()
        assert [one.logit for one in explain(detector, CROPS)] == pytest.approx(logits, abs=1e-6)
    (explained,) = explain(detector, CROPS[:1])
    (heatmap,) = explained.maps
    assert heatmap.name == "gradcam" and heatmap.values.shape == (64, 64)
    assert heatmap.values.dtype == np.float32
    assert heatmap.values.min() >= 0 and heatmap.values.max() == (not heatmap.is_empty)


def test_a_transformer_s_patches_get_gradients_though_the_class_token_is_what_is_pooled():
    detector = Detector(VIT, 160)
    assert detector.backbone.global_pool == "token"
    assert not all(one.maps[0].is_empty for one in explain(detector, CROPS))
    assert explain(detector, CROPS[:1])[0].maps[0].grid == (10, 10)


def test_where_the_map_is_high_brighter_pixels_change_the_logit_more():
    """Small changes of the cells' brightness, at the highest and the lowest cell of each map, of a
    network that looks at the centre: one convolution with a weight that falls off outwards."""
    detector = Detector("test_resnet.r160_in1k", 64)
    detector.backbone = Centre(detector.n_features)
    crop = RNG.integers(100, 130, (64, 64, 3), dtype=np.uint8)
    (explained,) = explain(detector, [crop])
    cells = explained.maps[0].values[8::16, 8::16]

    def change(cell):
        row, column = np.unravel_index(cell, cells.shape)
        other = crop.copy()
        other[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] += 60
        return abs(explain(detector, [other])[0].logit - explained.logit)

    assert change(cells.argmax()) > 2 * change(cells.argmin())


class Centre(Cells):
    """The same cells, each times how near it is to the centre."""

    def forward_features(self, images):
        near = torch.tensor([0.2, 1.0, 1.0, 0.2])
        return super().forward_features(images - images.min()) * near * near[:, None]


def test_maps_do_not_depend_on_the_batch_and_are_the_same_again(attention):
    together = explain(attention, CROPS)
    alone = [explain(attention, [crop])[0] for crop in CROPS]
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one.maps, other.maps, strict=True):
            np.testing.assert_allclose(a.values, b.values, atol=1e-3)
    again = explain(attention, CROPS)
    assert all(
        np.array_equal(a.values, b.values)
        for one, other in zip(together, again, strict=True)
        for a, b in zip(one.maps, other.maps, strict=True)
    )
    assert explain(attention, []) == []


@pytest.mark.parametrize("head", ["linear", "attention", "vit"])
def test_the_detector_is_left_as_it_was(head):
    name = VIT if head == "vit" else "test_resnet.r160_in1k"
    attends = head == "attention"
    detector = Detector(name, 64, head="attention" if attends else "linear", domains=2 * attends)
    detector.train()
    still = next(m for m in detector.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm))
    still.eval()  # as a method does that freezes it
    next(detector.parameters()).requires_grad_(False)
    state = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    modes = [module.training for module in detector.modules()]
    wanted = [p.requires_grad for p in detector.parameters()]
    with torch.inference_mode():
        explain(detector, CROPS)
    assert [module.training for module in detector.modules()] == modes
    assert [p.requires_grad for p in detector.parameters()] == wanted
    assert all(p.grad is None for p in detector.parameters())
    assert all(torch.equal(state[key], tensor) for key, tensor in detector.state_dict().items())
    assert not any(module._forward_pre_hooks for module in detector.modules())


def test_a_network_whose_places_are_not_known_is_refused_in_one_line():
    with pytest.raises(DfdetectError, match=r"mixer_s32_224 ends in 49 x 512: no map"):
        explain(Detector("mixer_s32_224", 224), CROPS)


def test_a_map_that_is_not_finite_is_an_error(by_hand):
    with pytest.raises(DfdetectError, match="gradcam is not finite"):
        explain_with_logit(by_hand, lambda logits: logits * float("nan"))


# --- drawing -----------------------------------------------------------------------------------


def test_an_overlay_grows_lighter_with_the_map():
    """So it can be read without colour."""
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    picture = overlay(np.full((64, 64, 3), 128, np.uint8), ramp, side_px=64)
    row = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[60].astype(int)
    clear = [*range(24), *range(40, 50)]  # beside the line half way up, and the cross
    assert (np.diff(row[clear]) >= -1).all() and row[49] > row[0] + 60


def test_an_overlay_of_an_empty_map_is_the_grey_crop():
    picture = overlay(CROPS[0], np.zeros((64, 64), np.float32), side_px=64)
    grey = cv2.cvtColor(CROPS[0], cv2.COLOR_RGB2GRAY)
    assert all(np.array_equal(picture[..., c], grey) for c in range(3))


def test_a_sheet_of_very_many_rows_stays_drawable(monkeypatch):
    monkeypatch.setattr(heat, "MOST_ROWS", 3)
    row = Row(CROPS[0], ["score 0.5"], [Panel(np.eye(64, dtype=np.float32), ["0 to 1", "logit"])])
    heights = []
    for n in (2, 3, 9):
        png = draw_sheet("title " * 60, "score", ["Grad-CAM " * 9], [row] * n, "note " * 50)
        heights.append(Image.open(io.BytesIO(png)).height)
    assert heights[1] - heights[0] > heat.TILE_PX
    assert 0 < heights[2] - heights[1] < 40  # one line that says how many are missing


def test_of_each_person_the_most_suspicious_frames_are_chosen():
    def seen(track, index, score):
        return ScoredFace(track, None, None, FrameScore(index, index / 10, [], score))

    faces = [seen(0, i, s) for i, s in enumerate([0.1, 0.9, 0.3, 0.8])]
    faces += [seen(1, 2, 0.05)]
    chosen = most_suspicious(faces, 2)
    assert [(s.track_id, s.frame.index) for s in chosen] == [(0, 1), (0, 3), (1, 2)]


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def did(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "did"
    preset = load_preset("did-tiny", ["epochs=1", "steps_per_epoch=2", "image_size=64"])
    train(preset, [data], out, device="cpu")
    return out


def test_every_map_has_a_row_in_json_and_its_array(cli, did, tmp_path):
    path, out = write_clip(tmp_path / "clip.mp4", 1), tmp_path / "out"
    result = cli("explain", did, path, "--out", out, "--frames", 2, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told == json.loads((out / "explain.json").read_text())
    (entry,) = told["inputs"]
    assert {p.name for p in out.iterdir()} == {entry["sheet"], entry["arrays"], "explain.json"}
    assert entry["score"] == Scanner(did, device="cpu")(path).score
    assert len(told["maps"]) == entry["maps"] == 8
    model = load_checkpoint(did, "cpu")
    arrays = np.load(out / entry["arrays"])
    for row in told["maps"]:
        values = arrays[row["key"]][row["row"]]
        assert row["file"] == entry["arrays"] and values.dtype == np.float16
        assert values.shape == (64, 64) and values.max() == (0 if row["empty"] else 1)
        assert row["frame_index"] == arrays["frame_index"][row["row"]]
        assert row["box"] == pytest.approx(arrays["box"][row["row"]].tolist(), abs=0.06)
        assert (row["model_sha256"], row["sha256"]) == (model.sha256, entry["sha256"])
        if row["map"] == "gradcam_domain":
            assert row["target"].removeprefix("domain logit: ") in model.info.domains
    again = explain(model, list(arrays["crops"]))
    for i, one in enumerate(again):
        for heatmap in one.maps:
            np.testing.assert_allclose(arrays[heatmap.name][i], heatmap.values, atol=1e-3)
    assert Image.open(out / entry["sheet"]).size[0] > 5 * 224


def test_one_bad_file_is_one_line_and_the_batch_goes_on(cli, run, tmp_path):
    good = write_clip(tmp_path / "good.mp4", 1, n_frames=3)
    (tmp_path / "bad.mp4").write_text("no video")
    scenery, out = write_scenery(tmp_path / "scenery.mp4"), tmp_path / "out"
    result = cli("explain", run, tmp_path / "bad.mp4", scenery, good, "--out", out)
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/bad.mp4: not a video or picture")
    assert "no face" in result.stdout and "not where a forgery is" in " ".join(
        result.stdout.split()
    )
    bad, faceless, fine = json.loads((out / "explain.json").read_text())["inputs"]
    assert "bad.mp4" in bad["error"]["message"]
    assert (faceless["score"], faceless["sheet"], faceless["maps"]) == (None, None, 0)
    assert fine["maps"] == 3 and len(list(out.glob("*.png"))) == 1
    assert cli("explain", run, tmp_path / "bad.mp4", "--out", out).exit_code == 2


def test_a_rerun_writes_the_same_bytes_over_what_is_there(run, tmp_path):
    path, out = write_clip(tmp_path / "clip.mp4", 1, n_frames=3), tmp_path / "out"
    contents = []
    for _ in range(2):
        explain_many(run, [path], out, device="cpu")
        contents.append({p.name: p.read_bytes() for p in out.iterdir()})
        for p in out.iterdir():
            p.write_bytes(b"half")
    assert contents[0] == contents[1] and len(contents[0]) == 3


def test_hostile_and_equal_names_give_safe_and_different_files(cli, run, tmp_path):
    names = ["a/x.png", "b/x.png", "esc\x1b[31m\nx.png", "$(x) &;.png", os.fsdecode(b"\xff.png")]
    names += [f"{'n' * 240}.png", "..png", "-x.png"]
    photo = cv2.imencode(".png", clip(5, 1)[0][..., ::-1])[1].tobytes()
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photo)
    out = tmp_path / "out"
    result = cli("explain", run, *(tmp_path / name for name in names), "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    told = json.loads((out / "explain.json").read_text())
    sheets = {entry["sheet"] for entry in told["inputs"]}
    assert sheets == {p.name for p in out.glob("*.png")} and len(sheets) == len(names)
    for sheet in sheets:
        assert set(sheet) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
        )
        assert not sheet.startswith((".", "-")) and len(sheet) < 100
    json.dumps(told, ensure_ascii=False).encode()  # valid UTF-8, whatever the names
    assert file_stem(tmp_path / "a/x.png") != file_stem(tmp_path / "b/x.png")


def test_each_person_gets_rows_and_folders_are_walked(run, tmp_path):
    twins = [np.hstack(pair) for pair in zip(clip(7), clip(8), strict=True)]
    (tmp_path / "many").mkdir()
    (tmp_path / "many/twins.mp4").write_bytes(write_video(twins, 12))
    command = ["explain", run, tmp_path / "many", "--out", tmp_path / "out", "--frames", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "dfdetect", *map(str, command), "--json"],
        capture_output=True,
        text=True,
    )
    rows = json.loads(done.stdout)["maps"]
    assert [(row["track"], row["row"]) for row in rows] == [(0, 0), (1, 1)]


def test_what_cannot_be_explained_or_written_is_said_before_any_file_is_read(cli, run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = cli("explain", run, tmp_path / "no.mp4", "--out", tmp_path / "file")
    assert result.exit_code == 4 and len(result.stderr.splitlines()) == 1
    result = cli("explain", tmp_path, tmp_path / "no.mp4", "--out", tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
