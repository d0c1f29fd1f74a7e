"""eval: numbers worked by hand, empty cells with a reason, files that agree with one another."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from dfdetect.errors import DfdetectError
from dfdetect.evaluate import evaluate, measure
from dfdetect.manifest import read_samples, read_table, write_part
from dfdetect.results import Prediction


def row(video, frame, manipulation, quality, score):
    label = int(manipulation != "real")
    logit = float(np.log(score / (1 - score)))
    sample = f"{video}/{frame}/0"
    return Prediction(sample, video, 0, "d", manipulation, quality, "test", label, logit, score)


def cell(cells, **place):
    (found,) = [c for c in cells if all(getattr(c, k) == v for k, v in place.items())]
    return found


BY_HAND = [
    # video r: frames .2 .6, mean .4; s: .1 .3, mean .2; fakes a: .5 .9, mean .7; b: .3 .3, mean .3
    *(row("r", i, "real", "raw", s) for i, s in enumerate((0.2, 0.6))),
    *(row("s", i, "real", "raw", s) for i, s in enumerate((0.1, 0.3))),
    *(row("a", i, "DF", "raw", s) for i, s in enumerate((0.5, 0.9))),
    *(row("b", i, "FS", "raw", s) for i, s in enumerate((0.3, 0.3))),
]


def test_each_manipulation_is_measured_against_all_reals():
    cells = measure(BY_HAND, "d", "test", threshold=0.45)
    frame = {"level": "frame", "quality": "raw"}
    # DF: pairs (.5,.9) x (.2,.6,.1,.3): 3 of 4 and 4 of 4; FS: .3 > .2, .1 and ties .3: 2.5 of 4
    assert cell(cells, manipulation="DF", **frame).auc == pytest.approx(7 / 8)
    assert cell(cells, manipulation="FS", **frame).auc == pytest.approx(5 / 8)
    assert cell(cells, manipulation="all", **frame).auc == pytest.approx(12 / 16)
    # at .45: reals .2 .1 .3 right, .6 wrong; DF both right
    assert cell(cells, manipulation="DF", **frame).accuracy == pytest.approx(5 / 6)
    assert (
        cell(cells, manipulation="DF", **frame).n_real,
        cell(cells, manipulation="DF", **frame).n_fake,
    ) == (4, 2)


def test_video_level_takes_the_mean_score_of_each_video():
    cells = measure(BY_HAND, "d", "test", threshold=0.45)
    video = {"level": "video", "quality": "raw"}
    assert cell(cells, manipulation="DF", **video).auc == 1.0
    assert cell(cells, manipulation="FS", **video).auc == 0.5  # .3 against .4 and .2
    assert cell(cells, manipulation="all", **video).n_fake == 2
    assert cell(cells, manipulation="FS", **video).accuracy == pytest.approx(2 / 3)


def test_mean_pooled_and_worst_over_qualities_differ_as_they_should():
    rows = [row("r", 0, "real", "raw", 0.2), row("a", 0, "DF", "raw", 0.3),
            row("r", 0, "real", "c40", 0.6), row("a", 0, "DF", "c40", 0.5)]  # fmt: skip
    cells = measure(rows, "d", "test", 0.5)
    values = {c.quality: c.auc for c in cells if c.level == "frame"}
    assert values == {"raw": 1.0, "c40": 0.0, "mean": 0.5, "pooled": 0.5, "worst": 0.0}
    eers = {c.quality: c.eer for c in cells if c.level == "frame"}
    assert eers["worst"] == max(eers["raw"], eers["c40"]) == 1.0
    pooled = cell(cells, level="video", quality="pooled")
    assert (pooled.n_real, pooled.n_fake) == (2, 2)


def test_a_single_class_leaves_an_empty_cell_with_the_reason():
    only_fakes = [p for p in BY_HAND if p.label]
    for found in measure(only_fakes, "d", "test", 0.5):
        assert found.auc is found.eer is found.accuracy is None
        assert found.reason.startswith("no real")


def test_eval_writes_what_it_prints_and_predictions_reproduce_it(run, data, tmp_path):
    result = evaluate(run, [data], out=tmp_path / "out", device="cpu")
    stored = json.loads((tmp_path / "out/metrics.json").read_text())
    assert stored["cells"] == json.loads(json.dumps(result.as_json()["cells"]))
    predictions = pq.read_table(tmp_path / "out/predictions.parquet").to_pylist()
    expected = {(s.sample_id, s.quality) for s in read_samples(data, "test")}
    assert {(p["sample_id"], p["quality"]) for p in predictions} == expected
    assert len(predictions) == len(expected)
    raw = [p for p in predictions if p["quality"] == "raw"]
    pairs = [
        (f["logit"] > r["logit"]) + 0.5 * (f["logit"] == r["logit"])
        for f in raw if f["label"] for r in raw if not r["label"]
    ]  # fmt: skip
    found = cell(result.cells, level="frame", quality="raw", manipulation="all")
    assert found.auc == pytest.approx(np.mean(pairs))
    assert (tmp_path / "out/metrics.csv").read_text().count("\n") == len(result.cells) + 1


def test_several_folders_are_measured_apart(run, data, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    result = evaluate(run, [data, other], qualities="raw", device="cpu")
    assert {c.data for c in result.cells} == {"prepared", "other"}
    first, second = ([c.auc for c in result.cells if c.data == d] for d in ("prepared", "other"))
    assert first == second


def test_a_split_of_one_class_is_an_error_and_not_a_half(run, data, tmp_path):
    copy = tmp_path / "reals"
    shutil.copytree(data, copy)
    rows = [r for r in read_table(copy).to_pylist() if r["label"] == 0]
    for part in (copy / "manifest").glob("*"):
        part.unlink()
    write_part(copy, "all", rows)
    with pytest.raises(DfdetectError, match="nothing to measure in the test split"):
        evaluate(run, [copy], device="cpu")


def test_jpeg_is_made_of_the_raw_crops_and_listed_like_a_stored_quality(run, data, tmp_path):
    wanted = "c23,j75,raw,j40-100"
    result = evaluate(run, [data], wanted, out=tmp_path / "out", device="cpu")
    (predictions,) = result.predictions.values()
    n_raw = sum(s.quality == "raw" for s in read_samples(data, "test"))
    assert [p.quality for p in predictions] == [q for q in wanted.split(",") for _ in range(n_raw)]
    logits = {}
    for p in predictions:
        logits.setdefault(p.quality, []).append(p.logit)
    assert len({tuple(values) for values in logits.values()}) == 4
    of_frames = [c for c in result.cells if c.level == "frame" and c.manipulation == "all"]
    assert [c.quality for c in of_frames] == [*wanted.split(","), "mean", "pooled", "worst"]
    assert "j40-100" in (tmp_path / "out/metrics.csv").read_text()
    assert result.warnings == ["prepared: the model never trained on j40-100, j75"]
    again = evaluate(run, [data], "j40-100", device="cpu")
    assert [p.logit for p in again.predictions["prepared"]] == pytest.approx(logits["j40-100"])


def test_jpeg_without_raw_crops_to_make_it_of_is_refused(run, data, tmp_path):
    copy = tmp_path / "compressed"
    shutil.copytree(data, copy)
    rows = [r for r in read_table(copy).to_pylist() if r["quality"] != "raw"]
    for part in (copy / "manifest").glob("*"):
        part.unlink()
    write_part(copy, "all", rows)
    with pytest.raises(DfdetectError, match="was not prepared at j75") as caught:
        evaluate(run, [copy], "c23,j75", device="cpu")
    assert caught.value.hint == "it holds c23, c40; prepare it with --qualities c23,raw"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"qualities": "raw,c30"}, "was not prepared at c30"),
        ({"qualities": "j90-40"}, "not a range of JPEG qualities"),
        ({"qualities": "x"}, "unknown quality"),
        ({"split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_what_is_not_there_is_named(run, data, arguments, complaint):
    with pytest.raises(DfdetectError, match=complaint):
        evaluate(run, [data], device="cpu", **arguments)


def test_a_quality_the_model_never_saw_is_pointed_out(data, tmp_path):
    from dfdetect.presets import load_preset
    from dfdetect.train import train

    preset = load_preset("did-tiny", ["epochs=1", "steps_per_epoch=2", "image_size=64"])
    train(preset, [data], tmp_path / "run", device="cpu")
    result = evaluate(tmp_path / "run", [data], device="cpu")
    assert result.warnings == ["prepared: the model never trained on c40, raw"]
