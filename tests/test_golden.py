"""Every case of the golden file, computed by the project's own functions in float64 and float32.

Tolerances are the file's own: float64 rel 1e-9 (gradients 1e-8) + abs 1e-12, float32 rel 1e-4
(gradients and `hsic_near_one` 1e-3) + abs 1e-6, relative to the largest entry.
"""

import json

import numpy as np
import pytest
import torch
from conftest import SHARED, beside
from torch.nn import functional as F

from dfdetect import metrics
from dfdetect.errors import DfdetectError
from dfdetect.methods import collaborative, did, qad
from dfdetect.methods import hsic as dependence
from dfdetect.methods.awp import perturbed_weights


def golden_cases():
    path = beside("DFDETECT_GOLDEN", SHARED / "golden" / "golden_public.json")
    content = json.loads(path.read_text())
    return [case for value in content.values() if isinstance(value, list) for case in value]


def pytest_generate_tests(metafunc):
    if "case" not in metafunc.fixturenames:
        return
    try:
        cases = golden_cases()
    except pytest.skip.Exception as absent:
        mark = pytest.mark.skip(reason=str(absent))
        metafunc.parametrize("case", [pytest.param(None, marks=mark)], ids=["absent"])
        return
    if "dependence" in metafunc.function.__name__:
        cases = [c for c in cases if c["kind"].startswith("hsic") or c["kind"] == "qad_loss"]
    metafunc.parametrize("case", cases, ids=[case["id"] for case in cases])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_our_functions_give_the_golden_numbers(case, dtype):
    CHECKS[case["kind"]](Case(case, dtype))


def test_dependence_of_float32_maps_gives_the_golden_numbers_under_bfloat16_autocast(case):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        CHECKS[case["kind"]](Case(case, torch.float32))


class Case:
    """A case's inputs as tensors, and comparison at the tolerance of their type."""

    def __init__(self, case, dtype):
        self.inputs, self.params, self.expected = case["inputs"], case["params"], case["expected"]
        self.dtype = dtype

    def tensor(self, name, grad=False):
        return torch.tensor(self.inputs[name], dtype=self.dtype, requires_grad=grad)

    def labels(self, name="y"):
        return torch.tensor(self.inputs[name], dtype=torch.long)

    def close(self, ours, expected, gradient=False, rel32=1e-4, absolute64=1e-12):
        ours = np.asarray(torch.as_tensor(ours).detach().double())
        expected = np.asarray(expected, float)
        assert ours.shape == expected.shape
        if self.dtype == torch.float64:
            rel, absolute = (1e-8 if gradient else 1e-9), absolute64
        else:
            rel, absolute = (1e-3 if gradient else rel32), 1e-6
        worst = np.abs(ours - expected).max(initial=0)
        assert worst <= rel * np.abs(expected).max(initial=0) + absolute, f"off by {worst:.3e}"

    def relative(self, ours, expected, rel32):
        rel = 1e-9 if self.dtype == torch.float64 else rel32
        assert abs(float(ours) - expected) <= rel * abs(expected)


def check_hsic(case):
    sigma = case.params["sigma"]
    for name, dim_norm in (("dim_norm", True), ("raw", False)):
        expected = case.expected[name]
        x = case.tensor("x", grad=True)
        k = dependence.centred_gram(x, sigma, dim_norm)
        other = dependence.centred_gram(case.tensor("y"), sigma, dim_norm)
        value = dependence.hsic(k, other)
        case.close(value, expected["hsic"])
        case.close(dependence.cka(k, other), expected["cka"])
        if case.dtype == torch.float64:  # its inverse has a condition number of 1e5
            case.close(dependence.cca(k, other), expected["nhsic_cca_eps1e-5"], absolute64=1e-9)
        (gradient,) = torch.autograd.grad(value, x)
        case.close(gradient, expected["grad_x"], gradient=True)


def check_hsic_offset(case):
    for name, dim_norm in (("dim_norm", True), ("raw", False)):
        k, other = (
            dependence.centred_gram(case.tensor(v), case.params["sigma"], dim_norm) for v in "xy"
        )
        case.relative(dependence.hsic(k, other), case.expected[name], 1e-4)


def check_hsic_near_one(case):
    k, other = (dependence.centred_gram(case.tensor(v), case.params["sigma"]) for v in "xy")
    case.relative(dependence.hsic(k, other), case.expected["hsic"], 1e-3)
    case.relative(dependence.cka(k, other), case.expected["cka"], 1e-3)


