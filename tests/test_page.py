"""The page of a scan: words before scores, nothing hostile gets through, readable at 360 px."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_clip
from rich.console import Console

from dfdetect.errors import DfdetectError
from dfdetect.faces import Face
from dfdetect.reports import page as page_module
from dfdetect.reports.page import Page
from dfdetect.reports.table import verdict_panel
from dfdetect.reports.timeline import peaks, sparkline, thinned, unbroken
from dfdetect.results import FrameScore, MediaFacts, TrackScore, Verdict
from dfdetect.scoring import ScoredFace, ScoredInput

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
USED = [(10 * i, 0.4 * i) for i in range(8)]
HOSTILE = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "'onload='alert(1)",
    "</title></style></svg><iframe src=//evil>", "javascript:alert(1)", "{{ 7 * 7 }}{% endif %}",
    "&lt;b&gt;", "]]><!--", "\u202egpj.exe\u2066", "a\nb\x1b[31mred\x00", "\udcff",
    "\u0645\u0631\u062d\u0628\u0627", "x" * 300,
)  # fmt: skip


def verdict_of(name="clip.mp4", scores=(0.2, 0.9, 0.4), call="likely-fake", **more) -> Verdict:
    """One face in the first frames used, one frame for each of `scores`."""
    frames = [
        FrameScore(index, time_s, [10.0, 20, 110, 140], score)
        for (index, time_s), score in zip(USED, scores, strict=False)
    ]
    media = MediaFacts(
        n_bytes=1234, container="mov", codec="h264", pix_fmt="yuv420p", width=320, height=240,
        rotation=0, mirrored=False, frame_rate=25.0, duration_s=3.2, bits_per_pixel=0.1,
        n_frames=80, n_decoded=60, n_announced=80, frames_used=USED, n_faces=len(frames),
        limits_hit=[],
    )  # fmt: skip
    score = float(np.mean(scores)) if scores else None
    verdict = Verdict(
        input=name, sha256="ab" * 32, call=call, score=score, threshold=0.5,
        tracks=[TrackScore(0, score, frames, call)] if scores else [],
        model={"name": "tiny", "sha256": "cd" * 32, "band": [0.3, 0.6], "basis": "at most 10 %"},
        media=media, tool={"name": "dfdetect"}, settings={"crop": {"min_face_px": 40}},
        settings_sha256="ef" * 32, run={"command": "scan"},
    )  # fmt: skip
    return replace(verdict, **more)


def scored_of(verdict: Verdict, calibration=None) -> ScoredInput:
    rng = np.random.default_rng(0)
    face = Face(np.array([10.0, 20, 110, 140]), np.zeros((5, 2)), 1.0)
    faces = [
        ScoredFace(t.track, face, rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), frame)
        for t in verdict.tracks
        for frame in t.frames
    ]
    return ScoredInput(verdict.sha256, [], faces, len(USED), False, [], calibration)


def brightness(crops):
    return [crop.mean(-1) / 255 for crop in crops]


def page_of(*verdicts: Verdict, maps=brightness) -> str:
    page = Page(maps)
    for verdict in verdicts:
        page.add(verdict, scored_of(verdict))
    return page.html()


class Elements(HTMLParser):
    """Every element with its attributes and the text, in order. Of pictures no more than that they
    are data; of drawings not what is drawn."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        kept = {k: v[:16] if k == "src" else v for k, v in attributes if k not in ("d", "style")}
        self.elements.append((tag, sorted(kept.items())))

    def handle_data(self, data):
        self.text += data


def words(content: str) -> str:
    body = content.split("</head>")[1]
    return " ".join(Elements(body).text.split())


# --- hostile input -----------------------------------------------------------------------------


