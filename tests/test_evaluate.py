"""eval: numbers worked by hand, empty cells with a reason, files that agree with one another."""

import csv
import json
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dfdetect import cells as of_cells
from dfdetect.checkpoint import load_checkpoint, save_checkpoint
from dfdetect.data import read_crop, to_input
from dfdetect.detector import Detector
from dfdetect.domains import confusions
from dfdetect.embedding import choose_crops
from dfdetect.errors import DfdetectError
from dfdetect.evaluate import evaluate, remeasure
from dfdetect.manifest import read_samples, read_table, write_part
from dfdetect.predictions import Predictions
from dfdetect.presets import load_preset
from dfdetect.reports.figures import _diagonal
from dfdetect.reports.table import _diagonal_line
from dfdetect.results import Prediction
from dfdetect.train import train


@pytest.fixture(scope="module")
def did(data, tmp_path_factory):
    """A tiny DID, trained on c23 for a few steps, that never saw local-warp."""
    out = tmp_path_factory.mktemp("runs") / "did"
    options = ["epochs=1", "steps_per_epoch=4", "image_size=64", "leave_out=local-warp"]
    train(load_preset("did-tiny", options), [data], out, device="cpu")
    return out


def row(video, frame, manipulation, quality, score, domain=None):
    label = int(manipulation != "real")
    logit = float(np.log(score / (1 - score)))
    sample = f"{video}/{frame}/0"
    return Prediction(
        sample, video, 0, "d", manipulation, quality, "test", label, logit, score, domain
    )


def measure(rows, data, split, threshold, trained=None, rounds=0):
    folders = Predictions.of({}, {data: rows}).folders()
    return of_cells.measure(folders, split, threshold, trained, rounds)


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
    pooled = cell(cells, level="video", quality="pooled", manipulation="all")
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
    lines = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert [float(line["auc"]) for line in lines] == [c.auc for c in result.cells]
    again = remeasure(tmp_path / "out")
    assert again.as_json() == result.as_json()
    assert again.predictions.rows == result.predictions.rows


def test_what_prepare_lost_is_counted_and_costs_as_much_as_it_can(run, data, tmp_path, cli):
    copy = tmp_path / "lossy"
    shutil.copytree(data, copy)
    with (copy / "failures.csv").open("a") as file:
        file.write("x.mp4,x,0,real,no-face,no face,,test\ny.mp4,y,1,DF,error,cut short,,test\n")
        file.write("z.mp4,z,1,DF,error,cut short,,train\n")
    done = cli("eval", run, "--data", copy, "--device", "cpu", "--out", tmp_path / "out")
    n = Counter(label for _, label in {(s.video_id, s.label) for s in read_samples(copy, "test")})
    line = f"scored of lossy: {n[0]} of {n[0] + 1} real (1 without a face), {n[1]} of {n[1] + 1}"
    assert line in " ".join(done.stdout.split())
    (told,) = json.loads((tmp_path / "out/metrics.json").read_text())["coverage"]
    everything = {c.quality: c for c in remeasure(tmp_path / "out").cells if c.level == "video"
                  and c.manipulation == "all"}  # fmt: skip
    for worst in told["worst_case"]:
        share = n[0] * n[1] / ((n[0] + 1) * (n[1] + 1))  # every pair with a failure is lost
        assert worst["auc"] == pytest.approx(everything[worst["quality"]].auc * share)
    (copy / "failures.csv").unlink()
    assert (
        "nobody knows how much of it was scored" in evaluate(run, [copy], device="cpu").warnings[-1]
    )


def test_a_manipulation_called_like_a_summary_is_refused_before_the_work(run, data, tmp_path):
    copy = tmp_path / "taken"
    shutil.copytree(data, copy)
    rows = [r | {"manipulation": "all"} if r["label"] else r for r in read_table(copy).to_pylist()]
    for part in (copy / "manifest").glob("*"):
        part.unlink()
    write_part(copy, "all", rows)
    with pytest.raises(DfdetectError, match="taken: a manipulation is called 'all'"):
        evaluate(run, [copy], device="cpu", on_progress=pytest.fail)


