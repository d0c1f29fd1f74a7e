"""Each dataset on a small tree of empty files: listing reads names, never pixels."""

import io
import json
import os
import tarfile

import pytest

from dfdetect import datasets
from dfdetect.datasets import deepfakebench, ffpp
from dfdetect.datasets.base import DatasetOptions
from dfdetect.errors import DfdetectError
from dfdetect.manifest import assign_splits, identity_leaks
from dfdetect.video import media_below


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
        ("path,split\nreal/ann.mp4\n", "line 2: unknown split ''"),
        ("split,path\ntest\n", "line 2: no path"),
        (
            "path,split\nreal/ann.mp4,train\nreal/ann.mp4,test\n",
            "real/ann.mp4 is listed as train and as test",
        ),
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
    assert error.value.hint.startswith("did you mean 'folder'? known: ")


def listing_of(name, source, **options):
    return datasets.list_source(name, source, DatasetOptions(**options))


def splits_of(listing):
    return {v.video_id.split("/", 1)[1]: v.split for v in listing.videos}


def test_ffpp_lists_a_video_once_at_its_best_quality_with_the_others_as_shipped(tmp_path):
    ffpp_tree(tmp_path)
    youtube = "original_sequences/youtube"
    touch(tmp_path, f"{youtube}/c23/videos/000.mp4", f"{youtube}/c40/videos/000.mp4")
    touch(tmp_path, f"{youtube}/c40/videos/870.mp4", f"{youtube}/c23/images/000/1.png")
    videos = by_id(list_source("ffpp", tmp_path, DatasetOptions()))
    real = videos["real/000"]
    assert (real.quality, real.source) == ("raw", f"{youtube}/raw/videos/000.mp4")
    assert {q: p.parent.parent.name for q, p in real.shipped.items()} == {
        "c23": "c23",
        "c40": "c40",
    }
    assert videos["FaceShifter/003_000"].quality == "c40"
    assert len(videos) == 7


def test_ffpp_calls_c0_raw(tmp_path):
    ffpp_tree(tmp_path, "c0")
    assert by_id(list_source("ffpp", tmp_path, DatasetOptions()))["real/000"].quality == "raw"


def test_ffpp_says_when_parts_are_there_at_different_qualities(tmp_path):
    ffpp_tree(tmp_path)
    (note,) = listing_of("ffpp", tmp_path).notes
    assert "youtube 4 raw" in note and "FaceShifter 1 c40" in note


def test_ffpp_gives_a_fake_its_mask(tmp_path):
    ffpp_tree(tmp_path)
    mask = "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4"
    touch(tmp_path, mask)
    videos = by_id(list_source("ffpp", tmp_path, DatasetOptions()))
    assert videos["Deepfakes/000_003"].mask == tmp_path / mask
    assert videos["NeuralTextures/001_870"].mask is None


def test_ffpp_gives_a_real_the_mask_of_its_first_fake(tmp_path):
    ffpp_tree(tmp_path)
    parts = [f"manipulated_sequences/{method}" for method in ("Deepfakes", "FaceSwap")]
    for part in parts:
        touch(tmp_path, f"{part}/raw/videos/000_003.mp4", f"{part}/masks/videos/000_003.mp4")
    videos = by_id(list_source("ffpp", tmp_path, DatasetOptions()))
    assert videos["real/000"].mask == tmp_path / parts[0] / "masks/videos/000_003.mp4"
    assert videos["real/003"].mask is None and videos["real/001"].mask is None


def test_ffpp_counts_what_is_found_and_names_what_is_missing(tmp_path):
    ffpp_tree(tmp_path)
    (tmp_path / "original_sequences/youtube/raw/videos/870.mp4").unlink()
    listing = listing_of("ffpp", tmp_path)
    assert listing.found["original_sequences/youtube"] == 3
    assert listing.missing["original_sequences/youtube"] == ["870"]
    deepfakes = listing.missing["manipulated_sequences/Deepfakes"]
    assert deepfakes == ["001_870", "003_000", "870_001"]


def dfd_tree(root):
    touch(
        root,
        "original_sequences/actors/c23/videos/01__kitchen_pan.mp4",
        "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__kitchen_pan__YVGY8LOK.mp4",
    )


def test_deepfakedetection_is_test_because_it_has_no_official_split(tmp_path):
    ffpp_tree(tmp_path)
    dfd_tree(tmp_path)
    listing = listing_of("auto", tmp_path)
    videos = by_id(listing.videos)
    real = videos["real/01__kitchen_pan"]
    fake = videos["DeepFakeDetection/01_02__kitchen_pan__YVGY8LOK"]
    assert (real.dataset, real.identities, real.split) == ("DeepFakeDetection", ("01",), "test")
    assert (fake.label, fake.identities, fake.split) == (1, ("01", "02"), "test")
    assert any("no official split" in note for note in listing.notes)


