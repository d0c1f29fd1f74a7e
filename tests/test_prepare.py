"""prepare from end to end, on clips with a real face, through the real codec and MTCNN."""

import csv
import hashlib
import json
import os

import cv2
import numpy as np
import pytest
from conftest import clip, write_clip, write_scenery

from dfdetect.errors import DfdetectError, ExitCode
from dfdetect.faces import CropRecipe
from dfdetect.files import folder_lock
from dfdetect.manifest import read_samples, read_table
from dfdetect.prepare import Allowed, PrepareRecipe, Running, plan, prepare
from dfdetect.video import write_video

RECIPE = PrepareRecipe(frames=3)


@pytest.fixture
def source(tmp_path):
    write_clip(tmp_path / "source/real/ann.mp4", 1)
    write_clip(tmp_path / "source/fake/self-blend/bob.mp4", 2, forgery="self-blend")
    return tmp_path / "source"


def tree(folder):
    """Hashes of crops and manifest by name."""
    files = [p for p in folder.rglob("*") if p.suffix in (".png", ".parquet")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_pairs_show_the_same_pixels_at_falling_quality(data):
    groups = {}
    for sample in read_samples(data):
        groups.setdefault(sample.sample_id, {})[sample.quality] = cv2.imread(
            str(sample.path)
        ).astype(int)
    assert len(groups) == 18 * 4
    for crops in groups.values():
        assert set(crops) == {"raw", "c23", "c40"}
        errors = [np.square(crops[q] - crops["raw"]).mean() for q in ("c23", "c40")]
        assert 0 < errors[0] < errors[1]
        shifted = np.square(crops["c23"][:, 4:] - crops["raw"][:, :-4]).mean()
        assert shifted > 4 * errors[0]  # four pixels aside nothing fits any more


def test_the_manifest_says_where_each_crop_came_from(data):
    rows = read_table(data).to_pylist()
    assert {r["split"] for r in rows} == {"train", "val", "test"}
    for row in rows:
        assert row["label"] == (row["manipulation"] != "real")
        assert row["time_s"] == pytest.approx(row["frame_index"] / 12)
        x0, _, x1, _ = row["box_xyxy"]
        assert row["face_px"] == pytest.approx(x1 - x0)
        assert len(row["landmarks"]) == 10
        assert not row["source"].startswith("/")


def test_still_pictures_get_the_same_qualities(tmp_path):
    frame = cv2.cvtColor(clip(1)[0], cv2.COLOR_RGB2BGR)
    (tmp_path / "s/real").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "s/real/photo.png"), frame)
    recipe = PrepareRecipe(qualities=("raw", "c40", "j30"), frames=3)
    summary = prepare(tmp_path / "s", tmp_path / "out", recipe)
    assert dict(summary.crops) == {("raw", 0): 1, ("c40", 0): 1, ("j30", 0): 1}
    crops = {s.quality: cv2.imread(str(s.path)).astype(int) for s in read_samples(tmp_path / "out")}
    assert all(5 < np.square(crops[q] - crops["raw"]).mean() < 500 for q in ("c40", "j30"))


def test_rerunning_skips_what_is_finished_and_completes_the_rest(tmp_path, source):
    whole = prepare(source, tmp_path / "whole", RECIPE)
    assert whole.n_skipped == 0
    prepare(source, tmp_path / "again", RECIPE)
    before = tree(tmp_path / "again")
    part = sorted((tmp_path / "again/manifest").glob("*.parquet"))[0]
    part.unlink()  # as if killed before this video was committed
    summary = prepare(source, tmp_path / "again", RECIPE)
    assert (summary.n_skipped, sum(summary.videos.values())) == (1, 1)
    assert tree(tmp_path / "again") == before == tree(tmp_path / "whole")


def test_two_workers_write_the_same_bytes_as_one(tmp_path, source):
    prepare(source, tmp_path / "one", RECIPE)
    prepare(source, tmp_path / "two", RECIPE, running=Running(workers=2))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (PrepareRecipe(frames=4), "frames = 3, now asked for 4"),
        (PrepareRecipe(frames=3, qualities=("raw",)), "qualities = "),
        (
            PrepareRecipe(frames=3, crop=CropRecipe(margin=1.5)),
            "crop.margin = 1.3, now asked for 1.5",
        ),
    ],
)
def test_another_recipe_in_the_same_folder_is_refused(tmp_path, source, changed, difference):
    prepare(source, tmp_path / "out", RECIPE)
    with pytest.raises(DfdetectError, match=difference):
        prepare(source, tmp_path / "out", changed)


