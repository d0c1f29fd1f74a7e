"""calibrate: checkpoint + prepared folders -> the same checkpoint, whose score is P(fake).

The val split is scored as scan scores files: a video's score is that of the person who looks most
fake, a person's the mean over frames. A model that was trained on all there is has no such videos:
what eval predicted with models of the same recipe, each on its part left out, takes their place.

A score's logit goes through a sigmoid fitted with both classes
weighing the same, so that the score is P(fake) at a prior of one half, and any other stated prior
only adds its log odds. Threshold and band come from each video's worst quality. What the figures
say of the calibration itself is measured on videos left out of the fit.

Of compression no limit is stored: bits per pixel count sound and depend on codec and motion, and
are the source's also where c40 was scored, so they would tell nothing sure of an unlike input.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dfdetect.checkpoint import (
    AucBounds,
    Calibration,
    CalibrationFigures,
    Checkpoint,
    CheckpointInfo,
    RateBounds,
    load_checkpoint,
    save_checkpoint,
)
from dfdetect.data import check_crops, default_workers
from dfdetect.errors import DfdetectError, unknown
from dfdetect.faces import CropRecipe
from dfdetect.files import read_json, sha256_of
from dfdetect.independence import (
    Row,
    Traces,
    of_split,
    shared,
    traces,
    trained_folders,
    video_of,
    what_trained,
)
from dfdetect.manifest import Sample, fingerprint, read_samples
from dfdetect.metrics import (
    LEAST_SCORE,
    Sigmoid,
    auc,
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
from dfdetect.predictions import Predictions, read_predictions
from dfdetect.presets import check_preset
from dfdetect.quality import ordered, parse_quality
from dfdetect.resampling import interval, resampled
from dfdetect.results import Prediction, Scorer
from dfdetect.runs import leaves
from dfdetect.scoring import MIN_COVERAGE
from dfdetect.validation import at_worst_quality, calibrated_decision

METHODS = ("platt", "temperature")
FOLDS = 5
GATE_QUALITIES = ("raw", "c23")
LEAST_AUC = 0.70
"""The lower bound of the video AUC, at raw and at c23, below which a model is experimental."""
LEAST_VIDEOS = 10
"""Of each class, for such a bound: where n of n are right, 3 / n may still be wrong (rule of
three), and 1 - 3 / 10 is LEAST_AUC."""
NOT_OF_THE_RECIPE = {
    "reproduces", "seed", "leave_out", "augment.forge.decoders", "channels_last", "compile",
}  # fmt: skip
"""Of a preset: words, chance, what depends on the data, and what only changes the speed."""
MOST_REAL_CALLED = 0.10
"""The share of real videos above its threshold over which a model is experimental."""


class Options(NamedTuple):
    """`method`: platt or temperature. `prior`: how frequent fakes are where the score is to be
    P(fake). `fpr`: the share of real videos that may lie above the threshold, and of fakes that may
    be called real."""

    method: Literal["platt", "temperature"] = "platt"
    prior: float = 0.5
    fpr: float = 0.05


@dataclass(frozen=True)
class CalibrateResult:
    """`calibration` of the checkpoint at `path`, and of the copy `written` (None: a dry run), by
    the scores of `data`: of its `split` val, or "out of fold"."""

    model: str
    path: Path
    data: list[str]
    split: str
    calibration: Calibration
    warnings: list[str]
    written: Path | None
    sha256: str | None  # of the file written

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "model": self.model,
            "checkpoint": str(self.path),
            "data": self.data,
            "split": self.split,
            "written": str(self.written) if self.written else None,
            "sha256": self.sha256,
            "calibration": self.calibration.model_dump(mode="json"),
            "warnings": self.warnings,
        }


def calibrate(
    model: Path,
    data: Sequence[Path] = (),
    options: Options = Options(),
    out: Path | None = None,
    dry_run: bool = False,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    predictions: Sequence[Path] = (),
) -> CalibrateResult:
    """Fit a checkpoint's scores to the val split of prepared folders, at all qualities stored, and
    write it anew, or a copy at `out`; weights stay, an earlier calibration is replaced.

    In place of `data`, `predictions` are files that eval wrote of models of the same recipe, each
    of which never saw the videos in its file: the folds of a model that is trained on all of them.

    Errors: DfdetectError for an unreadable checkpoint, folder or file, another crop recipe, a
    single class at some quality, people, videos or files that the model (that of the file) was
    trained on, a video in two files, files of another recipe or at other qualities, an `out` that
    cannot be written.
    """
    _check(data, predictions, options, out)
    checkpoint = load_checkpoint(model, device)
    info = checkpoint.info
    if predictions:
        found = _by_sisters(checkpoint, predictions)
    else:
        found = _by_itself(checkpoint, data, on_progress, workers)
    widths = _face_widths(found.rows)
    calibration = calibration_of(
        scan_scores(found.rows), options, info.threshold, found.independence,
        float(np.percentile(widths, 1)) if widths else None, fingerprint(found.rows),
    )  # fmt: skip
    written = None if dry_run else out or checkpoint.path
    if written:
        calibrated = info.model_copy(update={"calibration": calibration})
        save_checkpoint(written, checkpoint.detector, calibrated)
    return CalibrateResult(
        checkpoint.name,
        checkpoint.path,
        found.data,
        "out of fold" if predictions else "val",
        calibration,
        _missing_qualities(info, found.rows),
        written,
        sha256_of(written) if written else None,
    )


class _Scored(NamedTuple):
    """What is fitted, and what is known of it: names of the folders, how it stands to what was
    trained on."""

    rows: Sequence[Prediction]
    data: list[str]
    independence: str


def _by_itself(
    checkpoint: Checkpoint, data: Sequence[Path], on_progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> _Scored:  # fmt: skip
    for folder in data:
        _refuse_other_crop(checkpoint, folder)
    rows = [
        row for i, folder in enumerate(data) for row in _val_rows(folder, f"{i}:" * (len(data) > 1))
    ]
    names = [folder.resolve().name for folder in data]
    _refuse_one_class(rows, f"{', '.join(map(str, data))}: the val split")
    independence = _independence(checkpoint, data)
    check_crops(rows)
    n_done = 0

    def scored(n: int) -> None:
        nonlocal n_done
        n_done += n
        if on_progress:
            on_progress(n_done, len(rows))

    workers = default_workers(checkpoint.device) if workers is None else workers
    detector = checkpoint.detector
    with Scorer(rows, detector.image_size, 64, workers) as scorer:
        predictions = scorer.predict(detector, checkpoint.device, scored)
    return _Scored(predictions, names, independence)


def _by_sisters(checkpoint: Checkpoint, files: Sequence[Path]) -> _Scored:
    found = {file: read_predictions(file) for file in files}
    for file, of_file in found.items():
        _refuse_other_recipe(checkpoint, file, of_file.model)
    _refuse_twice(found)
    _refuse_other_qualities(found)
    rows = [
        p._replace(sample_id=f"{i}:{name}:{p.sample_id}", video_id=f"{i}:{name}:{p.video_id}")
        for i, of_file in enumerate(found.values())
        for name, of_folder in of_file.rows.items()
        for p in of_folder
    ]
    _refuse_one_class(rows, f"{', '.join(map(str, files))}: what was predicted")
    names = list(dict.fromkeys(name for of_file in found.values() for name in of_file.rows))
    return _Scored(rows, names, _out_of_fold(found))


# --- scores -> calibration -------------------------------------------------------------------


class Videos(NamedTuple):
    """One row per video and quality: [n] each, `scores` 0..1 uncalibrated."""

    ids: np.ndarray
    qualities: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    single: np.ndarray  # whether it is a picture: one frame

    def where(self, rows: np.ndarray) -> "Videos":
        return Videos(*(column[rows] for column in self))


def scan_scores(predictions: Sequence[Prediction]) -> Videos:
    """What scan makes of each video at each quality: the score of the person who looks most fake,
    among those in a fifth of its frames; the mean over that person's frames."""
    found: dict[tuple[str, str], dict[int, list[Prediction]]] = {}
    for p in predictions:
        found.setdefault((p.video_id, p.quality), {}).setdefault(p.track_id, []).append(p)
    rows = []
    for (video, quality), tracks in sorted(found.items()):
        frames = {p.sample_id.rsplit("/", 1)[0] for track in tracks.values() for p in track}
        longest = max(tracks.values(), key=len)
        long = [t for t in tracks.values() if len(t) >= MIN_COVERAGE * len(frames)] or [longest]
        score = max(float(np.mean([p.score for p in track])) for track in long)
        rows.append((video, quality, score, longest[0].label, len(frames) == 1))
    return Videos(*(np.array(column) for column in zip(*rows, strict=True)))


