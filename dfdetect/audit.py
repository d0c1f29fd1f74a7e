"""What could spoil the figures of prepared folders: manifests and crops in, findings out.

A check is a function of what was read and gives one Finding, numbered like the 28 known traps of
deepfake benchmarks. This module looks at 1 to 3, 5 to 14, 18, 24 and 27. The others are no matter
of a folder and are kept elsewhere: thresholds and checkpoints chosen on test (4: train reads no
test row), the equal error rate (15), pooled and averaged figures, their level and their
uncertainty (16, 17, 19 to 22: metrics and evaluate), augmentation against test corruption (23: the
preset in the checkpoint), baselines and pairing (25, 26: presets and data), unsafe checkpoints (28:
safetensors).

Manifest parts are read one after another and a video is kept as one small record, so that time is
linear in the number of crops and memory in the number of videos.
"""

import csv
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from dfdetect.data import read_crop
from dfdetect.errors import DfdetectError
from dfdetect.files import read_json, sha256_of
from dfdetect.manifest import SPLITS, identity_leaks, read_part
from dfdetect.metrics import auc, probe_auc
from dfdetect.quality import ordered, parse_quality

Status = Literal["OK", "WARN", "FAIL", "unchecked"]

PROBE_AUC = 0.6
"""Above it, labels can be told from metadata; with few videos, above what chance reaches too."""
PROBE_SIGMA = 2.5
"""By how many standard errors of a worthless probe its AUC must exceed 0.5."""
MIN_PER_CLASS, MIN_GROUPS = 20, 5
"""Videos and people of each class below which a probe says nothing."""
MAX_PROBED = 10_000
"""Videos that a probe looks at, drawn at random where there are more."""
FACE_SIZE_AUC = 0.65
"""P(a fake's face is larger than a real's), or smaller, that is called a shortcut."""
MAX_LOST, MAX_LOST_RATIO, MIN_LOST = 0.1, 3.0, 5
"""Share of a class that may fail; how many times the other class's share, from how many on."""
MIN_SPAN, MAX_NARROW = 0.8, 0.1
"""Part of a video that its sampled frames span; share of videos that may fall short of it."""
PSNR_MISALIGNED_DB = {"light": 20.0, "heavy": 16.0}
PSNR_SUSPICIOUS_DB = {"light": 25.0, "heavy": 19.0}
"""Floors for the median of a video and for a single crop, by strength of the compression: CRF above
30 and JPEG below quality 50 are heavy. Measured on 1,480 photos and 107 videos: at CRF 23 and JPEG
50 no crop is below 28.9 dB, at CRF 40 none below 20.3; other frames of the same video have a median
of 19 dB, other people at most 15.4."""
CROPS_PER_VIDEO = 4
"""Crops of a video that are decoded and compared with those of other splits."""
NEAR_BITS = 24
"""Differing bits of 256 up to which two crops count as the same picture. Measured on 1,416 photos
and 847 frames of 107 videos: re-encoding at CRF 23 changes at most 10, at CRF 40 up to 24 in 98 of
100; of 1.35 million pairs of different people none differs in 24 or less, the nearest in 50 (two
synthetic faces from one seed, which are the same picture to the eye, in 34)."""
BANDS, NEIGHBOURS = 16, 4
"""Orders in which hashes are sorted; with how many neighbours of another split, before and after
it, each is compared."""
TEST_ONLY = {
    "wilddeepfake": "WildDeepfake",
    "df40": "DF40",
    "deepfakedetection": "DeepFakeDetection",
}
"""Sets without an official training split of whole videos, as lower-case letters and digits."""
FFPP = "FaceForensics++"
FFPP_SAME_FOOTAGE = (
    ("755", "756"), ("954", "955"), ("605", "606"), ("639", "640"),
    ("837", "838"), ("875", "876"), ("982", "983"),
)  # fmt: skip
"""Videos cut from one YouTube video that the official split puts into two splits."""
OF_FFPP = frozenset({FFPP, "FaceShifter", "DeeperForensics-1.0", "DF40", "DFFD"})
OF_CELEB_DF = frozenset({"Celeb-DF-v2", "DF40"})
"""Sets made from the videos of FaceForensics++ and Celeb-DF, under whose ids they name people."""
OFFICIAL = frozenset(
    {
        "faceforensics", "faceshifter", "deepfakedetection", "deeperforensics10", "celebdfv1",
        "celebdfv2", "dfdc", "dfdcp", "ffiw10k", "wilddeepfake", "df40", "dffd", "uadfv",
    }
)  # fmt: skip
"""Sets that number their people on their own, as lower-case letters and digits: 000 of one is
nobody in another. In folders and tables of others, people of one name may be one person."""
LEAKS = frozenset(
    {"people", "other parent", "footage", "one split", "same file", "same crop", "labels"}
)
"""Checks whose FAIL makes validation figures say nothing about strangers."""


class Finding(NamedTuple):
    """What one check found: numbers of the `traps` it guards, the answer in one sentence with
    figures and the remedy, and every offending video, identity or crop."""

    traps: tuple[int, ...]
    name: str
    status: Status
    message: str
    ids: list[str]


def audit(
    folders: Sequence[Path],
    look_at_crops: bool = True,
    on_progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Finding]:
    """Every check over all `folders` together, in the order of their traps.

    Without `look_at_crops` only manifests are read: the short form, about two milliseconds a video.
    `on_progress(n_done, n_total, folder)` is called after each manifest part.

    Errors: DfdetectError if a folder holds no manifest, or a part is damaged.
    """
    parts = [(number, part) for number, path in enumerate(folders) for part in _parts_of(path)]
    n_total = len(parts) * (1 + look_at_crops)
    videos: dict[tuple[int, str], Video] = {}
    for done, (number, part) in enumerate(parts, start=1):
        for video in _videos(number, _columns(part, MANIFEST_COLUMNS)):
            key = (video.folder, video.video_id)
            videos[key] = _joined(videos[key], video) if key in videos else video
        on_progress(done, n_total, folders[number].name)
    prepared = Prepared([_read_folder(path) for path in folders], list(videos.values()))
    findings = [found for check in CHECKS if (found := check(prepared))]
    if look_at_crops:
        looked = Looked()
        for done, (number, part) in enumerate(parts, start=len(parts) + 1):
            _look(looked, folders[number], number, _columns(part, CROP_COLUMNS))
            on_progress(done, n_total, folders[number].name)
        findings += [files_are_whole(looked), near_duplicates(prepared, looked)]
    return sorted(findings, key=lambda found: found.traps)


