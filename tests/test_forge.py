"""Fakes of real faces: made in the training loader, and as a folder of their own."""

import csv
import json
import shutil
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import PORTRAIT_LANDMARKS, write_clip, write_scenery
from PIL import Image
from test_data import DOMAINS, drawn

from dfdetect.audit import audit
from dfdetect.checkpoint import read_info
from dfdetect.corruptions import jpeg_round_trip
from dfdetect.data import (
    FORGED,
    Draws,
    PairedCrops,
    at_qualities,
    degraded,
    drifting,
    epoch_order,
    read_crop,
    training_batches,
)
from dfdetect.demo import read_portrait
from dfdetect.errors import DfdetectError
from dfdetect.faces import CropRecipe, align
from dfdetect.forge import forge, marked_synthetic
from dfdetect.forgeries.base import Portrait
from dfdetect.forgeries.decoders import load_decoders, train_decoders
from dfdetect.forging import FaceCrop, Forger, real_faces, store_decoders, training_forging
from dfdetect.manifest import read_samples, read_table
from dfdetect.presets import Augment, Forge, load_preset
from dfdetect.quality import parse_qualities
from dfdetect.runs import stored_run
from dfdetect.train import plan_training, train
from dfdetect.training_data import load_training_data
from dfdetect.video import through_h264

NOWHERE = Path("no-run")
TINY = ["epochs=1", "steps_per_epoch=2", "image_size=64", "batch_size=8"]


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoders") / "decoders.safetensors"
    face = Portrait(read_portrait(), PORTRAIT_LANDMARKS)
    train_decoders([face], path, n_steps=4, batch_size=2, side=32)
    return path


def crop_of_portrait():
    return align(read_portrait(), PORTRAIT_LANDMARKS, CropRecipe())


def forging_of(data, share=1.0, forgeries=None):
    """Rows of the train split and what makes fakes of its reals."""
    preset = load_preset("bce-tiny", [f"augment.forge.share={share}"])
    rows = load_training_data(preset, [data])
    options = Forge(share=share, forgeries=forgeries or {"self-blend": 1})
    return rows, training_forging(options, rows, NOWHERE)


def forging_crops(data, share=1.0, qualities=("raw", "c23", "c40"), forgeries=None, **augment):
    rows, forging = forging_of(data, share, forgeries)
    options = Augment(**{"flip": 0.0, **augment})
    return PairedCrops(rows.train, qualities, [*DOMAINS, FORGED], 64, options, 0, forging)


def reals_of(data):
    return [s for s in read_samples(data, "train") if not s.label and s.quality == "raw"]


# --- the same compression for both classes -----------------------------------------------------


def test_a_crop_at_an_h264_quality_is_the_last_frame_of_a_stream_that_ends_at_it():
    crop = crop_of_portrait()
    frames = drifting(crop, np.random.default_rng(3))
    raw, c40 = degraded(crop, parse_qualities("raw,c40"), np.random.default_rng(3))
    assert 3 <= len(frames) <= 5 and np.array_equal(frames[-1], crop) and np.array_equal(raw, crop)
    assert np.array_equal(c40, through_h264(frames, 40)[-1])


def test_what_comes_before_a_frame_is_seen_in_it_after_h264():
    crop = crop_of_portrait()
    alone = through_h264([crop], 40)[-1]
    after = [degraded(crop, parse_qualities("c40"), np.random.default_rng(s))[0] for s in range(4)]
    assert all((picture != alone).any() for picture in after)
    assert any((a != b).any() for a in after for b in after)


def test_more_compression_leaves_less_and_all_qualities_show_the_same():
    crop = crop_of_portrait()
    for seed in range(3):
        made = degraded(crop, parse_qualities("c10,c23,c40"), np.random.default_rng(seed))
        errors = [cv2.PSNR(picture, crop) for picture in made]
        assert errors[0] > errors[1] > errors[2] > 20


def test_neighbouring_frames_of_the_stream_lie_less_than_two_pixels_apart():
    for seed in range(5):
        frames = drifting(crop_of_portrait(), np.random.default_rng(seed))
        for frame, after in pairwise(frames):
            shift, _ = cv2.phaseCorrelate(*(f.mean(-1) for f in (frame, after)))
            assert 0 < np.hypot(*shift) < 2


