"""Contracts that every method keeps, and checks of QAD and DID beyond the golden file.

`test_acceptance_N_...` are the numbered acceptance checks of the two methods; number 9, resuming,
is in test_train.py, and number 8 says what must never be tested: that QAD beats its baseline.
"""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from dfdetect.data import Batch
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError
from dfdetect.methods import SHELF, collaborative, make_method
from dfdetect.methods import hsic as dependence
from dfdetect.methods.awp import frozen_running_statistics, perturbable, perturbed_weights
from dfdetect.methods.did import auc_loss, domain_loss, mutual_information
from dfdetect.methods.hsic import centred_gram, cka, full_precision, hsic, squared_distances
from dfdetect.methods.qad import Options, _interleaved, classification_loss, collaborative_loss
from dfdetect.optim import make_optimizer
from dfdetect.presets import load_preset
from dfdetect.train import train

TINY = "test_efficientnet.r160_in1k"


def batch(n=6, q=3, size=48, seed=0):
    torch.manual_seed(seed)
    images = torch.rand(n, 1, 3, size, size) + 0.05 * torch.randn(n, q, 3, size, size)
    labels = torch.arange(n) % 2
    domains = labels * (1 + torch.arange(n) // 2 % 2)
    return Batch(images.clamp(0, 1), labels, domains, [f"s{i}" for i in range(n)])


def make(name, **options):
    torch.manual_seed(1)
    kind = SHELF[name]
    settings = kind.Options(**options)
    detector = Detector(TINY, 48, **kind.detector_settings(settings, 3))
    return kind(detector, settings, n_domains=3).train()


def logits_of(method, data):
    """[M,B,2]"""
    return method.class_logits(method.maps(data).final, data.images.shape[1])


@pytest.mark.parametrize("name", SHELF)
def test_the_terms_are_named_finite_detached_and_add_up(name):
    method = make(name)
    method.at(3, 10, 1, 4)
    loss = method(batch())
    assert loss.terms and all(not t.requires_grad and t.isfinite() for t in loss.terms.values())
    signed = sum(-t if term == "dec" else t for term, t in loss.terms.items())
    assert float(signed) == pytest.approx(loss.total.item(), rel=1e-5)
    assert loss.logits.shape == (6, 3)


@pytest.mark.parametrize("name", SHELF)
def test_a_few_steps_on_one_batch_lower_the_loss(name):
    method = make(name)
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    values = []
    for step in range(12):
        method.at(step, 12, 0, 1)
        with method.perturbed([batch()]):
            loss = method(batch())
            optimizer.zero_grad()
            loss.total.backward()
        optimizer.step()
        values.append(loss.total.item())
    assert values[-1] < values[0]


def spread_out(method):
    """With scores far apart, so that no two pairs of samples are alike."""
    with torch.no_grad():
        for module in method.modules():
            if isinstance(module, nn.Linear):
                module.weight *= 10
    return method


def gradients_in_parts(method, whole, n_parts):
    """Of the mean loss over the parts of a batch, with batch norm's running statistics."""
    method.eval()
    method.zero_grad()
    for part in whole.parts(n_parts):
        torch.manual_seed(3)  # the same marginal pairs
        (method(part).total / n_parts).backward()
    return torch.cat([p.grad.flatten() for p in method.detector.parameters()])


SEPARABLE = [
    ("bce", {}), ("qad", {"alpha": 0}), ("qad", {"collab": "none"}), ("qad", {"collab": "soft"}),
    ("qad", {"collab": "pairwise", "alpha": 1}), ("qad", {"collab": "center", "alpha": 1}),
    ("qad", {"collab": "soft+pairwise", "alpha": 1}), ("did", {"alpha": 1, "lambda_dec": 0}),
]  # fmt: skip
JOINT = [
    ("qad", {"alpha": 1}), ("qad", {"alpha": 1, "hsic": "cca"}),
    ("did", {"alpha": 0, "lambda_dec": 0}), ("did", {"alpha": 1, "lambda_dec": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), SEPARABLE, ids=str)
def test_a_batch_in_parts_is_the_same_step_for_losses_of_single_samples(name, options):
    method = spread_out(make(name, **options))
    method.at(1, 2, 1, 2)
    assert method.why_not_accumulate(method.options) == ""
    whole, parts = (gradients_in_parts(method, batch(n=8), n) for n in (1, 2))
    assert torch.allclose(whole, parts, rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize(("name", "options"), JOINT, ids=str)
def test_a_loss_that_compares_samples_says_why_a_batch_must_stay_whole(name, options):
    method = spread_out(make(name, **options))
    method.at(1, 2, 1, 2)
    assert "of a batch" in method.why_not_accumulate(method.options)
    whole, parts = (gradients_in_parts(method, batch(n=8), n) for n in (1, 2))
    assert not torch.allclose(whole, parts, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_a_domain_loss_of_fakes_alone_says_why_a_batch_must_stay_whole():
    """Halves with one fake and with three weigh them alike, the whole batch by their number."""
    method = spread_out(make("did", alpha=1, lambda_dec=0, domain_real=False))
    method.at(1, 2, 1, 2)
    assert "fakes of a batch" in method.why_not_accumulate(method.options)
    domains = torch.tensor([1, 0, 0, 0, 2, 2, 1, 0])
    data = batch(n=8)._replace(domains=domains, labels=domains.clamp_max(1))
    whole, parts = (gradients_in_parts(method, data, n) for n in (1, 2))
    assert not torch.allclose(whole, parts, rtol=0, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize(
    ("name", "options"),
    [("bce", {}), ("bce", {"head": "attention"}), ("qad", {}), ("qad", {"hsic": "biased"}),
     ("qad", {"collab": "center", "center": "class"}), ("qad", {"hsic": "rff"}), ("did", {}),
     ("did", {"domain_real": False}), ("did", {"lambda": "learned"}), ("qadid", {})],
    ids=str,
)  # fmt: skip
def test_no_loss_waits_for_a_value_from_the_device(name, options, monkeypatch):
    """Fake tensors have no values: asking for one raises."""
    monkeypatch.setattr(torch, "randint", lambda *_: 1)  # DID draws its roll on the CPU
    method = make(name, **options)
    method.at(1, 2, 1, 2)
    data = batch()
    with FakeTensorMode() as fake:
        for module in method.modules():
            for kept in (module._parameters, module._buffers):
                kept |= {key: fake.from_tensor(t) for key, t in kept.items() if t is not None}
        loss = method(Batch(*map(fake.from_tensor, data[:3]), data.sample_ids))
        loss.total.backward()
        with pytest.raises(DataDependentOutputException):
            loss.total.item()
    assert loss.total.shape == ()


# --- QAD -------------------------------------------------------------------------------------


def steps(method, n=5):
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    for step in range(n):
        method.at(step, n, 0, 1)
        with method.perturbed([batch(seed=step)]):
            loss = method(batch(seed=step))
            optimizer.zero_grad()
            loss.total.backward()
        optimizer.step()
    return method.detector.state_dict()


@pytest.mark.parametrize("options", [{"alpha": 0}, {"collab": "none"}], ids=str)
def test_acceptance_1_qad_without_its_parts_steps_as_the_baseline_bit_for_bit(options):
    plain, bare = steps(make("bce")), steps(make("qad", gamma=0, **options))
    assert all(torch.equal(plain[name], bare[name]) for name in plain)
    different = steps(make("qad", gamma=0.001, **options))  # the comparison can fail
    assert not all(torch.equal(plain[name], different[name]) for name in plain)


def test_acceptance_1_the_trainer_gives_both_the_same_weights_and_buffers(data, tmp_path):
    """Five steps and one validation: the checkpoint is that of the last step."""
    from safetensors.torch import load_file

    shape = ["image_size=64", "epochs=1", "steps_per_epoch=5"]
    bare = [*shape, "method.gamma=0", "method.alpha=0"]
    presets = {
        "bce": load_preset("bce-tiny", shape),
        "qad": load_preset("qad-tiny", bare),
        "other": load_preset("qad-tiny", [*bare, "method.gamma=0.001"]),
    }
    for name, preset in presets.items():
        assert train(preset, [data], tmp_path / name, device="cpu").best_step == 5
    plain, bare, other = (
        load_file(tmp_path / name / "detector.safetensors") for name in ("bce", "qad", "other")
    )
    assert any("running_var" in name for name in plain)
    assert all(torch.equal(plain[name], bare[name]) for name in plain)
    assert not all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_acceptance_2_the_update_is_an_optimizer_s_fed_with_gradients_from_the_perturbed_weights(
    kind,
):
    method = make("qad", gamma=0.01)
    fed = copy.deepcopy(method)
    optimizer, fed_optimizer = (kind(m.parameters(), lr=0.01) for m in (method, fed))
    for step in range(3):
        data = batch(seed=step)
        before = {n: p.detach().clone() for n, p in method.named_parameters()}
        perturbed = copy.deepcopy(method)
        with method.perturbed([data]):
            method.zero_grad()
            method(data).total.backward()
            with torch.no_grad():
                for ours, theirs in zip(perturbed.parameters(), method.parameters(), strict=True):
                    ours.copy_(theirs)
        for name, parameter in method.named_parameters():
            assert torch.equal(parameter, before[name]), f"{name} is not restored"
        # The same gradients, taken by a model that holds theta + phi as its own weights.
        perturbed.zero_grad()
        perturbed(data).total.backward()
        for ours, theirs in zip(fed.parameters(), perturbed.parameters(), strict=True):
            ours.grad = theirs.grad.clone()
        optimizer.step()
        fed_optimizer.step()
        for ours, theirs in zip(method.parameters(), fed.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_the_offsets_are_the_ones_of_equation_5_on_weight_matrices_alone():
    method = make("qad", gamma=0.01)
    data = batch()
    reference = copy.deepcopy(method)
    logits = logits_of(reference, data)
    F.cross_entropy(logits.flatten(0, 1), data.labels.repeat(3)).backward()
    with method.perturbed([data]):
        pairs = zip(
            method.detector.named_parameters(), reference.detector.parameters(), strict=True
        )
        for (name, moved), clean in pairs:
            if clean.ndim > 1:
                phi = 0.01 * clean.norm() * clean.grad / clean.grad.norm()
                assert torch.allclose(moved, clean + phi, atol=1e-6), name
            else:
                assert torch.equal(moved, clean), name


def test_acceptance_2_nobody_who_watches_training_sees_perturbed_weights(data, tmp_path):
    """After every optimizer step the weights are noted; every event finds exactly those."""
    noted, watched = {}, []

    def note(optimizer, *_):
        noted.update((p, p.detach().clone()) for g in optimizer.param_groups for p in g["params"])

    def watch(event):
        if event["kind"] in ("train", "val") and noted:
            watched.append(all(torch.equal(p, value) for p, value in noted.items()))

    preset = load_preset(
        "qad-tiny", ["image_size=64", "epochs=2", "steps_per_epoch=2", "method.gamma=0.05"]
    )
    handle = register_optimizer_step_post_hook(note)
    try:
        train(preset, [data], tmp_path / "run", device="cpu", on_event=watch)
    finally:
        handle.remove()
    assert len(watched) == 6 and all(watched)  # four steps, two validations


def test_the_offsets_of_a_batch_in_parts_are_those_of_the_whole_batch():
    """Batch norm set aside; parts of unequal size count by their samples."""
    method = make("qad", gamma=0.05, alpha=0).eval()
    whole = batch(n=6)
    parts = [Batch(*(f[:4] for f in whole)), Batch(*(f[4:] for f in whole))]
    seen = []
    for batches in ([whole], parts):
        with method.perturbed(batches) as notes:
            weights = [p.detach().clone() for p in perturbable(method.detector)]
            seen.append((weights, notes["awp_loss_clean"]))
    (together, loss), (in_parts, loss_in_parts) = seen
    assert loss == pytest.approx(loss_in_parts, rel=1e-5)
    for ours, theirs in zip(together, in_parts, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5 * float(ours.abs().max()))


def as_it_is(method):
    return method


def channels_last(method):
    return method.to(memory_format=torch.channels_last)


def compiled(method):
    """Traced and guarded as by torch.compile, but run without its code generator."""
    method.detector.features = torch.compile(method.detector.features, backend="eager")
    return method


@pytest.mark.parametrize("form", [as_it_is, channels_last, compiled])
@pytest.mark.parametrize("place", ["ascent", "descent"])
@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_acceptance_3_weights_come_back_bit_for_bit_when_something_raises(problem, place, form):
    method = form(make("qad", gamma=0.05, awp_steps=2))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    n_forwards = 0

    def trip(*_):
        nonlocal n_forwards
        n_forwards += 1
        if place == "ascent" and n_forwards == 2:  # perturbed once, and about to ascend again
            raise problem

    handle = method.detector.backbone.get_classifier().register_forward_hook(trip)
    with pytest.raises(problem), method.perturbed([batch()]):
        moved = [not torch.equal(p, before[n]) for n, p in method.named_parameters()]
        assert any(moved)
        method(batch())
        raise problem
    handle.remove()
    for name, parameter in method.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.stride() == before[name].stride()
    assert [m.momentum for m in norms] == momenta


def test_a_gradient_that_is_not_finite_perturbs_nothing():
    method = make("qad", gamma=0.05)
    before = copy.deepcopy(method.state_dict())
    data = batch()
    data.images[0, 0, 0, 0, 0] = torch.nan
    with method.perturbed([data]) as notes:
        assert notes["awp_applied"] == 0
        assert all(torch.equal(p, before[n]) for n, p in method.named_parameters())


@pytest.mark.parametrize("rule", ["clean", "perturbed"])
def test_running_statistics_move_exactly_once_per_step_in_the_pass_the_rule_names(rule):
    method = make("qad", gamma=0.05, bn_stats=rule, awp_steps=2)
    reference = copy.deepcopy(method)
    with method.perturbed([batch()]):
        if rule == "perturbed":
            weights = copy.deepcopy(dict(method.detector.named_parameters()))
        method(batch())
    if rule == "perturbed":
        with torch.no_grad():
            for name, parameter in reference.detector.named_parameters():
                parameter.copy_(weights[name])
    reference.train()
    reference.maps(batch())
    ours, theirs = dict(method.named_buffers()), dict(reference.named_buffers())
    for name in ours:
        if "running" in name:
            assert torch.allclose(ours[name], theirs[name], atol=1e-6), name


def test_frozen_statistics_survive_nesting():
    network = torch.nn.BatchNorm2d(3)
    with frozen_running_statistics(network), frozen_running_statistics(network):
        network(torch.randn(4, 3, 2, 2))
    assert network.momentum == 0.1
    assert network.running_mean.tolist() == [0, 0, 0]


@pytest.mark.parametrize("fraction", [1.0, 0.34])
def test_acceptance_4_ascent_raises_the_loss_on_nearly_every_early_step(fraction):
    """On the samples it looked at, batch norm in training mode."""
    method = make("qad", gamma=0.001, ascent_fraction=fraction)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    higher = 0
    for step in range(20):
        data = batch(seed=step)
        weights, ascent = perturbable(method.detector), method._ascent_loss([data])
        with perturbed_weights(weights, ascent, gamma=0.001) as phi:
            higher += sum(ascent()).item() >= phi.loss_clean.item()
            method.zero_grad()
            method(data).total.backward()
        optimizer.step()
    assert higher >= 19


@pytest.mark.parametrize(
    "options",
    [{}, {"collab": "soft"}, {"collab": "pairwise"}, {"collab": "center"}, {"hsic": "biased"}],
    ids=str,
)
def test_acceptance_5_the_order_of_qualities_changes_neither_loss_nor_running_statistics(options):
    first, second = (make("qad", gamma=0, alpha=1, **options) for _ in range(2))
    data = batch()
    shuffled = data._replace(images=data.images[:, [2, 0, 1]])
    a, b = first(data).total.item(), second(shuffled).total.item()
    assert a == pytest.approx(b, abs=1e-6)
    for (name, ours), theirs in zip(first.named_buffers(), second.buffers(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=0, atol=1e-6), name


def test_acceptance_6_hsic_has_a_gradient_by_default_and_none_to_speak_of_as_printed():
    ratios = {}
    for measure in ("cka", "biased"):
        method = make("qad", hsic=measure)
        method.measure = True
        ratios[measure] = float(method(batch()).notes["reg_ratio"])
    assert ratios["cka"] > 1e-5 > ratios["biased"]


@pytest.mark.parametrize(
    "options",
    [
        {"collab": "soft"}, {"collab": "pairwise"}, {"collab": "center"},
        {"collab": "center", "center": "class"}, {"collab": "soft+pairwise"},
        {"collab": "pairwise", "pairwise_dim_norm": False, "collab_weight": 0.1},
        {"hsic": "cca"}, {"hsic": "rff"}, {"hsic_gather": True}, {"ascent_fraction": 0.3},
        {"kernel_dim_norm": False}, {"awp_loss": "kl", "awp_kl_from": 2}, {"awp_loss": "xe+kl"},
        {"awp_scope": "global"},
        {"awp_steps": 2, "awp_eta": 0.001}, {"layers": (4, 32)}, {"pairs": "all"},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_gives_a_finite_loss_and_gradient(options):
    method = make("qad", **options)
    with method.perturbed([batch()]):
        loss = method(batch())
        loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_a_single_quality_has_no_collaborative_term():
    loss = make("qad")(batch(q=1))
    assert set(loss.terms) == {"ce"}


def test_awp_waits_for_its_warm_up():
    method = make("qad", gamma=0.05, awp_warmup_steps=2)
    method.at(1, 10, 0, 1)
    with method.perturbed([batch()]) as notes:
        assert notes == {}
    method.at(2, 10, 0, 1)
    with method.perturbed([batch()]) as notes:
        assert notes["awp_applied"] == 1


def offsets(method, data):
    with method.perturbed([data]):
        return [p.detach().clone() for p in perturbable(method.detector)]


def test_the_ascent_may_look_at_part_of_the_batch_with_its_classes_in_their_shares():
    """Labels 0 0 0 0 1 1 0 1: five of class 0, three of class 1."""
    order = _interleaved(torch.tensor([0, 0, 0, 0, 1, 1, 0, 1])).tolist()
    assert order == [0, 4, 1, 5, 2, 3, 7, 6]  # at 0, 0, 1/5, 1/3, 2/5, 3/5, 2/3, 4/5 of its class
    sparse = _interleaved(torch.tensor([1] * 30 + [0]))
    assert sparse[:2].tolist() == [0, 30]
    data = batch(n=8)._replace(labels=torch.tensor([0, 0, 0, 0, 1, 1, 0, 1]))
    chosen = Batch(*(f[[0, 4, 1]] for f in data[:3]), [])
    part, alone = make("qad", ascent_fraction=0.33), make("qad")
    for ours, theirs in zip(offsets(part, data), offsets(alone, chosen), strict=True):
        assert torch.equal(ours, theirs)


def test_a_tiny_share_of_a_tiny_batch_is_still_both_classes():
    part, alone = make("qad", ascent_fraction=0.01), make("qad")
    chosen = Batch(*(f[:2] for f in batch()))  # labels 0 1 0 1 0 1
    for ours, theirs in zip(offsets(part, batch()), offsets(alone, chosen), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rule", ["clean", "perturbed"])
def test_with_a_partial_ascent_the_rule_for_running_statistics_stays_as_it_is(rule):
    """clean: those of the samples that were looked at; perturbed: those of the whole batch."""
    method = make("qad", gamma=0, ascent_fraction=0.5)
    method.options = method.options.model_copy(update={"gamma": 1e-12, "bn_stats": rule})
    expected = make("qad", gamma=0)
    data = batch()
    with method.perturbed([data]):
        method(data)
    chosen = torch.tensor([0, 1, 2])
    seen = data._replace(images=data.images[chosen], labels=data.labels[chosen])
    expected.maps(seen if rule == "clean" else data)
    for (name, ours), theirs in zip(method.named_buffers(), expected.buffers(), strict=True):
        if "running" in name:
            assert torch.allclose(ours, theirs, atol=1e-6), name


def test_a_quality_that_is_not_there_cannot_be_compared_with():
    method = make("qad", awp_loss="kl", awp_kl_from=3)
    complaint = pytest.raises(DfdetectError, match="awp_kl_from=3: there are 3 qualities")
    with complaint, method.perturbed([batch()]):
        pass


def test_with_one_quality_divergence_gives_way_to_cross_entropy():
    single = batch(q=1)
    pairs = zip(
        offsets(make("qad", awp_loss="kl"), single), offsets(make("qad"), single), strict=True
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_random_frequencies_are_a_function_of_the_step():
    method = make("qad", hsic="rff", alpha=1, gamma=0).eval()
    losses = []
    for step in (4, 4, 5):
        method.at(step, 10, 0, 1)
        torch.rand(step + len(losses))  # the global state goes on
        losses.append(method(batch()).terms["hsic"].item())
    assert losses[0] == losses[1] != losses[2]


def test_class_centres_move_by_their_own_rule():
    """Class 0 has x = 2 and 4 and c = 1: c + .5 (1 + 3) / (1 + 2); class 1 has none and stays."""
    moved = collaborative.moved_centres(
        torch.tensor([[2.0], [4.0]]), torch.tensor([0, 0]), torch.tensor([[1.0], [7.0]]), 0.5
    )
    assert moved.tolist() == [[pytest.approx(1 + 0.5 * 4 / 3)], [7.0]]


def test_class_centres_follow_pooled_maps_while_training_and_are_part_of_the_state():
    method = make("qad", collab="center", center="class", collab_weight=0.25, gamma=0)
    assert "centre_8" in method.state_dict() and len(method.centre_8) == 2
    with torch.no_grad():
        method.centre_8 += 1
    data = batch()
    start = method.centre_8.clone()
    with frozen_running_statistics(method):
        maps = method.maps(data, (8, 16, 32)).taps
    pooled = maps[0].mean((2, 3)).detach()
    labels = data.labels.repeat(3)
    loss = method(data)
    terms = [
        sum(
            0.5 * ((row - centre[y]) ** 2).mean()
            for row, y in zip(m.mean((2, 3)), labels, strict=True)
        )
        / len(labels)
        for m, centre in zip(
            maps, (start, torch.zeros_like(method.centre_16), torch.zeros_like(method.centre_32)),
            strict=True,
        )
    ]  # fmt: skip
    assert float(loss.terms["center"]) == pytest.approx(0.25 * sum(terms).item() / 3, rel=1e-4)
    for y in (0, 1):
        rows = pooled[labels == y]
        expected = start[y] + 0.5 * (rows - start[y]).sum(0) / (1 + len(rows))
        assert torch.allclose(method.centre_8[y], expected, atol=1e-5)
    kept = method.centre_8.clone()
    method.eval()(data)
    assert torch.equal(method.centre_8, kept)


def test_fang_and_lin_is_soft_labels_at_the_output_and_distances_of_the_maps():
    method = make("qad", collab="soft+pairwise", alpha=0.5, gamma=0).eval()
    data = batch()
    final, maps = method.maps(data, (8, 16, 32))
    logits = method.class_logits(final, 3)
    distances = [collaborative.pairwise(m.unflatten(0, (3, 6))) for m in maps]
    loss = method(data)
    assert set(loss.terms) == {"soft", "pairwise"}
    soft = collaborative.soft_label(logits, data.labels)
    assert loss.terms["soft"] == pytest.approx(soft.item(), rel=1e-6)
    assert loss.terms["pairwise"] == pytest.approx(0.5 * sum(distances).item() / 3, rel=1e-5)


def test_the_collaborative_weight_is_alpha_unless_it_is_given_and_alpha_for_hsic():
    assert Options(alpha=0.3, collab="pairwise").weight == 0.3
    assert Options(alpha=0.3, collab="pairwise", collab_weight=0.7).weight == 0.7
    assert Options(alpha=0.3, collab="hsic", collab_weight=0.7).weight == 0.3
    without = make("qad", collab="center", collab_weight=0.0, gamma=0)
    assert set(without(batch()).terms) == {"ce"}


def test_the_extractor_can_rest_while_the_head_begins():
    method = make("qad", freeze_epochs=2, gamma=0.05)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2, weight_decay=0.1)
    head = {id(p) for p in method.detector.head_parameters()}
    assert method.skips_parameters(method.options) and not make("qad").skips_parameters(Options())
    for epoch in range(3):
        before = {n: p.detach().clone() for n, p in method.named_parameters()}
        method.at(epoch, 3, epoch, 3)
        with method.perturbed([batch(seed=epoch)]):
            for name, p in method.named_parameters():
                rests = epoch < 2 and id(p) not in head
                moves = p.ndim > 1 and not rests
                assert torch.equal(p, before[name]) != moves, name
            optimizer.zero_grad(set_to_none=True)
            method(batch(seed=epoch)).total.backward()
        optimizer.step()
        for name, p in method.named_parameters():
            rests = epoch < 2 and id(p) not in head
            assert torch.equal(p, before[name]) == rests, name


@pytest.mark.parametrize("shape", [(5, 37), (5, 3, 4, 4)])
def test_distances_and_their_gradient_are_those_of_explicit_differences(shape, monkeypatch):
    monkeypatch.setattr(dependence, "_COLUMNS", 7)  # several products
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    rows = x.flatten(1)
    explicit = (rows[:, None] - rows[None, :]).square().sum(-1)
    assert torch.allclose(squared_distances(rows), explicit, rtol=1e-12)
    weights = torch.randn(5, 5, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((weights * d).sum(), x)[0] for d in (squared_distances(rows), explicit)
    )
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_a_gram_matrix_of_channels_last_maps_is_the_same_and_so_is_its_gradient():
    maps = torch.randn(6, 5, 4, 3)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = maps.clone(memory_format=layout).requires_grad_()
        gram = centred_gram(x, 6.0)
        gram.square().sum().backward()
        results.append((gram, x.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(
            ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.detach().abs().max())
        )


def test_a_constant_view_depends_on_nothing_and_asks_for_nothing():
    constant = torch.ones(4, 6, requires_grad=True)
    other = torch.randn(4, 6, requires_grad=True)
    for pair in ((constant, other), (other, constant), (constant, constant)):
        value = cka(*(centred_gram(x, 6.0) for x in pair))
        assert value == 0
        for gradient in torch.autograd.grad(value, pair, allow_unused=True):
            assert torch.equal(gradient, torch.zeros(4, 6))


def test_products_at_full_precision_leave_the_switches_as_they_were():
    """TF32 can only be seen on a GPU; its switches can be read everywhere."""
    cuda = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        x = torch.randn(4, 3, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with pytest.raises(KeyError), full_precision("cpu"):
                assert (x @ x.T).dtype == torch.float32
                assert torch.get_float32_matmul_precision() == "highest"
                assert not cuda.allow_tf32
                raise KeyError
            assert (x @ x.T).dtype == torch.bfloat16
        squared_distances(x).sum().backward()
        assert torch.get_float32_matmul_precision() == "high" and cuda.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_hsic_under_autocast_keeps_float32():
    torch.manual_seed(0)
    x = 1 + 0.25 * torch.randn(16, 24)
    y = x + 0.05 * torch.randn(16, 24)
    exact = hsic(centred_gram(x.double(), 6.0), centred_gram(y.double(), 6.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        k, l = centred_gram(x, 6.0), centred_gram(y, 6.0)  # noqa: E741
        assert float(hsic(k, l)) == pytest.approx(float(exact), rel=1e-3)
        assert float(cka(k, k)) == pytest.approx(1.0, rel=1e-3)


# --- the maps that QAD compares ---------------------------------------------------------------

CHANNELS = {  # at strides 4, 8, 16, 32
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "efficientnet_b0": (24, 40, 112, 320),
    "efficientnet_b1": (24, 40, 112, 320),
    "tf_efficientnet_b0": (24, 40, 112, 320),
    "tf_efficientnet_b1": (24, 40, 112, 320),
    "tf_efficientnetv2_l": (64, 96, 224, 640),
    "legacy_xception": (128, 256, 728, 2048),
    "convnext_atto": (40, 80, 160, 320),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_taps_of_real_networks_have_the_strides_and_channels_of_their_stages(name):
    """On the meta device: shapes without arithmetic. Figure 4's sizes."""
    with torch.device("meta"):
        detector = Detector(name, 224)
    for size in (56, 112, 168, 224, 240, 280, 336):
        images = torch.empty(2, 3, size, size, device="meta")
        taps = detector.features(images, (4, 8, 16, 32)).taps
        assert [tap.shape[:2] for tap in taps] == [(2, c) for c in CHANNELS[name]]
        if name not in ("legacy_xception", "convnext_atto"):  # without padding at their first steps
            sides = [(-(-size // stride),) * 2 for stride in (4, 8, 16, 32)]
            assert [tuple(tap.shape[2:]) for tap in taps] == sides
    channels = dict(zip((4, 8, 16, 32), CHANNELS[name], strict=True))
    assert detector.channels | channels == detector.channels


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "legacy_xception"])
def test_a_tap_is_the_map_as_the_next_stage_gets_it(name):
    """No later operation in place has changed it."""
    detector = Detector(name, 64).eval()
    images = torch.rand(1, 3, 64, 64)
    taps = detector.features(images, (4, 8, 16, 32)).taps
    normalised = (images - detector.mean) / detector.std
    for tap, stride in zip(taps, (4, 8, 16, 32), strict=True):
        last = [i for i, s in enumerate(detector.strides) if s == stride][-1]
        (alone,) = detector.backbone.forward_intermediates(
            normalised, indices=[last], stop_early=True, intermediates_only=True
        )
        assert torch.equal(tap, alone)


@pytest.mark.parametrize(
    ("backbone", "layers", "line"),
    [
        ("test_vit.r160_in1k", (8,), "no map of stride 8; it has 16"),
        ("resnet18", (4, 64), "no map of stride 64; it has 2, 4, 8, 16, 32"),
    ],
)
def test_a_network_without_the_maps_is_named_with_those_it_has(backbone, layers, line):
    with torch.device("meta"):
        detector = Detector(backbone, 160)
    with pytest.raises(DfdetectError) as error:
        SHELF["qad"](detector, Options(layers=layers), 2)
    assert line in error.value.line
    SHELF["qad"](detector, Options(layers=layers, collab="soft"), 2)  # which compares no maps


def test_a_network_that_shows_no_maps_is_named(monkeypatch):
    detector = Detector(TINY, 64)
    detector.channels = {}
    with pytest.raises(DfdetectError, match="no map of stride 8") as error:
        SHELF["qad"](detector, Options(), 2)
    assert error.value.hint == "it has no maps to compare"


def test_layers_may_be_given_in_any_order_and_twice():
    assert Options(layers=(32, 8, 8)).layers == (8, 32)


def test_maps_of_the_paper_s_networks_give_a_finite_loss_at_small_sizes():
    labels = torch.arange(4) % 2
    for size in (56, 112):
        detector = Detector("efficientnet_b0", size)
        final, taps = detector.features(torch.rand(12, 3, size, size), (8, 16, 32))
        logits = detector.class_logits(final).unflatten(0, (3, 4))
        assert classification_loss(logits, labels, Options()).isfinite()
        l2 = collaborative_loss([t.unflatten(0, (3, 4)) for t in taps], labels, Options())
        assert -9 <= l2 < 0  # three layers, three pairs, each in 0..1


# --- DID -------------------------------------------------------------------------------------


def test_acceptance_7_at_beta_zero_the_backbone_does_not_feel_the_critic_but_the_critic_learns():
    with_critic, without = make("did"), make("did", lambda_dec=0)
    without.load_state_dict(with_critic.state_dict(), strict=False)
    for method in (with_critic, without):
        method.at(0, 10, 0, 10)
        torch.manual_seed(5)
        method(batch(q=1)).total.backward()
    critic = [p.grad.abs().sum() for p in with_critic.objective.critic.parameters()]
    assert sum(critic) > 0
    pairs = zip(with_critic.detector.named_parameters(), without.detector.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7), name


@pytest.mark.parametrize(("part", "rises"), [("objective", True), ("detector", False)])
def test_acceptance_7_the_critic_s_step_raises_the_estimate_and_the_backbone_s_lowers_it(
    part, rises
):
    """The most likely bug is the sign: one SGD step on one side, that term alone in the loss."""
    method = make("did", lambda_cls=0, lambda_dom=0, lambda_dec=1, domain_real=True)
    method.objective.beta = 1.0
    data = batch(n=8, q=1)

    def estimate():
        torch.manual_seed(7)  # the same marginal pairs
        with frozen_running_statistics(method):
            return method(data)

    for _ in range(30):  # a critic that knows something
        loss = estimate()
        method.zero_grad()
        loss.total.backward()
        with torch.no_grad():
            for p in method.objective.critic.parameters():
                p -= 0.05 * p.grad
    before = estimate()
    method.zero_grad()
    before.total.backward()
    with torch.no_grad():
        for p in getattr(method, part).parameters():
            if p.grad is not None:
                p -= 0.01 * p.grad
    after = estimate()
    change = float(after.notes["mutual_information"] - before.notes["mutual_information"])
    assert change > 0 if rises else change < 0


def test_dropped_parts_are_not_built():
    assert not hasattr(make("did", lambda_dec=0).objective, "critic")
    assert not hasattr(make("did", lambda_dom=0).detector, "domain_classifier")


def test_a_batch_of_one_class_has_no_auc_term_and_no_gradient_from_it():
    method = make("did")
    one_class = batch(q=1)._replace(labels=torch.ones(6, dtype=torch.long))
    loss = method(one_class)
    assert loss.terms["auc"] == 0 and loss.notes["pairs"] == 0
    assert loss.total.isfinite()


@pytest.mark.parametrize("space", ["prob", "logit"])
def test_the_auc_loss_is_the_mean_over_pairs_counted_one_by_one(space):
    logits, labels = torch.randn(7, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    scores = (logits.sigmoid() if space == "prob" else logits).tolist()
    pairs = [
        max(0.0, 0.15 - (scores[i] - scores[j])) ** 2
        for i in range(7)
        for j in range(7)
        if labels[i] == 1 and labels[j] == 0
    ]
    assert len(pairs) == 12
    assert auc_loss(logits, labels, space=space).item() == pytest.approx(sum(pairs) / 12)


def test_domains_of_reals_can_be_left_out():
    logits, domains = torch.randn(6, 4), torch.tensor([0, 1, 0, 3, 2, 0])
    expected = F.cross_entropy(logits[domains > 0], domains[domains > 0])
    assert torch.allclose(domain_loss(logits, domains, real=False), expected)
    assert domain_loss(logits, torch.zeros(6, dtype=torch.long), real=False) == 0


def test_the_released_variant_of_the_auc_loss_works_against_cross_entropy():
    """A diagnostic: it averages over the pairs that fall short alone, with the sign reversed."""
    labels = torch.tensor([0, 1, 1, 0])
    logits = torch.tensor([-2.0, 1.0, 3.0, 0.0], dtype=torch.float64, requires_grad=True)
    scores = logits.detach().sigmoid()
    ahead = [scores[i] - scores[j] for i in (1, 2) for j in (0, 3)]
    short = [(0.15 + a) ** 2 for a in ahead if -a < 0.15]
    value = auc_loss(logits, labels, variant="pu_released")
    assert value.item() == pytest.approx(float(sum(short) / len(short)))
    (released,) = torch.autograd.grad(value, logits)
    bce = F.binary_cross_entropy_with_logits(logits, labels.to(logits))
    (wanted,) = torch.autograd.grad(bce, logits)
    assert released @ wanted < 0
    assert auc_loss(logits, labels) == 0  # as defined: every pair is far enough apart


def test_learned_weights_begin_as_the_given_ones_and_move_towards_the_inverse_of_their_loss():
    learned, fixed = make("did", **{"lambda": "learned"}), make("did")
    fixed.load_state_dict(learned.state_dict(), strict=False)
    for method in (learned, fixed):
        method.at(5, 10, 5, 10)
        torch.manual_seed(5)
        method(batch(q=1)).total.backward()
    for ours, theirs in zip(
        learned.detector.parameters(), fixed.detector.parameters(), strict=True
    ):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)
    torch.manual_seed(5)
    loss = fixed(batch(q=1))
    losses = {"dec": -loss.terms["dec"], "cls": loss.terms["bce"] + loss.terms["auc"]}
    losses["dom"] = loss.terms["dom"]
    for name, log_weight in learned.objective.log_weights.items():
        assert float(log_weight.grad) == pytest.approx(float(losses[name]) - 1, abs=1e-5), name


def test_a_learned_weight_rests_while_its_term_is_not_there():
    for fixed in ({}, {"lambda_cls": 0, "lambda_dec": 0}):
        method = make("did", **{"lambda": "learned", "domains": "auto"}, **fixed)
        method.at(0, 10, 0, 10)
        loss = method(batch())
        loss.total.backward()
        weights = dict(method.objective.log_weights)
        assert weights.pop("dom").grad is None
        logs = [log.item() for log in weights.values()]
        assert loss.terms["spread"].item() == pytest.approx(-sum(logs))


def test_learned_weights_do_not_decay():
    method = make("did", **{"lambda": "learned"})
    options = load_preset("did-tiny").optimizer
    groups = make_optimizer(method, options).param_groups
    (balance,) = [g for g in groups if g["params"] == method.balancing_parameters()]
    assert balance["weight_decay"] == 0 < groups[0]["weight_decay"]
    assert sum(len(g["params"]) for g in groups) == len(list(method.parameters()))


def test_automatic_domains_wait_for_their_warm_up_and_are_looked_for_every_so_often():
    method = make("did", domains="auto", auto_groups=2, auto_warmup_epochs=2, auto_every_epochs=3)
    assert [epoch for epoch in range(10) if method.regroups(epoch)] == [2, 5, 8]
    assert not any(make("did").regroups(epoch) for epoch in range(10))
    assert not any(make("did", domains="auto", lambda_dom=0).regroups(e) for e in range(10))
    for epoch, told in ((0, False), (1, False), (2, True)):
        method.at(epoch, 10, epoch, 10)
        assert ("dom" in method(batch()).terms) == told


def test_automatic_domains_have_names_of_their_own():
    options = SHELF["did"].Options(domains="auto", auto_groups=3)
    names = SHELF["did"].domains(options, ["real", "Deepfakes"])
    assert names == ["real", "group 1", "group 2", "group 3"]
    both = SHELF["qadid"].Options(did={"domains": "auto", "auto_groups": 3})
    assert SHELF["qadid"].domains(both, ["real", "Deepfakes"]) == names


def test_reals_that_are_no_domain_have_no_name_among_the_domains():
    for domains in ("manifest", "auto"):
        options = SHELF["did"].Options(domains=domains, domain_real=False)
        first, *others = SHELF["did"].domains(options, ["real", "Deepfakes"])
        assert first == "no domain" and "real" not in others


@pytest.mark.parametrize(("name", "under"), [("did", ""), ("qadid", "did.")])
def test_options_are_named_to_a_user_as_a_preset_names_them(name, under):
    preset = load_preset(f"{name}-tiny", [f"method.{under}weighting=learned"])
    with pytest.raises(DfdetectError, match="unknown option") as caught:
        make_method(preset, 3)
    assert f"{under}lambda," in caught.value.hint and "weighting" not in caught.value.hint


# --- QAD and DID together --------------------------------------------------------------------


def test_qadid_is_the_sum_of_what_qad_and_did_say_of_the_same_maps():
    both = make("qadid", qad={"alpha": 0.5, "gamma": 0})
    alone = SHELF["did"](both.detector, both.objective.options, 3).train()
    alone.load_state_dict(both.state_dict(), strict=False)
    for method in (both, alone):
        method.at(5, 10, 5, 10)
    data = batch()
    torch.manual_seed(5)
    loss = both(data)
    torch.manual_seed(5)
    of_did = alone(data)
    taps = [m.unflatten(0, (3, 6)) for m in both.maps(data, (8, 16, 32)).taps]
    tie = 0.5 * collaborative_loss(taps, data.labels, both.options)
    told = {name: float(term) for name, term in loss.terms.items()}
    of_parts = {name: float(term) for name, term in of_did.terms.items()} | {
        "hsic": float(tie.detach())
    }
    assert told == pytest.approx(of_parts, rel=1e-4)
    assert float(loss.total) == pytest.approx(float(of_did.total + tie), rel=1e-5)
    assert torch.allclose(loss.logits, of_did.logits, atol=1e-5)


def test_qadid_without_qad_s_parts_steps_as_did_bit_for_bit():
    ours, theirs = (steps(make("qadid", qad={"alpha": 0, "gamma": 0})), steps(make("did")))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_qadid_perturbs_what_its_score_depends_on_and_leaves_the_domain_head():
    method = make("qadid", qad={"gamma": 0.02})
    clean = copy.deepcopy(dict(method.detector.named_parameters()))
    with method.perturbed([batch()]) as notes:
        moved = {n for n, p in method.detector.named_parameters() if not torch.equal(p, clean[n])}
        assert notes["awp_applied"]
    matrices = {n for n, p in clean.items() if p.ndim > 1}
    assert moved == {n for n in matrices if not n.startswith("domain_")}
    for name, parameter in method.detector.named_parameters():
        assert torch.equal(parameter, clean[name])


def test_qadid_measures_both_regularisers_beside_the_classification_alone():
    """A heavier domain loss leaves both ratios as they are."""
    ratios = []
    for weight in (1.0, 100.0):
        method = make("qadid", did={"lambda_dom": weight})
        method.at(5, 10, 5, 10)
        method.measure = True
        torch.manual_seed(5)
        notes = method(batch()).notes
        ratios.append([float(notes["reg_ratio"]), float(notes["dec_ratio"])])
    assert min(ratios[0]) > 0 and ratios[0] == pytest.approx(ratios[1], rel=1e-3)


def test_qadid_refuses_soft_labels_in_the_place_of_did_s_cross_entropy():
    preset = load_preset("qadid-tiny", ["method.qad.collab=soft"])
    with pytest.raises(DfdetectError, match="qad: soft labels take the place of the cross-entropy"):
        make_method(preset, 3)


def test_independent_scores_estimate_minus_two_log_two():
    zeros = torch.zeros(5)
    assert float(mutual_information(zeros, zeros)) == pytest.approx(-1.386294, abs=1e-6)
