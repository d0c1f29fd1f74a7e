"""One video's crops: qualities made and shipped, the face that a mask chooses, crops as shipped."""

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import clip, write_clip

from dfdetect.corruptions import jpeg_round_trip
from dfdetect.cutting import Done, PrepareRecipe, Task, prepare_video
from dfdetect.demo import read_portrait
from dfdetect.files import write_whole
from dfdetect.manifest import SourceVideo, read_table
from dfdetect.video import H264Loop, Limits, write_video

RAW = PrepareRecipe(("raw",), frames=3)


def video(path: Path, **known) -> SourceVideo:
    return SourceVideo(
        path, f"set/{path.stem}", 0, "set", "real", ("ann",), "train", path.name, **known
    )


def cut(source: SourceVideo, out: Path, recipe: PrepareRecipe, limits=Limits()) -> Done:
    return prepare_video(Task(source, "train", out, recipe, limits))


def rows(out: Path) -> list[dict]:
    return read_table(out).to_pylist()


def pixels(out: Path, quality: str) -> list[np.ndarray]:
    found = [r for r in rows(out) if r["quality"] == quality]
    return [cv2.imread(str(out / r["path"])).astype(int) for r in found]


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "talk.mp4", seed=3)


def test_the_manifest_holds_the_facts_of_the_file(talk, tmp_path):
    cut(video(talk), tmp_path, RAW)
    for row in rows(tmp_path):
        assert row["source_sha256"] == hashlib.sha256(talk.read_bytes()).hexdigest()
        assert (row["container"], row["codec"], row["pix_fmt"]) == ("mov", "h264", "yuv420p")
        assert (row["width"], row["height"], row["fps"], row["n_frames"]) == (256, 256, 12, 12)
        bits = 8 * talk.stat().st_size / (256 * 256 * 12)
        assert row["bits_per_pixel"] == pytest.approx(bits)
        content = (tmp_path / row["path"]).read_bytes()
        assert row["crop_sha256"] == hashlib.sha256(content).hexdigest()


def test_psnr_to_the_raw_crop_is_recorded_and_falls_with_quality(talk, tmp_path):
    cut(video(talk), tmp_path, PrepareRecipe(("raw", "c23", "c40"), 2))
    psnr = {
        q: [r["psnr_db"] for r in rows(tmp_path) if r["quality"] == q]
        for q in ("raw", "c23", "c40")
    }
    assert psnr["raw"] == [None, None]
    for quality in ("c23", "c40"):
        by_hand = [
            10 * np.log10(255**2 / np.square(a - b).mean())
            for a, b in zip(pixels(tmp_path, quality), pixels(tmp_path, "raw"), strict=True)
        ]
        assert psnr[quality] == pytest.approx(by_hand, rel=1e-4)
    assert max(psnr["c40"]) < min(psnr["c23"])


def test_a_stored_jpeg_crop_is_the_raw_crop_through_jpeg(talk, tmp_path):
    cut(video(talk), tmp_path, PrepareRecipe(("raw", "j30"), 2))
    for raw, stored in zip(pixels(tmp_path, "raw"), pixels(tmp_path, "j30"), strict=True):
        rgb = np.ascontiguousarray(raw[..., ::-1].astype(np.uint8))
        assert np.array_equal(jpeg_round_trip(rgb, 30)[..., ::-1], stored)


def test_webp_holds_the_same_pixels_as_png_in_fewer_bytes(talk, tmp_path):
    for name in ("png", "webp"):
        cut(video(talk), tmp_path / name, replace(RAW, format=name))
    png, webp = (pixels(tmp_path / name, "raw") for name in ("png", "webp"))
    assert all(np.array_equal(a, b) for a, b in zip(png, webp, strict=True))
    sizes = [
        sum(p.stat().st_size for p in (tmp_path / n / "faces").rglob("*.*"))
        for n in ("png", "webp")
    ]
    assert sizes[1] < 0.8 * sizes[0]


