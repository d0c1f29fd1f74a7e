"""export writes one ONNX file that says what PyTorch says; scan runs it without PyTorch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import clip, write_clip
from onnx import numpy_helper
from torch import nn
from typer.testing import CliRunner

import dfdetect.checkpoint
from dfdetect import onnx_export
from dfdetect.checkpoint import CheckpointInfo, load_checkpoint, read_info, save_checkpoint
from dfdetect.cli import app
from dfdetect.data import images_to_tensor
from dfdetect.detector import Detector
from dfdetect.engine import load_engine
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.explain import fake_maps
from dfdetect.faces import CropRecipe, FaceFinder, align, to_input
from dfdetect.files import sha256_of
from dfdetect.onnx_export import export_onnx
from dfdetect.publish import publish
from dfdetect.scanning import Scanner
from dfdetect.sessions import Session

RESNET, SIDE = "test_resnet.r160_in1k", 64
DID = {"colour": "gray", "head": "attention", "domains": 5}
KINDS = {
    "linear": {"backbone": RESNET},
    "did": {"backbone": RESNET, **DID},
    "unit-gray3": {"backbone": "test_efficientnet.r160_in1k", "head": "unit", "colour": "gray3"},
    "transformer": {"backbone": "test_vit.r160_in1k"},
    "mesoinception4": {"backbone": "mesoinception4"},
}


def write_checkpoint(folder, seed=0, side=SIDE, **settings):
    """A run folder with an untrained detector that calls everything. Its running statistics are of
    mosaics: with those that a network begins with, all pictures have the same logit."""
    torch.manual_seed(seed)
    detector = Detector(image_size=side, **settings)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        detector(nn.functional.interpolate(torch.rand(8, 3, 8, 8), (side, side)))
    info = CheckpointInfo(
        detector=detector.settings, preset={"name": "untrained"}, crop=CropRecipe(margin=1.5),
        domains=["real", "swap", "warp", "reenactment", "synthesis"], threshold=0.5,
        band=(0.5, 0.5), band_basis="calls: of a test",
        val={}, data={}, step=0, versions={},
    )  # fmt: skip
    folder.mkdir()
    save_checkpoint(folder / "detector.safetensors", detector, info)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run folder of a DID detector and the ONNX file beside its checkpoint."""
    run = write_checkpoint(tmp_path_factory.mktemp("onnx") / "did", **KINDS["did"])
    result = CliRunner().invoke(app, ["export", str(run)])
    assert result.exit_code == 0 and "6 crops within" in result.stdout
    return run


