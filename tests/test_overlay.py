"""The overlay: boxes where and when faces are, with the sound, whole or not at all."""

import io
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import clip, write_clip
from PIL import Image

from dfdetect.errors import DfdetectError
from dfdetect.files import sha256_of
from dfdetect.reports.overlay import Mark, draw_marks, marks_at, strip, write_overlay
from dfdetect.results import FrameScore, TrackScore, Verdict
from dfdetect.video import open_media

BOX = [100.0, 60, 180, 160]


def verdict_of(path, *tracks, **more) -> Verdict:
    """One face for each of `tracks`, dicts of frame index -> (box, score)."""
    found = [
        TrackScore(i, 0.5, [FrameScore(at, at / 12, box, score) for at, (box, score) in t.items()])
        for i, t in enumerate(tracks)
    ]
    sha256 = sha256_of(path) if path else ""
    return replace(
        Verdict(str(path), sha256, "inconclusive", 0.5, 0.4, found, {"name": "tiny"}), **more
    )


def moved(dx):
    return [BOX[0] + dx, BOX[1], BOX[2] + dx, BOX[3]]


def frames_of(path):
    with open_media(path) as media:
        return [(picture.time_s, picture.rgb()) for picture in media.pictures()]


# --- which boxes, when -------------------------------------------------------------------------


def test_between_two_frames_looked_at_box_and_score_are_interpolated():
    verdict = verdict_of(None, {2: (BOX, 0.2), 6: (moved(40), 0.6)})
    (mark,) = marks_at(verdict, 3)
    assert mark.box.tolist() == moved(10) and mark.score == pytest.approx(0.3)
    assert not mark.looked_at
    assert [marks_at(verdict, i)[0].looked_at for i in (2, 6)] == [True, True]


def test_a_frame_looked_at_stands_for_half_a_step_before_and_after():
    verdict = verdict_of(None, {2: (BOX, 0.2), 6: (moved(40), 0.6)})
    assert [len(marks_at(verdict, i)) for i in (0, 8, 9)] == [1, 1, 0]
    assert marks_at(verdict, 0)[0].box.tolist() == BOX


def test_a_face_that_was_lost_has_no_box_meanwhile():
    other = {i: (moved(90), 0.1) for i in (2, 6, 10, 14)}
    verdict = verdict_of(None, {2: (BOX, 0.2), 14: (BOX, 0.2)}, other)
    assert [[m.track for m in marks_at(verdict, i)] for i in (2, 8, 14)] == [[0, 1], [1], [0, 1]]


def test_a_box_does_not_slide_across_a_cut():
    verdict = verdict_of(None, {2: (BOX, 0.2), 6: (moved(500), 0.6)})
    assert [marks_at(verdict, i)[0].box[0] for i in (3, 5)] == [BOX[0], BOX[0] + 500]


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_boxes_and_labels_are_seen_on_any_ground(ground):
    plain = np.full((240, 320, 3), ground, np.uint8)
    drawn = draw_marks(plain, [Mark(3, np.array(BOX), 0.75, True)])
    edge = drawn[100:104, 94:108].astype(int)  # across the left side of the box
    assert edge.max() - edge.min() > 200
    label = drawn[30:58, 100:170].astype(int)
    assert label.max() - label.min() > 200
    assert (plain == ground).all(), "the picture itself is left alone"


def test_labels_stay_inside_the_picture():
    plain = np.zeros((120, 160, 3), np.uint8)
    for box in ([-30, -30, 20, 20], [140, 100, 200, 200], [0, 0, 160, 120]):
        assert (draw_marks(plain, [Mark(0, np.array(box, float), 1.0, False)]) == 255).any()


def test_the_strip_names_an_experimental_model_and_fits_any_width():
    from PIL import ImageFont

    verdict = verdict_of(None, experimental=["few videos"])
    font = ImageFont.load_default(12)
    wide, narrow = strip(verdict, 640, font), strip(verdict, 96, font)
    assert wide.shape[1] == 640 and narrow.shape[1] == 96
    assert narrow.shape[0] > wide.shape[0] and wide.shape[0] % 2 == narrow.shape[0] % 2 == 0
    assert wide.shape[0] >= strip(replace(verdict, experimental=None), 640, font).shape[0]


# --- files -------------------------------------------------------------------------------------


