"""A plain folder: `real/**` and `fake/<manipulation>/**`, videos and pictures mixed.

Files of the same stem count as one identity, because home-made fakes are usually named after the
real file they were made from: `real/ann.mp4` and `fake/swap/ann.mp4` stay in one split.
"""

from pathlib import Path

from dfdetect.datasets.base import DatasetOptions, Listing, text_of
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SourceVideo
from dfdetect.video import media_below

EXPECTED = "expected real/**/*.mp4 and fake/<manipulation>/**/*.mp4 (pictures too) in it"


def looks_right(source: Path) -> bool:
    return any((source / side).is_dir() for side in ("real", "fake"))


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if neither real/ nor fake/ is there, or `fake/` has no subfolders."""
    if not looks_right(source):
        raise DfdetectError(f"{source}: neither real/ nor fake/ found", EXPECTED)
    videos = []
    for path in media_below(source / "real", whole=True):
        videos.append(_video(source, path, 0, "real"))
    for path in media_below(source / "fake", whole=True):
        parts = path.relative_to(source / "fake").parts
        videos.append(
            _video(source, path, 1, text_of(Path(parts[0])) if len(parts) > 1 else "fake")
        )
    return Listing(videos, EXPECTED)


def _video(source: Path, path: Path, label: int, manipulation: str) -> SourceVideo:
    stem = text_of(Path(path.stem))
    relative = text_of(path.relative_to(source))
    return SourceVideo(
        path=path,
        video_id=f"{source.resolve().name}/{relative}",
        label=label,
        dataset=source.resolve().name,
        manipulation=manipulation,
        identities=(stem,),
        source=relative,
    )
