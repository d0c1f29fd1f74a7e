"""train: manifest + preset -> a run folder with detector.safetensors.

One loop for every method: the method's forward is the loss, its `perturbed` context may move the
weights for the descent pass and puts them back. The best checkpoint is chosen on val by the
preset's rule; rows of the test split are never read. What a run's folder holds: see `runs`.
"""

import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    set_seed,
)

from dfdetect.checkpoint import (
    FILE_NAME,
    CheckpointInfo,
    choose_device,
    read_info,
    save_checkpoint,
    versions,
)
from dfdetect.data import (
    FORGED,
    Batch,
    Draws,
    Forging,
    Loader,
    PairedCrops,
    default_workers,
    training_batches,
)
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.files import cannot_write, folder_lock
from dfdetect.footprint import LARGE, Footprint, measure
from dfdetect.forging import (
    DECODERS,
    domains_with_forged,
    real_faces,
    store_decoders,
    training_forging,
    trains_decoders,
)
from dfdetect.likeness import DetailRange, detail_range
from dfdetect.methods import StepLoss, make_method, method_options
from dfdetect.optim import make_optimizer, make_scheduler, moving_average
from dfdetect.presets import Preset
from dfdetect.processes import (
    join,
    main_alone,
    processes,
    share_of,
    take_from_main,
    together,
)
from dfdetect.results import Prediction, Scorer
from dfdetect.runs import (
    State,
    audit_fail_accepted,
    begin_run,
    forget_after,
    in_its_folder,
    json_line,
    load_state,
    refuse_other_run,
    save_state,
)
from dfdetect.training_data import TrainingData, load_training_data
from dfdetect.validation import choose_decision, validation_figures

DETAIL_SAMPLES = 200
"""Training samples that tell which inputs are like those it learned from."""
MEASURE_EVERY = 10
"""Steps between measurements of the regulariser's gradient; each costs part of a backward pass."""
TINY_RATIO = 1e-5
"""Below this gradient ratio a regulariser does nothing."""

Event = dict[str, Any]