def everywhere(name: str) -> str:
    """A page where whatever a stranger may say is `name`."""
    verdict = verdict_of(
        name, warnings=[name], reasons=[name], experimental=[name], run={"command": name},
        model={"name": name, "sha256": name, "band": None, "basis": name},
    )  # fmt: skip
    verdict = replace(verdict, media=replace(verdict.media, codec=name, container=name))
    page = Page(brightness)
    page.add(verdict, scored_of(verdict))
    page.add_error(Path(name.replace("\0", "")), DfdetectError(name, name))
    page.add(replace(verdict, tracks=[], score=None, call="no-face"))
    return page.html()


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_adds_neither_element_nor_attribute(name):
    assert Elements(everywhere(name)).elements == Elements(everywhere("plain")).elements


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_alone_in_its_page_stays_text_in_the_title_too(name):
    plain, hostile = (Elements(page_of(verdict_of(n))) for n in ("plain", name))
    assert hostile.elements == plain.elements


def test_control_and_bidirectional_characters_are_shown_as_escapes():
    content = everywhere("\u202egpj\x1b[31m\n\x7f\u2066\udcff")
    assert r"\u202egpj\x1b[31m\n\x7f\u2066\udcff" in words(content)
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", content
    )


def test_the_page_allows_no_network_and_no_script():
    content = page_of(*(verdict_of(f"{i}.mp4") for i in range(3)))
    found = Elements(content).elements
    assert ("meta", [("content", POLICY), ("http-equiv", "Content-Security-Policy")]) in found
    assert not {tag for tag, _ in found} & {"script", "link", "iframe", "object", "form", "base"}
    for _, attributes in found:
        for key, value in attributes:
            assert not key.startswith("on")
            if key in ("src", "href"):
                assert re.fullmatch(r"data:image/jpeg.*|#input-\d+", value)
    assert "url(" not in content and "@import" not in content


# --- what it says ------------------------------------------------------------------------------


def test_an_experimental_model_is_named_first_then_the_verdict_then_the_score():
    text = words(page_of(verdict_of(experimental=["few people", "one data set"])))
    order = [
        text.index("Experimental model"), text.index("few people; one data set"),
        text.index("Likely fake"), text.index("Score 0.500"),
    ]  # fmt: skip
    assert order == sorted(order)
    assert "Experimental" not in words(page_of(verdict_of(experimental=[])))


def test_no_call_comes_with_its_reason_and_no_face_with_its():
    text = words(page_of(verdict_of(call="inconclusive", reasons=["too few videos"])))
    assert "Inconclusive Score" in text and "Reason: too few videos." in text
    verdict = verdict_of(scores=(), call="no-face", reasons=["no face was found"])
    text = words(page_of(verdict))
    assert "No face Nothing was judged. Reason: no face was found." in text
    assert "Faces over time" not in text and "Score" not in text.split("What was examined")[0]


def test_a_score_is_said_to_be_a_probability_only_after_calibration():
    assert "is no probability" in words(page_of(verdict_of()))
    calibrated = words(page_of(verdict_of(score_meaning="P(fake) at prior 0.5")))
    assert "is no probability" not in calibrated and "as the prior says" in calibrated


def test_it_tells_what_was_examined_and_what_was_not():
    verdict = verdict_of(warnings=["small face: 30 px wide", "inconclusive: said elsewhere"])
    verdict = replace(verdict, media=replace(verdict.media, limits_hit=["--max-frames"]))
    text = words(page_of(verdict))
    assert "8 of 80 frames, spread evenly from 0.00 to 2.80 s" in text
    assert "The other 72 frames, and damage in them." in text
    assert "frames decoded 60: those looked at" in text
    assert "Faces narrower than about 40 px" in text
    assert "limits that were reached: --max-frames." in text and "No limit" not in text
    assert "small face: 30 px wide" in text and "said elsewhere" not in text


def test_the_chain_of_custody_is_on_the_page():
    text = words(page_of(verdict_of()))
    for told in ("ab" * 32, "cd" * 32, "ef" * 32, "1,234 bytes", "mov, h264", "command scan"):
        assert told in text


def test_pictures_and_heat_maps_stand_at_the_peaks():
    content = page_of(verdict_of(scores=(0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.8, 0.1)))
    assert "frame 10, score 0.900" in words(content) and "frame 60, score 0.800" in words(content)
    assert content.count('alt="heat map over face 0') == content.count('alt="what the network') > 0


