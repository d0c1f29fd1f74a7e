"""A DeepfakeBench list (Yan et al., NeurIPS 2023): one JSON that names the face crops of a dataset.

    {dataset: {label name: {split: {[quality:] {video: {"label": label name, "frames": [paths]}}}}}}

Paths are relative to `--root`, else to the JSON's folder, and may have backslashes. Crops are taken
as they are. The released lists are not all fit to train on: Celeb-DF's train holds its test videos,
DeepFakeDetection's and UADFV's reals are in every split, DFDC's val is one overwritten entry.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dfdetect.datasets.base import DatasetOptions, Listing, in_frame_order, stays_inside
from dfdetect.errors import DfdetectError
from dfdetect.files import read_json
from dfdetect.manifest import SPLITS, SourceVideo

MANIPULATIONS = {
    "FF-DF": "Deepfakes",
    "FF-F2F": "Face2Face",
    "FF-FS": "FaceSwap",
    "FF-NT": "NeuralTextures",
    "FF-FH": "FaceShifter",
    "DFD_fake": "DeepFakeDetection",
    "CelebDFv2_fake": "Celeb-synthesis",
    "DFDC_Fake": "DFDC",
    "DFDCP_FakeA": "method_A",
    "DFDCP_FakeB": "method_B",
}
"""Label name: manipulation, as our own dataset files call it."""
BEST_FIRST = ("raw", "c23", "c40")
HOME = "github.com/SCLBD/DeepfakeBench"
EXPECTED = (
    'expected {dataset: {label: {train|val|test: {video: {"label": label, "frames": [paths]}}}}}, '
    "with a quality level above the videos or without"
)


def looks_right(source: Path) -> bool:
    """A .json that opens with three levels, the third of them a split."""
    if source.suffix.lower() != ".json" or not source.is_file():
        return False
    try:
        with source.open("rb") as file:
            start = file.read(4096).decode("utf-8", "replace")
    except OSError:
        return False
    name = r'\s*\{\s*"[^"]*"\s*:'
    return re.match(rf'{name}{name}\s*\{{\s*"({"|".join(SPLITS)})"\s*:', start) is not None


class Entry(NamedTuple):
    """One video of the list at one quality and in one split."""

    dataset: str
    label_name: str
    split: str
    quality: str
    video: str
    facts: Mapping[str, Any]


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if it is no such list, a path leaves the root, a video is in several
    splits, or none of the frames is on the disk."""
    root = options.root or source.parent
    notes: list[str] = []
    by_video: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    for entry in _entries(source, read_json(source), notes):
        by_video[entry.dataset, entry.label_name, entry.video].append(entry)
    again = options.identity_disjoint or options.splits is not None
    videos = []
    found: dict[str, int] = {}
    missing: dict[str, list[str]] = {}
    n_both = 0
    for (_, label_name, name), versions in by_video.items():
        splits = {entry.split for entry in versions}
        if len(splits) == 1:
            split = next(iter(splits))
        elif splits == {"val", "test"} and _same_frames(versions):
            split, n_both = "test", n_both + 1
        elif again:
            split = None
        else:
            raise _in_several_splits(source, versions[0], splits)
        crops, absent = _crops(source, root, versions)
        if absent:
            missing.setdefault(label_name, []).extend(absent if crops else [name])
        if crops:
            found[label_name] = found.get(label_name, 0) + 1
            videos.append(_video(root, versions[0], crops, split))
    if not videos:
        raise DfdetectError(
            f"{source}: none of its {len(by_video)} videos has a frame below {root}",
            "name the folder that its paths start from with --root",
        )
    if n_both:
        notes.append(f"{n_both} videos are val and test at once: they are test, and val lacks them")
    return Listing(videos, EXPECTED, HOME, found, missing, notes)


# --- the nesting -----------------------------------------------------------------------------


def _entries(source: Path, content: Any, notes: list[str]) -> Iterator[Entry]:
    for dataset, labels in _table(source, content, "it").items():
        for label_name, splits in _table(source, labels, dataset).items():
            for split, inner in _table(source, splits, label_name).items():
                where = f"{dataset}/{label_name}/{split}"
                if split not in SPLITS:
                    raise DfdetectError(
                        f"{source}: {where} is no split", f"use {', '.join(SPLITS)}; {EXPECTED}"
                    )
                if _is_video(inner):
                    notes.append(f"{where} is one overwritten entry, a known defect; left out")
                    continue
                for name, value in _table(source, inner, where).items():
                    if _is_video(value):
                        yield _entry(source, dataset, label_name, split, "raw", name, value)
                        continue
                    for video, facts in _table(source, value, f"{where}/{name}").items():
                        if not _is_video(facts):
                            raise DfdetectError(f"{source}: {where}/{name}/{video}", EXPECTED)
                        yield _entry(source, dataset, label_name, split, name, video, facts)


