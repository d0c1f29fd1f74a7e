"""Datasets: where videos lie and what their labels are -> Listing. Add one: a file and a line.

A dataset file reads names and lists, never pixels. It intersects official lists with the disk,
counts what is missing, and its errors say what tree it expected and where officially to get it.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
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
    """`list_videos(source, options)`, and whether a source `looks_right` for it: names only."""

    list_videos: Callable[[Path, DatasetOptions], Listing]
    looks_right: Callable[[Path], bool]


SHELF: dict[str, Dataset] = {
    "table": Dataset(table.list_videos, table.looks_right),
    "deepfakebench": Dataset(deepfakebench.list_videos, deepfakebench.looks_right),
    "celebdf": Dataset(celebdf.list_videos, celebdf.looks_right),
    "ffiw": Dataset(ffiw.list_videos, ffiw.looks_right),
    "dfdc": Dataset(dfdc.list_videos, dfdc.looks_right),
    "dfdcp": Dataset(dfdc_preview.list_videos, dfdc_preview.looks_right),
    "deeperforensics": Dataset(deeperforensics.list_videos, deeperforensics.looks_right),
    "wilddeepfake": Dataset(wilddeepfake.list_videos, wilddeepfake.looks_right),
    "df40": Dataset(df40.list_videos, df40.looks_right),
    "dffd": Dataset(dffd.list_videos, dffd.looks_right),
    "ffpp": Dataset(ffpp.list_videos, ffpp.looks_right),
    "folder": Dataset(folder.list_videos, folder.looks_right),
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
