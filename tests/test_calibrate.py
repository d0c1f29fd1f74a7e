"""calibrate: scores become probabilities, calls rest on counts, the weak are marked as such."""

import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import clip, write_clip
from safetensors.torch import load_file

from dfdetect.calibrate import (
    Options,
    Videos,
    calibrate,
    calibration_of,
    scan_scores,
)
from dfdetect.checkpoint import Calibration, load_checkpoint, read_info, save_checkpoint
from dfdetect.errors import DfdetectError
from dfdetect.evaluate import evaluate
from dfdetect.independence import fingerprint_of
from dfdetect.manifest import read_table
from dfdetect.metrics import (
    Sigmoid,
    binomial_bounds,
    brier,
    calibration_error,
    conformal_cut,
    eer,
    fit_sigmoid,
    log_loss,
    reliability,
    score_logit,
)
from dfdetect.predictions import Predictions, read_predictions, write_predictions
from dfdetect.prepare import PrepareRecipe, prepare
from dfdetect.presets import load_preset
from dfdetect.results import Prediction, sigmoid, video_scores
from dfdetect.scanning import Scanner
from dfdetect.training_data import load_training_data
from dfdetect.validation import at_worst_quality, calibrated_decision


def drawn(n, seed=0, prior=0.5):
    """Logits whose sigmoid is exactly P(fake), with their labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prior).astype(int)
    # Normals with means -+2 and variance 4 have log likelihood ratio 4 z / 4 = z.
    logits = rng.normal(np.where(labels == 1, 2.0, -2.0), 2.0)
    return logits, labels


def of_class(labels, prior=0.5):
    """Weights by which fakes weigh `prior`."""
    counts = np.bincount(labels)
    return np.where(labels == 1, prior / counts[1], (1 - prior) / counts[0])


def videos_of(logits, labels, qualities=("raw",), noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    parts = [
        Videos(
            np.array([f"v{i:04d}" for i in range(len(labels))]),
            np.full(len(labels), quality),
            sigmoid(logits + rng.normal(0, noise, len(labels)) if noise else logits),
            labels,
            np.zeros(len(labels), bool),
        )
        for quality in qualities
    ]
    return Videos(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def fitted(logits, labels, options=Options(), **more):
    return calibration_of(videos_of(logits, labels, **more), options, 0.5, "made up", None, "")


# --- formulas --------------------------------------------------------------------------------


def test_log_loss_brier_and_calibration_error_are_those_of_their_formulas():
    rng = np.random.default_rng(1)
    scores, labels, weights = rng.random(500), rng.integers(0, 2, 500), rng.random(500)
    w = weights / weights.sum()
    given = np.where(labels == 1, scores, 1 - scores)
    assert log_loss(scores, labels, weights) == pytest.approx(-(w * np.log(given)).sum(), abs=1e-12)
    assert brier(scores, labels, weights) == pytest.approx((w * (1 - given) ** 2).sum(), abs=1e-12)
    error = 0.0
    for low in range(10):
        here = (scores >= low / 10) & (scores < (low + 1) / 10)
        error += abs((w * (scores - labels))[here].sum())
    bins = reliability(scores, labels, weights)
    assert calibration_error(bins) == pytest.approx(error, abs=1e-12)
    assert sum(b.share for b in bins) == pytest.approx(1)
    assert all(b.low <= b.score <= b.high for b in bins)


def test_a_score_of_one_falls_into_the_last_bin():
    (first, last) = reliability([0.0, 1.0], [0, 1], [1, 1])
    assert (first.low, last.low, last.high, last.fake) == (0.0, 0.9, 1.0, 1.0)


def test_a_calibrated_score_stays_as_it_is():
    logits, labels = drawn(20_000)
    for bias in (True, False):
        slope, intercept = fit_sigmoid(logits, labels, of_class(labels), 0.0, bias)
        assert slope == pytest.approx(1, abs=0.05) and intercept == pytest.approx(0, abs=0.06)


def test_platt_undoes_a_known_distortion():
    logits, labels = drawn(20_000)
    distorted = 3 * logits - 2
    slope, intercept = fit_sigmoid(distorted, labels, of_class(labels), 0.0)
    assert slope * distorted + intercept == pytest.approx(logits, abs=0.4)
    plain = fit_sigmoid(logits, labels, of_class(labels), 0.0)
    assert slope == pytest.approx(plain.slope / 3, rel=1e-5)
    assert intercept == pytest.approx(plain.intercept + 2 / 3 * plain.slope, rel=1e-5)
    assert fit_sigmoid(3 * logits, labels, of_class(labels), 0.0, bias=False) == pytest.approx(
        (fit_sigmoid(logits, labels, of_class(labels), 0.0, bias=False).slope / 3, 0.0), rel=1e-5
    )


def test_figures_weigh_fakes_as_the_prior_says():
    """Of two reals and one fake at a prior of 0.1, each worked by hand."""
    scores = np.array([0.2, 0.4, 0.9])
    before = fitted(np.log(scores / (1 - scores)), np.array([0, 0, 1]), Options(prior=0.1)).before
    by_hand = -(0.45 * np.log(0.8) + 0.45 * np.log(0.6) + 0.1 * np.log(0.9))
    assert before.log_loss == pytest.approx(by_hand, abs=1e-12)
    assert before.brier == pytest.approx(0.45 * 0.04 + 0.45 * 0.16 + 0.1 * 0.01, abs=1e-12)
    assert before.ece == pytest.approx(0.45 * 0.2 + 0.45 * 0.4 + 0.1 * 0.1, abs=1e-12)


def test_the_fit_has_no_gradient_left():
    """The maximum of the likelihood, by its own two equations."""
    logits, labels = drawn(300, seed=3)
    weights = of_class(labels)
    slope, intercept = fit_sigmoid(logits, labels, weights, 0.01)
    target = np.where(labels == 1, 0.99, 0.01)
    residual = weights * (sigmoid(slope * logits + intercept) - target)
    assert abs(residual.sum()) < 1e-7 and abs((residual * logits).sum()) < 1e-7


def test_class_sizes_do_not_move_the_fit():
    """Of nine reals to one fake, the score is still P(fake) at equal priors."""
    logits, labels = drawn(60_000, prior=0.1)
    slope, intercept = fit_sigmoid(logits, labels, of_class(labels), 0.0)
    assert slope == pytest.approx(1, abs=0.06) and intercept == pytest.approx(0, abs=0.08)


def test_classes_that_separate_get_a_finite_slope_and_backward_ones_none():
    logits, labels = np.array([-2.0, -1, 1, 2]), np.array([0, 0, 1, 1])
    slope, intercept = fit_sigmoid(logits, labels, of_class(labels), 1 / 4)
    assert 0 < slope < 10 and intercept == pytest.approx(0, abs=1e-6)
    assert fit_sigmoid(-logits, labels, of_class(labels), 1 / 4) == Sigmoid(0.0, 0.0)


def test_a_prior_adds_exactly_its_log_odds():
    logits, labels = drawn(400, seed=1)
    half, rare = (fitted(logits, labels, Options(prior=p)) for p in (0.5, 0.02))
    assert (half.slope, half.intercept) == (rare.slope, rare.intercept)
    scores = np.array([0.05, 0.5, 0.9])
    shift = score_logit(rare.probability(scores)) - score_logit(half.probability(scores))
    assert shift == pytest.approx(np.log(0.02 / 0.98), abs=1e-9)
    # The same videos lie above the threshold, whatever the prior.
    above = [c.probability(sigmoid(logits)) > c.threshold for c in (half, rare)]
    assert (above[0] == above[1]).all()


def test_saturated_scores_have_a_finite_logit():
    assert np.isfinite(score_logit([0.0, 1.0])).all()
    assert fitted(np.r_[np.full(20, -60.0), np.full(20, 60.0)], np.repeat([0, 1], 20)).slope > 0


# --- threshold and calls ---------------------------------------------------------------------


def test_new_real_videos_exceed_the_threshold_as_rarely_as_promised():
    """Each at the worst of its qualities, both in what is fitted and in what is new."""
    rng, above = np.random.default_rng(5), []
    for seed in range(300):
        logits, labels = drawn(80, seed)
        videos = videos_of(logits, labels, ("raw", "c40"), noise=1.0, seed=seed)
        map_ = fit_sigmoid(
            score_logit(videos.scores), videos.labels, of_class(videos.labels), 1 / 42
        )
        scores = map_.at(0.5, score_logit(videos.scores))
        worst = at_worst_quality(videos.ids, scores, videos.labels)
        threshold = calibrated_decision(worst, 0.05, experimental=False).threshold
        new = rng.normal(-2, 2, (200, 1)) + rng.normal(0, 1, (200, 2))
        above.append((map_.at(0.5, new).max(1) > threshold).mean())
    # From some 40 real videos each: the mean of 300 has a standard error of about 0.002.
    assert 0.03 < np.mean(above) < 0.055


def test_a_cut_is_promised_from_as_many_scores_as_its_error_takes():
    assert conformal_cut(np.arange(18.0), 0.05) is None
    assert conformal_cut(np.arange(19.0), 0.05) == 18
    assert conformal_cut(np.arange(39.0), 0.05) == 37
    assert conformal_cut(np.arange(98.0), 0.01) is None


def test_a_video_counts_at_its_worst_quality():
    worst = at_worst_quality(["r", "f", "r", "f"], [0.1, 0.9, 0.3, 0.6], [0, 1, 0, 1])
    assert (worst.real.tolist(), worst.fake.tolist()) == ([0.3], [0.6])


def test_the_band_rests_on_counts_and_says_them():
    logits, labels = drawn(400, seed=2)
    c = fitted(3 * logits, labels)
    assert c.band is not None and c.band[1] == c.threshold > c.band[0]
    n_real, n_fake = np.bincount(labels)
    assert f"{n_real} real and {n_fake} fake" in c.basis and c.basis.endswith("made up")
    assert c.experimental == []
    few = fitted(np.r_[np.full(10, -3.0), np.full(10, 3.0)], np.repeat([0, 1], 10))
    assert few.band is None and "10 real and 10 fake videos are too few" in few.basis


def test_an_experimental_model_calls_fake_at_one_per_cent_or_nothing():
    rng = np.random.default_rng(0)
    fake = rng.uniform(0.4, 1, 50)

    def decide(n_real, **more):
        worst = at_worst_quality(
            [str(i) for i in range(n_real + 50)],
            [*rng.uniform(0, 0.5, n_real), *fake],
            [0] * n_real + [1] * 50,
        )
        return worst, calibrated_decision(worst, 0.05, **more)

    _, few = decide(98, experimental=True)
    assert few.band is None and "98 real videos are too few" in few.basis
    worst, enough = decide(99, experimental=True)
    assert enough.band == (0.0, worst.real.max()) and "likely-fake only" in enough.basis
    _, more = decide(98, experimental=False)
    assert more.band is not None and more.band[0] > 0


# --- the gate --------------------------------------------------------------------------------


def test_the_gate_names_a_low_bound_of_the_auc_at_raw_and_at_c23():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    good, weak = labels * 8.0 - 4 + rng.normal(size=120), labels * 0.5 + rng.normal(size=120)
    for bad in ("raw", "c23"):
        parts = [videos_of(weak if q == bad else good, labels, (q,)) for q in ("raw", "c23", "c40")]
        videos = Videos(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        (reason,) = calibration_of(videos, Options(), 0.5, "", None, "").experimental
        assert reason.startswith(f"video AUC at {bad} 0.6")
    only_c40 = fitted(good, labels, qualities=("c40",))
    assert only_c40.experimental == ["its video AUC is known neither at raw nor at c23"]


def test_the_gate_names_real_videos_above_the_threshold():
    logits, labels = drawn(400, seed=4)
    (reason,) = fitted(logits, labels, Options(fpr=0.2)).experimental
    assert "of real videos lie above its threshold, more than 10%" in reason
    assert fitted(logits, labels).experimental == []


def test_the_gate_does_not_take_few_perfect_videos_for_a_bound():
    labels = np.repeat([0, 1], 9)
    assert fitted(labels * 8.0 - 4, labels).experimental == [
        "9 real and 9 fake videos are too few to bound its AUC"
    ]


def test_what_is_measured_was_left_out_of_the_fit():
    """Of pure noise, a fit to the very same videos would look better than it is."""
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(20):
        labels = np.arange(24) % 2
        after = fitted(rng.normal(size=24), labels).after
        gains.append(np.log(2) - after.log_loss)
    assert np.mean(gains) < 0
    assert fitted(np.array([-1.0, 1, 2]), np.array([0, 1, 1])).after is None


def test_no_hit_among_ten_leaves_a_rate_of_up_to_a_third_open():
    low, high = binomial_bounds(0, 10)
    assert low == 0 and (1 - high) ** 10 == pytest.approx(0.025)
    low, high = binomial_bounds(10, 10)
    assert high == 1 and low**10 == pytest.approx(0.025)
    assert binomial_bounds(3, 20)[0] < 3 / 20 < binomial_bounds(3, 20)[1]


def test_error_rates_are_stored_by_quality_with_their_bounds():
    """At c40 the reals look faker than at raw, and that is where they pass the threshold."""
    logits, labels = drawn(300, seed=6)
    parts = [videos_of(logits, labels), videos_of(logits + 2 * (labels == 0), labels, ("c40",))]
    videos = Videos(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    c = calibration_of(videos, Options(), 0.5, "", None, "")
    assert list(c.eer) == list(c.false_positives) == ["raw", "c40"]
    for quality, bounds in c.eer.items():
        here = videos.qualities == quality
        assert bounds.rate == eer(videos.scores[here], labels)
        assert bounds.low < bounds.rate < bounds.high
    raw, c40 = c.false_positives["raw"], c.false_positives["c40"]
    assert raw.low <= raw.rate < c40.rate == c.after.real_above_threshold < c40.high
    few = fitted(np.array([-1.0, 1, 2]), np.array([0, 1, 1]))
    assert few.false_positives == {}


def test_a_calibration_without_error_rates_is_read_as_ever():
    content = fitted(*drawn(60)).model_dump(mode="json")
    for name in ("eer", "false_positives"):
        assert content.pop(name)
    assert Calibration.model_validate(content).eer == {}


# --- scores of videos ------------------------------------------------------------------------


def test_a_video_s_score_is_that_of_scan():
    """Two people: the higher mean; one who is in view for less than a fifth does not count."""

    def seen(video, frame, track, score):
        return Prediction(
            f"{video}/{frame}/{track}", video, track, "d", "m", "raw", "val", 1, 0.0, score
        )

    rows = [seen("v", i, 0, 0.2) for i in range(10)]
    rows += [seen("v", i, 1, s) for i, s in enumerate((0.5, 0.7, 0.9))]
    rows += [seen("v", 9, 2, 0.99), seen("photo", 0, 0, 0.4)]
    videos = scan_scores(rows)
    assert videos.ids.tolist() == ["photo", "v"] and videos.single.tolist() == [True, False]
    assert videos.scores == pytest.approx([0.4, 0.7])


# --- the command, on a tiny run --------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(run, data, tmp_path_factory):
    """The tiny run, calibrated into a copy."""
    path = tmp_path_factory.mktemp("calibrated") / "detector.safetensors"
    calibrate(run, [data], out=path, device="cpu")
    return path


def test_the_file_keeps_its_weights_and_gains_one_section(run, calibrated):
    before, after = (load_file(p) for p in (run / "detector.safetensors", calibrated))
    assert before.keys() == after.keys()
    assert all(before[k].numpy().tobytes() == after[k].numpy().tobytes() for k in before)
    info = read_info(calibrated)
    assert info.calibration and info.calibration.fingerprint
    assert info.model_copy(update={"calibration": None}) == read_info(run)


def test_a_checkpoint_without_calibration_is_written_as_ever(run, tmp_path):
    checkpoint = load_checkpoint(run, "cpu")
    save_checkpoint(tmp_path / "again.safetensors", checkpoint.detector, checkpoint.info)
    assert (tmp_path / "again.safetensors").read_bytes() == checkpoint.path.read_bytes()
    assert b'"calibration' not in checkpoint.path.read_bytes()


def test_few_videos_allow_no_calls_and_scan_says_so(cli, run, calibrated, tmp_path):
    calibration = read_info(calibrated).calibration
    assert calibration.band is None and "real videos are too few" in calibration.basis
    assert "chose the checkpoint too: somewhat optimistic" in calibration.basis
    assert any("too few to bound its AUC" in reason for reason in calibration.experimental)
    path = write_clip(tmp_path / "clip.mp4", 1)
    result = cli("scan", path, "--model", calibrated, "--frames", 3, "--device", "cpu")
    first = result.stdout.splitlines()[1]
    assert "experimental: " in result.stdout.splitlines()[3]
    assert "inconclusive   experimental   P(fake) at prior 0.5: 0." in first
    told = json.loads(
        cli("scan", path, "--model", calibrated, "--frames", 3, "--json", "--device", "cpu").stdout
    )
    assert told["call"] == "inconclusive" and told["experimental"] == calibration.experimental
    assert told["score_meaning"] == "P(fake) at prior 0.5"
    assert any(w.startswith("inconclusive: the model makes no calls") for w in told["warnings"])
    raw = Scanner(run, 3, "cpu")(path)
    assert (raw.score_meaning, raw.experimental) == ("uncalibrated score", None)
    mean = np.mean([f.score for f in raw.tracks[0].frames])
    assert told["score"] == pytest.approx(float(calibration.probability(mean)), abs=1e-6)
    assert told["tracks"][0]["score"] == told["score"]
    assert told["tracks"][0]["frames"][0]["score"] == raw.tracks[0].frames[0].score
    shown = cli("scan", path, "--model", run, "--frames", 3, "--device", "cpu").stdout
    assert "inconclusive   uncalibrated score: 0." in shown.splitlines()[1]


@pytest.fixture
def variant(run, calibrated, tmp_path):
    """`variant(**fields)` -> a copy of the calibrated run with other values in its calibration."""
    info, detector = read_info(calibrated), load_checkpoint(run, "cpu").detector

    def make(**fields):
        calibration = info.calibration.model_copy(update={"least_face_px": None} | fields)
        path = tmp_path / f"{len(list(tmp_path.glob('*.safetensors')))}.safetensors"
        changed = info.model_copy(update={"calibration": calibration})
        save_checkpoint(path, detector, changed)
        return path

    return make


def test_a_face_smaller_than_those_calibrated_on_is_not_called(calibrated, data, variant, tmp_path):
    rows = read_table(data, ["face_px", "split"]).to_pylist()
    widths = [r["face_px"] for r in rows if r["split"] == "val"]
    assert min(widths) <= read_info(calibrated).calibration.least_face_px <= max(widths)
    path = write_clip(tmp_path / "clip.mp4", 1)
    large, small = (
        Scanner(variant(band=(0.0, 1e-9), least_face_px=width), 3, "cpu")(path)
        for width in (40.0, 1000.0)
    )
    assert (large.call, small.call) == ("likely-fake", "inconclusive")
    assert any("was calibrated on wider ones, 1000 px and up" in w for w in small.warnings)


def test_a_rare_prior_changes_no_call_and_leaves_no_zero(run, variant, tmp_path):
    """At one fake in a million the scores are tiny, and as far from their band as before."""
    path = write_clip(tmp_path / "clip.mp4", 1)
    raw = Scanner(run, 3, "cpu")(path).score
    for prior in (0.5, 1e-6):
        cut = float(Sigmoid(1, 0).at(prior, score_logit(raw * 0.99)))
        scan = Scanner(
            variant(prior=prior, slope=1.0, intercept=0.0, band=(0.0, cut), threshold=cut), 3, "cpu"
        )
        verdict = scan(path)
        assert verdict.call == "likely-fake" and verdict.score > verdict.threshold > 0


def test_a_picture_is_called_only_where_pictures_were_calibrated_on(variant, tmp_path):
    cv2.imwrite(str(tmp_path / "photo.png"), clip(5, 1)[0][..., ::-1])
    calls = [
        Scanner(variant(band=(0.0, 1e-9), n_pictures={"real": n, "fake": 20}), 3, "cpu")(
            tmp_path / "photo.png"
        ).call
        for n in (8, 9)
    ]
    assert calls == ["inconclusive", "likely-fake"]


def test_dry_run_writes_nothing_and_rerunning_replaces(cli, run, data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "detector.safetensors"
    before = file.read_bytes()
    arguments = ("calibrate", tmp_path / "run", "--data", data, "--device", "cpu", "--json")
    dry = json.loads(cli(*arguments, "-n").stdout)
    assert file.read_bytes() == before and dry["written"] is None
    wet = json.loads(cli(*arguments).stdout)
    assert wet["calibration"] == dry["calibration"] and wet["written"] == str(file)
    first = file.read_bytes()
    assert first != before
    other = json.loads(cli(*arguments, "--method", "temperature", "--prior", 0.1).stdout)
    assert other["calibration"]["intercept"] == 0 and other["calibration"]["prior"] == 0.1
    cli(*arguments)
    assert file.read_bytes() == first


def test_the_table_and_info_show_it(cli, run, calibrated, data):
    shown = cli("calibrate", run, "--data", data, "-n", "--device", "cpu").stdout
    for words in ("log loss (nats)", "real videos above", "experimental: ", "nothing written"):
        assert words in shown
    told = cli("info", calibrated).stdout
    assert "P(fake) at prior 0.5 = sigmoid(" in told or "P(fake) at prior 0.5 = the prior" in told
    assert json.loads(cli("info", calibrated, "--json").stdout)["calibration"]["prior"] == 0.5


def test_eval_ranks_by_what_the_network_says(cli, run, calibrated, data):
    cells = [
        json.loads(
            cli("eval", m, "--data", data, "--split", "val", "--json", "--device", "cpu").stdout
        )["cells"]
        for m in (run, calibrated)
    ]
    assert cells[0] == cells[1]


# --- predictions of sister models --------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The tiny run's network as if it had been trained on other data, away from any run."""
    checkpoint = load_checkpoint(run, "cpu")
    data = checkpoint.info.data | {"fingerprint": "of everything"}
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    info = checkpoint.info.model_copy(update={"data": data})
    save_checkpoint(path, checkpoint.detector, info)
    return path


