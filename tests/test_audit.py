"""The audit: every trap has a folder in which its check fires and one in which it stays quiet."""

import csv
import hashlib
import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import PORTRAIT_LANDMARKS, clip

from dfdetect import audit as auditing
from dfdetect.audit import NEAR_BITS, Finding, audit, near_pairs, picture_hash
from dfdetect.checkpoint import read_info
from dfdetect.datasets.ffpp import CROSSINGS
from dfdetect.errors import DfdetectError
from dfdetect.faces import CropRecipe, align
from dfdetect.files import write_json
from dfdetect.manifest import SCHEMA, read_table, write_part
from dfdetect.presets import load_preset
from dfdetect.reports.table import audit_line, audit_note, audit_table
from dfdetect.runs import stored_run
from dfdetect.shipped import read_portrait
from dfdetect.train import train
from dfdetect.training_data import load_training_data
from dfdetect.video import sample_indices

VERSIONS = {"av": "18.1", "opencv": "4.10"}


def rows_of(
    video_id, label=0, split="train", frames=(10, 30, 50, 70, 90), qualities=("raw",), **of
):
    """Rows of one video: a crop per frame and quality, whatever else is given as columns."""
    rows = []
    for frame in frames:
        for quality in qualities:
            crop = f"{video_id}/{frame}/{quality}"
            row = {
                "path": f"faces/{quality}/{video_id.replace('/', '-')}/{frame:06d}_0.png",
                "crop_sha256": hashlib.sha256(crop.encode()).hexdigest(),
                "sample_id": f"{video_id}/{frame:06d}/0",
                "video_id": video_id,
                "label": label,
                "dataset": "set",
                "manipulation": "swap" if label else "real",
                "identities": [video_id],
                "split": split,
                "quality": quality,
                "psnr_db": None if quality == "raw" else 33.0,
                "frame_index": frame,
                "face_px": 100.0,
                "face_choice": "main",
                "n_faces": 1,
                "n_frames": 100,
                "source_sha256": hashlib.sha256(video_id.encode()).hexdigest(),
            }
            rows.append(row | of)
    return rows


