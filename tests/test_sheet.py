"""The contact sheet: which samples it shows, and that it shows their crops where it says."""

import io
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dfdetect.data import read_crop, to_input
from dfdetect.errors import DfdetectError
from dfdetect.manifest import read_table, write_part
from dfdetect.reports.sheet import (
    GAP_PX,
    HEAD_PX,
    LABEL_PX,
    SheetRow,
    choose_rows,
    draw_sheet,
    sheet_rows,
    write_sheet,
)


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def tile(image, row, column, side=160):
    top, left = HEAD_PX + row * (side + GAP_PX), LABEL_PX + column * (side + GAP_PX)
    return image[top : top + side, left : left + side]


def samples(**videos_of):
    """{manipulation: [frames of each video]} as rows."""
    return [
        SheetRow(int(kind != "real"), kind, "d", f"{kind}{v}", frame, 0, "train", 90.0, {})
        for kind, videos in videos_of.items()
        for v, n_frames in enumerate(videos)
        for frame in range(n_frames)
    ]


def test_every_class_gets_its_share_of_the_rows():
    rows = choose_rows(samples(real=[4] * 9, DF=[4] * 9, FS=[4] * 9), 8)
    assert Counter(r.manipulation for r in rows) == {"real": 3, "DF": 3, "FS": 2}
    assert rows == sorted(rows, key=lambda r: ["real", "DF", "FS"].index(r.manipulation))


def test_a_small_class_leaves_its_rows_to_the_others():
    rows = choose_rows(samples(real=[4] * 9, DF=[1]), 6)
    assert Counter(r.manipulation for r in rows) == {"real": 5, "DF": 1}
    assert len(choose_rows(samples(real=[2], DF=[1]), 6)) == 3


def test_rows_of_a_class_are_of_different_videos_and_then_of_different_frames():
    spread = choose_rows(samples(real=[9] * 10), 5)
    assert [(r.video_id, r.frame_index) for r in spread] == [
        (f"real{v}", 4) for v in (1, 3, 5, 7, 9)
    ]
    dense = choose_rows(samples(real=[8, 8]), 5)
    assert [(r.video_id, r.frame_index) for r in dense] == [
        ("real0", 1), ("real0", 4), ("real0", 6), ("real1", 2), ("real1", 6),
    ]  # fmt: skip


def test_by_default_every_class_is_there_however_many():
    many = samples(real=[1] * 30, **{f"m{i}": [1, 1] for i in range(19)})
    assert len(choose_rows(many)) == len({r.manipulation for r in choose_rows(many)}) == 20
    assert len(choose_rows(samples(real=[1] * 30, DF=[1] * 30))) == 12


@pytest.mark.parametrize("n_rows", [0, -1, 501])
def test_a_number_of_rows_without_sense_is_refused(n_rows):
    with pytest.raises(DfdetectError, match=f"a sheet of {n_rows} rows"):
        choose_rows(samples(real=[1]), n_rows)


def test_the_sheet_shows_the_chosen_crops_a_row_per_sample_and_a_column_per_quality(data):
    image = pixels_of(draw_sheet(data, 7))
    assert image.shape == (HEAD_PX + 7 * 168, LABEL_PX + 3 * 168 + GAP_PX, 3)
    rows = choose_rows(sheet_rows(data), 7)
    assert {r.manipulation for r in rows} == {"real", "local-warp", "self-blend"}
    for y, row in enumerate(rows):
        for x, quality in enumerate(("raw", "c23", "c40")):
            crop = to_input(read_crop(row.crops[quality]), 160)
            assert np.array_equal(tile(image, y, x), crop)
            assert f"/{quality}/" in str(row.crops[quality])
        label = image[HEAD_PX + y * 168 : HEAD_PX + y * 168 + 160, :LABEL_PX].astype(int)
        redness = (label[..., 0] - label[..., 1]).sum()
        assert (redness > 0) == bool(row.label)
    assert (image[:HEAD_PX, LABEL_PX:] < 128).any()  # column headings


def test_the_same_folder_gives_the_same_bytes(data):
    assert draw_sheet(data, 5) == draw_sheet(data, 5)


def test_a_sample_without_one_of_the_qualities_leaves_a_grey_tile(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    rows = read_table(copy).to_pylist()
    for part in (copy / "manifest").glob("*"):
        part.unlink()
    rows = [r for r in rows if r["label"] or r["quality"] != "c40"]
    write_part(copy, "all", [r | {"face_px": None} for r in rows])
    image = pixels_of(draw_sheet(copy, 3))
    assert len(np.unique(tile(image, 0, 2)[:40].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(tile(image, 1, 2)[:40].reshape(-1, 3), axis=0)) > 100


def test_names_in_any_script_and_of_any_length_stay_in_their_column(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    rows = read_table(copy).to_pylist()
    for part in (copy / "manifest").glob("*"):
        part.unlink()
    write_part(copy, "all", [r | {"manipulation": "é換" * 99, "dataset": "w" * 300} for r in rows])
    plain, odd = (pixels_of(draw_sheet(folder, 1))[HEAD_PX:] for folder in (data, copy))
    assert np.array_equal(plain[:, LABEL_PX - GAP_PX :], odd[:, LABEL_PX - GAP_PX :])


def test_a_missing_crop_is_named_and_nothing_is_written(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    gone = choose_rows(sheet_rows(copy), 3)[1].crops["c23"]
    gone.unlink()
    with pytest.raises(DfdetectError, match=f"{gone.name}: missing face crop"):
        write_sheet(copy, tmp_path / "sheet.png", 3)
    assert not (tmp_path / "sheet.png").exists()


def test_info_draws_a_sheet_beside_its_description(cli, data, tmp_path):
    out = tmp_path / "sheet.png"
    result = cli("info", data, "--sheet", out, "--rows", "3")
    assert result.exit_code == 0 and str(out.name) in result.stdout.replace("\n", "")
    assert out.read_bytes() == draw_sheet(data, 3)


def test_a_sheet_and_an_export_do_not_exclude_each_other(cli, data, tmp_path):
    result = cli("info", data, "--sheet", tmp_path / "sheet.png", "--export", "csv")
    assert result.exit_code == 0 and (tmp_path / "sheet.png").exists()
    assert result.stdout == cli("info", data, "--export", "csv").stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--sheet", "sheet.jpg"), "error: sheet.jpg: the sheet is a PNG; "),
        (("--sheet", "sheet.png", "--rows", "0"), "error: a sheet of 0 rows; --rows takes 1 to"),
        (("--rows", "3"), "error: --rows is for a sheet; name its file with --sheet"),
    ],
)
def test_what_is_wrong_with_a_sheet_is_said(cli, data, arguments, line):
    result = cli("info", data, *arguments)
    assert result.exit_code == 2 and result.stderr.startswith(line)


def test_a_checkpoint_has_no_sheet(cli, run, tmp_path):
    result = cli("info", run, "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 2 and "not a prepared data folder" in result.stderr
