"""train: manifest + preset -> a run folder with detector.safetensors.

One loop for every method: the method's forward is the loss, its `perturbed` context may move the
weights for the descent pass and puts them back. The best checkpoint is chosen on val by the
preset's rule; rows of the test split are never read.

    RUN/preset.yaml (resolved)  run.json  metrics.jsonl  detector.safetensors  resume/state.pt
"""

import io
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from dfdetect.audit import LEAKS, Finding, audit
from dfdetect.checkpoint import FILE_NAME, CheckpointInfo, choose_device, save_checkpoint, versions
from dfdetect.data import PairedCrops, at_qualities, default_workers, training_batches
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.faces import CropRecipe
from dfdetect.files import folder_lock, read_json, write_json, write_whole
from dfdetect.manifest import Sample, fingerprint, identity_leaks, read_samples, refuse_leaks
from dfdetect.methods import Method, StepLoss, make_method, method_options
from dfdetect.metrics import accuracy, auc, best_threshold, call_band, eer
from dfdetect.presets import Optimizer, Preset, check_preset
from dfdetect.quality import to_prepare
from dfdetect.results import Prediction, predict, video_scores

log = logging.getLogger(__name__)

MEASURE_EVERY = 10
"""Steps between measurements of the regulariser's gradient; each costs part of a backward pass."""
TINY_RATIO = 1e-5
"""Below this gradient ratio a regulariser does nothing."""

Event = dict[str, Any]


class TrainingData(NamedTuple):
    """Rows of the train and val splits at the preset's qualities, and what they have in common."""

    train: list[Sample]
    val: list[Sample]
    domains: list[str]
    crop: CropRecipe
    fingerprint: str
    notes: list[str]
    no_calls: str  # why a model validated on this may make none, after accepted leaks; else empty

    def counts(self) -> dict[str, Any]:
        """Videos by split and class."""
        count = {}
        for name, rows in (("train", self.train), ("val", self.val)):
            for label, word in ((0, "real"), (1, "fake")):
                count[f"{name}_{word}_videos"] = len({r.video_id for r in rows if r.label == label})
        return count


class TrainPlan(NamedTuple):
    """What a run would do: steps, sizes."""

    n_parameters: int
    n_inference_parameters: int
    n_steps: int
    steps_per_epoch: int
    n_samples: int
    counts: dict[str, Any]


@dataclass
class TrainSummary:
    """How a run ended; `val` are the figures of the best checkpoint, on the val split."""

    checkpoint: Path
    n_steps: int
    best_step: int
    val: dict[str, Any]
    elapsed_s: float


def plan_training(
    preset: Preset,
    data: Sequence[Path],
    weights: str | None = None,
    allow_audit_fail: bool = False,
) -> TrainPlan:
    """Everything `train` checks before its first step, and the size of the run; writes nothing."""
    preset = _with_weights(preset, weights)
    method_options(preset)
    rows = load_training_data(preset, data, allow_audit_fail)
    crops = _paired(preset, rows)
    method = make_method(preset, len(rows.domains))
    per_epoch = _steps_per_epoch(preset, len(crops), 1)
    return TrainPlan(
        sum(p.numel() for p in method.parameters()),
        sum(p.numel() for p in method.detector.parameters()),
        per_epoch * preset.epochs,
        per_epoch,
        len(crops),
        rows.counts(),
    )


def train(
    preset: Preset,
    data: Sequence[Path],
    out: Path,
    weights: str | None = None,
    device: str = "auto",
    resume: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
    allow_audit_fail: bool = False,
) -> TrainSummary:
    """Train `preset` on prepared folders; `on_event` gets one dict per step and per validation.

    `weights` replaces the preset's choice: pretrained, none, or a file. `allow_audit_fail` accepts
    what the audit calls a FAIL, and a resumed run what it was begun with; the run records it.

    Errors: DfdetectError for data that cannot be trained on, a run folder in use or not empty,
    ExitCode.DIVERGED for a loss that is not finite, 130 or 143 when interrupted (state is saved).
    """
    preset = _with_weights(preset, weights)
    method_options(preset)
    accepts = allow_audit_fail or (resume and _accepted_before(out))
    rows = load_training_data(preset, data, accepts)
    device = choose_device(device)
    processes = PartialState(cpu=device == "cpu")
    for note in rows.notes if processes.is_main_process else ():
        on_event({"kind": "warning", "message": note})
    # One process owns the folder; the others wait until it has been opened.
    with folder_lock(out) if processes.is_main_process else nullcontext():
        _refuse_other_run(out, preset, rows, resume)
        run = _Run(preset, rows, out, device, _saved_state(out) if resume else None, on_event)
        if processes.is_main_process and not resume:
            _begin_run(out, preset, data, rows, allow_audit_fail)
        processes.wait_for_everyone()
        return run.go()