def _entry(
    source: Path,
    dataset: str,
    label_name: str,
    split: str,
    quality: str,
    video: str,
    facts: Mapping[str, Any],
) -> Entry:
    if facts.get("label", label_name) != label_name:
        raise DfdetectError(
            f"{source}: {label_name}/{video} has label {facts['label']!r}", "make the two agree"
        )
    quality = "raw" if quality == "c0" else quality
    names = (dataset, label_name, split, quality, video)
    return Entry(*(name.encode("utf-8", "backslashreplace").decode() for name in names), facts)


def _table(source: Path, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DfdetectError(f"{source}: {where} holds no table, not a DeepfakeBench list", EXPECTED)
    return value


def _is_video(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("frames"), list)


def _same_frames(versions: Sequence[Entry]) -> bool:
    """Whether val and test name the same frames of a video at each quality."""
    frames = defaultdict(set)
    for entry in versions:
        frames[entry.quality].add(tuple(sorted(map(str, entry.facts["frames"]))))
    return all(len(lists) == 1 for lists in frames.values())


def _in_several_splits(source: Path, entry: Entry, splits: set[str]) -> DfdetectError:
    listed = " and ".join(split for split in SPLITS if split in splits)
    return DfdetectError(
        f"{source}: {entry.label_name}/{entry.video} is in {listed}; the released lists have this "
        "defect for Celeb-DF (train holds test), DeepFakeDetection, UADFV and DeeperForensics",
        "read the dataset's own tree instead, or deal people anew with --identity-disjoint",
    )


# --- one video -------------------------------------------------------------------------------


def _crops(
    source: Path, root: Path, versions: Sequence[Entry]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """{quality: frames below `root`}, best quality first, and the frames that are not there."""
    crops: dict[str, tuple[str, ...]] = {}
    absent: list[str] = []
    for entry in sorted(versions, key=lambda e: _rank(e.quality)):
        if entry.quality in crops:  # val repeats test
            continue
        names = [_relative(source, root, entry, frame) for frame in entry.facts["frames"]]
        present = [name for name in names if (root / name).is_file()]
        absent += sorted(set(names) - set(present))
        if present:
            crops[entry.quality] = in_frame_order(present)
    return crops, absent


def _rank(quality: str) -> tuple[int, str]:
    return BEST_FIRST.index(quality) if quality in BEST_FIRST else len(BEST_FIRST), quality


def _relative(source: Path, root: Path, entry: Entry, frame: Any) -> str:
    name = frame.replace("\\", "/") if isinstance(frame, str) else ""
    if not stays_inside(name) or re.match(r"[A-Za-z]:", name):
        raise DfdetectError(
            f"{source}: {entry.label_name}/{entry.video} names {frame!r}, outside {root}",
            "use paths relative to --root, or to the list's folder",
        )
    return name


def _video(
    root: Path, entry: Entry, crops: Mapping[str, tuple[str, ...]], split: str | None
) -> SourceVideo:
    """What our own export wrote beside the frames restores ids, people and manipulation."""
    own = entry.facts.get("dfdetect")
    own = own if isinstance(own, dict) else {}
    label = label_of(entry.label_name)
    manipulation = MANIPULATIONS.get(entry.label_name, entry.label_name) if label else "real"
    dataset = str(own.get("dataset") or entry.dataset)
    people = own.get("identities")
    identities = [str(i) for i in people] if isinstance(people, list) else []
    return SourceVideo(
        path=root,
        video_id=str(own.get("video_id") or f"{dataset}/{entry.label_name}/{entry.video}"),
        label=label,
        dataset=dataset,
        manipulation=str(own.get("manipulation") or manipulation),
        identities=tuple(identities) or _people(entry),
        split=split,
        source=str(Path(next(iter(crops.values()))[0]).parent),
        quality=next(iter(crops)),
        crops=dict(crops),
    )


def label_of(label_name: str) -> int:
    """0 for FF-real, DFD_real, DFDC_Real ...; 1 for FF-DF, DFDCP_FakeA, simswap_Fake ..."""
    name = label_name.lower()
    return int(re.search(r"fake[a-z]?$", name) is not None or "real" not in name)


def _people(entry: Entry) -> tuple[str, ...]:
    """(target, source) where the name shows them: 000_003, id0_id1_0000, 01_02__scene__ABC."""
    name = entry.video
    if re.fullmatch(r"\d{3}(_\d{3})?", name):
        return tuple(name.split("_"))
    if re.match(r"\d{2}(_\d{2})?__", name):
        return tuple(name.split("__")[0].split("_"))
    return tuple(re.findall(r"id\d+(?=_)", name)) or (f"{entry.dataset}/{name}",)
