"""Every preset that ships loads, fits its method, and builds; mistakes in one are named."""

import re

import pytest
import torch

from dfdetect.data import Batch
from dfdetect.errors import DfdetectError
from dfdetect.methods import make_method, method_options
from dfdetect.presets import list_presets, load_preset

NAMES = sorted(list_presets())
ROWS = {
    ("QAD", "Table", "1", "Roessler et al."): ["bce-xception"],
    ("QAD", "Table", "1", "MesoNet"): ["bce-mesoinception4"],
    ("QAD", "Table", "1", "F3 Net"): ["bce-f3net", "bce-f3net-fad"],
    ("QAD", "Table", "1", "Fang & Lin"): ["fanglin-r50", "fanglin-effb1"],
    ("QAD", "Table", "1", "QAD-R"): ["qad-r50"],
    ("QAD", "Table", "1", "QAD-E"): ["qad-effb1", "qad-effb1-literal"],
    ("QAD", "Table", "3", "RESNET50 [x3]"): ["bce-r50-raw", "bce-r50-c23", "bce-r50-c40"],
    ("QAD", "Table", "3", "EFFICIENTNET-B1 [x3]"): [
        "bce-effb1-raw",
        "bce-effb1-c23",
        "bce-effb1-c40",
    ],
    ("QAD", "Table", "4", "Baseline"): ["bce-r50"],
    ("QAD", "Table", "4", "Soft-label"): ["qad-r50-soft"],
    ("QAD", "Table", "4", "Pairwise loss"): ["qad-r50-pairwise"],
    ("QAD", "Table", "4", "Center loss"): ["qad-r50-center"],
    ("QAD", "Table", "4", "HSIC"): ["qad-r50-hsic"],
    ("QAD", "Table", "4", "AWP-KL"): ["qad-r50-awp-kl"],
    ("QAD", "Table", "4", "AWP-XE"): ["qad-r50-awp-xe"],
    ("QAD", "Table", "4", "QAD"): ["qad-r50"],
    ("QAD", "Table", "5", "RESNET18"): ["bce-r18", "qad-r18"],
    ("QAD", "Table", "5", "RESNET34"): ["bce-r34", "qad-r34"],
    ("QAD", "Table", "5", "EFFICIENTNET-B0"): ["bce-effb0", "qad-effb0"],
    ("QAD", "Figure", "5", "EFFICIENTNET-B1"): ["bce-effb1", "qad-effb1"],
    ("CrossDF", "Table", "I", "DID"): ["did-effv2l"],
    ("CrossDF", "Table", "II", "ResNet50"): ["did-r50-bce"],
    ("CrossDF", "Table", "II", "ResNet50 + DID"): ["did-r50"],
    ("CrossDF", "Table", "II", "EfficientNetV2-L"): ["did-effv2l-bce"],
    ("CrossDF", "Table", "III", "w/o A_dom"): ["did-effv2l-no-dom"],
    ("CrossDF", "Table", "III", "w/o T"): ["did-effv2l-no-mi"],
}
"""The rows of the papers that are ours to train, as one or more presets each. Table 2 tests the
models of Table 1 on JPEG."""
OF_OTHERS = {
    "qadid-effb1",
    "lntune-vit",
    "lntune-dinov2",
    "probe-vit",
    "sbi-effb4",
    "starter",
    "starter-base",
}
"""Presets beyond the two papers."""


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_every_row_that_is_ours_to_train_has_presets_that_name_it(row):
    paper, kind, number, _ = row
    for name in ROWS[row]:
        reproduces = load_preset(name).reproduces
        assert reproduces.startswith(paper)
        assert re.search(rf"{kind}s? [^(]*\b{number}\b", reproduces), reproduces


def test_no_preset_is_without_a_row_but_those_for_tests():
    listed = {name for names in ROWS.values() for name in names}
    assert {n for n in NAMES if not n.endswith("-tiny")} == listed | OF_OTHERS


def test_did_s_ablations_differ_in_what_they_leave_out_and_in_nothing_else():
    for name, full, changed in (
        ("did-effv2l-no-dom", "did-effv2l", {"lambda_dom": 0}),
        ("did-effv2l-no-mi", "did-effv2l", {"lambda_dec": 0}),
    ):
        preset, whole = load_preset(name), load_preset(full)
        assert preset.method.options == whole.method.options | changed
        same = {"name": whole.name, "reproduces": whole.reproduces, "method": whole.method}
        assert preset.model_copy(update=same) == whole
    for name in ("did-effv2l", "did-r50"):
        plain, whole = load_preset(f"{name}-bce"), load_preset(name)
        assert (plain.method.name, plain.method.options) == ("bce", {})
        same = {"name": whole.name, "reproduces": whole.reproduces, "method": whole.method}
        assert plain.model_copy(update=same) == whole


