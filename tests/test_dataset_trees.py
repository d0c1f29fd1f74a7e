"""Each dataset as a small tree of real clips: from the official layout to crops and a manifest."""

import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import write_clip

from dfdetect.demo import read_portrait
from dfdetect.files import write_json, write_whole
from dfdetect.manifest import read_table
from dfdetect.prepare import Allowed, PrepareRecipe, prepare
from dfdetect.video import write_video

RECIPE = PrepareRecipe(qualities=("raw",), frames=2)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", n_frames=4)


@pytest.fixture
def fill(clip_file, tmp_path):
    """Copies the clip to names below the test's source folder, and gives that folder."""

    def fill(*names):
        for name in names:
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip_file, tmp_path / "source" / name)
        return tmp_path / "source"

    return fill


@pytest.fixture
def prepared(tmp_path):
    """Prepares a source -> {video: (label, split, manipulation)}, the dataset left out of ids."""

    def prepared(source, overlap=False):
        out = tmp_path / "data"
        summary = prepare(source, out, RECIPE, allowed=Allowed(identity_overlap=overlap))
        assert summary.failures == []
        rows = read_table(out).to_pylist()
        assert {row["quality"] for row in rows} == {"raw"}
        assert all((out / row["path"]).is_file() for row in rows)
        return {
            row["video_id"].split("/", 1)[1]: (row["label"], row["split"], row["manipulation"])
            for row in rows
        }

    return prepared


def test_faceforensics_with_deepfakedetection(fill, prepared):
    source = fill(
        "original_sequences/youtube/raw/videos/000.mp4",
        "original_sequences/youtube/c23/videos/001.mp4",
        "manipulated_sequences/Deepfakes/raw/videos/000_003.mp4",
        "manipulated_sequences/FaceShifter/c23/videos/001_870.mp4",
        "original_sequences/actors/raw/videos/01__kitchen_pan.mp4",
        "manipulated_sequences/DeepFakeDetection/raw/videos/01_02__kitchen_pan__YVGY8LOK.mp4",
    )
    for split, pairs in (("train", [["000", "003"]]), ("val", []), ("test", [["001", "870"]])):
        write_json(source / "splits" / f"{split}.json", pairs)
    assert prepared(source) == {
        "real/000": (0, "train", "real"),
        "real/001": (0, "test", "real"),
        "Deepfakes/000_003": (1, "train", "Deepfakes"),
        "FaceShifter/001_870": (1, "test", "FaceShifter"),
        "real/01__kitchen_pan": (0, "test", "real"),
        "DeepFakeDetection/01_02__kitchen_pan__YVGY8LOK": (1, "test", "DeepFakeDetection"),
    }


def test_celeb_df(fill, prepared):
    source = fill(
        "Celeb-real/id0_0000.mp4",
        "Celeb-synthesis/id0_id1_0000.mp4",
        "Celeb-synthesis/id0_id2_0000.mp4",
        "YouTube-real/videos/00170.mp4",
    )
    (source / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n"
    )
    videos = prepared(source, overlap=True)
    assert videos["YouTube-real/00170"] == (0, "test", "real")
    assert videos["Celeb-synthesis/id0_id1_0000"] == (1, "test", "Celeb-synthesis")
    assert videos["Celeb-real/id0_0000"][1] == videos["Celeb-synthesis/id0_id2_0000"][1] != "test"


def test_ffiw(fill, prepared):
    names = [
        f"{release}/{side}/{split}0001.mp4"
        for release, split in (("FFIW10K-v1-release", "val/"), ("FFIW10K-v1-release-test", ""))
        for side in ("source", "target")
    ]
    source = fill(*names)
    mask = write_video([np.full((256, 256, 3), 255, np.uint8)] * 4, 12)
    write_whole(source / "FFIW10K-v1-release/target_mask/val/0001.mp4", mask)
    assert prepared(source) == {
        "real/val/0001": (0, "val", "real"),
        "FFIW10K/val/0001": (1, "val", "FFIW10K"),
        "real/test/0001": (0, "test", "real"),
        "FFIW10K/test/0001": (1, "test", "FFIW10K"),
    }


def test_dfdc(fill, prepared):
    source = fill("dfdc_train_part_0/a.mp4", "dfdc_train_part_0/b.mp4", "test/videos/c.mp4")
    facts = {"a.mp4": {"label": "REAL"}, "b.mp4": {"label": "FAKE", "original": "a.mp4"}}
    write_json(source / "dfdc_train_part_0" / "metadata.json", facts)
    (source / "test" / "labels.csv").write_text("filename,label\nc.mp4,0\n")
    assert prepared(source) == {
        "dfdc_train_part_0/a": (0, "train", "real"),
        "dfdc_train_part_0/b": (1, "train", "DFDC"),
        "test/c": (0, "test", "real"),
    }


def test_the_dfdc_preview(fill, prepared):
    facts = {
        "original_videos/643049/643049_A_001.mp4": {"label": "real", "target_id": 643049},
        "method_A/643049/643049_A/x.mp4": {
            "label": "fake", "target_id": 643049, "swapped_id": 1054622,
        },
    }  # fmt: skip
    source = fill(*facts)
    content = {name: {**more, "set": "test"} for name, more in facts.items()}
    (source / "dataset.json").write_text(json.dumps(content))
    assert prepared(source) == {
        "original_videos/643049/643049_A_001": (0, "test", "real"),
        "method_A/643049/643049_A/x": (1, "test", "method_A"),
    }


def test_deeperforensics(fill, prepared):
    source = fill(
        "manipulated_videos/end_to_end/000_W101.mp4",
        "original_sequences/youtube/c23/videos/000.mp4",
    )
    for split, names in (("train", ""), ("val", "000_W101.mp4\n"), ("test", "")):
        write_whole(source / "lists" / "splits" / f"{split}.txt", names)
    assert prepared(source) == {
        "end_to_end/000_W101": (1, "val", "end_to_end"),
        "real/000": (0, "val", "real"),
    }


def test_dffd(tmp_path, prepared):
    png = cv2.imencode(".png", cv2.cvtColor(read_portrait(), cv2.COLOR_RGB2BGR))[1].tobytes()
    for name in ("ffhq/train/1.png", "stargan/test/1.png"):
        write_whole(tmp_path / "source" / name, png)
    assert prepared(tmp_path / "source") == {
        "ffhq/train/1.png": (0, "train", "real"),
        "stargan/test/1.png": (1, "test", "stargan"),
    }