def calibration_of(
    videos: Videos, options: Options, threshold_before: float, independence: str,
    least_face_px: float | None, data_fingerprint: str,
) -> Calibration:  # fmt: skip
    """All that follows from the scores, with what is known of the data they are of.

    Errors: DfdetectError for a single class.
    """
    sigmoid = _fit(videos, options.method)
    scores = sigmoid.at(options.prior, score_logit(videos.scores))
    worst = at_worst_quality(videos.ids, scores, videos.labels)
    ranked = _ranked(videos)
    real_before = at_worst_quality(videos.ids, videos.scores, videos.labels).real
    above_before = float((real_before > threshold_before).mean())
    after, false_positives = _left_out(videos, options)
    reasons = _why_experimental(ranked.auc, len(worst.real), len(worst.fake), after)
    decision = calibrated_decision(worst, options.fpr, bool(reasons))
    return Calibration(
        **options._asdict(),
        **sigmoid._asdict(),
        threshold=decision.threshold,
        band=decision.band,
        basis=f"{decision.basis}; {independence}",
        experimental=reasons,
        least_face_px=least_face_px,
        n_videos={q: _counts(videos.labels[videos.qualities == q]) for q in ranked.auc},
        n_pictures=_counts(_once(videos).labels[_once(videos).single]),
        fingerprint=data_fingerprint,
        auc=ranked.auc,
        eer=ranked.eer,
        false_positives=false_positives,
        before=_figures(videos.scores, videos, options.prior, above_before),
        after=after,
    )


