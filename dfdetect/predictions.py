"""predictions.parquet: what a model said of every crop, and which model that was.

eval writes it; whoever reads it needs neither the network nor the crops.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dfdetect.errors import DfdetectError
from dfdetect.files import write_whole
from dfdetect.results import Prediction

_MODEL = b"dfdetect model"
_OPTIONAL = {"predicted_domain", "face_px"}


class Predictions(NamedTuple):
    """`model` is described as in metrics.json: name, path, sha256, threshold, preset, crop and
    trained_on; `rows` are by the name of their folder."""

    model: dict[str, Any]
    rows: dict[str, list[Prediction]]


def write_predictions(
    path: Path, model: Mapping[str, Any], rows: Mapping[str, Sequence[Prediction]]
) -> None:
    """The columns of predicted domains and of face widths are left out where there are none."""
    table = pa.Table.from_pylist([{"data": d, **p._asdict()} for d, ps in rows.items() for p in ps])
    table = table.drop_columns([n for n in sorted(_OPTIONAL) if table[n].null_count == len(table)])
    table = table.replace_schema_metadata({_MODEL: json.dumps(model)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_whole(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Errors: DfdetectError for a file that is damaged, that eval did not write, or that an older
    eval wrote, which does not say of which model it is."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        cause = (str(error).splitlines() or ["damaged"])[0]
        raise DfdetectError(
            f"{path}: cannot be read ({cause})", "`dfdetect eval --out` writes predictions.parquet"
        ) from error
    model = (table.schema.metadata or {}).get(_MODEL)
    needed = {"data", *Prediction._fields} - _OPTIONAL
    if model is None or needed - set(table.column_names):
        raise DfdetectError(
            f"{path}: does not say what which model predicted", "write it anew: dfdetect eval --out"
        )
    rows: dict[str, list[Prediction]] = {}
    for row in table.to_pylist():
        rows.setdefault(row.pop("data"), []).append(Prediction(**row))
    return Predictions(json.loads(model), rows)
