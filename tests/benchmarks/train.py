"""Training steps: what QAD and DID cost beside plain cross-entropy on the same images.

    python tests/benchmarks/train.py [--rounds 9] [--batch 8] [--size 112]
    python tests/benchmarks/train.py --device cuda [--presets bce-r50,qad-r50] [--data data/]

A step is what the trainer does with a batch: ascent, forward, backward, Adam. Within a round every
way takes its turn, in shuffled order; a figure is the median over rounds of the ratio to the first
way of the same round, so a busy neighbour weighs on both. Images are random, weights too.

On the CPU, one thread: QAD, QAD with a third of the batch in its ascent, each of its parts, DID,
and QAD and DID at once, over cross-entropy; then HSIC's share of a step of 64 samples at three
qualities, which does not depend on the image size, as both grow with its square, so small images
serve.

With a GPU: presets at their own batch and size, in float32 and bfloat16, as they are, channels_last
and compiled: images a second, ratio, peak memory. With --data, the share of a real run's time in
which the GPU waits for crops.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from dfdetect.data import Batch
from dfdetect.methods import Method, make_method
from dfdetect.methods.qad import collaborative_loss
from dfdetect.optim import make_optimizer
from dfdetect.presets import Preset, load_preset
from dfdetect.train import train

CPU_WAYS = {
    "cross-entropy": ("bce-r50", []),
    "QAD": ("qad-r50", []),
    "QAD, ascent on a third": ("qad-r50", ["method.ascent_fraction=0.33"]),
    "HSIC alone": ("qad-r50", ["method.gamma=0"]),
    "AWP alone": ("qad-r50", ["method.collab=none"]),
    "DID": ("did-r50", ["qualities=raw,c23,c40"]),
    "QAD and DID": ("qadid-effb1", []),
}
CPU_BACKBONES = ("resnet18", "efficientnet_b0")
N_DOMAINS = 6
PAPER_BATCH = 64


class Step:
    """One training step of a preset on the same random batch, again and again."""

    def __init__(self, preset: Preset, device: str) -> None:
        torch.manual_seed(0)
        self.method: Method = make_method(preset, N_DOMAINS).to(device).train()
        if preset.channels_last:
            self.method.to(memory_format=torch.channels_last)
        if preset.compile:
            self.method.detector.compile_features()
        self.optimizer = make_optimizer(self.method, preset.optimizer)
        half = preset.precision == "bf16"
        self.autocast = partial(torch.autocast, device, torch.bfloat16) if half else nullcontext
        self.method.autocast = self.autocast
        self.batch = random_batch(preset, device)
        self.method.at(1, 2, 1, 2)

    @property
    def n_images(self) -> int:
        return self.batch.images.shape[0] * self.batch.images.shape[1]

    def __call__(self) -> None:
        with self.method.perturbed([self.batch]):
            with self.autocast():
                loss = self.method(self.batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.total.backward()
        self.optimizer.step()


def random_batch(preset: Preset, device: str) -> Batch:
    n, q, side = preset.batch_size, len(preset.qualities), preset.image_size
    domains = torch.arange(n, device=device) % N_DOMAINS
    images = torch.rand(n, q, 3, side, side, device=device)
    return Batch(images, (domains > 0).long(), domains, [str(i) for i in range(n)])


def in_turns(
    ways: dict[str, Callable[[], None]], rounds: int, repeats: int = 1,
    finish: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each way in each round; `finish` waits for what a way has begun."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for number in range(rounds + 1):  # the first warms up
        random.shuffle(order)
        for name in order:
            finish()
            began = time.perf_counter()
            for _ in range(repeats):
                ways[name]()
            finish()
            if number:
                spent[name].append((time.perf_counter() - began) / repeats)
    return spent


def ratio(over: Sequence[float], under: Sequence[float]) -> str:
    """Median of the rounds' ratios, and their range."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(each):5.2f} ({min(each):.2f} to {max(each):.2f})"


