"""One video or picture -> what scan looks at: facts of the file, people, their aligned faces.

This runs in a child process (workers.py), because the file may be made to break decoders. What it
hands back are small arrays, so that whoever scores them never opens the file. Everything here uses
one thread: the last bits of networks depend on their number.
"""

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import dfdetect.sessions  # noqa: F401 (children are forked with it, and need not load it)
from dfdetect.errors import DfdetectError
from dfdetect.faces import CropRecipe, Face, FaceFinder, Track, align, to_input, track_faces
from dfdetect.results import MediaFacts
from dfdetect.video import Limits, Media, Picture, content_sha256, open_media, sample


class Look(NamedTuple):
    """A file to look at, and how; travels to a child. `name` is the path as it was given, `path`
    the same wherever the child works, and `position` tells which of many it is."""

    name: Path
    path: Path
    crop: CropRecipe
    image_size: int
    frames: int
    max_faces: int
    limits: Limits
    position: int = 0

    def __str__(self) -> str:
        return str(self.name)


class Seen(NamedTuple):
    """`images`, uint8 [S,S,3] RGB as the network takes them, are of the faces of `tracks`, track by
    track in the order of their frames; positions in a track count `media.frames_used`."""

    sha256: str
    media: MediaFacts
    is_still: bool
    tracks: list[Track]
    images: list[np.ndarray]
    warnings: list[str]


class Unseen(NamedTuple):
    """Why a file could not be looked at; `sha256` if it can be read and has not changed."""

    cause: str
    hint: str
    sha256: str | None = None


def examine(look: Look) -> Seen | Unseen:
    """Frames spread evenly over those that decode, their faces, and who is the same person.

    The file is hashed through the descriptor that it is decoded from, before and after.

    Errors: MemoryError; all else that concerns only the file is returned.
    """
    cv2.setNumThreads(1)
    if look.path.is_dir():
        hint = "give a folder with media files"
        return Unseen("no video or picture in this folder", hint)
    try:
        with open_media(look.path, look.limits) as media:
            sha256 = media.sha256()
            seen = _examine(look, media, sha256)
            if media.sha256() != sha256:
                return Unseen("changed while it was read", "scan it again", None)
            return seen
    except DfdetectError as error:
        cause = error.message.removeprefix(f"{look.path}: ")
        return Unseen(cause, error.hint, sha256_if_readable(look))
    except MemoryError:
        raise
    except Exception as error:  # a decoder's surprise on one file must not end the batch
        if "alloc" in str(error):
            raise MemoryError(str(error)) from error
        cause = f"unexpected {type(error).__name__}: {error}"
        return Unseen(cause, "please report it", sha256_if_readable(look))


def sha256_if_readable(look: Look) -> str | None:
    try:
        return content_sha256(look.path, look.limits)
    except DfdetectError:
        return None


@cache
def _face_finder(recipe: CropRecipe) -> FaceFinder:
    return FaceFinder(recipe, "onnx")


class _Found(NamedTuple):
    """Of each frame looked at (index, seconds), its faces and their images; positions that begin a
    shot; (height, width) of the first frame."""

    times: list[tuple[int, float]]
    faces: list[list[Face]]
    images: list[list[np.ndarray]]
    cuts: set[int]
    size: tuple[int, int]
    is_crowded: bool


def _examine(look: Look, media: Media, sha256: str) -> Seen:
    found = sample(media, look.frames, partial(_look_at, look))
    tracks = track_faces(found.faces, found.cuts)
    images = [
        found.images[position][_number(face, found.faces[position])]
        for track in tracks
        for position, face in track.faces.items()
    ]
    limits_hit = ["max_frames"] * media.is_longer + ["max_faces"] * found.is_crowded
    warnings = list(media.warnings)
    if found.is_crowded:
        warnings.append(
            f"more than {look.max_faces} faces in a frame: the largest {look.max_faces} were used"
        )
    facts = _facts(media, found, limits_hit)
    return Seen(sha256, facts, media.info.is_still, _without_looks(tracks), images, warnings)


def _look_at(look: Look, pictures: Iterable[Picture]) -> _Found:
    follow = _face_finder(look.crop).follower()
    times, faces, images = [], [], []
    size, is_crowded = (0, 0), False
    for picture in pictures:
        image = picture.rgb()
        found = follow(image)
        largest = found[: look.max_faces]
        times.append((picture.index, round(picture.time_s, 3)))
        faces.append(largest)
        images.append(
            [to_input(align(image, f.landmarks, look.crop), look.image_size) for f in largest]
        )
        size = size if any(size) else image.shape[:2]
        is_crowded |= len(found) > look.max_faces
    return _Found(times, faces, images, follow.cuts, size, is_crowded)


def _number(face: Face, faces: list[Face]) -> int:
    return next(i for i, other in enumerate(faces) if other is face)


def _without_looks(tracks: list[Track]) -> list[Track]:
    """They have told people apart, and are larger than the rest."""
    bare = np.zeros(0, np.float32)
    return [
        track._replace(faces={p: face._replace(look=bare) for p, face in track.faces.items()})
        for track in tracks
    ]


def _facts(media: Media, found: _Found, limits_hit: list[str]) -> MediaFacts:
    info = media.info
    n_frames = media.n_frames
    in_file = max(n_frames, info.n_frames or 0) if media.is_longer else n_frames
    rotation, mirrored = media.turned
    height, width = found.size
    return MediaFacts(
        n_bytes=info.n_bytes,
        container=info.container,
        codec=info.codec,
        pix_fmt=info.pix_fmt,
        width=width,
        height=height,
        rotation=rotation,
        mirrored=mirrored,
        frame_rate=None if info.is_still else round(float(info.frame_rate), 6),
        duration_s=info.duration_s,
        bits_per_pixel=round(8 * info.n_bytes / max(1, width * height * in_file), 6),
        n_frames=n_frames,
        n_decoded=media.n_decoded,
        n_announced=info.n_frames,
        frames_used=found.times,
        n_faces=sum(map(len, found.faces)),
        limits_hit=limits_hit,
    )