def _fit(videos: Videos, method: str) -> Sigmoid:
    """Both classes weigh the same, in each every video; see `fit_sigmoid`."""
    fewest = min(_counts(_once(videos).labels).values())
    weights = _weights(videos, 0.5)
    smoothing = 1 / (fewest + 2)  # as Platt's, of the smaller class
    logits = score_logit(videos.scores)
    return fit_sigmoid(logits, videos.labels, weights, smoothing, bias=method == "platt")


def _left_out(
    videos: Videos, options: Options
) -> tuple[CalibrationFigures | None, dict[str, RateBounds]]:
    """Figures of each video by what is fitted, and the threshold chosen, without its fold, and at
    each quality the share of real videos above it; none where a class has a single video."""
    once = _once(videos)
    n_folds = min(FOLDS, *_counts(once.labels).values())
    if n_folds < 2:
        return None, {}
    fold_of = {}
    for label in (0, 1):
        fold_of |= {video: i % n_folds for i, video in enumerate(once.ids[once.labels == label])}
    folds = np.array([fold_of[video] for video in videos.ids])
    scores, above = np.empty(len(folds)), np.zeros(len(folds), bool)
    for fold in range(n_folds):
        fitted, left = videos.where(folds != fold), folds == fold
        sigmoid = _fit(fitted, options.method)
        of_fitted, of_left = (
            sigmoid.at(options.prior, score_logit(v.scores)) for v in (fitted, videos.where(left))
        )
        scores[left] = of_left
        real = at_worst_quality(fitted.ids, of_fitted, fitted.labels).real
        cut = conformal_cut(real, options.fpr)
        above[left] = of_left > (real.max() if cut is None else cut)
    anywhere = at_worst_quality(videos.ids, above, videos.labels).real
    figures = _figures(scores, videos, options.prior, float(anywhere.mean()))
    rates = {}
    for quality in ordered(set(videos.qualities.tolist())):
        here = above[(videos.qualities == quality) & (videos.labels == 0)]
        low, high = binomial_bounds(int(here.sum()), len(here))
        rates[quality] = RateBounds(rate=float(here.mean()), low=low, high=high)
    return figures, rates