def test_a_codec_that_loses_frames_fails_the_video_with_both_counts(talk, tmp_path, monkeypatch):
    """Qualities whose frames do not correspond would be worse than no crops."""
    monkeypatch.setattr(H264Loop, "flush", lambda self: [])
    done = cut(video(talk), tmp_path, PrepareRecipe(("raw", "c23"), 3))
    assert done.failure.message.startswith("talk.mp4: 12 frames went into c23 and ")
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_encoder_that_fails_in_its_thread_fails_the_video(talk, tmp_path, monkeypatch):
    def broken(self, picture):
        raise RuntimeError("no more")

    monkeypatch.setattr(H264Loop, "push", broken)
    done = cut(video(talk), tmp_path, PrepareRecipe(("raw", "c23"), 3))
    assert done.failure.message == "talk.mp4: unexpected RuntimeError: no more"


def test_a_video_longer_than_the_limit_is_sampled_from_its_beginning_and_says_so(talk, tmp_path):
    cut(video(talk), tmp_path, RAW, Limits(max_frames=6))
    assert sorted(r["frame_index"] for r in rows(tmp_path)) == [1, 3, 5]
    assert rows(tmp_path)[0]["warnings"] == "only the first 6 frames were decoded, the limit"


# --- shipped qualities -------------------------------------------------------------------------

SHIPPED = PrepareRecipe(("raw", "c23", "c40"), 3, use_shipped=True)


@pytest.fixture
def shipped(tmp_path) -> SourceVideo:
    """One clip as raw, c23 and c40 files."""
    for name, crf in (("raw", 1), ("c23", 23), ("c40", 40)):
        write_whole(tmp_path / f"{name}.mp4", write_video(clip(3), 12, crf))
    files = {q: tmp_path / f"{q}.mp4" for q in ("c23", "c40")}
    return video(tmp_path / "raw.mp4", shipped=files)


def test_shipped_qualities_are_taken_from_their_files(shipped, tmp_path):
    assert cut(shipped, tmp_path / "out", SHIPPED).failure is None
    psnr = {r["quality"]: r["psnr_db"] for r in rows(tmp_path / "out")}
    assert 35 < psnr["c23"] < 60 and 20 < psnr["c40"] < psnr["c23"]
    assert cut(shipped, tmp_path / "made", replace(SHIPPED, use_shipped=False)).failure is None
    assert not np.array_equal(
        pixels(tmp_path / "out", "c40")[0], pixels(tmp_path / "made", "c40")[0]
    )


def test_a_quality_that_is_not_shipped_is_made_of_raw_and_of_nothing_else(shipped, tmp_path):
    without = replace(shipped, shipped={"c23": shipped.shipped["c23"]})
    assert cut(without, tmp_path / "out", SHIPPED).n_crops == {"raw": 3, "c23": 3, "c40": 3}
    lossy = replace(without, path=shipped.shipped["c23"], quality="c23", shipped={})
    done = cut(lossy, tmp_path / "lossy", SHIPPED)
    assert done.failure.message.endswith("raw is not shipped, only c23")
    done = cut(lossy, tmp_path / "c23", replace(SHIPPED, qualities=("c23",)))
    assert done.n_crops == {"c23": 3}


def test_shipped_footage_that_is_shifted_or_other_is_refused(shipped, tmp_path):
    write_whole(tmp_path / "late.mp4", write_video([*clip(3)[2:], *clip(3)[-2:]], 12, 23))
    write_whole(tmp_path / "other.mp4", write_video([255 - f for f in clip(3)], 12, 23))
    for name, cause in (("late", "is shifted by -2 frames"), ("other", "does not show what raw")):
        wrong = replace(shipped, shipped={"c23": tmp_path / f"{name}.mp4"})
        done = cut(wrong, tmp_path / name, replace(SHIPPED, qualities=("raw", "c23")))
        assert cause in done.failure.message


# --- masks -----------------------------------------------------------------------------------


@pytest.fixture
def couple(tmp_path) -> Path:
    """A large face on the left and a small one on the right, six frames."""
    frames = []
    for large in clip(1, 6):
        small = cv2.resize(large, (160, 160), interpolation=cv2.INTER_AREA)
        frames.append(np.hstack([large, np.pad(small, ((48, 48), (0, 0), (0, 0)))]))
    write_whole(tmp_path / "couple.mp4", write_video(frames, 12))
    return tmp_path / "couple.mp4"


