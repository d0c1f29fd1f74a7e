"""FaceForensics++ (Rössler et al., ICCV 2019) with FaceShifter and DeepFakeDetection.

    original_sequences/youtube/<quality>/videos/TTT.mp4
    original_sequences/actors/<quality>/videos/<actor>__<scene>.mp4
    manipulated_sequences/<method>/<quality>/videos/TTT_SSS.mp4              target_source
    manipulated_sequences/DeepFakeDetection/<quality>/videos/<target>_<source>__<scene>__<id>.mp4
    manipulated_sequences/<method>/masks/videos/<stem>.mp4

`<quality>` is raw (older trees: c0), c23 or c40. A video is listed once, at the best quality that
the disk has of it, and its other qualities are `shipped`. `splits/{train,val,test}.json` are lists
of pairs; reals a, b and fakes a_b, b_a of a pair belong to its split. `conversion_dict.json` names
the YouTube video that each target was cut from.

A mask says which of several faces was manipulated. A fake has its target's frames (some methods
stop early), so a real takes the mask of its first fake that has one: both show the same person.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dfdetect.datasets.base import (
    DatasetOptions,
    Listing,
    entries,
    read_splits,
    set_apart,
    text_of,
)
from dfdetect.errors import DfdetectError
from dfdetect.files import read_json
from dfdetect.manifest import SPLITS, SourceVideo

FFPP, DFD = "FaceForensics++", "DeepFakeDetection"
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
PARTS = {
    "original_sequences/youtube": (FFPP, "real", r"\d{3}"),
    **{f"manipulated_sequences/{m}": (FFPP, m, r"\d{3}_\d{3}") for m in METHODS},
    "original_sequences/actors": (DFD, "real", r"\d+__.+"),
    f"manipulated_sequences/{DFD}": (DFD, DFD, r"\d+_\d+__.+"),
}
"""Folder: dataset, manipulation, and how the stems of its videos look."""
QUALITIES = {"raw": "raw", "c0": "raw", "c23": "c23", "c40": "c40"}
"""Folder: quality; the best comes first."""
CROSSINGS = (
    ("755", "756"), ("954", "955"),
    ("605", "606"), ("639", "640"), ("837", "838"), ("875", "876"), ("982", "983"),
)  # fmt: skip
"""Targets of one YouTube video that the official splits part: the first two pairs into train and
test, the others into train and val. Found with conversion_dict.json; used where it is absent."""
HOME = "github.com/ondyari/FaceForensics"
EXPECTED = (
    "expected original_sequences/{youtube|actors}/{raw|c23|c40}/videos/*.mp4 and "
    "manipulated_sequences/<method>/{raw|c23|c40}/videos/*.mp4"
)


def looks_right(source: Path) -> bool:
    official = ("original_sequences", "manipulated_sequences")
    return any((source / sub).is_dir() for sub in official)


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if the tree is not there, a split file is not a list of pairs, or a
    video on the disk is in no official split."""
    versions = {part: _versions(source / part) for part in PARTS}
    if not any(versions.values()):
        raise DfdetectError(
            f"{source}: not a FaceForensics++ tree", f"{EXPECTED}; get it from {HOME}"
        )
    split_files = options.splits or _split_files(source)
    splits = read_splits(split_files) if split_files else {}
    footage = _footage(source)
    videos, notes = [], []
    for part, files in versions.items():
        named = {stem: at for stem, at in files.items() if re.fullmatch(PARTS[part][2], stem)}
        if len(named) < len(files):
            first = min(files.keys() - named.keys())
            notes.append(f"{part}: {len(files) - len(named)} other names left out, as {first}.mp4")
        for stem, at in named.items():
            videos.append(_video(source, part, stem, at, splits, footage))
    videos = _with_masks(videos)
    unlisted = [v for v in videos if splits and v.split is None]
    if unlisted:
        raise DfdetectError(
            f"{source}: {len(unlisted)} videos are in no official split, "
            f"first {unlisted[0].video_id}",
            "complete the split files, or leave --splits out",
        )
    found = Counter(_part(v) for v in videos)
    notes += _quality_notes(videos)
    if found["original_sequences/actors"] + found[f"manipulated_sequences/{DFD}"]:
        videos, note = _without_official_split(videos, options)
        notes.append(note)
    homes = {v.identities[0]: v.split for v in videos if v.dataset == FFPP and v.split} | splits
    crossings = _crossings(videos, homes, footage)
    videos, more = _drop_crossings(videos, crossings, homes, options)
    missing = _missing(split_files, versions) if split_files else {}
    return Listing(videos, EXPECTED, HOME, found, missing, [*notes, *more])


def _video(
    source: Path,
    part: str,
    stem: str,
    at: Mapping[str, Path],
    splits: Mapping[str, str],
    footage: Mapping[str, str],
) -> SourceVideo:
    """One video that is on the disk `at` these qualities, best first."""
    dataset, manipulation, _ = PARTS[part]
    ids = tuple(stem.split("__")[0].split("_"))
    best = next(iter(at))
    relative = text_of(at[best].relative_to(source))
    mask = source / part / "masks" / "videos" / f"{stem}.mp4"
    split = "test" if dataset == DFD else splits.get(relative) or splits.get(ids[0])
    return SourceVideo(
        path=at[best],
        video_id=f"{dataset}/{manipulation}/{text_of(Path(stem))}",
        label=int(manipulation != "real"),
        dataset=dataset,
        manipulation=manipulation,
        identities=ids,
        split=split,
        source=relative,
        footage=footage.get(ids[0], "") if dataset == FFPP else "",
        quality=best,
        shipped={quality: path for quality, path in at.items() if quality != best},
        mask=mask if manipulation != "real" and mask.is_file() else None,
    )


