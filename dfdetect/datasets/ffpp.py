"""FaceForensics++ (Rössler et al., ICCV 2019), its official tree and split files.

    original_sequences/youtube/<quality>/videos/TTT.mp4
    manipulated_sequences/<method>/<quality>/videos/TTT_SSS.mp4      target_source

`<quality>` is raw (older trees: c0), c23 or c40. The best one shipped is prepared, and the other
qualities are made from it, so that all of them are pixel-aligned. `splits/{train,val,test}.json`
are lists of pairs; reals a, b and fakes a_b, b_a of a pair belong to its split.
"""

import re
from pathlib import Path

from dfdetect.datasets.base import DatasetOptions, Listing, read_splits
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SourceVideo

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
QUALITIES = ("raw", "c0", "c23", "c40")  # best first
EXPECTED = (
    "expected original_sequences/youtube/{raw|c23|c40}/videos/*.mp4 and "
    "manipulated_sequences/<method>/{raw|c23|c40}/videos/*.mp4; "
    "get it from github.com/ondyari/FaceForensics"
)


def looks_right(source: Path) -> bool:
    official = ("original_sequences", "manipulated_sequences")
    return any((source / sub).is_dir() for sub in official)


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if the tree is not there, or a split file is not a list of pairs."""
    folders = [("real", source / "original_sequences" / "youtube")]
    folders += [(m, source / "manipulated_sequences" / m) for m in METHODS]
    shipped = {m: _videos_at_best_quality(root) for m, root in folders}
    if not any(shipped.values()):
        raise DfdetectError(f"{source}: not a FaceForensics++ tree", EXPECTED)
    splits = _official_splits(source, options.splits)
    videos = []
    for method, paths in shipped.items():
        for path in paths:
            ids = tuple(re.findall(r"\d{3}", path.stem))
            if not re.fullmatch(r"\d{3}(_\d{3})?", path.stem):
                continue
            relative = path.relative_to(source).as_posix()
            videos.append(
                SourceVideo(
                    path=path,
                    video_id=f"FaceForensics++/{method}/{path.stem}",
                    label=int(method != "real"),
                    dataset="FaceForensics++",
                    manipulation=method,
                    identities=ids,
                    split=splits.get(ids[0]),
                    source=relative,
                )
            )
    unlisted = [v.video_id for v in videos if splits and v.split is None]
    if unlisted:
        raise DfdetectError(
            f"{source}: {len(unlisted)} videos are in no official split, first {unlisted[0]}",
            "complete the split files, or leave --splits out",
        )
    return Listing(videos, EXPECTED)


def _videos_at_best_quality(root: Path) -> list[Path]:
    for quality in QUALITIES:
        if found := sorted((root / quality / "videos").glob("*.mp4")):
            return found
    return []


def _official_splits(source: Path, given: Path | None) -> dict[str, str]:
    """{id: split} from `given`, SOURCE/splits or SOURCE/dataset/splits; empty if there are none."""
    usual = (source / "splits", source / "dataset" / "splits")
    found = given or next((c for c in usual if (c / "test.json").is_file()), None)
    return read_splits(found) if found else {}
