"""Cells: every number against a second program, what is refused, what is said of too few."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from independent_metrics import figures, recompute

from dfdetect.cells import FIGURES, MEASURES, alarms, measure
from dfdetect.coverage import coverage_of, lost_of, read_lost
from dfdetect.errors import DfdetectError
from dfdetect.predictions import Predictions
from dfdetect.probabilities import calibrated
from dfdetect.results import Prediction, sigmoid

ROUNDS = 8


def made_up(seed, kinds=("real", "DF", "FS"), n_videos=12, spread=1.0, data="d"):
    """Crops of two people in every third video, at two qualities; logits with ties, and some whose
    sigmoid is 1 or next to 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for v in range(n_videos):
        kind = kinds[v % len(kinds)]
        mood = rng.normal(2 * spread * (kind != "real"))
        for quality in ("raw", "c40"):
            for track in range(2 if v % 3 == 1 else 1):
                for frame in range(2):
                    logit = float(np.round(mood + rng.normal(), 1)) * (60 if v == 5 else 1)
                    rows.append(
                        Prediction(
                            f"v{v}/{frame}/{track}", f"v{v}", track, data, kind, quality, "test",
                            int(kind != "real"), logit, float(sigmoid(np.array(logit))),
                        )
                    )  # fmt: skip
    return rows


def cells_of(folders, rounds=ROUNDS, **options):
    return measure(Predictions.of({}, folders).folders(), "test", 0.5, rounds=rounds, **options)


def test_every_number_is_that_of_an_independent_program():
    """Ties, saturated scores, several people in a video, folders with one and with two kinds."""
    folders = {"d": made_up(1), "e": made_up(2, kinds=("real", "NT"), n_videos=8, spread=0.2)}
    cells = cells_of(folders)
    rows = Predictions.of({}, folders).table.to_pylist()
    expected = recompute(rows, 0.5, ROUNDS)
    found = {(c.data, c.level, c.quality, c.manipulation): c for c in cells}
    assert found.keys() == expected.keys() and len(found) == len(cells)
    for place, values in expected.items():
        for name in FIGURES:
            assert getattr(found[place], name) == pytest.approx(values[name][0], abs=1e-9), name
        for name in MEASURES:
            drawn = values[name][1:]
            bounds = np.quantile(drawn[~np.isnan(drawn)], (0.025, 0.975))
            assert found[place].intervals[name] == pytest.approx(bounds, abs=1e-9), (place, name)
    video = found["d", "video", "raw", "all"]
    assert (video.n_real, video.n_fake, video.n_videos_real, video.n_videos_fake) == (4, 8, 4, 8)
    pooled = found["pooled", "track", "pooled", "all"]
    assert (pooled.n_real, pooled.n_videos_real) == (2 * (4 + 5), 8)


def test_a_class_that_is_missing_at_a_quality_leaves_only_what_has_both():
    rows = [p for p in made_up(3) if p.label or p.quality == "raw"]
    found = {c.quality: c for c in cells_of({"d": rows}) if c.level == "video"}
    assert found["raw"].auc is not None and found["raw"].intervals
    for quality in ("c40", "mean", "worst"):
        assert {getattr(found[quality], name) for name in FIGURES} == {None}
        assert found[quality].intervals == {} and found[quality].reason == "no real videos at c40"


