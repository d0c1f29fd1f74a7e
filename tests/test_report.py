"""Reports: tables shaped like the papers', figures with the data they show, one page; no name of a
stranger changes a document."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.text import Text
from PIL import Image

from dfdetect.evaluate import remeasure
from dfdetect.files import write_json
from dfdetect.predictions import METRICS_SCHEMA, Predictions, write_predictions
from dfdetect.presets import load_preset
from dfdetect.report import report
from dfdetect.reports import plots
from dfdetect.reports.documents import Number, Table, as_csv, as_latex, as_markdown
from dfdetect.reports.drawing import png
from dfdetect.reports.results_page import Figure, results_page
from dfdetect.reports.tabulation import tables_of
from dfdetect.results import Prediction, sigmoid

HOSTILE = (
    "=1+1", "a & b \\\\ \\input{x}", "100 % $x_1$ #~^", "{", "}}", "[x]", "*", "| a | b |", "`c`",
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "\u202egnp.exe",
    "a\nb\x1b[31m", "model", "long " * 30,
)  # fmt: skip
PRESET = load_preset("bce-tiny").model_dump(mode="json")


def predictions(n_videos=8, fakes=("swap", "talk"), qualities=("raw", "c40"), seed=0, tracks=1):
    """Two crops of each track; fakes score higher, at c40 hardly."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind in ("real", *fakes):
        for i in range(n_videos):
            for q in qualities:
                for track in range(tracks):
                    shift = 0 if kind == "real" else 2 if q == "raw" else 0.5
                    for frame, logit in enumerate(rng.normal(shift, 1, 2)):
                        video, score = f"{kind}{i}", float(sigmoid(np.array(logit)))
                        rows.append(
                            Prediction(
                                f"{video}/{track}/{frame}", video, track, "d", kind, q, "test",
                                int(kind != "real"), float(logit), score,
                            )
                        )  # fmt: skip
    return rows