def _figures(
    scores: np.ndarray, videos: Videos, prior: float, real_above: float
) -> CalibrationFigures:
    """Of scores [n] of all videos, weighted so that fakes are as common as `prior`."""
    weights = _weights(videos, prior)
    kept = np.clip(scores, LEAST_SCORE, 1 - LEAST_SCORE)
    bins = reliability(kept, videos.labels, weights)
    return CalibrationFigures(
        log_loss=log_loss(kept, videos.labels, weights),
        brier=brier(kept, videos.labels, weights),
        ece=calibration_error(bins),
        bins=bins,
        real_above_threshold=real_above,
    )


class _Ranked(NamedTuple):
    auc: dict[str, AucBounds]
    eer: dict[str, RateBounds]


def _ranked(videos: Videos) -> _Ranked:
    """By quality, which calibration does not change."""
    ranked = _Ranked({}, {})
    for quality in ordered(set(videos.qualities.tolist())):
        ids, _, scores, labels, _ = videos.where(videos.qualities == quality)
        found = resampled(scores, labels, ids)
        low, high = interval(found["auc"])
        ranked.auc[quality] = AucBounds(auc=auc(scores, labels), low=low, high=high)
        low, high = interval(found["eer"])
        ranked.eer[quality] = RateBounds(rate=eer(scores, labels), low=low, high=high)
    return ranked


def _why_experimental(
    bounds: dict[str, AucBounds], n_real: int, n_fake: int, after: CalibrationFigures | None
) -> list[str]:
    """Reasons, none if the model may speak for itself."""
    gated = [q for q in GATE_QUALITIES if q in bounds]
    reasons = [
        f"video AUC at {q} {bounds[q].auc:.3f}, 95% interval from {bounds[q].low:.3f}, "
        f"which is below {LEAST_AUC:.2f}"
        for q in gated
        if bounds[q].low < LEAST_AUC
    ]
    if not gated:
        reasons.append(f"its video AUC is known neither at {' nor at '.join(GATE_QUALITIES)}")
    if min(n_real, n_fake) < LEAST_VIDEOS:
        reasons.append(f"{n_real} real and {n_fake} fake videos are too few to bound its AUC")
    if after and (above := after.real_above_threshold) > MOST_REAL_CALLED:
        reasons.append(
            f"{above:.1%} of real videos lie above its threshold, more than {MOST_REAL_CALLED:.0%}"
        )
    return reasons


def _weights(videos: Videos, prior: float) -> np.ndarray:
    """[n]: fakes together weigh `prior`, reals the rest, each video of a class as much as any."""
    _, video, n_rows = np.unique(videos.ids, return_inverse=True, return_counts=True)
    weights = 1 / n_rows[video]
    for label, share in ((0, 1 - prior), (1, prior)):
        of_class = videos.labels == label
        weights[of_class] *= share / weights[of_class].sum()
    return weights


def _once(videos: Videos) -> Videos:
    """Each video at one quality."""
    return videos.where(np.unique(videos.ids, return_index=True)[1])


def _counts(labels: np.ndarray) -> dict[str, int]:
    return {"real": int((labels == 0).sum()), "fake": int((labels == 1).sum())}


# --- data ------------------------------------------------------------------------------------


def _val_rows(folder: Path, prefix: str) -> list[Sample]:
    rows = read_samples(folder, "val", prefix)
    if not rows:
        raise DfdetectError(
            f"{folder}: the val split is empty", "calibrate on a folder that has one"
        )
    order = ordered({row.quality for row in rows})
    return sorted(rows, key=lambda s: (order.index(s.quality), s.sample_id))


def _face_widths(rows: Sequence[Prediction]) -> list[float]:
    """The median width of each person's face in each video, px, where it was measured."""
    widths: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row.face_px:
            widths.setdefault((row.video_id, row.track_id), []).append(row.face_px)
    return [float(np.median(of_person)) for of_person in widths.values()]


