"""Prepared folders -> what a run trains and validates on, or why it cannot."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfdetect.audit import LEAKS, Finding, audit
from dfdetect.data import FORGED, at_qualities, check_crops
from dfdetect.errors import DfdetectError, unknown
from dfdetect.faces import CropRecipe
from dfdetect.files import read_json
from dfdetect.manifest import (
    Sample,
    fingerprint,
    identity_leaks,
    read_samples,
    read_table,
    refuse_leaks,
)
from dfdetect.presets import Preset
from dfdetect.quality import to_prepare


class TrainingData(NamedTuple):
    """Rows of the train and val splits at the preset's qualities, and what they have in common.

    With `augment.forge` the train rows are the raw ones, and `landmarks` those of each real to
    train on by sample_id, float32 [5,2], px of the crop.
    """

    train: list[Sample]
    val: list[Sample]
    domains: list[str]
    crop: CropRecipe
    fingerprint: str
    notes: list[str]
    no_calls: str  # why a model validated on this may make none, after accepted leaks; else empty
    landmarks: dict[str, np.ndarray]

    def counts(self) -> dict[str, Any]:
        """Videos and samples (each at all qualities) by split and class."""
        count = {}
        for name, rows in (("train", self.train), ("val", self.val)):
            for label, word in ((0, "real"), (1, "fake")):
                of_class = [r for r in rows if r.label == label]
                count[f"{name}_{word}_videos"] = len({r.video_id for r in of_class})
                count[f"{name}_{word}_samples"] = len({r.sample_id for r in of_class})
        return count


def load_training_data(
    preset: Preset, data: Sequence[Path], allow_audit_fail: bool = False
) -> TrainingData:
    """Train and val rows of all folders.

    Errors: DfdetectError for a folder named twice, different crop recipes, a missing quality, one
    class only (in val at each quality; for training reals are enough where `augment.forge` makes
    fakes of them), crops that are missing or empty, an identity in train and val (a note instead,
    where prepare was told to accept that), a FAIL of the audit's short form (a note instead, with
    `allow_audit_fail`).
    """
    if len({folder.resolve() for folder in data}) < len(data):
        names = ", ".join(map(str, data))
        raise DfdetectError(f"--data {names}: one folder twice", "name each once")
    crops, rows, notes, strict_pairs, no_calls = {}, [], [], [], ""
    forges, landmarks = preset.augment.forge.share > 0, {}
    for number, folder in enumerate(data):
        prepared = read_json(folder / "prepare.json") if (folder / "prepare.json").exists() else {}
        prefix = f"{number}:" if len(data) > 1 else ""
        found = read_samples(folder, prefix=prefix)
        crops[folder] = CropRecipe.model_validate(prepared.get("recipe", {}).get("crop", {}))
        wanted = at_qualities(found, preset.qualities)
        # Of forgeries and their reals all qualities are made of raw.
        only_raw = forges and not any(s.split == "val" for s in found)
        needed = {"raw"} if only_raw else set(preset.qualities)
        missing = needed - {s.quality for s in wanted}
        if missing:
            raise DfdetectError(
                f"{folder}: holds no {', '.join(sorted(missing))} crops, "
                f"which preset {preset.name} needs",
                f"prepare it with --qualities {to_prepare(preset.qualities)}, "
                "or --set qualities=...",
            )
        kept = rows_used(found, preset)
        if forges:
            _refuse_without_raw(found, kept, preset.augment.forge.only, folder)
            landmarks |= _landmarks(folder, crops[folder], prefix)
        # Of the test split only the names are looked at: nobody in it may be trained on.
        pairs = {(tuple(f"{s.dataset}/{i}" for i in s.identities), s.split) for s in found}
        if prepared.get("identity_overlap_allowed") or allow_audit_fail:
            if leaks := identity_leaks(pairs):
                if any({"train", "val"} <= splits for splits in leaks.values()):
                    no_calls = "people of its validation are in its training too"
                notes.append(
                    f"identities of {folder.resolve().name} in more than one split: {len(leaks)}; "
                    "its figures say nothing about people it has not seen"
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
    rows = _without(rows, preset.leave_out)
    train_rows, val_rows = ([s for s in rows if s.split == split] for split in ("train", "val"))
    at_each = {q: [s for s in val_rows if s.quality == q] for q in preset.qualities}
    parts = {"train split": train_rows, "val split": val_rows}
    parts |= {f"val split at {quality}": of_it for quality, of_it in at_each.items()}
    for name, part in parts.items():
        labels = {s.label for s in part}
        if labels != {0, 1} and not (forges and part is train_rows and 0 in labels):
            has = (
                "no crops"
                if not labels
                else "only " + ("fake" if 1 in labels else "real") + " crops"
            )
            raise DfdetectError(
                f"{', '.join(map(str, data))}: the {name} has {has}",
                "both classes are needed; add videos or give other --splits to prepare",
            )
    check_crops([*train_rows, *val_rows])
    failed = _audited(data, allow_audit_fail, but=("classes",) if forges else ())
    notes += [f"accepted although the audit says FAIL: {f.name}: {f.message}" for f in failed]
    if not no_calls and (leaked := [f.name for f in failed if f.name in LEAKS]):
        no_calls = f"it was trained although the audit found leaks ({', '.join(leaked)})"
    domains = ["real", *sorted({s.manipulation for s in train_rows if s.label})]
    if forges:
        domains = [*(name for name in domains if name != FORGED), FORGED]
    return TrainingData(
        train_rows, val_rows, domains, first[1], fingerprint(rows), notes, no_calls, landmarks
    )


def rows_used(found: Sequence[Sample], preset: Preset) -> list[Sample]:
    """The rows of a folder that a preset trains and validates on, apart from what it leaves out."""
    forge = preset.augment.forge
    rows = [s for s in at_qualities(found, preset.qualities) if s.split in ("train", "val")]
    if not forge.share:
        return rows
    raw = [s for s in found if s.split == "train" and s.quality == "raw"]
    return [s for s in rows if s.split == "val"] + [s for s in raw if not (forge.only and s.label)]


def _refuse_without_raw(
    found: Sequence[Sample], used: Sequence[Sample], only_reals: bool, folder: Path
) -> None:
    """Errors: DfdetectError for samples to train on that have no raw crop among those `used`."""
    wanted = {s.sample_id for s in found if s.split == "train" and not (only_reals and s.label)}
    if wanted - {s.sample_id for s in used if s.split == "train"}:
        raise DfdetectError(
            f"{folder}: not all samples have raw crops, of which augment.forge makes every quality",
            "prepare it with raw among its --qualities",
        )


def _landmarks(folder: Path, crop: CropRecipe, prefix: str) -> dict[str, np.ndarray]:
    """Of the reals to train on, by sample_id."""
    names = ["sample_id", "landmarks", "label", "split", "quality"]
    columns = read_table(folder, names).to_pydict().values()
    return {
        prefix + sample_id: crop.landmarks_in_crop(landmarks).astype(np.float32)
        for sample_id, landmarks, label, split, quality in zip(*columns, strict=True)
        if not label and split == "train" and quality == "raw"
    }


def _without(rows: list[Sample], left_out: Sequence[str]) -> list[Sample]:
    """Rows that are no fake of a manipulation `left_out`, by name or pattern.

    Errors: DfdetectError for one that is not there.
    """
    there = {row.manipulation for row in rows if row.label}
    for pattern in left_out:
        if not any(fnmatchcase(name, pattern) for name in there):
            raise unknown("manipulation in leave_out:", pattern, there)
    dropped = {name for name in there if any(fnmatchcase(name, p) for p in left_out)}
    return [row for row in rows if not row.label or row.manipulation not in dropped]


def _audited(data: Sequence[Path], allow_fail: bool, but: Sequence[str] = ()) -> list[Finding]:
    """The FAILs of the audit's short form, which looks at manifests only, where they are accepted;
    without the checks named in `but`.

    Errors: DfdetectError naming them where they are not.
    """
    found = audit(data, look_at_crops=False)
    failed = [f for f in found if f.status == "FAIL" and f.name not in but]
    if failed and not allow_fail:
        told = "; ".join(f"{finding.name}: {finding.message.rstrip('.')}" for finding in failed)
        raise DfdetectError(
            f"{', '.join(map(str, data))}: the audit says FAIL: {told}",
            "`dfdetect audit` lists what is concerned; accept it with --allow-audit-fail",
        )
    return failed
