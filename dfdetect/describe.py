"""info: what a prepared folder or a checkpoint holds."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from dfdetect.errors import DfdetectError
from dfdetect.files import read_json


class Description(NamedTuple):
    """Facts by name, and for a prepared folder its rows of counts."""

    facts: dict[str, Any]
    rows: list[dict[str, Any]]


def describe(path: Path) -> Description:
    """Errors: DfdetectError if `path` is neither a prepared folder, a run nor a checkpoint."""
    if (path / "manifest").is_dir():
        return _of_data(path)
    if path.is_file() or (path / "detector.safetensors").is_file():
        from dfdetect.checkpoint import read_info

        return Description(read_info(path).model_dump(mode="json"), [])
    cause = (
        "neither a prepared folder nor a checkpoint" if path.exists() else "no such file or folder"
    )
    raise DfdetectError(f"{path}: {cause}", "give a folder made by prepare or train")


def _of_data(path: Path) -> Description:
    from dfdetect.manifest import fingerprint, read_samples

    samples = read_samples(path)
    facts: dict[str, Any] = {
        "crops": len(samples),
        "videos": len({s.video_id for s in samples}),
        "identities": len({i for s in samples for i in s.identities}),
        "fingerprint": fingerprint(samples),
    }
    if (path / "prepare.json").exists():
        facts |= read_json(path / "prepare.json")
    if (path / "failures.csv").exists():
        facts["failures"] = max(0, len((path / "failures.csv").read_text("utf-8").splitlines()) - 1)
    videos = {(s.video_id, s.manipulation, s.label, s.split) for s in samples}
    n_videos = Counter((m, label, split) for _, m, label, split in videos)
    n_crops = Counter((s.manipulation, s.label, s.split) for s in samples)
    rows = [
        {
            "manipulation": m,
            "label": "fake" if label else "real",
            "split": split,
            "videos": n_videos[m, label, split],
            "crops": n_crops[m, label, split],
        }
        for m, label, split in sorted(n_videos, key=lambda k: (k[1], k[0], k[2]))
    ]
    return Description(facts, rows)