def mask(path: Path, *boxes) -> Path:
    image = np.zeros((256, 416, 3), np.uint8)
    for x0, x1 in boxes:
        image[80:180, x0:x1] = 255
    write_whole(path, write_video([image] * 6, 12))
    return path


def test_the_mask_chooses_the_face(couple, tmp_path):
    for name, box, left in (("l", (60, 180), True), ("r", (290, 380), False)):
        source = video(couple, mask=mask(tmp_path / f"{name}.mp4", box))
        cut(source, tmp_path / name, RAW)
        for row in rows(tmp_path / name):
            assert (row["box_xyxy"][0] < 256) == left
            assert (row["face_choice"], row["n_faces"], row["warnings"]) == ("mask", 2, "")


def test_a_mask_of_another_size_chooses_the_same_face(couple, tmp_path):
    full = np.zeros((256, 416, 3), np.uint8)
    full[80:180, 290:380] = 255
    for name, size in (("half", (208, 128)), ("double", (832, 512)), ("tall", (128, 256))):
        resized = cv2.resize(full, size, interpolation=cv2.INTER_NEAREST)
        write_whole(tmp_path / f"{name}.mp4", write_video([resized] * 6, 12))
        cut(video(couple, mask=tmp_path / f"{name}.mp4"), tmp_path / name, RAW)
        for row in rows(tmp_path / name):
            if name == "tall":
                assert row["warnings"].startswith("the mask is of another shape")
                assert row["face_choice"] == "main"
            else:
                assert row["box_xyxy"][0] > 256 and row["face_choice"] == "mask"


def test_without_a_mask_the_larger_face_is_kept_with_a_warning(couple, tmp_path):
    empty = video(couple, mask=mask(tmp_path / "empty.mp4"))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = video(couple, mask=tmp_path / "broken.mp4")
    for name, source, warning in (
        ("none", video(couple), "2 faces were followed"),
        ("empty", empty, "the mask is empty"),
        ("broken", broken, "the mask cannot be read"),
    ):
        cut(source, tmp_path / name, RAW)
        for row in rows(tmp_path / name):
            assert row["box_xyxy"][2] < 256
            assert row["face_choice"] == "main"
            assert warning in row["warnings"]


def test_a_mask_where_no_face_is_gives_no_crops(talk, tmp_path):
    corner = np.zeros((256, 256, 3), np.uint8)
    corner[230:, :24] = 255
    write_whole(tmp_path / "mask.mp4", write_video([corner] * 12, 12))
    done = cut(video(talk, mask=tmp_path / "mask.mp4"), tmp_path / "out", RAW)
    assert done.failure.kind == "no-face"


# --- crops as shipped --------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path) -> Path:
    """A folder of ten face crops, 0.png to 9.png, each a little darker."""
    face = cv2.resize(read_portrait()[:256, 96:352], (224, 224), interpolation=cv2.INTER_AREA)
    for i in range(10):
        _, code = cv2.imencode(".png", cv2.cvtColor(face - np.uint8(3 * i), cv2.COLOR_RGB2BGR))
        write_whole(tmp_path / "shelf" / f"{i}.png", code.tobytes())
    return tmp_path / "shelf"


NAMES = tuple(f"{i}.png" for i in range(10))


def test_crops_that_a_dataset_ships_are_taken_as_they_are(shelf, tmp_path):
    recipe = PrepareRecipe(("raw", "j50"), 4, crop=RAW.crop.model_copy(update={"size": 224}))
    cut(video(shelf, crops={"raw": NAMES}), tmp_path / "out", recipe)
    found = [r for r in rows(tmp_path / "out") if r["quality"] == "raw"]
    assert [r["frame_index"] for r in found] == [1, 3, 6, 8]
    for row in found:
        shipped = cv2.imread(str(shelf / f"{row['frame_index']}.png"))
        assert np.array_equal(cv2.imread(str(tmp_path / "out" / row["path"])), shipped)
        assert (row["face_choice"], row["landmarks"], row["fps"]) == ("shipped", None, None)