def test_deepfakedetection_can_be_dealt_by_actor(tmp_path):
    actors = [f"{i:02d}" for i in range(1, 29)]
    names = [f"{a}_{b}__talking__ABCDEFGH.mp4" for a in actors for b in actors if a != b]
    touch(tmp_path, *(f"original_sequences/actors/raw/videos/{a}__talking.mp4" for a in actors))
    touch(tmp_path, *(f"manipulated_sequences/DeepFakeDetection/raw/videos/{n}" for n in names))
    videos = listing_of("ffpp", tmp_path, identity_disjoint=True).videos
    splits = assign_splits(videos, seed=0)
    assert identity_leaks((v.identities, splits[v.video_id]) for v in videos) == {}
    assert {splits[v.video_id] for v in videos if v.label} == {"train", "val", "test"}


def crossing_tree(root):
    """755 is train, 756 is test; they were cut from one video."""
    touch(root, *(f"original_sequences/youtube/raw/videos/{i}.mp4" for i in (754, 755, 756, 757)))
    touch(root, "manipulated_sequences/FaceSwap/raw/videos/756_757.mp4")
    touch(root, "manipulated_sequences/FaceSwap/raw/videos/757_756.mp4")
    (root / "splits").mkdir()
    for split, pairs in (("train", [["754", "755"]]), ("val", []), ("test", [["756", "757"]])):
        (root / "splits" / f"{split}.json").write_text(json.dumps(pairs))


def test_ffpp_names_footage_that_is_in_two_official_splits(tmp_path):
    crossing_tree(tmp_path)
    (note,) = (n for n in listing_of("ffpp", tmp_path).notes if "YouTube" in n)
    assert "755-756 (train/test)" in note and "--drop-cross-source" in note


def test_ffpp_leaves_footage_that_train_has_out_of_test(tmp_path):
    crossing_tree(tmp_path)
    listing = listing_of("ffpp", tmp_path, drop_cross_source=True)
    assert splits_of(listing) == {"real/754": "train", "real/755": "train", "real/757": "test"}


@pytest.mark.parametrize("by", ["identity", "path"])
def test_ffpp_leaves_footage_that_test_has_out_of_val(tmp_path, by):
    crossing_tree(tmp_path)
    (tmp_path / "mine.csv").write_text(
        "identity,split\n754,val\n755,val\n756,test\n757,test\n"
        if by == "identity"
        else "path,split\n"
        + "".join(
            f"original_sequences/youtube/raw/videos/{i}.mp4,{split}\n"
            for i, split in ((754, "val"), (755, "val"), (756, "test"), (757, "test"))
        )
        + "".join(
            f"manipulated_sequences/FaceSwap/raw/videos/{pair}.mp4,test\n"
            for pair in ("756_757", "757_756")
        )
    )
    listing = listing_of("ffpp", tmp_path, drop_cross_source=True, splits=tmp_path / "mine.csv")
    assert splits_of(listing) == {
        "real/754": "val", "real/756": "test", "real/757": "test",
        "FaceSwap/756_757": "test", "FaceSwap/757_756": "test",
    }  # fmt: skip
    assert any("755-756 (val/test); 1 videos of val and" in note for note in listing.notes)


@pytest.mark.parametrize("pad", [3, 0])
def test_ffpp_finds_crossings_itself_where_the_youtube_ids_are_there(tmp_path, pad):
    crossing_tree(tmp_path)
    ids = {"754": "aa 0", "755": "bb 0", "756": "cc 0", "757": "bb 1"}
    (tmp_path / "dataset").mkdir()
    table = {key.zfill(pad): value for key, value in ids.items()}
    (tmp_path / "dataset" / "conversion_dict.json").write_text(json.dumps(table))
    listing = listing_of("ffpp", tmp_path)
    assert by_id(listing.videos)["FaceSwap/756_757"].footage == "cc"
    assert by_id(listing.videos)["real/757"].footage == "bb"
    assert any("755-757 (train/test)" in note for note in listing.notes)


def test_the_known_crossings_are_seven_pairs_of_neighbours():
    assert len(ffpp.CROSSINGS) == 7
    assert all(int(b) - int(a) == 1 for a, b in ffpp.CROSSINGS)


def celeb_tree(root, level=""):
    touch(
        root,
        *(f"Celeb-real/{level}id{i}_0000.mp4" for i in range(20)),
        *(f"Celeb-synthesis/{level}id{i}_id{i + 1}_0000.mp4" for i in range(20)),
        f"YouTube-real/{level}00170.mp4",
    )
    (root / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00170.mp4\n1 Celeb-real/id1_0000.mp4\n0 Celeb-synthesis/id1_id2_0000.mp4\n"
        "0 Celeb-synthesis/id1_id9_0000.mp4\n"
    )