def test_a_model_that_gives_no_heat_maps_is_said_to():
    def none(crops):
        raise DfdetectError("its last map is no grid")

    content = page_of(verdict_of(), maps=none)
    assert "No heat maps: its last map is no grid." in words(content)
    assert 'alt="heat map' not in content and 'alt="what the network' in content


def test_a_verdict_of_an_earlier_run_has_its_line_and_no_picture():
    page = Page(brightness)
    page.add(verdict_of())
    assert "<img" not in page.html() and 'class="curve"' in page.html()


def curve(content: str) -> str:
    return re.search('class="curve" d="(.*?)"', content)[1]


def test_the_line_breaks_where_the_face_was_lost():
    verdict = verdict_of(scores=(0.5,) * 8)
    (track,) = verdict.tracks
    whole, broken = verdict, replace(
        verdict, tracks=[replace(track, frames=track.frames[:3] + track.frames[5:])]
    )  # fmt: skip
    assert curve(page_of(whole)).count("M") == 1 and curve(page_of(broken)).count("M") == 2
    assert [len(p) for p in unbroken(broken.tracks[0].frames, [i for i, _ in USED])] == [3, 3]


def test_the_band_of_a_calibrated_model_is_drawn_where_means_of_frames_reach_it():
    """P(fake) = mean squared: a band of 0.25 to 0.81 lies at means of 0.5 to 0.9, which are 10 and
    50 below the top of the drawing."""
    calibration = SimpleNamespace(slope=1.0, probability=np.square)
    verdict = verdict_of(score_meaning="P(fake) at prior 0.5")
    verdict = replace(verdict, model=verdict.model | {"band": [0.25, 0.81]})
    page = Page()
    page.add(verdict, scored_of(verdict, calibration))
    assert '<rect class="band" x="0" y="10" width="1000" height="40"' in page.html()
    page = Page()
    page.add(verdict, None)
    assert "<rect" not in page.html()


# --- a batch -----------------------------------------------------------------------------------


def test_a_batch_begins_with_a_table_from_the_most_suspicious_to_what_could_not_be_read():
    page = Page()
    page.add_error(Path("broken.mp4"), DfdetectError("broken.mp4: cut", "get it again"))
    page.add(verdict_of("landscape.mp4", (), "no-face"))
    page.add(verdict_of("real.mp4", (0.1,), "likely-real"))
    page.add(verdict_of("fake.mp4", (0.9,), "likely-fake"))
    text = words(page.html())
    assert "1 likely fake, 1 likely real, 1 without a face, 1 not readable" in text
    table = text.split("those with a number.")[1]
    names = ("fake.mp4", "real.mp4", "landscape.mp4", "broken.mp4 cut; get it again")
    assert sorted(names, key=table.index) == list(names)


def test_of_many_inputs_the_most_suspicious_are_detailed_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(page_module, "MOST_DETAILED", 3)
    page = Page()
    scores = (0.3, 0.9, 0.1, 0.8, 0.5, 0.7)
    for score in scores:
        page.add(verdict_of(f"{score}.mp4", (score,)))
    content = page.html()
    headings = re.findall(r"<h2 class=\"name\">(\d)\. <bdi>(.*?)</bdi>", content)
    assert headings == [("1", "0.9.mp4"), ("2", "0.8.mp4"), ("3", "0.7.mp4")]
    assert "Details follow of the 3 most suspicious of 6 inputs" in words(content)
    assert content.count("<tr>") == 1 + len(scores) and content.count('href="#input-') == 3


# --- bars and peaks ----------------------------------------------------------------------------


def test_peaks_are_high_apart_and_in_order():
    assert peaks([0, 0, 9, 8, 0, 0, 0, 5], 2) == [2, 7]
    assert peaks([1, 2, 3], 4) == [1, 2] and peaks([5, 5], 1) == [0]