def _with_masks(videos: Sequence[SourceVideo]) -> list[SourceVideo]:
    """FaceForensics++'s reals with the mask of the first fake of the same target that has one."""
    masks: dict[str, Path] = {}
    for video in videos:
        if video.dataset == FFPP and video.mask:
            masks.setdefault(video.identities[0], video.mask)
    return [
        replace(v, mask=masks.get(v.identities[0])) if v.dataset == FFPP and not v.label else v
        for v in videos
    ]


def _part(video: SourceVideo) -> str:
    return "/".join(Path(video.source).parts[:2])


def _versions(root: Path) -> dict[str, dict[str, Path]]:
    """{stem: {quality: path}}, best quality first, of the `videos` folders alone."""
    versions: dict[str, dict[str, Path]] = defaultdict(dict)
    for folder, quality in QUALITIES.items():
        for path in entries(root / folder / "videos"):
            if path.suffix == ".mp4":
                versions[path.stem].setdefault(quality, path)
    return dict(sorted(versions.items()))


def _split_files(source: Path) -> Path | None:
    """SOURCE/splits, SOURCE/dataset/splits or SOURCE itself, whichever holds the official files."""
    usual = (source / "splits", source / "dataset" / "splits", source)
    return next((c for c in usual if all((c / f"{s}.json").is_file() for s in SPLITS)), None)


def _missing(split_files: Path, versions: Mapping[str, Mapping]) -> dict[str, list[str]]:
    """Stems of the official pairs that the disk has at no quality, by part of the tree."""
    if not split_files.is_dir():
        return {}
    listed = [entry for split in SPLITS for entry in read_json(split_files / f"{split}.json")]
    pairs = [pair for pair in listed if isinstance(pair, list) and len(pair) == 2]
    reals = {str(i) for pair in pairs for i in pair}
    fakes = {f"{a}_{b}" for pair in pairs for a, b in (pair, reversed(pair))}
    missing = {}
    for part, (dataset, manipulation, _) in PARTS.items():
        if dataset == FFPP:
            names = reals if manipulation == "real" else fakes
            missing[part] = sorted(names - versions[part].keys())
    return {part: names for part, names in missing.items() if names}


def _quality_notes(videos: Sequence[SourceVideo]) -> list[str]:
    """A quality that only some parts have tells real from fake without looking at a face."""
    best: dict[str, Counter] = defaultdict(Counter)
    for video in videos:
        best[_part(video)][video.quality] += 1
    if len({quality for counts in best.values() for quality in counts}) < 2:
        return []
    shown = ", ".join(
        f"{part.split('/')[1]} {'+'.join(f'{n} {q}' for q, n in sorted(counts.items()))}"
        for part, counts in best.items()
    )
    return [f"the best quality on the disk differs: {shown}; compression may give labels away"]


def _without_official_split(
    videos: Sequence[SourceVideo], options: DatasetOptions
) -> tuple[list[SourceVideo], str]:
    if not options.identity_disjoint:
        return list(videos), f"{DFD} has no official split: all of it is test"
    ours = [v for v in videos if v.dataset == DFD]
    kept = set_apart(ours)
    note = f"{DFD} is dealt by actor; {len(ours) - len(kept)} fakes of two groups are left out"
    return [v for v in videos if v.dataset != DFD] + kept, note


# --- footage in two splits -------------------------------------------------------------------


def _footage(source: Path) -> dict[str, str]:
    """{target id: YouTube id} from conversion_dict.json; empty if it is not there."""
    usual = (source, source / "dataset", source / "splits", source / "dataset" / "splits")
    path = next((c for d in usual if (c := d / "conversion_dict.json").is_file()), None)
    content = read_json(path) if path else {}
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise DfdetectError(f"{path}: not a table of targets and YouTube ids", "restore it")
    return {key.zfill(3): value.split()[0] for key, value in content.items() if value.split()}


def _crossings(
    videos: Sequence[SourceVideo], splits: Mapping[str, str], footage: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """Groups of ids on the disk that were cut from one video and are in more than one split."""
    present = {i for v in videos if v.dataset == FFPP for i in v.identities}
    cut_from: dict[str, list[str]] = defaultdict(list)
    for target in sorted(footage):
        cut_from[footage[target]].append(target)
    groups = list(cut_from.values()) if footage else [list(pair) for pair in CROSSINGS]
    groups = [tuple(i for i in group if i in present and i in splits) for group in groups]
    return [group for group in groups if len({splits[i] for i in group}) > 1]


def _drop_crossings(
    videos: Sequence[SourceVideo],
    crossings: Sequence[tuple[str, ...]],
    splits: Mapping[str, str],
    options: DatasetOptions,
) -> tuple[list[SourceVideo], list[str]]:
    """Each piece of footage in one split, if that was asked for: what train has is left out of val
    and test, what test has is left out of val."""
    if not crossings:
        return list(videos), []
    shown = ", ".join(f"{'-'.join(g)} ({'/'.join(splits[i] for i in g)})" for g in crossings)
    note = f"one YouTube video is in two official splits: {shown}"
    if not options.drop_cross_source:
        return list(videos), [f"{note}; --drop-cross-source leaves them out of val and test"]
    gone: dict[str | None, set[str]] = defaultdict(set)
    for group in crossings:
        in_train = any(splits[i] == "train" for i in group)
        for split in ("val", "test") if in_train else ("val",):
            gone[split].update(group)
    kept = [v for v in videos if v.dataset != FFPP or not gone[v.split] & set(v.identities)]
    return kept, [f"{note}; {len(videos) - len(kept)} videos of val and test are left out"]