@pytest.mark.parametrize("level", ["", "videos/"])
def test_celebdf_takes_labels_from_folders_and_test_from_the_list(tmp_path, level):
    celeb_tree(tmp_path, level)
    listing = listing_of("auto", tmp_path)
    videos = by_id(listing.videos)
    fake = videos["Celeb-synthesis/id1_id2_0000"]
    assert (fake.dataset, fake.label, fake.identities) == ("Celeb-DF-v2", 1, ("id1", "id2"))
    assert [i for i, split in splits_of(listing).items() if split == "test"] == [
        "Celeb-real/id1_0000", "Celeb-synthesis/id1_id2_0000", "YouTube-real/00170",
    ]  # fmt: skip
    assert listing.missing == {"Celeb-synthesis": ["id1_id9_0000"]}
    assert any("--allow-identity-overlap" in note for note in listing.notes)


def test_celebdf_takes_val_from_the_training_videos_by_target(tmp_path):
    celeb_tree(tmp_path)
    splits = splits_of(listing_of("celebdf", tmp_path))
    assert set(splits.values()) == {"train", "val", "test"}
    for i in range(2, 20):
        assert splits[f"Celeb-real/id{i}_0000"] == splits[f"Celeb-synthesis/id{i}_id{i + 1}_0000"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 YouTube-real/00170.mp4", "line 2: YouTube-real/00170.mp4 has flag 0"),
        ("1 Celeb-synthesis/id1_id2_0000.mp4", "line 2: .* has flag 1 and lies in Celeb-synthesis"),
        ("1 ../secret.mp4", "line 2: .* is not a flag and a video"),
        ("YouTube-real/00170.mp4", "line 2: .* is not a flag and a video"),
    ],
)
def test_celebdf_refuses_a_list_that_contradicts_the_folders(tmp_path, line, complaint):
    celeb_tree(tmp_path)
    (tmp_path / "List_of_testing_videos.txt").write_text(f"\n{line}\n")
    with pytest.raises(DfdetectError, match=complaint):
        listing_of("celebdf", tmp_path)


def test_celebdf_can_be_dealt_so_that_nobody_is_in_two_splits(tmp_path):
    ids = range(40)
    touch(tmp_path, *(f"Celeb-real/id{i}_0000.mp4" for i in ids))
    touch(tmp_path, *(f"Celeb-synthesis/id{i}_id{j}_0000.mp4" for i in ids for j in ids if i != j))
    listing = listing_of("celebdf", tmp_path, identity_disjoint=True)
    splits = assign_splits(listing.videos, seed=0)
    assert identity_leaks((v.identities, splits[v.video_id]) for v in listing.videos) == {}
    assert {splits[v.video_id] for v in listing.videos if v.label} == {"train", "val", "test"}
    assert "fakes of two groups are left out" in listing.notes[0]


def test_a_user_s_split_goes_before_the_official_one(tmp_path):
    celeb_tree(tmp_path)
    (tmp_path / "mine.csv").write_text("path,split\nYouTube-real/00170.mp4,train\n")
    splits = splits_of(listing_of("celebdf", tmp_path, splits=tmp_path / "mine.csv"))
    assert splits["YouTube-real/00170"] == "train"
    assert splits["Celeb-real/id1_0000"] == "test"


def ffiw_tree(root, level=""):
    for release, split in (("FFIW10K-v1-release", "train/"), ("FFIW10K-v1-release-test", "")):
        for side in ("source", "target", "target_mask"):
            touch(root, f"{release}/{side}/{split}{level}00001.mp4")
    touch(root, f"FFIW10K-v1-release/target/train/{level}00002.mp4")


@pytest.mark.parametrize("level", ["", "videos/"])
def test_ffiw_pairs_by_name_and_gives_the_mask_to_both(tmp_path, level):
    ffiw_tree(tmp_path, level)
    listing = listing_of("auto", tmp_path)
    videos = by_id(listing.videos)
    fake, real = videos["FFIW10K/train/00001"], videos["real/train/00001"]
    assert (fake.label, real.label) == (1, 0)
    assert fake.identities == real.identities != videos["real/test/00001"].identities
    assert fake.mask == real.mask and "target_mask" in str(fake.mask)
    assert videos["FFIW10K/train/00002"].mask is None
    assert listing.missing == {"source/train": ["00002"]}
    assert videos["FFIW10K/test/00001"].split == "test"


def test_ffiw_may_be_given_one_archive(tmp_path):
    ffiw_tree(tmp_path)
    splits = splits_of(listing_of("auto", tmp_path / "FFIW10K-v1-release-test"))
    assert splits == {"FFIW10K/test/00001": "test", "real/test/00001": "test"}


