"""Face widths: who belongs to which stratum at which level, and what is measured of it."""

import numpy as np
import pytest

from dfdetect.errors import DfdetectError
from dfdetect.predictions import Predictions
from dfdetect.results import Prediction
from dfdetect.strata import measure_faces, parse_edges, strata_of


def row(video, track, frame, face_px, score, label=0, quality="raw"):
    logit = float(np.log(score / (1 - score)))
    kind = "DF" if label else "real"
    return Prediction(
        f"{video}/{frame}/{track}", video, track, "d", kind, quality, "test", label, logit, score,
        face_px=face_px,
    )  # fmt: skip


def columns(rows):
    return Predictions.of({}, {"data": rows}).folders()


ROWS = [
    # real r: one face of 50 60 100 (median 60); s: tracks of 70 90 (80) and 200 (200), all: 90
    *(row("r", 0, i, px, 0.2) for i, px in enumerate((50, 60, 100))),
    *(row("s", 0, i, px, 0.4) for i, px in enumerate((70, 90))),
    row("s", 1, 0, 200, 0.1),
    # fakes a: 63.9 and 64 (median 63.95); b: 300
    *(row("a", 0, i, px, 0.3, 1) for i, px in enumerate((63.9, 64))),
    row("b", 0, 0, 300, 0.9, 1),
]


def counts(rows, edges=(64, 128)):
    cells = measure_faces(columns(rows), edges, "test", 0.5, rounds=0)
    return {
        (c.level, c.faces): (c.n_real, c.n_fake)
        for c in cells
        if (c.quality, c.manipulation) == ("raw", "all")
    }


def test_a_frame_has_its_own_width_a_track_and_a_video_their_median():
    assert counts(ROWS) == {
        ("frame", "<64 px"): (2, 1),  # 50 60; 63.9
        ("frame", "64-128 px"): (3, 1),  # 100 70 90; 64
        ("frame", ">=128 px"): (1, 1),
        ("track", "<64 px"): (1, 1),  # r; a
        ("track", "64-128 px"): (1, 0),  # s's first
        ("track", ">=128 px"): (1, 1),  # s's second; b
        ("video", "<64 px"): (1, 1),  # r; a
        ("video", "64-128 px"): (1, 0),  # s, whose three faces have the median 90
        ("video", ">=128 px"): (0, 1),
    }


def test_a_stratum_is_measured_like_all_faces_and_says_what_it_lacks():
    cells = measure_faces(columns(ROWS), [64, 128], "test", 0.5, rounds=0)
    found = {(c.level, c.faces): c for c in cells if c.manipulation == "all"}
    assert found["frame", "<64 px"].auc == 1  # .2 .2 against .3
    assert found["frame", "64-128 px"].auc == pytest.approx(1 / 3)  # .3 above .2, not .4 .4
    empty = found["video", ">=128 px"]
    assert empty.auc is None and empty.reason == "no real videos at raw"


def test_qualities_of_a_crop_share_its_width_and_keep_their_rows():
    both = ROWS + [p._replace(quality="c40", score=0.5, logit=0.0) for p in ROWS]
    assert counts(both) == counts(ROWS)


def test_a_width_that_nobody_knows_is_in_no_stratum_and_moves_no_median():
    unknown = [row("r", 0, 9, None, 0.2), row("x", 0, 0, None, 0.9, 1)]
    assert counts(ROWS + unknown) == counts(ROWS)


def test_a_stratum_that_nothing_is_in_has_no_cells():
    assert {faces for _, faces in counts(ROWS, [10, 400])} == {"10-400 px"}


@pytest.mark.parametrize(
    "text", ["", "64,", "128,64", "64,64", "0,64", "-1", "small", "inf", "nan"]
)
def test_widths_that_do_not_rise_are_refused(text):
    with pytest.raises(DfdetectError, match="not widths in px that rise"):
        parse_edges(text)


def test_edges_part_the_widths():
    assert parse_edges("48, 64,128.5") == [48, 64, 128.5]
    assert [s.name for s in strata_of([64])] == ["<64 px", ">=64 px"]
    bounds = [(s.low, s.high) for s in strata_of([64, 128])]
    assert bounds == [(0, 64), (64, 128), (128, np.inf)]
