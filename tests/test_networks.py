"""Networks beside timm's, and pretrained ones of which little is trained."""

import pytest
import scipy.fft
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dfdetect.checkpoint import load_checkpoint, read_info, save_checkpoint
from dfdetect.data import Batch
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError
from dfdetect.methods import SHELF, make_method
from dfdetect.networks.f3net import (
    FLOOR,
    FrequencyDecomposition,
    LocalFrequencyStatistics,
    MixBlock,
    dct_matrix,
    frequency_bands,
)
from dfdetect.presets import load_preset
from dfdetect.train import train

SIZES = {"mesoinception4": 64, "f3net": 128, "f3net_fad": 128}
VIT = "test_vit.r160_in1k"


def open_gates(detector):
    """MixBlocks begin closed, and let no gradient into themselves."""
    for module in detector.modules():
        if isinstance(module, MixBlock):
            nn.init.constant_(module.gates, 0.5)
    return detector


def without_learned_part(module):
    nn.init.zeros_(module.masks.learned)
    return module


def batch(size, n=4, q=1):
    labels = torch.arange(n) % 2
    return Batch(torch.rand(n, q, 3, size, size), labels, labels, [f"s{i}" for i in range(n)])


# --- what every network keeps ------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("colour", ["rgb", "gray"])
def test_a_network_gives_maps_and_a_logit_and_the_same_again(name, colour):
    detector = open_gates(Detector(name, SIZES[name], colour)).eval()
    images = torch.rand(2, 3, SIZES[name], SIZES[name])
    with torch.no_grad():
        final = detector.features(images).final
        logits = detector(images)
        assert final.ndim == 4 and final.shape[:2] == (2, detector.n_features)
        assert logits.shape == (2,) and logits.isfinite().all()
        assert torch.equal(detector(images), logits)
        pooled = detector.backbone.forward_head(final, pre_logits=True)
    assert pooled.shape == (2, detector.backbone.head_hidden_size)