# --- what is read ------------------------------------------------------------------------------

CONSTANTS = (
    "dataset", "footage", "source_sha256", "source_quality", "container", "codec", "pix_fmt",
    "width", "height", "fps", "n_frames", "bits_per_pixel", "face_choice", "n_faces",
    "manipulation",
)  # fmt: skip
"""Columns that a video has one value of."""
MANIFEST_COLUMNS = (
    *CONSTANTS, "video_id", "sample_id", "label", "split", "quality", "identities", "frame_index",
    "face_px", "psnr_db", "crop_sha256",
)  # fmt: skip
CROP_COLUMNS = ("path", "video_id", "split", "quality", "crop_sha256")


@dataclass(slots=True)
class Video:
    """One video of one folder: constants by column name, and what its rows add up to."""

    folder: int
    video_id: str
    facts: dict[str, Any]
    identities: tuple[str, ...]
    labels: set[int | None]
    splits: set[str]
    face_px: list[float]  # median; one per part
    frames: tuple[int, int]  # first and last sampled frame
    n_samples: int
    n_frames_sampled: int
    crops: Counter[str]  # by quality
    psnr_db: dict[str, tuple[float, float]]  # lowest and median, by quality
    crop_hashes: np.ndarray  # uint64, first half of the crops' sha256 at the first quality

    def __getitem__(self, column: str) -> Any:
        return self.facts[column]

    @property
    def label(self) -> int:
        """The label; of a contradictory video one of them."""
        return int(bool(max(self.labels, key=lambda label: label or 0)))

    @property
    def people(self) -> list[str]:
        """Identities with the set that they belong to, the same for sets that share people."""
        return [person(self["dataset"], identity) for identity in self.identities]

    @property
    def is_picture(self) -> bool:
        n_frames = self["n_frames"]
        return n_frames == 1 if n_frames is not None else self.n_frames_sampled == 1


class Folder(NamedTuple):
    """What a folder says about itself: prepare.json, and the failures of the last run."""

    path: Path
    prepared: Mapping[str, Any]
    failures: list[Mapping[str, str]]

    @property
    def overlap_allowed(self) -> bool:
        return bool(self.prepared.get("identity_overlap_allowed"))


class Prepared(NamedTuple):
    """All that the checks of the short form look at."""

    folders: list[Folder]
    videos: list[Video]

    def named(self, videos: Iterable[Video]) -> list[str]:
        """Video ids, sorted; with the folder's name where there are several."""
        if len(self.folders) == 1:
            return sorted({v.video_id for v in videos})
        return sorted({f"{self.folders[v.folder].path.name}: {v.video_id}" for v in videos})

    def accepted(self, videos: Iterable[Video]) -> bool:
        """Whether prepare was told to accept people in two splits, in all the videos' folders."""
        return all(self.folders[v.folder].overlap_allowed for v in videos)


def _parts_of(folder: Path) -> list[Path]:
    parts = sorted((folder / "manifest").glob("*.parquet"))
    if not parts:
        hint = "make it with `dfdetect prepare SOURCE --out DATA`"
        raise DfdetectError(f"{folder}: not a prepared data folder (no manifest in it)", hint)
    return parts


def _columns(part: Path, names: Sequence[str]) -> dict[str, list]:
    return read_part(part, names).to_pydict()


