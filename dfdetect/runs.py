"""A run's folder: what it holds, who may go on with it, and the states it goes on from.

    RUN/preset.yaml (resolved)  run.json  metrics.jsonl  timing.jsonl  detector.safetensors
    RUN/resume/state-00001200.pt  RUN/decoders.safetensors (where it trained some to forge with)

A state is everything that the next step depends on. It carries a hash of itself, and the state
before it is kept, so that damage to the newest costs some steps and never the run. metrics.jsonl
holds nothing that depends on the clock: a run that was killed and resumed ends with the same bytes.
Of several processes its steps tell rank 0's share of the batch, its validations all of val.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
import yaml
from torch import Tensor

from dfdetect.checkpoint import versions
from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.files import cannot_write, read_json, sweep_unfinished, write_json, write_whole
from dfdetect.presets import Preset, check_preset
from dfdetect.training_data import TrainingData

STATE_FORMAT = 1
KEPT_STATES = 2
_MAGIC = b"dfdetect training state\n"


class State(TypedDict):
    """Everything that the next step depends on. `method`, `average` and so on are state_dicts;
    `validated` is the step of the last validation, `best_info` the CheckpointInfo of a best
    checkpoint that is written right after this state."""

    preset: dict[str, Any]
    method: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None
    rng: Tensor
    cuda_rng: Tensor | None
    step: int
    validated: int
    best_key: tuple[float, float] | None
    best: dict[str, Any]
    best_info: dict[str, Any] | None
    metrics_bytes: int
    groups: dict[str, int] | None  # video -> domain, where domains are found while training
    n_threads: int


class StoredRun(NamedTuple):
    """Preset and data folders of a run, for `--resume` without naming them again."""

    preset: Preset
    data: list[Path]


def stored_run(out: Path) -> StoredRun:
    """Errors: DfdetectError if there is no run in `out`."""
    try:
        content = yaml.safe_load((out / "preset.yaml").read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DfdetectError(
            f"{out}: no run to resume there", "start one with --preset and --data"
        ) from error
    if not isinstance(content, dict):
        raise DfdetectError(f"{out / 'preset.yaml'}: damaged", "restore it, or use another --out")
    data = [Path(folder) for folder in _about(out)["data"]]
    return StoredRun(check_preset(content, str(out / "preset.yaml")), data)


def begin_run(
    out: Path,
    preset: Preset,
    data: Sequence[Path],
    rows: TrainingData,
    n_processes: int,
    allow_audit_fail: bool,
) -> None:
    """Note what the run is, once everything it needs is there; run.json comes last.

    What a killed run had begun to write is removed.
    """
    sweep_unfinished(out)
    content = yaml.safe_dump(preset.model_dump(mode="json"), sort_keys=False)
    write_whole(out / "preset.yaml", content)
    write_json(
        out / "run.json",
        {
            "data": [str(folder.resolve()) for folder in data],
            **_identity(rows),
            "n_processes": n_processes,
            "versions": dict(versions()),
            "audit_fail_allowed": allow_audit_fail,
            "notes": rows.notes,
        },
    )


def audit_fail_accepted(out: Path) -> bool:
    """Whether the run in `out` was begun with a FAIL of the audit accepted."""
    return (out / "run.json").exists() and bool(_about(out).get("audit_fail_allowed"))


def refuse_other_run(
    out: Path, preset: Preset, rows: TrainingData, n_processes: int, resume: bool
) -> list[str]:
    """What is different from when the run began and may be, in words.

    Errors: DfdetectError if `out` holds a run that this is not, or lacks one to resume.
    """
    started = (out / "run.json").exists()
    if started and not resume:
        raise DfdetectError(
            f"{out}: holds a run already", "continue it with --resume, or choose another --out"
        )
    if resume and not started:
        raise DfdetectError(f"{out}: no run to resume there", "leave --resume out to start one")
    if not started and (out / "manifest").exists():
        raise DfdetectError(f"{out}: holds prepared data", "choose another --out for the run")
    if not started:
        return []
    refuse_other_preset(out, preset)
    stored = _about(out)
    for name, now in _identity(rows).items():
        if (then := stored.get(name, now)) != now:
            raise DfdetectError(
                f"{out}: the run began on data of {name} {then}, these folders hold {now}",
                "resume on the data it began with",
            )
    if stored["n_processes"] != n_processes:
        raise DfdetectError(
            f"{out}: the run began with {stored['n_processes']} processes, now there are "
            f"{n_processes}: an epoch would have other batches",
            "resume with as many processes as before",
        )
    return [
        f"begun with {name} {then}, resumed with {now}: not bit-identical from here"
        for name, now in versions().items()
        if (then := stored["versions"].get(name)) != now
    ]


def _about(out: Path) -> dict[str, Any]:
    """run.json. Errors: DfdetectError if it was damaged."""
    about = read_json(out / "run.json")
    needed = {"data", "fingerprint", "n_processes", "versions"}
    if not isinstance(about, dict) or not needed <= about.keys():
        raise DfdetectError(f"{out / 'run.json'}: damaged", "restore it, or use another --out")
    return about


def _identity(rows: TrainingData) -> dict[str, Any]:
    """What tells data apart that a run may not change between: its rows, the order of the classes
    that a method learns, and how its crops were cut."""
    return {
        "fingerprint": rows.fingerprint,
        "classes": rows.domains,
        "crop": rows.crop.model_dump(mode="json"),
    }


def refuse_other_preset(out: Path, preset: Preset) -> None:
    """Errors: DfdetectError with both values if the run in `out` was begun with another preset."""
    before = stored_run(out).preset
    if before != preset:
        then, now = (leaves(p.model_dump(mode="json")) for p in (before, preset))
        key = next(k for k in (*then, *now) if then.get(k) != now.get(k))
        raise DfdetectError(
            f"{out}: the run has {key} = {then.get(key)}, now asked for {now.get(key)}",
            "resume with the same options (or with none), or choose another --out",
        )


def save_state(out: Path, state: State) -> None:
    """Write `state` of step state["step"] whole, then drop all but the newest few.

    Errors: DfdetectError with ExitCode.ENVIRONMENT if the disk is full or not writable, or the run
    folder is gone; the states before stay.
    """
    buffer = io.BytesIO()
    torch.save({"format": STATE_FORMAT, **state}, buffer)
    content = buffer.getbuffer()
    path = out / "resume" / f"state-{state['step']:08d}.pt"
    with in_its_folder(out):
        with suppress(FileNotFoundError):  # told of below
            path.parent.mkdir(exist_ok=True)
        write_whole(path, _MAGIC, hashlib.sha256(content).digest(), content, make_folder=False)
    _drop_oldest(out)


@contextmanager
def in_its_folder(out: Path) -> Iterator[None]:
    """Writes into a run that has begun, whose folder must not be made again if it is gone.

    Errors: DfdetectError with ExitCode.ENVIRONMENT if it was removed, moved or emptied.
    """
    try:
        if (out / "run.json").exists():
            yield
            return
    except DfdetectError:
        if (out / "run.json").exists():
            raise
    raise DfdetectError(
        f"{out}: the run's folder was removed or emptied while it trained",
        "start again with another --out",
        ExitCode.ENVIRONMENT,
    )


def load_state(out: Path, preset: Preset, on_warning: Callable[[str], None]) -> State | None:
    """The newest state that is whole, or None if the run had not come as far as saving one.

    Damaged states are named by `on_warning` and passed over.

    Errors: DfdetectError with ExitCode.ENVIRONMENT, naming the newest and what is wrong with it,
    if there are states and all are damaged.
    """
    damages: list[str] = []
    for path in _states(out):
        try:
            state = _read_state(path, preset)
        except _Damaged as damage:
            damages.append(f"{path}: {damage}")
            continue
        for damage in damages:
            on_warning(f"{damage}; going on from the state before it")
        return state
    if damages:
        raise DfdetectError(
            f"{damages[0]}, and no state before it is whole",
            "start again with another --out; the best checkpoint so far can still be used",
            ExitCode.ENVIRONMENT,
        )
    return None


def forget_after(out: Path, state: State | None) -> None:
    """Make `out` what it was when `state` was saved: what comes after will come again."""
    step = state["step"] if state else -1
    sweep_unfinished(out / "resume")
    sweep_unfinished(out)
    for path in _states(out):
        if int(path.stem.removeprefix("state-")) > step:  # damaged ones
            path.unlink()
    _drop_oldest(out)  # a run may have been killed between saving one and dropping another
    log = out / "metrics.jsonl"
    if log.exists():
        try:
            with log.open("r+b") as file:
                file.truncate(
                    min(state["metrics_bytes"] if state else 0, file.seek(0, io.SEEK_END))
                )
        except OSError as error:
            raise cannot_write(log, error) from error


def logged(out: Path, name: str) -> list[float]:
    """Every value of the note `name` in the run's metrics.jsonl, in the order of steps."""
    with (out / "metrics.jsonl").open() as lines:
        values = [json.loads(line).get(name) for line in lines]
    return [value for value in values if value is not None]