class TrainPlan(NamedTuple):
    """What a run would do: its size, what the loss looks at, the memory it needs."""

    preset: Preset
    n_parameters: int
    n_trainable_parameters: int
    n_inference_parameters: int
    n_steps: int
    steps_per_epoch: int
    counts: dict[str, int]  # videos and samples by split and class
    tapped_maps: dict[int, tuple[int, int, int]]  # stride -> (C, H, W)
    memory: Footprint


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
    device: str = "auto",
) -> TrainPlan:
    """Everything `train` checks before its first step, the size of the run, and the memory it
    needs, from two small steps on `device`; writes nothing."""
    preset, device = _with_weights(preset, weights), choose_device(device)
    _check_options(preset, device)
    rows = load_training_data(preset, data, allow_audit_fail)
    kind, options = method_options(preset)
    domains = domains_with_forged(kind.domains(options, rows.domains), rows)
    forging = training_forging(preset.augment.forge, rows, Path())
    # What a step takes does not depend on how a fake looks, and its decoders may not be there yet.
    crops = _paired(preset, rows, domains, forging and forging._replace(forge=_unforged))
    set_seed(preset.seed)
    method = make_method(preset, len(domains)).to(device)
    per_epoch = _steps_per_epoch(preset, len(crops), 1)
    a_few = [np.flatnonzero(crops.strata.labels == label)[: LARGE // 2] for label in (0, 1)]
    return TrainPlan(
        preset,
        sum(p.numel() for p in method.parameters()),
        sum(p.numel() for p in method.parameters() if p.requires_grad),
        sum(p.numel() for p in method.detector.scoring_parameters()),
        per_epoch * preset.epochs,
        per_epoch,
        rows.counts(),
        method.tapped_maps(),
        measure(method, crops[Draws(0, 0, np.concatenate(a_few))], preset),
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
    workers: int | None = None,
    save_minutes: float = 15.0,
) -> TrainSummary:
    """Train `preset` on prepared folders; `on_event` gets one dict per step and per validation.

    `weights` replaces the preset's choice: pretrained, none, or a file. `allow_audit_fail` accepts
    what the audit calls a FAIL, and a resumed run what it was begun with; the run records it.
    `workers` load crops (default: as the machine's cores allow). The state to resume from is saved
    after each validation, when interrupted, and every `save_minutes` between.

    Where `augment.forge` needs decoders and names none, they are trained first, on the reals of
    the train split, and kept in `out`; a resumed run finds them there.

    Started by `torchrun` or `accelerate launch`, the processes share the work: each step takes
    `batch_size` samples in each of them, and the one of rank 0 writes and calls `on_event`.

    Errors: DfdetectError for data that cannot be trained on, a run folder in use or not empty,
    ExitCode.DIVERGED for a loss that is not finite, ENVIRONMENT when memory or disk run out, 130
    or 143 when interrupted (the state is saved).
    """
    preset, device = _with_weights(preset, weights), choose_device(device)
    _check_options(preset, device)
    accepts = allow_audit_fail or (resume and audit_fail_accepted(out))
    rows = load_training_data(preset, data, accepts)
    who = join(on_cpu=device == "cpu")
    warn = _teller(on_event, "warning") if who.is_main else lambda message: None
    for note in rows.notes:
        warn(note)
    with ExitStack() as stack:
        with together():  # one process owns the folder
            if who.is_main:
                stack.enter_context(folder_lock(out))
                for difference in refuse_other_run(out, preset, rows, who.n, resume):
                    warn(difference)
        with together():
            state = load_state(out, preset, warn) if resume else None
            accelerator = _accelerator(preset, device)
            run = _Run(preset, rows, out, accelerator, state, on_event, workers, save_minutes)
        with together():
            if who.is_main and resume:
                forget_after(out, state)
            elif who.is_main:
                begin_run(out, preset, data, rows, who.n, allow_audit_fail)
        if trains_decoders(preset.augment.forge):
            note = _teller(on_event, "note")
            main_alone(lambda go_on: _train_decoders(preset, rows, out, resume, note, go_on))
        return run.go()


class _Stopped(Exception):
    """A signal came in the middle of a validation."""


class _Run:
    """One training run from its first (or next) step to its end."""

    def __init__(
        self, preset: Preset, rows: TrainingData, out: Path, accelerator: Accelerator,
        state: State | None, on_event: Callable[[Event], None],
        workers: int | None, save_minutes: float,
    ) -> None:  # fmt: skip
        self.preset, self.rows, self.out, self.on_event = preset, rows, out, on_event
        self.accelerator, self.save_every_s = accelerator, 60 * save_minutes
        self.is_main, self.n_ranks = accelerator.is_main_process, accelerator.num_processes
        device = str(accelerator.device)
        self.workers = default_workers(device) if workers is None else workers
        set_seed(preset.seed)
        if preset.backbone.weights == "pretrained" and not state:
            self._tell("note", message=f"fetching the ImageNet weights of {preset.backbone.name}")
        # A resumed run's weights come from its state: nothing needs to be fetched.
        kind, options = method_options(preset)
        self.domains = domains_with_forged(kind.domains(options, rows.domains), rows)
        self.method = make_method(
            _with_weights(preset, "none") if state else preset, len(self.domains)
        )
        if preset.channels_last:
            self.method.to(memory_format=torch.channels_last)
        self.average = moving_average(self.method.detector, preset.ema) if preset.ema else None
        self.method.autocast = accelerator.autocast
        if accelerator.scaler:
            self.method.loss_scale = accelerator.scaler.get_scale
        forging = training_forging(preset.augment.forge, rows, out)
        self.crops = _paired(preset, rows, self.domains, forging)
        self.groups: dict[str, int] | None = None  # of the fakes' videos, where they are found
        whole_parts = len(self.crops) // self.n_ranks // preset.accumulate * preset.accumulate
        self.batch_size = max(2 * preset.accumulate, min(preset.batch_size, whole_parts))
        self.steps_per_epoch = _steps_per_epoch(preset, len(self.crops), self.n_ranks)
        self.n_steps = self.steps_per_epoch * preset.epochs
        optimizer = make_optimizer(self.method, preset.optimizer)
        self.scheduler = make_scheduler(optimizer, preset, self.n_steps)
        self.wrapped, self.optimizer = accelerator.prepare(self.method, optimizer)
        if self.average:
            self.average.to(accelerator.device)
        if preset.compile:
            self.method.detector.compile_features()
        self.step = 0
        self.validated = 0  # the step of the last validation
        self.best_key: tuple[float, float] | None = None
        self.best: dict[str, Any] = {}
        self.metrics_bytes = 0
        self.warned = False
        if state:
            self._restore(state)

    def go(self) -> TrainSummary:
        started = saved = time.monotonic()
        self._tell(
            "start",
            step=self.step,
            n_steps=self.n_steps,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.preset.epochs,
            preset=self.preset.name,
            device=str(self.accelerator.device),
            n_processes=self.n_ranks,
            train_samples=len(self.crops),
            resumed=self.step > 0,
        )
        if self.batch_size < self.preset.batch_size:
            few = f"only {len(self.crops)} training samples: batches of {self.batch_size}"
            self._tell("warning", message=few)
        with (
            _stop_signals() as stopped,
            _logs(self.out, self.is_main) as self.logs,
            closing(self._batches()) as batches,
            self._scorer() as self.scorer,
            self._explained(),
        ):
            while True:
                try:
                    if self._validation_is_due():  # also one that was cut short before
                        self._validate(stopped)
                        saved = time.monotonic()
                    elif time.monotonic() - saved > self.save_every_s:
                        self._save_state()
                        saved = time.monotonic()
                except _Stopped:
                    pass
                if self._anywhere(stopped) and self._is_unfinished():
                    self._save_state()
                    raise _interruption(stopped, self.step, self.n_steps, self.out)
                if self.step == self.n_steps:
                    break
                self._train_step(batches)
        elapsed = time.monotonic() - started
        return TrainSummary(
            self.out / FILE_NAME, self.n_steps, self.best.get("step", 0), self.best, elapsed
        )

    # --- one step ------------------------------------------------------------------------

    def _batches(self) -> Iterator[Batch]:
        """Of every step from this one on. Where fakes change their domains, loading begins anew."""
        epoch_starts = range(0, self.n_steps, self.steps_per_epoch)
        changes = [s for s in epoch_starts if self.method.regroups(s // self.steps_per_epoch)]
        while self.step < self.n_steps:
            if self.step in changes:
                self._regroup()
            until = next((s for s in changes if s > self.step), self.n_steps)
            with self._loader(until) as loader:
                yield from loader

    def _loader(self, until: int) -> Loader[Batch]:
        return training_batches(
            self.crops, self.preset.sampler, self.preset.seed, self.steps_per_epoch, until,
            self.batch_size, self.step, self.accelerator.process_index, self.n_ranks, self.workers,
        )  # fmt: skip

    def _regroup(self) -> None:
        """Put the fakes into domains by what the network makes of them now."""
        from dfdetect.grouping import group_fakes

        if not any(s.label for s in self.rows.train):
            raise DfdetectError(
                "domains: auto groups the fakes of the data, and there are none to train on",
                "--set method.domains=manifest, or add fakes",
            )
        take_from_main(self.method.detector.buffers())
        self.method.eval()
        found = group_fakes(
            self.rows.train, self.method.grouping_features, self.preset.image_size,
            str(self.accelerator.device), len(self.domains) - 1 - (FORGED in self.domains),
            self.preset.seed, self.groups, self.workers,
        )  # fmt: skip
        self._take_groups(found.of_video)
        sizes = Counter(found.of_video.values())
        event = {
            "kind": "groups", "step": self.step,
            "videos": {name: sizes[i] for i, name in enumerate(self.domains) if i},
            "agreement": None if math.isnan(found.agreement) else found.agreement,
        }  # fmt: skip
        self._log(event, {})

    def _take_groups(self, groups: dict[str, int]) -> None:
        self.groups = groups
        self.crops.regroup(np.array([groups.get(video, 0) for video in self.crops.video_ids]))

    def _scorer(self) -> Scorer:
        return Scorer(self.rows.val, self.preset.image_size, self.preset.batch_size, self.workers)

    def _train_step(self, batches: Iterator[Batch]) -> None:
        began = time.perf_counter()
        batch = next(batches).to_device(self.accelerator.device)
        waited = time.perf_counter() - began
        epoch = self.step // self.steps_per_epoch
        self.method.train()
        self.method.at(self.step, self.n_steps, epoch, self.preset.epochs)
        self.method.measure = self.step % MEASURE_EVERY == 0
        loss, terms, notes = self._forward_backward(batch)
        if self.preset.optimizer.clip_norm:
            self.accelerator.clip_grad_norm_(
                self.method.parameters(), self.preset.optimizer.clip_norm
            )
        lr = self.scheduler.get_last_lr()[-1]
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
            if self.average:
                self.average.update_parameters(self.method.detector)
        self.step += 1
        self._warn_if_inert(notes)
        seconds = time.perf_counter() - began
        n_images = batch.images.shape[0] * batch.images.shape[1]
        self._log(
            {
                "kind": "train",
                "step": self.step,
                "epoch": epoch,
                "lr": lr,
                "loss": loss,
                "terms": terms,
                **notes,
            },
            {
                "images_per_s": round(n_images * self.n_ranks / seconds, 2),
                "data_wait": round(waited / seconds, 3),
                "seconds": round(seconds, 4),
            },
        )

    def _forward_backward(self, batch: Batch) -> tuple[float, dict[str, float], Event]:
        """Gradients of the mean loss over the parts of `batch`; its value, terms and notes."""
        parts = batch.parts(self.preset.accumulate)
        losses: list[StepLoss] = []
        with self.method.perturbed(parts) as perturbation:
            self.optimizer.zero_grad(set_to_none=True)
            for number, part in enumerate(parts):
                is_last = number == len(parts) - 1
                with nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                    loss = self.wrapped(part)
                    if self._anywhere(not math.isfinite(value := loss.total.item())):
                        raise self._diverged(batch.sample_ids, value)
                    self.accelerator.backward(loss.total / len(parts))
                losses.append(loss._replace(total=loss.total.detach()))
        terms = _mean_values([loss.terms for loss in losses])
        notes = perturbation | _mean_values([loss.notes for loss in losses])
        return sum(loss.total.item() for loss in losses) / len(parts), terms, notes

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What the machine lacks, in the user's words."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            out_of_memory = not isinstance(error, RuntimeError) or any(
                sign in str(error) for sign in ("out of memory", "can't allocate memory")
            )
            if not out_of_memory:
                raise
            n, q = self.batch_size, len(self.preset.qualities)
            raise DfdetectError(
                f"out of memory at step {self.step + 1} with {n} samples x {q} qualities at "
                f"{self.preset.image_size} px"
                + (f" in {self.preset.accumulate} parts" if self.preset.accumulate > 1 else ""),
                f"--set batch_size={max(2, n // 2)}, --set precision=bf16"
                + (
                    f", or --set accumulate={2 * self.preset.accumulate}"
                    if not _why_not_accumulate(self.preset)
                    else ""
                ),
                ExitCode.ENVIRONMENT,
            ) from error

    # --- validation ----------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        """`validate_per_epoch` times, evenly spread up to the epoch's last step; and at the end."""
        before, now = (
            step * self.preset.validate_per_epoch // self.steps_per_epoch
            for step in (self.step - 1, self.step)
        )
        at_a_mark = now > before or self.step == self.n_steps
        return at_a_mark and self.validated < self.step

    def _is_unfinished(self) -> bool:
        return self.step < self.n_steps or self._validation_is_due()

    def _validate(self, stopped: list[int]) -> None:
        """Score val; if it is the best so far by the preset's rule, keep the checkpoint."""
        began, done = time.perf_counter(), 0

        def scored(n: int) -> None:
            nonlocal done
            done += n
            self._tell("validating", done=done, total=len(share_of(self.rows.val)))
            if stopped and self.n_ranks == 1:  # alone, it need not be finished
                raise _Stopped

        detector = self._detector()
        # Running statistics are those of each process's own batches; what is kept are rank 0's.
        take_from_main(detector.buffers())
        predictions = self.scorer.predict(detector, str(self.accelerator.device), scored)
        if not all(math.isfinite(p.logit) for p in predictions):
            raise self._diverged([], math.nan)
        event: Event = {"kind": "val", "step": self.step, "split": "val"}
        event |= validation_figures(predictions, self.preset.qualities)
        frame = event["frame"]
        # Accuracy moves in steps on small splits: equals are told apart by AUC.
        rule = self.preset.select
        key = (self.step, 0.0) if rule == "last" else (frame[rule], frame["auc"])
        event["is_best"] = self.best_key is None or key > self.best_key
        info = None
        if event["is_best"]:
            self.best_key = key
            self.best = {k: event[k] for k in ("step", "split", "frame", "video", "by_quality")}
            info = self._info(predictions)
            event |= {"threshold": info.threshold, "band": info.band}
        self.validated = self.step
        self._log(event, {"seconds": round(time.perf_counter() - began, 2)})
        # The state first: should the process die in between, a resumed run finds in it that the
        # checkpoint is missing and writes it.
        self._save_state(info)
        if info and self.is_main:
            with in_its_folder(self.out):
                save_checkpoint(self.out / FILE_NAME, detector, info)
        self.accelerator.wait_for_everyone()

    def _detector(self) -> Detector:
        """What is validated and kept."""
        return self.average.module if self.average else self.method.detector

    def _info(self, predictions: Sequence[Prediction]) -> CheckpointInfo:
        decision = choose_decision(predictions)
        if self.rows.no_calls:  # errors on people it knows say nothing about strangers
            decision = decision._replace(band=None, basis=f"no calls: {self.rows.no_calls}")
        return CheckpointInfo(
            detector=self.method.detector.settings,
            preset=self.preset.model_dump(mode="json"),
            crop=self.rows.crop,
            domains=self.domains,
            threshold=decision.threshold,
            band=decision.band,
            band_basis=decision.basis,
            val=self.best,
            data={
                "fingerprint": self.rows.fingerprint,
                **self.rows.counts(),
                "datasets": sorted({s.dataset for s in self.rows.train}),
                "manipulations": self._manipulations(),
                "notes": self.rows.notes,
            },
            step=self.step,
            versions=dict(versions()),
            detail=self.detail,
        )

    @cached_property
    def detail(self) -> DetailRange:
        """Of evenly many training samples, at all qualities, as the network gets them."""
        n = min(len(self.crops), DETAIL_SAMPLES)
        positions = np.linspace(0, len(self.crops) - 1, n).astype(np.int64)
        images = self.crops[Draws(0, 0, positions)].images.flatten(0, 1)
        return detail_range(list(images.permute(0, 2, 3, 1).contiguous().numpy()))

    def _manipulations(self) -> list[str]:
        """All that it was trained on, forgeries made while loading by their own names."""
        forge = self.preset.augment.forge
        made = sorted(forge.forgeries) if forge.share else []
        return list(dict.fromkeys([n for n in self.rows.domains[1:] if n != FORGED] + made))

    # --- what is told and kept -----------------------------------------------------------

    def _tell(self, kind: str, **content: Any) -> None:
        if self.is_main:
            self.on_event({"kind": kind, **content})

    def _log(self, event: Event, timing: Event) -> None:
        """Into metrics.jsonl, what the clock says into timing.jsonl, and both to who watches."""
        if self.is_main:
            try:
                self.metrics_bytes += self.logs.metrics.write(json_line(event).encode())
                self.logs.timing.write(json_line({"step": event["step"], **timing}).encode())
            except OSError as error:
                raise cannot_write(self.out / "metrics.jsonl", error) from error
        best = {"best": self.best} if event["kind"] == "val" else {}
        self._tell(**event, **best, n_steps=self.n_steps, timing=timing)

    def _anywhere(self, flag: object) -> bool:
        """Whether any process has it, so that all of them do the same next."""
        if self.n_ranks == 1:
            return bool(flag)
        here = torch.tensor(float(bool(flag)), device=self.accelerator.device)
        return bool(self.accelerator.reduce(here, "sum") > 0)

    def _diverged(self, sample_ids: Sequence[str], value: float) -> DfdetectError:
        samples = f" on samples {', '.join(sample_ids[:4])}" if sample_ids else " after the step"
        found = f"the loss is {value}{samples}"
        if math.isfinite(value):  # here, but all processes stop together
            found = "the loss of another process is not finite"
        kept = f"; the last good checkpoint is {self.out / FILE_NAME}" if self.best else ""
        return DfdetectError(
            f"training diverged at step {self.step + bool(sample_ids)}: {found}{kept}",
            "lower --set optimizer.lr, or set optimizer.clip_norm=1",
            ExitCode.DIVERGED,
        )

    def _warn_if_inert(self, notes: Event) -> None:
        ratio = notes.get("reg_ratio")
        if ratio is not None and ratio < TINY_RATIO and not self.warned:
            self.warned = True
            message = (
                f"at step {self.step} the regulariser's gradient is {ratio:.1e} of the "
                "classification's: too weak to matter there"
            )
            self._tell("warning", message=message)

    def _save_state(self, unsaved_best: CheckpointInfo | None = None) -> None:
        """Errors: DfdetectError when the weights are not finite; the states before stay."""
        if not self.is_main:
            return
        if not all(torch.isfinite(p).all() for p in self.method.parameters()):
            raise self._diverged([], math.nan)
        scaler, on_gpu = self.accelerator.scaler, self.accelerator.device.type == "cuda"
        save_state(
            self.out,
            {
                "preset": self.preset.model_dump(mode="json"),
                "method": self.method.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state() if on_gpu else None,
                "step": self.step,
                "validated": self.validated,
                "best_key": self.best_key,
                "best": self.best,
                "best_info": unsaved_best.model_dump(mode="json") if unsaved_best else None,
                "metrics_bytes": self.metrics_bytes,
                "groups": self.groups,
                "n_threads": torch.get_num_threads(),
            },
        )
        self._tell("saved", step=self.step)

    def _restore(self, state: State) -> None:
        self.method.load_state_dict(state["method"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.step, self.validated = state["step"], state["validated"]
        self.best_key, self.best = state["best_key"], state["best"]
        self.metrics_bytes = state["metrics_bytes"]
        if state["groups"]:
            self._take_groups(state["groups"])
        if self.is_main and state["best_info"]:
            self._keep_best_of(CheckpointInfo.model_validate(state["best_info"]))
        if not self._is_unfinished():
            self._tell("note", message=f"{self.out}: this run is finished already")
        elif state["n_threads"] != torch.get_num_threads():
            message = (
                f"trained with {state['n_threads']} threads before, now with "
                f"{torch.get_num_threads()}: not bit-identical from here"
            )
            self._tell("warning", message=message)

    def _keep_best_of(self, info: CheckpointInfo) -> None:
        """Write the checkpoint that the restored state is, unless it was written already."""
        path = self.out / FILE_NAME
        try:
            written = read_info(path)
        except DfdetectError:  # missing, or damaged together with the run
            written = None
        if written is None or written.model_copy(update={"calibration": None}) != info:
            save_checkpoint(path, self._detector(), info)


_LOGS = ("metrics.jsonl", "timing.jsonl")


class _Logs(NamedTuple):
    """Open for appending, unbuffered: a line is in the file once it is written."""

    metrics: Any
    timing: Any


@contextmanager
def _logs(out: Path, is_main: bool) -> Iterator[_Logs | None]:
    """Errors: DfdetectError with ExitCode.ENVIRONMENT when a log cannot be written."""
    if not is_main:
        yield None
        return
    with ExitStack() as stack:
        try:
            files = [stack.enter_context((out / name).open("ab", buffering=0)) for name in _LOGS]
        except OSError as error:
            raise cannot_write(Path(error.filename), error) from error
        yield _Logs(*files)


def _accelerator(preset: Preset, device: str) -> Accelerator:
    """Errors: DfdetectError for one GPU by number where each of several processes has its own."""
    alone = processes().n == 1
    if ":" in device and not alone:
        raise DfdetectError(
            f"--device {device} with {processes().n} processes: each takes a GPU of its own",
            "leave --device out; CUDA_VISIBLE_DEVICES chooses among the GPUs",
        )
    # An earlier run here may have had another precision or device.
    AcceleratorState._reset_state(reset_partial_state=alone)
    if ":" in device:
        torch.cuda.set_device(device)  # accelerate takes the current one
    precision = {"fp32": "no"}.get(preset.precision, preset.precision)
    kind, options = method_options(preset)
    parallel = DistributedDataParallelKwargs(find_unused_parameters=kind.skips_parameters(options))
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision,
        kwargs_handlers=[parallel],
        # The parts of a batch are ours: a launcher's setting would only shrink the gradients.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise DfdetectError(
            f"accelerate is set up for {accelerator.distributed_type.value}, which cuts weights "
            "into pieces; perturbing them needs them whole",
            "use torchrun, or an accelerate configuration of plain data-parallel processes",
        )
    return accelerator


def _check_options(preset: Preset, device: str) -> None:
    """Errors: DfdetectError for options that the method does not know or that do not fit."""
    kind, options = method_options(preset)
    if preset.precision == "fp16" and device == "cpu":
        raise DfdetectError(
            f"preset {preset.name}: precision=fp16 needs a GPU", "use --set precision=bf16 or fp32"
        )
    if reason := kind.why_too_short(options, preset.epochs):
        raise DfdetectError(
            f"preset {preset.name}: epochs={preset.epochs} is too short: {reason}",
            "use more --set epochs",
        )
    if preset.accumulate == 1:
        return
    if reason := _why_not_accumulate(preset):
        raise DfdetectError(
            f"preset {preset.name}: accumulate={preset.accumulate} would change the method: "
            f"{reason}",
            "use a smaller --set batch_size, or more processes",
        )
    if preset.batch_size % preset.accumulate or preset.batch_size < 2 * preset.accumulate:
        raise DfdetectError(
            f"preset {preset.name}: batch_size={preset.batch_size} does not fall into "
            f"accumulate={preset.accumulate} equal parts of 2 samples or more",
            "choose another --set accumulate or batch_size",
        )


def _why_not_accumulate(preset: Preset) -> str:
    kind, options = method_options(preset)
    return kind.why_not_accumulate(options)


def _interruption(stopped: list[int], step: int, n_steps: int, out: Path) -> DfdetectError:
    return DfdetectError(
        f"stopped at step {step} of {n_steps}; the state is saved",
        f"continue with: dfdetect train --resume --out {out}",
        ExitCode.INTERRUPTED if stopped[:1] == [signal.SIGINT] else ExitCode.TERMINATED,
    )


def _mean_values(parts: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: sum(float(part[name]) for part in parts) / len(parts) for name in parts[0]}


def _teller(on_event: Callable[[Event], None], kind: str) -> Callable[[str], None]:
    return lambda message: on_event({"kind": kind, "message": message})


def _with_weights(preset: Preset, weights: str | None) -> Preset:
    if weights is None:
        return preset
    backbone = preset.backbone.model_copy(update={"weights": weights})
    return preset.model_copy(update={"backbone": backbone})


def _paired(
    preset: Preset, rows: TrainingData, domains: Sequence[str], forging: Forging | None
) -> PairedCrops:
    return PairedCrops(
        rows.train, preset.qualities, domains, preset.image_size, preset.augment, preset.seed,
        forging,
    )  # fmt: skip


def _unforged(crop: np.ndarray, *_: object) -> np.ndarray:
    return crop


def _train_decoders(
    preset: Preset, rows: TrainingData, out: Path, resume: bool, note: Callable[[str], None],
    go_on: Callable[[], None],
) -> None:  # fmt: skip
    """Into the run's folder; what a run that is resumed has trained before stays."""
    path, n_steps = out / DECODERS, preset.augment.forge.decoder_steps
    if resume and path.exists():
        return

    def told(n_done: int, n_total: int) -> None:
        if n_done % n_steps == 0:
            note(f"trained decoder {n_done // n_steps} of {n_total // n_steps}, to forge with")
            go_on()

    with in_its_folder(out):
        store_decoders(real_faces(rows), path, preset.seed, n_steps, told)


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