@pytest.mark.parametrize("name", SIZES)
def test_the_gradient_reaches_every_parameter(name):
    detector = open_gates(Detector(name, SIZES[name])).train()
    labels = torch.tensor([0, 1, 0, 1])
    images = torch.randn(4, 3, SIZES[name], SIZES[name])  # both signs, so that no ReLU is shut
    logits = detector.class_logits(detector.features(images).final)
    nn.functional.cross_entropy(logits, labels).backward()
    assert [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", SIZES)
def test_a_checkpoint_loads_back_and_scores_alike(name, run, tmp_path):
    detector = open_gates(Detector(name, SIZES[name], "gray")).eval()
    info = read_info(run).model_copy(update={"detector": detector.settings})
    save_checkpoint(tmp_path / "detector.safetensors", detector, info)
    loaded = load_checkpoint(tmp_path, "cpu").detector
    images = torch.rand(1, 3, SIZES[name], SIZES[name])
    with torch.no_grad():
        assert torch.equal(loaded(images), detector(images))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("method", ["bce", "did"])
def test_a_network_trains_by_cross_entropy_and_by_did(name, method):
    kind = SHELF[method]
    options = kind.Options()
    detector = Detector(name, SIZES[name], **kind.detector_settings(options, 2))
    loss = kind(detector, options, 2).train()(batch(SIZES[name]))
    assert loss.total.isfinite() and loss.logits.shape == (4, 1)
    loss.total.backward()


@pytest.mark.parametrize(
    ("name", "layers", "complaint"),
    [
        ("f3net", (8,), "it has no maps to compare"),  # two streams of maps, no one map per stride
        ("mesoinception4", (16,), "no map of stride 16; it has 2, 4, 8, 32"),
    ],
)
def test_what_qad_cannot_compare_is_named(name, layers, complaint):
    options = SHELF["qad"].Options(layers=layers)
    with pytest.raises(DfdetectError) as error:
        SHELF["qad"](Detector(name, SIZES[name]), options, 2)
    assert complaint in error.value.line


@pytest.mark.parametrize("size", [64, 100])
def test_mesoinception_s_taps_come_at_the_strides_asked_for(size):
    detector = Detector("mesoinception4", size).eval()
    images = torch.rand(1, 3, size, size)
    final, taps = detector.features(images, (4, 8, 32))
    assert [tap.shape[1:] for tap in taps] == [
        (channels, -(-size // stride), -(-size // stride))
        for channels, stride in ((12, 4), (16, 8), (16, 32))
    ]
    assert torch.equal(final, taps[-1]) and torch.equal(final, detector.features(images).final)
    assert SHELF["qad"](detector, SHELF["qad"].Options(layers=(4, 8, 32)), 2)(batch(size, q=3))


# --- MesoInception-4 ---------------------------------------------------------------------------


def test_mesoinception_has_the_published_number_of_weights():
    """28,615 with one output (Afchar et al.); worked out layer by layer."""

    def convolution(inputs, outputs, side):
        return inputs * outputs * side**2 + outputs

    def inception(inputs, widths):
        alone, *wide = widths
        return convolution(inputs, alone, 1) + sum(
            convolution(inputs, width, 1) + convolution(width, width, 3) for width in wide
        )

    normalised = 2 * (11 + 12 + 16 + 16)  # a batch norm of its own after each
    expected = (
        inception(3, (1, 4, 4, 2)) + inception(11, (2, 4, 4, 2))
        + convolution(12, 16, 5) + convolution(16, 16, 5)
        + normalised + (1024 * 16 + 16) + (16 * 1 + 1)
    )  # fmt: skip
    assert expected == 28_615
    network = timm.create_model("mesoinception4", num_classes=1)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_mesoinception_sees_pixels_as_they_are():
    detector = Detector("mesoinception4", 64)
    assert detector.mean.flatten().tolist() == [0, 0, 0]
    assert detector.std.flatten().tolist() == [1, 1, 1]


def test_mesoinception_drops_values_in_training_alone():
    detector = Detector("mesoinception4", 64).train()
    final = torch.rand(1, 16, 2, 2)
    assert not torch.equal(detector.class_logits(final), detector.class_logits(final))
    detector.eval()
    assert torch.equal(detector.class_logits(final), detector.class_logits(final))


# --- F3-Net ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 131])
def test_the_dct_is_orthonormal_and_is_scipy_s(n):
    dct, picture = dct_matrix(n), torch.rand(n, n)
    assert torch.allclose(dct @ dct.T, torch.eye(n), atol=1e-5)
    expected = torch.from_numpy(scipy.fft.dctn(picture.double().numpy(), norm="ortho"))
    assert torch.allclose((dct @ picture @ dct.T).double(), expected, atol=1e-4)


def test_bands_share_out_the_spectrum_without_overlap():
    bands = frequency_bands(256, (0, 256 / 8**0.5, 128, 512))
    assert torch.equal(bands.sum(0), torch.ones(256, 256))
    assert (bands.mean((1, 2)) * 16).tolist() == pytest.approx([1, 1, 14], abs=0.05)


def test_the_parts_of_a_picture_add_up_to_it():
    """Without the learned part: low + middle + high = all = the picture."""
    fad = without_learned_part(FrequencyDecomposition(128))
    picture = torch.rand(2, 3, 128, 128)
    low, middle, high, whole = fad(picture).unflatten(1, (4, 3)).unbind(1)
    assert torch.allclose(whole, picture, atol=1e-4)
    assert torch.allclose(low + middle + high, picture, atol=1e-4)


def test_each_frequency_shows_in_its_part_alone():
    """Cosines along a row, of 3, 55 and 100 half periods: 45.3 and 64 are the edges."""
    fad = without_learned_part(FrequencyDecomposition(128))
    for part, frequency in enumerate((3, 55, 100)):
        wave = dct_matrix(128)[frequency].expand(1, 1, 128, 128)
        energy = fad(wave).detach().square().sum((2, 3)).flatten()
        assert energy[part] == pytest.approx(wave.square().sum().item(), rel=1e-4)
        assert energy[3] == pytest.approx(energy[part].item(), rel=1e-4)
        others = [energy[i].item() for i in range(3) if i != part]
        assert max(others) < 1e-6


def test_the_learned_part_of_a_mask_stays_between_minus_one_and_one():
    fad = FrequencyDecomposition(128)
    nn.init.constant_(fad.masks.learned, -1e3)
    assert torch.equal(fad.masks(), fad.masks.bands - 1)


@pytest.mark.parametrize("size", [128, 129, 130, 131, 299])
def test_local_statistics_have_a_place_for_each_of_the_other_stream_s_stem(size):
    statistics = LocalFrequencyStatistics(3, size)(torch.rand(1, 3, size, size))
    stem = nn.Conv2d(3, 6, 3, stride=2)
    assert statistics.shape == stem(torch.rand(1, 3, size, size)).shape


@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_flat_picture_has_energy_in_the_lowest_band_alone_to_the_border(in_chans):
    lfs = without_learned_part(LocalFrequencyStatistics(in_chans, 128))
    statistics = lfs(torch.full((1, in_chans, 128, 128), 0.5))
    lowest = torch.log10(torch.tensor(10 * 0.5 + FLOOR))  # 10 x 10 px of 0.5, orthonormal
    assert torch.allclose(statistics[:, 0], lowest, atol=1e-4)
    nothing = torch.log10(torch.tensor(FLOOR))
    assert torch.allclose(statistics[:, 1:], nothing, atol=1e-2)


def test_local_statistics_are_those_of_each_window():
    lfs = without_learned_part(LocalFrequencyStatistics(1, 129))
    picture = torch.rand(1, 1, 129, 129)
    statistics = lfs(picture)[0]
    for row, column in ((2, 2), (31, 40), (60, 17)):  # windows that do not touch the border
        top, left = 2 * row - 4, 2 * column - 4
        window = picture[0, 0, top : top + 10, left : left + 10].double().numpy()
        magnitudes = abs(scipy.fft.dctn(window, norm="ortho"))
        energies = torch.zeros(6, dtype=torch.float64)
        for i in range(10):
            for j in range(10):
                energies[int((i + j) / (20 / 6))] += magnitudes[i, j]
        expected = torch.log10(energies + FLOOR).float()
        assert torch.allclose(statistics[:, row, column], expected, atol=1e-4)


def test_frequencies_are_computed_in_full_precision():
    fad, lfs = FrequencyDecomposition(128), LocalFrequencyStatistics(3, 128)
    picture = torch.rand(1, 3, 128, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fad(picture), fad(picture.float())) and fad(picture).dtype == torch.float
        assert lfs(picture).dtype == torch.float


def test_a_mix_block_begins_by_changing_nothing():
    first, second = torch.rand(2, 16, 5, 5), torch.rand(2, 16, 5, 5)
    mixed = MixBlock(16).eval()(first, second)
    assert torch.equal(mixed[0], first) and torch.equal(mixed[1], second)


def test_an_open_mix_block_takes_from_the_other_stream_where_it_is_alike():
    """Keys and queries that point at one channel, so strongly that a place attends to one alone."""
    block = MixBlock(16).eval()
    for projection in (block.query, block.key):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
        projection.weight.data[0, 0] = projection.weight.data[1, 1] = 10
    for passing in (block.to_first, block.to_second):
        passing[0].weight.data = torch.eye(16)[:, :, None, None]
    block.gates.data = torch.tensor([1.0, 2.0])
    first, second = torch.zeros(1, 16, 1, 2), torch.zeros(1, 16, 1, 2)
    first[0, 0, 0, 0] = first[0, 1, 0, 1] = 1  # its places show channels 0, 1
    second[0, 1, 0, 0] = second[0, 0, 0, 1] = 1  # those of the other 1, 0
    first[0, 5], second[0, 6] = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 6.0]])
    mixed = block(first, second)
    assert torch.allclose(mixed[0][0, 6, 0], torch.tensor([6.0, 5.0]), atol=1e-3)
    assert torch.allclose(mixed[1][0, 5, 0], 2 * torch.tensor([4.0, 3.0]), atol=1e-3)


