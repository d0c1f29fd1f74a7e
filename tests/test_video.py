"""Decoding and re-encoding on real codecs."""

import hashlib
from collections.abc import Iterable
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from conftest import clip, write_clip
from PIL import Image

from dfdetect.errors import DfdetectError
from dfdetect.video import (
    Frame,
    H264Loop,
    Limits,
    Picture,
    open_media,
    probe,
    sample,
    sample_indices,
    write_video,
)


def frames_of(pictures: Iterable[Picture]) -> list[Frame]:
    return [picture.frame() for picture in pictures]


def test_samples_spread_over_the_whole_video():
    assert sample_indices(100, 4) == [12, 37, 62, 87]
    assert sample_indices(3, 8) == [0, 1, 2]
    assert sample_indices(1, 1) == [0]


def test_sampled_frames_are_the_frames_asked_for(tmp_path):
    frames = [np.full((64, 64, 3), 10 * i, np.uint8) for i in range(20)]
    (tmp_path / "ramp.mp4").write_bytes(write_video(frames, 25, crf=1))
    with open_media(tmp_path / "ramp.mp4") as media:
        found = sample(media, 5, frames_of)
    assert [f.index for f in found] == [2, 6, 10, 14, 18]
    assert [f.time_s for f in found] == pytest.approx([i / 25 for i in (2, 6, 10, 14, 18)])
    for frame in found:
        assert abs(frame.image.mean() - 10 * frame.index) < 2


def test_a_cut_file_gives_its_intact_frames_and_a_warning(tmp_path):
    path = tmp_path / "whole.mp4"
    _faststart(path, clip(0, 24))
    content = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 2 // 3])
    with open_media(tmp_path / "cut.mp4") as media:
        frames = sample(media, 6, frames_of)
        assert len(frames) == 6
        assert frames[-1].index < 23
        assert any("of 24 announced frames decode" in warning for warning in media.warnings)


def test_the_display_matrix_turns_the_picture_upright(tmp_path):
    """Stored on its side with a matrix that says so; compared with the picture that was meant."""
    meant = clip(0, 1)[0]
    for angle, stored in (
        (90, np.rot90(meant)),
        (180, np.rot90(meant, 2)),
        (270, np.rot90(meant, 3)),
    ):
        path = tmp_path / f"{angle}.mp4"
        path.write_bytes(write_video([np.ascontiguousarray(stored)] * 3, 25, crf=4))
        _set_rotation(path, angle)
        with open_media(path) as media:
            shown = sample(media, 1, frames_of)[0].image
        assert np.abs(shown.astype(int) - meant).mean() < 4, angle


def test_exif_orientation_is_applied(tmp_path):
    meant = clip(0, 1)[0][:200]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(meant)))
    stored.save(tmp_path / "turned.png", exif=exif)
    with open_media(tmp_path / "turned.png") as media:
        assert np.array_equal(sample(media, 1, frames_of)[0].image, meant)


def test_16_bit_greys_are_scaled_and_not_clipped(tmp_path):
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    with open_media(tmp_path / "grey.png") as media:
        image = sample(media, 1, frames_of)[0].image
    assert np.array_equal(image[..., 0].reshape(-1), np.arange(256))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"this is not a video\n" * 50, "not a video or picture"),
        (b"#EXTM3U\n#EXTINF:1,\nsibling.ts\n", "not a video or picture"),
        (b"ffconcat version 1.0\nfile sibling.ts\n", "not a video or picture"),
        (b"\xff\xd8\xff\xe0 not really a JPEG", "damaged or cut|not a readable picture"),
    ],
)
def test_what_is_no_media_is_refused_with_its_name_and_cause(tmp_path, content, cause):
    write_clip(tmp_path / "sibling.ts")
    path = tmp_path / "strange.mp4"
    path.write_bytes(content)
    with pytest.raises(DfdetectError, match=rf"strange\.mp4.*({cause})"):
        probe(path)


def test_folders_devices_and_absent_files_are_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "fifo.mp4")  # a naive open would wait for ever
    for path, cause in (
        (tmp_path, "a folder"), (tmp_path / "fifo.mp4", "not a regular file"),
        (tmp_path / "absent.mp4", "no such file"), ("/dev/zero", "not a regular file"),
    ):  # fmt: skip
        with pytest.raises(DfdetectError, match=cause):
            probe(path)


def test_a_picture_beyond_the_pixel_limit_is_refused_before_it_is_decoded(tmp_path):
    limits = Limits(max_pixels=256 * 256 - 1)
    write_clip(tmp_path / "big.mp4", n_frames=2)
    Image.new("RGB", (256, 256)).save(tmp_path / "big.png")
    for name in ("big.mp4", "big.png"):
        with (
            pytest.raises(DfdetectError, match="megapixels"),
            open_media(tmp_path / name, limits),
        ):
            pass