@pytest.fixture(scope="module")
def folds(run, data, tmp_path_factory):
    """{split: predictions of the tiny run}."""
    out = tmp_path_factory.mktemp("folds")
    for split in ("train", "val", "test"):
        evaluate(run, [data], split=split, out=out / split, device="cpu")
    return {s: out / s / "predictions.parquet" for s in ("train", "val", "test")}


def rewritten(source, out, change=lambda p: p, **model):
    """A copy of predictions, each row through `change`, of another model."""
    found = read_predictions(source)
    rows = {
        name: [q for p in of_folder if (q := change(p))] for name, of_folder in found.rows.items()
    }
    write_predictions(out, Predictions.of(found.model | model, rows))
    return out


def test_predictions_come_back_as_they_were_written(run, data, folds):
    found = read_predictions(folds["test"])
    assert found.rows == evaluate(run, [data], device="cpu").predictions.rows
    assert found.model["preset"] == read_info(run).preset
    assert found.model["sha256"] == load_checkpoint(run, "cpu").sha256


def test_eval_measures_the_videos_of_a_calibrated_model_before_and_after(calibrated, run, data):
    result = evaluate(calibrated, [data], device="cpu", rounds=0)
    found = {c.quality: c for c in result.calibration}["raw"]
    calibration = read_info(calibrated).calibration
    at_raw = [p for p in result.predictions.rows["prepared"] if p.quality == "raw"]
    _, scores, labels = video_scores(at_raw)
    after = Sigmoid(calibration.slope, calibration.intercept).at(0.5, score_logit(scores))
    assert found.before.brier == pytest.approx(np.mean((scores - labels) ** 2))
    assert found.after.brier == pytest.approx(np.mean((after - labels) ** 2))
    assert (found.n_real, found.n_fake) == ((labels == 0).sum(), labels.sum())
    plain = evaluate(run, [data], device="cpu", rounds=0)
    assert {c.after for c in plain.calibration} == {None}


