"""calibrate: checkpoint + prepared folders -> the same checkpoint, whose score is P(fake).

The val split is scored as scan scores files: a video's score is that of the person who looks most
fake, a person's the mean over frames. Its logit goes through a sigmoid fitted with both classes
weighing the same, so that the score is P(fake) at a prior of one half, and any other stated prior
only adds its log odds. Threshold and band come from each video's worst quality. What the figures
say of the calibration itself is measured on videos left out of the fit.

Of compression no limit is stored: bits per pixel count sound and depend on codec and motion, and
are the source's also where c40 was scored, so they would tell nothing sure of an unlike input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dfdetect.audit import person
from dfdetect.checkpoint import (
    AucBounds,
    Calibration,
    CalibrationFigures,
    Checkpoint,
    CheckpointInfo,
    load_checkpoint,
    save_checkpoint,
)
from dfdetect.data import at_qualities, check_crops, default_workers
from dfdetect.errors import DfdetectError, unknown
from dfdetect.faces import CropRecipe
from dfdetect.files import read_json, sha256_of
from dfdetect.manifest import Sample, fingerprint, read_samples, read_table
from dfdetect.metrics import (
    LEAST_SCORE,
    Sigmoid,
    auc,
    brier,
    calibration_error,
    conformal_cut,
    fit_sigmoid,
    interval,
    log_loss,
    reliability,
    resample,
    resampled_aucs,
    score_logit,
)
from dfdetect.quality import ordered, parse_quality
from dfdetect.results import Prediction, Scorer
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
    """`calibration` of the checkpoint at `path`, and of the copy `written` (None: a dry run)."""

    model: str
    path: Path
    data: list[str]
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
            "written": str(self.written) if self.written else None,
            "sha256": self.sha256,
            "calibration": self.calibration.model_dump(mode="json"),
            "warnings": self.warnings,
        }


def calibrate(
    model: Path,
    data: Sequence[Path],
    options: Options = Options(),
    out: Path | None = None,
    dry_run: bool = False,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> CalibrateResult:
    """Fit a checkpoint's scores to the val split of prepared folders, at all qualities stored, and
    write it anew, or a copy at `out`; weights stay, an earlier calibration is replaced.

    Errors: DfdetectError for an unreadable checkpoint or folder, another crop recipe, a single
    class at some quality, people, videos or files that the model was trained on, an `out` that
    cannot be written.
    """
    _check(data, options, out)
    checkpoint = load_checkpoint(model, device)
    info = checkpoint.info
    for folder in data:
        _refuse_other_crop(checkpoint, folder)
    folders = [_read(folder, f"{i}:" * (len(data) > 1)) for i, folder in enumerate(data)]
    rows = [row for folder in folders for row in folder.rows]
    _refuse_one_class(rows, data)
    independence = _independence(checkpoint, data)
    check_crops(rows)
    warnings = _missing_qualities(info, rows)

    detector = checkpoint.detector
    workers = default_workers(checkpoint.device) if workers is None else workers
    n_done = 0

    def scored(n: int) -> None:
        nonlocal n_done
        n_done += n
        if on_progress:
            on_progress(n_done, len(rows))

    with Scorer(rows, detector.image_size, 64, workers) as scorer:
        videos = scan_scores(scorer.predict(detector, checkpoint.device, scored))
    calibration = calibration_of(
        videos, options, info.threshold, independence, _least_face_px(folders), fingerprint(rows)
    )
    written = None if dry_run else out or checkpoint.path
    if written:
        save_checkpoint(written, detector, info.model_copy(update={"calibration": calibration}))
    return CalibrateResult(
        checkpoint.name,
        checkpoint.path,
        [folder.resolve().name for folder in data],
        calibration,
        warnings,
        written,
        sha256_of(written) if written else None,
    )


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
    real_before = at_worst_quality(videos.ids, videos.scores, videos.labels).real
    above_before = float((real_before > threshold_before).mean())
    after = _left_out(videos, options)
    bounds = _auc_bounds(videos)
    reasons = _why_experimental(bounds, len(worst.real), len(worst.fake), after)
    decision = calibrated_decision(worst, options.fpr, bool(reasons))
    return Calibration(
        **options._asdict(),
        **sigmoid._asdict(),
        threshold=decision.threshold,
        band=decision.band,
        basis=f"{decision.basis}; {independence}",
        experimental=reasons,
        least_face_px=least_face_px,
        n_videos={q: _counts(videos.labels[videos.qualities == q]) for q in bounds},
        n_pictures=_counts(_once(videos).labels[_once(videos).single]),
        fingerprint=data_fingerprint,
        auc=bounds,
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


def _left_out(videos: Videos, options: Options) -> CalibrationFigures | None:
    """Figures of each video by what is fitted, and the threshold chosen, without its fold; None
    where a class has a single video."""
    once = _once(videos)
    n_folds = min(FOLDS, *_counts(once.labels).values())
    if n_folds < 2:
        return None
    fold_of = {}
    for label in (0, 1):
        fold_of |= {video: i % n_folds for i, video in enumerate(once.ids[once.labels == label])}
    folds = np.array([fold_of[video] for video in videos.ids])
    scores, above = np.empty(len(folds)), []
    for fold in range(n_folds):
        fitted, left = videos.where(folds != fold), folds == fold
        sigmoid = _fit(fitted, options.method)
        of_fitted, of_left = (
            sigmoid.at(options.prior, score_logit(v.scores)) for v in (fitted, videos.where(left))
        )
        scores[left] = of_left
        real = at_worst_quality(fitted.ids, of_fitted, fitted.labels).real
        cut = conformal_cut(real, options.fpr)
        new = at_worst_quality(videos.ids[left], of_left, videos.labels[left]).real
        above += list(new > (real.max() if cut is None else cut))
    return _figures(scores, videos, options.prior, float(np.mean(above)))


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


def _auc_bounds(videos: Videos) -> dict[str, AucBounds]:
    """By quality, which calibration does not change."""
    bounds = {}
    for quality in ordered(set(videos.qualities.tolist())):
        ids, _, scores, labels, _ = videos.where(videos.qualities == quality)
        rounds = resampled_aucs(scores, labels, ids, resample(ids))
        low, high, _ = interval(rounds)
        bounds[quality] = AucBounds(auc=auc(scores, labels), low=low, high=high)
    return bounds


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


class _Folder(NamedTuple):
    """The val rows of a prepared folder, and the median face width of each person in a video."""

    rows: list[Sample]
    face_px: list[float]


def _read(folder: Path, prefix: str) -> _Folder:
    rows = read_samples(folder, "val", prefix)
    if not rows:
        raise DfdetectError(
            f"{folder}: the val split is empty", "calibrate on a folder that has one"
        )
    order = ordered({row.quality for row in rows})
    columns = ["video_id", "track_id", "split", "face_px", "face_choice"]
    widths: dict[tuple[str, int], list[float]] = {}
    for row in read_table(folder, columns).to_pylist():
        # Crops as shipped are not boxes that our detector would give.
        if row["split"] == "val" and row["face_px"] and row["face_choice"] != "shipped":
            widths.setdefault((row["video_id"], row["track_id"]), []).append(row["face_px"])
    return _Folder(
        sorted(rows, key=lambda s: (order.index(s.quality), s.sample_id)),
        [float(np.median(of_person)) for of_person in widths.values()],
    )


def _least_face_px(folders: Sequence[_Folder]) -> float | None:
    widths = [width for folder in folders for width in folder.face_px]
    return float(np.percentile(widths, 1)) if widths else None


def _check(data: Sequence[Path], options: Options, out: Path | None) -> None:
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
    if len({folder.resolve() for folder in data}) < len(data):
        raise DfdetectError(
            f"--data {', '.join(map(str, data))}: one folder twice", "name each once"
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


def _refuse_one_class(rows: Sequence[Sample], data: Sequence[Path]) -> None:
    for quality in ordered({row.quality for row in rows}):
        labels = {row.label for row in rows if row.quality == quality}
        if len(labels) == 1:
            raise DfdetectError(
                f"{', '.join(map(str, data))}: the val split at {quality} has only "
                f"{'fake' if 1 in labels else 'real'} crops",
                "both classes are needed at each quality",
            )


def _missing_qualities(info: CheckpointInfo, rows: Sequence[Sample]) -> list[str]:
    stored = [parse_quality(name) for name in ordered({row.quality for row in rows})]
    trained = [parse_quality(name) for name in info.preset["qualities"]]
    missing = [q.name for q in trained if not any(q.covers(s) for s in stored)]
    if not missing:
        return []
    found = ", ".join(q.name for q in stored)
    return [f"trained at {', '.join(missing)}, which this data does not hold (it has {found})"]


class _Traces(NamedTuple):
    """Names of what is in a split: people, videos, and how the hashes of their files begin."""

    people: set[str]
    videos: set[str]
    files: set[str]


def _traces(folders: Sequence[Path], split: str) -> _Traces:
    traces = _Traces(set(), set(), set())
    for folder in folders:
        columns = ["dataset", "video_id", "identities", "split", "source_sha256"]
        for row in read_table(folder, columns).to_pylist():
            if row["split"] == split:
                traces.people.update(person(row["dataset"], i) for i in row["identities"] or ())
                traces.videos.add(f"{row['dataset']}/{row['video_id']}")
                traces.files.update({(row["source_sha256"] or "")[:12]} - {""})
    return traces


def _independence(checkpoint: Checkpoint, data: Sequence[Path]) -> str:
    """How the data stands to what the model was trained and validated on, in words.

    Errors: DfdetectError if anybody or anything of it was trained on, or if the model was validated
    on it and its run accepted a leak.
    """
    is_same = _fingerprint_of(checkpoint.info, data) == checkpoint.info.data["fingerprint"]
    trained = list(data) if is_same else _trained_folders(checkpoint)
    if not trained:
        return "these were not compared with what it was trained on, which is not there"
    here, train = _traces(data, "val"), _traces(trained, "train")
    shared = {
        name: sorted(mine & theirs)
        for name, mine, theirs in zip(_Traces._fields, here, train, strict=True)
        if mine & theirs
    }
    if shared:
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for kind, names in shared.items()
        )
        raise DfdetectError(
            f"{', '.join(map(str, data))}: the model was trained on parts of the val split, which "
            f"are in the train split of {', '.join(map(str, trained))} ({told})",
            "calibrate on people and videos that it was not trained on (one name in one dataset "
            "counts as one)",
        )
    val = _traces(trained, "val")
    if not (here.videos & val.videos or here.files & val.files):
        what = "people and videos" if here.people else "videos (their people are not named)"
        return f"these are {what} that neither trained nor chose the model"
    if notes := checkpoint.info.data["notes"]:
        raise DfdetectError(
            f"{', '.join(map(str, data))}: the model was validated on it, and its run accepted "
            f"what spoils validation ({'; '.join(notes)})",
            "calibrate on a folder of its own",
        )
    return "some of these chose the checkpoint too: somewhat optimistic"


def _trained_folders(checkpoint: Checkpoint) -> list[Path]:
    """Of the run that the checkpoint lies in; empty if there is none, or they are gone."""
    about = checkpoint.path.parent / "run.json"
    folders = [Path(name) for name in read_json(about)["data"]] if about.exists() else []
    return folders if all((folder / "manifest").is_dir() for folder in folders) else []


def _fingerprint_of(info: CheckpointInfo, data: Sequence[Path]) -> str:
    """What training would have recorded of this data."""
    left_out = info.preset.get("leave_out") or []
    rows = [
        row
        for i, folder in enumerate(data)
        for row in read_samples(folder, prefix=f"{i}:" * (len(data) > 1))
        if row.split in ("train", "val")
        and not (row.label and any(fnmatchcase(row.manipulation, name) for name in left_out))
    ]
    return fingerprint(at_qualities(rows, info.preset["qualities"]))
