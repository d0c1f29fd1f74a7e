"""Grids: the cells they name, and mistakes in one named in one line."""

import pytest
import yaml
from conftest import ROOT

from dfdetect.errors import DfdetectError
from dfdetect.grids import Grid, as_yaml, expand, list_grids, load_grid
from dfdetect.methods import method_options

TINY = {"name": "g", "reproduces": "nothing", "preset": "qad-tiny"}


def grid(**content):
    return Grid.model_validate(TINY | content)


def test_cells_axes_and_seeds_are_all_combined():
    cells = expand(
        grid(
            cells={"a": {}, "b": {"preset": "bce-tiny", "set": {"method": {"name": "bce"}}}},
            axes={"optimizer.lr": [0.1, 0.01], "image_size": [64]},
            seeds=[3, 4],
        )
    )
    assert [cell.name for cell in cells] == [
        f"{name},lr={lr},image_size=64,seed={seed}"
        for seed in (3, 4)  # a sweep that is stopped has compared all cells by some seeds
        for name in "ab"
        for lr in (0.1, 0.01)
    ]
    last = cells[-1]
    assert (last.group, last.seed, last.preset) == ("b,lr=0.01,image_size=64", 4, "bce-tiny")
    assert (last.recipe.optimizer.lr, last.recipe.image_size, last.recipe.seed) == (0.01, 64, 4)
    assert last.recipe.method.name == "bce"


def test_an_axis_is_set_over_its_cell_and_the_cell_over_the_grid():
    common, own = {"epochs": 3, "seed": 1, "batch_size": 4}, {"epochs": 5, "batch_size": 6}
    (cell,) = expand(grid(set=common, cells={"a": {"set": own}}, axes={"batch_size": [8]}))
    assert (cell.recipe.seed, cell.recipe.epochs, cell.recipe.batch_size) == (1, 5, 8)


def test_options_of_one_last_name_keep_their_whole_names():
    axes = {"optimizer.name": ["sgd"], "schedule.name": ["constant"]}
    (cell,) = expand(grid(axes=axes))
    assert cell.name == "optimizer.name=sgd,schedule.name=constant"


def test_lists_make_names_that_are_safe_for_folders():
    (cell,) = expand(grid(axes={"qualities": [["raw", "c40"]]}))
    assert cell.name == "qualities=raw+c40"
    assert cell.recipe.qualities == ("raw", "c40")


@pytest.mark.parametrize("value", [0.004, 2e-5, "1e-3", "raw,c40", None, True, "no", {"name": "x"}])
def test_values_pass_through_the_command_line_unchanged(value):
    assert yaml.safe_load(as_yaml(value)) == value


def test_weights_given_for_the_sweep_replace_those_of_every_preset():
    cells = expand(grid(cells={"a": {"preset": "qad-r50"}, "b": {"preset": "bce-r50"}}), "none")
    assert [cell.recipe.backbone.weights for cell in cells] == ["none", "none"]


@pytest.mark.parametrize("name", sorted(list_grids()))
def test_a_grid_that_ships_fits_its_presets_and_their_methods(name):
    shipped = load_grid(name)
    assert shipped.name == name and len(shipped.reproduces) > 20
    for cell in expand(shipped):
        method_options(cell.recipe)


def test_every_grid_that_ships_is_named_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in list_grids() if f"`{name}`" not in readme] == []


def test_the_grid_of_figure_3_has_the_paper_s_values():
    found = {
        (c.axes["method.alpha"], c.axes["method.gamma"]) for c in expand(load_grid("qad-fig3"))
    }
    alphas, gammas = (0, 0.002, 0.004, 0.008), (0, 0.001, 0.002, 0.003, 0.004)
    assert found == {(alpha, gamma) for alpha in alphas for gamma in gammas}


def test_cells_that_are_compared_part_by_part_train_equally_long():
    recipes = [cell.recipe for cell in expand(load_grid("qad-parts-small"))]
    assert len(recipes) == 15
    assert len({(r.epochs, r.batch_size, r.optimizer.lr, r.image_size) for r in recipes}) == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("axis: {epochs: [1]}", "unknown key in grid g: 'axis'; did you mean 'axes'?"),
        ("cells: {a: {sett: {}}}", "unknown key in grid g: 'sett'; did you mean 'set'?"),
        ("axes: {epochs: 3}", "grid g: axes.epochs: input should be a valid list (got 3); "),
        ("axes: {epochs: []}", "grid g: axes: value error, epochs has no values"),
        ("split: train", "grid g: split: input should be 'val' or 'test' (got 'train'); "),
        ("axes: {epoch: [1]}", "grid g, cell epoch=1: unknown option in preset qad-tiny with "),
        ("axes: {epochs: [0]}", "grid g, cell epochs=0: preset qad-tiny with --set epochs=0: "),
        ("cells: {a: {preset: qad-tinny}}", "grid g, cell a: unknown preset 'qad-tinny'; did "),
        ("seeds: [1, 1]", "grid g: two cells are called 'qad-tiny,seed=1'; "),
        ("cells: {../a: {}}", "grid g: '../a' cannot name a cell; "),
        ("cells: {.hidden: {}}", "grid g: '.hidden' cannot name a cell; "),
        ("qualities: raw,c99", "unknown quality 'c99'"),
        ("preset: null", "grid g: cell of the axes has no preset; "),
        ("- 1", "g.yaml: not a grid"),
        ("a: [", "g.yaml: not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_grid_is_one_line_with_the_nearest_name(tmp_path, content, line):
    path = tmp_path / "g.yaml"
    head = "" if content in ("- 1", "a: [") else "reproduces: nothing\npreset: qad-tiny\n"
    head = head.replace("preset: qad-tiny\n", "") if content.startswith("preset") else head
    path.write_text(head + content)
    with pytest.raises(DfdetectError) as caught:
        expand(load_grid(str(path)))
    assert caught.value.line.replace(f"{tmp_path}/", "").startswith(line)
    assert "\n" not in caught.value.line


def test_an_unknown_grid_lists_those_that_ship():
    with pytest.raises(DfdetectError, match="unknown grid 'qad-fig2'") as caught:
        load_grid("qad-fig2")
    assert "did you mean 'qad-fig" in caught.value.hint and "qad-table5" in caught.value.hint


def test_an_axis_that_would_be_replaced_is_refused():
    """Else a cell would be called by a value that it was not trained with."""
    with pytest.raises(DfdetectError, match="grid g: seed is an axis, and its values would be"):
        expand(grid(axes={"seed": [1, 2]}, seeds=[0]))
    starts = grid(axes={"backbone.weights": ["none", "pretrained"]})
    assert len(expand(starts)) == 2
    with pytest.raises(DfdetectError, match="weights is an axis, and its values"):
        expand(starts, weights="none")


def test_qualities_of_a_grid_are_names():
    assert grid(qualities=["raw", "c40"]).qualities == "raw,c40"
    assert grid().qualities is None
    for wrong in (5, [1, 2]):
        with pytest.raises(ValueError, match="names as raw,c23,c40 are needed"):
            grid(qualities=wrong)