def test_table_4_s_rows_differ_in_what_it_varies_and_in_nothing_else():
    """ResNet-50 throughout; (collaborative loss and its weight, AWP and what it ascends)."""
    full = load_preset("qad-r50")
    expected = {
        "qad-r50-soft": ("soft", 0.0, "xe"),
        "qad-r50-pairwise": ("pairwise", 0.0, "xe"),
        "qad-r50-center": ("center", 0.0, "xe"),
        "qad-r50-hsic": ("hsic", 0.0, "xe"),
        "qad-r50-awp-kl": ("none", 0.002, "kl"),
        "qad-r50-awp-xe": ("none", 0.002, "xe"),
        "qad-r50": ("hsic", 0.002, "xe"),
    }
    for name, row in expected.items():
        preset = load_preset(name)
        options = method_options(preset)[1]
        assert (options.collab, options.gamma, options.awp_loss) == row
        same = {"name": full.name, "reproduces": full.reproduces, "method": full.method}
        assert preset.model_copy(update=same) == full
    baseline = load_preset("bce-r50")
    same = {"name": full.name, "reproduces": full.reproduces, "method": full.method}
    assert baseline.method.options == {}
    assert baseline.model_copy(update=same) == full


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_what_it_reproduces_and_its_method_takes_its_options(name):
    preset = load_preset(name)
    assert preset.name == name
    assert len(preset.reproduces) > 20
    method_options(preset)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_on_a_tiny_backbone(name):
    family = load_preset(name).backbone.name.split("_")[0]
    tiny = {"resnet50": "test_resnet", "vit": "test_vit"}.get(family, "test_efficientnet")
    overrides = [f"backbone.name={tiny}", "backbone.weights=none", "image_size=64"]
    preset = load_preset(name, overrides)
    method = make_method(preset, n_domains=3)
    q = len(preset.qualities)
    batch = Batch(
        torch.rand(4, q, 3, 64, 64), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 2]), []
    )
    method.at(1, 2, 1, 2)
    loss = method(batch)
    assert loss.total.isfinite()
    assert loss.logits.shape == (4, q)
    loss.total.backward()
    learns = [p for p in method.parameters() if p.requires_grad]
    assert learns and all(p.grad is not None for p in learns)


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


def test_a_preset_based_on_another_holds_only_what_differs(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "reproduces: mine\nbased_on: qad-effb1\nmethod: {alpha: 0.1}\n"
        "backbone: {weights: none}\nqualities: [raw, c40]\n"
    )
    mine, base = load_preset(str(path), ["method.gamma=0.5"]), load_preset("qad-effb1")
    assert mine.name == "mine" and mine.reproduces == "mine"
    assert mine.method.options == base.method.options | {"alpha": 0.1, "gamma": 0.5}
    assert mine.backbone == base.backbone.model_copy(update={"weights": "none"})
    assert mine.qualities == ("raw", "c40")
    assert (mine.optimizer, mine.image_size) == (base.optimizer, base.image_size)


def test_options_of_another_method_are_not_taken_from_the_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("reproduces: mine\nbased_on: qad-r50\nmethod: {name: did, alpha: 0.7}\n")
    assert load_preset(str(path)).method.options == {"alpha": 0.7}


def test_a_preset_may_be_based_on_a_file_beside_it(tmp_path):
    (tmp_path / "base.yaml").write_text("reproduces: base\nbased_on: bce-r18\nepochs: 7\n")
    (tmp_path / "mine.yaml").write_text("reproduces: mine\nbased_on: base.yaml\nseed: 3\n")
    mine = load_preset(str(tmp_path / "mine.yaml"))
    assert (mine.epochs, mine.seed, mine.backbone.name) == (7, 3, "resnet18.tv_in1k")


def test_what_a_preset_reproduces_is_its_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("based_on: bce-r18\n")
    with pytest.raises(DfdetectError, match="preset mine: reproduces: field required"):
        load_preset(str(path))


def test_a_base_that_is_missing_or_the_preset_itself_is_named(tmp_path):
    path, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    path.write_text("reproduces: mine\nbased_on: qad-r51\n")
    with pytest.raises(DfdetectError, match="unknown preset 'qad-r51'") as error:
        load_preset(str(path))
    assert "did you mean 'qad-r5" in error.value.hint
    path.write_text("reproduces: mine\nbased_on: other.yaml\n")
    with pytest.raises(DfdetectError, match=r"other\.yaml: cannot be read"):
        load_preset(str(path))
    other.write_text("reproduces: other\nbased_on: mine.yaml\n")
    with pytest.raises(DfdetectError, match=r"mine\.yaml: is based on itself"):
        load_preset(str(path))


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(DfdetectError) as error:
        load_preset("qad-efb1")
    assert "did you mean 'qad-effb1'" in error.value.hint


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("qualities=5", "qualities: names as raw,c23,c40 are needed"),
        ("qualities=", "qualities: names as raw,c23,c40 are needed"),
        ("qualities=[raw,40]", "qualities: names as raw,c23,c40 are needed"),
        ("seed=4294967296", "seed: input should be less than 4294967296"),
        ("optimizer.lr=.inf", "optimizer.lr: input should be a finite number"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_option(override, problem):
    with pytest.raises(DfdetectError, match=re.escape(problem)):
        load_preset("qad-tiny", [override])


def test_an_option_of_a_method_is_a_finite_number():
    with pytest.raises(DfdetectError, match="alpha: input should be a finite number"):
        method_options(load_preset("qad-tiny", ["method.alpha=.inf"]))