def folder_of(path, *videos, failures=(), **stored):
    """A prepared folder of these videos' rows; `stored` goes into prepare.json."""
    for rows in videos:
        write_part(path, rows[0]["video_id"] + rows[0]["split"], rows)
    recipe = {"qualities": ["raw"], "frames": 5, "crop": {"size": 256}}
    write_json(path / "prepare.json", {"recipe": recipe, "versions": VERSIONS} | stored)
    with (path / "failures.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["video_id", "label"])
        writer.writeheader()
        writer.writerows({"video_id": name, "label": label} for name, label in failures)
    return path


def both_classes(*splits):
    """A real and a fake of two people in each split."""
    return [rows_of(f"{split}{label}", label, split) for split in splits for label in (0, 1)]


def test_the_audit_reads_columns_that_the_manifest_has():
    read = {*auditing.MANIFEST_COLUMNS, *auditing.CROP_COLUMNS}
    assert read <= set(SCHEMA.names)


def said(folders, name, **options) -> Finding:
    folders = folders if isinstance(folders, list) else [folders]
    (found,) = [f for f in audit(folders, look_at_crops=False, **options) if f.name == name]
    return found


def test_a_clean_folder_gets_no_warning(tmp_path):
    data = folder_of(tmp_path / "d", *both_classes("train", "val", "test"))
    findings = audit([data], look_at_crops=False)
    assert {f.status for f in findings} == {"OK", "unchecked"}
    assert all(f.message.endswith(".") and f.traps == tuple(sorted(f.traps)) for f in findings)


def test_where_the_manifest_does_not_say_it_is_unchecked(tmp_path):
    unknown = dict.fromkeys(
        ("crop_sha256", "psnr_db", "face_choice", "n_faces", "n_frames", "source_sha256")
    )
    videos = [
        rows_of(f"{split}{label}", label, split, qualities=("raw", "c23"), **unknown)
        for split in ("train", "val")
        for label in (0, 1)
    ]
    status = {f.name: f.status for f in audit([folder_of(tmp_path, *videos)], look_at_crops=False)}
    assert status["people"] == status["one split"] == status["labels"] == "OK"
    silent = ("same file", "same crop", "boxes", "several faces", "frame spread", "alignment")
    assert {status[name] for name in (*silent, "footage")} == {"unchecked"}


def test_no_manifest_and_a_damaged_part_are_errors_with_a_remedy(tmp_path):
    with pytest.raises(DfdetectError, match="not a prepared data folder"):
        audit([tmp_path])
    data = folder_of(tmp_path / "d", rows_of("a"))
    next((data / "manifest").iterdir()).write_bytes(b"PAR1 nothing")
    with pytest.raises(DfdetectError, match="damaged manifest part"):
        audit([data])


# --- people, footage, files --------------------------------------------------------------------


def test_a_person_in_two_splits_fails_and_is_named(tmp_path):
    data = folder_of(
        tmp_path / "d",
        rows_of("a", identities=["ann"]),
        rows_of("b", split="test", identities=["ann"]),
        rows_of("c", identities=["cy"]),
        rows_of("d", identities=["cy"]),
    )
    found = said(data, "people")
    assert found.status == "FAIL" and found.ids == ["set/ann"] and found.traps == (1,)
    assert "1 in train+test" in found.message


def test_a_person_in_two_splits_is_a_warning_where_prepare_was_told_to_accept_it(tmp_path):
    videos = [rows_of("a", identities=["ann"]), rows_of("b", split="val", identities=["ann"])]
    accepted = folder_of(tmp_path / "d", *videos, identity_overlap_allowed=True)
    assert said(accepted, "people").status == "WARN"
    strict = folder_of(tmp_path / "e", rows_of("e", split="test", identities=["ann"]))
    assert said([accepted, strict], "people").status == "FAIL"


def test_people_of_several_folders_are_looked_at_together(tmp_path):
    one = folder_of(tmp_path / "one", rows_of("a", identities=["ann"]))
    two = folder_of(tmp_path / "two", rows_of("b", split="test", identities=["ann"]))
    assert said(one, "people").status == said(two, "people").status == "OK"
    assert said([one, two], "people").ids == ["set/ann"]


def test_people_of_one_name_in_two_home_made_sets_are_a_warning_across_splits(tmp_path):
    one = folder_of(tmp_path / "one", rows_of("a", identities=["ann"]))
    other = rows_of("b", split="test", identities=["ann"], dataset="other")
    found = said([one, folder_of(tmp_path / "two", other)], "people")
    assert found.status == "WARN" and found.ids == ["ann"] and "(ann)" in found.message
    within = rows_of("b", identities=["ann"], dataset="other")
    assert said([one, folder_of(tmp_path / "three", within)], "people").status == "OK"


@pytest.mark.parametrize("dataset", ["FaceForensics++", "DeepFakeDetection", "DFDCP", "UADFV"])
def test_numbers_of_official_sets_are_no_namesakes(tmp_path, dataset):
    one = folder_of(tmp_path / "one", rows_of("a", identities=["01"], dataset="Celeb-DF-v1"))
    two = rows_of("b", split="test", identities=["01"], dataset=dataset)
    assert said([one, folder_of(tmp_path / "two", two)], "people").status == "OK"


@pytest.mark.parametrize(
    ("dataset", "identity", "home"),
    [
        ("DeeperForensics-1.0", "123", "FaceForensics++"), ("DF40", "123", "FaceForensics++"),
        ("DFFD", "123", "FaceForensics++"), ("FF-DF", "123", "FaceForensics++"),
        ("FaceShifter", "123", "FaceForensics++"),
        ("DF40", "id7", "Celeb-DF-v2"),
    ],
)  # fmt: skip
def test_sets_made_from_others_share_their_people(tmp_path, dataset, identity, home):
    one = rows_of("a", dataset=home, identities=[identity])
    two = rows_of("b", split="test", dataset=dataset, identities=[identity])
    found = said(folder_of(tmp_path, one, two), "people")
    assert found.status == "FAIL" and found.ids == [f"{home}/{identity}"]


def test_a_fake_whose_other_parent_is_in_another_split_fails(tmp_path):
    reals = [rows_of("1", identities=["1"]), rows_of("2", split="test", identities=["2"])]
    torn = folder_of(tmp_path / "d", *reals, rows_of("1_2", 1, identities=["1", "2"]))
    found = said(torn, "other parent")
    assert found.status == "FAIL" and found.ids == ["1_2"]
    whole = folder_of(tmp_path / "e", *reals, rows_of("1_3", 1, identities=["1", "3"]))
    assert said(whole, "other parent").status == "OK"


def test_footage_in_two_splits_fails_whoever_is_in_it(tmp_path):
    videos = [rows_of("a", footage="yt"), rows_of("b", split="val", footage="yt")]
    found = said(folder_of(tmp_path / "d", *videos, rows_of("c", footage="other")), "footage")
    assert found.status == "FAIL" and found.ids == ["a", "b"] and found.traps == (2,)
    fine = folder_of(tmp_path / "e", rows_of("a", footage="yt"), rows_of("b", footage="yt"))
    assert said(fine, "footage").status == "OK"


def ffpp(name, split, label=0, **of):
    return rows_of(
        f"FaceForensics++/{name}", label, split, dataset="FaceForensics++",
        identities=name.split("_"), **of,
    )  # fmt: skip


def test_the_known_crossings_of_faceforensics_are_found_without_its_footage(tmp_path):
    assert auditing.FFPP_SAME_FOOTAGE == CROSSINGS
    crossing = [ffpp("755", "train"), ffpp("755_001", "train", 1), ffpp("756", "test")]
    kept = [ffpp("605", "train"), ffpp("606", "train"), ffpp("954", "train")]
    found = said(folder_of(tmp_path / "d", *crossing, *kept), "footage")
    assert found.status == "WARN"
    assert "755+756 in train+test" in found.message and "--drop-cross-source" in found.message
    assert "605" not in found.message
    assert found.ids == [f"FaceForensics++/{n}" for n in ("755", "755_001", "756")]
    assert said(folder_of(tmp_path / "e", *kept), "footage").status == "OK"


def test_faceforensics_dealt_video_by_video_is_no_official_crossing(tmp_path):
    found = said(folder_of(tmp_path, ffpp("001", "train"), ffpp("001_002", "val", 1)), "footage")
    assert found.status == "FAIL" and "--drop-cross-source" not in found.message


def test_a_known_crossing_is_a_warning_with_recorded_footage_too(tmp_path):
    videos = [ffpp("755", "train", footage="yt"), ffpp("756", "test", footage="yt")]
    found = said(folder_of(tmp_path / "d", *videos), "footage")
    assert found.status == "WARN" and "755+756 in train+test" in found.message


@pytest.mark.parametrize(("first", "second"), [("755", "756"), ("123", "123"), ("200", "300")])
def test_footage_is_found_where_only_one_folder_knows_its_name(tmp_path, first, second):
    one = folder_of(tmp_path / "one", ffpp(first, "train", footage="yt"))
    named = ffpp(second, "train", footage="yt")
    two = folder_of(tmp_path / "two", ffpp(second, "test"))
    three = folder_of(tmp_path / "three", named)
    found = said([one, two, three], "footage")
    assert found.status in ("WARN", "FAIL") and "1 of 1 pieces" in found.message
    assert len(found.ids) == 3
    stranger = folder_of(tmp_path / "four", ffpp("400", "test"))
    assert said([one, stranger], "footage").status == "OK"


def test_one_video_in_two_splits_fails(tmp_path):
    torn = folder_of(tmp_path / "d", rows_of("a"), rows_of("a", split="test", frames=(5,)))
    found = said(torn, "one split")
    assert found.status == "FAIL" and found.ids == ["a"]
    one, two = folder_of(tmp_path / "e", rows_of("a")), folder_of(tmp_path / "f", rows_of("a"))
    assert said([one, two], "one split").status == "OK"
    other = folder_of(tmp_path / "g", rows_of("a", split="val"))
    assert said([one, other], "one split").ids == ["e: a", "g: a"]
    namesake = folder_of(tmp_path / "h", rows_of("a", split="val", source_sha256="f" * 64))
    assert said([one, namesake], "one split").status == "OK"


@pytest.mark.parametrize(
    ("split", "label", "status"),
    [("train", 0, "WARN"), ("test", 0, "FAIL"), ("train", 1, "FAIL")],
)
def test_a_file_under_two_ids_fails_across_splits_and_labels(tmp_path, split, label, status):
    same = {"source_sha256": "a" * 64}
    data = folder_of(tmp_path, rows_of("a", **same), rows_of("b", label, split, **same))
    found = said(data, "same file")
    assert found.status == status and found.ids == ["a", "b"]


def test_a_crop_that_is_byte_for_byte_in_two_splits_fails(tmp_path):
    twice = {"crop_sha256": "a" * 64}
    torn = [rows_of("a", **twice), rows_of("b", split="val", **twice), rows_of("c")]
    found = said(folder_of(tmp_path / "d", *torn), "same crop")
    assert found.status == "FAIL" and found.ids == ["a", "b"]
    assert "1 crops" in found.message
    within = [rows_of("a", **twice), rows_of("b", **twice), rows_of("c", split="val")]
    assert said(folder_of(tmp_path / "e", *within), "same crop").status == "OK"


@pytest.mark.parametrize("name", ["WildDeepfake", "DF40", "DeepFakeDetection"])
def test_a_set_meant_for_testing_is_a_warning_in_train_only(tmp_path, name):
    used = folder_of(tmp_path / "d", rows_of("a", dataset=name))
    assert said(used, "test-only sets").ids == ["a"]
    assert said(used, "test-only sets").status == "WARN"
    tested = folder_of(tmp_path / "e", rows_of("a", dataset=name, split="test"))
    assert said(tested, "test-only sets").status == "OK"


# --- labels and counts -------------------------------------------------------------------------


def test_labels_at_odds_fail(tmp_path):
    contradictory = rows_of("two") + rows_of("two", 1, frames=(5,), manipulation="real")
    videos = [contradictory, rows_of("odd", 1, manipulation="real"), rows_of("fine", 1)]
    found = said(folder_of(tmp_path, *videos), "labels")
    assert found.status == "FAIL" and found.ids == ["odd", "two"]


def test_one_video_with_different_labels_in_two_folders_fails(tmp_path):
    one, two = folder_of(tmp_path / "a", rows_of("v")), folder_of(tmp_path / "b", rows_of("v", 1))
    assert said([one, two], "labels").ids == ["a: v", "b: v"]


def test_a_split_without_one_class_fails_and_counts_are_given(tmp_path):
    data = folder_of(tmp_path / "d", *both_classes("train"), rows_of("v", 1, "val"))
    found = said(data, "classes")
    assert found.status == "FAIL" and found.ids == ["val"]
    assert "val has no real" in found.message
    assert "train 1 real and 1 fake videos (5 and 5 crops)" in found.message
    fakes_to_test = folder_of(tmp_path / "t", *both_classes("train"), rows_of("v", 1, "test"))
    assert said(fakes_to_test, "classes").status == "WARN"  # no reason not to train


@pytest.mark.parametrize(
    ("n_real", "n_fake", "status"), [(0, 0, "OK"), (1, 1, "OK"), (0, 2, "OK"), (0, 8, "WARN")]
)
def test_failures_that_spare_one_class_are_a_warning(tmp_path, n_real, n_fake, status):
    videos = [rows_of(f"{label}{i}", label) for label in (0, 1) for i in range(20)]
    failed = [(f"r{i}", 0) for i in range(n_real)] + [(f"f{i}", 1) for i in range(n_fake)]
    found = said(folder_of(tmp_path, *videos, failures=failed), "failed files")
    assert found.status == status
    assert f"{n_fake} of {20 + n_fake} fake" in found.message
    assert found.ids == sorted(name for name, _ in failed)


# --- shortcuts ---------------------------------------------------------------------------------


def many(metadata, n=60, seed=0):
    """`n` videos a class, each of its own person; `metadata(label, rng)` gives columns."""
    rng = np.random.default_rng(seed)
    return [
        rows_of(f"{label}-{i}", label, frames=(50,), **metadata(label, rng))
        for i in range(n)
        for label in (0, 1)
    ]


def untold(label, rng):
    width = int(rng.choice([320, 640, 1280]))
    return {
        "codec": str(rng.choice(["h264", "vp9"])),
        "pix_fmt": "yuv420p",
        "width": width,
        "height": width * 9 // 16,
        "fps": float(rng.choice([25.0, 29.97, 30.0])),
        "bits_per_pixel": float(rng.lognormal(-2, 1)),
        "face_px": float(rng.lognormal(4.6, 0.4)),
        "n_frames": int(rng.integers(100, 900)),
    }


@pytest.mark.parametrize("seed", range(4))
def test_metadata_without_a_shortcut_gets_no_warning(tmp_path, seed):
    data = folder_of(tmp_path, *many(untold, seed=seed))
    assert said(data, "metadata of videos").status == "OK"
    assert said(data, "face size").status == "OK"


@pytest.mark.parametrize(
    ("column", "shortcut", "shown"),
    [
        ("codec", lambda y, rng: "h264" if y or rng.random() < 0.12 else "vp9", "fake h264 100%"),
        (
            "pix_fmt",
            lambda y, rng: "yuv444p" if y else "yuv420p",
            "fake yuv444p 100%, real yuv444p 0%",
        ),
        ("container", lambda y, rng: "mp4" if y else "matroska", "fake mp4 100%"),
        ("source_quality", lambda y, rng: "c23" if y else "raw", "fake c23 100%, real c23 0%"),
        ("bits_per_pixel", lambda y, rng: float(rng.lognormal(-2 - 2 * y, 0.5)), "fake 0.0"),
        # neither larger nor smaller, but all alike
        ("fps", lambda y, rng: 25.0 if y else float(rng.choice([24.0, 30.0])), "fake 25 100%"),
        ("face_px", lambda y, rng: 90.0 + rng.random() if y else float(rng.lognormal(4.5, 1)), "f"),
        ("n_frames", lambda y, rng: 300 if y else int(rng.integers(100, 900)), "fake"),
    ],
)
def test_a_shortcut_in_the_metadata_is_named_with_its_values_by_label(
    tmp_path, column, shortcut, shown
):
    data = folder_of(
        tmp_path, *many(lambda y, rng: untold(y, rng) | {column: shortcut(y, rng)}, n=40)
    )
    found = said(data, "metadata of videos")
    assert found.status == "WARN" and found.traps == (6, 7)
    strongest = found.message.split(": ", 1)[1]
    assert strongest.startswith(f"{column.replace('_', ' ')} alone ") and shown in strongest


def test_the_probe_does_not_recognise_people_by_their_files(tmp_path):
    """A camera of their own for each person, who are all on one side: no shortcut for strangers."""
    rng = np.random.default_rng(0)
    sizes = rng.permutation(np.arange(200, 200 + 4 * 60))
    videos = [
        rows_of(f"{p}-{i}", p % 2, frames=(50,), identities=[str(p)], width=int(sizes[p]))
        for p in range(40)
        for i in range(6)
    ]
    assert said(folder_of(tmp_path, *videos), "metadata of videos").status == "OK"


def test_too_few_videos_or_people_leave_the_probe_unchecked_with_the_reason(tmp_path):
    few = folder_of(tmp_path / "d", *many(untold, n=19))
    found = said(few, "metadata of videos")
    assert found.status == "unchecked" and "19 real files of 19 people are too few" in found.message
    alone = folder_of(
        tmp_path / "e", *many(lambda y, rng: untold(y, rng) | {"identities": [str(y)]}, n=30)
    )
    assert "30 real files of 1 people" in said(alone, "metadata of videos").message


def test_pictures_and_videos_are_probed_apart_and_together(tmp_path):
    """Fakes are pictures, reals are videos: neither kind has two classes, together it is told."""
    data = folder_of(
        tmp_path, *many(lambda y, rng: untold(y, rng) | {"n_frames": 1 if y else 100}, n=30)
    )
    assert said(data, "metadata of pictures").status == "unchecked"
    assert said(data, "metadata of videos").status == "unchecked"
    found = said(data, "metadata, all files")
    assert found.status == "WARN"
    assert "kind alone 1.00 (fake picture 100%, real picture 0%)" in found.message


def test_faces_that_are_smaller_in_one_class_are_a_warning(tmp_path):
    data = folder_of(
        tmp_path,
        *many(lambda y, rng: {"face_px": float(rng.lognormal(4.6 if y else 5.2, 0.4))}),
    )
    found = said(data, "face size")
    assert found.status == "WARN" and "real 18" in found.message and "fake 1" in found.message


# --- faces and frames --------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["mask", "shipped"])
def test_boxes_from_elsewhere_are_a_warning_in_test_only(tmp_path, choice):
    videos = [rows_of("a", split="test", face_choice=choice), rows_of("b", split="test")]
    found = said(folder_of(tmp_path / "d", *videos), "boxes")
    assert found.status == "WARN" and found.ids == ["a"] and "1 of 2 test videos" in found.message
    trained = folder_of(tmp_path / "e", rows_of("a", face_choice=choice))
    assert said(trained, "boxes").status == "OK"


def test_fakes_with_several_faces_are_a_warning_unless_the_face_was_chosen_by_a_mask(tmp_path):
    videos = [
        rows_of("main", 1, n_faces=3),
        rows_of("mask", 1, n_faces=3, face_choice="mask"),
        rows_of("all", 1, n_faces=3, face_choice="all"),
        rows_of("real", 0, n_faces=3),
    ]
    found = said(folder_of(tmp_path / "d", *videos), "several faces")
    assert found.status == "WARN" and found.ids == ["main"]
    assert said(folder_of(tmp_path / "e", *videos[1:]), "several faces").status == "OK"


@pytest.mark.parametrize(
    ("quality", "psnr_db", "status"),
    [
        ("c23", 29.0, "OK"), ("c23", 24.0, "WARN"), ("c23", 18.0, "FAIL"),
        ("c40", 20.3, "OK"), ("c40", 18.0, "WARN"), ("c40", 14.0, "FAIL"),
        ("j75", 18.0, "FAIL"), ("j10", 18.0, "WARN"),
    ],
)  # fmt: skip
def test_qualities_that_show_another_picture_fail(tmp_path, quality, psnr_db, status):
    rows = rows_of("a", qualities=("raw", quality))
    rows = [row | {"psnr_db": psnr_db if row["quality"] == quality else None} for row in rows]
    found = said(folder_of(tmp_path, rows, rows_of("b", qualities=("raw", quality))), "alignment")
    assert found.status == status
    assert found.ids == ([] if status == "OK" else ["a"])
    assert f"{quality} {psnr_db:.1f} dB" in found.message


def test_one_bad_crop_of_a_video_is_a_warning_and_not_a_misalignment(tmp_path):
    rows = rows_of("a", qualities=("raw", "c23"))
    rows[1]["psnr_db"] = 12.0
    assert said(folder_of(tmp_path, rows), "alignment").status == "WARN"


def test_a_sample_that_lacks_a_quality_is_a_warning(tmp_path):
    rows = rows_of("a", qualities=("raw", "c23"))
    found = said(folder_of(tmp_path / "d", rows[:-1], rows_of("b")), "qualities")
    assert found.status == "WARN" and found.ids == ["a", "b"] and "raw,c23" in found.message
    assert said(folder_of(tmp_path / "e", rows), "qualities").status == "OK"


def test_the_first_frames_of_videos_are_no_sample(tmp_path):
    first = [rows_of(f"v{i}", frames=(0, 1, 2, 3, 4)) for i in range(3)]
    found = said(folder_of(tmp_path / "d", *first), "frame spread")
    assert found.status == "WARN" and found.ids == ["v0", "v1", "v2"]
    spread = [rows_of(f"w{i}") for i in range(27)]
    mostly = said(folder_of(tmp_path / "e", *first, *spread), "frame spread")
    assert mostly.status == "OK" and mostly.ids == ["v0", "v1", "v2"]


@pytest.mark.parametrize("n_wanted", [4, 5, 32])
@pytest.mark.parametrize("n_frames", [4, 33, 1000])
def test_frames_as_prepare_samples_them_are_spread(tmp_path, n_wanted, n_frames):
    rows = rows_of("a", frames=sample_indices(n_frames, n_wanted), n_frames=n_frames)
    recipe = {"qualities": ["raw"], "frames": n_wanted}
    found = said(folder_of(tmp_path, rows, recipe=recipe), "frame spread")
    assert found.status == "OK" and found.ids == []


def test_folders_of_different_recipes_or_libraries_are_a_warning(tmp_path):
    crop = {"qualities": ["raw"], "frames": 5, "crop": {"size": 224}}
    one, two = folder_of(tmp_path / "one", rows_of("a")), folder_of(tmp_path / "two", rows_of("b"))
    other = folder_of(
        tmp_path / "other", rows_of("c"), recipe=crop, versions=VERSIONS | {"av": "19.0"}
    )
    assert said([one, two], "crop recipe").status == "OK"
    assert said([one, two], "library versions").status == "OK"
    later = folder_of(tmp_path / "later", rows_of("d"), other_versions=[VERSIONS | {"av": "18.2"}])
    assert "av 18.1 and 18.2" in said(later, "library versions").message
    assert said([one, other], "crop recipe").status == "WARN"
    found = said([one, other], "library versions")
    assert found.status == "WARN" and "av 18.1 and 19.0" in found.message


# --- crops -------------------------------------------------------------------------------------


def face(seed, shift=0.0):
    """A random 'person' aligned like all others: the same oval, other shades, features, hair."""
    rng = np.random.default_rng(seed)
    image = np.full((256, 256, 3), rng.uniform(20, 230), np.float32)
    cv2.ellipse(image, (128, 140), (80, 110), 0, 0, 360, (rng.uniform(60, 220),) * 3, -1)
    for x, y in ((97, 120), (159, 120), (128, 156), (128, 192)):
        size = tuple(int(s) for s in rng.integers(8, 26, 2))
        at = (int(x + shift + rng.integers(-4, 5)), int(y + rng.integers(-4, 5)))
        cv2.ellipse(image, at, size, 0, 0, 360, (rng.uniform(0, 255),) * 3, -1)
    blotches = cv2.resize(rng.normal(0, 40, (9, 9, 3)).astype(np.float32), (256, 256))
    return np.clip(image + blotches, 0, 255).astype(np.uint8)


def bits_between(a, b):
    return int(np.bitwise_count(picture_hash(a) ^ picture_hash(b)).sum())


def jpeg(image, level):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, level])[1], 1)


