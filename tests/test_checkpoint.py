"""One file holds everything to use a detector, and nothing that only training needs."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dfdetect.checkpoint import choose_device, load_checkpoint, read_info
from dfdetect.errors import DfdetectError
from dfdetect.presets import load_preset
from dfdetect.train import train


def test_a_checkpoint_rebuilds_the_same_detector(run):
    first, second = (
        load_checkpoint(run, "cpu"),
        load_checkpoint(run / "detector.safetensors", "cpu"),
    )
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(first.detector(images), second.detector(images))
    assert not first.detector.training


def test_its_metadata_says_how_to_use_it_and_where_it_comes_from(run):
    info = read_info(run)
    assert info.crop.size == 256 and info.preset["name"] == "qad-tiny"
    assert info.detector["image_size"] == 64
    assert 0 <= info.threshold <= 1
    assert info.val["frame"]["n_real"] > 0 and info.val["split"] == "val"
    assert len(info.data["fingerprint"]) == 16
    assert {"dfdetect", "torch", "timm"} <= set(info.versions)


def test_did_ships_its_detector_and_domain_head_and_nothing_of_the_critic(data, tmp_path):
    """The domain head is there to be looked at, by eval and explain; no score depends on it."""
    scoring = {"backbone", "attention", "classifier", "mean", "std", "to_gray"}
    for weight, told in ((1, {"domain_attention", "domain_classifier"}), (0, set())):
        options = ["epochs=1", "steps_per_epoch=2", "image_size=64", f"method.lambda_dom={weight}"]
        run = tmp_path / f"run-{weight}"
        train(load_preset("did-tiny", options), [data], run, device="cpu")
        parts = {name.split(".")[0] for name in load_file(run / "detector.safetensors")}
        assert parts == scoring | told
    detector = load_checkpoint(tmp_path / "run-1", "cpu").detector
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = detector(images)
        for name, parameter in detector.named_parameters():
            if name.startswith("domain_"):
                parameter.fill_(torch.nan)
        assert torch.equal(detector(images), before)


def rewritten(run, out, tensors=None, metadata=None):
    file = run / "detector.safetensors"
    with safe_open(file, framework="pt") as handle:
        before = json.loads(handle.metadata()["dfdetect"])
    save_file(
        tensors or load_file(file),
        out,
        metadata={"dfdetect": json.dumps(metadata(before) if metadata else before)},
    )
    return out


def test_weights_that_are_not_finite_are_refused(run, tmp_path):
    tensors = load_file(run / "detector.safetensors")
    name = next(n for n, t in tensors.items() if t.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    path = rewritten(run, tmp_path / "nan.safetensors", tensors)
    with pytest.raises(DfdetectError, match="not finite"):
        load_checkpoint(path, "cpu")


def test_weights_that_do_not_fit_are_refused(run, tmp_path):
    tensors = load_file(run / "detector.safetensors")
    tensors.pop("backbone.conv_stem.weight")
    path = rewritten(run, tmp_path / "short.safetensors", tensors)
    with pytest.raises(DfdetectError, match="do not fit"):
        load_checkpoint(path, "cpu")


def test_a_newer_format_names_both(run, tmp_path):
    path = rewritten(run, tmp_path / "new.safetensors", metadata=lambda m: m | {"format": 2})
    with pytest.raises(DfdetectError, match="checkpoint format 2, this dfdetect reads 1"):
        load_checkpoint(path, "cpu")


def test_damaged_and_foreign_files_are_refused_by_name(run, tmp_path):
    whole = (run / "detector.safetensors").read_bytes()
    cases = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "zip": b"PK\x03\x04" + whole,
    }
    cases["header"] = (1 << 40).to_bytes(8, "little") + b"{}"
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DfdetectError, match=name):
            load_checkpoint(tmp_path / name, "cpu")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(DfdetectError, match="not written by"):
        load_checkpoint(tmp_path / "foreign", "cpu")


def test_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    (tmp_path / "detector.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DfdetectError):
        load_checkpoint(tmp_path, "cpu")
    assert not (tmp_path / "canary").exists()


def test_an_absent_checkpoint_says_how_to_train_one(tmp_path):
    with pytest.raises(DfdetectError) as error:
        load_checkpoint(tmp_path, "cpu")
    assert "dfdetect train" in error.value.hint


def test_a_device_that_is_not_there_lists_the_usable_ones():
    with pytest.raises(DfdetectError, match="device 'tpu' is not available") as error:
        choose_device("tpu")
    assert "cpu" in error.value.hint
    assert choose_device("auto") in ("cpu", "cuda", "mps")


def test_a_gpu_that_is_not_there_is_refused_by_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == "cuda:1"
    for name in ("cuda:2", "cuda:", "cpu:0"):
        with pytest.raises(DfdetectError, match=f"device '{name}' is not available") as error:
            choose_device(name)
        assert error.value.hint.startswith("usable: cpu, cuda, cuda:0, cuda:1")


def test_a_checkpoint_survives_being_moved(run, tmp_path):
    shutil.copy(run / "detector.safetensors", tmp_path / "elsewhere.st")
    assert (
        load_checkpoint(tmp_path / "elsewhere.st", "cpu").sha256
        == load_checkpoint(run, "cpu").sha256
    )