def test_an_odd_crop_loses_its_last_row_and_column_at_every_quality():
    crop = crop_of_portrait()[:255, :255]
    made = degraded(crop, parse_qualities("raw,j75,c23"), np.random.default_rng(0))
    assert [picture.shape for picture in made] == [(254, 254, 3)] * 3
    assert np.array_equal(made[1], jpeg_round_trip(crop[:254, :254].copy(), 75))


# --- the loader ---------------------------------------------------------------------------------


def test_every_real_has_a_forged_twin_of_its_own_domain_and_source(data):
    crops = forging_crops(data)
    stored = len({s.sample_id for s in read_samples(data, "train")})
    reals = np.flatnonzero(crops.strata.labels[:stored] == 0)
    twins = np.arange(stored, len(crops))
    assert len(twins) == len(reals) == len(reals_of(data))
    assert (crops.strata.labels[twins] == 1).all()
    assert (crops.strata.domains[twins] == len(DOMAINS)).all()
    assert (crops.strata.sources[twins] == crops.strata.sources[reals]).all()
    n_videos = len(set(crops.strata.videos[:stored]))
    assert crops.strata.videos[twins].min() == n_videos
    assert len(crops.video_ids) == crops.strata.videos.max() + 1
    batch = crops[Draws(0, 0, np.array([stored, reals[0]]))]
    assert batch.labels.tolist() == [1, 0] and batch.domains.tolist() == [3, 0]
    assert batch.sample_ids[0] == f"{batch.sample_ids[1]}/{FORGED}"


def test_half_as_many_twins_stand_for_all_reals_in_turn(data):
    crops = forging_crops(data, share=0.5, qualities=("raw",))
    n_reals = len(reals_of(data))
    stored = len({s.sample_id for s in read_samples(data, "train")})
    assert len(crops) == stored + round(n_reals / 2)
    ids = {
        crops[Draws(0, draw, np.array([twin]))].sample_ids[0]
        for twin in range(stored, len(crops))
        for draw in range(12)
    }
    assert len(ids) == n_reals


def test_samplers_count_twins_as_fakes_and_as_one_more_domain(data):
    strata = forging_crops(data).strata
    order = epoch_order(strata, "class_balanced", 0, 0, 4, 8)
    assert (strata.labels[order].sum(1) == 4).all()
    order = epoch_order(strata, "domain_balanced", 0, 0, 4, 8)
    assert all(np.bincount(row, minlength=4).tolist() == [2] * 4 for row in strata.domains[order])
    order = epoch_order(strata, "source_paired", 0, 0, 4, 8)
    reals, fakes = order[:, ::2], order[:, 1::2]
    known = strata.sources[fakes] >= 0
    assert (strata.sources[reals] == strata.sources[fakes])[known].all()


def test_real_and_forged_go_through_the_same_stream_from_the_raw_crop(data):
    crops = forging_crops(data, qualities=("raw", "c40"), forgeries={"local-warp": 1})
    real = int(np.flatnonzero(crops.strata.labels == 0)[0])
    raw, c40 = drawn(crops, 0, real)
    plain = read_crop(crops.files(real)[0].path)
    expected = degraded(plain, parse_qualities("raw,c40"), np.random.default_rng([0, 0, 0]))
    small = [cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA) for crop in expected]
    assert np.array_equal(raw, small[0]) and np.array_equal(c40, small[1])
    stored = next(s for s in read_samples(data, "train") if s.quality == "c40" and not s.label)
    assert (read_crop(stored.path) != expected[1]).any()


def test_a_forged_sample_differs_from_its_real_in_the_face_alone(data):
    crops = forging_crops(data, qualities=("raw",), forgeries={"local-warp": 1})
    real = int(np.flatnonzero(crops.strata.labels == 0)[0])
    twin = len({s.sample_id for s in read_samples(data, "train")})
    change = np.abs(drawn(crops, 0, twin)[0].astype(int) - drawn(crops, 0, real)[0]).max(-1)
    assert change.max() > 10
    assert not change[:6].any() and not change[:, :3].any() and not change[:, -3:].any()