def write_eval(folder, rows, name="tiny", calibration=None, trained=("swap",), warnings=()):
    """What eval writes into `folder`; `rows` are predictions by the name of their data."""
    model = {
        "name": name, "path": f"runs/{name}/detector.safetensors", "sha256": "ab" * 32,
        "threshold": 0.5, "preset": PRESET, "trained_on": {"manipulations": list(trained)},
        "calibration": calibration,
    }  # fmt: skip
    write_predictions(folder / "predictions.parquet", Predictions.of(model, rows))
    write_json(
        folder / "metrics.json",
        {
            "schema_version": METRICS_SCHEMA, "cells": [{"split": "test"}], "coverage": [],
            "domains": [], "warnings": list(warnings),
        },
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models on two folders: their folders, what was measured, the report and its place."""
    root = tmp_path_factory.mktemp("report")
    folders = [
        write_eval(
            root / name, {d: predictions(seed=i + 2 * j) for j, d in enumerate(("ffpp", "cdf"))},
            name=name, trained=trained, warnings=[f"beware of {name}"],
        )
        for i, (name, trained) in enumerate((("qad", ("swap",)), ("did", ("swap", "talk"))))
    ]  # fmt: skip
    measured = {folder: remeasure(folder, rounds=50) for folder in folders}
    made = report(measured, out=root / "out", command=["dfdetect", "report", "qad", "did"])
    return SimpleNamespace(folders=folders, measured=measured, made=made, out=root / "out")


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cell_of(result, **place):
    (found,) = [
        c for c in result.cells if all(getattr(c, key) == value for key, value in place.items())
    ]
    return found


# --- tables ------------------------------------------------------------------------------------


def test_a_number_shows_its_interval_and_none_is_a_dash():
    assert str(Number(0.8731, 0.84, 0.904)) == "0.873 [.84, .90]"
    assert str(Number(1.0, 0.999, 1.0)) == "1.000 [1.00, 1.00]"
    assert (str(Number(0.5)), str(Number(-0.0)), str(Number(None))) == ("0.500", "0.000", "-")


def test_models_are_rows_and_datasets_columns(made):
    table = made.made.tables[0]
    assert table.headings == ("metric", "model", "ffpp", "cdf", "mean", "pooled", "worst")
    assert [row[:2] for row in table.rows if row[0] == "AUC"] == [("AUC", "qad"), ("AUC", "did")]
    (row,) = [row for row in table.rows if row[:2] == ("EER", "did")]
    cell = cell_of(made.measured[made.folders[1]], data="cdf", level="video", quality="pooled",
                   manipulation="all")  # fmt: skip
    assert row[3] == Number(cell.eer, *cell.intervals["eer"])


def test_every_table_states_level_split_quality_and_n(made):
    assert {table.level for table in made.made.tables} == {"video", "frame"}
    for table in made.made.tables:
        assert table.about == f"{table.level} level, test split, {table.quality}"
        assert any(re.search(r"\d+/\d+", str(entry)) for row in table.rows for entry in row)


def test_all_figures_of_a_cell_stand_in_some_table(made):
    words = {row[0] for table in made.made.tables for row in table.rows}
    assert words >= {
        "AUC", "EER", "ACC", "AP", "balanced ACC", "TPR at 1% FPR", "TPR at 5% FPR", "Brier",
        "Cllr (bits)", "min-Cllr (bits)", "ECE",
    }  # fmt: skip


def test_what_a_model_never_trained_on_is_marked_and_whose(made):
    (table, *_) = [t for t in made.made.tables if t.title == "ffpp by manipulation"]
    assert "talk *" in table.headings and "swap" in table.headings
    assert "* never trained on by qad." in table.notes


def test_tracks_have_tables_only_where_a_video_has_several(tmp_path):
    levels = []
    for tracks in (1, 2):
        folder = write_eval(tmp_path / str(tracks), {"d": predictions(4, tracks=tracks)})
        tables = tables_of({"tiny": remeasure(folder, rounds=0)})
        levels.append({table.level for table in tables})
    assert levels == [{"video", "frame"}, {"video", "track", "frame"}]


def table_of(tables, title, level="video"):
    (found,) = [t for t in tables if t.title.startswith(title) and t.level == level]
    return found


def test_a_model_without_some_qualities_or_a_class_has_dashes_there(tmp_path):
    rows = {
        "both": {"d": predictions(3), "reals": predictions(3, fakes=())},
        "raw alone": {"d": predictions(3, qualities=("raw",))},
    }
    results = {name: remeasure(write_eval(tmp_path / name, of), 0) for name, of in rows.items()}
    tables = tables_of(results)
    by_data = table_of(tables, "By dataset")
    raw = cell_of(results["raw alone"], data="d", level="video", quality="raw", manipulation="all")
    (row,) = [row for row in by_data.rows if row[:2] == ("AUC", "raw alone")]
    assert row[2:4] == (Number(raw.auc), Number(None))
    (row,) = [r for r in table_of(tables, "d by quality, ranking").rows
              if r[:2] == ("AUC", "raw alone")]  # fmt: skip
    assert [number.value is None for number in row[2:]] == [False] + 4 * [True]
    empty = table_of(tables, "reals by quality, ranking")
    assert ("AUC", "both", *[Number(None)] * 5) in empty.rows
    assert any(note.startswith("Empty: no fake videos") for note in empty.notes)


def test_what_was_not_scored_has_a_table_and_the_worst_case(tmp_path):
    folder = write_eval(tmp_path, {"d": predictions(3, fakes=("swap",))})
    inputs = {"n_no_face": 0, "n_unreadable": 1}
    lost = {"data": "d", "real": inputs, "fake": {"n_no_face": 2, "n_unreadable": 0}}
    metrics = json.loads((folder / "metrics.json").read_text())
    write_json(folder / "metrics.json", metrics | {"coverage": [lost]})
    tables = tables_of({"tiny": remeasure(folder, rounds=0)})
    assert table_of(tables, "How much was scored").rows == (
        ("d", "tiny", "real", "4", "3", "0", "1"), ("d", "tiny", "fake", "5", "3", "2", "0"),
    )  # fmt: skip
    worst = table_of(tables, "With what has no score").rows[-1]
    ours = cell_of(remeasure(folder, 0), level="video", quality="pooled", manipulation="all")
    assert worst[:3] == ("d", "pooled", "tiny") and worst[3].value < ours.auc


def test_corruptions_are_rows_of_a_table_and_models_its_columns(made):
    point = {"data": "ffpp", "split": "test", "level": "video", "n_real": 8, "n_fake": 16}
    points = [
        SimpleNamespace(**point, kind=kind, quality=quality, auc=auc, low=0.1, high=0.9, seen=seen)
        for kind, quality, auc, seen in (
            ("crf", "raw", 0.8, "trained"), ("crf", "crf40", 0.6, "no"),
            ("blur", "blur1", 0.7, "no"),
        )
    ]  # fmt: skip
    (result, _) = made.measured.values()
    with_curves = result._replace(robustness=SimpleNamespace(points=points))
    short = result._replace(robustness=SimpleNamespace(points=points[:1]))
    table = table_of(tables_of({"a": with_curves, "b": short}), "ffpp by corruption")
    assert table.headings == ("corruption", "quality", "a", "b")
    assert table.rows[0] == ("crf", "raw", Number(0.8, 0.1, 0.9), Number(0.8, 0.1, 0.9))
    assert table.rows[1] == ("crf", "crf40 *", Number(0.6, 0.1, 0.9), Number(None))
    assert "n: real/fake videos, a 8/16, b 8/16." in table.notes
    as_csv([table])


def test_widths_of_faces_are_columns(made):
    (result, _) = made.measured.values()
    cells = [
        replace(c, faces=faces, auc=auc)
        for c in result.cells if c.manipulation == "all" and c.quality == "pooled"
        for faces, auc in (("<64 px", 0.6), (">=64 px", 0.8))
    ]  # fmt: skip
    tables = tables_of({"a": result._replace(cells=result.cells + cells)})
    table = table_of(tables, "ffpp by width of the face")
    assert table.headings == ("metric", "model", "<64 px", ">=64 px", "all")
    (row,) = [row for row in table.rows if row[0] == "AUC"]
    assert [number.value for number in row[2:4]] == [0.6, 0.8]


# --- documents ---------------------------------------------------------------------------------


def hostile_table(name):
    return Table(
        name, "video", "test", f"at {name}", 2, ("metric", "model", name, "b"),
        (("AUC", name, Number(0.5, 0.4, 0.6), "x"), ("EER", name, Number(None), name)),
        (name, "second"),
    )  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_latex_holds_whatever_a_manipulation_is_called(name):
    text = as_latex([hostile_table(name), hostile_table("b")])
    assert "\n\n\\begin{table}" in text and text.count(r"\begin{table}") == 2
    body = re.sub(r"(?m)^%.*$", "", text)
    commands = set(re.findall(r"\\([a-zA-Z]+)", body))
    assert commands <= {
        "begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule",
        "textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater",
        "textbar", "textquotedbl",
    }  # fmt: skip
    plain = re.sub(r"\\[{}$&#%_]", "", body.replace("\\\\\n", "\n"))
    assert plain.count("{") == plain.count("}")
    depths = np.cumsum([(c == "{") - (c == "}") for c in plain])
    assert depths.min() >= 0
    rows = [line for line in plain.splitlines() if "&" in line]
    assert len(rows) == 6 and all(row.count("&") == 3 for row in rows)
    assert not re.search(r"[$#%_^~<>|\"]", plain)
    assert not any(line.startswith(("[", "*")) for line in plain.splitlines())


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_markdown_holds_whatever_a_manipulation_is_called(name):
    text = as_markdown(name, [hostile_table(name)])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert all(len(re.findall(r"(?<!\\)\|", row.replace(r"\\", ""))) == 5 for row in rows)
    assert "<" not in text and "\x1b" not in text and "\u202e" not in text
    assert not re.search(r"(?<!\\)[`*$]", text.replace(r"\\", ""))


def test_csv_has_numbers_in_full_and_no_formulas():
    number = Number(1 / 3, 0.25, 0.5)
    table = Table("=t", "video", "test", "at raw", 2, ("metric", "model", "raw", "n"),
                  (("AUC", "=m", number, "+x()"),))  # fmt: skip
    first, second = csv.DictReader(as_csv([table]).splitlines())
    assert float(first["value"]) == 1 / 3 and (first["low"], first["high"]) == ("0.25", "0.5")
    assert (first["model"], first["title"], second["text"]) == ("'=m", "'=t", "'+x()")


def test_tables_are_the_same_in_every_document(made):
    table = made.made.tables[0]
    lines = rows_of(made.out / "tables.csv")
    markdown, latex = ((made.out / f"tables.{ending}").read_text() for ending in ("md", "tex"))
    page = (made.out / "report.html").read_text()
    number = table.rows[1][2]
    found = [x for x in lines if (x["table"], x["metric"], x["column"]) == ("1", "AUC", "ffpp")]
    assert float(found[0]["value"]) == number.value
    shown = str(number)
    assert shown in page
    assert shown.replace("[", r"\[").replace("]", r"\]") in markdown
    assert shown.replace("[", "{[}") in latex
    content = json.loads(json.dumps(made.made.as_json()))
    assert content["tables"][0]["rows"][1][2] == number._asdict()


# --- figures -----------------------------------------------------------------------------------


def test_curves_are_those_that_the_figures_of_the_tables_are_of(made):
    roc, det = rows_of(made.out / "roc.csv"), rows_of(made.out / "det.csv")
    for folder in made.folders:
        for level in ("video", "frame"):
            place = {"model": folder.name, "data": "ffpp", "level": level, "quality": "pooled"}
            of_roc, of_det = (
                [r for r in rows if all(r[k] == v for k, v in place.items())] for rows in (roc, det)
            )
            fpr, tpr = (np.array([float(r[key]) for r in of_roc]) for key in ("fpr", "tpr"))
            cell = cell_of(made.measured[folder], data="ffpp", level=level, quality="pooled",
                           manipulation="all")  # fmt: skip
            assert np.trapezoid(tpr, fpr) == pytest.approx(cell.auc, abs=1e-12)
            assert np.allclose([float(r["fnr"]) for r in of_det], 1 - tpr)


def test_a_long_curve_is_thinned_and_keeps_its_area(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        Prediction(f"v{i}", f"v{i}", 0, "d", "swap" if y else "real", "raw", "test", y, z, z)
        for i, (y, z) in enumerate(
            (int(y), float(sigmoid(np.array(rng.normal(y))))) for y in rng.random(6000) < 0.5
        )
    ]
    folder = write_eval(tmp_path, {"d": rows})
    result = remeasure(folder, rounds=0)
    report({folder: result})
    frames = [r for r in rows_of(folder / "roc.csv") if r["level"] == "frame"]
    fpr, tpr = (np.array([float(r[key]) for r in frames]) for key in ("fpr", "tpr"))
    assert 500 < len(frames) <= 1000 and (fpr[-1], tpr[-1]) == (1, 1) and fpr[0] == tpr[0] == 0
    assert np.trapezoid(tpr, fpr) == pytest.approx(
        cell_of(result, level="frame", quality="raw", manipulation="all").auc, abs=1e-3
    )


def test_histograms_count_every_video_once(made):
    rows = rows_of(made.out / "histograms.csv")
    here = [r for r in rows if (r["model"], r["data"], r["quality"]) == ("qad", "cdf", "c40")]
    assert [sum(int(r[key]) for r in here) for key in ("n_real", "n_fake")] == [8, 16]


def test_reliability_shows_scores_before_and_after_calibration(tmp_path):
    calibration = {"slope": 0.5, "intercept": -0.1}
    folder = write_eval(tmp_path, {"d": predictions()}, calibration=calibration)
    made = report({folder: remeasure(folder, rounds=0)})
    (table,) = [t for t in made.tables if "calibration" in t.title]
    (ece,) = [row for row in table.rows if row[:3] == ("ECE", "d", "pooled")]
    for when, number in zip(("before", "after"), ece[-2:], strict=True):
        bins = [r for r in rows_of(folder / "reliability.csv")
                if (r["scores"], r["quality"]) == (when, "pooled")]  # fmt: skip
        weight, score, fake = (
            np.array([float(r[key]) for r in bins])
            for key in ("weight", "mean_score", "share_of_fakes")
        )
        assert weight.sum() == pytest.approx(1)
        assert weight @ abs(score - fake) == pytest.approx(number.value, abs=1e-12)


def test_nothing_is_drawn_outside_a_figure_whatever_the_names(monkeypatch):
    outside = []

    def keep(figure):
        content = png(figure)
        for text in figure.findobj(Text):
            is_tick = re.fullmatch(r"[\d.]*", text.get_text())  # may be of no place in the panel
            if text.get_visible() and not is_tick:
                box, page = text.get_window_extent(), figure.bbox
                if box.x0 < 0 or box.y0 < 0 or box.x1 > page.x1 or box.y1 > page.y1:
                    outside.append(text.get_text())
        return content

    monkeypatch.setattr(plots, "png", keep)
    places = [plots.Place(name, HOSTILE[-1], "video", "raw") for name in HOSTILE[-7:]]
    steps = np.linspace(0, 1, 9)
    number = Number(0.8731, 0.81, 0.91)
    curves = [plots.Curve(p, 4321, 1234, number, steps, steps, steps**0.5) for p in places]
    one = [place._replace(model=places[0].model, quality=place.model) for place in places]
    bins = [SimpleNamespace(low=0.4, high=0.5, share=1.0, score=0.45, fake=0.5)]
    counts = np.arange(8)
    plots.draw_roc(curves, "caption")
    plots.draw_det(curves, "caption")
    of_one = [curve._replace(place=place) for curve, place in zip(curves, one, strict=True)]
    plots.draw_det(of_one, "caption " * 99)
    plots.draw_histograms([plots.Histogram(p, steps, counts, counts, 0.5) for p in one], "caption")
    for found in ({"before": bins}, {"before": bins, "after": bins}):
        errors = dict.fromkeys(found, 0.1)
        shown = [plots.Reliability(p, 99999, 99999, found, errors) for p in one[:4]]
        plots.draw_reliability(shown, "caption")
    grid = [[number, Number(None)], [number, number]]
    plots.draw_heat_maps(
        [plots.HeatMap(name, "method.alpha", "gamma", [0, 1], [0, 2], grid) for name in HOSTILE],
        "caption",
    )
    lines = [plots.Line(title, name, [56, 336], [number, Number(0.5)])
             for title in HOSTILE[-2:] for name in HOSTILE[:7]]  # fmt: skip
    plots.draw_sizes(lines, "caption")
    assert outside == []


# --- sweeps ------------------------------------------------------------------------------------

HEAD = (
    "cell,preset,{},seed,status,error,best_step,data,split,level,quality,auc,low,high,n_real,n_fake"
)


def write_sweep(folder, axes, lines, measured=()):
    """sweep.csv of `lines` (cell, preset, values of the axes, seed, status, auc)."""
    folder.mkdir()
    rows = [HEAD.format(",".join(axes))]
    for cell, preset, values, seed, status, auc in lines:
        at = ",".join(map(str, values))
        for quality, shift in (("raw", 0.05), ("pooled", 0)):
            bounds = f"{auc + shift},{auc - 0.1},{auc + 0.1}"
            rows.append(f'"{cell}",{preset},{at},{seed},{status},,5,nt,test,frame,{quality},'
                        f"{bounds},9,9")  # fmt: skip
    (folder / "sweep.csv").write_text("\n".join(rows) + "\n")
    for cell in measured:
        write_eval(folder / cell / "eval", {"nt": predictions(3, seed=len(cell))})
    return folder


def test_a_sweep_over_two_options_gives_a_heat_map_of_means_over_seeds(cli, tmp_path):
    lines = [
        (f"alpha={a},gamma={g},seed={s}", "qad", (a, g), s, "finished", 0.6 + a + g + s / 10)
        for a in (0, 0.1) for g in (0, 0.2) for s in (0, 1)
    ]  # fmt: skip
    lines += [(f"alpha={a},gamma={g}", "qad", (a, g), "", "", 0.65 + a + g)
              for a in (0, 0.1) for g in (0, 0.2)]  # fmt: skip
    cells = [line[0] for line in lines[1:3]]
    sweep = write_sweep(tmp_path / "s", ("method.alpha", "method.gamma"), lines, cells)
    found = cli("report", sweep, "--json")
    assert found.exit_code == 0, found.stderr
    rows = rows_of(sweep / "heatmap.csv")
    assert [(r["y_value"], r["x_value"], f"{float(r['auc']):.2f}") for r in rows] == [
        ("0.0", "0.0", "0.65"), ("0.0", "0.2", "0.85"),
        ("0.1", "0.0", "0.75"), ("0.1", "0.2", "0.95"),
    ]  # fmt: skip
    content = json.loads(found.stdout)
    models = dict.fromkeys(row[1] for row in content["tables"][0]["rows"][1:])
    assert list(models) == cells
    assert Image.open(sweep / "heatmap.png").size[0] > 300 and "sizes.png" not in content["files"]


def test_a_sweep_over_the_input_s_size_gives_a_line_for_each_method(cli, tmp_path):
    lines = [
        (f"{name},image_size={side}", preset, (side,), 0, "finished", auc)
        for name, preset, auc in (("baseline", "bce", 0.6), ("qad", "qad", 0.7))
        for side in (224, 56)
    ]
    sweep = write_sweep(tmp_path / "s", ("image_size",), lines, [lines[0][0]])
    assert cli("report", sweep, "--out", tmp_path / "out").exit_code == 0
    drawn = rows_of(tmp_path / "out" / "sizes.csv")
    assert [(r["line"], r["image_size"], r["auc"]) for r in drawn] == [
        ("baseline", "56", "0.6"), ("baseline", "224", "0.6"), ("qad", "56", "0.7"),
        ("qad", "224", "0.7"),
    ]  # fmt: skip


# --- the page and the command ------------------------------------------------------------------


class Elements(HTMLParser):
    def __init__(self, content):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_all_of_it_and_needs_nothing_else(made):
    content = (made.out / "report.html").read_text()
    page = Elements(content)
    tags = [tag for tag, _ in page.elements]
    assert "script" not in tags and "link" not in tags
    images = [of for tag, of in page.elements if tag == "img"]
    assert len(images) == 4 and all(of["src"].startswith("data:image/png") for of in images)
    assert all(of["alt"] and of["width"] for of in images)
    assert tags.count("table") == len(made.made.tables)
    assert all(of.get("scope") for tag, of in page.elements if tag == "th")
    for word in ("beware of qad", "ab" * 32, "dfdetect report qad did", "8 real and 16 fake",
                 "UTC", "--qualities raw,c40", "roc.csv"):  # fmt: skip
        assert word in page.text, word
    assert "default-src 'none'" in content


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_name_changes_the_page(name):
    shapes = []
    for called in ("plain", name):
        figure = Figure(f"{called}.png", called, called, called, png(MatplotlibFigure((1, 1))))
        facts = {"name": called, "data": called}
        content = results_page(
            called, [facts], [called], [hostile_table(called)], [figure], [called]
        )
        page = Elements(content)
        shapes.append([(tag, sorted(of)) for tag, of in page.elements])
        assert "\x1b" not in page.text and "\u202e" not in page.text
    assert shapes[0] == shapes[1]


def test_report_shows_tables_and_writes_beside_the_results(cli, tmp_path):
    folder = write_eval(tmp_path / "e", {"d": predictions(3)}, warnings=["beware"])
    (folder / "heatmap.png").write_bytes(b"of an earlier report")
    found = cli("report", folder)
    assert found.exit_code == 0, found.stderr
    assert "warning: beware" in found.stderr
    assert "video level, test split, at raw, c40" in found.stdout and "AUC" in found.stdout
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "predictions.parquet", "metrics.json", "tables.md", "tables.tex", "tables.csv",
        "report.html", "roc.png", "roc.csv", "det.png", "det.csv", "histograms.png",
        "histograms.csv", "reliability.png", "reliability.csv",
    }  # fmt: skip


def test_models_of_one_name_are_told_by_their_folders_and_other_crops_are_said(cli, tmp_path):
    folders = [write_eval(tmp_path / f"e{n}", {"d": predictions(n)}) for n in (2, 3)]
    found = cli("report", *folders, "--out", tmp_path / "out", "--json")
    content = json.loads(found.stdout)
    assert "d: the models were not measured on the same crops" in found.stderr
    assert {row[1] for row in content["tables"][0]["rows"]} == {"e2", "e3"}


def test_what_is_no_result_is_named_with_a_remedy(cli, tmp_path):
    good = write_eval(tmp_path / "good", {"d": predictions(2)})
    sweep = write_sweep(tmp_path / "s", ("a",), [("a=1", "qad", (1,), 0, "finished", 0.6)])
    (tmp_path / "none").mkdir()
    for arguments, message in (
        ([tmp_path / "none"], "predictions.parquet"),
        ([good, tmp_path / "absent"], "absent"),
        ([good, good], "is given twice"),
        ([sweep], "no cell of this sweep is measured yet"),
    ):
        found = cli("report", *arguments)
        assert found.exit_code == 2 and message in found.stderr
        assert found.stderr.count("\n") == 1 and ";" in found.stderr
