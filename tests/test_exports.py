"""Lists of a prepared folder: what others read, and what comes back from it."""

import csv
import io
import json
from collections import defaultdict

import pytest

from dfdetect.datasets import list_source
from dfdetect.datasets.base import DatasetOptions
from dfdetect.errors import DfdetectError
from dfdetect.exports import as_csv, as_deepfakebench
from dfdetect.manifest import folder_key, read_samples, write_part


def add_video(data, video_id, manipulation, split, people, qualities=("raw",), n_frames=2):
    """Rows and empty crops of one video; nothing here looks into pictures."""
    rows = []
    for quality in qualities:
        for index in range(n_frames):
            path = f"faces/{quality}/{folder_key(video_id)}/{index:06d}_0.png"
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            (data / path).touch()
            rows.append(
                {
                    "path": path,
                    "sample_id": f"{video_id}/{index:06d}/0",
                    "video_id": video_id,
                    "label": int(manipulation != "real"),
                    "dataset": video_id.split("/")[0],
                    "manipulation": manipulation,
                    "identities": people,
                    "split": split,
                    "quality": quality,
                    "track_id": 0,
                }
            )
    write_part(data, video_id, rows)


@pytest.fixture
def data(tmp_path):
    both = ("raw", "c40")
    add_video(tmp_path, "FaceForensics++/real/000", "real", "train", ["000"], both)
    add_video(
        tmp_path, "FaceForensics++/Deepfakes/000_003", "Deepfakes", "train", ["000", "003"], both
    )
    add_video(tmp_path, "FaceForensics++/real/001", "real", "test", ["001"], ("raw",))
    add_video(tmp_path, "DFDC/test/a", "DFDC", "test", ["DFDC/a"])
    add_video(tmp_path, "my real clips/real/ann.mp4", "real", "val", ["ann"])
    add_video(tmp_path, "my real clips/fake/swap/ann.mp4", "swap", "val", ["ann"])
    return tmp_path


def test_deepfakebench_has_its_names_and_levels(data):
    content = as_deepfakebench(data)
    ffpp = content["FaceForensics++"]
    assert set(ffpp) == {"FF-real", "FF-DF"}
    assert set(ffpp["FF-DF"]) == {"train", "val", "test"}
    fake = ffpp["FF-DF"]["train"]["c40"]["000_003"]
    key = folder_key("FaceForensics++/Deepfakes/000_003")
    assert fake["label"] == "FF-DF"
    assert fake["frames"] == [f"faces/c40/{key}/{i:06d}_0.png" for i in range(2)]
    assert set(content["DFDC"]["DFDC_Fake"]["test"]) == {"test/a"}
    assert set(content["my real clips"]) == {"my real clips_real", "my real clips_swap_fake"}


def test_an_export_read_again_gives_the_same_videos(data):
    (data / "list.json").write_text(json.dumps(as_deepfakebench(data)))
    before = defaultdict(lambda: defaultdict(list))
    for s in read_samples(data):
        facts = (s.video_id, s.label, s.dataset, s.manipulation, s.identities, s.split)
        before[facts][s.quality].append(s.path.relative_to(data).as_posix())
    listing = list_source("auto", data / "list.json", DatasetOptions())
    after = {
        (v.video_id, v.label, v.dataset, v.manipulation, v.identities, v.split): {
            quality: list(frames) for quality, frames in v.crops.items()
        }
        for v in listing.videos
    }
    assert after == before
    assert all(video.path == data for video in listing.videos)


def test_two_videos_of_one_name_are_refused(data):
    add_video(data, "FaceForensics++/001", "real", "test", ["001"])
    with pytest.raises(DfdetectError, match=r"real/001 .*would have one name"):
        as_deepfakebench(data)


def test_a_csv_has_a_line_per_crop_and_is_a_table_that_prepare_reads(data):
    text = as_csv(data)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 2 * (2 + 2 + 1 + 1 + 1 + 1)
    fake = next(row for row in rows if row["video_id"] == "FaceForensics++/Deepfakes/000_003")
    assert (fake["label"], fake["identity"], fake["split"]) == ("fake", "000;003", "train")
    (data / "list.csv").write_text(text)
    listing = list_source("auto", data / "list.csv", DatasetOptions(where={"quality": "c40"}))
    assert [v.path.is_file() for v in listing.videos] == [True] * 4


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers(tmp_path):
    names = ("=1+1", "+cmd|x", "-a", "@sum", "\tx", "\rx", "-3", "+4.5", "ann=1")
    for i, name in enumerate(names):
        add_video(tmp_path, f"set/{i}", name, "train", [name], n_frames=1)
    add_video(tmp_path, "=set/9", "real", "train", ["ann", "=1+1"], n_frames=1)
    rows = list(csv.DictReader(io.StringIO(as_csv(tmp_path))))
    cells = {
        row["video_id"]: (row["identity"], row["manipulation"], row["dataset"]) for row in rows
    }
    said = ("'=1+1", "'+cmd|x", "'-a", "'@sum", r"'\tx", r"'\rx", "-3", "+4.5", "ann=1")
    assert cells == {f"set/{i}": (name, name, "set") for i, name in enumerate(said)} | {
        "'=set/9": ("ann;'=1+1", "real", "'=set")
    }


def test_info_prints_an_export_and_nothing_else(cli, data):
    assert json.loads(cli("info", data, "--export", "deepfakebench").stdout) == as_deepfakebench(
        data
    )
    assert cli("info", data, "--export", "csv").stdout == as_csv(data)


def test_an_unknown_export_names_the_known_ones(cli, data):
    result = cli("info", data, "--export", "csw")
    assert result.exit_code == 2
    assert "did you mean 'csv'? known: csv, deepfakebench" in result.stderr