def check_hsic_rff(case):
    sigma, dim_norm = case.params["sigma"], case.params["dim_norm"]
    maps = [
        dependence.random_fourier(
            case.tensor(v), case.tensor(f"omega_{v}"), case.tensor(f"b_{v}"), sigma, dim_norm
        )
        for v in "xy"
    ]
    case.close(dependence.hsic_rff(*maps), case.expected["value"])
    for n_features, draws in case.expected["own_draws"].items():
        features = torch.stack([case.tensor("x"), case.tensor("y")])
        options = qad.Options(
            hsic="rff", sigma=sigma, kernel_dim_norm=dim_norm, rff_features=int(n_features)
        )
        ours = float(qad._dependence(features, options))
        assert abs(ours - case.expected["exact_hsic"]) <= draws["tol_one_draw"]


def check_qad_loss(case):
    logits, labels = case.tensor("logits"), case.labels()
    features = [torch.tensor(f, dtype=case.dtype) for f in case.inputs["feats"]]
    for name, expected in case.expected.items():
        pairs, measure = name.split("/")
        options = qad.Options(
            pairs=pairs, hsic={"hsic": "biased"}.get(measure, measure), sigma=case.params["sigma"],
            alpha=case.params["alpha"], kernel_dim_norm=case.params["dim_norm"],
        )  # fmt: skip
        l1 = qad.classification_loss(logits, labels, options)
        l2 = qad.collaborative_loss(features, labels, options)
        case.close(l1, expected["L1"])
        case.close(l2, expected["L2"])
        case.close(l1 + options.alpha * l2, expected["total"])


def check_soft_label(case):
    logits = case.tensor("logits", grad=True)
    value = collaborative.soft_label(logits, case.labels(), case.params["T"], case.params["beta"])
    case.close(value, case.expected["value"])
    case.close(torch.autograd.grad(value, logits)[0], case.expected["grad_logits"], gradient=True)


def check_pairwise_center(case):
    features, centres = case.tensor("f"), case.tensor("class_centres")
    m = len(features)
    case.close(collaborative.pairwise(features, dim_norm=False), case.expected["pairwise"])
    case.close(collaborative.pairwise(features), case.expected["pairwise_over_sqrt_d"])
    case.close(collaborative.center_instance(features), case.expected["center_instance"])
    of_class = collaborative.center_class(features.flatten(0, 1), case.labels().repeat(m), centres)
    case.close(of_class, case.expected["center_class"])


def check_kl_raw(case):
    value = collaborative.kl_from_raw(case.tensor("logits"), case.params["raw_index"])
    case.close(value, case.expected["value"])


def check_awp(case):
    weights = {k: case.tensor(k, grad=True) for k in ("W1", "b1", "W2", "b2")}
    x, y, p = case.tensor("x"), case.labels(), case.params
    start = {k: w.detach().clone() for k, w in weights.items()}

    def loss():
        hidden = torch.tanh(x @ weights["W1"].T + weights["b1"])
        return F.cross_entropy(hidden @ weights["W2"].T + weights["b2"], y)

    matrices = [weights["W1"], weights["W2"]]
    with perturbed_weights(
        matrices, lambda: [loss()], p["gamma"], p["eta"], p["steps"], p["scope"]
    ) as phi:
        for name, offset in zip(("W1", "W2"), phi.offsets, strict=True):
            case.close(offset, case.expected["phi"][name], gradient=True)
        case.close(phi.loss_clean, case.expected["loss_clean"])
        perturbed = loss()
        case.close(perturbed, case.expected["loss_perturbed"])
        perturbed.backward()
    for name, weight in weights.items():
        assert torch.equal(weight, start[name])
        case.close(weight.grad, case.expected["grad_perturbed"][name], gradient=True)
    for optimizer, key in (
        (torch.optim.SGD(weights.values(), lr=p["lr"]), "sgd"),
        (torch.optim.Adam(weights.values(), lr=p["lr"]), "adam_first_step"),
    ):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(start[name])
        optimizer.step()
        for name, weight in weights.items():
            # Adam's first step is the sign of the gradient: where that is rounding noise, skip.
            noise = np.abs(case.expected["grad_perturbed"][name]) < 1e-6
            ours, theirs = weight.detach().clone(), np.asarray(case.expected[key][name])
            if key == "adam_first_step" and case.dtype == torch.float32:
                ours[torch.from_numpy(noise)] = torch.from_numpy(theirs[noise]).to(ours)
            case.close(ours, theirs, gradient=True)