def _videos(folder: int, columns: Mapping[str, list]) -> Iterator[Video]:
    """A record per video of one part."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, video_id in enumerate(columns["video_id"]):
        rows_of[video_id].append(row)
    for video_id, rows in rows_of.items():
        qualities = columns["quality"]
        first = "raw" if any(qualities[r] == "raw" for r in rows) else qualities[rows[0]]
        of_first = [r for r in rows if qualities[r] == first]
        psnr: dict[str, list[float]] = defaultdict(list)
        for r in rows:
            if columns["psnr_db"][r] is not None:
                psnr[qualities[r]].append(columns["psnr_db"][r])
        indices = [columns["frame_index"][r] or 0 for r in rows]
        sizes = [columns["face_px"][r] for r in of_first if columns["face_px"][r] is not None]
        hashes = [columns["crop_sha256"][r] for r in of_first]
        yield Video(
            folder,
            video_id,
            {name: columns[name][rows[0]] for name in CONSTANTS},
            tuple(columns["identities"][rows[0]] or ()),
            {columns["label"][r] for r in rows},
            {columns["split"][r] for r in rows},
            [statistics.median(sizes)] if sizes else [],
            (min(indices), max(indices)),
            len({columns["sample_id"][r] for r in rows}),
            len(set(indices)),
            Counter(qualities[r] for r in rows),
            {quality: (min(db), statistics.median(db)) for quality, db in psnr.items()},
            np.array([int(h[:16], 16) for h in hashes if h], np.uint64),
        )


def _joined(a: Video, b: Video) -> Video:
    """Two parts about one video."""
    return Video(
        a.folder,
        a.video_id,
        a.facts,
        tuple(dict.fromkeys(a.identities + b.identities)),
        a.labels | b.labels,
        a.splits | b.splits,
        a.face_px + b.face_px,
        (min(a.frames[0], b.frames[0]), max(a.frames[1], b.frames[1])),
        a.n_samples + b.n_samples,
        a.n_frames_sampled + b.n_frames_sampled,
        a.crops + b.crops,
        {
            q: (min(pair), sum(pair) / len(pair))
            for q in a.psnr_db.keys() | b.psnr_db.keys()
            for pair in [[db for v in (a, b) for db in v.psnr_db.get(q, ())]]
        },
        np.concatenate([a.crop_hashes, b.crop_hashes]),
    )


def _read_folder(path: Path) -> Folder:
    stored = read_json(path / "prepare.json") if (path / "prepare.json").exists() else {}
    rows: list[Mapping[str, str]] = []
    if (path / "failures.csv").exists():
        with (path / "failures.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    return Folder(path, stored if isinstance(stored, dict) else {}, rows)


# --- one person, one video, one file in one split ----------------------------------------------


def people_keep_to_one_split(data: Prepared) -> Finding:
    finding = partial(Finding, (1,), "people")
    holders: dict[str, list[Video]] = defaultdict(list)
    for video in data.videos:
        for person in video.people:
            holders[person].append(video)
    leaks = identity_leaks((v.people, split) for v in data.videos for split in v.splits)
    if not leaks and (namesakes := _namesakes(data)):
        shown = ", ".join(namesakes[:8]) + (", ..." if len(namesakes) > 8 else "")
        return finding(
            "WARN",
            f"{len(namesakes)} people of one name are in more than one split under different sets "
            f"({shown}): if they are the same, give each one split.",
            namesakes,
        )
    if not leaks:
        return finding("OK", f"none of {len(holders)} people is in more than one split.", [])
    refused = [person for person in leaks if not data.accepted(holders[person])]
    where = Counter("+".join(_in_order(splits)) for splits in leaks.values())
    shown = ", ".join(f"{n} in {splits}" for splits, n in where.most_common())
    text = f"{len(leaks)} of {len(holders)} people are in more than one split ({shown}): "
    return (
        finding("FAIL", text + "give every person one split.", list(leaks))
        if refused
        else finding("WARN", text + "prepare was told to accept that.", list(leaks))
    )


def _namesakes(data: Prepared) -> list[str]:
    """Names of people in more than one split, whatever set of folders and tables they are in;
    prepare refuses them in one folder."""
    unofficial = [v for v in data.videos if not _is_official(v["dataset"])]
    return list(identity_leaks((v.identities, split) for v in unofficial for split in v.splits))


def both_parents_in_one_split(data: Prepared) -> Finding:
    finding = partial(Finding, (1,), "other parent")
    homes: dict[str, set[str]] = defaultdict(set)
    for video in data.videos:
        for person in video.people[:1]:
            homes[person] |= video.splits
    swaps = [v for v in data.videos if v.label and len(v.identities) > 1]
    if not swaps:
        return finding("unchecked", "no fake names a second person.", [])
    torn = [v for v in swaps if any(homes.get(p, v.splits) - v.splits for p in v.people[1:])]
    if not torn:
        return finding("OK", f"both people of {len(swaps)} fakes are in the fake's split.", [])
    return finding(
        "WARN" if data.accepted(torn) else "FAIL",
        f"{len(torn)} of {len(swaps)} fakes show the face of a person whose own videos are in "
        "another split: give both parents of a fake one split.",
        data.named(torn),
    )


def footage_keeps_to_one_split(data: Prepared) -> Finding:
    finding = partial(Finding, (2,), "footage")
    groups = _by_footage(data.videos)
    if not groups:
        return finding("unchecked", "the manifest names no footage that videos were cut from.", [])
    crossing = {name: videos for name, videos in groups.items() if len(_splits(videos)) > 1}
    if not crossing:
        return finding("OK", f"none of {len(groups)} pieces of footage is in two splits.", [])
    torn = [v for videos in crossing.values() for v in videos]
    official = all(v["dataset"] == FFPP for v in torn) and not identity_leaks(
        (v.people[:1], split) for v in torn for split in v.splits
    )
    named = ", ".join(
        f"{'+'.join(sorted({v.identities[0] for v in videos if v.identities})) or name} "
        f"in {'+'.join(_in_order(_splits(videos)))}"
        for name, videos in sorted(crossing.items())[:8]
    )
    remedy = (
        f"{FFPP}'s official split has them there; leave them out with "
        "`prepare --drop-cross-source`."
        if official
        else "give all that is cut from one piece one split."
    )
    return finding(
        "WARN" if official or data.accepted(torn) else "FAIL",
        f"{len(crossing)} of {len(groups)} pieces of footage are in two splits ({named}): {remedy}",
        data.named(torn),
    )


def _by_footage(videos: Iterable[Video]) -> dict[str, list[Video]]:
    """Videos by what they were cut from. A piece may have several names, and a folder know only
    some of them: the recorded one, a known pair, the target's id. Names that one video has are of
    one piece (union-find)."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    known = {f"{FFPP}/{i}": f"{FFPP} {'+'.join(pair)}" for pair in FFPP_SAME_FOOTAGE for i in pair}
    named: list[tuple[str, Video]] = []
    for video in videos:
        target = video.people[0] if video.identities else ""
        of_ffpp = re.fullmatch(rf"{re.escape(FFPP)}/\d{{3}}", target)
        names = filter(None, (video["footage"], known.get(target), target if of_ffpp else ""))
        for position, name in enumerate(names):
            if position == 0:
                named.append((name, video))
            parent[root(name)] = root(named[-1][0])
    groups: dict[str, list[Video]] = defaultdict(list)
    for name, video in named:
        groups[root(name)].append(video)
    return groups


def videos_keep_to_one_split(data: Prepared) -> Finding:
    finding = partial(Finding, (3, 5), "one split")
    groups: dict[tuple[str, str], list[Video]] = defaultdict(list)
    for video in data.videos:
        groups[video["dataset"] or "", video.video_id].append(video)
    torn = [
        v
        for videos in groups.values()
        if len(_splits(videos)) > 1
        for v in videos
        if len(v.splits) > 1 or not _different_files(videos)
    ]
    if torn:
        text = f"{len(torn)} videos are in more than one split: keep one split of each."
        return finding("FAIL", text, data.named(torn))
    return finding("OK", f"each of {len(data.videos)} videos has one split.", [])