def json_line(event: dict[str, Any]) -> str:
    """One line of JSON; NaN and infinity as null: they are not JSON."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(event), allow_nan=False) + "\n"


class _Damaged(Exception):
    """Why a state cannot be gone on from."""


def _states(out: Path) -> list[Path]:
    """Newest first."""
    return sorted((out / "resume").glob("state-*.pt"), reverse=True)


def _drop_oldest(out: Path) -> None:
    """Keep the newest few."""
    for old in _states(out)[KEPT_STATES:]:
        with suppress(OSError):
            old.unlink()


def _read_state(path: Path, preset: Preset) -> State:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _Damaged(f"cannot be read ({error.strerror})") from error
    head, rest = len(_MAGIC), len(_MAGIC) + 32
    if not content.startswith(_MAGIC):
        raise _Damaged("not a training state of dfdetect")
    if hashlib.sha256(content[rest:]).digest() != content[head:rest]:
        raise _Damaged(f"damaged ({len(content)} bytes, its hash does not fit)")
    try:  # weights_only: a file with code in it is refused, not run
        state = torch.load(io.BytesIO(content[rest:]), map_location="cpu", weights_only=True)
        written_by = state.pop("format")
        lacks = State.__required_keys__ - state.keys()
    except Exception as error:  # torch raises many kinds
        cause = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise _Damaged(f"not a training state ({cause})") from error
    if written_by != STATE_FORMAT:
        raise _Damaged(f"has format {written_by}, this dfdetect reads {STATE_FORMAT}")
    if lacks:
        raise _Damaged(f"lacks {', '.join(sorted(lacks))}")
    if not _began_with(state, preset):
        raise _Damaged("belongs to another run")
    tensors = [*state["method"].values(), *(state["average"] or {}).values()]
    if not all(torch.isfinite(t).all() for t in tensors if t.is_floating_point()):
        raise _Damaged("holds weights that are not finite")
    return state


def _began_with(state: State, preset: Preset) -> bool:
    """Also where the state was saved before the preset had all its options of today."""
    try:
        return check_preset(state["preset"], "a state") == preset
    except DfdetectError:
        return False


def leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{a: {b: 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= (
            leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