def test_f3net_begins_as_two_xceptions_side_by_side():
    network = timm.create_model("f3net", num_classes=0, img_size=128).eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        alone = [
            network.fad_stream.forward_features(network.fad(images)),
            network.lfs_stream.forward_features(network.lfs(images)),
        ]
        assert torch.equal(network.forward_features(images), torch.cat(alone, 1))


@pytest.mark.parametrize("name", ["f3net", "f3net_fad"])
def test_a_picture_too_small_for_f3net_is_refused(name, tmp_path):
    for weights in ("none", "pretrained", str(tmp_path / "w.safetensors")):
        save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
        with pytest.raises(DfdetectError, match="pictures of 128 px and more, not of 96 px"):
            Detector(name, 96, weights=weights)


@pytest.fixture(scope="module")
def xception_file(tmp_path_factory):
    """A file as of a trained Xception: no batch norm is as it was at first."""
    path = tmp_path_factory.mktemp("weights") / "xception.safetensors"
    network = timm.create_model("legacy_xception")
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.01 * torch.rand_like(tensor))
    save_file(network.state_dict(), path)
    return path


@pytest.mark.parametrize("colour", ["rgb", "gray"])
def test_f3net_starts_both_streams_from_an_xception(colour, xception_file):
    """A stem sees each of four parts of the picture at a quarter of the weight; low + middle + high
    and the whole are the picture twice, so that its answer is half of Xception's."""
    network = Detector("f3net", 128, colour, weights=str(xception_file)).backbone
    xception = load_file(xception_file)
    for name, tensor in xception.items():
        if not name.startswith(("fc.", "conv1.")):
            assert torch.equal(network.fad_stream.state_dict()[name], tensor), name
            assert torch.equal(network.lfs_stream.state_dict()[name], tensor), name
    picture = torch.rand(1, 1 if colour == "gray" else 3, 128, 128)
    ours = network.fad_stream.conv1(without_learned_part(network.fad)(picture))
    theirs = nn.functional.conv2d(picture.expand(-1, 3, -1, -1), xception["conv1.weight"], stride=2)
    assert torch.allclose(ours, theirs / 2, atol=1e-3)


