"""Contracts that every method keeps, and checks of QAD and DID beyond the golden file."""

import copy

import pytest
import torch
from torch.nn import functional as F

from dfdetect.data import Batch
from dfdetect.detector import Detector
from dfdetect.methods import SHELF
from dfdetect.methods.awp import frozen_running_statistics, perturbable, perturbed_weights
from dfdetect.methods.did import mutual_information
from dfdetect.methods.hsic import centred_gram, cka, hsic

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
    detector = Detector(TINY, 48, **kind.detector_settings(settings))
    return kind(detector, settings, n_domains=3).train()


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


# --- QAD -------------------------------------------------------------------------------------


def steps(method, n=4):
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
def test_qad_without_its_two_parts_is_the_baseline_bit_for_bit(options):
    plain, bare = steps(make("bce")), steps(make("qad", gamma=0, **options))
    assert all(torch.equal(plain[name], bare[name]) for name in plain)


def test_the_update_is_that_of_an_optimizer_fed_with_gradients_from_the_perturbed_weights():
    method = make("qad", gamma=0.01)
    before = copy.deepcopy(method.state_dict())
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    with method.perturbed([batch()]):
        moved = [
            not torch.equal(p, before[f"detector.{n}"])
            for n, p in method.detector.named_parameters()
        ]
        method(batch()).total.backward()
    gradients = {n: p.grad.clone() for n, p in method.named_parameters()}
    for name, parameter in method.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} is not restored"
    optimizer.step()
    for name, parameter in method.named_parameters():
        assert torch.equal(parameter, before[name].add(gradients[name], alpha=-0.1))
    matrices = [p.ndim > 1 for p in method.detector.parameters()]
    assert moved == matrices  # every weight matrix moves, no bias and no batch-norm affine


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_weights_come_back_when_something_raises(problem):
    method = make("qad", gamma=0.05)
    before = copy.deepcopy(method.state_dict())
    norms = [m for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    with pytest.raises(problem), method.perturbed([batch()]):
        raise problem
    for name, parameter in method.named_parameters():
        assert torch.equal(parameter, before[name])
    assert [m.momentum for m in norms] == momenta


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
    reference.class_logits(batch())
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


def test_ascent_raises_the_loss_on_nearly_every_early_step():
    higher = 0
    for seed in range(20):
        method = make("qad", gamma=0.001)
        data = batch(seed=seed)
        weights, ascent = perturbable(method.detector), method._ascent_loss([data])
        with perturbed_weights(weights, ascent, gamma=0.001) as phi:
            higher += sum(ascent()).item() >= phi.loss_clean.item()
    assert higher >= 19


def test_the_order_of_qualities_does_not_matter():
    first, second = make("qad", gamma=0), make("qad", gamma=0)
    data = batch()
    shuffled = data._replace(images=data.images[:, [2, 0, 1]])
    a, b = first(data).total.item(), second(shuffled).total.item()
    assert a == pytest.approx(b, abs=1e-6)
    for (name, ours), theirs in zip(first.named_buffers(), second.buffers(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=1e-5), name


def test_hsic_has_a_gradient_by_default_and_none_to_speak_of_as_printed():
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
        {"hsic": "cca"}, {"hsic": "rff"},
        {"kernel_dim_norm": False}, {"awp_loss": "kl"}, {"awp_loss": "xe+kl"},
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


def test_hsic_under_autocast_keeps_float32():
    torch.manual_seed(0)
    x = 1 + 0.25 * torch.randn(16, 24)
    y = x + 0.05 * torch.randn(16, 24)
    exact = hsic(centred_gram(x.double(), 6.0), centred_gram(y.double(), 6.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        k, l = centred_gram(x, 6.0), centred_gram(y, 6.0)  # noqa: E741
        assert float(hsic(k, l)) == pytest.approx(float(exact), rel=1e-3)
        assert float(cka(k, k)) == pytest.approx(1.0, rel=1e-3)


# --- DID -------------------------------------------------------------------------------------


def test_at_beta_zero_the_backbone_does_not_feel_the_critic_but_the_critic_learns():
    with_critic, without = make("did"), make("did", lambda_dec=0)
    without.load_state_dict(with_critic.state_dict(), strict=False)
    for method in (with_critic, without):
        method.at(0, 10, 0, 10)
        torch.manual_seed(5)
        method(batch(q=1)).total.backward()
    critic = [p.grad.abs().sum() for p in with_critic.critic.parameters()]
    assert sum(critic) > 0
    pairs = zip(with_critic.detector.named_parameters(), without.detector.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7), name


@pytest.mark.parametrize(("part", "rises"), [("critic", True), ("detector", False)])
def test_the_critic_s_step_raises_the_estimate_and_the_backbone_s_lowers_it(part, rises):
    """The most likely bug is the sign: one SGD step on one side, that term alone in the loss."""
    method = make("did", lambda_cls=0, lambda_dom=0, lambda_dec=1, domain_real=True)
    method.beta = 1.0
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
            for p in method.critic.parameters():
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
    assert not hasattr(make("did", lambda_dec=0), "critic")
    assert not hasattr(make("did", lambda_dom=0), "domain_classifier")


def test_a_batch_of_one_class_has_no_auc_term_and_no_gradient_from_it():
    method = make("did")
    one_class = batch(q=1)._replace(labels=torch.ones(6, dtype=torch.long))
    loss = method(one_class)
    assert loss.terms["auc"] == 0 and loss.notes["pairs"] == 0
    assert loss.total.isfinite()


def test_domains_of_reals_can_be_left_out():
    method = make("did", domain_real=False)
    maps = method.decompose(batch(q=1).images.flatten(0, 1))
    logits = method.domain_classifier(maps.domain)
    domains = batch(q=1).domains
    expected = F.cross_entropy(logits[domains > 0], domains[domains > 0])
    assert torch.allclose(method._domain_loss(maps.domain, domains), expected)


def test_independent_scores_estimate_minus_two_log_two():
    zeros = torch.zeros(5)
    assert float(mutual_information(zeros, zeros)) == pytest.approx(-1.386294, abs=1e-6)
