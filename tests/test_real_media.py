"""The whole loop on real deepfakes and real people: FaceForensics++ clips, other videos, photos.

The folder comes from DFDETECT_MEDIA and holds INDEX.csv with one row per file. A few steps of a
tiny network say nothing about accuracy; what is tested is that everything works on real files.
"""

import csv
import json

import pytest
from conftest import SHARED, beside

from dfdetect.manifest import read_table

N_FAKE_VIDEOS, N_REAL_VIDEOS, N_PHOTOS = 5, 6, 6


@pytest.fixture(scope="module")
def media():
    return beside("DFDETECT_MEDIA", SHARED / "media")


@pytest.fixture(scope="module")
def table(media, tmp_path_factory):
    """A folder of links and a table: small videos of distinct groups and photos, both classes."""
    with (media / "INDEX.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = [r for r in csv.DictReader(file) if r["part"] == "main"]
    pixels = lambda r: int(r["width"]) * int(r["height"]) * int(r["frames"] or 1)  # noqa: E731
    chosen, groups = [], set()

    def pick(kind, label, n):
        found = 0
        for row in sorted(
            (r for r in rows if (r["kind"], r["label"]) == (kind, label)), key=pixels
        ):
            group = row["identity_or_group"]
            if found < n and group not in groups and int(row["face_px"] or 0) >= 60:
                groups.add(group)
                chosen.append(row)
                found += 1

    pick("video", "fake", N_FAKE_VIDEOS)
    pick("video", "real", N_REAL_VIDEOS)
    pick("image", "fake", N_PHOTOS)
    pick("image", "real", N_PHOTOS)
    root = tmp_path_factory.mktemp("media")
    for row in chosen:
        (root / row["path"]).parent.mkdir(parents=True, exist_ok=True)
        (root / row["path"]).symlink_to(media / row["path"])
    with (root / "INDEX.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(chosen)
    return root / "INDEX.csv"


@pytest.fixture(scope="module")
def prepared(table, tmp_path_factory):
    from typer.testing import CliRunner

    from dfdetect.cli import app

    out = tmp_path_factory.mktemp("prepared") / "data"
    result = CliRunner().invoke(
        app,
        ["prepare", str(table), "--out", str(out), "--frames", "4", "--json",
         "--columns", "manipulation=method,identity=identity_or_group", "--where", "part=main"],
    )  # fmt: skip
    assert result.exit_code in (0, 3), result.stderr
    return out, json.loads(result.stdout)


def test_real_media_give_pairs_at_every_quality_in_identity_disjoint_splits(prepared):
    out, summary = prepared
    rows = read_table(out).to_pylist()
    qualities = {}
    for row in rows:
        qualities.setdefault(row["sample_id"], set()).add(row["quality"])
    assert all(found == {"raw", "c23", "c40"} for found in qualities.values())
    split_of = {}
    for row in rows:
        for identity in row["identities"]:
            assert split_of.setdefault(identity, row["split"]) == row["split"]
    n = 2 * N_PHOTOS + N_FAKE_VIDEOS + N_REAL_VIDEOS
    assert len(summary["failures"]) <= 0.2 * n  # faces that MTCNN does not see are no surprise


@pytest.mark.parametrize("preset", ["qad-tiny", "did-tiny"])
def test_a_tiny_detector_trains_evaluates_and_scans_on_real_media(
    cli, media, prepared, tmp_path, preset
):
    data, run = prepared[0], tmp_path / "run"
    done = cli(
        "train", "--preset", preset, "--data", data, "--out", run, "--device", "cpu",
        "--set", "epochs=1", "--set", "steps_per_epoch=4", "--set", "image_size=64",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    done = cli("eval", run, "--data", data, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    assert {c["level"] for c in cells} == {"frame", "track", "video"}
    assert all(c["auc"] is None or 0 <= c["auc"] <= 1 for c in cells)
    fake = next(media.glob("**/519_515.mp4"), None) or next(media.glob("**/*fake*.mp4"))
    done = cli("scan", fake, "--model", run, "--device", "cpu", "--json", "--frames", 6)
    verdict = json.loads(done.stdout)
    assert verdict["call"] in ("likely-fake", "likely-real", "inconclusive")
    assert verdict["tracks"] and 0 <= verdict["score"] <= 1


def test_the_official_ffpp_tree_is_recognised_and_prepared(cli, media, tmp_path):
    root = next((p.parent for p in media.glob("**/manipulated_sequences")), None)
    if root is None:
        pytest.skip("no FaceForensics++ tree among the media")
    plan = json.loads(cli("prepare", root, "--out", tmp_path / "d", "-n", "--json").stdout)
    assert plan["videos"] >= 4
    done = cli(
        "prepare", root, "--out", tmp_path / "d", "--qualities", "raw", "--frames", 2, "--json"
    )
    assert done.exit_code == 0, done.stderr
    manipulations = {r["manipulation"] for r in read_table(tmp_path / "d").to_pylist()}
    assert {"real", "Deepfakes"} <= manipulations
