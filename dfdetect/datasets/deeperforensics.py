"""DeeperForensics-1.0 (Jiang et al., CVPR 2020): actors' faces in the YouTube videos of FF++.

    manipulated_videos/<variant>/TTT_<actor>.mp4      target of FaceForensics++, actor
    lists/splits/{train,val,test}.txt                 names of fakes

The reals are the FaceForensics++ targets at c23, as the authors say, and NOT `source_videos`:
studio footage against YouTube footage would be told apart without looking at a face.
"""

from pathlib import Path, PurePosixPath

from dfdetect.datasets.base import DatasetOptions, Listing, folders_in, text_of, videos_in
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SPLITS, SourceVideo

NAME = "DeeperForensics-1.0"
TARGETS = Path("original_sequences", "youtube", "c23", "videos")
HOME = "github.com/EndlessSora/DeeperForensics-1.0"
EXPECTED = (
    "expected manipulated_videos/<variant>/*.mp4 and lists/splits/{train,val,test}.txt; reals are "
    f"{TARGETS.as_posix()}/*.mp4 of a FaceForensics++ tree in it, beside it, or at --root"
)


def looks_right(source: Path) -> bool:
    return (_root(source) / "manipulated_videos").is_dir()


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if the tree is not there, a fake is on no list, or `options.root` has
    no FaceForensics++ targets."""
    root = _root(source)
    splits = _read_splits(root / "lists" / "splits")
    fakes = []
    found, missing, notes = {}, {}, []
    for folder in folders_in(root / "manipulated_videos"):
        paths, variant = videos_in(folder), text_of(Path(folder.name))
        fakes += [_fake(source, path, variant, splits) for path in paths]
        found[f"manipulated_videos/{variant}"] = len(paths)
        if absent := sorted(splits.keys() - {path.stem for path in paths}):
            missing[f"manipulated_videos/{variant}"] = absent
    if not fakes:
        raise DfdetectError(
            f"{source}: not a DeeperForensics tree", f"{EXPECTED}; get it from {HOME}"
        )
    if not splits:
        notes.append("lists/splits is absent: actors are dealt anew")
    elif unlisted := [v.video_id for v in fakes if v.split is None]:
        raise DfdetectError(
            f"{source}: {len(unlisted)} fakes are in no official split, first {unlisted[0]}",
            "complete lists/splits, or delete it to deal actors anew",
        )
    targets = {fake.identities[0]: fake.split for fake in fakes}
    place = _targets(source, root, options.root)
    if place is None:
        notes.append(
            "NO REALS: they are the FaceForensics++ targets at c23, and not source_videos; "
            "name that tree with --root FACEFORENSICS"
        )
        return Listing(fakes, EXPECTED, HOME, found, missing, notes)
    reals = {path.stem: path for path in videos_in(place) if path.stem in targets}
    found["FaceForensics++ targets"] = len(reals)
    if absent := sorted(targets.keys() - reals.keys()):
        missing["FaceForensics++ targets"] = absent
    videos = fakes + [_real(path, targets[stem]) for stem, path in reals.items()]
    return Listing(videos, EXPECTED, HOME, found, missing, notes)


def _root(source: Path) -> Path:
    inner = source / NAME
    return inner if (inner / "manipulated_videos").is_dir() else source


def _read_splits(folder: Path) -> dict[str, str]:
    """{stem of a fake: split}; the lists name files, with or without their folder."""
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}.txt"
        try:
            lines = path.read_text("utf-8").split() if path.is_file() else []
        except (OSError, UnicodeDecodeError) as error:
            raise DfdetectError(f"{path}: cannot be read ({error})", f"see {HOME}") from error
        for line in lines:
            stem = PurePosixPath(line).stem
            if splits.setdefault(stem, split) != split:
                raise DfdetectError(f"{path}: {stem} is in {splits[stem]} too", f"see {HOME}")
    return splits


def _fake(source: Path, path: Path, variant: str, splits: dict[str, str]) -> SourceVideo:
    stem = text_of(Path(path.stem))
    target, _, actor = stem.partition("_")
    return SourceVideo(
        path=path,
        video_id=f"{NAME}/{variant}/{stem}",
        label=1,
        dataset=NAME,
        manipulation=variant,
        identities=(target, actor) if actor else (target,),
        split=splits.get(stem),
        source=text_of(path.relative_to(source)),
    )


def _real(path: Path, split: str | None) -> SourceVideo:
    """In the split of the fakes that were made from it."""
    return SourceVideo(
        path=path,
        video_id=f"{NAME}/real/{path.stem}",
        label=0,
        dataset=NAME,
        manipulation="real",
        identities=(path.stem,),
        split=split,
        source=(TARGETS / path.name).as_posix(),
        quality="c23",
    )


def _targets(source: Path, root: Path, given: Path | None) -> Path | None:
    """The folder of FaceForensics++ targets: below `given`, or in or beside the source."""
    if given is not None:
        if not (given / TARGETS).is_dir():
            raise DfdetectError(
                f"{given}: no {TARGETS.as_posix()} in it", "name a FaceForensics++ tree with --root"
            )
        return given / TARGETS
    beside = source.resolve().parent
    places = (source, root, beside, beside / "FaceForensics++", beside / "FaceForensics")
    return next((p / TARGETS for p in places if (p / TARGETS).is_dir()), None)