def test_seed_epoch_and_draw_decide_whatever_the_workers(data):
    crops = forging_crops(data, qualities=("raw", "c23"))
    with training_batches(crops, "shuffle", 0, 2, 2, 4) as here:
        first = [batch.images for batch in here]
    with training_batches(crops, "shuffle", 0, 2, 2, 4, workers=1) as there:
        second = [batch.images for batch in there]
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    twin = len(crops) - 1
    same, again, other, later = (
        drawn(crops, draw, twin, epoch) for draw, epoch in [(0, 0), (0, 0), (1, 0), (0, 1)]
    )
    assert np.array_equal(same, again)
    assert (same != other).any() and (same != later).any()


def test_a_partner_is_of_another_video_when_people_are_not_told_apart(data):
    crops = forging_crops(data, qualities=("raw",))
    for place in range(4):
        crop, landmarks = crops._partner(place, np.random.default_rng(place))
        own = crops.files(crops._reals[place])[0].path.parent
        paths = [s.path for s in reals_of(data) if np.array_equal(read_crop(s.path), crop)]
        assert paths and all(path.parent != own for path in paths)
        assert np.abs(landmarks - CropRecipe().target_points()).max() < 15


@pytest.mark.parametrize("name", ["self-blend", "cross-blend", "reconstruct", "resample"])
def test_every_forgery_works_in_the_loader(data, decoders, name):
    preset = load_preset("bce-tiny", ["augment.forge.share=1"])
    rows = load_training_data(preset, [data])
    options = Forge(share=1, forgeries={name: 1}, decoders=str(decoders))
    forging = training_forging(options, rows, NOWHERE)
    crops = PairedCrops(rows.train, ("raw",), [*DOMAINS, FORGED], 64, Augment(flip=0), 0, forging)
    batch = crops[Draws(0, 0, np.arange(len(crops) - 3, len(crops)))]
    assert batch.labels.tolist() == [1, 1, 1]


def test_the_weights_of_forgeries_are_how_often_they_are_drawn(monkeypatch):
    from dfdetect import forging

    crop, counts = crop_of_portrait(), defaultdict(int)

    def counting(name):
        def forgery(image, landmarks, rng, bank):
            counts[name] += 1
            return forging.Forged(255 - image, np.ones(image.shape[:2], np.float32))

        return forgery

    monkeypatch.setattr(forging, "SHELF", {name: counting(name) for name in "ab"})
    forger, rng = Forger({"a": 3, "b": 1}), np.random.default_rng(0)
    for _ in range(400):
        forger(crop, CropRecipe().target_points(), rng, None)
    assert 260 < counts["a"] < 340 and counts["a"] + counts["b"] == 400


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("augment.forge.share=2", "augment.forge.share: input should be less than or equal to 1"),
        ("augment.forge.forgeries={}", "augment.forge.forgeries:"),
        ("augment.forge.forgeries={self-blend: 0}", "augment.forge.forgeries.self-blend: input"),
        ("augment.forge.only=true", "only=true without a share of forgeries leaves no fake"),
        ("augment.forge.decoder_steps=0", "augment.forge.decoder_steps: input should be greater"),
    ],
)
def test_options_that_mean_nothing_are_refused(override, line):
    with pytest.raises(DfdetectError) as caught:
        load_preset("bce-tiny", [override])
    assert line in caught.value.line


def test_what_cannot_be_forged_is_said_at_the_door(data):
    rows, _ = forging_of(data)
    with pytest.raises(DfdetectError, match="unknown forgery 'selfblend'"):
        training_forging(Forge(share=1, forgeries={"selfblend": 1}), rows, NOWHERE)
    with pytest.raises(DfdetectError, match="reconstruct needs trained decoders"):
        Forger({"reconstruct": 1})
    missing = Forge(share=1, forgeries={"reconstruct": 1}, decoders="missing.safetensors")
    with pytest.raises(DfdetectError, match=r"missing\.safetensors: no such file"):
        training_forging(missing, rows, NOWHERE)
    lonely = rows._replace(train=[s for s in rows.train if s.video_id == rows.train[-1].video_id])
    with pytest.raises(DfdetectError, match="cross-blend needs the faces of two people"):
        training_forging(Forge(share=1, forgeries={"cross-blend": 1}), lonely, NOWHERE)


def test_validation_sees_stored_crops_only_and_no_forgery(data):
    preset = load_preset("bce-tiny", ["augment.forge.share=1"])
    rows = load_training_data(preset, [data])
    plain = load_training_data(load_preset("bce-tiny"), [data])
    assert rows.val == plain.val
    assert at_qualities(rows.val, preset.qualities) == rows.val
    assert rows.domains == [*plain.domains, FORGED]
    assert {s.quality for s in rows.train} == {"raw"}


