"""The memory estimate against the allocator's own record of a real step."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dfdetect.data import Batch
from dfdetect.footprint import measure
from dfdetect.methods import make_method
from dfdetect.presets import load_preset

TOLERANCE = 0.15
"""Share of the peak; kernels' scratch memory is not counted."""


def loader_batch(preset, n):
    shape = (n, len(preset.qualities), 3, preset.image_size, preset.image_size)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    return Batch(images, labels, labels.clone(), [str(i) for i in range(n)])


def estimated(name, *overrides):
    preset = load_preset(name, ["backbone.weights=none", *overrides])
    method = make_method(preset, n_domains=3)
    return preset, method, measure(method, loader_batch(preset, 4), preset)


def allocator_peak(preset, method):
    """Peak of what a whole batch's step allocates, summed from the profiler's allocations."""
    method.train()
    batch = loader_batch(preset, preset.batch_size)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for parameter in method.parameters():
            parameter.grad = torch.zeros_like(parameter)
        parts = batch.to_device("cpu").parts(preset.accumulate)
        with method.perturbed(parts):
            method.zero_grad(set_to_none=True)
            for part in parts:
                with method.autocast():
                    loss = method(part).total
                loss.backward()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("qad-tiny", ["batch_size=16"]),
        ("qad-tiny", ["batch_size=16", "precision=bf16"]),
        ("did-tiny", ["batch_size=12"]),  # weights outweigh activations
        ("bce-tiny", ["batch_size=16", "accumulate=4"]),
        ("qad-r18", ["batch_size=6", "image_size=64"]),  # three copies of the weights in AWP
    ],
)
def test_the_estimate_from_four_samples_is_the_peak_of_a_whole_batch(name, overrides):
    preset, method, footprint = estimated(name, *overrides)
    assert footprint.step == pytest.approx(allocator_peak(preset, method), rel=TOLERANCE)


def test_states_and_averages_are_counted_by_their_tensors():
    _, method, adam = estimated("bce-tiny", "optimizer.name=adam", "ema=0.9")
    _, _, sgd = estimated("bce-tiny", "optimizer.name=sgd")
    parameters = sum(4 * p.numel() for p in method.parameters())
    everything = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    assert adam.weights == adam.average == everything  # bce trains the detector and nothing else
    assert (adam.optimizer, sgd.optimizer) == (2 * parameters, parameters)
    assert sgd.average == 0
    assert adam.total == adam.weights + adam.optimizer + adam.average + adam.step


def test_every_further_sample_costs_the_same():
    eight, sixteen = (estimated("bce-tiny", f"batch_size={n}")[2] for n in (8, 16))
    assert sixteen.step - eight.step == pytest.approx(8 * eight.step_per_sample, rel=1e-3)


def test_copies_are_held_only_by_methods_that_perturb():
    _, method, qad = estimated("qad-tiny")
    matrices = sum(4 * p.numel() for p in method.detector.parameters() if p.ndim > 1)
    assert qad.perturbation >= 2 * matrices  # the clean weights and the offsets
    assert estimated("bce-tiny")[2].perturbation == 0


def test_the_weights_stay_as_they_were_without_gradients():
    preset = load_preset("qad-tiny", ["image_size=64"])
    method = make_method(preset, n_domains=3)
    before = [p.detach().clone() for p in method.parameters()]
    footprint = measure(method, loader_batch(preset, 4), preset)
    assert footprint.is_finite
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))
    assert all(p.grad is None for p in method.parameters())


def test_a_step_that_is_not_finite_is_told():
    preset = load_preset("bce-tiny", ["image_size=64"])
    method = make_method(preset, n_domains=3)
    with torch.no_grad():
        next(method.parameters()).fill_(float("nan"))
    assert not measure(method, loader_batch(preset, 4), preset).is_finite


@pytest.mark.parametrize("n", [2, 3])
def test_fewer_samples_than_it_runs_are_repeated(n):
    preset = load_preset("did-tiny", ["image_size=64"])
    method = make_method(preset, n_domains=3)
    assert measure(method, loader_batch(preset, n), preset).step_per_sample > 0