def dfdc_tree(root):
    for part in (0, 36, 40):
        touch(root, f"dfdc_train_part_{part}/real{part}.mp4", f"dfdc_train_part_{part}/x{part}.mp4")
        facts = {
            f"x{part}.mp4": {"label": "FAKE", "split": "train", "original": f"real{part}.mp4"},
            f"real{part}.mp4": {"label": "REAL", "split": "train"},
            "gone.mp4": {"label": "REAL", "split": "train"},
        }
        (root / f"dfdc_train_part_{part}" / "metadata.json").write_text(json.dumps(facts))
    touch(root, "test/videos/t.mp4")
    (root / "test" / "labels.csv").write_text("filename,label\nt.mp4,1\n")


def test_dfdc_splits_by_part_and_keeps_a_fake_with_its_original(tmp_path):
    dfdc_tree(tmp_path)
    listing = listing_of("auto", tmp_path)
    videos = by_id(listing.videos)
    assert splits_of(listing) == {
        "dfdc_train_part_0/x0": "train", "dfdc_train_part_0/real0": "train",
        "dfdc_train_part_36/x36": "val", "dfdc_train_part_36/real36": "val",
        "dfdc_train_part_40/x40": "test", "dfdc_train_part_40/real40": "test",
        "test/t": "test",
    }  # fmt: skip
    assert videos["dfdc_train_part_0/x0"].label == videos["test/t"].label == 1
    fake, real = videos["dfdc_train_part_0/x0"], videos["dfdc_train_part_0/real0"]
    assert fake.identities == real.identities
    assert listing.missing["dfdc_train_part_0"] == ["gone.mp4"]


@pytest.mark.parametrize(
    ("header", "folder", "name"),
    [
        ("filename,label", "videos", "dfdc"),
        ("path,class", "videos", "folder"),
        ("filename,label", "clips", "folder"),
    ],
)
def test_a_labels_csv_is_that_of_dfdc_only_by_its_header_and_videos(tmp_path, header, folder, name):
    touch(tmp_path, f"{folder}/t.mp4", "real/ann.mp4")
    (tmp_path / "labels.csv").write_text(f"{header}\nt.mp4,1\n")
    assert len(listing_of("auto", tmp_path).videos) == 1
    assert datasets.SHELF["dfdc"].looks_right(tmp_path) == (name == "dfdc")


def test_a_line_of_labels_without_a_file_is_an_error(tmp_path):
    dfdc_tree(tmp_path)
    (tmp_path / "test" / "labels.csv").write_text("label,filename\n1\n0,\n")
    with pytest.raises(DfdetectError, match="line 2: no filename"):
        listing_of("dfdc", tmp_path)


def test_the_sample_of_dfdc_is_training_data_and_says_so(tmp_path):
    touch(tmp_path, "train_sample_videos/a.mp4")
    facts = {"a.mp4": {"label": "FAKE", "split": "train", "original": "b.mp4"}}
    (tmp_path / "train_sample_videos" / "metadata.json").write_text(json.dumps(facts))
    listing = listing_of("auto", tmp_path / "train_sample_videos")
    assert splits_of(listing) == {"train_sample_videos/a": "train"}
    assert any("training data" in note for note in listing.notes)


def test_dfdc_refuses_a_label_it_does_not_know(tmp_path):
    touch(tmp_path, "dfdc_train_part_1/a.mp4")
    (tmp_path / "dfdc_train_part_1" / "metadata.json").write_text('{"a.mp4": {"label": "fake"}}')
    with pytest.raises(DfdetectError, match=r"a\.mp4 has label 'fake'"):
        listing_of("dfdc", tmp_path)


def dfdcp_tree(root):
    facts = {}
    for i in range(1000, 1012):
        facts |= {
            f"original_videos/{i}/{i}_A_001.mp4": {"label": "real", "set": "train", "target_id": i},
            f"method_A/{i}/{i}_A/{i + 1000}_{i}_A_001.mp4": {"label": "fake", "set": "train"},
        }
    facts["method_B/9/9_A/x.mp4"] = {
        "label": "fake", "set": "test", "target_id": 9, "swapped_id": 8,
    }  # fmt: skip
    touch(root, *facts)
    facts["method_B/gone.mp4"] = {"label": "fake", "set": "test", "swapped_id": 7, "target_id": 6}
    (root / "dataset.json").write_text(json.dumps(facts))


def test_the_dfdc_preview_keeps_its_test_and_deals_train_by_person(tmp_path):
    dfdcp_tree(tmp_path)
    listing = listing_of("auto", tmp_path)
    videos, splits = by_id(listing.videos), splits_of(listing)
    fake = videos["method_B/9/9_A/x"]
    assert (fake.split, fake.manipulation, fake.identities) == (
        "test", "method_B", ("DFDCP/9", "DFDCP/8"),
    )  # fmt: skip
    assert list(splits.values()).count("test") == 1 and "val" in splits.values()
    assert identity_leaks((v.identities, v.split) for v in listing.videos) == {}
    assert listing.missing == {"method_B": ["method_B/gone.mp4"]}