def test_what_sisters_predicted_is_fitted_as_a_model_s_own_scores_are(whole, folds, data):
    """Of the same network, on the same videos."""
    own = calibrate(whole, [data], dry_run=True, device="cpu").calibration
    result = calibrate(whole, predictions=[folds["val"]], dry_run=True, device="cpu")
    pooled, differs = result.calibration, {"basis", "fingerprint"}
    assert pooled.model_dump(exclude=differs) == own.model_dump(exclude=differs)
    assert (result.data, result.split) == (["prepared"], "out of fold")
    assert "scores of another model of this recipe, not of this one, out of fold" in pooled.basis
    assert "of 1 real and 2 fake videos" in pooled.basis
    assert pooled.basis.endswith("some of these chose their model too: somewhat optimistic")


def test_the_folds_are_pooled_and_counted(whole, folds, tmp_path):
    other = rewritten(folds["test"], tmp_path / "other.parquet", sha256="another")
    result = calibrate(whole, predictions=[folds["val"], other], dry_run=True, device="cpu")
    rows = [
        p for f in (folds["val"], other) for ps in read_predictions(f).rows.values() for p in ps
    ]
    n = {k: len({p.video_id for p in rows if p.label == i}) for i, k in enumerate(("real", "fake"))}
    assert result.calibration.n_videos == {q: n for q in ("raw", "c23", "c40")}
    assert "of 2 other models" in result.calibration.basis
    assert "each of people and videos that it was not trained on" in result.calibration.basis