def load_training_data(
    preset: Preset, data: Sequence[Path], allow_audit_fail: bool = False
) -> TrainingData:
    """Train and val rows of all folders.

    Errors: DfdetectError for different crop recipes, a missing quality, one class only, an
    identity in train and val (a note instead, where prepare was told to accept that), a FAIL of
    the audit's short form (a note instead, with `allow_audit_fail`).
    """
    crops, rows, notes, strict_pairs, no_calls = {}, [], [], [], ""
    for number, folder in enumerate(data):
        prepared = read_json(folder / "prepare.json") if (folder / "prepare.json").exists() else {}
        found = read_samples(folder, prefix=f"{number}:" if len(data) > 1 else "")
        crops[folder] = CropRecipe.model_validate(prepared.get("recipe", {}).get("crop", {}))
        wanted = at_qualities(found, preset.qualities)
        missing = set(preset.qualities) - {s.quality for s in wanted}
        if missing:
            raise DfdetectError(
                f"{folder}: holds no {', '.join(sorted(missing))} crops, "
                f"which preset {preset.name} needs",
                f"prepare it with --qualities {to_prepare(preset.qualities)}, "
                "or --set qualities=...",
            )
        kept = [s for s in wanted if s.split in ("train", "val")]
        # Of the test split only the names are looked at: nobody in it may be trained on.
        pairs = {(tuple(f"{s.dataset}/{i}" for i in s.identities), s.split) for s in found}
        if prepared.get("identity_overlap_allowed") or allow_audit_fail:
            if leaks := identity_leaks(pairs):
                if any({"train", "val"} <= splits for splits in leaks.values()):
                    no_calls = "people of its validation are in its training too"
                notes.append(
                    f"{len(leaks)} identities of {folder.resolve().name} are in more than one "
                    "split; its figures say nothing about people it has not seen"
                )
        else:
            strict_pairs += sorted(pairs)
        rows += kept
    refuse_leaks(strict_pairs, ", ".join(map(str, data)), "prepare --allow-identity-overlap")
    first, *others = crops.items()
    for folder, crop in others:
        if crop != first[1]:
            raise DfdetectError(
                f"{folder} was cropped with {crop}, {first[0]} with {first[1]}",
                "prepare both with the same options",
            )
    train_rows, val_rows = ([s for s in rows if s.split == split] for split in ("train", "val"))
    for name, split in (("train", train_rows), ("val", val_rows)):
        labels = {s.label for s in split}
        if labels != {0, 1}:
            has = (
                "no crops"
                if not labels
                else "only " + ("fake" if 1 in labels else "real") + " crops"
            )
            raise DfdetectError(
                f"{', '.join(map(str, data))}: the {name} split has {has}",
                "both classes are needed; add videos or give other --splits to prepare",
            )
    failed = _audited(data, allow_audit_fail)
    notes += [f"accepted although the audit says FAIL: {f.name}: {f.message}" for f in failed]
    if not no_calls and (leaked := [f.name for f in failed if f.name in LEAKS]):
        no_calls = f"it was trained although the audit found leaks ({', '.join(leaked)})"
    domains = ["real", *sorted({s.manipulation for s in train_rows if s.label})]
    return TrainingData(train_rows, val_rows, domains, first[1], fingerprint(rows), notes, no_calls)


def _audited(data: Sequence[Path], allow_fail: bool) -> list[Finding]:
    """The FAILs of the audit's short form, which looks at manifests only, where they are accepted.

    Errors: DfdetectError naming them where they are not.
    """
    failed = [finding for finding in audit(data, look_at_crops=False) if finding.status == "FAIL"]
    if failed and not allow_fail:
        told = "; ".join(f"{finding.name}: {finding.message.rstrip('.')}" for finding in failed)
        raise DfdetectError(
            f"{', '.join(map(str, data))}: the audit says FAIL: {told}",
            "`dfdetect audit` lists what is concerned; accept it with --allow-audit-fail",
        )
    return failed


