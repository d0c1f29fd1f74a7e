"""What prepare writes and train, eval and info read: a row per crop and quality, as Parquet parts.

One part per prepared video, written last: its existence means that the video is finished, and many
writers can fill one folder without a lock. `sample_id` joins the qualities of a crop.
"""

import hashlib
import io
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dfdetect.errors import MOST_NAMED, DfdetectError, ExitCode
from dfdetect.files import write_whole
from dfdetect.quality import Quality

SPLITS = ("train", "val", "test")
SPLIT_FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # of the crop, relative to the data folder
        ("crop_sha256", pa.string()),  # of the crop's file
        ("sample_id", pa.string()),  # video_id/frame/track: the same crop at every quality
        ("video_id", pa.string()),
        ("label", pa.int8()),  # 0 real, 1 fake
        ("dataset", pa.string()),
        ("manipulation", pa.string()),  # "real" for reals
        ("identities", pa.list_(pa.string())),
        ("footage", pa.string()),  # what the target video was cut from (a YouTube id), if known
        ("split", pa.string()),
        ("quality", pa.string()),
        ("psnr_db", pa.float32()),  # against the crop from the best file; null for that one itself
        ("frame_index", pa.int32()),
        ("time_s", pa.float64()),
        ("track_id", pa.int32()),
        ("face_px", pa.float32()),  # width of the detected box
        ("box_xyxy", pa.list_(pa.float32())),  # null where the dataset ships face crops
        ("landmarks", pa.list_(pa.float32())),  # x0 y0 ... x4 y4, frame px; null likewise
        ("confidence", pa.float32()),  # null likewise
        ("face_choice", pa.string()),  # main, all, mask (the manipulated one) or shipped (crops)
        ("n_faces", pa.int32()),  # tracks followed in the video
        ("source", pa.string()),  # the media file, relative to the source folder
        ("source_sha256", pa.string()),
        ("source_bytes", pa.int64()),
        (
            "source_quality",
            pa.string(),
        ),  # of the file that "raw" crops come from, as its dataset says
        ("container", pa.string()),  # mp4, mov, matroska ... or the picture's format
        ("codec", pa.string()),
        ("pix_fmt", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float32()),  # null for pictures
        ("n_frames", pa.int32()),  # that decode
        ("bits_per_pixel", pa.float32()),  # file size / (width * height * n_frames)
        ("warnings", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """One video or picture as a dataset lists it: where it lies and what its labels are.

    `identities` are (target, source) of a fake: whose video it is, whose face is in it; `footage`
    names the longer video (a YouTube id) that the target was cut from, if that is known. `quality`
    is the file's own as its dataset names it, `shipped` holds the same footage at other qualities.
    `mask` is a video or picture that is bright where the face was manipulated. A dataset that
    ships face crops lists them in `crops`, {quality: files below `path`}, and `path` is their
    folder or tar archive.
    """

    path: Path
    video_id: str
    label: int
    dataset: str
    manipulation: str
    identities: tuple[str, ...]
    split: str | None = None
    source: str = ""
    footage: str = ""
    quality: str = "raw"
    shipped: Mapping[str, Path] = field(default_factory=dict)
    mask: Path | None = None
    crops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.label not in (0, 1):
            raise DfdetectError(
                f"{self.path}: label {self.label!r} is neither 0 (real) nor 1 (fake)"
            )


class Sample(NamedTuple):
    """The columns of one manifest row that training and evaluation need.

    `face_px` is the width of the face's box in its source picture, None where nobody measured it,
    as of crops that a dataset shipped.
    `made` is no column: it is the quality to make of the file at `path` as it is read, for a row
    that `data.at_qualities` derived from the raw one.
    """

    path: Path
    sample_id: str
    video_id: str
    label: int
    dataset: str
    manipulation: str
    identities: tuple[str, ...]
    split: str
    quality: str
    track_id: int
    face_px: float | None = None
    made: Quality | None = None


def folder_key(video_id: str) -> str:
    """A short file name for any video_id: readable, unique, safe on every file system."""
    digest = hashlib.sha1(video_id.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", video_id).strip("-")[-48:].lstrip("-")
    return f"{slug}-{digest}" if slug else digest


def part_path(data: Path, video_id: str) -> Path:
    return data / "manifest" / f"{folder_key(video_id)}.parquet"


def write_part(data: Path, video_id: str, rows: Sequence[Mapping]) -> None:
    """Commit one video: its rows become visible whole."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), buffer, compression="zstd")
    write_whole(part_path(data, video_id), buffer.getvalue())


def read_table(data: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All parts of a prepared folder as one table, with all columns or those named.

    Errors: DfdetectError if the folder holds no manifest, or a part is damaged or without rows.
    """
    parts = sorted((data / "manifest").glob("*.parquet"))
    if not parts:
        hint = "make it with `dfdetect prepare SOURCE --out DATA`"
        raise DfdetectError(f"{data}: not a prepared data folder (no manifest in it)", hint)
    tables = [read_part(part, columns) for part in parts]
    for part, table in zip(parts, tables, strict=True):
        if not table.num_rows:
            raise DfdetectError(f"{part}: holds no rows", "run prepare with --repair")
    return pa.concat_tables(tables)


class OtherVersion(DfdetectError):
    """A part that is whole, and has not the columns of this version."""


def read_part(part: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Errors: DfdetectError naming a part that is damaged; OtherVersion; ExitCode.ENVIRONMENT for
    one that cannot be read at all."""
    try:
        with part.open("rb") as content, pq.ParquetFile(content) as file:
            if missing := [n for n in columns or SCHEMA.names if n not in file.schema_arrow.names]:
                raise OtherVersion(
                    f"{part}: written by an older dfdetect, it has no column {missing[0]}",
                    "prepare into a new --out",
                )
            return file.read(columns=columns or SCHEMA.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        if getattr(error, "errno", None):
            raise DfdetectError(
                f"{part}: cannot be read ({error.strerror})", "see to the disk and the limits",
                ExitCode.ENVIRONMENT,
            ) from error  # fmt: skip
        raise DfdetectError(
            f"{part}: damaged manifest part ({error})", "run prepare with --repair"
        ) from error


def read_samples(data: Path, split: str | None = None, prefix: str = "") -> list[Sample]:
    """Rows of a prepared folder, crops as absolute paths, sorted by sample and quality.

    `prefix` goes before sample and video ids, so that rows of several folders stay apart.

    Errors: one DfdetectError for all rows that cannot be right, naming the first 20.
    """
    names = [name for name in Sample._fields if name in SCHEMA.names]
    rows = read_table(data, [*names, "face_choice"]).to_pylist()
    seen: set[tuple[str, str]] = set()
    if faults := [fault for row in rows if (fault := _row_fault(row, seen))]:
        more = f" and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise DfdetectError(
            f"{data}: {len(faults)} of {len(rows)} rows of the manifest cannot be right: "
            f"{', '.join(faults[:MOST_NAMED])}{more}",
            "run prepare with --repair",
        )
    samples = []
    for row in rows:
        if split is not None and row["split"] != split:
            continue
        if row.pop("face_choice") == "shipped":
            row["face_px"] = None
        row["path"] = data / PurePosixPath(row["path"])
        row["identities"] = tuple(row["identities"] or ())
        row["sample_id"], row["video_id"] = prefix + row["sample_id"], prefix + row["video_id"]
        samples.append(Sample(**row))
    return sorted(samples, key=lambda s: (s.sample_id, s.quality))


def _row_fault(row: Mapping, seen: set[tuple[str, str]]) -> str:
    """Which crop, and what is wrong with its row, or empty; `seen` are (sample, quality) so far."""
    relative, key = PurePosixPath(row["path"] or ""), (row["sample_id"], row["quality"])
    if relative.is_absolute() or ".." in relative.parts:
        return f"{relative} (outside the folder)"
    for name in ("path", "sample_id", "video_id", "quality"):
        if row[name] is None:
            return f"{row['path'] or row['sample_id']} (no {name})"
    if row["label"] not in (0, 1):
        return f"{relative} (label {row['label']}, neither 0 nor 1)"
    if row["split"] not in SPLITS:
        return f"{relative} (split {row['split']!r})"
    if key in seen:
        return f"{relative} (twice)"
    seen.add(key)
    return ""


def fingerprint(samples: Iterable[Sample]) -> str:
    """A hash of what was trained on: sample, quality, label and split of every row."""
    digest = hashlib.sha256()
    for line in sorted(f"{s.sample_id}\t{s.quality}\t{s.label}\t{s.split}" for s in samples):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:16]


# --- splits ----------------------------------------------------------------------------------


def assign_splits(
    videos: Sequence[SourceVideo], seed: int, fixed: Mapping[str, str] | None = None
) -> dict[str, str]:
    """A split for every video_id, so that no identity has videos in two splits.

    Videos joined by identities form components, and a component stays whole. Those with a split of
    their own (official, or `fixed` by an earlier run) keep it; the others are dealt, largest first
    and shuffled by `seed`, to the split that is relatively emptiest among components of its kind.
    """
    fixed = dict(fixed or {})
    fixed |= {v.video_id: v.split for v in videos if v.split and v.video_id not in fixed}
    splits = {v.video_id: fixed[v.video_id] for v in videos if v.video_id in fixed}
    kinds: dict[tuple, list[list[SourceVideo]]] = defaultdict(list)
    filled: dict[tuple, Counter] = defaultdict(Counter)
    for component in _components(videos):
        given = {splits[v.video_id] for v in component if v.video_id in splits}
        kind = tuple(sorted({v.label for v in component}))
        if len(given) == 1:
            (split,) = given
            splits |= {v.video_id: split for v in component}
            filled[kind][split] += len(component)
        elif not given:
            kinds[kind].append(component)
        else:  # crosses splits already; check_leaks names it, the rest follows its first split
            first = next(splits[v.video_id] for v in component if v.video_id in splits)
            splits |= {v.video_id: first for v in component if v.video_id not in splits}
    for kind in sorted(kinds):
        components = kinds[kind]
        random.Random(f"{seed}/{kind}").shuffle(components)
        components.sort(key=len, reverse=True)
        for component in components:
            emptiest = min(SPLITS, key=lambda s, n=filled[kind]: n[s] / SPLIT_FRACTIONS[s])
            filled[kind][emptiest] += len(component)
            splits |= {v.video_id: emptiest for v in component}
    return splits


def identity_leaks(pairs: Iterable[tuple[Iterable[str], str]]) -> dict[str, set[str]]:
    """Identities in more than one split, {identity: splits}; `pairs` are (identities, split)."""
    seen: dict[str, set[str]] = defaultdict(set)
    for identities, split in pairs:
        for identity in identities:
            seen[identity].add(split)
    return {identity: splits for identity, splits in sorted(seen.items()) if len(splits) > 1}


def refuse_leaks(pairs: Iterable[tuple[Iterable[str], str]], where: str, option: str) -> None:
    """Errors: DfdetectError naming the identities that cross splits."""
    leaks = identity_leaks(pairs)
    if leaks:
        shown = ", ".join(f"{i} ({'+'.join(sorted(s))})" for i, s in list(leaks.items())[:8])
        more = f" and {len(leaks) - 8} more" if len(leaks) > 8 else ""
        raise DfdetectError(
            f"{where}: {len(leaks)} identities are in more than one split: {shown}{more}",
            f"give every identity one split, or accept the leak with {option}",
        )


def _components(videos: Sequence[SourceVideo]) -> list[list[SourceVideo]]:
    """Groups of videos connected through identities, in order of first appearance (union-find)."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for video in videos:
        for identity in video.identities:
            parent[root(f"identity {identity}")] = root(f"video {video.video_id}")
    groups: dict[str, list[SourceVideo]] = defaultdict(list)
    for video in videos:
        groups[root(f"video {video.video_id}")].append(video)
    return list(groups.values())