def test_what_cannot_be_compared_is_said(whole, folds, tmp_path):
    moved = rewritten(folds["test"], tmp_path / "m.parquet", path="gone/detector.safetensors")
    calibration = calibrate(whole, predictions=[moved], dry_run=True, device="cpu").calibration
    assert "not compared with what each was trained on" in calibration.basis
    assert 40 < calibration.least_face_px < 256  # the predictions know how wide their faces were


def test_the_command_takes_predictions_and_writes_the_same_weights(cli, whole, folds, tmp_path):
    out = tmp_path / "calibrated.safetensors"
    result = cli(
        "calibrate", whole, "--predictions", folds["test"], "--out", out, "--device", "cpu"
    )
    assert result.exit_code == 0, result.stderr
    assert "qad-tiny on prepared, out of fold, video level" in result.stdout
    assert "not of this one" in read_info(out).calibration.basis
    before, after = load_file(whole), load_file(out)
    assert all((before[k] == after[k]).all() for k in before)


def test_forged_training_data_is_recognised(run, data):
    for more in ([], ["augment.forge.only=true", "leave_out=local-warp"]):
        preset = load_preset("bce-tiny", ["augment.forge.share=1", *more])
        info = read_info(run).model_copy(update={"preset": preset.model_dump(mode="json")})
        assert fingerprint_of(info, [data]) == load_training_data(preset, [data]).fingerprint