class _Run:
    """One training run from its first (or next) step to its end."""

    def __init__(
        self, preset: Preset, rows: TrainingData, out: Path, device: str,
        state: dict[str, Any] | None, on_event: Callable[[Event], None],
    ) -> None:  # fmt: skip
        self.preset, self.rows, self.out, self.on_event = preset, rows, out, on_event
        precision = {"fp32": "no"}.get(preset.precision, preset.precision)
        AcceleratorState._reset_state()  # an earlier run here may have had another precision
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
        self.is_main = self.accelerator.is_main_process
        set_seed(preset.seed)
        if preset.backbone.weights == "pretrained" and not state:
            fetching = f"fetching the ImageNet weights of {preset.backbone.name}"
            self._tell({"kind": "note", "message": fetching})
        # A resumed run's weights come from its state: nothing needs to be fetched.
        self.method = make_method(
            _with_weights(preset, "none") if state else preset, len(rows.domains)
        )
        self.method.autocast = self.accelerator.autocast
        if self.accelerator.scaler:
            self.method.loss_scale = self.accelerator.scaler.get_scale
        self.crops = _paired(preset, rows)
        self.n_ranks = self.accelerator.num_processes
        self.batch_size = max(2, min(preset.batch_size, len(self.crops) // self.n_ranks))
        self.steps_per_epoch = _steps_per_epoch(preset, len(self.crops), self.n_ranks)
        self.n_steps = self.steps_per_epoch * preset.epochs
        optimizer = make_optimizer(self.method, preset.optimizer)
        self.scheduler = make_scheduler(optimizer, preset, self.n_steps)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.method, optimizer)
        self.step = 0
        self.best_key: tuple[float, float] | None = None
        self.best: dict[str, Any] = {}
        self.metrics_bytes = 0
        self.warned = False
        self.step_ended = 0.0
        if state:
            self._restore(state)

    def go(self) -> TrainSummary:
        started, self.step_ended = time.monotonic(), time.perf_counter()
        self._tell(
            {
                "kind": "start",
                "step": self.step,
                "n_steps": self.n_steps,
                "preset": self.preset.name,
                "device": str(self.accelerator.device),
                "train_samples": len(self.crops),
                "resumed": self.step > 0,
            }
        )
        if self.batch_size < self.preset.batch_size:
            few = f"only {len(self.crops)} training samples: batches of {self.batch_size}"
            self._tell({"kind": "warning", "message": few})
        validate_every = max(1, self.steps_per_epoch // self.preset.validate_per_epoch)
        with _stop_signals() as stopped, (self.out / "metrics.jsonl").open("a") as metrics:
            for batch in self._batches():
                self._write(metrics, self._train_step(batch))
                if self.step % validate_every == 0 or self.step == self.n_steps:
                    self._write(metrics, self._validate())
                    self._save_state()
                    self.step_ended = time.perf_counter()
                if self._anywhere(stopped) and self.step < self.n_steps:
                    self._save_state()
                    raise DfdetectError(
                        f"stopped at step {self.step} of {self.n_steps}; the state is saved",
                        f"continue with: dfdetect train --resume --out {self.out}",
                        ExitCode.INTERRUPTED
                        if stopped[:1] == [signal.SIGINT]
                        else ExitCode.TERMINATED,
                    )
        elapsed = time.monotonic() - started
        return TrainSummary(
            self.out / FILE_NAME, self.n_steps, self.best.get("step", 0), self.best, elapsed
        )

    def _tell(self, event: Event) -> None:
        if self.is_main:
            self.on_event(event)

    def _anywhere(self, flag: object) -> bool:
        """Whether any process has it, so that all of them stop at the same step."""
        if self.n_ranks == 1:
            return bool(flag)
        here = torch.tensor(float(bool(flag)), device=self.accelerator.device)
        return bool(self.accelerator.reduce(here, "sum") > 0)

    def _batches(self) -> Iterator:
        while self.step < self.n_steps:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            yield from training_batches(
                self.crops, self.preset.sampler, self.preset.seed, epoch, self.steps_per_epoch,
                self.batch_size, first, self.accelerator.process_index, self.n_ranks,
                default_workers(),
            )  # fmt: skip

    def _train_step(self, batch) -> Event:
        epoch = self.step // self.steps_per_epoch
        batch = batch.to_device(self.accelerator.device)
        self.method.train()
        self.method.at(self.step, self.n_steps, epoch, self.preset.epochs)
        self.method.measure = self.step % MEASURE_EVERY == 0
        with self.method.perturbed(batch) as notes:
            loss: StepLoss = self.wrapped(batch)
            total = loss.total.item()
            if self._anywhere(not math.isfinite(total)):
                raise self._diverged(batch.sample_ids, total)
            self.optimizer.zero_grad(set_to_none=True)
            self.accelerator.backward(loss.total)
        if self.preset.optimizer.clip_norm:
            self.accelerator.clip_grad_norm_(
                self.method.parameters(), self.preset.optimizer.clip_norm
            )
        lr = self.scheduler.get_last_lr()[-1]
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
        self.step += 1
        notes = notes | {name: value.item() for name, value in loss.notes.items()}
        self._warn_if_inert(notes)
        seconds, self.step_ended = time.perf_counter() - self.step_ended, time.perf_counter()
        n_images = batch.images.shape[0] * batch.images.shape[1] * self.n_ranks
        return {
            "kind": "train",
            "step": self.step,
            "epoch": epoch,
            "lr": lr,
            "loss": total,
            "terms": {name: float(value) for name, value in loss.terms.items()},
            **notes,
            "images_per_s": round(n_images / seconds, 2),
        }

    def _validate(self) -> Event:
        """Score val, keep the checkpoint if it is the best so far by the preset's rule."""
        event: Event = {"kind": "val", "step": self.step, "split": "val"}
        if self.is_main:
            predictions = predict(
                self.method.detector, self.rows.val, self.preset.image_size,
                str(self.accelerator.device), self.preset.batch_size, default_workers(),
            )  # fmt: skip
            if not all(math.isfinite(p.logit) for p in predictions):
                raise self._diverged([], math.nan)
            event |= validation_figures(predictions, self.preset.qualities)
            frame = event["frame"]
            # Accuracy moves in steps on small splits: equals are told apart by AUC.
            key = (frame[self.preset.select], frame["auc"])
            event["is_best"] = self.best_key is None or key > self.best_key
            if event["is_best"]:
                self.best_key = key
                self.best = {k: event[k] for k in ("step", "split", "frame", "video", "by_quality")}
                info = self._info(predictions)
                save_checkpoint(self.out / FILE_NAME, self.method.detector, info)
                event |= {"threshold": info.threshold, "band": info.band}
        self.accelerator.wait_for_everyone()
        return event

    def _info(self, predictions: Sequence[Prediction]) -> CheckpointInfo:
        decision = choose_decision(predictions)
        if self.rows.no_calls:  # errors on people it knows say nothing about strangers
            decision = decision._replace(band=None, basis=f"no calls: {self.rows.no_calls}")
        return CheckpointInfo(
            detector=self.method.detector.settings,
            preset=self.preset.model_dump(mode="json"),
            crop=self.rows.crop,
            domains=self.rows.domains,
            threshold=decision.threshold,
            band=decision.band,
            band_basis=decision.basis,
            val=self.best,
            data={
                "fingerprint": self.rows.fingerprint,
                **self.rows.counts(),
                "datasets": sorted({s.dataset for s in self.rows.train}),
                "notes": self.rows.notes,
            },
            step=self.step,
            versions=dict(versions()),
        )

    def _diverged(self, sample_ids: Sequence[str], value: float) -> DfdetectError:
        samples = f" on samples {', '.join(sample_ids[:4])}" if sample_ids else " after the step"
        kept = f"; the last good checkpoint is {self.out / FILE_NAME}" if self.best else ""
        return DfdetectError(
            f"training diverged at step {self.step + bool(sample_ids)}: "
            f"the loss is {value}{samples}{kept}",
            "lower --set optimizer.lr, or set optimizer.clip_norm=1",
            ExitCode.DIVERGED,
        )

    def _warn_if_inert(self, notes: Event) -> None:
        ratio = notes.get("reg_ratio")
        if ratio is not None and ratio < TINY_RATIO and not self.warned:
            self.warned = True
            self._tell(
                {
                    "kind": "warning",
                    "message": f"at step {self.step} the regulariser's gradient is {ratio:.1e} of "
                    "the classification's: too weak to matter there",
                }
            )

    def _write(self, metrics, event: Event) -> None:
        if self.is_main:
            self.metrics_bytes += metrics.write(json.dumps(_finite(event), allow_nan=False) + "\n")
            metrics.flush()
        self._tell(event | {"n_steps": self.n_steps})

    def _save_state(self) -> None:
        """Errors: DfdetectError when the weights are not finite; the state before stays."""
        if not self.is_main:
            return
        if not all(torch.isfinite(p).all() for p in self.method.parameters()):
            raise self._diverged([], math.nan)
        buffer = io.BytesIO()
        torch.save(
            {
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "step": self.step,
                "best_key": self.best_key,
                "best": self.best,
                "metrics_bytes": self.metrics_bytes,
                "n_threads": torch.get_num_threads(),
            },
            buffer,
        )
        write_whole(self.out / "resume" / "state.pt", buffer.getvalue())

    def _restore(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.step, self.best_key, self.best = state["step"], state["best_key"], state["best"]
        self.metrics_bytes = state["metrics_bytes"]
        if self.is_main:  # steps after the state come again
            with (self.out / "metrics.jsonl").open("a+") as metrics:
                metrics.truncate(min(self.metrics_bytes, metrics.seek(0, io.SEEK_END)))
        if self.step == self.n_steps:
            self._tell({"kind": "note", "message": f"{self.out}: this run is finished already"})
        elif state["n_threads"] != torch.get_num_threads():
            message = (
                f"trained with {state['n_threads']} threads before: not bit-identical from here"
            )
            self._tell({"kind": "warning", "message": message})


# --- parts that tests look at alone ----------------------------------------------------------


def make_optimizer(method: Method, options: Optimizer) -> torch.optim.Optimizer:
    """Two groups: the backbone at lr times `backbone_lr_scale`, everything else at lr, also the
    linear head, which timm keeps inside its model."""
    head = {id(p) for p in method.detector.head_parameters()}
    backbone = [p for p in method.detector.backbone.parameters() if id(p) not in head]
    inside = {id(p) for p in backbone}
    rest = [p for p in method.parameters() if id(p) not in inside]
    groups = [{"params": backbone, "lr": options.lr * options.backbone_lr_scale}]
    if rest:
        groups.append({"params": rest, "lr": options.lr})
    if options.name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=options.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.name]
    return kind(groups, weight_decay=options.weight_decay)


def make_scheduler(optimizer: torch.optim.Optimizer, preset: Preset, n_steps: int):
    """One-cycle (cosine, from 1/25 of the peak to 1/10^4 of the start) or constant, per step."""
    if preset.schedule.name == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    n_steps = max(n_steps, 2)
    # torch divides by zero when the peak falls on the first step: put it after that.
    warmup = max(preset.schedule.warmup, 1.5 / n_steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=n_steps,
        pct_start=min(warmup, 1.0),
    )


def validation_figures(
    predictions: Sequence[Prediction], qualities: Sequence[str]
) -> dict[str, Any]:
    """Figures on val at threshold 0.5, qualities pooled, at frame and video level, with their n."""
    scores, labels = [p.logit for p in predictions], [p.label for p in predictions]
    ids, by_video, video_labels = video_scores(predictions)
    frames_of: dict[str, set[str]] = {}
    for p in predictions:
        frames_of.setdefault(p.video_id, set()).add(p.sample_id)
    single = np.array([len(frames_of[video_id]) == 1 for video_id in ids])
    by_quality = {}
    for quality in qualities:
        rows = [p for p in predictions if p.quality == quality]
        by_quality[quality] = auc([p.logit for p in rows], [p.label for p in rows])
    return {
        "frame": {
            "accuracy": accuracy(scores, labels, 0.0),  # logit 0 is score 0.5
            "auc": auc(scores, labels),
            "eer": eer(scores, labels),
            "n_real": labels.count(0),
            "n_fake": labels.count(1),
            "qualities": "pooled",
        },
        "video": {
            "auc": auc(by_video, video_labels),
            "n_real": int((video_labels == 0).sum()),
            "n_fake": int((video_labels == 1).sum()),
            "n_real_pictures": int((single & (video_labels == 0)).sum()),
            "n_fake_pictures": int((single & (video_labels == 1)).sum()),
            "qualities": "mean score",
        },
        "by_quality": {"level": "frame", "auc": by_quality},
    }


class Decision(NamedTuple):
    """`threshold` for accuracy, `band` for calls (None: too little evidence), `basis` in words."""

    threshold: float
    band: tuple[float, float] | None
    basis: str


def choose_decision(predictions: Sequence[Prediction], error: float = 0.1) -> Decision:
    """Threshold and band from val videos; each counts once, at the quality where it does worst."""
    by_quality = {}
    for quality in sorted({p.quality for p in predictions}):
        ids, scores, labels = video_scores([p for p in predictions if p.quality == quality])
        by_quality[quality] = dict(zip(ids, zip(scores, labels, strict=True), strict=True))
    pooled = [pair for videos in by_quality.values() for pair in videos.values()]
    threshold = best_threshold([s for s, _ in pooled], [y for _, y in pooled])
    worst: dict[int, dict[str, float]] = {0: {}, 1: {}}
    for videos in by_quality.values():
        for video, (score, label) in videos.items():
            pick = min if label else max
            worst[label][video] = pick(worst[label].get(video, score), score)
    n_real, n_fake = len(worst[0]), len(worst[1])
    band = call_band(
        np.array([*worst[0].values()]), np.array([*worst[1].values()]), threshold, error
    )
    evidence = f"{n_real} real and {n_fake} fake validation videos"
    enough = min(n_real, n_fake) >= (1 - error) / error
    basis = (
        f"at most {error:.0%} wrong calls per class on videos like its {evidence}"
        if band
        else f"no calls: it does not tell its {evidence} apart well enough"
        if enough
        else f"no calls: {evidence} are too few"
    )
    return Decision(threshold, tuple(band) if band else None, basis)


# --- the run folder --------------------------------------------------------------------------


def stored_run(out: Path) -> tuple[Preset, list[Path]]:
    """Preset and data folders of a run, for `--resume` without naming them again."""
    try:
        content = yaml.safe_load((out / "preset.yaml").read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DfdetectError(
            f"{out}: no run to resume there", "start one with --preset and --data"
        ) from error
    data = [Path(folder) for folder in read_json(out / "run.json")["data"]]
    return check_preset(content, str(out / "preset.yaml")), data


def _begin_run(
    out: Path, preset: Preset, data: Sequence[Path], rows: TrainingData, allow_audit_fail: bool
) -> None:
    """Note what the run is, once everything it needs is there."""
    content = yaml.safe_dump(preset.model_dump(mode="json"), sort_keys=False)
    write_whole(out / "preset.yaml", content)
    folders = [str(folder.resolve()) for folder in data]
    write_json(
        out / "run.json",
        {
            "data": folders,
            "fingerprint": rows.fingerprint,
            "audit_fail_allowed": allow_audit_fail,
            "notes": rows.notes,
        },
    )


def _accepted_before(out: Path) -> bool:
    """Whether the run in `out` was begun with a FAIL of the audit accepted."""
    path = out / "run.json"
    return path.exists() and bool(read_json(path).get("audit_fail_allowed"))


def _refuse_other_run(out: Path, preset: Preset, rows: TrainingData, resume: bool) -> None:
    """Errors: DfdetectError if the folder holds a run that this is not, or lacks one to resume."""
    started = (out / "run.json").exists()
    if started and not resume:
        raise DfdetectError(
            f"{out}: holds a run already", "continue it with --resume, or choose another --out"
        )
    if resume and not started:
        raise DfdetectError(f"{out}: no run to resume there", "leave --resume out to start one")
    if not started:
        return
    before = stored_run(out)[0]
    if before != preset:
        now, then = preset.model_dump(), before.model_dump()
        key = next(k for k in then if then[k] != now[k])
        raise DfdetectError(
            f"{out}: the run has {key} = {then[key]}, now asked for {now[key]}",
            "resume with the same options (or with none), or choose another --out",
        )
    stored = read_json(out / "run.json")["fingerprint"]
    if stored != rows.fingerprint:
        raise DfdetectError(
            f"{out}: the run began on data {stored}, these folders hold {rows.fingerprint}",
            "resume on the data it began with",
        )


def _saved_state(out: Path) -> dict[str, Any] | None:
    """The state to go on from, or None if the run had not come that far."""
    state_file = out / "resume" / "state.pt"
    if not state_file.exists():
        (out / "metrics.jsonl").unlink(missing_ok=True)
        return None
    try:
        return torch.load(state_file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DfdetectError(
            f"{state_file}: damaged ({str(error).splitlines()[0][:120]})",
            "start again with another --out",
        ) from error


def _finite(value: Any) -> Any:
    """NaN and infinity as null: they are not JSON."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_weights(preset: Preset, weights: str | None) -> Preset:
    if weights is None:
        return preset
    backbone = preset.backbone.model_copy(update={"weights": weights})
    return preset.model_copy(update={"backbone": backbone})


def _paired(preset: Preset, rows: TrainingData) -> PairedCrops:
    return PairedCrops(
        rows.train, preset.qualities, rows.domains, preset.image_size, preset.augment, preset.seed
    )


def _steps_per_epoch(preset: Preset, n_samples: int, n_ranks: int) -> int:
    return preset.steps_per_epoch or max(1, n_samples // (preset.batch_size * n_ranks))


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying in the middle of a step; a second one kills."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever owns it decides
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