def test_a_file_of_f3net_s_own_is_loaded_whole_or_refused(tmp_path, xception_file):
    path = tmp_path / "own.safetensors"
    ours = open_gates(Detector("f3net_fad", 128, weights=str(xception_file))).backbone.state_dict()
    save_file(ours, path)
    loaded = Detector("f3net_fad", 128, weights=str(path)).backbone.state_dict()
    assert [
        n for n in ours if not n.startswith("fc.") and not torch.equal(ours[n], loaded[n])
    ] == []
    save_file({n: t for n, t in ours.items() if n != "fad_stream.conv2.weight"}, path)
    with pytest.raises(DfdetectError, match=r"1 of \d+ tensors missing, first fad_stream\.conv2"):
        Detector("f3net_fad", 128, weights=str(path))
    with pytest.raises(DfdetectError, match=r"own\.safetensors: not weights of f3net_fad"):
        Detector("f3net_fad", 130, weights=str(path))  # masks of another size


# --- little of a pretrained network is trained -------------------------------------------------


def tuned(data, out, *overrides):
    """(weights before, after), by their names in the detector."""
    source = timm.create_model(VIT, num_classes=0, img_size=64)
    file = out.parent / "vit.safetensors"
    save_file(source.state_dict(), file)
    shrunk = [f"backbone.name={VIT}", f"backbone.weights={file}", "image_size=64", "batch_size=6"]
    preset = load_preset(overrides[0], [*shrunk, "epochs=1", "steps_per_epoch=3", *overrides[1:]])
    train(preset, [data], out, device="cpu")
    after = load_checkpoint(out, "cpu").detector.state_dict()
    before = {f"backbone.{name}": tensor for name, tensor in source.state_dict().items()}
    return before, after


def test_tuning_the_norms_changes_them_and_nothing_else_of_the_backbone(data, tmp_path):
    before, after = tuned(data, tmp_path / "run", "lntune-vit")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "norm" in name}
    assert {name for name in after if name not in before} >= {"classifier.weight"}


def test_a_probe_changes_nothing_of_the_backbone(data, tmp_path):
    before, after = tuned(data, tmp_path / "run", "probe-vit")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert after["backbone.head.weight"].shape == (2, 64)


@pytest.mark.parametrize("trains", ["all", "norms", "head"])
def test_a_backbone_that_is_not_wholly_trained_stays_as_in_use(trains):
    """Its running statistics stand still, and it drops nothing."""
    preset = load_preset("bce-tiny", [f"method.trains={trains}", "image_size=64"])
    method = make_method(preset, 2).train()
    assert method.training and method.detector.backbone.training == (trains == "all")
    statistics = method.detector.backbone.bn1.running_mean.clone()
    method(batch(64)).total.backward()
    still = torch.equal(method.detector.backbone.bn1.running_mean, statistics)
    assert still == (trains != "all")


@pytest.mark.parametrize("backbone", [VIT, "test_convnext", "test_efficientnet", "test_resnet"])
def test_norms_of_every_kind_are_tuned_and_the_head(backbone):
    overrides = [f"backbone.name={backbone}", "image_size=160", "method.trains=norms"]
    detector = make_method(load_preset("bce-tiny", overrides), 2).detector
    norms = [m for m in detector.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
    wanted = {id(p) for m in norms for p in m.parameters(recurse=False)}
    wanted |= {id(p) for p in detector.backbone.get_classifier().parameters()}
    assert len(norms) > 3
    assert {id(p) for p in detector.parameters() if p.requires_grad} == wanted


def test_a_network_without_norms_is_told_so():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.settings, self.head = {"backbone": "bare"}, "linear"

    options = SHELF["bce"].Options(trains="norms")
    with pytest.raises(DfdetectError, match="bare has no normalisation layers"):
        SHELF["bce"](Bare(), options, 2)


# --- presets -----------------------------------------------------------------------------------


def test_recipes_of_the_publications_stand_in_the_presets():
    meso, f3, fad, tune, probe = map(
        load_preset, ("bce-mesoinception4", "bce-f3net", "bce-f3net-fad", "lntune-vit", "probe-vit")
    )
    assert (meso.image_size, meso.optimizer.name, meso.optimizer.lr) == (256, "adam", 1e-3)
    assert meso.batch_size * len(meso.qualities) == 75
    assert (f3.image_size, f3.optimizer.name, f3.optimizer.lr) == (299, "sgd", 2e-3)
    assert abs(f3.batch_size * len(f3.qualities) - 128) <= 1
    assert (fad.image_size, fad.optimizer.name, fad.optimizer.lr) == (256, "adam", 2e-4)
    assert tune.method.options == {"head": "unit", "trains": "norms"}
    assert (tune.sampler, tune.optimizer.name, tune.optimizer.lr) == (
        "source_paired",
        "adamw",
        3e-4,
    )
    assert probe.method.options == {"head": "linear", "trains": "head"}