@pytest.mark.parametrize(
    "changed",
    [
        lambda image: jpeg(image, 50),
        lambda image: cv2.resize(cv2.resize(image, (128, 128)), (256, 256)),
        lambda image: cv2.convertScaleAbs(image, alpha=0.8, beta=10),
        lambda image: cv2.GaussianBlur(image, (5, 5), 0),
    ],
    ids=["jpeg", "scaled", "darker", "blurred"],
)
def test_a_re_encoded_scaled_darker_or_blurred_crop_is_the_same_picture(changed):
    for seed in range(10):
        assert bits_between(face(seed), changed(face(seed))) <= NEAR_BITS
    portrait = align(read_portrait(), PORTRAIT_LANDMARKS, CropRecipe())
    assert bits_between(portrait, changed(portrait)) <= NEAR_BITS


def test_different_people_are_not_the_same_picture():
    faces = [face(seed) for seed in range(60)]
    hashes = np.array([picture_hash(f) for f in faces])
    splits = np.arange(60) % 2
    assert near_pairs(hashes, splits) == []
    nearest = min(bits_between(faces[i], faces[j]) for i in range(60) for j in range(i))
    assert nearest > 1.5 * NEAR_BITS


def test_the_same_person_in_another_pose_is_not_the_same_picture():
    """One portrait, turned and moved under the camera without alignment."""
    frames = clip(seed=3, n_frames=24)
    assert bits_between(frames[0], frames[-1]) > NEAR_BITS
    assert bits_between(face(1), face(1, shift=12)) > NEAR_BITS


