"""A plain folder: `real/**` and `fake/<manipulation>/**`, videos and pictures mixed.

Files of the same stem count as one identity, because home-made fakes are usually named after the
real file they were made from: `real/ann.mp4` and `fake/swap/ann.mp4` stay in one split.
"""

from pathlib import Path

from dfdetect.datasets.base import DatasetOptions, read_csv, text_of
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SourceVideo
from dfdetect.video import media_below

EXPECTED = "expected real/**/*.mp4 and fake/<manipulation>/**/*.mp4 (pictures too) in it"


def folder(source: Path, options: DatasetOptions) -> list[SourceVideo]:
    """Errors: DfdetectError if neither real/ nor fake/ is there, or `fake/` has no subfolders."""
    if not any((source / side).is_dir() for side in ("real", "fake")):
        raise DfdetectError(f"{source}: neither real/ nor fake/ found", EXPECTED)
    splits = read_split_list(options.splits) if options.splits else {}
    videos = []
    for path in media_below(source / "real"):
        videos.append(_video(source, path, 0, "real", splits))
    for path in media_below(source / "fake"):
        parts = path.relative_to(source / "fake").parts
        videos.append(
            _video(source, path, 1, text_of(Path(parts[0])) if len(parts) > 1 else "fake", splits)
        )
    return videos


def read_split_list(path: Path) -> dict[str, str]:
    """A CSV with columns `path` (or `identity`) and `split` -> {path or identity: split}."""
    rows = read_csv(path)
    key = next((k for k in ("path", "identity") if rows and k in rows[0]), None)
    if key is None or "split" not in rows[0]:
        raise DfdetectError(f"{path}: needs the columns path (or identity) and split")
    return {row[key]: row["split"] for row in rows}


def _video(
    source: Path, path: Path, label: int, manipulation: str, splits: dict[str, str]
) -> SourceVideo:
    stem = text_of(Path(path.stem))
    relative = text_of(path.relative_to(source))
    return SourceVideo(
        path=path,
        video_id=f"{source.resolve().name}/{relative}",
        label=label,
        dataset=source.resolve().name,
        manipulation=manipulation,
        identities=(stem,),
        split=splits.get(relative, splits.get(stem)),
        source=relative,
    )