def test_crops_of_several_people_keep_their_tracks_and_frames(shelf, tmp_path):
    names = [f"{frame:06d}_{track}.png" for frame in (4, 9, 14, 19) for track in (0, 1)]
    for i, name in enumerate(names):
        (shelf / name).write_bytes((shelf / f"{i}.png").read_bytes())
    crops = {"raw": tuple(names), "c23": tuple(names[1:])}
    cut(video(shelf, crops=crops), tmp_path / "out", PrepareRecipe(("raw", "c23"), 2))
    found = {(r["frame_index"], r["track_id"]) for r in rows(tmp_path / "out")}
    assert found == {(9, 0), (9, 1), (19, 0), (19, 1)}
    assert {r["psnr_db"] for r in rows(tmp_path / "out")} == {None, 99.0}  # the same picture
    assert {r["n_faces"] for r in rows(tmp_path / "out")} == {2}


def test_crops_without_numbers_are_paired_only_if_all_qualities_name_them_alike(shelf, tmp_path):
    for name in ("a", "b", "c"):
        (shelf / f"{name}.png").write_bytes((shelf / "0.png").read_bytes())
    recipe = PrepareRecipe(("raw", "c23"), 3)
    alike = {"raw": ("a.png", "b.png", "c.png"), "c23": ("a.png", "b.png", "c.png")}
    done = cut(video(shelf, crops=alike), tmp_path / "out", recipe)
    assert done.n_crops == {"raw": 3, "c23": 3}
    other = alike | {"c23": ("b.png", "c.png")}
    done = cut(video(shelf, crops=other), tmp_path / "other", recipe)
    assert "which belong together cannot be told" in done.failure.message


def test_crops_in_an_archive_are_the_same_as_in_a_folder(shelf, tmp_path):
    with tarfile.open(tmp_path / "shelf.tar.gz", "w:gz") as archive:
        archive.add(shelf, "7/fake")
    members = tuple(f"7/fake/{name}" for name in NAMES)
    cut(video(shelf, crops={"raw": NAMES}), tmp_path / "a", RAW)
    inside = replace(video(shelf), path=tmp_path / "shelf.tar.gz", crops={"raw": members})
    cut(inside, tmp_path / "b", RAW)
    assert [r["crop_sha256"] for r in rows(tmp_path / "a")] == [
        r["crop_sha256"] for r in rows(tmp_path / "b")
    ]


def test_crops_cannot_be_encoded_as_video_or_lie_elsewhere(shelf, tmp_path):
    done = cut(
        video(shelf, crops={"raw": NAMES}), tmp_path / "out", PrepareRecipe(("raw", "c23"), 3)
    )
    assert "c23 is not among the face crops" in done.failure.message
    write_whole(tmp_path / "secret.png", (shelf / "0.png").read_bytes())
    (shelf / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../secret.png", "link.png", str(tmp_path / "secret.png"), "absent.png"):
        done = cut(video(shelf, crops={"raw": (name,)}), tmp_path / "out", RAW)
        assert "is not a file below it" in done.failure.message


def test_a_video_that_fails_now_keeps_the_crops_made_before(talk, tmp_path):
    source = tmp_path / "talk.mp4"
    source.write_bytes(talk.read_bytes())
    cut(video(source), tmp_path / "out", RAW)
    before = [(tmp_path / "out" / r["path"]).read_bytes() for r in rows(tmp_path / "out")]
    source.write_bytes(talk.read_bytes()[:500])  # a download that broke off
    assert cut(video(source), tmp_path / "out", RAW).failure.kind == "error"
    assert before == [(tmp_path / "out" / r["path"]).read_bytes() for r in rows(tmp_path / "out")]


def test_bits_per_pixel_count_the_whole_file_also_under_a_frame_limit(talk, tmp_path):
    cut(video(talk), tmp_path / "a", RAW)
    cut(video(talk), tmp_path / "b", RAW, Limits(max_frames=4))
    whole, limited = (rows(tmp_path / name)[0]["bits_per_pixel"] for name in "ab")
    assert whole == pytest.approx(limited)


def test_failures_name_the_file_as_its_source_does(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/broken.mp4").write_bytes(b"not a video")
    source = replace(video(tmp_path / "deep/broken.mp4"), source="deep/broken.mp4")
    done = cut(source, tmp_path / "out", RAW)
    assert done.failure.message.startswith("deep/broken.mp4: not a video or picture")
