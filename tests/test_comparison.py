"""Figures of several models: eval's numbers, gaps and paired differences re-derived by draws."""

import json

import numpy as np
import pytest
from independent_metrics import recompute

from dfdetect.cells import measure
from dfdetect.comparison import compare, figures_of, over_seeds
from dfdetect.errors import DfdetectError
from dfdetect.evaluate import EvalResult, write_results
from dfdetect.predictions import Predictions, read_results
from dfdetect.results import Prediction

QUALITIES = ("raw", "c40")
MODEL = {"name": "made up", "sha256": "0" * 64, "threshold": 0.5}


def predictions(seed, n_videos=9, n_frames=3):
    """Crops of videos, a third of them real; scores rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    rows = []
    for v in range(n_videos):
        label = int(v % 3 > 0)
        manipulation = ("real", "DF", "FS")[v % 3]
        mood = rng.normal(label)
        for quality in QUALITIES:
            for frame in range(n_frames):
                logit = round(float(mood + rng.normal(0, 1 + (quality == "c40"))), 1)
                rows.append(
                    Prediction(
                        f"v{v}/{frame}/0", f"v{v}", 0, "d", manipulation, quality, "test", label,
                        logit, float(1 / (1 + np.exp(-logit))),
                    )
                )  # fmt: skip
    return rows


def written(folder, rows, name="d", model=MODEL):
    folders = {name: rows}
    found = Predictions.of(model, folders)
    cells = measure(found.folders(), "test", model["threshold"], rounds=20)
    write_results(folder, EvalResult(found, cells, []))
    return folder


def figures(folder, rows):
    return figures_of("x", read_results(written(folder, rows)), rounds=20)


def drawn_aucs(rows, level, rounds):
    """{quality: AUC of all rows, then of each round} by the other program."""
    expected = recompute([p._asdict() | {"data": "d"} for p in rows], 0.5, rounds)
    return {q: v["auc"] for (_, at, q, kind), v in expected.items() if (at, kind) == (level, "all")}


@pytest.mark.parametrize("level", ["frame", "video"])
def test_figures_of_a_sweep_are_those_of_eval_and_the_gap_is_taken_round_by_round(tmp_path, level):
    rows = predictions(seed=5)
    found = {f.quality: f for f in figures(tmp_path, rows) if f.level == level}
    assert list(found) == ["raw", "c40", "mean", "pooled", "raw-c40"]
    expected = drawn_aucs(rows, level, 20)
    expected["raw-c40"] = expected["raw"] - expected["c40"]
    for quality, figure in found.items():
        aucs = expected[quality]
        assert figure.auc == pytest.approx(aucs[0], abs=1e-12)
        bounds = np.quantile(aucs[1:][~np.isnan(aucs[1:])], (0.025, 0.975))
        assert (figure.low, figure.high) == pytest.approx(bounds, abs=1e-12)


def test_all_manipulations_together_are_compared(tmp_path):
    n = {(f.level, f.n_real, f.n_fake) for f in figures(tmp_path, predictions(1))}
    assert {("frame", 9, 18), ("video", 3, 6)} <= n


def test_one_quality_alone_has_no_mean_and_no_gap(tmp_path):
    rows = [p for p in predictions(1) if p.quality == "c40"]
    assert {f.quality for f in figures(tmp_path, rows)} == {"c40"}


def test_a_quality_without_reals_has_no_auc_and_no_interval(tmp_path):
    rows = [p for p in predictions(1) if p.label or p.quality == "raw"]
    found = {f.quality: f for f in figures(tmp_path, rows) if f.level == "frame"}
    assert found["c40"].auc is found["c40"].low is found["mean"].auc is found["mean"].high is None
    assert found["raw"].auc is not None and "raw-c40" not in found


def test_seeds_are_summed_up_by_their_mean_and_range(tmp_path):
    runs = [figures(tmp_path / str(i), predictions(i)) for i in (1, 2)]
    means = over_seeds("x", runs)
    assert len(means) == len(runs[0])
    for mean, one, two in zip(means, *runs, strict=True):
        assert (mean.cell, mean.level, mean.quality) == ("x", one.level, one.quality)
        assert mean.auc == pytest.approx((one.auc + two.auc) / 2)
        assert (mean.low, mean.high) == (min(one.auc, two.auc), max(one.auc, two.auc))
        assert mean.spread == "range of 2 seeds"


def test_damaged_or_older_results_are_named(tmp_path):
    written(tmp_path, predictions(1))
    path = tmp_path / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DfdetectError, match=r"predictions\.parquet: cannot be read"):
        read_results(tmp_path)
    (tmp_path / "metrics.json").write_text('{"schema_version": 1, "cells": []}')
    with pytest.raises(DfdetectError, match=r"metrics\.json: written by another version"):
        read_results(tmp_path)
    path.unlink()
    with pytest.raises(DfdetectError, match=r"holds no predictions\.parquet"):
        read_results(tmp_path)


# --- paired -----------------------------------------------------------------------------------


def better(rows):
    """The same crops by a model that separates more."""
    moved = [p._replace(logit=p.logit + 1.5 * p.label) for p in rows]
    return [p._replace(score=float(1 / (1 + np.exp(-p.logit)))) for p in moved]


@pytest.fixture
def two(tmp_path):
    rows = predictions(3)
    return written(tmp_path / "a", rows), written(tmp_path / "b", better(rows)[::-1])


def test_differences_are_of_the_same_drawn_videos(two):
    compared = compare(two, rounds=20)
    (pair,) = compared.pairs
    assert pair.n_first == pair.n_second == pair.n_common == 54 and compared.warnings == []
    for level in ("frame", "video"):
        of_a = drawn_aucs(predictions(3), level, 20)
        of_b = drawn_aucs(better(predictions(3)), level, 20)
        at = {d.quality: d for d in pair.differences if (d.level, d.figure) == (level, "auc")}
        assert list(at) == ["raw", "c40", "mean", "pooled"]
        for quality, d in at.items():
            gain = of_b[quality] - of_a[quality]
            drawn = gain[1:][~np.isnan(gain[1:])]
            assert (d.first, d.second) == pytest.approx((of_a[quality][0], of_b[quality][0]))
            assert d.difference == pytest.approx(gain[0], abs=1e-12)
            assert (d.low, d.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=1e-12)
            assert d.share_not_above == pytest.approx((drawn <= 1e-12).mean())


def test_a_model_does_not_differ_from_itself_and_shared_luck_cancels(two, tmp_path):
    rows = predictions(3)
    (pair,) = compare([two[0], written(tmp_path / "same", rows)], rounds=20).pairs
    assert {(d.difference, d.low, d.high, d.share_not_above) for d in pair.differences} == {
        (0.0, 0.0, 0.0, 1.0)
    }


def test_each_is_held_against_the_first_on_what_both_have_scored(two, tmp_path, cli):
    only_raw = [p for p in predictions(3) if p.quality == "raw" and p.video_id != "v8"]
    third = written(tmp_path / "c", only_raw)
    done = cli("compare", *two, third, "--rounds", 20)
    assert done.exit_code == 0 and done.stdout.count("video level") == 2
    assert f"{third}: compared with {two[0]} on the 24 crops that both have, of 54 and 24" in (
        " ".join(done.stderr.split())
    )
    done = cli("compare", *two, third, "--rounds", 20, "--json")
    told = json.loads(done.stdout)
    assert [p["second"] for p in told["pairs"]] == [str(two[1]), str(third)]
    assert {d["quality"] for d in told["pairs"][1]["differences"]} == {"raw"}
    assert told["models"][str(third)]["threshold"] == 0.5


def test_what_cannot_be_compared_is_refused(two, tmp_path, cli):
    elsewhere = written(tmp_path / "e", predictions(3), name="other")
    done = cli("compare", two[0], elsewhere)
    assert done.exit_code == 2 and "no crop was scored by both (54 crops, as d/" in done.stderr
    swapped = [p._replace(label=1 - p.label) if p.video_id == "v0" else p for p in predictions(3)]
    done = cli("compare", two[0], written(tmp_path / "l", swapped))
    assert done.exit_code == 2
    assert "do not agree on the label of d/v0/0/0 (6 of 54 crops)" in " ".join(done.stderr.split())
    twice = written(tmp_path / "t", [*predictions(3), predictions(3)[0]])
    with pytest.raises(DfdetectError, match="holds a crop twice"):
        compare([two[0], twice])
    for folders in ([two[0]], [two[0], two[0]]):
        with pytest.raises(DfdetectError, match="two or more folders"):
            compare(folders)