def test_what_cannot_be_prepared_is_listed_and_the_rest_goes_on(tmp_path, source):
    (source / "real/broken.mp4").write_bytes(b"not a video")
    write_scenery(source / "real/scenery.mp4")
    summary = prepare(source, tmp_path / "out", RECIPE)
    assert sum(summary.videos.values()) == 2
    with (tmp_path / "out/failures.csv").open() as file:
        failures = {row["source"]: row for row in csv.DictReader(file)}
    assert failures["real/broken.mp4"]["kind"] == "error"
    assert "not a video or picture" in failures["real/broken.mp4"]["message"]
    assert failures["real/scenery.mp4"]["kind"] == "no-face"


def test_nothing_prepared_at_all_is_an_error(tmp_path):
    write_scenery(tmp_path / "s/real/scenery.mp4")
    with pytest.raises(DfdetectError, match="none of 1 files could be prepared"):
        prepare(tmp_path / "s", tmp_path / "out", RECIPE)


def test_a_person_in_two_official_splits_is_refused_unless_accepted(tmp_path):
    write_clip(tmp_path / "a.mp4", 1)
    write_clip(tmp_path / "b.mp4", 2)
    table = tmp_path / "t.csv"
    table.write_text("path,label,identity,split\na.mp4,real,ann,train\nb.mp4,real,ann,test\n")
    with pytest.raises(DfdetectError, match=r"ann \(test\+train\)"):
        plan(table, tmp_path / "out", RECIPE)
    accepted = plan(table, tmp_path / "out", RECIPE, allowed=Allowed(identity_overlap=True))
    assert set(accepted.splits.values()) == {"train", "test"}


def test_corrected_labels_and_splits_are_not_ignored_on_a_rerun(tmp_path):
    write_clip(tmp_path / "a.mp4", 1)
    table = tmp_path / "t.csv"
    table.write_text("path,label,split\na.mp4,real,train\n")
    recipe = PrepareRecipe(("raw",), 2)
    prepare(table, tmp_path / "out", recipe)
    for row, difference in (
        ("a.mp4,fake,train", "with label 0, now listed with 1"),
        ("a.mp4,real,val", "with split 'train', now listed with 'val'"),
    ):
        table.write_text(f"path,label,split\n{row}\n")
        with pytest.raises(DfdetectError, match=difference):
            prepare(table, tmp_path / "out", recipe)