@pytest.fixture(scope="module")
def crops():
    """A real face as a network takes it: as it is, mirrored, dark, as it is, upside down."""
    recipe, finder = CropRecipe(), FaceFinder(CropRecipe(), "onnx")
    frames = clip(3, n_frames=10)[::2]
    a, b, c, d, e = (to_input(align(f, finder(f)[0].landmarks, recipe), SIDE) for f in frames)
    return [a, np.ascontiguousarray(b[:, ::-1]), c // 3, d, np.ascontiguousarray(e[::-1])]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_pytorch_s_one_by_one_and_in_batches_of_any_size(kind, crops, tmp_path):
    run = write_checkpoint(tmp_path / "run", **KINDS[kind])
    told = export_onnx(run, tmp_path / "model.onnx")
    session = Session(told.path.read_bytes())
    with torch.no_grad():
        images = images_to_tensor(crops) / 255
        expected = load_checkpoint(run, "cpu").detector(images).numpy()
    assert np.ptp(expected) > 1e-3  # it does look at the picture
    single = np.concatenate([session(crop[None])[0] for crop in crops])
    np.testing.assert_allclose(single, expected, atol=1e-4)
    np.testing.assert_allclose(session(np.stack(crops))[0], expected, atol=1e-4)
    np.testing.assert_allclose(session(np.stack(crops[1:3]))[0], expected[1:3], atol=1e-4)
    assert told.difference <= 1e-4 and told.n_bytes == told.path.stat().st_size


def test_the_file_alone_says_how_to_use_it_and_what_it_was_made_of(exported):
    model = load_engine(exported / "detector.onnx")
    checkpoint = exported / "detector.safetensors"
    assert model.info == read_info(checkpoint) and model.info.crop.margin == 1.5
    assert model.checkpoint_sha256 == sha256_of(checkpoint)
    assert model.sha256 == sha256_of(exported / "detector.onnx")
    assert (model.image_size, model.device, model.engine) == (SIDE, "cpu", "onnx")


def test_a_published_model_s_file_is_half_as_large_and_checked_by_the_portrait(
    exported, tmp_path, monkeypatch
):
    about = tmp_path / "about.md"
    about.write_text("For research.")
    model = publish(exported, about, tmp_path / "given.safetensors")
    told = export_onnx(model)
    assert told.n_bytes < 0.7 * (exported / "detector.onnx").stat().st_size
    assert load_engine(model).engine == "onnx"
    monkeypatch.setattr(dfdetect.checkpoint, "PORTRAIT_TOLERANCE", -1.0)
    with pytest.raises(DfdetectError, match="gives the shipped portrait the logit"):
        load_engine(model)


def test_the_domain_head_is_left_out(exported):
    stored = onnx.load(exported / "detector.onnx").graph.initializer
    held = {numpy_helper.to_array(tensor).tobytes() for tensor in stored}
    state = load_checkpoint(exported, "cpu").detector.state_dict()

    def is_held(name):
        return state[name].numpy().tobytes() in held

    assert is_held("classifier.2.bias")
    assert not is_held("domain_classifier.2.bias") and not is_held("domain_classifier.4.weight")


def test_nothing_of_this_machine_is_in_the_file(exported):
    content = (exported / "detector.onnx").read_bytes()
    assert b".py" not in content and str(exported.parent).encode() not in content


def test_a_file_that_says_something_else_is_not_written(exported, tmp_path, monkeypatch):
    out = tmp_path / "model.onnx"
    out.write_bytes(b"of before")

    def off_by_a_thousandth(checkpoint):
        model = onnx.load(exported / "detector.onnx")
        end = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = [f"{name}_" if name == end else name for name in node.output]
        shift = onnx.helper.make_tensor("shift", onnx.TensorProto.FLOAT, [], [1e-3])
        model.graph.initializer.append(shift)
        model.graph.node.append(onnx.helper.make_node("Add", [f"{end}_", "shift"], [end]))
        return model.SerializeToString()

    monkeypatch.setattr(onnx_export, "_converted", off_by_a_thousandth)
    with pytest.raises(DfdetectError, match=r"its ONNX form gives other logits, up to 0\.001"):
        export_onnx(exported, out)
    assert out.read_bytes() == b"of before" and list(tmp_path.iterdir()) == [out]


def test_the_command_says_what_it_wrote(cli, tmp_path, monkeypatch):
    run = write_checkpoint(tmp_path / "run", **KINDS["linear"])
    out = tmp_path / "model.onnx"
    told = onnx_export.Exported(out, sha256_of(run / "detector.safetensors"), 5, 1e-7, 6)
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *asked: {(run, out): told}[asked])
    assert json.loads(cli("export", run, "--onnx", out, "--json").stdout) == {
        "schema_version": 1, "path": str(out), "checkpoint_sha256": told.checkpoint_sha256,
        "n_bytes": 5, "difference": 1e-7, "n_crops": 6,
    }  # fmt: skip


