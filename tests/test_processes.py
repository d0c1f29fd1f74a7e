"""Two processes that train as one, on the CPU over gloo; this file is also what they run."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dfdetect import processes
from dfdetect import train as verb
from dfdetect.errors import DfdetectError
from dfdetect.evaluate import evaluate
from dfdetect.presets import load_preset
from dfdetect.validation import choose_decision

STEPS = ["epochs=1", "steps_per_epoch=3", "image_size=64", "sampler=shuffle"]
# Plain SGD: Adam's first steps are the sign of the gradient and magnify the last bits.
EXACT = [*STEPS, "backbone.name=test_convnext.r160_in1k", "optimizer.name=sgd", "optimizer.lr=0.1",
         "schedule.name=constant", "augment.scale=0.2"]  # fmt: skip
CASES = {
    "bce": ("bce-tiny", STEPS),
    "bce average": ("bce-tiny", [*STEPS, "ema=0.5"]),
    "sbi decoders": ("sbi-tiny", [*STEPS, "augment.forge.forgeries={reconstruct: 1}",
                                  "augment.forge.decoder_steps=2"]),
    "qad": ("qad-tiny", [*STEPS, "method.gamma=0.02"]),
    "did": ("did-tiny", [*STEPS, "method.beta_per_step=true", "qualities=raw,c40"]),
    "qadid": ("qadid-tiny", [*STEPS, "epochs=2", "method.qad.gamma=0.02",
                             "method.did.beta_per_step=true", "method.did.domains=auto",
                             "method.did.lambda=learned"]),
    "bce exact": ("bce-tiny", EXACT),
    "qad exact": ("qad-tiny", [*EXACT, "method.hsic_gather=true", "method.alpha=0.5",
                               "method.gamma=0.02"]),
    "qadid exact": ("qadid-tiny", [*EXACT, "method.qad.hsic_gather=true", "method.qad.alpha=0.5",
                                   "method.qad.gamma=0.02", "method.did.auc_gather=true",
                                   "method.did.lambda_dec=0"]),
    "did exact": ("did-tiny", [*EXACT, "method.auc_gather=true", "method.lambda_dec=0"]),
}  # fmt: skip
PER_PROCESS = 4
"""Samples of each of two processes; one process alone takes twice as many."""


def train_case(name: str, data: Path, out: Path, batch_size: int) -> None:
    """Train a case and keep what this process holds at the end, under its rank."""
    preset_name, options = CASES[name]
    preset = load_preset(preset_name, [*options, f"batch_size={batch_size}"])
    run = out / name.replace(" ", "-")
    go = verb._Run.go

    def go_and_keep(self):
        summary = go(self)
        rank = processes.processes().rank
        torch.save(self.method.state_dict(), out / f"{run.name}-{batch_size}-rank{rank}.pt")
        (out / f"{run.name}-rank{rank}-groups.json").write_text(json.dumps(self.groups))
        return summary

    verb._Run.go = go_and_keep
    try:
        verb.train(preset, [data], run / str(batch_size), device="cpu", workers=0)
    finally:
        verb._Run.go = go


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    who = processes.join(on_cpu=True)
    for name in CASES:
        train_case(name, data, out, PER_PROCESS)
    result = evaluate(out / "bce" / str(PER_PROCESS), [data], device="cpu", out=out / "eval")
    evaluate(out / "did" / str(PER_PROCESS), [data], device="cpu", out=out / "eval-did", tsne=3)
    try:
        train_case("bce", data, out, PER_PROCESS)  # there is a run already: the first refuses
        refusal = ""
    except DfdetectError as error:
        refusal = error.message
    here = torch.arange(6.0).reshape(3, 2) + 100 * who.rank
    here.requires_grad_()
    rows = processes.rows_of_all(here)
    (rows.square().sum() / 2).backward()
    held = {
        "cells": [cell.row() for cell in result.cells],
        "refusal": refusal,
        "rank": who.rank,
        "n": who.n,
        "rows": rows.tolist(),
        "gradient": here.grad.tolist(),
        "mean": processes.mean_of_all(torch.tensor([float(who.rank)])).tolist(),
        "items": processes.in_order(
            processes.objects_of_all(list(processes.share_of(range(7))))
        ),
    }  # fmt: skip
    (out / f"rank{who.rank}.json").write_text(json.dumps(held))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def two(data, tmp_path_factory) -> Path:
    """The folder in which two processes have trained every case."""
    out = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
              f"--master-port={free_port()}"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launch, __file__, data, out], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def weights(out: Path, name: str, batch_size: int, rank: int) -> dict[str, torch.Tensor]:
    return torch.load(out / f"{name.replace(' ', '-')}-{batch_size}-rank{rank}.pt")


@pytest.mark.parametrize("name", [n for n in CASES if "average" not in n])
def test_both_processes_end_with_the_same_weights_and_running_statistics(name, two):
    first, second = (weights(two, name, PER_PROCESS, rank) for rank in (0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_both_processes_have_the_same_groups_of_fakes(two, data):
    first, second = (json.loads((two / f"qadid-rank{rank}-groups.json").read_text())
                     for rank in (0, 1))  # fmt: skip
    rows = verb.load_training_data(load_preset(*CASES["qadid"]), [data]).train
    assert first == second and set(first) == {s.video_id for s in rows if s.label}


@pytest.mark.parametrize("name", [n for n in CASES if "exact" in n])
def test_two_processes_do_what_one_with_twice_the_batch_does(name, two, data):
    """Without batch norm, and with HSIC and AUC loss over the rows of both."""
    train_case(name, data, two, 2 * PER_PROCESS)
    together, alone = weights(two, name, PER_PROCESS, 0), weights(two, name, 2 * PER_PROCESS, 0)
    for key, tensor in alone.items():
        assert torch.allclose(together[key], tensor, rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("name", CASES)
def test_validation_scores_every_sample_once_whatever_the_number_of_processes(name, two, data):
    run = two / name.replace(" ", "-") / str(PER_PROCESS)
    *_, val = [e for e in map(json.loads, (run / "metrics.jsonl").open()) if e["kind"] == "val"]
    rows = verb.load_training_data(load_preset(*CASES[name]), [data]).val
    assert val["frame"]["n_real"] == sum(r.label == 0 for r in rows)
    assert val["frame"]["n_fake"] == sum(r.label == 1 for r in rows)


@pytest.mark.parametrize("name", ["bce", "bce average", "qad", "did"])
def test_what_two_processes_validate_is_the_checkpoint_they_keep(name, two, data):
    """Also where batch norm has seen other batches in each of them. The threshold lies between two
    scores, and therefore moves with them."""
    run = two / name.replace(" ", "-") / str(PER_PROCESS)
    (val,) = [e for e in map(json.loads, (run / "metrics.jsonl").open()) if e["kind"] == "val"]
    qualities = ",".join(load_preset(*CASES[name]).qualities)
    scored = evaluate(run, [data], qualities, split="val", device="cpu").predictions
    found = choose_decision(scored.rows["prepared"]).threshold
    assert found == pytest.approx(val["threshold"], abs=1e-5)


def test_eval_in_two_processes_is_eval_in_one(two, data):
    held = [json.loads((two / f"rank{rank}.json").read_text())["cells"] for rank in (0, 1)]
    alone = evaluate(two / "bce" / str(PER_PROCESS), [data], device="cpu")
    assert held[0] == held[1] and len(held[0]) == len(alone.cells)
    for there, here in zip(held[0], alone.cells, strict=True):
        assert there == pytest.approx(here.row(), abs=1e-6)  # other batches: the last bits differ
    together = pq.read_table(two / "eval" / "predictions.parquet")
    assert len(together) == len(alone.predictions.table)


def test_domains_and_features_in_two_processes_are_those_in_one(two, data, tmp_path):
    evaluate(two / "did" / str(PER_PROCESS), [data], device="cpu", out=tmp_path, tsne=3)
    together, alone = two / "eval-did", tmp_path
    assert (together / "domains.csv").read_text() == (alone / "domains.csv").read_text()
    rows = [pq.read_table(out / "predictions.parquet").to_pylist() for out in (together, alone)]
    told = [[(r["sample_id"], r["quality"], r["predicted_domain"]) for r in part] for part in rows]
    assert told[0] == told[1]
    there, here = (np.load(out / "features.npz") for out in (together, alone))
    for name in ("sample_id", "quality", "manipulation"):
        assert there[name].tolist() == here[name].tolist()
    for name in ("whole", "deepfake", "domain"):
        assert there[name] == pytest.approx(here[name], abs=1e-5)


def test_rows_means_shares_and_refusals_of_two_processes(two):
    held = [json.loads((two / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    rows = [[0, 1], [2, 3], [4, 5], [100, 101], [102, 103], [104, 105]]
    for rank, one in enumerate(held):
        assert (one["rank"], one["n"]) == (rank, 2)
        assert one["refusal"].endswith("holds a run already")
        assert one["rows"] == rows
        # d/dx of (x^2)/2, asked for by the losses of both
        assert one["gradient"] == [[2 * x for x in row] for row in rows[3 * rank : 3 * rank + 3]]
        assert one["mean"] == [0.5]
        assert one["items"] == list(range(7))


def test_one_process_is_its_own_group():
    assert processes.processes() == (0, 1)
    x = torch.ones(2)
    assert processes.rows_of_all(x) is x and processes.mean_of_all(x) is x
    assert processes.objects_of_all("a") == ["a"]
    assert list(processes.share_of([1, 2, 3])) == [1, 2, 3]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
