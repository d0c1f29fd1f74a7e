"""forge: real faces of a prepared folder -> another prepared folder, of them and fakes of them.

Only aligned crops are forged, never pictures or videos, and each file says that it is synthetic.
A face keeps one draw of one forgery through its whole video, and its crops, forged or not, go
through each H.264 quality as one stream, so that the classes differ in nothing but the forgery.
"""

import csv
import hashlib
import io
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np

from dfdetect.corruptions import jpeg_round_trip
from dfdetect.cutting import WRITERS, Failure, encode_crop
from dfdetect.data import read_crop
from dfdetect.errors import DfdetectError, ExitCode, printable, unknown
from dfdetect.faces import CropRecipe, FaceFinder, align
from dfdetect.files import (
    folder_lock,
    read_json,
    sha256_of,
    sweep_unfinished,
    write_json,
    write_whole,
)
from dfdetect.forgeries import NEEDS_DECODERS, NEEDS_PARTNER, SHELF
from dfdetect.forgeries.base import Bank, Decoder, Forged, Portrait
from dfdetect.forging import DECODERS, FaceCrop, store_decoders
from dfdetect.manifest import folder_key, part_path, read_table, write_part
from dfdetect.quality import Quality, parse_qualities
from dfdetect.video import open_media, through_h264

DECODER_STEPS = 500
"""Of training each decoder."""
SUFFIX = "+forged"
"""Ends the name of the dataset of forged crops."""
DRAWS = 3
"""Of each forgery in a preview."""

Row = Mapping[str, Any]


@dataclass
class ForgeSummary:
    """What a run did: faces are tracks of videos; crops by manipulation."""

    n_faces: int = 0
    n_skipped: int = 0
    crops: Counter = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)


class _Face(NamedTuple):
    """One real track: its raw rows in the order of frames."""

    video_id: str
    track_id: int
    rows: list[Row]

    @property
    def people(self) -> tuple[str, ...]:
        return tuple(self.rows[0]["identities"] or ())

    @property
    def split(self) -> str:
        return self.rows[0]["split"]

    def rng(self, seed: int, copy: int) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.video_id}/{self.track_id}".encode("utf-8", "replace"))
        return np.random.default_rng([seed, copy, *digest.digest()[:8]])


