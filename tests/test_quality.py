"""Names of qualities, the levels they cover, their order."""

import pytest

from dfdetect.errors import DfdetectError
from dfdetect.quality import (
    Quality,
    ordered,
    parse_qualities,
    parse_quality,
    quality_at,
    to_prepare,
)


@pytest.mark.parametrize(
    ("name", "kind", "level", "level_to"),
    [
        ("raw", "raw", 0, 0),
        ("c0", "h264", 0, 0),
        ("c51", "h264", 51, 51),
        ("j1", "jpeg", 1, 1),
        ("j100", "jpeg", 100, 100),
        ("j40-100", "jpeg", 40, 100),
        ("j1-2", "jpeg", 1, 2),
        ("crf0", "crf", 0, 0),
        ("crf51", "crf", 51, 51),
        ("scale0.25", "scale", 0.25, 0.25),
        ("scale0.9999", "scale", 0.9999, 0.9999),
        ("blur2", "blur", 2, 2),
        ("noise0.5", "noise", 0.5, 0.5),
    ],
)
def test_a_name_says_kind_and_levels(name, kind, level, level_to):
    assert parse_quality(name) == Quality(name, kind, level, level_to)


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, "use raw; cNN: H.264") for name in ("", "raw-c23", "J75", "crff23", "75")]
    + [(name, "cNN: H.264 of the video, CRF 0 to 51") for name in ("c52", "c05", "c20-30")]
    + [(name, "crfNN: H.264 of the crop") for name in ("crf52", "crf1.5", "crf20-30")]
    + [(name, "jA-B: at one") for name in ("j0", "j101", "j075", "j40-", "j-40", "j7.5")]
    + [(name, "scaleX: ") for name in ("scale1", "scale0.50", "scale.5", "scale2", "scale0.25-1")]
    + [(name, "blurX: ") for name in ("blur0", "blur", "blur65", "blur-1")]
    + [(name, "noiseX: ") for name in ("noise0", "noise256", "noise08")],
)
def test_another_name_is_refused_with_the_rule_that_it_breaks(name, rule):
    with pytest.raises(DfdetectError, match="unknown quality") as caught:
        parse_quality(name)
    assert rule in caught.value.hint


@pytest.mark.parametrize("name", ["j100-40", "j40-40", "j0-50", "j40-101"])
def test_a_bad_range_is_refused_with_its_rule(name):
    with pytest.raises(DfdetectError, match=f"{name}: not a range of JPEG qualities") as caught:
        parse_quality(name)
    assert caught.value.hint.startswith("jA-B needs A below B, both from 1 to 100")


def test_a_range_is_taken_only_where_pictures_are_made_one_by_one():
    assert [q.name for q in parse_qualities("raw, j40-100,raw", made=True)] == ["raw", "j40-100"]
    with pytest.raises(DfdetectError, match="j40-100: a stored quality needs one level") as caught:
        parse_qualities("raw,j40-100")
    assert "prepare raw" in caught.value.hint


@pytest.mark.parametrize("name", ["crf23", "scale0.5", "blur1.5", "noise8"])
def test_what_is_made_of_crops_is_never_stored(name):
    assert parse_qualities(f"raw,{name}", made=True)[1].name == name
    with pytest.raises(DfdetectError, match=f"{name} is never stored") as caught:
        parse_qualities(f"raw,{name}")
    assert f"prepare raw, from which train and eval make {name}" in caught.value.hint
    assert ("c23 is H.264 of the whole video" in caught.value.hint) == (name == "crf23")


def test_a_quality_covers_what_it_can_draw():
    name = parse_quality
    assert name("j40-100").covers(name("j75")) and name("j40-100").covers(name("j50-60"))
    assert name("c23").covers(name("c23")) and name("raw").covers(name("raw"))
    assert not name("j40-100").covers(name("j39")) and not name("j75").covers(name("j40-100"))
    assert not name("j10-60").covers(name("c23")) and not name("raw").covers(name("c0"))
    assert not name("c23").covers(name("crf23")) and name("blur1.5").covers(name("blur1.5"))


def test_qualities_are_listed_from_best_to_worst():
    names = ["j50", "c40", "j40-100", "raw", "c23", "j90"]
    assert ordered(names) == ["raw", "c23", "c40", "j90", "j50", "j40-100"]
    names = ["noise8", "blur2", "scale0.25", "crf40", "blur0.5", "scale0.5", "crf8", "j50", "c40"]
    assert ordered(names) == ["c40", "crf8", "crf40", "j50", "scale0.5", "scale0.25", "blur0.5",
                              "blur2", "noise8"]  # fmt: skip


def test_all_but_h264_of_videos_is_made_of_raw():
    assert to_prepare(["j75", "c23", "j40-100", "raw"]) == "raw,c23"
    assert to_prepare(["crf30", "blur2"]) == "raw"


def test_a_kind_at_a_level_has_the_level_s_only_name():
    assert quality_at("scale", 0.5).name == "scale0.5" and quality_at("jpeg", 60).name == "j60"
    assert quality_at("blur", 2.0).name == "blur2" and quality_at("crf", 0).name == "crf0"
    assert {quality_at("scale", 1), quality_at("blur", 0), quality_at("noise", 0)} == {
        parse_quality("raw")
    }
