"""A prepared folder -> lists that others read: DeepfakeBench's JSON, or CSV with a line per crop.

Paths are relative to the folder. `prepare` reads both back: the JSON with the same videos, labels,
people, splits and qualities; the CSV as a table of pictures.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfdetect.errors import DfdetectError, cell
from dfdetect.manifest import SPLITS, Sample, read_samples

LABEL_NAMES = {
    ("FaceForensics++", "real"): "FF-real",
    ("FaceForensics++", "Deepfakes"): "FF-DF",
    ("FaceForensics++", "Face2Face"): "FF-F2F",
    ("FaceForensics++", "FaceSwap"): "FF-FS",
    ("FaceForensics++", "NeuralTextures"): "FF-NT",
    ("FaceForensics++", "FaceShifter"): "FF-FH",
    ("DeepFakeDetection", "real"): "DFD_real",
    ("DeepFakeDetection", "DeepFakeDetection"): "DFD_fake",
    ("Celeb-DF-v2", "real"): "CelebDFv2_real",
    ("Celeb-DF-v2", "Celeb-synthesis"): "CelebDFv2_fake",
    ("DFDC", "real"): "DFDC_Real",
    ("DFDC", "DFDC"): "DFDC_Fake",
    ("DFDCP", "real"): "DFDCP_Real",
    ("DFDCP", "method_A"): "DFDCP_FakeA",
    ("DFDCP", "method_B"): "DFDCP_FakeB",
}
"""(dataset, manipulation): how DeepfakeBench calls it. All others end in _real or _fake."""
WITH_QUALITY = ("FaceForensics++", "DeepFakeDetection")
"""Datasets that have a level of qualities there even if there is only one."""


def as_deepfakebench(data: Path) -> dict[str, Any]:
    """{dataset: {label name: {split: {[quality:] {video: {label, frames, dfdetect}}}}}}.

    The level of qualities is there for FaceForensics++ and where there are several. `dfdetect`
    holds what DeepfakeBench has no place for, and ignores: ids, people, manipulation.

    Errors: DfdetectError if `data` is not a prepared folder, or two videos have one name.
    """
    datasets: dict[str, list[Sample]] = defaultdict(list)
    for sample in read_samples(data):
        datasets[sample.dataset].append(sample)
    return {name: _labels(data, samples) for name, samples in sorted(datasets.items())}


def _labels(data: Path, samples: list[Sample]) -> dict[str, Any]:
    """One dataset: every label name has every split, and every split every quality."""
    qualities = sorted({sample.quality for sample in samples})
    level = len(qualities) > 1 or samples[0].dataset in WITH_QUALITY or qualities != ["raw"]
    labels: dict[str, Any] = {}
    for sample in samples:
        label_name, video = _label_name(sample), _video_name(sample)
        splits = labels.setdefault(
            label_name, {s: {q: {} for q in qualities} if level else {} for s in SPLITS}
        )
        videos = splits[sample.split][sample.quality] if level else splits[sample.split]
        entry = videos.setdefault(video, _entry(sample, label_name))
        if (other := entry["dfdetect"]["video_id"]) != sample.video_id:
            raise DfdetectError(
                f"{data}: {sample.video_id} and {other} would have one name",
                "prepare them into folders of their own",
            )
        entry["frames"].append(sample.path.relative_to(data).as_posix())
    return labels


def _entry(sample: Sample, label_name: str) -> dict[str, Any]:
    own = {
        "video_id": sample.video_id,
        "dataset": sample.dataset,
        "manipulation": sample.manipulation,
        "identities": list(sample.identities),
    }
    return {"label": label_name, "frames": [], "dfdetect": own}


def _label_name(sample: Sample) -> str:
    """Whoever reads it back takes the label from how the name ends."""
    known = LABEL_NAMES.get((sample.dataset, sample.manipulation))
    fallback = f"{sample.manipulation}_fake" if sample.label else "real"
    return known or f"{sample.dataset}_{fallback}"


def _video_name(sample: Sample) -> str:
    """The video's id without the dataset and manipulation that stand above it already."""
    name = sample.video_id.removeprefix(f"{sample.dataset}/")
    return name.removeprefix(f"{sample.manipulation}/") or name


COLUMNS = (
    "path", "label", "manipulation", "identity", "split", "dataset", "quality", "video_id",
    "track_id",
)  # fmt: skip


def as_csv(data: Path) -> str:
    """A line per crop with a header; people are joined by `;`, as a table that prepare reads.

    A name that a spreadsheet would take for a formula gets an apostrophe before it, wherever it
    stands, so that it stays one name.

    Errors: DfdetectError if `data` is not a prepared folder.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for sample in read_samples(data):
        writer.writerow(
            (
                sample.path.relative_to(data).as_posix(),
                "fake" if sample.label else "real",
                cell(sample.manipulation),
                ";".join(map(cell, sample.identities)),
                sample.split,
                cell(sample.dataset),
                sample.quality,
                cell(sample.video_id),
                sample.track_id,
            )
        )
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Path], Any]] = {"deepfakebench": as_deepfakebench, "csv": as_csv}