def test_a_longer_video_is_decoded_up_to_the_frame_limit_and_says_so(tmp_path):
    write_clip(tmp_path / "long.mp4", n_frames=9)
    with open_media(tmp_path / "long.mp4", Limits(max_frames=5)) as media:
        assert media.count_frames() == len(list(media.pictures())) == 5
        assert media.warnings == ["only the first 5 frames were decoded, the limit"]
    with open_media(tmp_path / "long.mp4", Limits(max_frames=9)) as media:
        assert media.count_frames() == len(list(media.pictures())) == 9
        assert media.warnings == []


def test_a_file_beyond_the_size_limit_is_refused(tmp_path):
    write_clip(tmp_path / "big.mp4", n_frames=2)
    larger = pytest.raises(DfdetectError, match=r"big\.mp4: larger than")
    with larger, open_media(tmp_path / "big.mp4", Limits(max_bytes=1000)):
        pass


def test_bytes_of_an_archive_s_member_open_like_a_file(tmp_path):
    write_clip(tmp_path / "a.mp4", n_frames=3)
    content = (tmp_path / "a.mp4").read_bytes()
    with open_media("shelf.tar/a.mp4", content=content) as media:
        assert len(list(media.pictures())) == 3
        assert media.sha256() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("crf", [10, 23, 40])
def test_every_frame_comes_back_at_its_own_index(tmp_path, crf):
    images = clip(1, 24)
    loop = H264Loop(crf, Fraction(12))
    returned = _through(loop, images)
    assert [p.index for p in returned] == list(range(24))
    # Frame i is nearer to source frame i than to its neighbours three frames away.
    for i in range(5, 20):
        back = returned[i].rgb().astype(int)
        errors = {j: np.abs(back - images[j]).mean() for j in (i - 3, i, i + 3)}
        assert min(errors, key=errors.get) == i


def test_a_larger_crf_is_worse():
    images = clip(2, 8)
    errors = [
        np.mean([np.abs(p.rgb().astype(int) - images[p.index]).mean() for p in returned])
        for returned in (_through(H264Loop(crf, Fraction(12)), images) for crf in (10, 23, 40))
    ]
    assert errors[0] < errors[1] < errors[2]


def test_the_same_frames_give_the_same_bits():
    images = clip(3, 10)
    first, second = (
        [p.rgb() for p in _through(H264Loop(23, Fraction(12)), images)] for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuvj420p", "yuv420p10le", "gray"])
def test_colours_survive_the_loop_whatever_the_source_format(pix_fmt):
    image = clip(4, 1)[0]
    rgb = av.VideoFrame.from_ndarray(image, format="rgb24")
    picture = Picture(0, 0.0, rgb.reformat(format=pix_fmt))
    loop = H264Loop(4, Fraction(25))
    (back,) = [*loop.push(picture), *loop.flush()]
    # 3 levels: rounding of two colour conversions; a wrong range or matrix shifts by 16 and more.
    assert np.abs(back.rgb().astype(int).mean((0, 1)) - picture.rgb().mean((0, 1))).max() < 3


def test_an_odd_last_row_and_column_are_cut_off_and_nothing_else_moves():
    image = clip(5, 1)[0][:201, :203]
    (back,) = _through(H264Loop(4, Fraction(25)), [image])
    assert back.rgb().shape == (200, 202, 3)
    assert np.abs(back.rgb().astype(int) - image[:200, :202]).mean() < 3


def test_a_frame_of_another_size_stops_the_loop():
    loop = H264Loop(23, Fraction(25))
    with pytest.raises(DfdetectError, match="frame size changes at frame 1 from 64x64 to 32x32"):
        _through(loop, [np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)])


def _through(loop, images):
    pictures = [
        Picture(i, i / 12, av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
        for i, image in enumerate(images)
    ]
    returned = [p for picture in pictures for p in loop.push(picture)]
    return [*returned, *loop.flush()]


def _faststart(path, images):
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _set_rotation(path, degrees):
    """Write a rotation into the MP4's track header; its matrix is stored in a fixed place."""
    content = bytearray(path.read_bytes())
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    start = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of fields
    values = (cos, sin, 0, -sin, cos, 0, 0, 0)
    for i, value in enumerate(values):
        content[start + 4 * i : start + 4 * i + 4] = int(value * 65536).to_bytes(
            4, "big", signed=True
        )
    path.write_bytes(content)


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 1), (-1, 0, 0, -1), (-1, 0, 0, 1), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)],
)
def test_odd_sides_lose_the_row_and_column_at_the_bottom_and_right_of_the_upright_picture(
    orientation,
):
    image = clip(1)[0][:201, :167]
    yuv = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    picture = Picture(0, 0.0, yuv, orientation)
    loop = H264Loop(1, Fraction(12))
    (back,) = [*loop.push(picture), *loop.flush()]
    encoded, upright = back.rgb().astype(int), picture.rgb().astype(int)
    height, width = encoded.shape[:2]
    in_place = np.square(encoded - upright[:height, :width]).mean()
    beside = np.square(encoded[:, :-1] - upright[:height, 1:width]).mean()
    assert 4 * in_place < beside