def test_without_the_exporter_it_says_what_to_install(cli, exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = cli("export", exported)
    assert result.exit_code == ExitCode.ENVIRONMENT
    assert "onnxscript, which export needs, cannot be imported; pip install onnxscript" in (
        " ".join(result.stderr.split())
    )


def test_auto_takes_the_onnx_file_beside_an_unchanged_checkpoint(exported):
    for path in (exported, exported / "detector.safetensors"):
        assert load_engine(path).engine == load_engine(path, device="cpu").engine == "onnx"
    assert load_engine(exported, "torch").engine == "torch"


def test_a_checkpoint_that_changed_since_is_not_run_as_it_was(exported, tmp_path, caplog):
    run = write_checkpoint(tmp_path / "run", seed=1, **KINDS["did"])
    (run / "detector.onnx").write_bytes((exported / "detector.onnx").read_bytes())
    assert load_engine(run).engine == "torch"
    assert "detector.onnx: not made from detector.safetensors as it is now" in caplog.text
    caplog.clear()
    with pytest.raises(DfdetectError, match="not made from detector") as caught:
        load_engine(run, "onnx")
    assert f"dfdetect export {run / 'detector.safetensors'}" in caught.value.hint


def test_files_that_no_engine_can_run_are_refused(exported, tmp_path):
    def refused(match, *arguments):
        with pytest.raises(DfdetectError, match=match):
            load_engine(*arguments)

    onnx_file = exported / "detector.onnx"
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(onnx_file.read_bytes()[:-5000])
    foreign = Path(onnx_export.__file__).parent / "assets" / "rnet.onnx"
    bare = write_checkpoint(tmp_path / "bare", **KINDS["linear"])
    refused("not a readable ONNX file", damaged)
    refused("ONNX, but not written by `dfdetect export`", foreign)
    refused("no ONNX file there", tmp_path / "none.onnx")
    refused("no ONNX file there", bare, "onnx")
    refused("PyTorch does not run ONNX files", onnx_file, "torch")
    refused("used on the CPU only, not on 'cuda'", onnx_file, "auto", "cuda")
    refused("unknown engine 'onyx'", exported, "onyx")


def test_an_image_s_logit_does_not_depend_on_its_company_or_on_threads(exported, crops):
    content = (exported / "detector.onnx").read_bytes()
    logits = load_engine(exported).logits(crops)
    for threads in (1, 2, 3):
        session = Session(content, threads)
        alone = [float(session(crop[None])[0][0]) for crop in crops]
        assert alone == logits.tolist()
    assert load_engine(exported).logits([]).shape == (0,)


def test_both_engines_give_the_same_verdict(exported, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", seed=4)
    one, other = (Scanner(exported, 6, "cpu", engine=name)(path) for name in ("onnx", "torch"))
    assert (one.call, one.reasons) == (other.call, other.reasons)
    assert one.score == pytest.approx(other.score, abs=1e-3)
    assert [f.box for f in one.tracks[0].frames] == [f.box for f in other.tracks[0].frames]
    assert one.model["checkpoint_sha256"] == other.model["checkpoint_sha256"]
    assert (one.settings["engine"], other.settings["engine"]) == ("onnx", "torch")


def test_heat_maps_come_from_the_checkpoint_beside_an_onnx_model(exported, crops, tmp_path):
    by_onnx, by_torch = (
        fake_maps(load_engine(exported, engine), crops[:1]) for engine in ("onnx", "torch")
    )
    np.testing.assert_array_equal(by_onnx[0], by_torch[0])
    alone = shutil.copy(exported / "detector.onnx", tmp_path / "alone.onnx")
    with pytest.raises(DfdetectError, match="gives no gradients"):
        fake_maps(load_engine(alone), crops[:1])


def test_a_scan_by_onnx_imports_no_pytorch(exported, tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    program = (
        "import atexit, sys\n"
        "heavy = {'torch', 'torchvision', 'timm', 'scipy', 'sklearn', 'matplotlib', 'pyarrow'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
    )
    command = f"{program}from dfdetect.cli import app\napp(sys.argv[1:])"
    model = ["--model", str(exported / "detector.onnx"), "--engine", "onnx"]
    done = subprocess.run(
        [sys.executable, "-c", command, "scan", str(path), *model, "--json", "--frames", "4"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["score"] is not None
    assert done.stderr.splitlines()[-1] == "[]"
    # The child that decodes and finds faces imports this and no more.
    child = f"{program}import dfdetect.examining"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
