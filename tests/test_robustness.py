"""--sweep: which qualities it asks for, the curves it gives, and how they are shown."""

import io
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from rich.console import Console

from dfdetect.cells import measure
from dfdetect.errors import DfdetectError
from dfdetect.evaluate import EvalResult, remeasure
from dfdetect.predictions import Predictions, read_predictions
from dfdetect.reports.curves import draw_curves
from dfdetect.reports.table import eval_tables, robustness_tables
from dfdetect.results import Prediction
from dfdetect.robustness import (
    Point,
    Robustness,
    measure_robustness,
    parse_sweep,
    qualities_of,
)


def names(text):
    return {kind: [q.name for q in qualities] for kind, qualities in parse_sweep(text).items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("crf=0:51:8", {"crf": ["crf0", "crf8", "crf16", "crf24", "crf32", "crf40", "crf48"]}),
        ("jpeg=20:100:20", {"jpeg": ["j100", "j80", "j60", "j40", "j20"]}),
        ("jpeg=100:20:20", {"jpeg": ["j100", "j80", "j60", "j40", "j20"]}),
        # without a step five levels; 1 is the raw crop, which every curve begins with
        ("scale=0.25:1", {"scale": ["scale0.8125", "scale0.625", "scale0.4375", "scale0.25"]}),
        ("crf=0:51", {"crf": ["crf0", "crf13", "crf26", "crf38", "crf51"]}),
        ("scale=0.1:0.9:0.2", {"scale": [f"scale0.{i}" for i in (9, 7, 5, 3, 1)]}),
        ("blur=4/0.5/1/0.5/0", {"blur": ["blur0.5", "blur1", "blur4"]}),
        ("noise=8", {"noise": ["noise8"]}),
        ("jpeg=50:50", {"jpeg": ["j50"]}),
        (" crf=23/40 , noise=0:2:1", {"crf": ["crf23", "crf40"], "noise": ["noise1", "noise2"]}),
    ],
)
def test_a_sweep_lists_each_kind_s_levels_from_mild_to_severe(text, expected):
    assert names(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is not kind=levels"),
        ("crf", "'crf' is not kind=levels"),
        ("crf=0:51:8,", "'' is not kind=levels"),
        ("fog=1:2", "unknown kind in --sweep: 'fog'"),
        ("c=23:40", "unknown kind in --sweep: 'c'"),
        ("crf=1:5,crf=7", "crf comes twice"),
        ("crf=", "'' is not a level"),
        ("crf=a:b", "'a' is not a level"),
        ("crf=0:51:0", "the step is not above 0"),
        ("crf=0:51:8:2", "neither FROM:TO:STEP nor A/B/C"),
        ("crf=0/10:51", "neither FROM:TO:STEP nor A/B/C"),
        ("crf=0:60:20", "crf has no level 60"),
        ("jpeg=0:100", "jpeg has no level 0"),
        ("crf=0.5:10:1", "crf has no level 0.5"),
        ("scale=0.5:2:0.5", "scale has no level 1.5"),
        ("noise=0.0001/8", "noise has no level 0.0001"),
        ("scale=0.0001:0.9:0.0001", "9000 levels"),
        ("scale=1", "no level but the raw crops' own"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_named(text, complaint):
    with pytest.raises(DfdetectError) as caught:
        parse_sweep(text)
    assert complaint in caught.value.message and caught.value.hint


def test_raw_is_scored_first_and_once():
    assert qualities_of("blur=0:1:1,noise=2") == ["raw", "blur1", "noise2"]


def row(video, manipulation, quality, score):
    logit = float(np.log(score / (1 - score)))
    label = int(manipulation != "real")
    return Prediction(
        f"{video}/0/0", video, 0, "d", manipulation, quality, "test", label, logit, score
    )


PRESET = {"qualities": ["raw", "c23"], "augment": {"jpeg": 0.5, "jpeg_quality": [40, 90]}}
SCORES = {  # of reals r s, and of a fake of each of two manipulations: 4, 3, 2, 1, 0 of 4 pairs
    "raw": (0.1, 0.2, 0.8, 0.9), "crf23": (0.1, 0.5, 0.4, 0.9), "crf40": (0.1, 0.5, 0.2, 0.4),
    "j95": (0.3, 0.5, 0.2, 0.4), "j50": (0.8, 0.9, 0.1, 0.2),
}  # fmt: skip


def prediction_rows():
    return [
        row(video, manipulation, quality, score)
        for quality, scores in SCORES.items()
        for video, manipulation, score in zip(
            "rsab", ("real", "real", "DF", "FS"), scores, strict=True
        )
    ]


def measured(folders=("data",), rounds=20):
    rows = prediction_rows()
    predictions = Predictions.of({"preset": PRESET, "threshold": 0.5}, dict.fromkeys(folders, rows))
    return measure_robustness(predictions, "crf=23/40,jpeg=50/95", "test", rounds)


def test_each_curve_goes_from_raw_to_the_worst_with_auc_and_interval():
    found = measured()
    curves = dict(found.curves())
    assert list(curves) == [
        ("data", level, kind) for level in ("video", "frame") for kind in ("crf", "jpeg")
    ]
    for level in ("video", "frame"):
        crf, jpeg = curves["data", level, "crf"], curves["data", level, "jpeg"]
        assert [p.quality for p in crf] == ["raw", "crf23", "crf40"]
        assert [p.severity for p in jpeg] == [None, 95, 50]
        assert [p.auc for p in crf] == [1, 0.75, 0.5] and [p.auc for p in jpeg] == [1, 0.25, 0]
        assert all(p.low <= p.auc <= p.high for p in (*crf, *jpeg))
        assert {(p.n_real, p.n_fake) for p in crf} == {(2, 2)}


def test_points_and_ranges_say_what_training_saw():
    found = measured()
    assert {p.quality: p.seen for p in found.points} == {
        "raw": "trained", "crf23": "trained", "crf40": "no", "j95": "no", "j50": "augmented",
    }  # fmt: skip
    assert found.seen == {"crf": [(23, 23, "trained")], "jpeg": [(40, 90, "augmented")]}


def test_folders_have_curves_of_their_own():
    found = measured(("one", "two"))
    assert [p.data for p in found.points] == ["one"] * 12 + ["two"] * 12
    assert len(found.rows()) == 1 + 24 and found.rows()[0][:4] == [
        "data",
        "split",
        "kind",
        "severity",
    ]


# --- shown and written --------------------------------------------------------------------------


def shown(table):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_has_a_row_for_each_level_and_marks_what_training_never_saw():
    lines = shown(robustness_tables(measured())).splitlines()
    cells = [[part.strip() for part in re.split("[┃│]", line)[1:-1]] for line in lines]
    rows = {row[0]: row[1:] for row in cells if row}
    assert "n 2/2 videos, 2/2 frames" in lines[0]
    assert rows["crf"] == ["", "23", "40 *", "", ""] and rows["jpeg"] == ["", "95 *", "50", "", ""]
    # raw, the levels, and of these mean and worst; the last of the rows of frames is jpeg's
    assert rows["frame"] == ["1.000", "0.250", "0.000", "0.125", "0.000"]
    assert "no video at this CRF" in " ".join(" ".join(lines).split())


def test_long_curves_are_shown_at_seven_levels_with_both_ends():
    points = [
        Point("d", "test", "crf", crf, f"crf{crf}" if crf else "raw", "frame", 1 - crf / 100, None,
              None, 5, 5, "no")
        for crf in range(0, 52)
    ]  # fmt: skip
    text = shown(robustness_tables(Robustness("crf=1:51:1", {"crf": []}, points, None)))
    (heads,) = [line for line in text.splitlines() if "│ crf" in line]
    found = [int(level) for level in re.findall(r"(\d+) \*", heads)]
    assert len(found) == 7 and (found[0], found[-1]) == (1, 51)
    assert "0.740 │ 0.490" in text  # mean and worst of all 51: 1 - .26 and 1 - .51


def test_tables_of_eval_mark_the_qualities_that_training_never_saw():
    rows = [p for p in prediction_rows() if p.quality in ("raw", "j95")]
    predictions = Predictions.of({"threshold": 0.5}, {"data": rows})
    seen = {"raw": True, "j95": False}
    cells = measure(predictions.folders(), "test", 0.5, rounds=0, quality_seen=seen)
    text = shown(eval_tables(EvalResult(predictions, cells, [])))
    assert "│ j95 *" in text and "│ raw  " in text and "pooled *" not in text
    assert "* beside a quality: never trained on" in text


@pytest.mark.parametrize("auc", [0.9, None])
def test_the_picture_shows_each_folder_and_kind(auc):
    found = measured(("one", "=two"))
    points = [replace(p, auc=auc) for p in found.points]
    drawn = draw_curves(found._replace(points=points), "a model $x$")
    one = draw_curves(found._replace(points=points[:12]), "a model $x$")
    tall, short = (cv2.imdecode(np.frombuffer(png, np.uint8), 1).shape[0] for png in (drawn, one))
    assert tall > 1.5 * short
    assert found.rows()[13][0] == "'=two"  # a spreadsheet takes it for no formula


def test_eval_scores_a_sweep_apart_from_its_own_qualities(run, data, tmp_path, cli):
    out = tmp_path / "out"
    options = ("--data", data, "--out", out, "--device", "cpu", "--rounds", "20")
    swept = ("--qualities", "raw,c40", "--sweep", "scale=0.5/1,noise=8", "--face-sizes", "60,1000")
    result = cli("eval", run, *options, *swept)
    assert result.exit_code == 0, result.stderr
    assert "AUC by corruption" in result.stdout and "AUC by width of the face" in result.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    qualities = ["raw", "c40", "mean", "pooled", "worst"]
    assert list(dict.fromkeys(c["quality"] for c in metrics["cells"])) == qualities
    assert {c["faces"] for c in metrics["cells"]} == {"all", "60-1000 px"}  # of clips 256 px wide
    facts = {f["quality"]: f for f in metrics["qualities"]}
    assert {name: f["crops"] for name, f in facts.items()} == {
        "raw": "stored", "c40": "stored", "scale0.5": "made of raw", "noise8": "made of raw",
    }  # fmt: skip
    assert facts["noise8"]["seen_in_training"] == "no" and facts["noise8"]["parameters"]["std"] == 8
    points = metrics["robustness"]["points"]
    assert [(p["kind"], p["quality"], p["severity"]) for p in points[:4]] == [
        ("scale", "raw", 1), ("scale", "scale0.5", 0.5), ("noise", "raw", 0), ("noise", "noise8", 8)
    ]  # fmt: skip
    raw = {c["level"]: c for c in metrics["cells"]
           if (c["quality"], c["manipulation"], c["faces"]) == ("raw", "all", "all")}  # fmt: skip
    assert [p["auc"] for p in points if p["quality"] == "raw"] == [
        raw[level]["auc"] for level in ("video", "video", "frame", "frame")
    ]
    stored = read_predictions(out / "robustness.parquet").folders()["prepared"]
    assert stored.qualities == ["raw", "scale0.5", "noise8"]
    assert (out / "robustness.csv").read_text().count("\n") == 1 + len(points)
    again = json.loads(json.dumps(remeasure(out, rounds=20).as_json()))
    assert {k: again[k] for k in again if k != "model"} == {
        k: metrics[k] for k in metrics if k != "model"
    }
    plain = cli("eval", run, *options, "--qualities", "raw,c40")
    assert plain.exit_code == 0 and not list(out.glob("robustness.*"))
    alone = json.loads((out / "metrics.json").read_text())
    assert alone["cells"] == [c for c in metrics["cells"] if c["faces"] == "all"]
    assert alone["robustness"] is None


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--sweep", "fog=1:2", "unknown kind in --sweep: 'fog'"),
        ("--sweep", "jpeg=0:100", "--sweep jpeg=0:100: jpeg has no level 0"),
        ("--face-sizes", "128,64", "--face-sizes 128,64: not widths in px that rise"),
        ("--qualities", "crf60", "unknown quality 'crf60'"),
    ],
)
def test_a_wrong_option_of_eval_is_an_error_of_input(run, data, cli, option, value, complaint):
    result = cli("eval", run, "--data", data, option, value)
    assert result.exit_code == 2 and complaint in result.stderr
