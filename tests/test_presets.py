"""Every preset that ships loads, fits its method, and builds; mistakes in one are named."""

import pytest
import torch

from dfdetect.data import Batch
from dfdetect.errors import DfdetectError
from dfdetect.methods import make_method, method_options
from dfdetect.presets import list_presets, load_preset

NAMES = sorted(list_presets())
PROMISED = {
    "qad-effb1", "qad-effb0", "qad-r50", "qad-r34", "qad-r18", "did-effv2l", "did-r50", "bce-effb1",
    "bce-r50", "qad-effb1-literal", "qad-tiny", "did-tiny", "bce-tiny",
}  # fmt: skip


def test_the_promised_presets_ship():
    assert set(NAMES) >= PROMISED


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_what_it_reproduces_and_its_method_takes_its_options(name):
    preset = load_preset(name)
    assert preset.name == name
    assert len(preset.reproduces) > 20
    method_options(preset)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_on_a_tiny_backbone(name):
    tiny = (
        "test_resnet.r160_in1k" if "r" in name.split("-")[1][:1] else "test_efficientnet.r160_in1k"
    )
    overrides = [f"backbone.name={tiny}", "backbone.weights=none", "image_size=64"]
    preset = load_preset(name, overrides)
    method = make_method(preset, n_domains=3)
    q = len(preset.qualities)
    batch = Batch(
        torch.rand(4, q, 3, 64, 64), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 2]), []
    )
    loss = method(batch)
    assert loss.total.isfinite()
    assert loss.logits.shape == (4, q)
    loss.total.backward()
    assert all(p.grad is not None for p in method.detector.backbone.parameters())


def test_the_paper_s_settings_stand_in_its_presets():
    qad, literal, did = (load_preset(n) for n in ("qad-effb1", "qad-effb1-literal", "did-effv2l"))
    options = method_options(qad)[1]
    assert (options.sigma, options.alpha, options.gamma, options.hsic) == (6, 0.002, 0.006, "cka")
    assert method_options(literal)[1].hsic == "biased"
    assert (qad.image_size, qad.batch_size, qad.epochs, qad.optimizer.lr) == (240, 64, 32, 2e-3)
    assert (qad.validate_per_epoch, qad.select, qad.schedule.name) == (10, "accuracy", "onecycle")
    options = method_options(did)[1]
    assert (options.alpha, options.auc_gamma, options.lambda_dec) == (0.5, 0.15, 0.01)
    assert (did.batch_size, did.steps_per_epoch, did.optimizer.weight_decay) == (15, 6000, 5e-4)
    assert did.optimizer.lr * did.optimizer.backbone_lr_scale == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["epoch=2"], "did you mean 'epochs'"),
        (["optimizer.lrr=1"], "did you mean 'optimizer.lr'"),
        (["epochs=none"], "epochs"),
        (["epochs"], "not key=value"),
        (["qualities=raw,x9"], "unknown quality 'x9'"),
        (["epochs.deep=1"], "no options of its own"),
        (["method.alfa=1"], "did you mean 'alpha'"),
        (["method.alpha=-1"], "alpha"),
        (["method.name=qat"], "did you mean 'qad'"),
        (["method.layers=[64]"], "no map of stride 64; it has 2, 4, 8, 16, 32"),
        (["method.layers=[]"], "layers"),
        (["seed=-1"], "seed"),
        (["backbone.name=resnet5O"], "did you mean 'resnet5"),
    ],
)
def test_an_override_that_does_not_fit_is_named(overrides, complaint):
    with pytest.raises(DfdetectError) as error:
        make_method(load_preset("qad-tiny", overrides), 2)
    assert complaint in error.value.line


def test_numbers_in_exponent_form_are_numbers():
    assert load_preset("qad-tiny", ["optimizer.lr=1e-4"]).optimizer.lr == 1e-4


def test_a_preset_file_of_one_s_own_works_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("reproduces: mine\nmethod: {name: bce}\nbackbone: {name: resnet18}\n")
    assert load_preset(str(path)).name == "mine"
    path.write_text("- just\n- a list\n")
    with pytest.raises(DfdetectError, match="not a preset"):
        load_preset(str(path))


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(DfdetectError) as error:
        load_preset("qad-efb1")
    assert "did you mean 'qad-effb1'" in error.value.hint
