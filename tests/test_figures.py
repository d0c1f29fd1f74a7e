"""Figures: what a reader sees is inside the page, says what the data say, whatever the names."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from dfdetect.cells import was_seen
from dfdetect.domains import confusions
from dfdetect.embedding import Plane
from dfdetect.reports import figures
from dfdetect.results import Prediction

HOSTILE = ["$x_1$ and $\\frac{", "_hidden", "a\nb\x1b[31m", "long " * 60, "long " * 60 + "2",
           "\u202egnp.exe", "方法", "100 % \\textbf{", " "]  # fmt: skip


def predictions(told):
    """One crop for each (manipulation, quality, predicted domain)."""
    return [
        Prediction(f"v{i}/0/0", f"v{i}", 0, "d", m, quality, "test", int(m != "real"), 0.0, 0.5, d)
        for i, (m, quality, d) in enumerate(told)
    ]


def found(told, domains, trained):
    return confusions(predictions(told), "d", "test", domains, trained)


def columns_of(manipulations, qualities=("raw", "c40"), trained=None, data=("d",)):
    rows = [(d, m, q) for d in data for m in manipulations for q in qualities for _ in range(3)]
    columns = {key: np.array([r[i] for r in rows]) for i, key in
               enumerate(("data", "manipulation", "quality"))}  # fmt: skip
    columns["video_id"] = np.array([f"v{i}" for i in range(len(rows))])
    columns["label"] = np.array([int(m != "real") for _, m, _ in rows])
    seen = [m == "real" or was_seen(m, trained) for _, m, _ in rows]
    columns["seen_in_training"] = np.array([-1 if s is None else s for s in seen], np.int8)
    return columns


def plane(columns, *maps):
    rng = np.random.default_rng(0)
    places = {name: rng.normal(size=(len(columns["label"]), 2)) for name in maps}
    return Plane(places, 30.0, 0)


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that were drawn, as they were when they were saved."""
    kept = []
    png = figures.png

    def keep(figure):
        content = png(figure)
        for text in figure.findobj(Text):
            box = (
                text.get_window_extent() if text.get_text().strip() and text.get_visible() else None
            )
            kept.append((text.get_text(), box, figure.bbox))
        return content

    monkeypatch.setattr(figures, "png", keep)
    return kept


def words(drawn):
    return [text for text, _, _ in drawn]


def outside(drawn):
    return [
        text
        for text, box, page in drawn
        if box and (box.x0 < 0 or box.y0 < 0 or box.x1 > page.x1 or box.y1 > page.y1)
    ]


def test_a_row_s_percentages_stand_in_its_cells(drawn):
    told = [("real", "raw", "real")] * 3 + [("DF", "raw", "DF")] * 1 + [("DF", "raw", "real")] * 3
    figures.draw_confusions(found(told, ["real", "DF"], ["DF"]))
    cells = [w for w in words(drawn) if w.isdecimal()]
    assert cells == ["100", "0", "75", "25"]
    assert "DF  n 4" in words(drawn)
    # (1/4) over DF alone, (1 + 1/4) / 2 with real
    caption = " ".join(words(drawn))
    assert (
        "0.25 over 1 trained manipulations (n 4 crops), 0.62 with real as one more (n 7)" in caption
    )
    assert "never trained on" not in caption


def test_a_manipulation_never_trained_on_is_marked_and_explained(drawn):
    told = [("real", "raw", "real"), ("DF", "raw", "DF"), ("FS", "raw", "DF")]
    figures.draw_confusions(found(told, ["real", "DF"], ["DF"]))
    assert "FS *  n 1" in words(drawn) and "DF  n 1" in words(drawn)
    assert "* never trained on" in " ".join(words(drawn))
    drawn.clear()
    columns = columns_of(["real", "DF", "FS"], trained=["DF"])
    figures.draw_plane(columns, plane(columns, "whole"), "test")
    assert {"real (6 of 6 videos)", "DF (6 of 6 videos)", "FS * (6 of 6 videos)"} <= set(
        words(drawn)
    )
    assert "* never trained on" in " ".join(words(drawn))


@pytest.mark.parametrize("n_folders", [1, 2])
def test_hostile_names_stay_on_the_page_and_are_no_mathtext(drawn, n_folders):
    told = [
        (m, q, d) for m in ["real", *HOSTILE] for q in ("raw", "c40") for d in ("real", *HOSTILE)
    ]
    one = found(told, ["real", *HOSTILE], HOSTILE[:4])
    pair = confusions(predictions(told), "$e$ " * 40, "test", ["real", *HOSTILE], HOSTILE)
    figures.draw_confusions([*one, *(pair if n_folders == 2 else ())])
    data = ("d", "$e$ " * 40)[:n_folders]
    columns = columns_of(["real", *HOSTILE], trained=HOSTILE[:4], data=data)
    figures.draw_plane(columns, plane(columns, "whole", "deepfake", "domain"), "test")
    assert outside(drawn) == []
    assert any("$x_1$ and $\\frac{" in w for w in words(drawn))
    assert any("_hidden" in w and w.endswith("(6 of 6 videos)") for w in words(drawn))


@pytest.mark.parametrize("n", [1, 20])  # more than there are shapes
def test_few_and_many_manipulations_stay_on_the_page(drawn, n):
    names = [f"technique number {i}" for i in range(n)]
    told = [(m, "raw", d) for m in ["real", *names] for d in ["real", *names]]
    figures.draw_confusions(found(told, ["real", *names], names))
    columns = columns_of(["real", *names], ("raw",))
    figures.draw_plane(columns, plane(columns, "whole"), "test")
    assert outside(drawn) == []


def test_groups_that_training_found_have_columns_and_no_diagonal(drawn):
    told = [("real", "raw", "real"), ("DF", "raw", "group 2")]
    figures.draw_confusions(found(told, ["real", "group 1", "group 2"], ["DF"]))
    assert {"group 1", "group 2"} <= set(words(drawn))
    assert any(w.startswith("No diagonal: no manipulation here") for w in words(drawn))


def test_short_names_are_distinct_and_printable():
    shown = figures.short_names(HOSTILE, 12)
    assert len(set(shown)) == len(HOSTILE) and max(map(len, shown)) <= 12
    assert all(name.isprintable() for name in shown)
    assert figures.short_names(["a" * 12, "DF"], 12) == ["a" * 12, "DF"]
    assert figures.short_names(["a" * 12, "a" * 13], 11) == ["a" * 10 + "…", "a" * 8 + "… 2"]


def test_a_figure_depends_on_its_data_alone_and_is_white(monkeypatch):
    columns = columns_of(["real", "DF"])
    first = figures.draw_plane(columns, plane(columns, "whole"), "test")
    for key, value in {"text.usetex": True, "figure.facecolor": "black", "font.size": 40}.items():
        monkeypatch.setitem(matplotlib.rcParams, key, value)
    assert figures.draw_plane(columns, plane(columns, "whole"), "test") == first
    assert matplotlib.rcParams["font.size"] == 40
    picture = Image.open(io.BytesIO(first)).convert("RGB")
    assert picture.getpixel((0, 0)) == (255, 255, 255)