def test_results_that_eval_did_not_write_are_no_results(tmp_path):
    with pytest.raises(DfdetectError, match=r"holds no predictions\.parquet") as caught:
        remeasure(tmp_path)
    assert caught.value.hint.startswith("write it with: dfdetect eval RUN --data DATA --out")


def test_several_folders_are_measured_apart(run, data, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    result = evaluate(run, [data, other], qualities="raw", device="cpu")
    places = ("prepared", "other", "mean", "pooled", "worst")
    assert list(dict.fromkeys(c.data for c in result.cells)) == list(places)
    aucs = {d: [c.auc for c in result.cells if c.data == d] for d in places}
    assert aucs["prepared"] == aucs["other"]
    together = [c.auc for c in result.cells if c.data == "other" and c.manipulation == "all"]
    assert aucs["mean"] == aucs["pooled"] == aucs["worst"] == together


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
    (predictions,) = result.predictions.rows.values()
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
    ours = [
        p.logit for p in again.predictions.rows["prepared"]
    ]  # in other batches: the last bits differ
    assert ours == pytest.approx(logits["j40-100"], abs=1e-6)


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


def test_what_the_model_never_trained_on_is_pointed_out(did, data):
    result = evaluate(did, [data], device="cpu")
    assert result.warnings == [
        "prepared: the model never trained on c40, raw",
        "prepared: the model never trained on the manipulations local-warp",
    ]
    seen = {c.manipulation: c.seen_in_training for c in result.cells}
    assert seen == {
        "local-warp": False, "self-blend": True, "mean": None, "worst": None, "unseen": False,
        "all": None,
    }  # fmt: skip
    assert list(seen)[-1] == "all"
    figures = ("auc", "eer", "accuracy", "n_fake")
    alone, together = (
        [[getattr(c, f) for f in figures] for c in result.cells if c.manipulation == name]
        for name in ("local-warp", "unseen")
    )
    assert alone == together


def test_what_the_model_was_trained_on_or_chosen_by_is_pointed_out(run, data, tmp_path):
    def told(folder, split):
        warnings = evaluate(run, [folder], "raw", split, rounds=0).warnings
        return [w for w in warnings if w.startswith(f"{folder.name}: ")]

    n_train = len({s.video_id for s in read_samples(data, "train")})
    (warning,) = told(data, "train")
    assert f"{n_train} videos: " in warning and "what the model has not seen" in warning
    (warning,) = told(data, "val")
    assert "val split chose the checkpoint (" in warning and " videos: " in warning
    assert told(data, "test") == []
    # People are named by their dataset, so a copy under another name counts as the same.
    copy = shutil.copytree(data, tmp_path / "copy")
    (warning,) = told(copy, "train")
    assert f"{n_train} videos: " in warning


def test_that_a_model_could_not_be_compared_with_what_it_was_trained_on_is_told(
    run, data, tmp_path
):
    copy = shutil.copytree(data, tmp_path / "copy")
    alone = tmp_path / "run"
    alone.mkdir()
    shutil.copy(run / "detector.safetensors", alone)

    def told():
        warnings = evaluate(alone, [data, copy], "raw", rounds=0).warnings
        return [w for w in warnings if "not compared with what the model was trained on" in w]

    (warning,) = told()
    assert warning.startswith("prepared, copy: ") and warning.endswith("which is not there")
    about = json.loads((run / "run.json").read_text()) | {"data": [str(tmp_path / "damaged")]}
    (alone / "run.json").write_text(json.dumps(about))
    (tmp_path / "damaged" / "manifest").mkdir(parents=True)
    (tmp_path / "damaged" / "manifest" / "part.parquet").write_bytes(b"no table")
    (warning,) = told()
    assert str(tmp_path / "damaged") in warning


def test_unseen_is_all_that_was_never_trained_on_where_there_are_both_kinds():
    rows = [*BY_HAND, row("c", 0, "NT", "raw", 0.5)]
    cells = measure(rows, "d", "test", 0.45, trained=["DF", "not here"])
    frame = {"level": "frame", "quality": "raw"}
    columns = ["DF", "FS", "NT", "mean", "worst", "unseen", "all"]
    assert list(dict.fromkeys(c.manipulation for c in cells)) == columns
    # FS .3 .3 and NT .5 against .2 .6 .1 .3: 2.5, 2.5 and 3 of 4
    assert cell(cells, manipulation="unseen", **frame).auc == pytest.approx(8 / 12)
    for trained in (["DF", "FS", "NT"], ["x"], None):
        found = measure(rows, "d", "test", 0.45, trained)
        assert "unseen" not in {c.manipulation for c in found}
        expected = None if trained is None else trained != ["x"]
        single = [c for c in found if c.manipulation in ("DF", "FS", "NT")]
        assert {c.seen_in_training for c in single} == {expected}


def test_a_checkpoint_that_does_not_say_what_it_trained_on_leaves_it_open(did, data, tmp_path):
    known = load_checkpoint(did, "cpu")
    rest = {k: v for k, v in known.info.data.items() if k != "manipulations"}
    info = known.info.model_copy(update={"data": rest})
    save_checkpoint(tmp_path / "detector.safetensors", known.detector, info)
    result = evaluate(tmp_path, [data], "c23", device="cpu")
    assert result.warnings == []
    assert {c.seen_in_training for c in result.cells} == {None}
    assert result.domains[0].seen_in_training == [True, None, None]
    assert result.domains[0].mean_diagonal is not None


DOMAINS = ["real", "DF", "FS"]
TOLD = [
    # per quality: real 2 of 3 right, DF 1 of 2, FS 0 of 1 (at c40 1 of 1); NT was never trained on
    *(row("r", i, "real", "raw", 0.5, d) for i, d in enumerate(("real", "real", "FS"))),
    *(row("a", i, "DF", "raw", 0.5, d) for i, d in enumerate(("DF", "real"))),
    row("b", 0, "FS", "raw", 0.5, "DF"),
    row("n", 0, "NT", "raw", 0.5, "FS"),
    row("b", 0, "FS", "c40", 0.5, "FS"),
]


def test_confusion_counts_by_quality_and_pooled_and_its_diagonal_leaves_out_the_unseen():
    raw, c40, pooled = confusions(TOLD, "d", "test", DOMAINS, ["DF", "FS", "Deepfakes"])
    assert [c.quality for c in (raw, c40, pooled)] == ["raw", "c40", "pooled"]
    assert raw.manipulations == c40.manipulations == ["real", "DF", "FS", "NT"]
    assert raw.seen_in_training == [True, True, True, False]
    assert raw.counts == [[2, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert pooled.counts == [[2, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert (raw.mean_diagonal, raw.n_diagonal) == (pytest.approx((1 / 2 + 0) / 2), 3)
    assert raw.mean_diagonal_with_real == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert raw.n_diagonal_with_real == 6
    assert (c40.mean_diagonal, c40.n_diagonal) == (1.0, 1)  # rows without crops do not count
    assert pooled.mean_diagonal == pytest.approx(1 / 2)


def test_the_diagonal_is_without_reals_where_they_are_no_domain():
    told = [p._replace(predicted_domain="no domain") if p.predicted_domain == "real" else p
            for p in TOLD]  # fmt: skip
    raw, *_ = confusions(told, "d", "test", ["no domain", *DOMAINS[1:]], ["DF", "FS"])
    assert raw.manipulations[0] == "real" and raw.right(0) is None
    assert raw.mean_diagonal == pytest.approx((1 / 2 + 0) / 2)
    assert (raw.mean_diagonal_with_real, raw.n_diagonal_with_real) == (None, 0)
    for drawn in (_diagonal([raw]), _diagonal_line([raw])):
        assert "0.25" in drawn and "with real" not in drawn


def test_groups_that_training_found_itself_have_no_diagonal():
    found = [p._replace(predicted_domain="group 1") for p in TOLD]
    *_, pooled = confusions(found, "d", "test", ["real", "group 1"], ["DF", "FS"])
    assert pooled.counts == [[0, 3], [0, 2], [0, 2], [0, 1]]
    assert pooled.mean_diagonal is None and "no manipulation here" in pooled.reason


def test_domains_of_eval_are_what_the_domain_head_says_of_each_crop(did, data, tmp_path):
    result = evaluate(did, [data], out=tmp_path, device="cpu")
    checkpoint = load_checkpoint(did, "cpu")
    detector, names = checkpoint.detector, checkpoint.info.domains
    assert names == ["real", "self-blend"]
    paths = {(s.sample_id, s.quality): s.path for s in read_samples(data, "test")}
    stored = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    counts = Counter()
    for p in stored:
        crop = to_input(read_crop(paths[p["sample_id"], p["quality"]]), 64)
        with torch.inference_mode():
            images = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 255
            logits = detector.domain_logits(
                detector.decompose(detector.features(images).final).domain
            )[0]
            assert p["logit"] == pytest.approx(float(detector(images)), abs=1e-5)
        told = names.index(p["predicted_domain"])
        assert logits[told] == pytest.approx(float(logits.max()), abs=1e-5)
        counts[p["quality"], p["manipulation"], p["predicted_domain"]] += 1
        counts["pooled", p["manipulation"], p["predicted_domain"]] += 1
    rows = list(csv.DictReader((tmp_path / "domains.csv").open()))
    assert [r["manipulation"] for r in rows[:3]] == ["real", "self-blend", "local-warp"]
    assert [r["seen_in_training"] for r in rows[:3]] == ["True", "True", "False"]
    assert len(rows) == 4 * 3
    for r in rows:
        of_row = [counts[r["quality"], r["manipulation"], name] for name in names]
        assert [int(r[f"predicted {name}"]) for name in names] == of_row
        assert int(r["n"]) == sum(of_row)
    (entry,) = [
        d
        for d in json.loads((tmp_path / "metrics.json").read_text())["domains"]
        if d["quality"] == "pooled"
    ]
    right, n = counts["pooled", "self-blend", "self-blend"], entry["n_diagonal"]
    assert n == sum(p["manipulation"] == "self-blend" for p in stored)
    assert entry["mean_diagonal"] == pytest.approx(right / n)
    assert (entry["level"], entry["domains"]) == ("frame", names)
    assert result.files == [
        "predictions.parquet", "metrics.json", "metrics.csv", "domains.csv", "domains.png",
    ]  # fmt: skip
    assert {f.name for f in tmp_path.iterdir()} == set(result.files)


def test_score_domain_and_features_come_from_one_pass(did, data, tmp_path, monkeypatch):
    n_images, features = [], Detector.features

    def counting(self, images, strides=()):
        n_images.append(len(images))
        return features(self, images, strides)

    plain = evaluate(did, [data], device="cpu")
    monkeypatch.setattr(Detector, "features", counting)
    result = evaluate(did, [data], out=tmp_path, device="cpu", tsne=3)
    assert sum(n_images) == len(read_samples(data, "test"))
    assert result.predictions.rows == plain.predictions.rows


def test_tsne_keeps_some_crops_of_each_manipulation_with_their_features(did, data, tmp_path):
    evaluate(did, [data], out=tmp_path / "a", device="cpu", tsne=4)
    evaluate(did, [data], out=tmp_path / "b", device="cpu", tsne=4)
    a, b = (np.load(tmp_path / name / "features.npz") for name in "ab")  # nothing pickled
    assert all((a[name] == b[name]).all() for name in b.files)
    assert a["perplexity"] == pytest.approx(11 / 3)  # of 12 crops
    assert Counter(a["manipulation"].tolist()) == {"real": 4, "local-warp": 4, "self-blend": 4}
    assert set(zip(a["manipulation"], a["label"], a["seen_in_training"], strict=True)) == {
        ("real", 0, 1), ("self-blend", 1, 1), ("local-warp", 1, 0),
    }  # fmt: skip
    rows = {(s.sample_id, s.quality): s for s in read_samples(data, "test")}
    detector = load_checkpoint(did, "cpu").detector
    for i, key in enumerate(zip(a["sample_id"], a["quality"], strict=True)):
        assert rows[key].manipulation == a["manipulation"][i]
        crop = to_input(read_crop(rows[key].path), 64)
        with torch.inference_mode():
            images = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 255
            parts = detector.decompose(detector.features(images).final)
        for name in ("whole", "deepfake", "domain"):
            expected = getattr(parts, name)[0].mean((1, 2)).numpy()
            assert a[name][i] == pytest.approx(expected, rel=1e-3, abs=1e-5), name
    for name in ("whole", "deepfake", "domain"):
        assert a[f"tsne_{name}"].shape == (12, 2) and np.isfinite(a[f"tsne_{name}"]).all()
    assert (tmp_path / "a/tsne.png").read_bytes() == (tmp_path / "b/tsne.png").read_bytes()


def test_crops_are_chosen_spread_by_chance_and_without_regard_to_others(data):
    rows = read_samples(data, "test")
    chosen = choose_crops(rows, 5, seed=1)
    fakes = [s for s in rows if s.manipulation != "local-warp"]
    kept = [s for s, flag in zip(rows, chosen, strict=True) if flag]
    again = [s for s, flag in zip(fakes, choose_crops(fakes, 5, seed=1), strict=True) if flag]
    assert [s for s in kept if s.manipulation != "local-warp"] == again
    assert (choose_crops(rows, 5, seed=2) != chosen).any()
    assert choose_crops(rows, 10**6).all() and not choose_crops(rows, 0).any()


def test_a_detector_without_a_domain_head_has_features_and_no_domains(
    run, did, data, tmp_path, cli
):
    done = cli("eval", did, "--data", data, "--out", tmp_path, "--tsne", 2, "--device", "cpu")
    assert done.exit_code == 0 and "local-warp *" in done.stdout
    assert "* never trained on" in done.stdout and "mean of the diagonal" in done.stdout
    assert done.stdout.strip().endswith("domains.csv, domains.png, features.npz, tsne.png")
    done = cli("eval", run, "--data", data, "--out", tmp_path, "--tsne", 2, "--device", "cpu")
    assert done.exit_code == 0 and "never trained on" not in done.stdout
    assert set(np.load(tmp_path / "features.npz").files) >= {"whole", "tsne_whole"}
    assert not {"deepfake", "domain"} & set(np.load(tmp_path / "features.npz").files)
    assert "predicted_domain" not in pq.read_schema(tmp_path / "predictions.parquet").names
    assert not (tmp_path / "domains.csv").exists()  # of the other detector
    assert not (tmp_path / "domains.png").exists()


def test_tsne_that_cannot_be_is_refused_before_the_work(run, data, tmp_path, cli):
    done = cli("eval", run, "--data", data, "--tsne", 5)
    assert done.exit_code == 2
    assert done.stderr == (
        "error: --tsne writes a picture and its features; say where to, with --out\n"
    )
    done = cli("eval", run, "--data", data, "--tsne", 1, "--out", tmp_path / "out")
    assert done.exit_code == 2 and not (tmp_path / "out").exists()
    assert done.stderr == (
        "error: --tsne 1: no t-SNE of 3 crops; it takes 5 of all manipulations\n"
    )