# --- what is refused -------------------------------------------------------------------------


def refused(cli, *arguments):
    result = cli("calibrate", *arguments, "--device", "cpu")
    assert result.exit_code == 2, result.stderr
    (line,) = result.stderr.splitlines()
    return line


def changed(data, out, change):
    """A copy of the folder's manifest beside the same crops, each row through `change`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(data, out)
    for part in (out / "manifest").glob("*.parquet"):
        table = pq.read_table(part)
        rows = [change(row) or row for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part)
    return out


def test_people_and_videos_that_were_trained_on_are_refused(cli, run, data, tmp_path):
    swap = {"train": "val", "val": "train"}

    def swapped(row):
        row["split"] = swap.get(row["split"], row["split"])

    line = refused(cli, run, "--data", changed(data, tmp_path / "swapped", swapped))
    assert "the model was trained on parts of the val split" in line and str(data) in line
    assert " people: clips" in line and " videos: clips" in line and " files: " in line

    def renamed(row):
        swapped(row)
        row["identities"], row["video_id"] = ["x" + row["video_id"]], "x" + row["video_id"]
        row["sample_id"] = "x" + row["sample_id"]

    line = refused(cli, run, "--data", changed(data, tmp_path / "renamed", renamed))
    assert " files: " in line and " people: " not in line


def test_a_checkpoint_away_from_its_run_is_not_compared_and_says_so(
    cli, run, data, calibrated, tmp_path
):
    alone = tmp_path / "alone.safetensors"
    shutil.copy(run / "detector.safetensors", alone)

    def relabelled(row):
        row["sample_id"] = "x" + row["sample_id"]

    other = changed(data, tmp_path / "other", relabelled)
    for folder, words in ((other, "were not compared with"), (data, "chose the checkpoint too")):
        told = json.loads(
            cli("calibrate", alone, "--data", folder, "-n", "--json", "--device", "cpu").stdout
        )
        assert words in told["calibration"]["basis"]


def test_other_people_are_named_as_such(cli, run, tmp_path):
    for i in range(3):
        write_clip(tmp_path / "new" / "real" / f"r{i}.mp4", 30 + i, n_frames=4)
        write_clip(tmp_path / "new" / "fake" / "w" / f"f{i}.mp4", 40 + i, 4, "local-warp")
    prepare(tmp_path / "new", tmp_path / "data", PrepareRecipe(("raw", "c23"), frames=2))
    everyone = changed(tmp_path / "data", tmp_path / "val", lambda row: row.update(split="val"))
    result = cli("calibrate", run, "--data", everyone, "-n", "--json", "--device", "cpu")
    told = json.loads(result.stdout)
    assert told["calibration"]["n_videos"]["raw"] == {"real": 3, "fake": 3}
    assert "neither trained nor chose the model" in told["calibration"]["basis"]
    (warning,) = told["warnings"]
    assert warning.startswith("trained at c40, which this data does not hold")


def test_a_run_that_accepted_a_leak_is_not_calibrated_on_its_own_val(run, data, tmp_path):
    checkpoint = load_checkpoint(run, "cpu")
    leaky = checkpoint.info.data | {"notes": ["identities in more than one split: 2"]}
    info = checkpoint.info.model_copy(update={"data": leaky})
    save_checkpoint(tmp_path / "leaky.safetensors", checkpoint.detector, info)
    with pytest.raises(DfdetectError, match="accepted what spoils validation"):
        calibrate(tmp_path / "leaky.safetensors", [data], device="cpu")


def test_another_crop_recipe_is_refused_with_both(cli, run, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    prepared = json.loads((tmp_path / "data" / "prepare.json").read_text())
    prepared["recipe"]["crop"]["margin"] = 1.75
    (tmp_path / "data" / "prepare.json").write_text(json.dumps(prepared))
    line = refused(cli, run, "--data", tmp_path / "data")
    assert "margin=1.75" in line and "margin=1.3" in line


def test_one_class_an_empty_split_and_bad_options_are_refused(cli, run, data, tmp_path):
    def only_fakes(row):
        row["split"] = row["split"] if row["label"] else "test"

    line = refused(cli, run, "--data", changed(data, tmp_path / "fakes", only_fakes))
    assert "the val split at raw has only fake crops" in line
    nobody = changed(data, tmp_path / "none", lambda row: row.update(split="test"))
    assert "the val split is empty" in refused(cli, run, "--data", nobody)
    for arguments, words in (
        (("--prior", 1), "--prior 1: no share of fakes"),
        (("--fpr", 0), "--fpr 0: no false-positive rate"),
        (("--method", "plat"), "did you mean 'platt'?"),
        (("--out", tmp_path), "a folder"),
        (("--out", tmp_path / "no" / "x.st"), "in a folder that is not there"),
        (("--data", data), "one folder twice"),
    ):
        assert words in refused(cli, run, "--data", data, *arguments)


def test_predictions_that_are_no_folds_are_refused(cli, run, whole, folds, data, tmp_path):
    def line(*files, model=whole):
        asked = [part for file in files for part in ("--predictions", file)]
        return refused(cli, model, *asked)

    test, out = folds["test"], tmp_path / "p.parquet"
    twice = rewritten(test, tmp_path / "twice.parquet", sha256="another")
    assert " videos are in both, as clips" in line(test, twice)
    assert "one file twice" in line(test, test)
    assert "holds predictions of a train split" in line(folds["train"])
    told = line(rewritten(folds["train"], out, lambda p: p._replace(split="test")))
    assert "its model was trained on parts of it" in told and " people: clips" in told
    assert "trained on the same data as the one to be calibrated" in line(test, model=run)
    preset = read_info(run).preset
    told = line(rewritten(test, out, preset=preset | {"image_size": 96}))
    assert "another recipe: image_size is 96, and 64 in the model" in told
    same = preset | {"seed": 7, "leave_out": ["self-*"], "compile": True}
    assert "video" in line(rewritten(test, out, preset=same), test)
    fewer = rewritten(folds["val"], out, lambda p: p if p.quality == "raw" else None)
    assert "was predicted at raw, c23, c40" in line(fewer, test)
    told = line(rewritten(test, out, lambda p: p if p.label else None))
    assert "what was predicted at raw has only fake crops" in told
    assert "needs --data, or --predictions instead" in refused(cli, whole)
    both = ("--data", data, "--predictions", test)
    assert "needs --data, or --predictions instead" in refused(cli, whole, *both)


def test_files_that_eval_did_not_write_are_refused(cli, whole, folds, tmp_path):
    import pyarrow.parquet as pq

    old, torn = tmp_path / "old.parquet", tmp_path / "torn.parquet"
    pq.write_table(pq.read_table(folds["test"]).replace_schema_metadata(None), old)
    torn.write_bytes(folds["test"].read_bytes()[:-20])
    for path, words in (
        (old, "old.parquet: does not say what which model predicted"),
        (torn, "torn.parquet: cannot be read"),
        (tmp_path / "none.parquet", "none.parquet: cannot be read"),
    ):
        assert words in refused(cli, whole, "--predictions", path)


def test_a_crop_that_is_twice_in_a_file_is_refused(cli, whole, folds, tmp_path):
    found = read_predictions(folds["test"])
    rows = {name: [*of_folder, of_folder[0]] for name, of_folder in found.rows.items()}
    write_predictions(tmp_path / "p.parquet", Predictions.of(found.model, rows))
    line = refused(cli, whole, "--predictions", tmp_path / "p.parquet")
    assert " at raw 2 times; write it anew with eval" in line
