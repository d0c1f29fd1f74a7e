"""Some frames of a video without decoding the rest: they are the same to the last bit."""

import io
from collections.abc import Iterator

import av
import numpy as np
import pytest

from dfdetect.packets import Irregular, Packet, needed, order_of, starts_anew
from dfdetect.video import Limits, open_media, sample, sample_indices

N_FRAMES = 150


def footage(n_frames: int = N_FRAMES) -> Iterator[np.ndarray]:
    """Noise that drifts and a square that jumps: a frame predicted from the wrong one shows."""
    rng = np.random.default_rng(0)
    wall = np.kron(rng.integers(0, 255, (24, 80, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    for i in range(n_frames):
        frame = np.roll(wall, 3 * i, 1)[:, :128].copy()
        top, left = 7 * i % 80, 11 * i % 112
        frame[top : top + 16, left : left + 16] = 40 + i % 200
        yield frame


def encoded(container: str, codec: str, options: dict[str, str], n_frames=N_FRAMES) -> bytes:
    content = io.BytesIO()
    with av.open(content, "w", format=container) as target:
        stream = target.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.options = options
        for i, image in enumerate(footage(n_frames)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return content.getvalue()


def seen(pictures) -> list[tuple[int, float, bytes]]:
    return [(picture.index, picture.time_s, picture.rgb().tobytes()) for picture in pictures]


X264 = {"g": "40", "x264-params": "scenecut=0:log=-1"}
X265 = {"x265-params": "keyint=40:scenecut=0:log-level=none"}


@pytest.mark.parametrize(
    ("container", "codec", "options", "most_decoded"),
    [
        ("mp4", "libx264", X264, 60),
        ("mp4", "libx264", {"g": "999", "x264-params": "b-pyramid=strict:log=-1"}, 85),
        ("mp4", "libx264", {"g": "40", "x264-params": "open-gop=1:log=-1"}, 85),
        ("mp4", "libx264", {"g": "40", "x264-params": "intra-refresh=1:log=-1"}, 85),
        ("mp4", "libx264", {"g": "40", "x264-params": "tff=1:log=-1"}, 85),
        ("matroska", "libx264", X264, 60),
        ("flv", "libx264", X264, 60),
        ("mp4", "libx265", X265, 100),
        ("matroska", "libx265", {"x265-params": X265["x265-params"] + ":open-gop=0"}, 100),
        ("mp4", "libx265", {"x265-params": X265["x265-params"] + ":temporal-layers=3"}, 100),
        ("webm", "libvpx-vp9", {"g": "40", "cpu-used": "8", "deadline": "realtime"}, 100),
        ("mp4", "libsvtav1", {"g": "40", "preset": "12"}, 100),
        ("webm", "libvpx", {"g": "40", "cpu-used": "8", "auto-alt-ref": "1"}, 150),
        ("mpegts", "libx264", X264, 150),
        ("avi", "mpeg4", {"g": "40"}, 150),
    ],
)
def test_sampled_frames_are_those_of_a_full_decode(container, codec, options, most_decoded):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    content = encoded(container, codec, options)
    with open_media("made", content=content) as media:
        whole = seen(media.pictures())
    for n_wanted in (1, 5, 32):
        with open_media("made", content=content) as media:
            sampled = sample(media, n_wanted, seen)
            assert sampled == [whole[i] for i in sample_indices(len(whole), n_wanted)]
            assert media.n_frames == len(whole) and media.warnings == []
            assert media.n_decoded <= most_decoded or n_wanted == 32


def test_a_packet_that_stands_alone_only_by_the_container_s_word_is_no_start():
    """Behind x264's recovery points frames still refer to what lies before them."""
    content = encoded("mp4", "libx264", {"g": "40", "x264-params": "open-gop=1:log=-1"})
    with av.open(io.BytesIO(content)) as container:
        (stream,) = container.streams
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert sum(packet.is_keyframe for packet in packets) > 1
        box = stream.codec_context.extradata
        assert [
            i
            for i, packet in enumerate(packets)
            if starts_anew("h264", packet.is_keyframe, memoryview(packet), box)
        ] == [0]


def joined(*contents: bytes) -> bytes:
    """The packets of several MP4s one after another, with the first one's description of them."""
    whole, end = io.BytesIO(), 0
    with av.open(whole, "w", format="mp4") as target:
        for content in contents:
            with av.open(io.BytesIO(content)) as source:
                if not target.streams:
                    stream = target.add_stream_from_template(source.streams.video[0])
                packets = [p for p in source.demux(video=0) if p.size]
                for packet in packets:
                    packet.pts, packet.dts = packet.pts + end, packet.dts + end
                    packet.stream = stream
                    target.mux(packet)
                end += N_FRAMES * 512
    return whole.getvalue()


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_parameters_that_change_on_the_way_have_everything_decoded(codec):
    def of(coded: str) -> bytes:
        if codec == "libx265":
            return encoded("mp4", codec, {"x265-params": f"repeat-headers=1:log-level=0:{coded}"})
        return encoded("mp4", codec, {"x264-params": f"repeat-headers=1:log=-1:{coded}"})

    one, other = ("sao=1", "sao=0") if codec == "libx265" else ("cabac=1", "cabac=0")
    for second in (one, other):
        content = joined(of(f"keyint=30:{one}"), of(f"keyint=30:{second}"))
        with open_media("made", content=content) as media:
            whole = seen(media.pictures())
            assert len(whole) == 2 * N_FRAMES and media.warnings == []
        with open_media("made", content=content) as media:
            assert sample(media, 7, seen) == [whole[i] for i in sample_indices(len(whole), 7)]
            assert (media.n_decoded < 2 * N_FRAMES) == (second == one)


def boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, payload) of ISO base media boxes one after another."""
    while content:
        size = int.from_bytes(content[:4])
        yield content[4:8], content[8:size]
        content = content[size:]


def box(kind: bytes, payload: bytes) -> bytes:
    return (len(payload) + 8).to_bytes(4) + kind + payload


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(4) for value in values)


def described_apart(content: bytes, other: bytes) -> bytes:
    """An MP4 of `joined` contents whose second half has the description that `other` has."""
    (description,) = (leaf for kind, leaf in leaves(other) if kind == b"stsd")

    def rebuilt(payload: bytes, within: tuple[bytes, ...]) -> bytes:
        parts = []
        for kind, inner in boxes(payload):
            if kind in within:
                inner = rebuilt(inner, within)
            elif kind == b"stsd":
                inner = inner[:4] + numbers(2) + inner[8:] + description[8:]
            elif kind == b"stsc":
                inner = inner[:4] + numbers(2, 1, N_FRAMES, 1, 2, N_FRAMES, 2)
            elif kind == b"stco":
                sizes = next(leaf for name, leaf in leaves(content) if name == b"stsz")[12:]
                first = int.from_bytes(inner[8:12])
                half = sum(int.from_bytes(sizes[4 * i : 4 * i + 4]) for i in range(N_FRAMES))
                inner = inner[:4] + numbers(2, first, first + half)
            parts.append(box(kind, inner))
        return b"".join(parts)

    return rebuilt(content, (b"moov", b"trak", b"mdia", b"minf", b"stbl"))


def leaves(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    for kind, payload in boxes(content):
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            yield from leaves(payload)
        else:
            yield kind, payload


def test_a_video_with_several_descriptions_of_its_packets_is_decoded_whole():
    one, other = (
        encoded("mp4", "libx264", {"x264-params": f"keyint=30:log=-1:cabac={cabac}"})
        for cabac in (1, 0)
    )
    apart = [seen_in(content) for content in (one, other)]
    content = described_apart(joined(one, other), other)
    with open_media("made", content=content) as media:
        sampled = sample(media, 7, seen)
        assert media.n_decoded == 2 * N_FRAMES and media.warnings == []
    images = [image for half in apart for _, _, image in half]
    assert [image for _, _, image in sampled] == [
        images[i] for i in sample_indices(2 * N_FRAMES, 7)
    ]


def seen_in(content: bytes) -> list[tuple[int, float, bytes]]:
    with open_media("made", content=content) as media:
        return seen(media.pictures())


def test_frames_before_an_edit_list_s_beginning_are_left_out_and_told():
    plain, content = encoded("mp4", "libx264", X264), io.BytesIO()
    with av.open(io.BytesIO(plain)) as source, av.open(content, "w", format="mp4") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.pts, packet.dts = packet.pts - 10 * 512, packet.dts - 10 * 512
                packet.stream = stream
                target.mux(packet)
    with open_media("made", content=content.getvalue()) as media:
        whole = seen(media.pictures())
        assert len(whole) == N_FRAMES - 10
        assert sample(media, 5, seen) == [whole[i] for i in sample_indices(len(whole), 5)]
        assert media.n_decoded < N_FRAMES / 2
        assert media.warnings == [
            "the file hides 10 frames by an edit list; they were not looked at"
        ]


def _damaged(content: bytes, position: int) -> bytes:
    """With noise in the middle of the packet at `position`."""
    with av.open(io.BytesIO(content)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at = content.index(packets[position]) + len(packets[position]) // 3
    noise = np.random.default_rng(1).bytes(len(packets[position]) // 2)
    return content[:at] + noise + content[at + len(noise) :]


def test_damage_in_what_is_needed_is_told_and_the_rest_is_decoded_in_full():
    content = _damaged(encoded("mp4", "libx264", X264), 40)  # the second key frame
    with open_media("made", content=content) as media:
        whole = seen(media.pictures())
        told = list(media.warnings)
    assert any("damaged" in warning for warning in told)
    with open_media("made", content=content) as media:
        sampled = sample(media, 5, seen)
        assert sampled == [whole[i] for i in sample_indices(len(whole), 5)]
        assert media.warnings == told and media.n_decoded == len(whole)


def test_damage_that_no_chosen_frame_depends_on_changes_none_of_them():
    whole = encoded("mp4", "libx264", X264)
    with open_media("made", content=whole) as media:
        undamaged = sample(media, 5, seen)
    with open_media("made", content=_damaged(whole, 39)) as media:  # before the second key frame
        assert sample(media, 5, seen) == undamaged and media.warnings == []


def test_a_long_video_is_sampled_to_its_end_where_few_frames_need_decoding():
    content = encoded("mp4", "libx264", X264 | {"g": "10"})
    with open_media("made", Limits(max_frames=50), content) as media:
        assert [index for index, _, _ in sample(media, 5, seen)] == sample_indices(N_FRAMES, 5)
        assert media.n_decoded <= 50 and not media.is_longer and media.warnings == []


def test_where_more_frames_need_decoding_than_the_limit_only_the_beginning_is_sampled():
    content = encoded("mp4", "libx264", X264)
    with open_media("made", Limits(max_frames=50), content) as media:
        assert [index for index, _, _ in sample(media, 5, seen)] == sample_indices(50, 5)
        assert media.warnings == ["only the first 50 frames were decoded, the limit"]


def test_a_picture_is_its_own_only_frame(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    with open_media(tmp_path / "a.png") as media:
        assert [index for index, _, _ in sample(media, 5, seen)] == [0]
        assert media.n_frames == media.n_decoded == 1


# --- the plan alone --------------------------------------------------------------------------


def stored(*packets: str) -> list[Packet]:
    """From words: a start has an S before its pts, a frame that is not shown an x behind it."""
    return [Packet(int(p.strip("Sx")), p[0] == "S", p[-1] != "x") for p in packets]


def test_decoding_goes_back_to_the_last_start_and_ends_with_the_frame():
    packets = stored("S0", "1", "2", "S3", "4", "5", "S6", "7")
    assert needed(packets, {4}) == [False] * 3 + [True, True] + [False] * 3
    assert needed(packets, {1, 6}) == [True, True] + [False] * 4 + [True, False]


def test_a_frame_shown_before_a_start_stored_before_it_needs_the_start_before_that():
    packets = stored("S0", "1", "S4", "2", "3", "5")
    assert needed(packets, {3}) == [True] * 5 + [False]
    assert needed(packets, {5}) == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    "packets",
    [
        stored("S0", "1", "1"),  # which of them is a frame's?
        stored("0", "S1", "2"),  # the first cannot be decoded
        stored("S2", "0", "1", "3"),  # nor can what refers to something before the file
        stored("S0x", "1x"),
        [],
    ],
)
def test_packets_that_do_not_tell_the_frames_are_no_ground_for_a_plan(packets):
    with pytest.raises(Irregular):
        order_of(packets)