def test_a_thinned_line_keeps_its_peaks():
    scores = [0.0] * 99 + [1.0] + [0.0] * 50
    assert len(thinned(scores, 40)) == 40 and max(thinned(scores, 40)) == 1
    assert thinned([0.1, 0.2], 40) == [0.1, 0.2]
    assert sparkline([0, 0.5, 1]) == "▁▅█"


@pytest.mark.parametrize(("encoding", "bars"), [("utf-8", "▂█▄"), ("ascii", ".#-")])
def test_the_panel_draws_with_what_the_terminal_has(encoding, bars):
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    Console(file=file, width=100).print(verdict_panel(verdict_of(scores=(0.2, 0.95, 0.4))))
    file.flush()
    assert bars in file.buffer.getvalue().decode(encoding)


# --- in a browser ------------------------------------------------------------------------------

MEASURE = """<!doctype html><title>measuring</title>
<iframe id="page" src="{}" style="width:360px;height:2000px;border:0"></iframe>
<script>onload = () => {{
  const inner = document.getElementById("page").contentDocument;
  const widest = Math.max(...[...inner.querySelectorAll("*")]
    .map(e => e.getBoundingClientRect().right));
  document.title = "measured " + inner.documentElement.scrollWidth + " " + Math.round(widest)
    + " " + getComputedStyle(inner.body).fontFamily;
}}</script>"""


def in_browser(folder, page):
    """What Chromium measures of `page` and logs."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    (folder / "report.html").write_text(page)
    (folder / "measure.html").write_text(MEASURE.format("report.html"))
    flags = (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files",
        "--hide-scrollbars", "--enable-logging=stderr", "--dump-dom",
    )  # fmt: skip
    shown = subprocess.run(
        [chromium, *flags, (folder / "measure.html").as_uri()],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    found = re.search(r"measured (\d+) (\d+) ([^<]+)", shown.stdout)
    assert found, shown.stderr[-2000:]
    return found, shown.stderr


def test_a_browser_shows_it_on_360_pixels_without_scrolling_sideways(tmp_path):
    many = [verdict_of("x" * 250 + ".mp4"), verdict_of(HOSTILE[1], (0.1, 0.2)), verdict_of()]
    found, log = in_browser(tmp_path, page_of(*many))
    assert int(found[1]) == 360 and int(found[2]) <= 360
    assert "system-ui" in found[3] and "Content Security Policy" not in log


def test_a_browser_would_refuse_what_got_into_a_page_and_say_so(tmp_path):
    inside = '<script>document.body.style.fontFamily = "monospace"</script><img src="http://a/b">'
    found, log = in_browser(tmp_path, page_of(verdict_of()).replace("</body>", inside + "</body>"))
    assert "system-ui" in found[3]
    assert log.count("violates the following Content Security Policy directive") == 2


# --- the command -------------------------------------------------------------------------------


def test_scan_writes_the_page_with_heat_maps_and_again_from_results_without_scanning(
    cli, run, tmp_path
):
    video, results = write_clip(tmp_path / "<b>clip.mp4"), tmp_path / "results.jsonl"
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    arguments = ("scan", video, tmp_path / "broken.mp4", "--model", run, "--frames", "4")
    arguments += ("--device", "cpu", "--workers", "1", "--out", results, "--report")
    pages = []
    for name in ("first.html", "second.html"):
        assert cli(*arguments, tmp_path / name).exit_code == 3
        pages.append((tmp_path / name).read_text())
    for content in pages:
        assert "1 inconclusive, 1 not readable" in words(content)
        assert content.count('<section class="input') == 1 and "<b>" not in content
    assert 'alt="heat map over face 0' in pages[0] and "<img" not in pages[1]
    assert curve(pages[0]) == curve(pages[1])


def test_a_verdict_comes_back_from_its_json():
    verdict = verdict_of(experimental=["few"], reasons=["so"])
    verdict = replace(verdict, media=replace(verdict.media, frames_used=[list(u) for u in USED]))
    assert Verdict.from_json(json.loads(json.dumps(verdict.as_json()))) == verdict