def _check(
    data: Sequence[Path], predictions: Sequence[Path], options: Options, out: Path | None
) -> None:
    if bool(data) == bool(predictions):
        raise DfdetectError(
            "calibrate needs --data, or --predictions instead",
            "for example: dfdetect calibrate RUN --data DATA",
        )
    if options.method not in METHODS:
        raise unknown("method", options.method, METHODS)
    if not 0 < options.prior < 1:
        raise DfdetectError(
            f"--prior {options.prior:g}: no share of fakes", "give one between 0 and 1, as 0.5"
        )
    if not 0 < options.fpr <= 0.5:
        raise DfdetectError(
            f"--fpr {options.fpr:g}: no false-positive rate to hold",
            "give one above 0, of at most 0.5",
        )
    for option, paths, what in (("data", data, "folder"), ("predictions", predictions, "file")):
        if len({path.resolve() for path in paths}) < len(paths):
            raise DfdetectError(
                f"--{option} {', '.join(map(str, paths))}: one {what} twice", "name each once"
            )
    if out and (out.is_dir() or not out.parent.is_dir()):
        problem = "a folder" if out.is_dir() else "in a folder that is not there"
        raise DfdetectError(f"--out {out}: {problem}", "name a file, as calibrated.safetensors")


def _refuse_other_crop(checkpoint: Checkpoint, folder: Path) -> None:
    prepared = read_json(folder / "prepare.json") if (folder / "prepare.json").exists() else {}
    crop = CropRecipe.model_validate(prepared.get("recipe", {}).get("crop", {}))
    if crop != checkpoint.info.crop:
        raise DfdetectError(
            f"{folder} was cropped with {crop}, the model trained on crops of "
            f"{checkpoint.info.crop}",
            "prepare it with the options of the model's data",
        )


def _refuse_one_class(rows: Sequence[Sample | Prediction], what: str) -> None:
    for quality in ordered({row.quality for row in rows}):
        labels = {row.label for row in rows if row.quality == quality}
        if len(labels) == 1:
            raise DfdetectError(
                f"{what} at {quality} has only {'fake' if 1 in labels else 'real'} crops",
                "both classes are needed at each quality",
            )


def _missing_qualities(info: CheckpointInfo, rows: Sequence[Prediction]) -> list[str]:
    stored = [parse_quality(name) for name in ordered({row.quality for row in rows})]
    trained = [parse_quality(name) for name in info.preset["qualities"]]
    missing = [q.name for q in trained if not any(q.covers(s) for s in stored)]
    if not missing:
        return []
    found = ", ".join(q.name for q in stored)
    return [f"trained at {', '.join(missing)}, which this data does not hold (it has {found})"]


def _refuse_trained(here: Traces, trained: Sequence[Path], what: str) -> None:
    """Errors: DfdetectError if anything that is `here` is in the train split of `trained`."""
    if told := shared(here, traces(trained, of_split("train"))):
        raise DfdetectError(
            f"{what}, which are in the train split of {', '.join(map(str, trained))} ({told})",
            "calibrate on people and videos that it was not trained on (one name in one dataset "
            "counts as one)",
        )


def _independence(checkpoint: Checkpoint, data: Sequence[Path]) -> str:
    """How the data stands to what the model was trained and validated on, in words.

    Errors: DfdetectError if anybody or anything of it was trained on, or if the model was validated
    on it and its run accepted a leak.
    """
    trained = what_trained(checkpoint, data)
    if not trained:
        return "these were not compared with what it was trained on, which is not there"
    here = traces(data, of_split("val"))
    where = ", ".join(map(str, data))
    _refuse_trained(here, trained, f"{where}: the model was trained on parts of the val split")
    val = traces(trained, of_split("val"))
    if not (here.videos & val.videos or here.files & val.files):
        what = "people and videos" if here.people else "videos (their people are not named)"
        return f"these are {what} that neither trained nor chose the model"
    if notes := checkpoint.info.data["notes"]:
        raise DfdetectError(
            f"{where}: the model was validated on it, and its run accepted "
            f"what spoils validation ({'; '.join(notes)})",
            "calibrate on a folder of its own",
        )
    return "some of these chose the checkpoint too: somewhat optimistic"


# --- predictions of sister models ------------------------------------------------------------


