"""A CSV table, one line per file: path, label; optionally manipulation, identity, split, dataset.

Paths are relative to the CSV's folder. `--columns manipulation=method` reads another heading;
`--where part=main` keeps the lines that match. An identity cell may hold several, joined by `;`.
"""

import re
from pathlib import Path

from dfdetect.datasets.base import DatasetOptions, Listing, read_csv
from dfdetect.errors import DfdetectError
from dfdetect.manifest import SourceVideo

COLUMNS = ("path", "label", "manipulation", "identity", "split", "dataset")
LABELS = {"real": 0, "0": 0, "original": 0, "fake": 1, "1": 1}


def looks_right(source: Path) -> bool:
    return source.is_file() and source.suffix.lower() != ".json"


def list_videos(source: Path, options: DatasetOptions) -> Listing:
    """Errors: DfdetectError for a missing column, an unknown label, a path outside the folder."""
    rows = read_csv(source)
    if not rows:
        raise DfdetectError(
            f"{source}: the table has no rows", "it needs a header and one line per file"
        )
    headings = set(rows[0]) - {None}  # under None DictReader puts what is beyond the header
    if strange := [k for k in options.columns if k not in COLUMNS]:
        raise DfdetectError(
            f"--columns names {strange[0]!r}", f"it maps {', '.join(COLUMNS)} to your headings"
        )
    heading = {column: options.columns.get(column, column) for column in COLUMNS}
    needed = {heading[c] for c in ("path", "label", *options.columns)} | set(options.where)
    if missing := sorted(needed - headings):
        raise DfdetectError(
            f"{source}: no column {missing[0]!r}",
            f"it has {', '.join(sorted(headings)) or 'none'}; map headings with --columns path=...",
        )
    videos = []
    for number, row in enumerate(rows, start=2):
        if any((row[column] or "") != value for column, value in options.where.items()):
            continue
        cell = {c: (row.get(heading[c]) or "").strip() for c in COLUMNS}
        label = LABELS.get(cell["label"].lower())
        if label is None:
            raise DfdetectError(
                f"{source}, line {number}: label {cell['label']!r}", "use real or fake (or 0 and 1)"
            )
        path = Path(cell["path"])
        if path.is_absolute() or ".." in path.parts or not cell["path"]:
            raise DfdetectError(
                f"{source}, line {number}: path {cell['path']!r} leaves the table's folder",
                "use paths relative to the table",
            )
        identities = tuple(i for i in re.split(r"\s*;\s*", cell["identity"]) if i)
        dataset = cell["dataset"] or source.resolve().parent.name
        videos.append(
            SourceVideo(
                path=source.parent / path,
                video_id=f"{source.resolve().parent.name}/{path.as_posix()}",
                label=label,
                dataset=dataset,
                manipulation=(cell["manipulation"] or "fake") if label else "real",
                identities=identities or (path.as_posix(),),
                split=cell["split"] or None,
                source=path.as_posix(),
            )
        )
    if options.where and not videos:
        column, value = next(iter(options.where.items()))
        held = ", ".join(sorted({row[column] or "" for row in rows})[:8])
        raise DfdetectError(
            f"{source}: --where {column}={value} matches none of {len(rows)} rows",
            f"{column} holds {held}",
        )
    return Listing(videos, "expected a CSV with the columns path and label")