def forge(
    source: Path, out: Path, forgeries: Sequence[str] = (), qualities: str = "raw,c23,c40",
    per_face: int = 1, seed: int = 0, decoders: Path | None = None,
    on_done: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> ForgeSummary:  # fmt: skip
    """Write the reals of `source`, a prepared folder, and `per_face` fakes of each face, to `out`.

    Each fake's forgery is drawn from `forgeries` (none: all), its partner from the same split. The
    splits are the source's. Where `reconstruct` is among them and no file of `decoders` is given,
    decoders are trained on the reals of the train split, and stored in `out`. What is finished is
    not made again. `on_done(n_done, n_total, name)` is called after each face.

    Errors: DfdetectError for unknown forgeries or qualities, a source without reals or without
    raw crops, an `out` that was forged differently; a face that fails is listed in the summary and
    in failures.csv.
    """
    names = sorted(dict.fromkeys(forgeries or SHELF))
    refuse_unknown(names)
    asked = parse_qualities(qualities)
    prepared = read_json(source / "prepare.json") if (source / "prepare.json").exists() else {}
    recipe = CropRecipe.model_validate(prepared.get("recipe", {}).get("crop", {}))
    faces = _real_faces(source)
    if NEEDS_PARTNER & set(names) and len({face.video_id for face in faces}) < 2:
        raise DfdetectError(
            f"{source}: {min(NEEDS_PARTNER & set(names))} needs the faces of two people",
            "prepare more, or leave it out of --forgeries",
        )
    cv2.setNumThreads(1)
    with folder_lock(out):
        for folder in (out, out / "manifest"):
            sweep_unfinished(folder)
        settings = {
            "forgeries": names, "per_face": per_face, "seed": seed,
            "decoders": sha256_of(decoders) if decoders else "",
        }  # fmt: skip
        _write_recipe(out, prepared, [q.name for q in asked], settings)
        drawn_by = _decoders(faces, source, recipe, out, decoders, seed, names, on_done)
        summary = ForgeSummary(n_faces=len(faces))
        for number, face in enumerate(faces, start=1):
            wanted = _copies(face, names, per_face, seed, faces)
            if all(part_path(out, copy.part_id).exists() for copy in wanted):
                summary.n_skipped += 1
            else:
                _forge_face(face, wanted, faces, source, recipe, out, asked, drawn_by, summary)
            on_done(number, len(faces), face.video_id)
        _write_failures(out, summary.failures)
    if len(summary.failures) == len(faces):
        first = summary.failures[0]
        raise DfdetectError(
            f"{source}: none of {len(faces)} faces could be forged; the first: {first.message}",
            first.hint,
        )
    return summary


def refuse_unknown(names: Sequence[str]) -> None:
    """Errors: DfdetectError for a name that is on no shelf."""
    for name in names:
        if name not in SHELF:
            raise unknown("forgery", name, SHELF)


class _Copy(NamedTuple):
    """One version of a face to write: its video's id, and the forgery; none for the real one."""

    video_id: str
    track_id: int
    forgery: str
    number: int

    @property
    def part_id(self) -> str:
        """One part of the manifest for each track of each copy."""
        return f"{self.video_id}/{self.track_id}"


def _copies(
    face: _Face, names: Sequence[str], per_face: int, seed: int, faces: Sequence[_Face]
) -> list[_Copy]:
    """The real one, and `per_face` fakes: other forgeries as long as there are others, and none
    that needs a partner, if there is another, where nobody is there to be one."""
    if any(name in NEEDS_PARTNER for name in names) and not any(_may_lend(f, face) for f in faces):
        names = [name for name in names if name not in NEEDS_PARTNER] or names
    turns = face.rng(seed, 0).permutation(len(names))
    chosen = [names[turns[i % len(names)]] for i in range(per_face)]
    copies = [_Copy(face.video_id, face.track_id, "", 0)]
    for i, name in enumerate(chosen, start=1):
        copies.append(_Copy(f"{face.video_id}+{name}.{i}", face.track_id, name, i))
    return copies


def _forge_face(
    face: _Face, wanted: Sequence[_Copy], faces: Sequence[_Face], source: Path,
    recipe: CropRecipe, out: Path, qualities: Sequence[Quality], decoders: Sequence[Decoder],
    summary: ForgeSummary,
) -> None:  # fmt: skip
    """All copies of one face, or none: the real one is written last."""
    try:
        crops = [_even(read_crop(source / row["path"])) for row in face.rows]
        for copy in reversed(wanted):
            made, partner = _forged(face, copy, crops, faces, source, recipe, decoders)
            _write_copy(face, copy, made, partner, out, qualities)
            summary.crops[copy.forgery or "real"] += len(made) * len(qualities)
    except DfdetectError as error:
        if error.exit_code == ExitCode.ENVIRONMENT:
            raise
        row = face.rows[0]
        summary.failures.append(
            Failure(
                printable(row["source"]), face.video_id, 0, row["manipulation"], "error",
                printable(error.message), error.hint, row["split"],
            )
        )  # fmt: skip


def _forged(
    face: _Face, copy: _Copy, crops: Sequence[np.ndarray], faces: Sequence[_Face], source: Path,
    recipe: CropRecipe, decoders: Sequence[Decoder],
) -> tuple[list[np.ndarray], _Face | None]:  # fmt: skip
    """The crops of a copy, and the face that is in it, if that is another."""
    if not copy.forgery:
        return list(crops), None
    seed = face.rng(0, copy.number).integers(2**63)
    partner = None
    if copy.forgery in NEEDS_PARTNER:
        partner = _partner(face, faces, np.random.default_rng(seed))
    made = []
    for number, (crop, row) in enumerate(zip(crops, face.rows, strict=True)):
        bank = Bank(None, decoders)
        if partner:
            other = partner.rows[number % len(partner.rows)]
            portrait = Portrait(
                read_crop(source / other["path"]), recipe.landmarks_in_crop(other["landmarks"])
            )
            bank = Bank(lambda portrait=portrait: portrait, decoders)
        landmarks = recipe.landmarks_in_crop(row["landmarks"])
        # The same draw for every frame: the forgery follows the landmarks, and nothing else.
        rng = np.random.default_rng(seed)
        made.append(SHELF[copy.forgery](crop, landmarks, rng, bank).image)
    return made, partner


def _partner(face: _Face, faces: Sequence[_Face], rng: np.random.Generator) -> _Face:
    """Somebody else of the same split. Errors: DfdetectError if there is nobody."""
    others = [other for other in faces if _may_lend(other, face)]
    if not others:
        raise DfdetectError(
            f"{face.video_id}: nobody else is in its split, {face.split}, to give a face",
            "prepare more people, or leave cross-blend out of --forgeries",
        )
    return others[rng.integers(len(others))]


def _may_lend(other: _Face, face: _Face) -> bool:
    """Whether `other` is of somebody else in the same split."""
    others = other.split == face.split and other.video_id != face.video_id
    return others and not set(other.people) & set(face.people)


def _write_copy(
    face: _Face, copy: _Copy, crops: Sequence[np.ndarray], partner: _Face | None, out: Path,
    qualities: Sequence[Quality],
) -> None:  # fmt: skip
    key = folder_key(copy.video_id)
    mark = f"forgery {copy.forgery} of a real face, by dfdetect forge" if copy.forgery else ""

    def write(quality: Quality, row: Row, crop: np.ndarray, plain: np.ndarray) -> dict[str, Any]:
        content = encode_crop(crop, "png")
        content = marked_synthetic(content, mark) if mark else content
        place = f"{row['frame_index']:06d}_{face.track_id}"
        relative = f"faces/{quality.name}/{key}/{place}.png"
        write_whole(out / relative, content)
        return dict(row) | {
            "path": relative,
            "crop_sha256": hashlib.sha256(content).hexdigest(),
            "sample_id": f"{copy.video_id}/{row['frame_index']:06d}/{face.track_id}",
            "video_id": copy.video_id,
            "quality": quality.name,
            "psnr_db": None if quality.kind == "raw" else float(cv2.PSNR(crop, plain)),
        }

    work = [
        (quality, row, crop, plain)
        for quality in qualities
        for row, crop, plain in zip(face.rows, _at(quality, crops), crops, strict=True)
    ]
    with ThreadPoolExecutor(WRITERS) as writers:  # each waits for the disk
        rows = list(writers.map(lambda item: write(*item), work))
    if copy.forgery:
        people = [*face.people, *(partner.people if partner else ())]
        for row in rows:
            row |= {
                "label": 1,
                "dataset": row["dataset"] + SUFFIX,
                "manipulation": copy.forgery,
                "identities": people,
                "source_sha256": None,  # the file is the real one's
                "warnings": "; ".join(filter(None, [row["warnings"], f"synthetic: {mark}"])),
            }
    write_part(out, copy.part_id, rows)


def _even(crop: np.ndarray) -> np.ndarray:
    """Without the last row and column of an odd side, which H.264 cannot have."""
    height, width = (side // 2 * 2 for side in crop.shape[:2])
    return np.ascontiguousarray(crop[:height, :width])


def _at(quality: Quality, crops: Sequence[np.ndarray]) -> list[np.ndarray]:
    if quality.kind == "h264":
        return through_h264(crops, int(quality.level))
    if quality.kind == "jpeg":
        return [jpeg_round_trip(crop, int(quality.level)) for crop in crops]
    return list(crops)


def marked_synthetic(png: bytes, text: str) -> bytes:
    """A PNG with a text chunk "Synthetic" after its header."""
    body = b"tEXtSynthetic\0" + text.encode("latin-1", "replace")
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    end_of_header = 33
    return png[:end_of_header] + chunk + png[end_of_header:]


# --- what is read, and the folder's own files ----------------------------------------------------


def _real_faces(source: Path) -> list[_Face]:
    """Errors: DfdetectError if there are none, or one without raw crops."""
    tracks: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in read_table(source).to_pylist():
        path = PurePosixPath(row["path"] or "/")
        below = not path.is_absolute() and ".." not in path.parts
        if row["label"] == 0 and row["quality"] == "raw" and below:
            tracks[row["video_id"], row["track_id"]].append(row)
    if not tracks:
        raise DfdetectError(
            f"{source}: holds no raw crops of real faces",
            "prepare some, with raw among the --qualities",
        )
    return [
        _Face(*key, sorted(rows, key=lambda row: row["frame_index"]))
        for key, rows in sorted(tracks.items())
    ]


def _decoders(
    faces: Sequence[_Face], source: Path, recipe: CropRecipe, out: Path, given: Path | None,
    seed: int, names: Sequence[str], on_done: Callable[[int, int, str], None],
) -> Sequence[Decoder]:  # fmt: skip
    if not NEEDS_DECODERS & set(names):
        return ()
    from dfdetect.forgeries.decoders import load_decoders

    path = given or out / DECODERS
    if not given and not path.exists():
        crops = [
            [FaceCrop(source / r["path"], recipe.landmarks_in_crop(r["landmarks"])) for r in f.rows]
            for f in faces
            if f.split == "train"
        ]
        store_decoders(
            crops,
            path,
            seed,
            DECODER_STEPS,
            lambda n, total: on_done(n, total, "training decoders"),
        )
    return load_decoders(path)


def _write_recipe(
    out: Path, prepared: Mapping[str, Any], qualities: list[str], settings: Mapping[str, Any]
) -> None:
    """prepare.json of the source, with what was forged. Errors: DfdetectError where `out` holds
    crops that were made otherwise."""
    recipe = dict(prepared.get("recipe", {})) | {"qualities": qualities, "format": "png"}
    content = dict(prepared) | {"recipe": recipe, "forged": dict(settings)}
    path = out / "prepare.json"
    if any((out / "manifest").glob("*.parquet")):
        before = read_json(path).get("forged") if path.exists() else None
        if before is None:
            raise DfdetectError(f"{out}: holds crops that were not forged", "use another --out")
        if read_json(path) != content:
            was, now = ((c.get("forged"), c.get("recipe")) for c in (read_json(path), content))
            raise DfdetectError(
                f"{out}: was forged with {was[0]} at {was[1].get('qualities')}, now asked for "
                f"{now[0]} at {qualities}",
                "use the same options and source, or another --out",
            )
        return
    write_json(path, content)


def _write_failures(out: Path, failures: Sequence[Failure]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Failure._fields)
    writer.writerows(sorted(failures))
    write_whole(out / "failures.csv", text.getvalue())


# --- preview -----------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A draw of a forgery on a crop uint8 [S,S,3] RGB."""

    forgery: str
    crop: np.ndarray
    forged: Forged


def preview(
    photo: Path, partner: np.ndarray, decoders: Path | None = None, seed: int = 0
) -> tuple[list[Shown], list[str]]:
    """Several draws of each forgery on the largest face of a picture (or of a video's first
    frame), as prepare crops it; `partner` is a picture uint8 [H,W,3] RGB with another face. Also
    the forgeries left out for want of decoders.

    Errors: DfdetectError if it cannot be read, or shows no face.
    """
    from dfdetect.forgeries.decoders import load_decoders

    recipe = CropRecipe()
    finder = FaceFinder(recipe)
    with open_media(photo) as media:
        image = next(iter(media.pictures())).rgb()
    face, other = (_portrait(picture, finder) for picture in (image, partner))
    if face is None or other is None:
        raise DfdetectError(f"{photo}: no face found", "give a picture that shows one")
    bank = Bank(lambda: other, load_decoders(decoders) if decoders else ())
    names = [name for name in SHELF if decoders or name not in NEEDS_DECODERS]
    shown = [
        Shown(name, face.image, SHELF[name](*face, np.random.default_rng([seed, n, draw]), bank))
        for n, name in enumerate(names)
        for draw in range(DRAWS)
    ]
    return shown, [name for name in SHELF if name not in names]


def _portrait(picture: np.ndarray, finder: FaceFinder) -> Portrait | None:
    """The largest face of a picture as prepare crops it."""
    for face in finder(picture)[:1]:
        landmarks = finder.recipe.landmarks_in_crop(face.landmarks.reshape(-1))
        return Portrait(align(picture, face.landmarks, finder.recipe), landmarks)
    return None
