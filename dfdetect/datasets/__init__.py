"""Datasets: where videos lie and what their labels are -> SourceVideo. Add one: a file and a line.

A dataset is a function `(source, options) -> list[SourceVideo]`; it reads names and lists, never
pixels, and says in an error what tree it expected.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from dfdetect.datasets.base import DatasetOptions, read_splits
from dfdetect.datasets.ffpp import ffpp
from dfdetect.datasets.folder import folder
from dfdetect.datasets.table import table
from dfdetect.errors import DfdetectError, unknown
from dfdetect.manifest import SPLITS, SourceVideo
from dfdetect.video import MEDIA_SUFFIXES

SHELF: dict[str, Callable[[Path, DatasetOptions], list[SourceVideo]]] = {
    "folder": folder,
    "table": table,
    "ffpp": ffpp,
}


def list_source(name: str, source: Path, options: DatasetOptions) -> list[SourceVideo]:
    """Every video and picture of `source`, sorted by id, ids unique.

    `name` is a line of the shelf, or `auto`: a file is a table, a tree with `original_sequences`
    or `manipulated_sequences` is ffpp, anything else a folder.
    """
    if not source.exists():
        raise DfdetectError(f"{source}: no such file or folder", "check the path")
    if name == "auto":
        official = ("original_sequences", "manipulated_sequences")
        name = (
            "table" if source.is_file()
            else "ffpp" if any((source / sub).is_dir() for sub in official)
            else "folder"
        )  # fmt: skip
    if name not in SHELF:
        raise unknown("dataset", name, SHELF)
    if source.is_file() and source.suffix.lower() in MEDIA_SUFFIXES:
        raise DfdetectError(
            f"{source}: one media file is no data set",
            "scan it, or put it into real/ or fake/MANIPULATION/ of a folder",
        )
    if name != "table" and (options.where or options.columns):
        raise DfdetectError(f"{source}: --where and --columns are for tables", "leave them out")
    videos = sorted(SHELF[name](source, options), key=lambda v: v.video_id)
    if options.splits:
        videos = _with_splits(videos, options.splits)
    if not videos:
        raise DfdetectError(f"{source}: no video or picture found in it")
    ids = [v.video_id for v in videos]
    if len(set(ids)) != len(ids):
        twice = next(a for a, b in pairwise(ids) if a == b)
        raise DfdetectError(f"{source}: {twice} is listed twice", "keep one line per file")
    for video in videos:
        if video.split is not None and video.split not in SPLITS:
            raise DfdetectError(
                f"{source}: {video.video_id} has split {video.split!r}", f"use {', '.join(SPLITS)}"
            )
    return videos


def _with_splits(videos: list[SourceVideo], path: Path) -> list[SourceVideo]:
    """Splits by source path, else by identity; who is not listed is dealt to one later."""
    listed = read_splits(path)
    found = []
    for video in videos:
        keys = (video.source, *video.identities)
        split = video.split or next((listed[key] for key in keys if key in listed), None)
        found.append(replace(video, split=split))
    if videos and not any(video.split for video in found):
        raise DfdetectError(
            f"{path}: lists none of the {len(videos)} files, the first is {videos[0].source}",
            "list source paths or identities as they are in the source",
        )
    return found