def test_reals_alone_are_enough_to_train_on_where_fakes_are_made_of_them(data, tmp_path):
    some = tmp_path / "data"
    shutil.copytree(data, some)
    for sample in read_samples(some, "train"):
        if sample.label:
            sample.path.unlink(missing_ok=True)
    table = read_table(some).to_pylist()
    for part in (some / "manifest").glob("*.parquet"):
        part.unlink()
    from dfdetect.manifest import write_part

    kept = [row for row in table if row["split"] != "train" or not row["label"]]
    write_part(some, "all", kept)
    with pytest.raises(DfdetectError, match="the train split has only real crops"):
        train(load_preset("bce-tiny", TINY), [some], tmp_path / "none", device="cpu")
    options = [*TINY, "augment.forge.share=1"]
    train(load_preset("bce-tiny", options), [some], tmp_path / "run", device="cpu")
    info = read_info(tmp_path / "run")
    assert info.domains == ["real", FORGED]
    assert info.data["manipulations"] == ["self-blend"]


def test_did_learns_forged_as_a_domain_beside_those_of_the_data(data, tmp_path):
    options = [*TINY, "augment.forge.share=0.5", "augment.forge.forgeries={local-warp: 1}"]
    train(load_preset("did-tiny", options), [data], tmp_path / "run", device="cpu")
    info = read_info(tmp_path / "run")
    assert info.domains == [*DOMAINS, FORGED]
    assert info.data["manipulations"] == ["local-warp", "self-blend"]


def test_only_reals_and_their_forgeries_are_trained_on_where_that_is_asked(data, tmp_path):
    preset = load_preset("sbi-tiny", [*TINY, "batch_size=4"])
    rows, plain = (load_training_data(load_preset(n), [data]) for n in ("sbi-tiny", "bce-tiny"))
    assert {s.label for s in rows.train} == {0} and {s.label for s in plain.train} == {0, 1}
    assert rows.val == [s for s in plain.val if s.quality == "raw"]
    assert rows.counts()["train_fake_videos"] == 0 < rows.counts()["val_fake_videos"]
    seen = set()
    train(preset, [data], tmp_path / "run", device="cpu", on_event=lambda e: seen.add(e["kind"]))
    info = read_info(tmp_path / "run")
    assert info.domains == ["real", FORGED] and info.data["manipulations"] == ["self-blend"]
    assert "val" in seen


def test_fakes_that_are_not_trained_on_need_no_raw_crops(data, tmp_path):
    from dfdetect.manifest import write_part

    (tmp_path / "data").mkdir()
    for name in ("prepare.json", "faces"):
        (tmp_path / "data" / name).symlink_to(data / name)
    rows = read_table(data).to_pylist()
    kept = [r for r in rows if not (r["label"] and r["split"] == "train" and r["quality"] == "raw")]
    write_part(tmp_path / "data", "all", kept)
    options = ["augment.forge.share=1", "qualities=raw,c23"]
    with pytest.raises(DfdetectError, match="not all samples have raw crops"):
        load_training_data(load_preset("bce-tiny", options), [tmp_path / "data"])
    only = load_preset("bce-tiny", [*options, "augment.forge.only=true"])
    assert load_training_data(only, [tmp_path / "data"]).train


# --- decoders that a run trains -----------------------------------------------------------------

DRAWING = [*TINY, "augment.forge.share=1", "augment.forge.forgeries={reconstruct: 1}",
           "augment.forge.decoder_steps=2", "augment.forge.only=true"]  # fmt: skip


@pytest.fixture(scope="module")
def drawing(data, tmp_path_factory):
    """A run that trained its own decoders, and what it told of that."""
    out, notes = tmp_path_factory.mktemp("drawing") / "run", []

    def listen(event):
        if event["kind"] == "note":
            notes.append(event["message"])

    train(load_preset("bce-tiny", DRAWING), [data], out, device="cpu", on_event=listen)
    return out, notes


def test_a_run_trains_the_decoders_that_it_forges_with(drawing, data):
    out, notes = drawing
    n = len(load_decoders(out / "decoders.safetensors"))
    assert notes == [f"trained decoder {i + 1} of {n}, to forge with" for i in range(n)]
    assert read_info(out).data["manipulations"] == ["reconstruct"]
    assert stored_run(out).preset.augment.forge.decoders == ""