def a_file_comes_once(data: Prepared) -> Finding:
    finding = partial(Finding, (3, 14), "same file")
    groups: dict[str, list[Video]] = defaultdict(list)
    for video in data.videos:
        if video["source_sha256"]:
            groups[video["source_sha256"]].append(video)
    if not groups:
        return finding("unchecked", "the manifest holds no hashes of the source files.", [])
    twice = [videos for videos in groups.values() if len(videos) > 1]
    n_known = sum(map(len, groups.values()))
    if not twice:
        return finding("OK", f"{n_known} videos come from as many different files.", [])
    torn = [v for videos in twice if len(_splits(videos)) > 1 for v in videos]
    at_odds = [v for videos in twice if len(_labels(videos)) > 1 for v in videos]
    text = (
        f"{len(twice)} files are there under several ids ({len(torn)} videos of these across "
        f"splits, {len(at_odds)} with both labels): keep one of each."
    )
    bad = torn or at_odds
    ids = data.named([*torn, *at_odds] if bad else [v for videos in twice for v in videos])
    return finding("FAIL" if bad else "WARN", text, ids)


def a_crop_comes_once(data: Prepared) -> Finding:
    finding = partial(Finding, (3,), "same crop")
    held = [v for v in data.videos if len(v.crop_hashes)]
    if not held:
        return finding("unchecked", "the manifest holds no hashes of the crops.", [])
    hashes = np.concatenate([v.crop_hashes for v in held])
    owner = np.repeat(np.arange(len(held)), [len(v.crop_hashes) for v in held])
    code = np.array([_code(v.splits) for v in held])[owner]
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(hashes[order]) != 0])
    lowest = np.minimum.reduceat(code[order], starts)
    highest = np.maximum.reduceat(code[order], starts)
    torn = np.repeat(lowest != highest, np.diff(np.r_[starts, len(order)]))
    videos = [held[i] for i in np.unique(owner[order][torn])]
    if videos:
        return finding(
            "FAIL",
            f"{int((lowest != highest).sum())} crops are byte for byte in two splits, "
            f"of {len(videos)} videos: give these videos one split, or keep one of them.",
            data.named(videos),
        )
    return finding("OK", f"no crop of {len(hashes)} is byte for byte in two splits.", [])


# --- labels and counts -------------------------------------------------------------------------


def labels_are_constant(data: Prepared) -> Finding:
    finding = partial(Finding, (13, 14), "labels")
    groups: dict[tuple[str, str], list[Video]] = defaultdict(list)
    for video in data.videos:
        groups[video["dataset"] or "", video.video_id].append(video)
    wrong = [
        v
        for videos in groups.values()
        for v in videos
        if not v.labels <= {0, 1}
        or len(v.labels) > 1
        or (len(_labels(videos)) > 1 and not _different_files(videos))
        or (v["manipulation"] == "real") != (v.label == 0)
    ]
    if wrong:
        return finding(
            "FAIL",
            f"{len(wrong)} videos have two labels, none, or one that contradicts their "
            "manipulation: correct the source's list and prepare them again.",
            data.named(wrong),
        )
    return finding("OK", f"each of {len(data.videos)} videos has one label.", [])


def both_classes_in_every_split(data: Prepared) -> Finding:
    finding = partial(Finding, (18,), "classes")
    videos = Counter((split, v.label) for v in data.videos for split in v.splits)
    crops: Counter = Counter()
    for v in data.videos:
        for split in v.splits:
            crops[split, v.label] += sum(v.crops.values())
    present = _in_order({split for split, _ in videos})
    counts = "; ".join(
        f"{split} {videos[split, 0]} real and {videos[split, 1]} fake videos "
        f"({crops[split, 0]} and {crops[split, 1]} crops)"
        for split in present
    )
    if alone := [split for split in present if not (videos[split, 0] and videos[split, 1])]:
        lacks = ", ".join(f"{s} has no {'fake' if videos[s, 0] else 'real'}" for s in alone)
        text = f"{lacks}: add videos, or give other --splits to prepare ({counts})."
        spoils_training = set(alone) - {"test"}  # a detector can be trained without a test set
        return finding("FAIL" if spoils_training else "WARN", text, alone)
    return finding("OK", f"{counts}.", [])


def failures_spare_both_classes(data: Prepared) -> Finding:
    finding = partial(Finding, (12,), "failed files")
    lost = Counter(row.get("label") for f in data.folders for row in f.failures)
    ids = sorted({row.get("video_id") or "" for f in data.folders for row in f.failures})
    kept = Counter(str(v.label) for v in data.videos)
    share = {c: lost[c] / (lost[c] + kept[c]) if lost[c] else 0.0 for c in "01"}
    counts = ", ".join(
        f"{lost[c]} of {lost[c] + kept[c]} {word} ({share[c]:.1%})"
        for c, word in (("0", "real"), ("1", "fake"))
    )
    few, many = sorted("01", key=share.get)
    lopsided = lost[many] >= MIN_LOST and share[many] > MAX_LOST_RATIO * share[few]
    if share[many] > MAX_LOST or (lopsided and share[many] - share[few] > 0.02):
        text = f"{counts} gave no crops, so figures leave these out: see failures.csv."
        return finding("WARN", text, ids)
    return finding("OK", f"{counts} gave no crops.", ids)


def training_sets_may_be_trained_on(data: Prepared) -> Finding:
    finding = partial(Finding, (3,), "test-only sets")
    used = [v for v in data.videos if "train" in v.splits and _test_only(v["dataset"])]
    if not used:
        return finding("OK", "no set that is meant for testing is in train.", [])
    sets = ", ".join(sorted({TEST_ONLY[_plain(v["dataset"])] for v in used}))
    return finding(
        "WARN",
        f"{len(used)} videos of {sets} are in train, which others only test on: put them into "
        "test with --splits.",
        data.named(used),
    )


# --- shortcuts ---------------------------------------------------------------------------------

CATEGORIES = ("container", "codec", "pix_fmt", "source_quality")
NUMBERS = ("width", "height", "fps", "n_frames", "bits_per_pixel", "face_px")
MAX_VALUES = 20
"""Values of a category that get a name; the others are one."""