def test_one_video_of_a_class_has_figures_and_no_interval():
    rows = [p for p in made_up(4) if p.label or p.video_id == "v0"]
    assert all(c.auc is not None and c.intervals == {} for c in cells_of({"d": rows}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"logit": float("nan")}, r"v3/1/0 at c40 has no finite score \(1 of "),
        ({"score": float("inf")}, "has no finite score"),
        ({"label": 2}, "neither 0 nor 1"),
        ({"label": 1}, "is of a video that has the other label too"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(change, complaint):
    rows = made_up(5)
    i = next(i for i, p in enumerate(rows) if (p.sample_id, p.quality) == ("v3/1/0", "c40"))
    rows[i] = rows[i]._replace(**change)
    with pytest.raises(DfdetectError, match=complaint):
        cells_of({"d": rows})


@pytest.mark.parametrize("name", ["all", "unseen", "mean", "worst"])
def test_a_manipulation_that_is_called_like_a_summary_is_refused(name):
    rows = [p._replace(manipulation=name) if p.manipulation == "FS" else p for p in made_up(6)]
    with pytest.raises(DfdetectError, match=f"d: a manipulation is called '{name}'"):
        cells_of({"d": rows}, 0)
    with pytest.raises(DfdetectError, match="the folder is called 'pooled'"):
        cells_of({"pooled": made_up(6)}, 0)


def test_an_interval_below_chance_sets_off_an_alarm_and_a_poor_model_does_not():
    inverted = [p._replace(logit=-p.logit, score=1 - p.score) for p in made_up(7, spread=3)]
    (frame, track, video) = alarms(cells_of({"d": inverted}, 200))
    assert frame.startswith("d: frame AUC 0.0") and "track" in track and "video" in video
    assert frame.endswith("labels or score sign look inverted")
    assert alarms(cells_of({"d": made_up(8, spread=0)}, 200)) == []


def test_a_video_of_one_person_is_that_person_s_track():
    folders = {d: [p for p in made_up(i) if not p.track_id] for i, d in enumerate("de")}
    track, video = ([c for c in cells_of(folders) if c.level == at] for at in ("track", "video"))
    assert [replace(c, level="video") for c in track] == video and len(video) > 40
    (columns, _) = Predictions.of({}, folders).folders().values()
    apart = measure({"d": columns}, "test", 0.5, rounds=ROUNDS, levels=["track"])
    assert apart == [c for c in track if c.data == "d"]


def test_rounds_are_the_same_whatever_else_is_measured():
    alone = cells_of({"d": made_up(1)})
    both = cells_of({"d": made_up(1), "e": made_up(2)})
    assert both[: len(alone)] == alone


# --- what was not scored ------------------------------------------------------------------------


def failures(folder, *rows, head="source,video_id,label,manipulation,kind,message,hint,split"):
    (folder / "failures.csv").write_text("\n".join([head, *rows, ""]))
    return folder


def test_what_was_not_scored_counts_as_the_worst_case(tmp_path):
    folder = failures(
        tmp_path,
        "a,a,0,real,no-face,m,h,test", "b,b,1,DF,error,m,h,test", "c,c,1,DF,error,m,h,test",
        "d,d,0,real,error,m,h,train",
    )  # fmt: skip
    lost = read_lost(folder, "test")
    rows = made_up(9)
    (columns,) = Predictions.of({}, {"d": rows}).folders().values()
    found = coverage_of(columns, "d", "test", lost)
    assert asdict(found.real) == {"n_inputs": 5, "n_scored": 4, "n_no_face": 1, "n_unreadable": 0}
    assert asdict(found.fake) == {"n_inputs": 10, "n_scored": 8, "n_no_face": 0, "n_unreadable": 2}
    for worst in found.worst_case:
        scores = {}
        for p in rows:
            if worst.quality in (p.quality, "pooled"):
                scores.setdefault((p.quality, p.video_id, p.label), []).append(p.score)
        pairs = [(np.mean(s), label) for (_, _, label), s in scores.items()]
        pairs += [(9.0, 0), (-9.0, 1), (-9.0, 1)] * (2 if worst.quality == "pooled" else 1)
        score, label = (np.array(column) for column in zip(*pairs, strict=True))
        expected = figures(score, score * 0, score, label, 0.5)
        assert (worst.auc, worst.eer) == pytest.approx((expected["auc"], expected["eer"]))
    stored = json.loads(json.dumps(asdict(found)))
    assert coverage_of(columns, "d", "test", lost_of(stored)) == found


def test_a_list_of_failures_that_tells_no_split_leaves_coverage_unknown(tmp_path):
    assert read_lost(tmp_path, "test") is None
    old = "source,video_id,label,manipulation,kind,message,hint"
    assert read_lost(failures(tmp_path, "a,a,0,real,no-face,m,h", head=old), "test") is None
    assert read_lost(failures(tmp_path), "test") == {}


# --- probabilities ------------------------------------------------------------------------------


def test_scores_are_measured_as_probabilities_before_and_after_calibration():
    (columns,) = Predictions.of({}, {"d": made_up(10)}).folders().values()
    found = {c.quality: c for c in calibrated(columns, "d", "test", {"slope": 2, "intercept": -1})}
    assert list(found) == ["raw", "c40", "pooled"]
    cells = {c.quality: c for c in cells_of({"d": made_up(10)}, 0) if c.level == "video"}
    for quality, one in found.items():
        for name in ("brier", "cllr", "min_cllr", "ece"):
            before = getattr(one.before, name)
            assert before == pytest.approx(getattr(cells[quality], name), abs=1e-12)
        assert one.after.min_cllr == pytest.approx(one.before.min_cllr)  # the order stays
        assert one.after.cllr != pytest.approx(one.before.cllr)
        assert sum(b.share for b in one.after.bins) == pytest.approx(1)
    assert calibrated(columns, "d", "test", None)[0].after is None
    only_fakes = columns.where(columns.label == 1)
    assert calibrated(only_fakes, "d", "test", None) == []