def deeper_tree(root):
    for variant in ("end_to_end", "end_to_end_level_1"):
        touch(root, f"manipulated_videos/{variant}/000_W101.mp4")
        touch(root, f"manipulated_videos/{variant}/001_M004.mp4")
    touch(root, "source_videos/W101/light_up/neutral/camera_up/W101.mp4")
    touch(root, *(f"lists/splits/{s}.txt" for s in ("train", "val", "test")))
    (root / "lists/splits/train.txt").write_text("000_W101.mp4\n002_W101.mp4\n")
    (root / "lists/splits/test.txt").write_text("001_M004.mp4\n")


def test_the_reals_of_deeperforensics_are_the_ffpp_targets(tmp_path):
    root = tmp_path / "DeeperForensics-1.0"
    deeper_tree(root)
    youtube = "FaceForensics++/original_sequences/youtube"
    touch(tmp_path, *(f"{youtube}/c23/videos/{i}.mp4" for i in ("000", "001", "500")))
    listing = listing_of("auto", root)
    assert splits_of(listing) == {
        "end_to_end/000_W101": "train", "end_to_end_level_1/000_W101": "train", "real/000": "train",
        "end_to_end/001_M004": "test", "end_to_end_level_1/001_M004": "test", "real/001": "test",
    }  # fmt: skip
    assert by_id(listing.videos)["real/000"].quality == "c23"
    assert by_id(listing.videos)["end_to_end/000_W101"].identities == ("000", "W101")
    assert listing.missing["manipulated_videos/end_to_end"] == ["002_W101"]


def test_deeperforensics_without_its_reals_says_where_they_come_from(tmp_path):
    deeper_tree(tmp_path / "a")
    listing = listing_of("deeperforensics", tmp_path / "a")
    assert {v.label for v in listing.videos} == {1}
    assert any("--root FACEFORENSICS" in note for note in listing.notes)
    touch(tmp_path, "ff/original_sequences/youtube/c23/videos/000.mp4")
    listing = listing_of("deeperforensics", tmp_path / "a", root=tmp_path / "ff")
    assert {v.label for v in listing.videos} == {0, 1}
    with pytest.raises(DfdetectError, match="no original_sequences/youtube/c23/videos"):
        listing_of("deeperforensics", tmp_path / "a", root=tmp_path)


def test_dffd_takes_subsets_as_manipulations(tmp_path):
    touch(
        tmp_path, "ffhq/train/1.png", "celeba_2w/val/1.png", "stargan/validation/1.png",
        "pggan_v1/test/1.png", "pggan_v1/test/mask/1.png", "Deepfakes/train/000_003_frame12.png",
        "youtube/train/000/12.png", "youtube/train/003_0012.png",
    )  # fmt: skip
    listing = listing_of("auto", tmp_path)
    videos = by_id(listing.videos)
    assert {i: (v.manipulation, v.split) for i, v in videos.items()} == {
        "ffhq/train/1.png": ("real", "train"),
        "celeba_2w/val/1.png": ("real", "val"),
        "stargan/validation/1.png": ("stargan", "val"),
        "pggan_v1/test/1.png": ("pggan_v1", "test"),
        "Deepfakes/train/000_003_frame12.png": ("Deepfakes", "train"),
        "youtube/train/000/12.png": ("real", "train"),
        "youtube/train/003_0012.png": ("real", "train"),
    }
    assert all(v.label == int(v.manipulation != "real") for v in videos.values())
    assert videos["Deepfakes/train/000_003_frame12.png"].identities == ("000", "003")
    assert videos["youtube/train/000/12.png"].identities == ("000",)
    assert videos["youtube/train/003_0012.png"].identities == ("003",)
    assert listing.found["stargan/validation"] == 1


def test_dffd_reads_the_tree_of_the_authors_code(tmp_path):
    touch(tmp_path, "train/Real/1.png", "train/Fake/1.png", "train/Mask/1.png", "eval/Fake/2.png")
    videos = by_id(listing_of("auto", tmp_path).videos)
    assert {i: (v.label, v.split) for i, v in videos.items()} == {
        "train/Real/1.png": (0, "train"), "train/Fake/1.png": (1, "train"),
        "eval/Fake/2.png": (1, "val"),
    }  # fmt: skip
    assert videos["train/Fake/1.png"].mask == tmp_path / "train/Mask/1.png"