def check_auc_loss(case):
    labels, gamma, p = case.labels(), case.params["gamma"], case.params["p"]
    bce = F.binary_cross_entropy_with_logits(case.tensor("logits"), labels.to(case.dtype))
    case.close(bce, case.expected["bce"])
    for space in ("prob", "logit"):
        logits, expected = case.tensor("logits", grad=True), case.expected[space]
        value = did.auc_loss(logits, labels, gamma, p, space)
        case.close(value, expected["value"])
        (gradient,) = torch.autograd.grad(value, logits)
        case.close(gradient, expected["grad_logits"], gradient=True)
        both = did.classification_loss(bce, value.detach(), alpha=0.5)
        case.close(both, expected["cls_alpha0.5"])


def check_jsd(case):
    joint, marginal = case.tensor("t_joint", grad=True), case.tensor("t_marginal", grad=True)
    value = did.mutual_information(joint, marginal)
    case.close(value, case.expected["value"])
    for ours, name in zip(
        torch.autograd.grad(value, (joint, marginal)), ("joint", "marginal"), strict=True
    ):
        case.close(ours, case.expected[f"grad_{name}"], gradient=True)


def check_grl(case):
    a, b, wa, wb, c = (case.tensor(n, grad=True) for n in ("a", "b", "wa", "wb", "c"))
    perm = torch.tensor(case.inputs["perm"])
    beta, weight = case.params["beta"], case.params["lambda"]
    ra, rb = (did.reverse_gradient(v, beta) for v in (a, b))
    information = did.mutual_information(ra @ wa + rb @ wb + c, ra @ wa + rb[perm] @ wb + c)
    case.close(information, case.expected["I"])
    (-weight * information).backward()
    ours = torch.cat([wa.grad, wb.grad, c.grad.view(1)])
    case.close(ours, case.expected["grad_T_params(wa,wb,c)"], gradient=True)
    case.close(a.grad, case.expected["grad_a"], gradient=True)
    case.close(b.grad, case.expected["grad_b"], gradient=True)


def check_beta(case):
    progress = case.inputs["p"]
    ours = torch.tensor(
        [did.beta_schedule(p, case.params["k"]) for p in progress], dtype=torch.float64
    )
    case.close(ours, case.expected["beta"])
    ours = torch.tensor([did.beta_schedule(p, 10.0) for p in progress], dtype=torch.float64)
    case.close(ours, case.expected["beta_k10_DANN"])


def check_domain_ce(case):
    loss = did.domain_loss(case.tensor("logits"), case.labels())
    case.close(loss, case.expected["value"])


def check_did_total(case):
    values = [torch.tensor(case.inputs[k], dtype=case.dtype) for k in ("dec", "cls", "dom")]
    case.close(did.did_objective(*values, **case.params), case.expected["total"])


def check_metrics(case):
    scores = [float(s) for s in case.inputs["scores"]]
    labels = case.inputs["y"]
    if "error" in case.expected:
        for metric in (metrics.auc, metrics.eer):
            with pytest.raises(DfdetectError, match="no metric"):
                metric(scores, labels)
        return
    assert metrics.auc(scores, labels) == pytest.approx(case.expected["auc"], rel=1e-9, abs=1e-12)
    assert metrics.eer(scores, labels) == pytest.approx(case.expected["eer"], rel=1e-9, abs=1e-12)
    assert metrics.accuracy(scores, labels) == pytest.approx(case.expected["acc_thr0.5"], rel=1e-9)


def check_protocol(case):
    scores, expected = case.inputs["scores"], case.expected
    if "auc_pooled" in expected:
        labels = case.inputs["y"]
        each = [metrics.auc(s, labels) for s in scores]
        assert each == pytest.approx(expected["auc_per_quality"], rel=1e-9)
        assert np.mean(each) == pytest.approx(expected["auc_mean"], rel=1e-9)
        pooled = metrics.auc(np.ravel(scores), labels * len(scores))
        assert pooled == pytest.approx(expected["auc_pooled"], rel=1e-9)
        return
    ids, means = metrics.mean_by(scores, case.inputs["video"])
    assert ids == expected["video_ids"]
    assert means == pytest.approx(expected["video_scores"], rel=1e-9)
    labels = case.inputs["video_label"]
    assert metrics.auc(means, labels) == pytest.approx(expected["video_auc"], rel=1e-9)
    frame_labels = [labels[ids.index(v)] for v in case.inputs["video"]]
    assert metrics.auc(scores, frame_labels) == pytest.approx(expected["frame_auc"], rel=1e-9)


CHECKS = {
    name.removeprefix("check_"): f
    for name, f in list(globals().items())
    if name.startswith("check_")
}