def test_a_video_keeps_its_frames_and_times_and_gets_boxes_and_a_strip(tmp_path):
    source = write_clip(tmp_path / "clip.mp4")
    verdict = verdict_of(source, {2: (BOX, 0.2), 6: (BOX, 0.6)})
    drawn: list[int] = []
    notes = write_overlay(verdict, tmp_path / "out" / "overlay.mp4", on_frame=drawn.append)
    assert notes == ["the overlay is without sound"]
    assert drawn == sorted(drawn) and drawn[-1] == 12
    before, after = frames_of(source), frames_of(tmp_path / "out" / "overlay.mp4")
    assert [t for t, _ in after] == pytest.approx([t for t, _ in before], abs=1e-4)
    assert after[2][1].shape[0] > 256 and after[2][1].shape[1] == 256
    changes = [
        np.abs(a[:256].astype(int) - b) for (_, a), (_, b) in zip(after, before, strict=True)
    ]
    assert changes[2][90:130, 96:104].mean() > 40 > 6 > changes[2][200:, 200:].mean()
    assert changes[11].mean() < 6, "no face was looked at near it"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["overlay.mp4"]


def write_with_sound(path):
    """A clip of a second at 12 frames a second, and a tone of a second."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=12)
        video.width = video.height = 256
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=44100, layout="mono")
        for image in clip(0):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        tone = np.sin(np.arange(44100) * 0.06).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def sound_of(path):
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)


def test_the_sound_is_the_file_s_own(tmp_path):
    source = write_with_sound(tmp_path / "tone.mp4")
    assert write_overlay(verdict_of(source, {2: (BOX, 0.2)}), tmp_path / "overlay.mp4") == []
    np.testing.assert_array_equal(sound_of(tmp_path / "overlay.mp4"), sound_of(source))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_gives_a_picture(tmp_path, suffix):
    Image.fromarray(clip(0)[0]).save(tmp_path / "photo.png")
    verdict = verdict_of(tmp_path / "photo.png", {0: (BOX, 0.9)})
    assert write_overlay(verdict, tmp_path / f"overlay{suffix}") == []
    drawn = np.asarray(Image.open(tmp_path / f"overlay{suffix}"))
    assert drawn.shape[1] == 256 and drawn[90:130, 100].mean() > 200


def refused(verdict, out, words):
    out.write_bytes(b"of an earlier run")
    with pytest.raises(DfdetectError, match=words):
        write_overlay(verdict, out)
    assert out.read_bytes() == b"of an earlier run"
    assert not list(out.parent.glob(".tmp-*"))


def test_what_cannot_be_drawn_leaves_the_earlier_file(tmp_path):
    source = write_clip(tmp_path / "clip.mp4", n_frames=3)
    verdict = verdict_of(source, {1: (BOX, 0.2)})
    refused(verdict, tmp_path / "overlay.avi", "an overlay is an MP4 of a video")
    refused(verdict, tmp_path / "overlay.png", "clip.mp4: a video")
    refused(replace(verdict, sha256="0" * 64), tmp_path / "o.mp4", "has changed since")
    refused(replace(verdict, input=str(tmp_path / "none.mp4")), tmp_path / "o.mp4", "no such file")
    buffer = io.BytesIO()
    Image.fromarray(clip(0)[0]).save(buffer, "PNG")
    source.write_bytes(buffer.getvalue())
    refused(verdict_of(source, {0: (BOX, 0.2)}), tmp_path / "o.mp4", "clip.mp4: a picture")


def test_scan_draws_one_input_and_refuses_several_before_it_begins(cli, run, tmp_path):
    source = write_clip(tmp_path / "clip.mp4", n_frames=4)
    arguments = ("--model", run, "--frames", "2", "--device", "cpu", "--overlay")
    drawn = cli("scan", source, *arguments, tmp_path / "o.mp4")
    assert drawn.exit_code == 0 and "without sound" in drawn.stderr
    assert len(frames_of(tmp_path / "o.mp4")) == 4
    for inputs, out, words in (
        ((source, source), "two.mp4", "--overlay is of one input, these are 2"),
        ((source,), "o.gif", "an overlay is an MP4 of a video"),
    ):
        refused = cli("scan", *inputs, *arguments, tmp_path / out)
        assert refused.exit_code == 2 and words in refused.stderr and not refused.stdout