def test_a_person_keeps_the_split_of_an_earlier_run(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", 1)
    recipe, out = PrepareRecipe(("raw",), 2), tmp_path / "out"
    (tmp_path / "1.csv").write_text("path,label,identity,split\na.mp4,real,ann,test\n")
    prepare(tmp_path / "1.csv", out, recipe)
    (tmp_path / "2.csv").write_text("path,label,identity\nb.mp4,real,ann\n")
    assert set(plan(tmp_path / "2.csv", out, recipe).splits.values()) == {"test"}
    (tmp_path / "3.csv").write_text("path,label,identity,split\nb.mp4,real,ann,train\n")
    with pytest.raises(DfdetectError, match=r"ann \(test\+train\)"):
        plan(tmp_path / "3.csv", out, recipe)


def test_accepting_an_overlap_on_a_later_run_is_recorded(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", 1)
    table, out, recipe = tmp_path / "t.csv", tmp_path / "out", PrepareRecipe(("raw",), 2)
    table.write_text("path,label,identity,split\na.mp4,real,ann,train\n")
    prepare(table, out, recipe)
    table.write_text(table.read_text() + "b.mp4,real,ann,val\n")
    prepare(table, out, recipe, allowed=Allowed(identity_overlap=True))
    assert json.loads((out / "prepare.json").read_text())["identity_overlap_allowed"] is True


def test_a_first_run_that_prepared_nothing_binds_no_recipe(tmp_path):
    write_scenery(tmp_path / "s/real/scenery.mp4")
    with pytest.raises(DfdetectError, match="none of 1"):
        prepare(tmp_path / "s", tmp_path / "out", RECIPE)
    write_clip(tmp_path / "s/real/ann.mp4", 1)
    prepare(tmp_path / "s", tmp_path / "out", PrepareRecipe(("raw",), 2))


def test_leftovers_of_a_killed_run_are_swept(tmp_path, source):
    prepare(source, tmp_path / "out", RECIPE)
    part = next((tmp_path / "out/manifest").glob("*.parquet"))
    part.unlink()
    crops = tmp_path / "out/faces/raw" / part.stem
    for folder in (crops, tmp_path / "out/manifest", tmp_path / "out"):
        (folder / ".tmp-1-abc").write_text("half a file")
    prepare(source, tmp_path / "out", RECIPE)
    assert not list((tmp_path / "out").rglob(".tmp-*"))


def test_a_plan_writes_nothing(tmp_path, source):
    plan(source, tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_stops_before_any_work(tmp_path, source):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DfdetectError) as error:
        prepare(source, tmp_path / "out", RECIPE)
    assert error.value.exit_code == ExitCode.ENVIRONMENT


def test_a_folder_in_use_by_another_run_is_refused(tmp_path, source):
    with folder_lock(tmp_path / "out"), pytest.raises(DfdetectError, match="another run"):
        prepare(source, tmp_path / "out", RECIPE)


def test_all_tracks_are_kept_on_request(tmp_path):
    left, right = (clip(seed) for seed in (1, 2))
    twins = [np.hstack(pair) for pair in zip(left, right, strict=True)]
    (tmp_path / "s/real").mkdir(parents=True)
    (tmp_path / "s/real/twins.mp4").write_bytes(write_video(twins, 12))
    summary = prepare(tmp_path / "s", tmp_path / "main", RECIPE)
    assert summary.n_tracks == 1
    (warning,) = {r["warnings"] for r in read_table(tmp_path / "main").to_pylist()}
    assert warning == "2 faces were followed; the main one was kept"
    both = PrepareRecipe(frames=3, tracks="all")
    assert prepare(tmp_path / "s", tmp_path / "all", both).n_tracks == 2


def damage_one(out):
    """A crop that is not what was written; gives the name of its video's part."""
    crop = sorted(out.glob("faces/raw/*/*.png"))[0]
    crop.write_bytes(crop.read_bytes()[:-5])
    return crop.parent.name


def test_repair_mends_what_comes_from_the_source_and_keeps_the_rest(tmp_path, source):
    prepare(source, tmp_path / "out", RECIPE)
    before = tree(tmp_path / "out")
    part = damage_one(tmp_path / "out")
    other = tmp_path / "other/real/cat.mp4"
    write_clip(other, 3)
    summary = prepare(tmp_path / "other", tmp_path / "out", RECIPE, repair=True)
    assert summary.unmended == [part]
    assert (tmp_path / "out/manifest" / f"{part}.parquet").exists()
    assert prepare(source, tmp_path / "out", RECIPE, repair=True).unmended == []
    assert before.items() <= tree(tmp_path / "out").items()


def test_repair_of_a_source_that_is_not_there_changes_nothing(tmp_path, source):
    prepare(source, tmp_path / "out", RECIPE)
    damage_one(tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(DfdetectError, match="no such file"):
        prepare(tmp_path / "absent", tmp_path / "out", RECIPE, repair=True)
    assert tree(tmp_path / "out") == before


def test_a_part_of_an_older_version_is_refused_and_never_repaired_away(tmp_path, source):
    import pyarrow.parquet as pq

    prepare(source, tmp_path / "out", RECIPE)
    for part in (tmp_path / "out/manifest").glob("*.parquet"):
        pq.write_table(pq.read_table(part).drop_columns(["source_bytes", "n_frames"]), part)
    before = tree(tmp_path / "out")
    for repair in (False, True):
        with pytest.raises(DfdetectError, match="written by an older dfdetect"):
            prepare(source, tmp_path / "out", RECIPE, repair=repair)
    assert tree(tmp_path / "out") == before


def test_another_source_of_the_same_name_is_not_taken_for_the_first(tmp_path):
    for day, seed in (("mon", 1), ("tue", 2)):
        for name in ("a", "b", "c"):
            write_clip(tmp_path / day / "clips/real" / f"{name}.mp4", seed)
            seed += 10
    out = tmp_path / "out"
    prepare(tmp_path / "mon/clips", out, RECIPE)
    before = tree(out)
    with pytest.raises(DfdetectError, match="is this another source of the same name"):
        prepare(tmp_path / "tue/clips", out, RECIPE)
    assert tree(out) == before
    replaced = prepare(tmp_path / "tue/clips", out, RECIPE, allowed=Allowed(other_files=True))
    assert replaced.n_changed == 3


def test_other_files_of_equal_size_that_are_older_than_the_crops_are_noticed(tmp_path, source):
    prepare(source, tmp_path / "out", RECIPE)
    for path in source.rglob("*.mp4"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
        os.utime(path, (1, 1))
    with pytest.raises(DfdetectError, match="come from other files"):
        prepare(source, tmp_path / "out", RECIPE)


def test_failures_of_another_source_stay_listed_until_they_are_settled(tmp_path, source):
    write_scenery(tmp_path / "first/real/scenery.mp4")
    write_clip(tmp_path / "first/real/dan.mp4", 4)
    out = tmp_path / "out"
    prepare(tmp_path / "first", out, RECIPE)
    prepare(source, out, RECIPE)
    listed = [row["source"] for row in csv.DictReader((out / "failures.csv").open())]
    assert listed == ["real/scenery.mp4"]
    (tmp_path / "first/real/scenery.mp4").unlink()
    write_clip(tmp_path / "first/real/scenery.mp4", 5)
    prepare(tmp_path / "first", out, RECIPE)
    assert list(csv.DictReader((out / "failures.csv").open())) == []
