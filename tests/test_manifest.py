"""Splits and the manifest's own rules."""

from pathlib import Path

import pytest

from dfdetect.errors import DfdetectError
from dfdetect.manifest import (
    SourceVideo,
    assign_splits,
    folder_key,
    identity_leaks,
    read_samples,
    refuse_leaks,
    write_part,
)


def video(name, identities, label=0, split=None):
    return SourceVideo(
        Path(name), name, label, "set", "DF" if label else "real", tuple(identities), split
    )


def many(n=40):
    reals = [video(f"r{i}", [f"p{i}"]) for i in range(n)]
    fakes = [video(f"f{i}", [f"p{i}", f"p{(i + 1) % n // 2 * 2}"], 1) for i in range(n)]
    return reals + fakes


def test_people_who_meet_in_a_fake_share_a_split():
    videos = many()
    splits = assign_splits(videos, seed=3)
    assert identity_leaks((v.identities, splits[v.video_id]) for v in videos) == {}


def test_every_split_gets_both_classes_when_there_are_three_groups():
    videos = [video(f"{kind}{i}", [f"{i}"], kind == "f") for i in range(3) for kind in "rf"]
    splits = assign_splits(videos, seed=0)
    assert {(splits[v.video_id], v.label) for v in videos} == {
        (s, label) for s in ("train", "val", "test") for label in (0, 1)
    }


def test_the_seed_decides_and_the_order_of_the_list_does_not():
    videos = many()
    assert assign_splits(videos, 1) == assign_splits(videos, 1)
    assert assign_splits(videos, 1) != assign_splits(videos, 2)


def test_fractions_are_near_70_15_15():
    splits = assign_splits([video(f"v{i}", [f"p{i}"]) for i in range(200)], seed=0)
    counts = [list(splits.values()).count(s) for s in ("train", "val", "test")]
    assert counts == [140, 30, 30]


def test_official_splits_are_kept_and_spread_to_the_same_person():
    splits = assign_splits([video("a", ["ann"], split="test"), video("b", ["ann"])], seed=0)
    assert splits == {"a": "test", "b": "test"}


def test_videos_added_later_follow_what_was_decided_before():
    first = many(20)
    before = assign_splits(first, seed=0)
    after = assign_splits(
        [*first, video("new", ["p3"]), video("newer", ["q"])], seed=0, fixed=before
    )
    assert {k: after[k] for k in before} == before
    assert after["new"] == before["r3"]


def test_a_leak_is_refused_with_the_names():
    pairs = [(("ann", "bob"), "train"), (("bob",), "test"), (("cat",), "val")]
    with pytest.raises(DfdetectError, match=r"1 identities .* bob \(test\+train\)"):
        refuse_leaks(pairs, "here", "--allow")


def test_folder_keys_are_short_safe_and_distinct():
    names = ["a/b.mp4", "a b.mp4", "A/b.mp4", "../x\n<b>.mp4", "é" * 300, "\udcff.mp4"]
    keys = [folder_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(len(k) < 64 and k.replace("-", "").isalnum() and k.isascii() for k in keys)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    row = {
        "path": "../../etc/passwd",
        "sample_id": "s",
        "video_id": "v",
        "label": 0,
        "split": "test",
    }
    write_part(tmp_path, "v", [row])
    with pytest.raises(DfdetectError, match="outside the folder"):
        read_samples(tmp_path)


def test_every_row_that_cannot_be_right_is_named_at_once(tmp_path):
    good = {"video_id": "v", "label": 0, "split": "test", "quality": "raw"}
    rows = [good | {"path": f"{i}.png", "sample_id": f"s{i}"} for i in range(26)]
    write_part(tmp_path, "v", rows)
    assert len(read_samples(tmp_path)) == 26
    wrong = {"label": 7}, {"label": None}, {"split": "tran"}, {"quality": None}, {"sample_id": "s9"}
    for row, change in zip(rows, wrong, strict=False):
        row |= change
    write_part(tmp_path, "v", rows)
    with pytest.raises(DfdetectError) as caught:
        read_samples(tmp_path)
    assert caught.value.message == (
        f"{tmp_path}: 5 of 26 rows of the manifest cannot be right: 0.png (label 7, neither 0 nor "
        "1), 1.png (label None, neither 0 nor 1), 2.png (split 'tran'), 3.png (no quality), "
        "9.png (twice)"
    )
    write_part(tmp_path, "v", [row | {"label": 7} for row in rows])
    with pytest.raises(DfdetectError, match=r"26 of 26 rows .* 19\.png \(.*\) and 6 more$"):
        read_samples(tmp_path)


def test_a_part_without_rows_is_named(tmp_path):
    write_part(tmp_path, "v", [])
    with pytest.raises(DfdetectError, match=r"manifest/v-.*\.parquet: holds no rows"):
        read_samples(tmp_path)


def test_a_damaged_part_is_named(tmp_path):
    write_part(tmp_path, "v", [{"path": "p", "sample_id": "s", "video_id": "v", "label": 0}])
    (part,) = (tmp_path / "manifest").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DfdetectError, match=rf"{part.name}: damaged"):
        read_samples(tmp_path)


def test_a_folder_without_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(DfdetectError) as error:
        read_samples(tmp_path)
    assert "dfdetect prepare" in error.value.hint


@pytest.mark.parametrize("step", [1, 2, 6])
def test_a_folder_that_grows_in_steps_gets_the_splits_of_one_that_is_whole(step):
    videos = [
        SourceVideo(Path(f"{i}.mp4"), f"set/{i}", 0, "set", "real", (f"person {i}",))
        for i in range(60)
    ]
    splits = {}
    for end in range(step, 61, step):
        splits = assign_splits(videos[:end], 0, splits)
    n = {name: list(splits.values()).count(name) for name in ("train", "val", "test")}
    assert abs(n["train"] - 42) <= 2 and abs(n["val"] - 9) <= 2 and abs(n["test"] - 9) <= 2