def test_the_lists_of_dffd_are_checked_against_its_folders(tmp_path):
    touch(tmp_path, "ffhq/train/1.png", "stargan/train/1.png")
    (tmp_path / "_lists").mkdir()
    list_ = tmp_path / "_lists" / "train_real.txt"
    list_.write_text("ffhq/train/1.png\nffhq/train/2.png\n")
    assert listing_of("dffd", tmp_path).missing == {"_lists/train_real.txt": ["ffhq/train/2.png"]}
    list_.write_text("stargan/train/1.png\n")
    with pytest.raises(DfdetectError, match=r"line 1: stargan/train/1\.png is listed as real"):
        listing_of("dffd", tmp_path)


def write_tar(path, *names, odd=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        if odd:
            archive.addfile(odd)


def test_wilddeepfake_reads_archives_and_folders_alike(tmp_path):
    root = tmp_path / "deepfake_in_the_wild"
    frames = [f"./3/fake/7/{i}.png" for i in (10, 9, 100)]
    link = tarfile.TarInfo("./3/fake/7/1.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(root / "fake_test" / "3.tar.gz", *frames, "./3/fake/3/1.png", "./3/x.txt", odd=link)
    touch(root, "real_test/1/1/real/5/2.png", "real_test/1/1/real/5/11.png", "real_train/8/9.png")
    listing = listing_of("auto", tmp_path)
    videos = by_id(listing.videos)
    assert sorted(videos) == ["WildDeepfake/3/3", "WildDeepfake/3/7", "real/1/5"]
    fake, real = videos["WildDeepfake/3/7"], videos["real/1/5"]
    assert fake.path == root / "fake_test" / "3.tar.gz"
    assert fake.crops == {"raw": ("./3/fake/7/9.png", "./3/fake/7/10.png", "./3/fake/7/100.png")}
    assert (real.path, real.crops) == (
        root / "real_test/1/1/real/5", {"raw": ("2.png", "11.png")},
    )  # fmt: skip
    assert {v.split for v in videos.values()} == {"test"}
    assert any("real_train left out" in note for note in listing.notes)


@pytest.mark.parametrize("name", ["../1.png", "/etc/1.png", "3/../../1.png"])
def test_wilddeepfake_refuses_an_archive_that_names_files_outside(tmp_path, name):
    write_tar(tmp_path / "fake_test" / "3.tar.gz", name)
    with pytest.raises(DfdetectError, match="holds a file outside itself"):
        listing_of("wilddeepfake", tmp_path)


def test_wilddeepfake_names_a_broken_archive(tmp_path):
    write_tar(tmp_path / "fake_test" / "3.tar.gz", *(f"3/fake/7/{i}.png" for i in range(50)))
    whole = (tmp_path / "fake_test" / "3.tar.gz").read_bytes()
    (tmp_path / "fake_test" / "3.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DfdetectError, match=r"3\.tar\.gz: not a whole tar archive"):
        listing_of("wilddeepfake", tmp_path)


def test_wilddeepfake_refuses_a_real_sequence_among_the_fakes(tmp_path):
    write_tar(tmp_path / "fake_test" / "3.tar.gz", "3/real/7/1.png")
    with pytest.raises(DfdetectError, match="3/real/7 is real, its archive lies in fake_test"):
        listing_of("wilddeepfake", tmp_path)


def test_df40_takes_a_folder_of_pictures_as_a_video(tmp_path):
    touch(
        tmp_path, "DF40/simswap/ff/frames/000_003/10.png", "DF40/simswap/ff/frames/000_003/9.png",
        "DF40/simswap/cdf/frames/id0_id1_0000/1.png", "DF40/simswap/ff/masks/000_003/9.png",
        "DF40/e4e/cdf/Celeb-real/inversions/id2_0000.png", "DF40/heygen/real/a/1.png",
        "DF40/heygen/fake/b/1.png",
    )  # fmt: skip
    listing = listing_of("auto", tmp_path)
    videos = by_id(listing.videos)
    assert {i: v.label for i, v in videos.items()} == {
        "simswap/ff/frames/000_003": 1, "simswap/cdf/frames/id0_id1_0000": 1,
        "e4e/cdf/Celeb-real/inversions/id2_0000.png": 1, "heygen/real/a": 0, "heygen/fake/b": 1,
    }  # fmt: skip
    swap = videos["simswap/ff/frames/000_003"]
    assert (swap.manipulation, swap.identities, swap.split) == ("simswap", ("000", "003"), "test")
    assert swap.crops == {"raw": ("9.png", "10.png")}
    assert videos["simswap/cdf/frames/id0_id1_0000"].identities == ("id0", "id1")
    assert any("e4e, simswap" in note for note in listing.notes)


def bench_list(root, content, *absent):
    """A JSON beside its frames, which are all on the disk but the `absent` ones."""

    def frames(value):
        for key, inner in value.items() if isinstance(value, dict) else ():
            yield from inner if key == "frames" else frames(inner)

    touch(root, *(f.replace("\\", "/") for f in frames(content) if f not in absent))
    (root / "list.json").write_text(json.dumps(content))
    return root / "list.json"


def bench_video(label, *frames):
    return {"label": label, "frames": list(frames)}


def test_deepfakebench_lists_are_read_with_backslashes_qualities_and_holes(tmp_path):
    real = bench_video("FF-real", "FF\\c23\\000\\10.png", "FF\\c23\\000\\9.png")
    small = bench_video("FF-real", "FF\\c40\\000\\9.png")
    fake = bench_video("FF-DF", "FF/c23/000_003/1.png", "FF/c23/000_003/2.png")
    gone = bench_video("FF-DF", "FF/c23/003_000/1.png")
    empty = {"val": {}, "test": {}}
    path = bench_list(
        tmp_path,
        {"FaceForensics++": {
            "FF-real": {"train": {"c40": {"000": small}, "c23": {"000": real}}, **empty},
            "FF-DF": {"train": {"c23": {"000_003": fake, "003_000": gone}}, **empty},
        }},
        "FF/c23/000_003/2.png", "FF/c23/003_000/1.png",
    )  # fmt: skip
    listing = listing_of("auto", path)
    videos = by_id(listing.videos)
    assert videos["FF-real/000"].crops == {
        "c23": ("FF/c23/000/9.png", "FF/c23/000/10.png"), "c40": ("FF/c40/000/9.png",),
    }  # fmt: skip
    assert (videos["FF-real/000"].label, videos["FF-real/000"].quality) == (0, "c23")
    fake = videos["FF-DF/000_003"]
    assert (fake.label, fake.manipulation, fake.identities) == (1, "Deepfakes", ("000", "003"))
    assert listing.missing == {"FF-DF": ["FF/c23/000_003/2.png", "003_000"]}


def test_deepfakebench_paths_may_start_elsewhere(tmp_path):
    path = bench_list(
        tmp_path / "a", {"X": {"X_real": {"test": {"v": bench_video("X_real", "1.png")}}}}
    )
    (tmp_path / "a" / "1.png").rename(tmp_path / "1.png")
    with pytest.raises(DfdetectError, match="none of its 1 videos has a frame") as error:
        listing_of("auto", path)
    assert "--root" in error.value.hint
    (video,) = listing_of("auto", path, root=tmp_path).videos
    assert (video.path, video.crops) == (tmp_path, {"raw": ("1.png",)})


@pytest.mark.parametrize(
    "frame", ["/etc/1.png", "../1.png", "a\\..\\..\\1.png", "C:\\1.png", "", 7]
)
def test_deepfakebench_refuses_frames_outside_the_root(tmp_path, frame):
    content = {"X": {"X_real": {"test": {"v": bench_video("X_real", frame)}}}}
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(DfdetectError, match=r"X_real/v names .* outside"):
        listing_of("deepfakebench", tmp_path / "list.json")


def test_deepfakebench_refuses_a_video_in_several_splits_and_knows_the_defect(tmp_path):
    one = {"v": bench_video("CelebDFv2_real", "1.png")}
    content = {"Celeb-DF-v2": {"CelebDFv2_real": {"train": one, "val": one, "test": one}}}
    path = bench_list(tmp_path, content)
    with pytest.raises(DfdetectError, match=r"v is in train and val and test; .*train holds test"):
        listing_of("auto", path)
    (video,) = listing_of("auto", path, identity_disjoint=True).videos
    assert video.split is None


def test_deepfakebench_takes_val_that_repeats_test_as_test(tmp_path):
    one = {"v": bench_video("X_real", "1.png")}
    path = bench_list(tmp_path, {"X": {"X_real": {"train": {}, "val": one, "test": one}}})
    listing = listing_of("auto", path)
    assert [v.split for v in listing.videos] == ["test"]
    assert any("val and test at once" in note for note in listing.notes)


def test_deepfakebench_passes_over_the_overwritten_val_of_dfdc(tmp_path):
    one = bench_video("DFDC_Real", "1.png")
    path = bench_list(tmp_path, {"DFDC": {"DFDC_Real": {"val": one, "test": {"v": one}}}})
    listing = listing_of("auto", path)
    assert [v.split for v in listing.videos] == ["test"]
    assert "known defect" in listing.notes[0]


@pytest.mark.parametrize(
    ("name", "label"),
    [("FF-real", 0), ("DFD_real", 0), ("DFDC_Real", 0), ("simswap_Real", 0), ("FF-DF", 1),
     ("DFDCP_FakeA", 1), ("CelebDFv2_fake", 1), ("my-real-clips_swap_fake", 1)],
)  # fmt: skip
def test_deepfakebench_labels_follow_from_label_names(name, label):
    assert deepfakebench.label_of(name) == label


@pytest.mark.parametrize(
    "content", [[], {"a": 1}, {"a": {"b": {"dev": {}}}}, {"a": {"b": {"test": 3}}}]
)
def test_a_json_that_is_no_deepfakebench_list_says_what_it_lacks(tmp_path, content):
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(DfdetectError):
        listing_of("deepfakebench", tmp_path / "list.json")


@pytest.mark.parametrize("name", [n for n in datasets.SHELF if n not in ("table", "deepfakebench")])
def test_a_tree_of_something_else_names_the_tree_that_was_expected(tmp_path, name):
    touch(tmp_path, "holiday/beach.txt")
    with pytest.raises(DfdetectError) as error:
        listing_of(name, tmp_path)
    assert "expected" in error.value.hint


def test_a_source_that_looks_like_two_datasets_says_how_it_was_read(tmp_path):
    deeper_tree(tmp_path)
    touch(tmp_path, "original_sequences/youtube/c23/videos/000.mp4")
    listing = listing_of("auto", tmp_path)
    assert listing.notes[0] == "read as deeperforensics; --dataset ffpp would read it too"


def test_half_characters_in_a_list_are_an_error_and_not_a_crash(tmp_path):
    touch(tmp_path, "dfdc_train_part_1/a.mp4")
    facts = {"a.mp4": {"label": "FAKE", "original": "\ud800.mp4"}}
    (tmp_path / "dfdc_train_part_1" / "metadata.json").write_text(json.dumps(facts))
    with pytest.raises(DfdetectError, match="is not valid text"):
        listing_of("auto", tmp_path)


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    place = os.fsencode(tmp_path / "manipulated_videos" / "end_to_end")
    os.makedirs(place)
    open(place + b"/000_W1\xff.mp4", "w").close()
    (video,) = listing_of("auto", tmp_path).videos
    assert video.video_id == "DeeperForensics-1.0/end_to_end/000_W1\\udcff"


def test_a_linked_manipulation_folder_is_listed_and_a_loop_of_links_ends(tmp_path):
    touch(tmp_path, "elsewhere/deep/ann.mp4", "set/real/ann.mp4", "set/fake/swap/bob.mp4")
    fake = tmp_path / "set" / "fake"
    (fake / "Deepfakes").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (fake / "swap" / "around").symlink_to(fake, target_is_directory=True)
    (fake / "alias").symlink_to(fake / "swap", target_is_directory=True)
    videos = by_id(list_source("auto", tmp_path / "set", DatasetOptions()))
    assert {name: v.manipulation for name, v in videos.items()} == {
        "fake/Deepfakes/deep/ann.mp4": "Deepfakes",
        "fake/swap/bob.mp4": "swap",
        "real/ann.mp4": "real",
    }
    assert media_below(fake) == [fake / "swap" / "bob.mp4"]  # a scan stays where it was sent


def test_a_folder_that_may_not_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    touch(tmp_path, "real/ann.mp4", "fake/swap/locked/bob.mp4")
    scandir = os.scandir

    def refusing(path="."):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DfdetectError, match=r"fake/swap/locked: cannot be read \(Permission"):
        list_source("folder", tmp_path, DatasetOptions())


def test_hidden_files_are_no_videos(tmp_path):
    touch(tmp_path, "real/ann.mp4", "real/._ann.mp4", "fake/swap/.trash/bob.mp4")
    assert set(by_id(list_source("folder", tmp_path, DatasetOptions()))) == {"real/ann.mp4"}


def test_a_row_that_ends_early_or_late_is_no_crash(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path,label,part\na.mp4,real\nb.mp4,fake,main\n")
    (video,) = listing_of("table", table, where={"part": "main"}).videos
    assert video.source == "b.mp4"
    with pytest.raises(DfdetectError, match="part=other matches none of 2 rows"):
        listing_of("table", table, where={"part": "other"})
    table.write_text("file,label\na.mp4,real,more\n")
    with pytest.raises(DfdetectError, match="no column 'path'"):
        listing_of("table", table)


def test_a_list_nested_beyond_reading_is_an_error_and_not_a_crash(tmp_path):
    (tmp_path / "list.json").write_text("[" * 200_000)
    with pytest.raises(DfdetectError, match="not valid JSON"):
        listing_of("deepfakebench", tmp_path / "list.json")


def test_official_lists_that_give_an_id_two_splits_are_refused(tmp_path):
    ffpp_tree(tmp_path)
    (tmp_path / "splits" / "val.json").write_text('[["003", "870"]]')
    with pytest.raises(DfdetectError, match="003 is listed as train and as val"):
        listing_of("ffpp", tmp_path)
