"""Datasets: where videos lie and what their labels are -> Listing. Add one: a file and a line.

A dataset file reads names and lists, never pixels. It intersects official lists with the disk,
counts what is missing, and its errors say what tree it expected and where officially to get it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from dfdetect.datasets import (
    celebdf,
    deeperforensics,
    deepfakebench,
    df40,
    dfdc,
    dfdc_preview,
    dffd,
    ffiw,
    ffpp,
    folder,
    table,
    wilddeepfake,
)
from dfdetect.datasets.base import DatasetOptions, Listing, read_splits
from dfdetect.errors import DfdetectError, unknown
from dfdetect.manifest import SPLITS, SourceVideo
from dfdetect.video import MEDIA_SUFFIXES


class Dataset(NamedTuple):
    """`list_videos(source, options)`, and whether a source `looks_right` for it: names only; the
    tree that is `expected`, and `home`, where officially to get it."""

    list_videos: Callable[[Path, DatasetOptions], Listing]
    looks_right: Callable[[Path], bool]
    expected: str = ""
    home: str = ""

    @classmethod
    def of(cls, module: ModuleType) -> "Dataset":
        where = (getattr(module, name, "") for name in ("EXPECTED", "HOME"))
        return cls(module.list_videos, module.looks_right, *where)


SHELF: dict[str, Dataset] = {
    "table": Dataset.of(table),
    "deepfakebench": Dataset.of(deepfakebench),
    "celebdf": Dataset.of(celebdf),
    "ffiw": Dataset.of(ffiw),
    "dfdc": Dataset.of(dfdc),
    "dfdcp": Dataset.of(dfdc_preview),
    "deeperforensics": Dataset.of(deeperforensics),
    "wilddeepfake": Dataset.of(wilddeepfake),
    "df40": Dataset.of(df40),
    "dffd": Dataset.of(dffd),
    "ffpp": Dataset.of(ffpp),
    "folder": Dataset.of(folder),
}
"""`auto` takes the first that looks right."""


def list_source(name: str, source: Path, options: DatasetOptions) -> Listing:
    """Every video and picture of `source`, sorted by id, ids unique.

    `name` is a line of the shelf, or `auto`: the first line that the source looks right for.
    """
    if not source.exists():
        raise DfdetectError(f"{source}: no such file or folder", "check the path")
    if source.is_file() and source.suffix.lower() in MEDIA_SUFFIXES:
        raise DfdetectError(
            f"{source}: one media file is no data set",
            "scan it, or put it into real/ or fake/MANIPULATION/ of a folder",
        )
    notes = []
    if name == "auto":
        fits = [n for n, dataset in SHELF.items() if dataset.looks_right(source)] or ["folder"]
        name = fits[0]
        if len(fits) > 1:
            notes.append(f"read as {name}; --dataset {' or '.join(fits[1:])} would read it too")
    if name not in SHELF:
        raise unknown("dataset", name, SHELF)
    if name != "table" and (options.where or options.columns):
        raise DfdetectError(f"{source}: --where and --columns are for tables", "leave them out")
    listing = SHELF[name].list_videos(source, options)
    videos = sorted(listing.videos, key=lambda v: v.video_id)
    if options.identity_disjoint:
        videos = [replace(video, split=None) for video in videos]
    if options.splits:
        videos = _with_splits(videos, options.splits)
    if options.manipulations:
        videos = _of_manipulations(source, videos, options.manipulations)
    if options.limit:
        videos = _few(videos, options.limit)
    if not videos:
        where = f"; get it from {listing.home}" if listing.home else ""
        raise DfdetectError(f"{source}: no video or picture found in it", listing.expected + where)
    ids = [v.video_id for v in videos]
    if len(set(ids)) != len(ids):
        twice = next(a for a, b in pairwise(ids) if a == b)
        raise DfdetectError(f"{source}: {twice} is listed twice", "keep one line per file")
    for video in videos:
        if video.split is not None and video.split not in SPLITS:
            raise DfdetectError(
                f"{source}: {video.video_id} has split {video.split!r}", f"use {', '.join(SPLITS)}"
            )
        _check_text(source, video)
    return replace(listing, videos=videos, notes=[*notes, *listing.notes])


def _of_manipulations(
    source: Path, videos: list[SourceVideo], wanted: tuple[str, ...]
) -> list[SourceVideo]:
    """Errors: DfdetectError for a manipulation that the source does not have."""
    there = {v.manipulation for v in videos if v.label}
    for name in wanted:
        if name not in there:
            raise unknown(f"manipulation of {source}:", name, there)
    fakes = {v.dataset for v in videos if v.label and v.manipulation in wanted}
    return [v for v in videos if (v.manipulation in wanted if v.label else v.dataset in fakes)]


def _few(videos: list[SourceVideo], limit: int) -> list[SourceVideo]:
    """The first `limit` of each manipulation and split."""
    n: Counter = Counter()
    kept = []
    for video in videos:
        place = (video.dataset, video.manipulation, video.split)
        n[place] += 1
        if n[place] <= limit:
            kept.append(video)
    return kept


def _check_text(source: Path, video: SourceVideo) -> None:
    """Names may come from a stranger's JSON, which can hold halves of characters."""
    for text in (video.video_id, video.dataset, video.manipulation, *video.identities):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DfdetectError(
                f"{source}: {text!r} is not valid text", "rename it, or correct the list"
            ) from error


def _with_splits(videos: list[SourceVideo], path: Path) -> list[SourceVideo]:
    """Splits by source path, else by identity; who is not listed keeps an official one, or is
    dealt to one later."""
    listed = read_splits(path)
    found = []
    for video in videos:
        keys = (video.source, *video.identities)
        split = next((listed[key] for key in keys if key in listed), None)
        found.append(replace(video, split=split or video.split))
    if videos and not any(v.source in listed or set(v.identities) & set(listed) for v in videos):
        raise DfdetectError(
            f"{path}: lists none of the {len(videos)} files, the first is {videos[0].source}",
            "list source paths or identities as they are in the source",
        )
    return found