def metadata_tells_no_label(data: Prepared, kind: str) -> Finding | None:
    """A logistic regression on the files' metadata alone, out of fold, people held together.

    `kind` is videos, pictures or all; None where that is no group of its own.
    """
    kinds = {"pictures" if v.is_picture else "videos" for v in data.videos}
    if (len(kinds) == 1) if kind == "all" else (kind not in kinds):
        return None
    name = f"metadata of {kind}" if kind != "all" else "metadata, all files"
    finding = partial(Finding, (6, 7), name)
    videos = [v for v in data.videos if kind == "all" or v.is_picture == (kind == "pictures")]
    if reason := _too_few(videos):
        return finding("unchecked", reason, [])
    if len(videos) > MAX_PROBED:
        drawn = np.random.default_rng(0).choice(len(videos), MAX_PROBED, replace=False)
        videos = [videos[i] for i in np.sort(drawn)]
    numbers, categories = _metadata(videos, with_kind=kind == "all")
    if not numbers and not categories:
        return finding("unchecked", "the manifest holds no metadata that differs.", [])
    labels = [v.label for v in videos]
    groups = [_group(v) for v in videos]

    def probed(names: Collection[str]) -> float:
        columns = [numbers[n] for n in names if n in numbers]
        texts = [categories[n] for n in names if n in categories]
        table = np.array(columns, float).reshape(len(columns), len(videos)).T
        rows = list(zip(*texts, strict=True)) or [()] * len(videos)
        return probe_auc(table, rows, labels, groups).auc

    limit = max(PROBE_AUC, 0.5 + PROBE_SIGMA * _chance(videos))
    names = numbers.keys() | categories.keys()
    reached = probed(sorted(names))
    n_real = labels.count(0)
    of = f"on {n_real} real and {len(labels) - n_real} fake files"
    if reached <= limit:
        return finding("OK", f"metadata alone tells labels with AUC {reached:.2f} {of}.", [])
    single = {n: probed([n]) for n in names}
    ranked = sorted(names, key=lambda n: (-single[n], n))
    strongest = [n for n in ranked[:3] if single[n] > PROBE_AUC] or ranked[:1]
    shown = "; ".join(
        f"{n.replace('_', ' ')} alone {single[n]:.2f} ({_by_label(n, numbers, categories, labels)})"
        for n in strongest
    )
    return finding(
        "WARN",
        f"metadata alone tells labels with AUC {reached:.2f} {of}, above {limit:.2f}: {shown}; "
        "give both classes the same sizes and compression, or a detector may learn that instead.",
        [],
    )


def faces_are_equally_large(data: Prepared) -> Finding:
    finding = partial(Finding, (7,), "face size")
    videos = [v for v in data.videos if v.face_px]
    if reason := _too_few(videos):
        return finding("unchecked", reason, [])
    sizes, labels = [statistics.median(v.face_px) for v in videos], [v.label for v in videos]
    larger = auc(sizes, labels)
    text = ", ".join(
        f"{word} {np.median(of):.0f} px (a tenth below {np.percentile(of, 10):.0f})"
        for label, word in ((0, "real"), (1, "fake"))
        for of in [[s for s, y in zip(sizes, labels, strict=True) if y == label]]
    )
    limit = max(FACE_SIZE_AUC, 0.5 + PROBE_SIGMA * _chance(videos))
    if max(larger, 1 - larger) > limit:
        return finding(
            "WARN",
            f"face size alone tells labels with AUC {max(larger, 1 - larger):.2f}: median width "
            f"{text}; small faces are enlarged, which shows; balance the sizes.",
            [],
        )
    return finding("OK", f"median face width: {text}; AUC {max(larger, 1 - larger):.2f}.", [])


