"""publish: one small file that says what it is, and is checked when it is loaded."""

import pytest

import dfdetect.checkpoint
from dfdetect.checkpoint import load_checkpoint, read_info
from dfdetect.errors import DfdetectError
from dfdetect.publish import publish


@pytest.fixture
def published(run, tmp_path):
    about = tmp_path / "about.md"
    about.write_text("## Licence\n\nFor research.\n")
    return publish(run, about, tmp_path / "given.safetensors")


def test_a_published_file_is_half_as_large_and_gives_nearly_the_same_logits(run, published):
    whole = load_checkpoint(run, "cpu")
    assert published.stat().st_size < 0.7 * whole.path.stat().st_size
    stored = read_info(published).publication.portrait_logit
    assert stored == pytest.approx(
        dfdetect.checkpoint.portrait_logit(whole.detector, "cpu"), abs=0.05
    )
    load_checkpoint(published, "cpu")


def test_a_library_that_computes_otherwise_is_noticed_at_load(published, monkeypatch):
    right = dfdetect.checkpoint.portrait_logit
    monkeypatch.setattr(dfdetect.checkpoint, "portrait_logit", lambda *a: right(*a) + 0.1)
    with pytest.raises(DfdetectError, match="gives the shipped portrait the logit"):
        load_checkpoint(published, "cpu")


def test_the_card_tells_data_standing_and_licence(published, cli):
    card = cli("info", published, "--card").stdout
    assert "**Not calibrated**" in card and "For research." in card and "fingerprint" in card


def test_a_checkpoint_is_not_overwritten_by_its_publication(run, tmp_path):
    about = tmp_path / "about.md"
    about.write_text("x")
    with pytest.raises(DfdetectError, match="is the checkpoint itself"):
        publish(run, about, run / "detector.safetensors")
