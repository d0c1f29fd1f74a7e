"""reproduce: the papers' tables, cell by cell, on small trees of each data set."""

import csv
import json
import os
import shutil
import traceback
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, CliRunner, app, write_clip

from dfdetect import children
from dfdetect.datasets import list_source
from dfdetect.datasets.base import DatasetOptions
from dfdetect.demo import read_portrait
from dfdetect.errors import DfdetectError
from dfdetect.files import read_json, write_json, write_whole
from dfdetect.manifest import read_samples
from dfdetect.reproduce import plan_reproduction, reproduce
from dfdetect.tables import Table, list_tables, load_table

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
NAMES = (
    *(f"qad-table{i}" for i in range(1, 6)), "qad-fig3", "qad-fig4", "qad-fig5",
    *(f"did-table{i}" for i in range(1, 4)), *(f"did-fig{i}" for i in range(4, 8)),
)  # fmt: skip


def command(line, log, environment):
    """The command in this process instead of a child: PyTorch is imported once."""
    result = CliRunner().invoke(app, line)
    with log.open("a") as file:
        file.write(f"$ dfdetect {' '.join(line)}\n{result.stdout}{result.stderr}")
        if result.exc_info and result.exit_code == 1:
            traceback.print_exception(*result.exc_info, file=file)
    return SimpleNamespace(
        returncode=result.exit_code, poll=lambda: result.exit_code, send_signal=lambda number: None,
        terminate=lambda: None, wait=lambda: None,
    )  # fmt: skip


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(children, "start", command)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A small official tree of each data set that the tables need; two videos of each class in the
    test split, so that there are intervals."""
    root = tmp_path_factory.mktemp("trees")
    clip = write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", n_frames=2)

    def fill(name):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, root / name)

    for split, a, b in (("train", "000", "001"), ("val", "002", "003"), ("test", "004", "005")):
        write_json(root / "ffpp" / "splits" / f"{split}.json", [[a, b]])
        for target, source in ((a, b), (b, a)) if split == "test" else ((a, b),):
            fill(f"ffpp/original_sequences/youtube/raw/videos/{target}.mp4")
            for method in METHODS:
                fill(f"ffpp/manipulated_sequences/{method}/raw/videos/{target}_{source}.mp4")
        for side in ("source", "target"):
            for i in (1, 2) if split == "test" else (1,):
                fill(f"ffiw/FFIW10K-v1-release{'-test' if i and split == 'test' else ''}/{side}/"
                     f"{'' if split == 'test' else split + '/'}{i}.mp4")  # fmt: skip
    listed = []
    for i, person in enumerate(("id0", "id3", "id0", "id0")):  # id3 is dealt to val
        fill(f"celebdf/Celeb-real/{person}_{i}.mp4")
        fill(f"celebdf/Celeb-synthesis/{person}_id1_{i}.mp4")
        if i > 1:
            listed += [f"1 Celeb-real/{person}_{i}.mp4", f"0 Celeb-synthesis/{person}_id1_{i}.mp4"]
    write_whole(root / "celebdf" / "List_of_testing_videos.txt", "\n".join(listed))
    picture = cv2.imencode(".png", cv2.cvtColor(read_portrait(), cv2.COLOR_RGB2BGR))[1].tobytes()
    for level in ("train", "validation", "test"):
        for subset in ("ffhq", "stargan", "faceapp"):
            write_whole(root / "dffd" / subset / level / "1.png", picture)
    return root


def table(**content):
    """Two data sets and their mean, over cells of QAD's Table 1."""
    return Table.model_validate(
        {
            "name": "two", "reproduces": "nothing", "unit": "percent", "split": "test",
            "qualities": ["raw", "c23"], "quality": "mean", "average": "Avg",
            "cells": {"qad": {"preset": "qad-r50"}},
            "columns": {"CDFv2": {"test": "celebdf"}, "FFIW10K": {"test": "ffiw"}},
            "rows": {"qad": {"name": "QAD-R", "cell": "qad", "paper": [98.36, 99.10, 98.73]}},
        }
        | content
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(trees, tmp_path_factory):
    """Cells of every kind at smoke scale, all into one folder: (trees, out, {table: result})."""
    out = tmp_path_factory.mktemp("reproduced") / "out"
    cells = {
        "qad-table3": ["qad-r@NT", "r50@NT"],
        "qad-fig3": ["alpha=0.004,gamma=0.00[12]@AUC"],
        "qad-fig4": ["qad,image_size=56@*", "qad,image_size=224@*"],
        "qad-fig5": ["qad@*"],
        "did-table2": ["r50-did@*"],
        "did-table1": ["did@*"],
        "did-fig4": ["alpha=0.5@*", "alpha=1@*"],
        "did-fig5": [],
        "did-fig6": [],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "start", command)
        patch.setattr(children, "POLL_S", 0)
        results = {
            name: reproduce(load_table(name), trees, out, only, "smoke", ["cpu"])
            for name, only in cells.items()
        }
        results["two"] = reproduce(table(), trees, out, [], "smoke", ["cpu"])
    return trees, out, results


# --- what ships ------------------------------------------------------------------------------


def test_every_table_and_figure_that_was_asked_for_ships():
    assert set(list_tables()) == set(NAMES)
    readme = (ROOT / "README.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_every_table_fits_its_preset_and_finds_its_data(name, trees, tmp_path):
    shipped = load_table(name)
    plan = plan_reproduction(shipped, trees, tmp_path / "out", scale="smoke")
    assert plan.lacking == {}
    cells = [v for v in plan.values if v.evals]
    assert cells and {v.status for v in cells} == {"not begun"}
    assert len({v.name for v in plan.values}) == len(plan.values)
    rows = len({v.row for v in plan.values})
    assert len(plan.values) == rows * len(shipped.headings)
    assert not (tmp_path / "out").exists()


def test_printed_averages_are_the_means_of_their_rows_but_for_one_slip():
    wrong = []
    for name in NAMES:
        shipped = load_table(name)
        for key, row in shipped.rows.items():
            if shipped.average and row.paper:
                *numbers, average = row.paper
                mean = np.mean([n for n in numbers if n is not None])
                wrong += [(name, key)] if abs(mean - average) > 0.0051 else []
    assert wrong == [("qad-table1", "bznet")]


def test_numbers_that_two_tables_print_of_one_model_agree():
    """Table 4 rounds what Table 1 prints of QAD; CrossDF's text repeats its tables."""
    tables = {name: load_table(name) for name in NAMES}
    assert tables["qad-table4"].rows["qad"].paper[1] == pytest.approx(
        tables["qad-table1"].rows["qad-r"].paper[0], abs=0.051
    )
    did = {tables[f"did-table{i}"].rows["did"].paper[-1 if i == 1 else 0] for i in (1, 3)}
    assert did == {0.779} == {tables["did-fig4"].rows["alpha=0.5"].paper[0]}


# --- what is made ----------------------------------------------------------------------------


def pairs(out, evaluated, quality):
    """AUC over all pairs of real and fake frames, from the predictions."""
    rows = pq.read_table(out / evaluated / "predictions.parquet").to_pylist()
    rows = [(r["logit"], r["label"]) for r in rows if r["quality"] == quality]
    wins = [(f > r) + 0.5 * (f == r) for f, y in rows if y for r, x in rows if not x]
    return 100 * float(np.mean(wins))


def one(result, name):
    (value,) = [v for v in result.values if v.name == name]
    return value


def test_a_number_is_that_of_the_predictions_with_its_interval_and_difference(made):
    _, out, results = made
    value = one(results["qad-table3"], "qad-r@NT")
    (evaluated,) = value.evals
    expected = np.mean([pairs(out, evaluated, q) for q in ("raw", "c23", "c40")])
    assert value.ours == pytest.approx(expected)
    assert value.difference == pytest.approx(expected - 88.85)
    assert value.low <= value.ours <= value.high
    assert (value.n_real, value.n_fake) == (4, 4)


def test_a_row_of_three_models_is_the_mean_of_each_at_its_own_quality(made):
    _, out, results = made
    value = one(results["qad-table3"], "r50@NT")
    qualities = ("raw", "c23", "c40")
    singles = [pairs(out, e, q) for e, q in zip(value.evals, qualities, strict=True)]
    assert value.ours == pytest.approx(np.mean(singles)) and len(set(value.evals)) == 3
    assert value.low <= value.ours <= value.high


def test_an_average_is_that_of_its_columns(made):
    _, _, results = made
    cdf, ffiw, average = results["two"].values
    assert average.ours == pytest.approx((cdf.ours + ffiw.ours) / 2)
    assert average.low <= average.ours <= average.high and average.paper == 98.73


@pytest.mark.skipif("DFDETECT_SMOKE" not in os.environ, reason="set DFDETECT_SMOKE; takes minutes")
def test_every_cell_of_every_table_runs_at_smoke_scale(trees, tmp_path, here):
    for name in NAMES:
        result = reproduce(load_table(name), trees, tmp_path / "out", [], "smoke", ["cpu"])
        assert {v.name for v in result.values if v.evals and v.ours is None} == set()
        assert (result.table.figure is None) == (len(result.files) == 3)


def test_quoted_rows_and_missing_methods_are_never_trained(made):
    _, _, results = made
    statuses = {v.row: v.status for v in results["qad-table3"].values if v.column == "NT"}
    assert statuses["add"] == "quoted" and statuses["effb1"] == "not begun"
    plan = plan_reproduction(load_table("qad-table1"), *made[:2], scale="smoke")
    mat = [v for v in plan.values if v.row == "mat"]
    assert {(v.status, v.evals) for v in mat} == {("not available here", ())}
    assert mat[0].paper == 86.79


def test_columns_of_one_row_share_their_training_and_tables_share_their_runs(made):
    _, out, results = made
    auc, eer = (one(results["did-table2"], f"r50-did@{c}") for c in ("AUC", "EER"))
    assert auc.evals == eer.evals and (out / auc.evals[0] / "metrics.json").is_file()
    # Figures 3, 4 and 5 contain the model of Tables 1 and 3 under other names.
    runs = [path.name for path in (out / "runs").iterdir()]
    assert "qad-r50@ffpp-NT+smoke" in runs and not [r for r in runs if "alpha=0.004" in r]
    log = (out / "runs" / "qad-r50@ffpp-NT+smoke" / "log.txt").read_text()
    assert log.count("$ dfdetect train") == 1
    log = (out / "runs" / "did-effv2l@ffpp-DF+F2F+FS+NT+smoke" / "log.txt").read_text()
    assert log.count("$ dfdetect train") == 1 and log.count("$ dfdetect eval") == 2


def test_one_run_is_measured_on_the_data_of_every_column(made):
    _, out, results = made
    within, across = (one(results["did-table1"], f"did@{c}") for c in ("FF++", "CDFv2"))
    assert (within.status, across.status) == ("finished", "finished")
    assert within.ours == pytest.approx(pairs(out, within.evals[0], "c23") / 100)
    assert across.ours == pytest.approx(pairs(out, across.evals[0], "raw") / 100)
    assert (within.n_fake, across.n_fake) == (16, 4)  # four techniques; two frames of each video


def test_a_part_of_a_data_set_holds_its_fakes_and_reals_without_copies(made):
    _, out, _ = made
    part = out / "data" / "ffpp-NT@raw+c23+c40+smoke"
    rows = read_samples(part)
    assert {s.manipulation for s in rows} == {"real", "NeuralTextures"}
    assert all(s.path.is_file() for s in rows) and (part / "faces").is_symlink()


def test_figures_are_drawn_with_the_data_that_they_show(made):
    _, out, results = made
    for name, ends in {
        "qad-fig3": ("heatmap.png", "heatmap.csv"), "qad-fig4": ("sizes.png", "sizes.csv"),
        "qad-fig5": ("qad-tsne.png", "qad-features.npz"), "did-fig4": ("roc.png", "roc.csv"),
        "did-fig5": ("did-domains.png", "did-domains.csv"),
    }.items():  # fmt: skip
        for end in ends:
            assert f"{name}-{end}" in results[name].files
            assert (out / f"{name}-{end}").stat().st_size > 100
    rows = list(csv.DictReader((out / "qad-fig3-heatmap.csv").open()))
    assert {(float(r["y_value"]), float(r["x_value"])) for r in rows} == {
        (0.004, 0.001), (0.004, 0.002),
    }  # fmt: skip
    sheets = [name for name in results["did-fig6"].files if name.endswith(".png")]
    assert len(sheets) == 5 + 2  # four techniques and reals, and Celeb-DF's two classes


def test_the_share_of_techniques_named_rightly_is_that_of_the_confusion(made):
    _, out, results = made
    rows = list(csv.DictReader((out / "did-fig5-did-domains.csv").open()))
    shares = {r["manipulation"]: int(r[f"predicted {r['manipulation']}"]) / int(r["n"])
              for r in rows if r["manipulation"] != "real"}  # fmt: skip
    assert one(results["did-fig5"], "did@FaceSwap").ours == pytest.approx(shares["FaceSwap"])
    average = one(results["did-fig5"], "did@average")
    assert average.ours == pytest.approx(np.mean(list(shares.values())))
    assert average.paper == 0.91


def test_the_documents_say_what_the_result_says(made):
    _, out, results = made
    result = results["qad-table3"]
    value = one(result, "qad-r@NT")
    assert read_json(out / "qad-table3.json") == json.loads(json.dumps(result.as_json()))
    (row,) = [r for r in csv.DictReader((out / "qad-table3.csv").open())
              if (r["row"], r["column"]) == ("qad-r", "NT")]  # fmt: skip
    assert float(row["ours"]) == value.ours and float(row["paper"]) == 88.85
    text = (out / "qad-table3.md").read_text()
    assert "| ADD [x3], 23.5M x 3 (quoted) | paper | 89.08 |" in text
    assert f"|  | diff | {value.difference:+.2f} |" in text and "tiny networks" in text


def test_what_is_finished_is_not_done_again(made, monkeypatch):
    trees, out, results = made
    monkeypatch.setattr(children, "start", None)
    again = reproduce(load_table("did-table2"), trees, out, ["r50-did@*"], "smoke", ["cpu"])
    assert again.values == results["did-table2"].values


def test_what_eval_warns_of_stands_below_the_table(made):
    _, out, results = made
    told = one(results["did-fig4"], "alpha=1@AUC").warnings
    warning = "celebdf@raw+smoke: the model never trained on the manipulations Celeb-synthesis"
    assert warning in told
    assert "Celeb-synthesis" in (out / "did-fig4.md").read_text()


def test_a_cell_that_fails_is_listed_and_the_others_are_done(made, cli, monkeypatch):
    trees, out, _ = made

    def fail(line, log, environment):
        log.write_text("error: no such luck\n")
        return SimpleNamespace(returncode=2, poll=lambda: 2)

    monkeypatch.setattr(children, "start", fail)
    result = cli("reproduce", "qad-table4", "--data", trees, "--out", out, "--scale", "smoke",
                 "--only", "hsic@AUC", "--only", "qad@AUC", "--json")  # fmt: skip
    assert result.exit_code == 3
    cells = {c["cell"]: c for c in json.loads(result.stdout)["cells"]}
    assert (cells["hsic@AUC"]["status"], cells["hsic@AUC"]["reason"]) == ("failed", "no such luck")
    assert cells["qad@AUC"]["status"] == "finished" and cells["qad@AUC"]["ours"] is not None
    plan = plan_reproduction(load_table("qad-table4"), trees, out, ["hsic@AUC"], "smoke")
    assert one(plan, "hsic@AUC").status == "failed"


def test_a_run_that_began_with_other_options_is_refused(made):
    trees, out, _ = made
    changed = table(set={"optimizer.lr": 1e-4, "seed": 3})
    name = next((out / "runs").glob("qad-r50@celebdf*"))
    shutil.copytree(name, name.with_name("qad-r50,lr=0.0001,seed=3@celebdf+smoke"))
    with pytest.raises(DfdetectError, match=r"the run has seed = 0, now asked for 3|optimizer.lr"):
        plan_reproduction(changed, trees, out, scale="smoke")


# --- data ------------------------------------------------------------------------------------


def test_cells_without_their_data_say_which_and_where_to_get_it(trees, tmp_path, cli):
    shutil.copytree(trees / "ffpp", tmp_path / "root" / "FaceForensics")
    shutil.rmtree(tmp_path / "root/FaceForensics/manipulated_sequences/FaceShifter")
    arguments = ("--data", tmp_path / "root", "--out", tmp_path / "out", "-n", "--json")
    plan = json.loads(cli("reproduce", "qad-table1", *arguments).stdout)
    found = {c["cell"]: (c["status"], c["reason"]) for c in plan["cells"]}
    assert found["qad-r@NT"] == ("not begun", "")
    assert found["qad-r@FSH"] == ("lacks data", "needs ffpp:FaceShifter")
    assert found["qad-r@CDFv2"] == ("lacks data", "needs celebdf")
    where = f"put its official tree, from github.com/tfzhou/FFIW, at {tmp_path / 'root' / 'ffiw'}"
    assert where in plan["lacking"]["ffiw"]
    result = cli("reproduce", "did-table2", *arguments[:4])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'root'}: holds none of the data that did")
    assert "dffd is absent" in result.stderr and not (tmp_path / "out").exists()


def test_two_trees_of_one_data_set_are_not_chosen_between(trees, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "root" / name / "Celeb-real").mkdir(parents=True)
    with pytest.raises(DfdetectError, match="one and two both look like celebdf"):
        plan_reproduction(load_table("did-table2"), tmp_path / "root", tmp_path / "out")


def test_a_prepared_folder_stands_for_its_tree(made, tmp_path, here):
    _, out, _ = made
    root = tmp_path / "root"
    shutil.copytree(out / "data" / "ffpp@raw+c23+c40+smoke", root / "ffpp")
    result = reproduce(
        load_table("qad-table4"), root, tmp_path / "out", ["baseline@*"], "smoke", ["cpu"]
    )
    assert one(result, "baseline@ACC").status == "finished"
    assert [p.name for p in (tmp_path / "out" / "data").iterdir()] == ["ffpp-NT@prepared"]


def test_only_some_fakes_of_a_source_and_few_videos_of_it_are_listed(trees):
    options = DatasetOptions(manipulations=("FaceSwap",), limit=1)
    videos = list_source("ffpp", trees / "ffpp", options).videos
    assert [(v.split, v.manipulation) for v in videos] == [
        (split, name) for name in ("FaceSwap", "real") for split in ("train", "val", "test")
    ]
    with pytest.raises(DfdetectError, match=r"unknown manipulation of .*/ffpp: 'FaceSwop'"):
        list_source("ffpp", trees / "ffpp", DatasetOptions(manipulations=("FaceSwop",)))


# --- the edge --------------------------------------------------------------------------------


def test_without_a_name_everything_is_listed(cli):
    listed = json.loads(cli("reproduce", "--json").stdout)["tables"]
    names = {row["name"]: row["data"] for row in listed}
    assert set(names) == set(NAMES) and names["did-table2"] == ["dffd", "celebdf"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("qad-table9",), "error: unknown table 'qad-table9'; did you mean 'qad-table"),
        (("qad-fig3",), "error: reproduce needs --data and --out; "),
        (("qad-fig3", "--data", ".", "--out", "o", "--scale", "tiny"), "error: unknown scale"),
        (("qad-fig3", "--data", "absent", "--out", "o"), "error: absent: no such folder; "),
        (("qad-table1", "--data", ".", "--out", "o", "--only", "qad"),
         "error: unknown cell for --only 'qad'; "),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(cli, arguments, line):
    result = cli("reproduce", *arguments)
    assert result.exit_code == 2 and result.stderr.startswith(line), result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("rows: {a: {name: A, paper: [1, 2]}}", "row a has 2 numbers for 1 columns"),
        ("rows: {a: {name: A, cel: b}}", "unknown key in table t: 'rows.a.cel'"),
        ("rows: {a: {name: A, cell: qad, quoted: true}}", "row a is quoted, and so trains no cell"),
        ("rows: {a: {name: A, cell: b}}", "unknown cell in table t, row a: 'b'"),
        ("train: ffp", "unknown data set 'ffp'; did you mean 'ffpp'"),
        ("cells: {qad: {preset: qad-r51}}", "grid t, cell qad: unknown preset 'qad-r51'"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(tmp_path, content, line):
    start = {
        "reproduces": "nothing", "qualities": ["raw"], "split": "test",
        "cells": {"qad": {"preset": "qad-tiny"}}, "columns": {"AUC": {"test": "ffpp:FaceSwap"}},
    }  # fmt: skip
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(start | yaml.safe_load(content)))
    with pytest.raises(DfdetectError) as caught:
        plan_reproduction(load_table(str(path)), tmp_path, tmp_path / "out")
    assert line in caught.value.line