def test_a_run_s_decoders_are_those_of_its_reals_to_train_on(drawing, data, tmp_path):
    preset = load_preset("bce-tiny", DRAWING)
    faces = real_faces(load_training_data(preset, [data]))
    paths = {crop.path for face in faces for crop in face}
    assert paths == {s.path for s in reals_of(data)}
    assert all([c.path for c in face] == sorted(c.path for c in face) for face in faces)
    store_decoders(faces, tmp_path / "again.safetensors", preset.seed, 2, lambda *counts: None)
    mine = (tmp_path / "again.safetensors").read_bytes()
    assert mine == (drawing[0] / "decoders.safetensors").read_bytes()


def test_a_resumed_run_keeps_its_decoders_and_a_killed_start_trains_them(
    drawing, data, tmp_path, monkeypatch
):
    """Killed while they were trained, a run has a preset and nothing to go on from."""
    run, preset = tmp_path / "run", load_preset("bce-tiny", DRAWING)
    shutil.copytree(drawing[0], run)
    for name in ("resume", "detector.safetensors", "decoders.safetensors"):
        shutil.rmtree(run / name) if name == "resume" else (run / name).unlink()
    notes = []
    train(preset, [data], run, device="cpu", resume=True, on_event=lambda e: notes.append(e))
    told = [e["message"] for e in notes if e["kind"] == "note"]
    assert told == drawing[1]
    for name in ("decoders.safetensors", "detector.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (drawing[0] / name).read_bytes()
    shutil.rmtree(run / "resume")
    (run / "detector.safetensors").unlink()
    monkeypatch.setattr("dfdetect.train.store_decoders", None)
    train(preset, [data], run, device="cpu", resume=True)
    assert (run / "metrics.jsonl").read_bytes() == (drawing[0] / "metrics.jsonl").read_bytes()


def test_a_fresh_run_does_not_forge_with_what_lay_in_its_folder(drawing, data, tmp_path, decoders):
    shutil.copy(decoders, tmp_path / "decoders.safetensors")
    train(load_preset("bce-tiny", DRAWING), [data], tmp_path, device="cpu")
    mine = (tmp_path / "decoders.safetensors").read_bytes()
    assert mine == (drawing[0] / "decoders.safetensors").read_bytes()


def test_given_decoders_are_used_and_none_are_trained(data, tmp_path, decoders, monkeypatch):
    monkeypatch.setattr("dfdetect.train.store_decoders", None)
    preset = load_preset("bce-tiny", [*DRAWING, f"augment.forge.decoders={decoders}"])
    train(preset, [data], tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "decoders.safetensors").exists()


def test_a_dry_run_trains_no_decoders(data, monkeypatch):
    monkeypatch.setattr("dfdetect.train.store_decoders", None)
    assert plan_training(load_preset("bce-tiny", DRAWING), [data], device="cpu").memory.is_finite


def test_crops_that_cannot_be_read_teach_no_decoder(data, tmp_path):
    faces = real_faces(load_training_data(load_preset("sbi-tiny"), [data]))[:1]
    torn = [FaceCrop(tmp_path / "torn.png", faces[0][0].landmarks)]
    store_decoders([torn, *faces], tmp_path / "d", 0, 1, lambda *counts: None)
    assert load_decoders(tmp_path / "d")
    with pytest.raises(DfdetectError, match="no real faces to train decoders on"):
        store_decoders([torn], tmp_path / "none", 0, 1, lambda *counts: None)


# --- the verb -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forged(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("forged") / "out"
    forge(data, out, ["self-blend", "cross-blend", "resample"], per_face=2)
    return out


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*") if p.is_file()}


def test_a_forged_folder_holds_the_reals_and_fakes_of_each_at_every_quality(data, forged):
    rows = read_table(forged).to_pylist()
    reals = [r for r in rows if not r["label"]]
    fakes = [r for r in rows if r["label"]]
    n_real = sum(not s.label for s in read_samples(data))
    assert len(reals) == n_real and len(fakes) == 2 * n_real
    assert {r["manipulation"] for r in fakes} <= {"self-blend", "cross-blend", "resample"}
    assert {r["quality"] for r in fakes} == {"raw", "c23", "c40"}
    assert all(r["dataset"].endswith("+forged") and "synthetic" in r["warnings"] for r in fakes)
    assert not any("+forged" in r["dataset"] for r in reals)
    of_video = defaultdict(set)
    for row in rows:
        of_video[row["source"]].add(row["split"])
    assert all(len(splits) == 1 for splits in of_video.values())


def test_every_forged_file_says_that_it_is_synthetic_and_no_real_one_does(forged):
    for sample in read_samples(forged):
        with Image.open(sample.path) as picture:
            text = picture.text.get("Synthetic", "")
        assert (sample.manipulation in text) == bool(sample.label), sample.path


def test_a_mark_changes_no_pixel():
    image = crop_of_portrait()
    _, png = cv2.imencode(".png", image)
    marked = cv2.imdecode(np.frombuffer(marked_synthetic(png.tobytes(), "x"), np.uint8), -1)
    assert np.array_equal(marked, image)


def test_reals_and_fakes_went_through_one_stream_each(data, forged):
    rows = [r for r in read_table(forged).to_pylist() if not r["label"]]
    video = rows[0]["video_id"]
    of_video = sorted(
        (r for r in rows if r["video_id"] == video), key=lambda r: (r["quality"], r["frame_index"])
    )
    raw, c40 = (
        [read_crop(forged / r["path"]) for r in of_video if r["quality"] == q]
        for q in ("raw", "c40")
    )
    expected = through_h264(raw, 40)
    assert all(np.array_equal(a, b) for a, b in zip(c40, expected, strict=True))


def test_one_draw_holds_for_all_frames_of_a_video(data, tmp_path):
    out = tmp_path / "out"
    forge(data, out, ["local-warp"], "raw")
    rows = {r["sample_id"]: r for r in read_table(out).to_pylist()}
    places = defaultdict(list)
    for name, row in rows.items():
        if row["label"]:
            real = rows[name.replace("+local-warp.1", "")]
            fake, plain = (read_crop(out / r["path"]).astype(int) for r in (row, real))
            change = np.abs(fake - plain).sum(-1)
            y, x = np.mgrid[:256, :256]
            centre = [(change * axis).sum() / change.sum() for axis in (x, y)]
            places[row["video_id"]].append(centre)
    spreads = [np.std(centres, axis=0).max() for centres in places.values()]
    centres = np.array([np.mean(of, axis=0) for of in places.values()])
    assert max(spreads) < 12 < centres.std(0).max() * 3
    assert len(places) == 6


def test_the_same_source_and_seed_give_the_same_bytes_and_finished_work_is_kept(data, tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for out, seed in ((first, 0), (again, 0), (other, 1)):
        forge(data, out, ["self-blend"], "raw,c40", seed=seed)
    assert contents(first) == contents(again)
    assert contents(first) != contents(other)
    part = min((first / "manifest").glob("*.parquet"))
    part.unlink()
    summary = forge(data, first, ["self-blend"], "raw,c40")
    assert summary.n_skipped == summary.n_faces - 1
    assert contents(first) == contents(again)


def test_a_face_that_is_alone_in_its_split_gets_another_forgery_or_is_listed(data, tmp_path):
    rows = [r for r in read_samples(data) if not r.label and r.quality == "raw"]
    alone = {s.video_id for s in rows if s.split == "val"}
    assert len(alone) == 1
    forge(data, tmp_path / "both", ["cross-blend", "resample"], "raw")
    made = {s.video_id: s.manipulation for s in read_samples(tmp_path / "both", "val") if s.label}
    assert set(made.values()) == {"resample"}
    summary = forge(data, tmp_path / "one", ["cross-blend"], "raw")
    assert alone <= {failure.video_id for failure in summary.failures}
    assert "nobody else is in its split" in summary.failures[0].message


def test_another_recipe_in_the_same_folder_is_refused(data, forged):
    with pytest.raises(DfdetectError, match="was forged with"):
        forge(data, forged, ["self-blend"], per_face=2)
    with pytest.raises(DfdetectError, match="holds crops that were not forged"):
        forge(forged, data, ["self-blend"])


def test_one_bad_file_does_not_stop_the_others(data, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(data, source)
    bad = reals_of(source)[0]
    bad.path.write_bytes(b"not a picture")
    summary = forge(source, out, ["resample"], "raw")
    assert [f.video_id for f in summary.failures] == [bad.video_id]
    assert {s.video_id for s in read_samples(out) if not s.label} == {
        s.video_id for s in read_samples(source) if not s.label
    } - {bad.video_id}
    listed = list(csv.DictReader((out / "failures.csv").open()))
    assert [row["video_id"] for row in listed] == [bad.video_id]
    shutil.copy(next(s.path for s in reals_of(data) if s.sample_id == bad.sample_id), bad.path)
    assert not forge(source, out, ["resample"], "raw").failures


def test_a_forged_folder_can_be_audited_and_trained_on(forged, tmp_path):
    assert [f.message for f in audit([forged]) if f.status == "FAIL"] == []
    train(load_preset("bce-tiny", TINY), [forged], tmp_path / "run", device="cpu")
    assert set(read_info(tmp_path / "run").domains[1:]) <= {"self-blend", "cross-blend", "resample"}


def test_the_command_takes_a_folder_of_videos_and_tells_what_failed(cli, tmp_path):
    for i in range(5):
        write_clip(tmp_path / "clips" / "real" / f"{i}.mp4", seed=i, n_frames=4)
    write_scenery(tmp_path / "clips" / "real" / "empty.mp4")
    out = tmp_path / "out"
    arguments = ["forge", tmp_path / "clips", "--out", out, "--forgeries", "self-blend"]
    result = cli(*arguments, "--qualities", "raw,c40", "--json")
    assert result.exit_code == 3, result.stderr
    content = json.loads(result.stdout)
    assert content["faces"] == 5 and content["failed"] == 1
    assert content["self-blend crops"] == content["real crops"] == 5 * 4 * 2
    assert "empty.mp4: no face found" in result.stderr
    again = json.loads(cli(*arguments, "--qualities", "raw,c40", "--json").stdout)
    assert again["finished before"] == 5


def test_the_command_refuses_an_unknown_forgery_in_one_line(cli, data, tmp_path):
    result = cli("forge", data, "--out", tmp_path / "out", "--forgeries", "selfblend")
    assert result.exit_code == 2
    assert "unknown forgery 'selfblend'; did you mean 'self-blend'?" in result.stderr
    assert not (tmp_path / "out").exists()


def test_decoders_are_trained_on_the_train_split_and_kept(data, tmp_path, monkeypatch):
    from dfdetect.forgeries import decoders as module

    seen = []

    def quick(portraits, path, seed, n_steps, on_step):
        seen.append(len(portraits))
        train_decoders(portraits[:2], path, seed, n_steps=2, batch_size=2, side=32)

    monkeypatch.setattr(module, "train_decoders", quick)
    out = tmp_path / "out"
    forge(data, out, ["reconstruct"], "raw")
    assert seen == [len(reals_of(data))]
    assert (out / "decoders.safetensors").exists()
    assert {s.manipulation for s in read_samples(out)} == {"real", "reconstruct"}
    forge(data, out, ["reconstruct"], "raw")
    assert len(seen) == 1


# --- the sheet ----------------------------------------------------------------------------------


def test_info_draws_what_each_forgery_makes_of_a_photo(cli, decoders, tmp_path):
    photo, sheet = tmp_path / "photo.png", tmp_path / "sheet.png"
    cv2.imwrite(str(photo), read_portrait()[..., ::-1])
    result = cli("info", "--forgeries", photo, "--sheet", sheet)
    assert result.exit_code == 0, result.stderr
    assert "without reconstruct: name trained decoders with --decoders" in result.stdout
    with Image.open(sheet) as picture:
        without = picture.size
    result = cli("info", "--forgeries", photo, "--sheet", sheet, "--decoders", decoders)
    assert result.exit_code == 0 and "without" not in result.stdout
    with Image.open(sheet) as picture:
        assert picture.size[1] > without[1] and picture.size[0] == without[0]


def test_info_says_where_no_face_is_to_be_forged(cli, tmp_path):
    grey = tmp_path / "grey.png"
    cv2.imwrite(str(grey), np.full((200, 200, 3), 128, np.uint8))
    result = cli("info", "--forgeries", grey, "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 2 and "grey.png: no face found" in result.stderr
    result = cli("info", "--forgeries", grey, "--sheet", tmp_path / "sheet.jpg")
    assert result.exit_code == 2 and "the sheet is a PNG" in result.stderr
