"""FFIW10K (Zhou et al., CVPR 2021): several faces per frame, only some of them manipulated.

    FFIW10K-v1-release/{source,target,target_mask}/{train,val}[/videos]/*.mp4
    FFIW10K-v1-release-test/{source,target,target_mask}[/test][/videos]/*.mp4

source is REAL, target is fake, and the same name pairs them. The mask says which face was
manipulated; the real video of the pair gets it too, so that both give the same face.
"""

from pathlib import Path

from dfdetect.datasets.base import DatasetOptions, Listing, folders_in, text_of, videos_in
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SourceVideo

NAME = "FFIW10K"
SIDES = {"source": 0, "target": 1}
HOME = "github.com/tfzhou/FFIW"
EXPECTED = (
    "expected FFIW10K-v1-release/{source,target,target_mask}/{train,val}/*.mp4 and "
    "FFIW10K-v1-release-test/{source,target,target_mask}/*.mp4"
)


def looks_right(source: Path) -> bool:
    return bool(_releases(source))


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError if neither the release nor the test archive is there."""
    releases = _releases(source)
    if not releases:
        raise DfdetectError(f"{source}: not an FFIW10K tree", f"{EXPECTED}; get it from {HOME}")
    videos: list[SourceVideo] = []
    found, missing, notes = {}, {}, []
    for release in releases:
        for split, level in _levels(release):
            files = {side: videos_in(release / side / level) for side in (*SIDES, "target_mask")}
            masks = {path.stem: path for path in files["target_mask"]}
            for side, label in SIDES.items():
                videos += [
                    _video(source, path, label, split, masks.get(path.stem)) for path in files[side]
                ]
                found[f"{side}/{split}"] = found.get(f"{side}/{split}", 0) + len(files[side])
            stems = {side: {path.stem for path in files[side]} for side in SIDES}
            for side, other in (("source", "target"), ("target", "source")):
                if absent := sorted(text_of(Path(s)) for s in stems[other] - stems[side]):
                    missing[f"{side}/{split}"] = absent
            if without := stems["target"] - masks.keys():
                notes.append(
                    f"{split}: {len(without)} fakes have no mask; which of their faces was "
                    "manipulated is not known"
                )
    return Listing(videos, EXPECTED, HOME, found, missing, notes)


def _video(source: Path, path: Path, label: int, split: str, mask: Path | None) -> SourceVideo:
    pair = f"{split}/{text_of(Path(path.stem))}"
    return SourceVideo(
        path=path,
        video_id=f"{NAME}/{NAME if label else 'real'}/{pair}",
        label=label,
        dataset=NAME,
        manipulation=NAME if label else "real",
        identities=(f"{NAME}/{pair}",),
        split=split,
        source=text_of(path.relative_to(source)),
        mask=mask,
    )


def _releases(source: Path) -> list[Path]:
    """Folders that hold target/ beside source/ or target_mask/: the source itself, its test/, or
    folders of the archives' names in it, which may hold another of that name."""
    near = [f for f in folders_in(source) if f.name == "test" or f.name.startswith(NAME)]
    inner = (i for f in near for i in folders_in(f) if i.name == "test" or i.name.startswith(NAME))
    places = [source, *near, *inner]
    return [
        place
        for place in places
        if (place / "target").is_dir()
        and any((place / side).is_dir() for side in ("source", "target_mask"))
    ]


def _levels(release: Path) -> list[tuple[str, str]]:
    """(split, folder level below source/ and target/) of a release; "." is no level."""
    if release.resolve().name.endswith("test"):
        inner = any((release / side / "test").is_dir() for side in SIDES)
        return [("test", "test" if inner else ".")]
    return [(split, split) for split in ("train", "val", "test")]
