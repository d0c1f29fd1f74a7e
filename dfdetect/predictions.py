"""predictions.parquet: what a model said of every crop, and which model that was.

eval writes it; whoever reads it needs neither the network nor the crops.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfdetect.errors import DfdetectError
from dfdetect.files import read_json, write_whole
from dfdetect.results import Prediction

METRICS_SCHEMA = 2
"""The schema_version of metrics.json."""
_MODEL = b"dfdetect model"
_OPTIONAL = {"predicted_domain", "face_px"}
_WORDS = ["data", "video_id", "dataset", "manipulation", "quality", "split", "predicted_domain"]
"""Columns of few distinct words, each stored once."""


class Words(NamedTuple):
    """A column of words: `words` [k], sorted and distinct, and of each row the number of its own,
    `codes` int [n]."""

    codes: np.ndarray
    words: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Words":
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        one = pa.chunked_array(column.unify_dictionaries().chunks, column.type).combine_chunks()
        words, place = np.unique(np.array(one.dictionary.to_pylist(), str), return_inverse=True)
        return cls(place[one.indices.to_numpy()], words)

    def where(self, rows: np.ndarray) -> "Words":
        """Of some rows, with the words that are left."""
        codes, place = np.unique(self.codes[rows], return_inverse=True)
        return Words(place, self.words[codes])

    def is_(self, word: str) -> np.ndarray:
        """bool [n]"""
        return (self.words == word)[self.codes]


class Columns(NamedTuple):
    """The predictions of one folder, column by column, [n] each; `face_px` NaN where unknown."""

    video: Words
    quality: Words
    manipulation: Words
    track: np.ndarray
    label: np.ndarray
    logit: np.ndarray
    score: np.ndarray
    face_px: np.ndarray

    def where(self, rows: np.ndarray) -> "Columns":
        """Of `rows`, a mask or numbers."""
        return Columns(*(c.where(rows) if isinstance(c, Words) else c[rows] for c in self))

    @property
    def qualities(self) -> list[str]:
        """In the order in which they come."""
        firsts = np.unique(self.quality.codes, return_index=True)[1]
        return [str(self.quality.words[code]) for code in self.quality.codes[np.sort(firsts)]]


@dataclass(frozen=True)
class Predictions:
    """`model` is described as in metrics.json: name, path, sha256, threshold, preset, crop and
    trained_on, and its calibration if there is one; `table` has the columns of Prediction and
    `data`, the name of each row's folder."""

    model: dict[str, Any]
    table: pa.Table

    @classmethod
    def of(
        cls, model: Mapping[str, Any], rows: Mapping[str, Sequence[Prediction]]
    ) -> "Predictions":
        """The columns of predicted domains and of face widths are left out where there are none."""
        columns: dict[str, Any] = {"data": [name for name, ps in rows.items() for _ in ps]}
        of_fields = zip(*(p for ps in rows.values() for p in ps), strict=True)
        columns |= dict(zip(Prediction._fields, of_fields, strict=True))
        for name in _OPTIONAL:
            if all(value is None for value in columns[name]):
                del columns[name]
        return cls(dict(model), pa.table({n: pa.array(c) for n, c in columns.items()}))

    @cached_property
    def rows(self) -> dict[str, list[Prediction]]:
        """By the name of their folder."""
        rows: dict[str, list[Prediction]] = {}
        for row in self.table.to_pylist():
            rows.setdefault(row.pop("data"), []).append(Prediction(**row))
        return rows

    def folders(self) -> dict[str, Columns]:
        """Columns by the name of their folder.

        Errors: DfdetectError naming the first crop whose logit or score is not finite, or whose
        label is neither 0 nor 1, and a video with two labels.
        """
        names = Words.of(self.table["data"])
        order = [str(names.words[i]) for i in dict.fromkeys(names.codes.tolist())]
        label, logit, score = (self.table[n].to_numpy() for n in ("label", "logit", "score"))
        self._refuse(~np.isfinite(logit) | ~np.isfinite(score), "has no finite score")
        self._refuse((label != 0) & (label != 1), "has a label that is neither 0 nor 1")
        n = len(label)
        face_px = (
            self.table["face_px"].to_numpy()
            if "face_px" in self.table.column_names
            else np.full(n, np.nan)
        ).astype(np.float64)
        track = self.table["track_id"].to_numpy()
        words = (Words.of(self.table[c]) for c in ("video_id", "quality", "manipulation"))
        all_rows = Columns(*words, track, label, logit, score, face_px)
        video = all_rows.video.codes + len(all_rows.video.words) * names.codes
        _, firsts, place = np.unique(video, return_index=True, return_inverse=True)
        self._refuse(label != label[firsts][place], "is of a video that has the other label too")
        return {name: all_rows.where(names.is_(name)) for name in order}

    def _refuse(self, wrong: np.ndarray, why: str) -> None:
        if wrong.any():
            row = self.table.slice(int(wrong.argmax()), 1).to_pylist()[0]
            raise DfdetectError(
                f"{row['data']}: {row['sample_id']} at {row['quality']} {why}"
                f" ({int(wrong.sum())} of {len(wrong)} crops)",
                "no figure is made of a part; see to the model and the data",
            )


def write_predictions(path: Path, predictions: Predictions) -> None:
    table = predictions.table.replace_schema_metadata({_MODEL: json.dumps(predictions.model)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_whole(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Errors: DfdetectError for a file that is damaged, that eval did not write, or that an older
    eval wrote, which does not say of which model it is."""
    try:
        table = pq.read_table(path, read_dictionary=_WORDS)
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
    return Predictions(json.loads(model), table)


class Results(NamedTuple):
    """What eval wrote into a folder: predictions.parquet, and what metrics.json holds."""

    predictions: Predictions
    metrics: dict[str, Any]


def read_results(folder: Path) -> Results:
    """Errors: DfdetectError if eval did not write `folder` to its end, an older eval did, or it was
    damaged since."""
    files = [folder / name for name in ("predictions.parquet", "metrics.json")]
    remedy = "write it with: dfdetect eval RUN --data DATA --out " + str(folder)
    for path in files:
        if not path.exists():
            raise DfdetectError(f"{folder}: holds no {path.name}", remedy)
    metrics = read_json(files[1])
    if not isinstance(metrics, dict) or metrics.get("schema_version") != METRICS_SCHEMA:
        raise DfdetectError(f"{files[1]}: written by another version of dfdetect", remedy)
    return Results(read_predictions(files[0]), metrics)
