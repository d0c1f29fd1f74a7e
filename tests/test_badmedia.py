"""Hostile and odd files: prepare gives the expected class or a clear error, and goes on; for scan
see test_scan_safe.py.

DFDETECT_BADMEDIA names a folder with expected_<set>.json and <set>/in/..., or one with the
generator make_badmedia.py, which is then run.
"""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED, beside
from faults.processes import tree

from dfdetect.manifest import read_table
from dfdetect.prepare import PrepareRecipe, Running, prepare

GROUPS = {"control", "broken", "valid-odd", "codec", "mismatch", "image", "name", "time"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """[(folder of inputs, cases)] of every set of hostile files."""
    root = beside("DFDETECT_BADMEDIA", SHARED / "badmedia")
    return folders_of(root, tmp_path_factory.mktemp("badmedia"))


def folders_of(root: Path, made: Path) -> list[tuple[Path, list[dict]]]:
    """The sets that lie in `root`, or that its generator makes in `made`."""
    if not any(
        (root / p.stem.removeprefix("expected_") / "in").is_dir()
        for p in root.glob("expected_*.json")
    ):
        subprocess.run(
            [sys.executable, str(root / "make_badmedia.py"), str(made)],
            check=True,
            capture_output=True,
        )
        root = made
    return [
        (root / path.stem.removeprefix("expected_") / "in", json.loads(path.read_text())["cases"])
        for path in sorted(root.glob("expected_*.json"))
    ]


def path_of(folder: Path, case: dict) -> Path:
    name = (
        os.fsdecode(base64.b64decode(case["path_b64"]))
        if case.get("path") is None
        else case["path"]
    )
    return folder / name


def prepared_class(kind: str | None) -> str:
    """The class of a file, by the kind of its failure in `prepare`, if it failed."""
    return {"error": "clean-error", "no-face": "ok-no-face", None: "ok-with-faces"}[kind]


def test_prepare_takes_what_it_can_and_lists_the_rest_whatever_the_workers(sets, tmp_path):
    recipe = PrepareRecipe(("raw", "c40"), 2)
    for number, (folder, cases) in enumerate(sets):
        rows, expected = ["path,label"], {}
        for case in cases:
            path = path_of(folder, case)
            plain = case.get("path") and not set(case["path"]) & set('\n\r",;')
            if case["group"] in GROUPS - {"name"} and plain:
                rows.append(f"in{number}/{path.relative_to(folder)},real")
                expected[f"in{number}/{case['path']}"] = case["expect"]
        (tmp_path / f"in{number}").symlink_to(folder)
        table = tmp_path / f"table{number}.csv"
        table.write_text("\n".join(rows) + "\n")
        results = []
        for workers in (1, 2, 4):
            out = tmp_path / f"{number}-{workers}"
            summary = prepare(table, out, recipe, running=Running(workers=workers))
            results.append((sorted(summary.failures), tree(out)))
        assert results[0] == results[1] == results[2]
        failures = {f.source: f for f in results[0][0]}
        wrong = []
        for name, classes in expected.items():
            kind = failures[name].kind if name in failures else None
            found = prepared_class(kind)
            if found not in classes and found != "clean-error":
                wrong.append((name, found, classes))
            if kind == "error":
                assert "unexpected" not in failures[name].message, failures[name].message
        assert wrong == []
        good = [n for n, c in expected.items() if c == ["ok-with-faces"] and "good/" in n]
        assert good and not set(good) & set(failures)


def test_hostile_names_keep_their_rows_apart(sets, tmp_path):
    """As many videos as inputs whatever they are called, and no file overwritten."""
    for number, (folder, cases) in enumerate(sets):
        source, out = tmp_path / f"source{number}", tmp_path / f"out{number}"
        source.mkdir()
        (source / "real").symlink_to(folder / "names")
        n = sum(case["group"] == "name" for case in cases)
        summary = prepare(source, out, PrepareRecipe(("raw",), 2))
        assert summary.n_videos == n
        rows = read_table(out).to_pylist()
        assert len({r["video_id"] for r in rows}) + len(summary.failures) == n
        assert len({r["path"] for r in rows}) == len(rows)
        assert all((out / r["path"]).is_file() for r in rows)
        assert all("unexpected" not in f.message for f in summary.failures)