def _metadata(
    videos: Sequence[Video], with_kind: bool
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Numbers (logarithms; NaN where unknown) and categories by name, without those that are the
    same everywhere. A number is a category too, its value or its tenth of all values: a shortcut
    may lie in the middle, as where all fakes have 25 frames a second.
    """
    held: dict[str, list] = {n: [v[n] for v in videos] for n in NUMBERS if n != "face_px"}
    held["face_px"] = [statistics.median(v.face_px) if v.face_px else None for v in videos]
    numbers = {
        n: [float(np.log(x)) if x and x > 0 else np.nan for x in values]
        for n, values in held.items()
    }
    texts: dict[str, list] = {n: [v[n] for v in videos] for n in CATEGORIES}
    texts["picture size"] = [f"{v['width']}x{v['height']}" if v["width"] else None for v in videos]
    if with_kind:
        texts["kind"] = ["picture" if v.is_picture else "video" for v in videos]
    for n, values in numbers.items():
        kinds = {f"{x:.4g}" for x in held[n] if x is not None}
        known = [x for x in values if x == x]
        if len(kinds) <= MAX_VALUES:
            texts[n] = [x if x is None else f"{x:.4g}" for x in held[n]]
        elif known:
            cuts = np.unique(np.quantile(known, np.arange(0.1, 0.95, 0.1)))
            tenths = np.searchsorted(cuts, values)
            texts[n] = [
                f"tenth {t + 1}" if x == x else None for t, x in zip(tenths, values, strict=True)
            ]
    categories = {}
    for n, values in texts.items():
        common = {value for value, _ in Counter(values).most_common(MAX_VALUES)}
        categories[n] = [
            "unknown" if x is None else str(x) if x in common else "other" for x in values
        ]
    return (
        {n: values for n, values in numbers.items() if len(set(map(str, values))) > 1},
        {n: values for n, values in categories.items() if len(set(values)) > 1},
    )


def _by_label(
    name: str, numbers: Mapping[str, list], categories: Mapping[str, list], labels: Sequence[int]
) -> str:
    """What a feature is in fakes and in reals: the middle 80 % of a number with many values, else
    the shares of the value that tells most."""
    sides = {1: "fake", 0: "real"}
    of_class = {y: [i for i, label in enumerate(labels) if label == y] for y in sides}
    if any(value.startswith("tenth ") for value in categories.get(name, ())):
        known = {y: [numbers[name][i] for i in rows] for y, rows in of_class.items()}
        spread = {
            y: np.exp(np.nanpercentile(xs, (10, 50, 90)) if np.isfinite(xs).any() else [0.0] * 3)
            for y, xs in known.items()
        }
        return ", ".join(
            f"{sides[y]} {low:.4g} to {high:.4g} around {median:.4g}"
            for y, (low, median, high) in spread.items()
        )
    count = {y: Counter(categories[name][i] for i in rows) for y, rows in of_class.items()}
    share = {y: {x: n / len(of_class[y]) for x, n in c.items()} for y, c in count.items()}
    telling = max(
        count[0].keys() | count[1].keys(),
        key=lambda x: (round(abs(share[1].get(x, 0) - share[0].get(x, 0)), 6), share[1].get(x, 0)),
    )
    return ", ".join(f"{sides[y]} {telling} {share[y].get(telling, 0):.0%}" for y in sides)


def _too_few(videos: Sequence[Video]) -> str:
    for label, word in ((0, "real"), (1, "fake")):
        of_class = [v for v in videos if v.label == label]
        n_groups = len({_group(v) for v in of_class})
        if len(of_class) < MIN_PER_CLASS or n_groups < MIN_GROUPS:
            return (
                f"{len(of_class)} {word} files of {n_groups} people are too few: "
                f"{MIN_PER_CLASS} files and {MIN_GROUPS} people of each class are needed."
            )
    return ""


def _chance(videos: Sequence[Video]) -> float:
    """Standard error of the AUC of a score that is worth nothing; a person counts once a class,
    since files of one person resemble each other."""
    n = [len({_group(v) for v in videos if v.label == label}) for label in (0, 1)]
    return float(np.sqrt((n[0] + n[1] + 1) / (12 * n[0] * n[1])))


# --- faces and frames --------------------------------------------------------------------------


def boxes_come_from_the_file(data: Prepared) -> Finding:
    finding = partial(Finding, (8, 9), "boxes")
    if all(v["face_choice"] is None for v in data.videos):
        return finding("unchecked", "the manifest does not say how faces were chosen.", [])
    tested = [v for v in data.videos if "test" in v.splits]
    given = [v for v in tested if v["face_choice"] in ("mask", "shipped")]
    if given:
        how = Counter(v["face_choice"] for v in given)
        return finding(
            "WARN",
            f"{len(given)} of {len(tested)} test videos were not cropped by detection alone "
            f"({how['mask']} chosen by a mask, {how['shipped']} shipped as crops): say so beside "
            "their figures, nobody has masks in the field.",
            data.named(given),
        )
    return finding("OK", f"all {len(tested)} test videos were cropped by detection alone.", [])


def the_manipulated_face_is_cropped(data: Prepared) -> Finding:
    finding = partial(Finding, (9,), "several faces")
    known = [v for v in data.videos if v.label and v["n_faces"] is not None]
    if not known:
        return finding("unchecked", "the manifest does not say how many faces videos show.", [])
    doubtful = [v for v in known if v["n_faces"] > 1 and v["face_choice"] == "main"]
    if doubtful:
        return finding(
            "WARN",
            f"{len(doubtful)} of {len(known)} fakes show several faces and only the main one was "
            "cropped, which may not be the manipulated one: use masks, --tracks all, or leave them "
            "out.",
            data.named(doubtful),
        )
    return finding("OK", f"no fake of {len(known)} left the choice between several faces.", [])


def qualities_are_aligned(data: Prepared) -> Finding:
    finding = partial(Finding, (10,), "alignment")
    misaligned, suspicious, lowest = [], [], {}
    for video in data.videos:
        for quality, (least, median) in video.psnr_db.items():
            strength = _strength(quality)
            lowest[quality] = min(lowest.get(quality, np.inf), least)
            if median < PSNR_MISALIGNED_DB[strength]:
                misaligned.append(video)
            elif least < PSNR_SUSPICIOUS_DB[strength]:
                suspicious.append(video)
    if not lowest:
        if all(len(v.crops) == 1 for v in data.videos):
            return finding("OK", "there is one quality only.", [])
        return finding("unchecked", "the manifest holds no PSNR between qualities.", [])
    shown = ", ".join(f"{q} {lowest[q]:.1f} dB" for q in ordered(lowest))
    floors = [
        f"{PSNR_MISALIGNED_DB[s]:.0f} dB ({PSNR_SUSPICIOUS_DB[s]:.0f} dB in single crops)"
        for s in ("light", "heavy")
    ]
    limits = f"floors {floors[0]}, for CRF above 30 and JPEG below 50 {floors[1]}"
    if misaligned:
        return finding(
            "FAIL",
            f"{len(misaligned)} videos have qualities that do not show the same picture (lowest "
            f"PSNR: {shown}; {limits}): leave their shipped qualities out, or prepare them anew.",
            data.named(misaligned),
        )
    if suspicious:
        return finding(
            "WARN",
            f"{len(suspicious)} videos have crops that differ much between qualities (lowest PSNR: "
            f"{shown}; {limits}): look at them.",
            data.named(suspicious),
        )
    return finding("OK", f"lowest PSNR between qualities: {shown} ({limits}).", [])


def qualities_are_complete(data: Prepared) -> Finding:
    finding = partial(Finding, (10,), "qualities")
    wanted = [
        set(folder.prepared.get("recipe", {}).get("qualities", ())) for folder in data.folders
    ]
    for video in data.videos:
        wanted[video.folder] |= video.crops.keys()
    short = [v for v in data.videos if any(v.crops[q] < v.n_samples for q in wanted[v.folder])]
    held = "; ".join(dict.fromkeys(",".join(ordered(q)) for q in wanted))
    if short:
        text = (
            f"{len(short)} videos lack crops at some of {held}, so figures of different qualities "
            "are not of the same crops: prepare them anew."
        )
        return finding("WARN", text, data.named(short))
    return finding("OK", f"every crop is there at {held}.", [])


def frames_are_spread(data: Prepared) -> Finding:
    finding = partial(Finding, (11,), "frame spread")
    videos = [v for v in data.videos if not v.is_picture and v.n_frames_sampled >= 4]
    known = [v for v in videos if v["n_frames"] and v["face_choice"] != "shipped"]
    if not known:
        reason = "has four frames or more" if not videos else "says how many frames it has"
        return finding("unchecked", f"no video {reason}.", [])
    narrow = []
    for v in known:
        wanted = data.folders[v.folder].prepared.get("recipe", {}).get("frames")
        wanted = min(max(wanted or 0, v.n_frames_sampled), v["n_frames"])
        whole = v["n_frames"] * (wanted - 1) / wanted  # from centre to centre of the outer parts
        if v.frames[1] - v.frames[0] < MIN_SPAN * whole:
            narrow.append(v)
    text = f"the crops of {len(narrow)} of {len(known)} videos span less than {MIN_SPAN:.0%} of it"
    if len(narrow) > MAX_NARROW * len(known):
        hint = "the first frames are no sample of a video; prepare them anew."
        return finding("WARN", f"{text}: {hint}", data.named(narrow))
    return finding("OK", f"{text}.", data.named(narrow))


def crops_follow_one_recipe(data: Prepared) -> Finding:
    finding = partial(Finding, (8,), "crop recipe")
    crops = defaultdict(list)
    for folder in data.folders:
        recipe = folder.prepared.get("recipe", {}).get("crop")
        crops[json.dumps(recipe, sort_keys=True)].append(folder.path.name)
    if len(crops) > 1:
        text = "; ".join(f"{', '.join(names)}: {recipe}" for recipe, names in crops.items())
        return finding(
            "WARN",
            f"folders were cropped in {len(crops)} ways ({text}): prepare them with the same "
            "options, or a detector meets other margins than it learned.",
            [name for names in crops.values() for name in names],
        )
    if next(iter(crops)) == "null":
        return finding("unchecked", "no prepare.json says how faces were cropped.", [])
    return finding("OK", "all crops follow one recipe.", [])


def one_set_of_libraries(data: Prepared) -> Finding:
    finding = partial(Finding, (24, 27), "library versions")
    held: dict[str, list[str]] = defaultdict(list)
    for folder in data.folders:
        stored = [folder.prepared.get("versions"), *folder.prepared.get("other_versions", ())]
        for versions in filter(None, stored):
            held[json.dumps(versions, sort_keys=True)].append(folder.path.name)
    if not held:
        return finding("unchecked", "no prepare.json names library versions.", [])
    if len(held) > 1:
        sets = [json.loads(text) for text in held]
        keys = sorted({key for one in sets for key in one})
        differing = {k: sorted({str(one.get(k)) for one in sets}) for k in keys}
        shown = ", ".join(f"{k} {' and '.join(v)}" for k, v in differing.items() if len(v) > 1)
        return finding(
            "WARN",
            f"crops were made by {len(held)} sets of libraries ({shown}): other encoders write "
            "other bytes; prepare all with one installation.",
            sorted({name for names in held.values() for name in names}),
        )
    return finding("OK", "one set of libraries made all crops.", [])


CHECKS: tuple[Callable[[Prepared], Finding | None], ...] = (
    people_keep_to_one_split,
    both_parents_in_one_split,
    footage_keeps_to_one_split,
    videos_keep_to_one_split,
    a_file_comes_once,
    a_crop_comes_once,
    training_sets_may_be_trained_on,
    partial(metadata_tells_no_label, kind="all"),
    partial(metadata_tells_no_label, kind="videos"),
    partial(metadata_tells_no_label, kind="pictures"),
    faces_are_equally_large,
    boxes_come_from_the_file,
    crops_follow_one_recipe,
    the_manipulated_face_is_cropped,
    qualities_are_aligned,
    qualities_are_complete,
    frames_are_spread,
    failures_spare_both_classes,
    labels_are_constant,
    both_classes_in_every_split,
    one_set_of_libraries,
)
"""The short form: one line per check."""


# --- crops -------------------------------------------------------------------------------------


@dataclass
class Looked:
    """What reading the crops gave: files that are missing, damaged or changed, and hashes of what
    some show."""

    n_files: int = 0
    n_compared: int = 0
    broken: list[str] = field(default_factory=list)
    hashes: list[np.ndarray] = field(default_factory=list)  # uint8 [32] each
    owners: list[tuple[int, str]] = field(default_factory=list)  # (folder, video_id) of each
    splits: list[int] = field(default_factory=list)


def _look(looked: Looked, folder: Path, number: int, columns: Mapping[str, list]) -> None:
    """Look at the crops of one part: all are there and end where they should; a few of each video
    and quality are compared with their recorded hash, and those of the first quality decoded and
    hashed by what they show."""
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    qualities = columns["quality"]
    first = "raw" if "raw" in qualities else next(iter(qualities), None)
    for row, relative in enumerate(columns["path"]):
        looked.n_files += 1
        pure = PurePosixPath(relative)
        if pure.is_absolute() or ".." in pure.parts or not _is_whole(folder / relative):
            looked.broken.append(relative)
        else:
            rows_of[columns["video_id"][row], qualities[row]].append(row)
    for (video_id, quality), rows in rows_of.items():
        for row in (rows[i] for i in _evenly(len(rows), CROPS_PER_VIDEO)):
            path, sha256 = folder / columns["path"][row], columns["crop_sha256"][row]
            looked.n_compared += bool(sha256)
            try:
                same = not sha256 or sha256_of(path) == sha256
                crop = read_crop(path) if same and quality == first else None
            except (DfdetectError, OSError):
                same = False
            if not same:
                looked.broken.append(columns["path"][row])
            elif crop is not None and (bits := picture_hash(crop)) is not None:
                looked.hashes.append(bits)
                looked.owners.append((number, video_id))
                looked.splits.append(_code({columns["split"][row]}))


def _is_whole(path: Path) -> bool:
    """Whether the file is there and not cut short: a PNG ends with its last chunk, a WebP is as
    long as it says."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
            size = file.seek(0, 2)
            if head.startswith(b"\x89PNG\r\n\x1a\n"):
                file.seek(max(0, size - 8))
                return file.read(4) == b"IEND"
            if head[:4] == b"RIFF" and head[8:] == b"WEBP":
                return size == 8 + int.from_bytes(head[4:8], "little")
            return size > 0
    except OSError:
        return False


def picture_hash(crop: np.ndarray) -> np.ndarray | None:
    """256 bits of what a crop uint8 [H,W,3] shows, packed into uint8 [32]: which of its 16 x 16
    lowest cosine frequencies are above their median. Steady under re-encoding, scaling and
    brightness; None for a crop that is black by more than half, where borders would decide."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA)
    if (small == 0).mean() > 0.5 or small.std() < 1:
        return None
    low = cv2.dct(small.astype(np.float32))[:16, :16].reshape(-1)
    return np.packbits(low > np.median(low[1:]))


def near_pairs(hashes: np.ndarray, splits: np.ndarray) -> list[tuple[int, int, int]]:
    """Of every hash uint8 [n,32] the nearest found in another of the splits [n], if at most
    NEAR_BITS differ: (first, second, bits), nearest pair first.

    The hashes are sorted BANDS times, each time by another 16 of their bits first, and compared
    with the NEIGHBOURS of another split before and after: near ones share the leading bits in some
    order.
    n log n, where all pairs would be n².
    """
    n = len(hashes)
    least, partner = np.full(n, NEAR_BITS + 1), np.full(n, -1)
    for band in range(BANDS if n else 0):
        turned = np.roll(hashes, -2 * band, axis=1)
        upwards = np.argsort(np.ascontiguousarray(turned).view("S32")[:, 0], kind="stable")
        for order in (upwards, upwards[::-1]):
            in_order = splits[order]
            ends = np.flatnonzero(np.r_[in_order[1:] != in_order[:-1], True])
            other = np.repeat(ends + 1, np.diff(np.r_[-1, ends]))  # where another split begins
            for step in range(NEIGHBOURS):
                here = np.flatnonzero(other + step < n)
                a, b = order[here], order[other[here] + step]
                bits = np.bitwise_count(hashes[a] ^ hashes[b]).sum(1, dtype=np.int64)
                nearer = (bits < least[a]) & (splits[a] != splits[b])
                least[a[nearer]], partner[a[nearer]] = bits[nearer], b[nearer]
    found = {
        (int(min(i, partner[i])), int(max(i, partner[i])), int(least[i]))
        for i in np.flatnonzero(partner >= 0)
    }
    return sorted(found, key=lambda pair: (pair[2], pair))


def near_duplicates(data: Prepared, looked: Looked) -> Finding:
    finding = partial(Finding, (3,), "near duplicates")
    n = len(looked.hashes)
    hashes = np.array(looked.hashes, np.uint8).reshape(n, 32)
    pairs = near_pairs(hashes, np.array(looked.splits))
    if not pairs:
        return finding("OK", f"none of {n} crops looks like one of another split.", [])
    by_key = {(v.folder, v.video_id): v for v in data.videos}
    a, b = (by_key[looked.owners[i]] for i in pairs[0][:2])
    videos = [by_key[looked.owners[i]] for pair in pairs for i in pair[:2]]
    n_videos = len({(v.folder, v.video_id) for v in videos})
    return finding(
        "WARN",
        f"{n_videos} videos hold crops that look like one of another split (of {n} compared; "
        f"nearest: {a.video_id} in {'+'.join(_in_order(a.splits))} and {b.video_id} in "
        f"{'+'.join(_in_order(b.splits))}, {pairs[0][2]} of 256 bits differ): look at them, and "
        "give the same footage one split.",
        data.named(videos),
    )


def files_are_whole(looked: Looked) -> Finding:
    finding = partial(Finding, (12,), "crop files")
    compared = f"{looked.n_compared} of {looked.n_files} were compared with their hash"
    if looked.broken:
        return finding(
            "FAIL",
            f"{len(looked.broken)} of {looked.n_files} crops are missing, damaged or changed "
            f"({compared}): run prepare with --repair.",
            sorted(set(looked.broken)),
        )
    return finding("OK", f"all {looked.n_files} crops are there; {compared}.", [])


# --- small things ------------------------------------------------------------------------------


def _splits(videos: Iterable[Video]) -> set[str]:
    return {split for v in videos for split in v.splits}


def _labels(videos: Iterable[Video]) -> set[int | None]:
    return {label for v in videos for label in v.labels}


def _different_files(videos: Sequence[Video]) -> bool:
    """Whether videos of one id, from several folders, are known to be different files."""
    hashes = [v["source_sha256"] for v in videos]
    return all(hashes) and len(set(hashes)) == len(videos)


def _in_order(splits: Collection[str]) -> list[str]:
    known = [split for split in SPLITS if split in splits]
    return known + sorted(map(str, set(splits) - set(SPLITS)))


def _code(splits: set[str]) -> int:
    """A number per split; one more for a video that is in several, and found elsewhere."""
    return SPLITS.index(next(iter(splits))) if len(splits) == 1 and splits <= set(SPLITS) else 9


def _is_official(dataset: str | None) -> bool:
    """DeepfakeBench calls the parts of FaceForensics++ FF-DF and so on."""
    return _plain(dataset) in OFFICIAL or (dataset or "").startswith("FF-")


def person(dataset: str | None, identity: str) -> str:
    """One name for a person, the same in sets that share people."""
    return f"{_home(dataset, identity)}/{identity}"


def _home(dataset: str | None, identity: str) -> str:
    """The set under whose names `dataset` knows a person."""
    if re.fullmatch(r"\d{3}", identity) and (
        dataset in OF_FFPP or (dataset or "").startswith("FF-")  # as DeepfakeBench calls its parts
    ):
        return FFPP
    if re.fullmatch(r"id\d+", identity) and dataset in OF_CELEB_DF:
        return "Celeb-DF-v2"
    return str(dataset)


def _group(video: Video) -> str:
    """Whose video it is: a fake stands with its target."""
    return video.people[0] if video.identities else video.video_id


def _evenly(n: int, wanted: int) -> list[int]:
    """`wanted` positions spread over 0..n-1, all where there are no more."""
    return sorted({(2 * i + 1) * n // (2 * wanted) for i in range(wanted)}) if n else []


def _plain(name: str | None) -> str:
    return "".join(filter(str.isalnum, name or "")).lower()


def _test_only(dataset: str | None) -> bool:
    return _plain(dataset) in TEST_ONLY


def _strength(quality: str) -> str:
    parsed = parse_quality(quality)
    heavy = parsed.level > 30 if parsed.kind == "h264" else parsed.level < 50
    return "heavy" if heavy and parsed.kind != "raw" else "light"