def on_cpu(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for backbone in CPU_BACKBONES:
        shape = [f"backbone.name={backbone}", "backbone.weights=none"]
        mine = [*shape, f"image_size={options.size}", f"batch_size={options.batch}"]
        ways = {
            name: Step(load_preset(preset, [*mine, *overrides]), "cpu")
            for name, (preset, overrides) in CPU_WAYS.items()
        }
        spent = in_turns(ways, options.rounds)
        plain = spent["cross-entropy"]
        print(
            f"\n{backbone}, {options.size} px, {options.batch} samples x 3 qualities, "
            f"{options.rounds} rounds: cross-entropy {statistics.median(plain):.2f} s a step"
        )
        for name, seconds in spent.items():
            print(f"  {name:24s}{ratio(seconds, plain)}")
        small = [f"image_size={options.hsic_size}", f"batch_size={PAPER_BATCH}"]
        step = Step(load_preset("qad-r50", [*shape, *small]), "cpu")
        spent = in_turns({"step": step, "hsic": hsic_alone(step)}, max(3, options.rounds // 2))
        shares = [a / b for a, b in zip(spent["hsic"], spent["step"], strict=True)]
        print(
            f"  HSIC's share of a QAD step of {PAPER_BATCH} samples at {options.hsic_size} px: "
            f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        )


def hsic_alone(step: Step) -> Callable[[], None]:
    """The collaborative term on the maps that the step has, and its gradient at those maps."""
    settings = step.method.options
    with torch.no_grad():
        maps = step.method.maps(step.batch, settings.layers).taps
    maps = [m.requires_grad_() for m in maps]

    def run() -> None:
        n_qualities = step.batch.images.shape[1]
        taps = [m.unflatten(0, (n_qualities, -1)) for m in maps]
        torch.autograd.grad(collaborative_loss(taps, step.batch.labels, settings), maps)

    return run


def on_gpu(options: argparse.Namespace) -> None:
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; convolutions may use TF32")
    variants = {
        "fp32": [],
        "bf16": ["precision=bf16"],
        "bf16 channels_last": ["precision=bf16", "channels_last=true"],
        "bf16 channels_last compiled": [
            "precision=bf16", "channels_last=true", "compile=true",
        ],
    }  # fmt: skip
    images_per_s: dict[tuple[str, str], float] = {}
    for name in options.presets.split(","):
        steps, peaks = {}, {}
        for variant, overrides in variants.items():
            batch = [f"batch_size={options.batch}"] if options.batch else []
            preset = load_preset(name, ["backbone.weights=none", *batch, *overrides])
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated()
            steps[variant] = Step(preset, "cuda")
            steps[variant]()  # compiles, and makes the optimizer's state
            torch.cuda.reset_peak_memory_stats()
            steps[variant]()
            torch.cuda.synchronize()
            peaks[variant] = (torch.cuda.max_memory_allocated() - before) / 2**30
        spent = in_turns(steps, options.rounds, 5, torch.cuda.synchronize)
        print(
            f"\n{name}: {preset.backbone.name}, {preset.image_size} px, "
            f"{preset.batch_size} x {len(preset.qualities)} images"
        )
        for variant, seconds in spent.items():
            rate = steps[variant].n_images / statistics.median(seconds)
            images_per_s[name, variant] = rate
            print(
                f"  {variant:28s}{rate:8.0f} images/s, {peaks[variant]:5.1f} GiB, "
                f"fp32's time over its own {ratio(spent['fp32'], seconds)}"
            )
        del steps
    print("\ntime over that of plain cross-entropy on the same backbone, per image:")
    for (name, variant), rate in images_per_s.items():
        plain = images_per_s.get(("bce-" + name.split("-")[1], variant))
        if plain and not name.startswith("bce-"):
            print(f"  {name:12s}{variant:28s}{plain / rate:5.2f}")
    if options.data:
        print("\nshare of a real run's steps spent waiting for crops (median, 90th percentile):")
        for name in options.presets.split(","):
            waiting(name, options)


def waiting(name: str, options: argparse.Namespace) -> None:
    overrides = ["backbone.weights=none", "epochs=1", f"steps_per_epoch={options.steps}"]
    overrides += ["validate_per_epoch=1", "precision=bf16", "channels_last=true"]
    preset = load_preset(name, overrides)
    shares: list[float] = []

    def watch(event: dict) -> None:
        if event["kind"] == "train" and event["step"] > options.steps // 4:  # loaders have started
            shares.append(event["timing"]["data_wait"])

    with tempfile.TemporaryDirectory() as folder:
        train(preset, [options.data], Path(folder) / "run", device="cuda", on_event=watch)
    tenths = statistics.quantiles(shares, n=10)
    print(f"  {name:12s}{statistics.median(shares):6.1%} {tenths[-1]:6.1%} of {len(shares)} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, help="samples; default 8 on a CPU, else the preset's")
    parser.add_argument("--size", type=int, default=112, help="px, on a CPU")
    parser.add_argument("--hsic-size", type=int, default=64, help="px, for HSIC's share")
    parser.add_argument(
        "--presets", default="bce-r50,qad-r50,did-r50,bce-effb1,qad-effb1,did-effv2l"
    )
    parser.add_argument("--data", type=Path, help="a prepared folder, to see whether it keeps up")
    parser.add_argument("--steps", type=int, default=100, help="of that run")
    options = parser.parse_args()
    random.seed(0)
    if options.device == "cuda":
        on_gpu(options)
    else:
        options.batch = options.batch or 8
        on_cpu(options)


if __name__ == "__main__":
    main()
