"""Figures of several models: eval's numbers, intervals re-derived draw by draw, means and gaps."""

import numpy as np
import pytest

from dfdetect.comparison import figures_of, over_seeds, read_measured
from dfdetect.errors import DfdetectError
from dfdetect.evaluate import EvalResult, measure, write_results
from dfdetect.results import Prediction

QUALITIES = ("raw", "c40")


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


def written(folder, rows):
    cells = measure(rows, "d", "test", 0.5)
    write_results(folder, EvalResult({}, cells, {"d": rows}, []))
    return read_measured(folder)


def naive_auc(scored):
    """P(fake above real) over all pairs of [(score, label)], None without a pair."""
    pairs = [(f > r) + 0.5 * (f == r) for f, y in scored if y for r, x in scored if not x]
    return np.mean(pairs) if pairs else None


def scored(rows, level, draw):
    """What is ranked when the videos of `draw` are there, each as often as it was drawn."""
    entries = []
    for video in draw:
        own = [p for p in rows if p.video_id == video]
        if level == "frame":
            entries += [(p.logit, p.label) for p in own]
        else:
            for quality in dict.fromkeys(p.quality for p in own):
                some = [p for p in own if p.quality == quality]
                entries.append((np.mean([p.score for p in some]), some[0].label))
    return entries


@pytest.mark.parametrize("level", ["frame", "video"])
def test_figures_and_intervals_are_those_of_a_loop_over_drawn_videos(tmp_path, level):
    rows, rounds = predictions(seed=5), 30
    videos = sorted({p.video_id for p in rows})
    figures = figures_of("x", written(tmp_path, rows), rounds, seed=7)
    found = {f.quality: f for f in figures if f.level == level}
    assert list(found) == ["raw", "c40", "mean", "pooled", "raw-c40"]
    counts = np.random.default_rng(7).multinomial(9, [1 / 9] * 9, size=rounds)
    draws = [[v for v, n in zip(videos, count, strict=True) for _ in range(n)] for count in counts]

    def all_of(draw):
        single = {q: naive_auc(scored([p for p in rows if p.quality == q], level, draw))
                  for q in QUALITIES}  # fmt: skip
        if None in single.values():
            return None
        return single | {
            "mean": (single["raw"] + single["c40"]) / 2,
            "pooled": naive_auc(scored(rows, level, draw)),
            "raw-c40": single["raw"] - single["c40"],
        }

    whole, by_round = all_of(videos), [all_of(draw) for draw in draws]
    usable = [values for values in by_round if values]
    assert len(usable) > 0
    for quality, figure in found.items():
        assert figure.auc == pytest.approx(whole[quality], abs=1e-12)
        low, high = np.quantile([values[quality] for values in usable], (0.025, 0.975))
        assert (figure.low, figure.high) == pytest.approx((low, high), abs=1e-12)
        assert figure.n_skipped == rounds - len(usable)


def test_all_manipulations_together_are_compared(tmp_path):
    figures = figures_of("x", written(tmp_path, predictions(1)), rounds=5)
    n = {(f.level, f.n_real, f.n_fake) for f in figures if f.quality == "raw"}
    assert n == {("frame", 9, 18), ("video", 3, 6)}


def test_one_quality_alone_has_no_mean_and_no_gap(tmp_path):
    rows = [p for p in predictions(1) if p.quality == "c40"]
    assert {f.quality for f in figures_of("x", written(tmp_path, rows), 5)} == {"c40"}


def test_a_quality_without_reals_has_no_auc_and_no_interval(tmp_path):
    rows = [p for p in predictions(1) if p.label or p.quality == "raw"]
    found = {
        f.quality: f for f in figures_of("x", written(tmp_path, rows), 20) if f.level == "frame"
    }
    assert found["c40"].auc is found["c40"].low is found["mean"].auc is found["mean"].high is None
    assert found["raw"].auc is not None and "raw-c40" not in found


def test_seeds_are_summed_up_by_their_mean_and_range(tmp_path):
    runs = [
        figures_of(f"x,seed={i}", written(tmp_path / str(i), predictions(i)), 5) for i in (1, 2)
    ]
    means = over_seeds("x", runs)
    assert len(means) == len(runs[0])
    for mean, one, two in zip(means, *runs, strict=True):
        assert (mean.cell, mean.level, mean.quality) == ("x", one.level, one.quality)
        assert mean.auc == pytest.approx((one.auc + two.auc) / 2)
        assert (mean.low, mean.high) == (min(one.auc, two.auc), max(one.auc, two.auc))
        assert mean.spread == "range of 2 seeds"


def test_damaged_predictions_are_named(tmp_path):
    written(tmp_path, predictions(1))
    path = tmp_path / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DfdetectError, match=r"predictions\.parquet: cannot be read"):
        read_measured(tmp_path)