def _refuse_other_recipe(checkpoint: Checkpoint, file: Path, sister: Mapping[str, Any]) -> None:
    """Errors: DfdetectError for a model of another preset or crops, or trained on the same data."""
    info = checkpoint.info
    mine, theirs = (
        leaves(check_preset(preset, where).model_dump(mode="json"))
        | {"crop": CropRecipe.model_validate(crop)}
        for preset, crop, where in (
            (info.preset, info.crop, "the model's preset"),
            (sister["preset"], sister["crop"], f"{file}: preset"),
        )
    )
    for key in dict.fromkeys([*mine, *theirs]):
        if key not in NOT_OF_THE_RECIPE and mine.get(key) != theirs.get(key):
            raise DfdetectError(
                f"{file}: is of a model of another recipe: {key} is {theirs.get(key)}, and "
                f"{mine.get(key)} in the model to be calibrated",
                "take predictions of models that differ in nothing but their data",
            )
    if sister["trained_on"]["fingerprint"] == info.data["fingerprint"]:
        raise DfdetectError(
            f"{file}: is of a model that was trained on the same data as the one to be calibrated",
            "calibrate on other people with --data, or take predictions of the models of folds",
        )


def _refuse_twice(found: Mapping[Path, Predictions]) -> None:
    """Errors: DfdetectError for a crop that is twice in a file, and a video that is in two."""
    seen: dict[str, Path] = {}
    for file, of_file in found.items():
        rows = [(name, p) for name, of_folder in of_file.rows.items() for p in of_folder]
        (crop, n), *_ = Counter((name, p.sample_id, p.quality) for name, p in rows).most_common(1)
        if n > 1:
            raise DfdetectError(
                f"{file}: holds {crop[1]} at {crop[2]} {n} times", "write it anew with eval"
            )
        videos = {video_of(p._asdict()) for _, p in rows}
        if both := sorted(videos & seen.keys()):
            raise DfdetectError(
                f"{file} and {seen[both[0]]}: {len(both)} videos are in both, as {both[0]}",
                "each video counts once: let every model predict on a part of its own",
            )
        seen |= dict.fromkeys(videos, file)


def _refuse_other_qualities(found: Mapping[Path, Predictions]) -> None:
    """Errors: DfdetectError where a video would be at fewer qualities than another."""
    (first, wanted), *others = [
        (file, ordered({p.quality for of_folder in of_file.rows.values() for p in of_folder}))
        for file, of_file in found.items()
    ]
    for file, there in others:
        if there != wanted:
            raise DfdetectError(
                f"{file}: was predicted at {', '.join(there)}, {first} at {', '.join(wanted)}",
                "eval both with the same --qualities",
            )


def _out_of_fold(found: Mapping[Path, Predictions]) -> str:
    """How what was predicted stands to what its models were trained on, in words.

    Errors: DfdetectError if a model was trained on anybody or anything that it predicted.
    """
    compared, named, chose, counts = True, True, False, Counter()
    for file, of_file in found.items():
        rows = [p for of_folder in of_file.rows.values() for p in of_folder]
        if any(p.split == "train" for p in rows):
            raise DfdetectError(
                f"{file}: holds predictions of a train split", "eval the split that was left out"
            )
        labels = {video_of(p._asdict()): p.label for p in rows}
        counts.update(labels.values())
        model, videos = of_file.model, set(labels)
        run, trained_on = Path(model["path"]).parent, model["trained_on"]["fingerprint"]
        if not (trained := trained_folders(run, trained_on)):
            compared = False
            continue

        def predicted(row: Row, videos: set[str] = videos) -> bool:
            return video_of(row) in videos

        here = traces(trained, predicted)._replace(videos=videos)
        _refuse_trained(here, trained, f"{file}: its model was trained on parts of it")
        named = named and bool(here.people)
        chose = chose or bool(videos & traces(trained, of_split("val")).videos)
    n = len({of_file.model["sha256"] for of_file in found.values()})
    told = (
        f"these are scores of {f'{n} other models' if n > 1 else 'another model'} of this recipe, "
        f"not of this one, out of fold, of {counts[0]} real and {counts[1]} fake videos"
    )
    if not compared:
        told += "; not compared with what each was trained on, which is not all there"
    elif named:
        told += "; each of people and videos that it was not trained on"
    else:
        told += "; each of videos that it was not trained on (not all of their people are named)"
    if chose:
        told += "; some of these chose their model too: somewhat optimistic"
    return told
