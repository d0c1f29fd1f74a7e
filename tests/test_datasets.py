"""Each dataset on a small tree of empty files: listing reads names, never pixels."""

import json

import pytest

from dfdetect import datasets
from dfdetect.datasets.base import DatasetOptions
from dfdetect.errors import DfdetectError


def list_source(name, source, options):
    return datasets.list_source(name, source, options).videos


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def by_id(videos):
    return {v.video_id.split("/", 1)[1]: v for v in videos}


def test_a_folder_gives_labels_and_manipulations_from_its_names(tmp_path):
    touch(tmp_path, "real/a/ann.mp4", "fake/swap/deep/ann.mkv", "fake/bob.JPG", "real/notes.txt")
    videos = by_id(list_source("auto", tmp_path, DatasetOptions()))
    assert {name: (v.label, v.manipulation) for name, v in videos.items()} == {
        "real/a/ann.mp4": (0, "real"),
        "fake/swap/deep/ann.mkv": (1, "swap"),
        "fake/bob.JPG": (1, "fake"),
    }


def test_a_fake_named_after_its_original_shares_its_identity(tmp_path):
    touch(tmp_path, "real/ann.mp4", "fake/swap/ann.mp4")
    first, second = list_source("folder", tmp_path, DatasetOptions())
    assert first.identities == second.identities == ("ann",)


def test_a_folder_without_real_and_fake_says_what_it_expected(tmp_path):
    touch(tmp_path, "clips/ann.mp4")
    with pytest.raises(DfdetectError) as error:
        list_source("folder", tmp_path, DatasetOptions())
    assert "real/**" in error.value.hint


def test_a_table_reads_mapped_columns_and_keeps_matching_rows(tmp_path):
    (tmp_path / "index.csv").write_text(
        "\ufefffile,label,method,person,part,set\n"
        "a.mp4,real,real,ann;bob,main,X\nb.mp4,FAKE,swap,ann,main,X\nc.mp4,fake,swap,cat,more,Y\n",
        encoding="utf-8",
    )
    columns = {"path": "file", "manipulation": "method", "identity": "person", "dataset": "set"}
    options = DatasetOptions(columns=columns, where={"part": "main"})
    first, second = list_source("auto", tmp_path / "index.csv", options)
    assert (first.label, first.identities, first.dataset) == (0, ("ann", "bob"), "X")
    assert (second.label, second.manipulation, second.path) == (1, "swap", tmp_path / "b.mp4")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("path,lable\na.mp4,real\n", "no column 'label'"),
        ("path,label\na.mp4,maybe\n", "line 2: label 'maybe'"),
        ("path,label\n../a.mp4,real\n", "line 2: path '../a.mp4' leaves"),
        ("path,label\n/etc/a.mp4,real\n", "leaves the table's folder"),
        ("path,label\na.mp4,real\na.mp4,real\n", "listed twice"),
        ("path,label,split\na.mp4,real,training\n", "split 'training'"),
        ("path,label\n", "the table has no rows"),
        ("path;label\na.mp4;real\n", "no column 'label'"),
    ],
)
def test_a_table_that_cannot_be_used_says_where_and_why(tmp_path, text, complaint):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DfdetectError) as error:
        list_source("table", tmp_path / "t.csv", DatasetOptions())
    assert complaint in error.value.line


def ffpp_tree(root, quality="raw"):
    touch(
        root,
        *(
            f"original_sequences/youtube/{quality}/videos/{i}.mp4"
            for i in ("000", "003", "001", "870")
        ),
        f"manipulated_sequences/Deepfakes/{quality}/videos/000_003.mp4",
        f"manipulated_sequences/NeuralTextures/{quality}/videos/001_870.mp4",
        "manipulated_sequences/FaceShifter/c40/videos/003_000.mp4",
    )
    (root / "splits").mkdir()
    for split, pairs in (("train", [["000", "003"]]), ("val", []), ("test", [["001", "870"]])):
        (root / "splits" / f"{split}.json").write_text(json.dumps(pairs))


@pytest.mark.parametrize("quality", ["raw", "c0", "c23"])
def test_ffpp_reads_the_official_tree_and_splits(tmp_path, quality):
    ffpp_tree(tmp_path, quality)
    videos = by_id(list_source("auto", tmp_path, DatasetOptions()))
    assert len(videos) == 7
    fake = videos["Deepfakes/000_003"]
    assert (fake.label, fake.manipulation, fake.identities, fake.split) == (
        1, "Deepfakes", ("000", "003"), "train",
    )  # fmt: skip
    assert videos["NeuralTextures/001_870"].split == videos["real/870"].split == "test"
    assert videos["FaceShifter/003_000"].split == "train"


def test_ffpp_names_a_video_that_no_split_lists(tmp_path):
    ffpp_tree(tmp_path)
    touch(tmp_path, "original_sequences/youtube/raw/videos/999.mp4")
    with pytest.raises(DfdetectError, match=r"1 videos are in no official split, first .*999"):
        list_source("ffpp", tmp_path, DatasetOptions())


@pytest.mark.parametrize("by", ["path", "identity"])
def test_a_list_of_splits_applies_to_folders_and_tables_alike(tmp_path, by):
    touch(tmp_path, "real/ann.mp4", "fake/swap/bob.mp4", "real/cat.mp4")
    (tmp_path / "t.csv").write_text(
        "path,label,identity\nreal/ann.mp4,real,ann\nfake/swap/bob.mp4,fake,bob\nreal/cat.mp4,real,cat\n"
    )
    names = {"path": ("real/ann.mp4", "fake/swap/bob.mp4"), "identity": ("ann", "bob")}[by]
    (tmp_path / "splits.csv").write_text(f"{by},split\n{names[0]},test\n{names[1]},val\n")
    options = DatasetOptions(splits=tmp_path / "splits.csv")
    for source in (tmp_path, tmp_path / "t.csv"):
        found = {v.path.stem: v.split for v in list_source("auto", source, options)}
        assert found == {"ann": "test", "bob": "val", "cat": None}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("path,split\nann.mp4,dev\n", "unknown split 'dev'"),
        ("file,part\nann.mp4,test\n", "not a list of splits"),
        ("path,split\nzoe.mp4,test\n", "lists none of the 1 files"),
    ],
)
def test_a_list_of_splits_that_does_not_fit_is_refused(tmp_path, text, complaint):
    touch(tmp_path, "real/ann.mp4")
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(DfdetectError, match=complaint):
        list_source("folder", tmp_path, DatasetOptions(splits=tmp_path / "splits.csv"))


def test_an_unknown_dataset_lists_the_known_ones(tmp_path):
    with pytest.raises(DfdetectError) as error:
        list_source("foldr", tmp_path, DatasetOptions())
    assert error.value.hint.startswith("did you mean 'folder'? known: ffpp, folder, table")
