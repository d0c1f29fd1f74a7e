"""The DFDC preview set (Dolhansky et al., 2019), DFDCP: 66 actors, two methods.

    dataset.json     {"method_A/643049/643049_A/x.mp4": {"label": "fake", "set": "train",
                      "target_id": 643049, "swapped_id": 1054622, ...}, ...}
    original_videos/**  method_A/**  method_B/**

`set` says train or test. There is no official val: people of train are dealt to train and val.
"""

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from dfdetect.datasets.base import DatasetOptions, Listing, stays_inside
from dfdetect.errors import DfdetectError
from dfdetect.files import read_json
from dfdetect.manifest import SourceVideo, assign_splits

NAME = "DFDCP"
HOME = "ai.meta.com/datasets/dfdc"
EXPECTED = "expected dataset.json, original_videos/**/*.mp4 and method_{A,B}/**/*.mp4"


def looks_right(source: Path) -> bool:
    root = _root(source)
    parts = ("original_videos", "method_A", "method_B")
    return (root / "dataset.json").is_file() and any((root / part).is_dir() for part in parts)


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if dataset.json is absent or holds another label, set or path."""
    root = _root(source)
    if not (root / "dataset.json").is_file():
        raise DfdetectError(f"{source}: not a DFDC preview set", f"{EXPECTED}; get it from {HOME}")
    content = read_json(root / "dataset.json")
    if not isinstance(content, dict):
        raise DfdetectError(f"{root / 'dataset.json'}: not a table of videos", f"see {HOME}")
    listed = _deal_val([_video(source, root, name, facts) for name, facts in content.items()])
    videos = [video for video in listed if video.path.is_file()]
    found: dict[str, int] = {}
    missing: dict[str, list[str]] = {}
    present = {video.video_id for video in videos}
    for video in listed:
        part = video.path.relative_to(root).parts[0]
        if video.video_id in present:
            found[part] = found.get(part, 0) + 1
        else:
            missing.setdefault(part, []).append(video.path.relative_to(root).as_posix())
    note = "there is no official val: a seventh of the people of train is val"
    return Listing(videos, EXPECTED, HOME, found, missing, [note])


def _root(source: Path) -> Path:
    inner = source / "dfdc_preview_set"
    return inner if (inner / "dataset.json").is_file() else source


def _video(source: Path, root: Path, name: str, facts: object) -> SourceVideo:
    facts = facts if isinstance(facts, dict) else {}
    label = {"real": 0, "fake": 1}.get(str(facts.get("label")).lower())
    if label is None or facts.get("set") not in ("train", "test") or not stays_inside(name):
        raise DfdetectError(
            f"{root / 'dataset.json'}: {name} has label {facts.get('label')!r} "
            f"and set {facts.get('set')!r}",
            "use real or fake, train or test, and paths below its folder",
        )
    method = PurePosixPath(name).parts[0]
    return SourceVideo(
        path=root / name,
        video_id=f"{NAME}/{PurePosixPath(name).with_suffix('')}",
        label=label,
        dataset=NAME,
        manipulation=method if label else "real",
        identities=_people(name, facts),
        split=facts["set"],
        source=(root / name).relative_to(source).as_posix(),
    )


def _people(name: str, facts: dict) -> tuple[str, ...]:
    """(target, swapped) as dataset.json names them, else the numbers in the path."""
    named = [str(facts[key]) for key in ("target_id", "swapped_id") if facts.get(key) is not None]
    ids = named or re.findall(r"(?<!\d)\d{4,}(?!\d)", name)
    return tuple(dict.fromkeys(f"{NAME}/{i}" for i in ids)) or (f"{NAME}/{name}",)


def _deal_val(videos: list[SourceVideo]) -> list[SourceVideo]:
    """Some people of the official train go to val, with all their videos; whether a video is on
    the disk plays no part, so that a larger download keeps the split."""
    training = [replace(v, split=None) for v in videos if v.split == "train"]
    dealt = assign_splits(training, seed=0)
    return [replace(v, split="val") if dealt.get(v.video_id) == "val" else v for v in videos]