def test_a_crop_that_is_mostly_black_or_plain_is_not_compared():
    black = np.zeros((256, 256, 3), np.uint8)
    black[180:] = face(0)[180:]
    assert picture_hash(black) is None
    assert picture_hash(np.full((256, 256, 3), 128, np.uint8)) is None


def test_near_pairs_are_found_among_many_like_a_search_over_all_pairs():
    rng = np.random.default_rng(0)
    bits = rng.random((600, 256)) < 0.5
    for i in range(0, 300, 3):  # a hundred copies with 0 to 24 flipped bits, 300 further on
        bits[300 + i] = bits[i]
        bits[300 + i, rng.choice(256, i // 3 % 25, replace=False)] ^= True
    splits = np.repeat([0, 1], 300)
    hashes = np.packbits(bits, axis=1)
    differing = (bits[:300, None] != bits[None, 300:]).sum(2)
    expected = {(i, 300 + j) for i, j in zip(*np.nonzero(differing <= NEAR_BITS), strict=True)}
    found = near_pairs(hashes, splits)
    assert len(expected) == 100 and {p[:2] for p in found} <= expected
    assert len(found) >= 95  # the bands are no exhaustive search
    assert all(bits == differing[a, b - 300] for a, b, bits in found)


def test_many_copies_within_a_split_do_not_hide_one_in_another():
    rng = np.random.default_rng(0)
    one = np.packbits(rng.random(256) < 0.5)
    hashes = np.vstack([np.tile(one, (200, 1)), np.packbits(rng.random((100, 256)) < 0.5, axis=1)])
    splits = np.zeros(300, int)
    splits[117] = 1
    pairs = near_pairs(hashes, splits)
    assert {i for pair in pairs for i in pair[:2]} == set(range(200))
    assert all(117 in pair[:2] and pair[2] == 0 for pair in pairs)


def with_crops(path, images):
    """A folder with a video per (video_id, split, crop), whose crops are files."""
    videos = []
    for number, (name, split, image) in enumerate(images):
        rows = rows_of(name, number % 2, split, frames=(50,))
        file = path / rows[0]["path"]
        file.parent.mkdir(parents=True)
        cv2.imwrite(str(file), image)
        videos.append([rows[0] | {"crop_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}])
    return folder_of(path, *videos)


def looked(folder, name):
    (found,) = [f for f in audit([folder]) if f.name == name]
    return found


def test_a_re_encoded_copy_in_another_split_is_a_warning_and_named(tmp_path):
    images = [(f"v{i}", "train", face(i)) for i in range(8)]
    clean = with_crops(tmp_path / "d", [*images, ("w", "test", face(50))])
    assert looked(clean, "near duplicates").status == "OK"
    copied = with_crops(tmp_path / "e", [*images, ("w", "test", jpeg(face(3), 60))])
    found = looked(copied, "near duplicates")
    assert found.status == "WARN" and found.ids == ["v3", "w"]
    within = with_crops(tmp_path / "f", [*images, ("w", "train", jpeg(face(3), 60))])
    assert looked(within, "near duplicates").status == "OK"


def test_missing_cut_and_changed_crops_fail(tmp_path):
    data = with_crops(tmp_path, [(f"v{i}", "train", face(i)) for i in range(6)])
    assert looked(data, "crop files").status == "OK"
    files = sorted((data / "faces").rglob("*.png"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-20])
    files[2].write_bytes(b"")
    files[3].write_bytes(files[4].read_bytes())
    found = looked(data, "crop files")
    assert found.status == "FAIL" and "4 of 6 crops" in found.message
    assert found.ids == [str(f.relative_to(data)) for f in files[:4]]


def test_crops_that_changed_places_at_a_later_quality_fail(tmp_path):
    rows = rows_of("a", frames=(10, 30), qualities=("raw", "c23"))
    for number, row in enumerate(rows):
        file = tmp_path / row["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), face(number))
        row["crop_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    data = folder_of(tmp_path, rows)
    found = looked(data, "crop files")
    assert found.status == "OK" and "4 of 4 were compared with their hash" in found.message
    a, b = sorted((data / "faces" / "c23").rglob("*.png"))
    held = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(held)
    found = looked(data, "crop files")
    assert found.status == "FAIL" and found.ids == [str(f.relative_to(data)) for f in (a, b)]


def test_a_few_crops_of_every_video_are_compared_and_their_number_is_said(tmp_path):
    rows = rows_of("a", frames=range(10))
    for row in rows:
        file = tmp_path / row["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), face(0))
        row["crop_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    found = looked(folder_of(tmp_path, rows), "crop files")
    assert found.message == "all 10 crops are there; 4 of 10 were compared with their hash."


def test_a_lossless_webp_crop_is_as_whole_as_a_png(tmp_path):
    row = rows_of("a", frames=(50,), path="faces/raw/a/000050_0.webp", crop_sha256=None)
    file = tmp_path / row[0]["path"]
    file.parent.mkdir(parents=True)
    cv2.imwrite(str(file), face(0), [cv2.IMWRITE_WEBP_QUALITY, 101])
    data = folder_of(tmp_path, row)
    assert looked(data, "crop files").status == "OK"
    file.write_bytes(file.read_bytes()[:-5])
    assert looked(data, "crop files").status == "FAIL"


def test_a_manifest_that_names_files_outside_its_folder_is_not_followed(tmp_path):
    data = folder_of(tmp_path / "d", rows_of("a", path="../secret.png"))
    (tmp_path / "secret.png").write_bytes(b"something")
    assert looked(data, "crop files").ids == ["../secret.png"]


def test_prepared_clips_pass_but_for_what_they_are(data):
    """The clips are of one portrait: nothing fails, and whatever is said has figures."""
    findings = audit([data])
    assert [f for f in findings if f.status == "FAIL"] == []
    status = {f.name: f.status for f in findings}
    assert status["crop files"] == status["qualities"] == status["classes"] == "OK"


# --- the command, the table, train -------------------------------------------------------------


@pytest.fixture
def leaking(tmp_path):
    videos = [
        rows_of(f"{split}-{label}-{i}", label, split, identities=[f"{label}-{i}"])
        for split in ("train", "val")
        for label in (0, 1)
        for i in range(4)
    ]
    return folder_of(tmp_path / "leaking", *videos)


def test_strict_exits_1_on_a_fail_and_not_on_a_warning(cli, leaking, tmp_path):
    assert cli("audit", leaking, "--manifest-only").exit_code == 0
    result = cli("audit", leaking, "--manifest-only", "--strict")
    assert result.exit_code == 1 and "FAIL" in result.stdout and result.stderr == ""
    warned = folder_of(tmp_path / "w", *both_classes("train"), rows_of("a", 1, n_faces=2))
    result = cli("audit", warned, "--manifest-only", "--strict")
    assert result.exit_code == 0 and "WARN" in result.stdout
    assert cli("audit", warned, "--strict").exit_code == 1  # its crops are missing
    assert cli("audit", tmp_path / "absent").exit_code == 2


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_opens_with_an_example(cli, flag):
    assert "Example: dfdetect audit" in cli("audit", flag).stdout


def test_json_lists_every_id_and_the_table_a_few(cli, leaking):
    result = cli("audit", leaking, "--manifest-only", "--json")
    told = json.loads(result.stdout)
    (people,) = [f for f in told["findings"] if f["name"] == "people"]
    assert told["schema_version"] == 1 and people["status"] == "FAIL" and len(people["ids"]) == 8
    assert people["traps"] == [1]
    shown = cli("audit", leaking, "--manifest-only").stdout
    assert "set/0-0" in shown and "and 5 more" in shown
    assert "1 FAIL" in shown.splitlines()[-1]


def test_the_note_shows_only_what_is_wrong(leaking):
    from rich.console import Console

    findings = audit([leaking], look_at_crops=False)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(audit_note(findings))
    text = console.export_text()
    assert "people" in text and "frame spread" not in text and audit_line(findings) in text
    assert audit_table(findings).row_count == len(findings)
    assert audit_note([Finding((1,), "people", "OK", "fine.", [])]).plain == "audit: 1 OK"


def edited(data, out, change):
    """A copy of prepared data with `change(row)` applied to every manifest row."""
    shutil.copytree(data, out)
    rows = read_table(out).to_pylist()
    for part in (out / "manifest").glob("*"):
        part.unlink()
    write_part(out, "all", [row | change(row) for row in rows])
    return out


SMALL = ["epochs=1", "steps_per_epoch=2", "image_size=64"]


def test_train_refuses_a_fail_and_records_what_was_accepted(data, tmp_path):
    """The same crops in train and val, unseen by a check of people."""
    leak = edited(data, tmp_path / "leak", lambda row: {"crop_sha256": "a" * 64})
    preset = load_preset("bce-tiny", SMALL)
    with pytest.raises(DfdetectError, match="the audit says FAIL: same crop: 1 crops") as error:
        load_training_data(preset, [leak])
    assert "--allow-audit-fail" in error.value.hint
    run = tmp_path / "run"
    train(preset, [leak], run, device="cpu", allow_audit_fail=True)
    info = read_info(run)
    assert info.band is None and "although the audit found leaks (same crop)" in info.band_basis
    assert any("same crop" in note for note in info.data["notes"])
    told = json.loads((run / "run.json").read_text())
    assert told["audit_fail_allowed"] is True and any("same crop" in n for n in told["notes"])
    preset, folders = stored_run(run)
    assert train(preset, folders, run, device="cpu", resume=True).n_steps == 2


def test_people_in_train_and_val_are_accepted_by_the_same_option(data, tmp_path):
    leak = edited(data, tmp_path / "leak", lambda row: {"identities": ["ann"]})
    preset = load_preset("bce-tiny", SMALL)
    with pytest.raises(DfdetectError, match=r"/ann \(test\+train\+val\)"):
        load_training_data(preset, [leak])
    rows = load_training_data(preset, [leak], allow_audit_fail=True)
    assert "people of its validation" in rows.no_calls
    assert load_training_data(preset, [data]).no_calls == ""


def test_train_refuses_through_the_command_line_with_one_line(cli, data, tmp_path):
    leak = edited(data, tmp_path / "leak", lambda row: {"crop_sha256": "a" * 64})
    options = ["train", "--preset", "bce-tiny", "--data", leak, "--out", tmp_path / "run", "-n"]
    result = cli(*options)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert "accept it with --allow-audit-fail" in result.stderr
    assert cli(*options, "--allow-audit-fail").exit_code == 0
