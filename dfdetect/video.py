"""Videos and pictures in, decoded frames out; frames in, H.264 out. The only file that imports av.

Strangers' files are opened by a recipe that keeps libav to that one file: regular files only, a
sniffed type, a nameless file object, short lists of protocols and containers, a limit on pixels.
Decoding uses one thread: with several, a damaged file gives other pictures on every run.
A still picture is a video of one frame, so everything downstream knows only frames.
"""

import contextlib
import hashlib
import io
import logging
import os
import stat
import tempfile
import warnings as python_warnings
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import NamedTuple, TypeVar

import av
import numpy as np

from dfdetect.errors import DfdetectError
from dfdetect.packets import CODECS, MOST, Irregular, Packet, needed, order_of, starts_anew

av.logging.set_level(None)  # damaged files are reported once, by us, with their name
log = logging.getLogger(__name__)
T = TypeVar("T")

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".m2ts",
        ".flv",
        ".wmv",
        ".asf",
        ".3gp",
        ".gif",
    ]
)
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"])
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES

_CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,gif"
# Names of FFmpeg's formats; what cameras, phones, browsers and the datasets' forgeries use.
_CODECS = {
    "h264", "hevc", "av1", "vp6", "vp6a", "vp6f", "vp8", "vp9", "theora", "mpeg1video",
    "mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "h263p", "flv1", "wmv1",
    "wmv2", "wmv3", "vc1", "svq1", "svq3", "cinepak", "mjpeg", "prores", "dnxhd", "dvvideo", "ffv1",
    "huffyuv", "ffvhuff", "utvideo", "rawvideo", "qtrle", "png", "gif",
}  # fmt: skip
_PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
_SOUND_IN_MP4 = frozenset(
    ["aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus", "flac", "alac"]
)
_BT709, _LIMITED = 1, 1  # of ITU-T H.273
_FFMPEG_ERRORS = (av.error.FFmpegError, ValueError, IndexError, UnicodeDecodeError)


@dataclass(frozen=True)
class Limits:
    """How much of a stranger's file is opened. A file that is larger, or has a larger picture, is
    refused; where more than `max_frames` (None: any number) would have to be decoded, only the
    first are, and a warning says so."""

    max_bytes: int = 4 << 30
    max_pixels: int = 40_000_000  # of one frame
    max_frames: int | None = None


@dataclass(frozen=True)
class VideoInfo:
    """What the container says of itself. `n_frames` and `duration_s` are claims, None if absent."""

    path: Path
    n_bytes: int
    container: str
    width: int
    height: int
    frame_rate: Fraction
    duration_s: float | None
    n_frames: int | None
    codec: str
    pix_fmt: str
    is_still: bool


class _Still(NamedTuple):
    """A picture, uint8 [H,W,3] RGB, upright; what is to be said of it; its EXIF orientation."""

    image: np.ndarray
    note: str
    codec: str
    orientation: int


class Frame(NamedTuple):
    """One decoded frame, upright. `image` is uint8 [H,W,3] RGB; `index` counts decoded frames."""

    index: int
    time_s: float
    image: np.ndarray


@dataclass(frozen=True)
class Picture:
    """A decoded frame before conversion to RGB, so that re-encoding can start from its YUV."""

    index: int
    time_s: float
    yuv: av.VideoFrame
    orientation: tuple[int, int, int, int] = (1, 0, 0, 1)

    def rgb(self) -> np.ndarray:
        """uint8 [H,W,3] RGB, turned upright by the display matrix."""
        rgb = self.yuv.reformat(format="rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(_upright(rgb, self.orientation))

    def for_h264(self) -> "Picture":
        """The same as 8-bit 4:2:0 with even sides, as H264Loop encodes it. Two threads must not
        convert one frame, so this is called before a picture goes to several encoders."""
        return replace(self, yuv=_as_420(self.yuv, self.orientation))

    def frame(self) -> Frame:
        return Frame(self.index, self.time_s, self.rgb())

    @classmethod
    def of_rgb(cls, image: np.ndarray, index: int = 0) -> "Picture":
        """Of uint8 [H,W,3] RGB, which is not copied."""
        return cls(index, 0.0, av.VideoFrame.from_ndarray(image, format="rgb24"))


class Media:
    """An open video or picture: `info`, `count_frames()`, `pictures()` or `chosen()` of them,
    collected `warnings`.

    Known when the last of `pictures()` or `chosen()` has come: `n_frames` that the file holds and
    `n_decoded` of them; how the first to come was made upright (`turned`, degrees clockwise, after
    a mirroring left to right or none); and whether the limit ended them (`is_longer`).
    """

    def __init__(
        self, path: Path, descriptor: int, limits: Limits, stack: contextlib.ExitStack
    ) -> None:
        self.path = path
        self.limits = limits
        self.warnings: list[str] = []
        self.turned: tuple[int, bool] = (0, False)
        self.is_longer = False
        self.n_frames = self.n_decoded = 0
        self._descriptor = descriptor
        self._n_bytes = os.fstat(descriptor).st_size
        self._still = _read_still(path, descriptor, limits)
        if self._still is not None:
            image, note, codec, orientation = self._still
            self.turned = _EXIF_TURNS.get(orientation, (0, False))
            if note:
                self.warnings.append(note)
            height, width = image.shape[:2]
            self.info = VideoInfo(
                path,
                self._n_bytes,
                codec,
                width,
                height,
                Fraction(25),
                None,
                1,
                codec,
                "rgb24",
                True,
            )
        else:
            # Kept, because opening takes as long as decoding many frames.
            self._unread = stack.enter_context(self._container())
            self.info = _info(path, self._n_bytes, *self._unread)

    def sha256(self) -> str:
        """Of the very bytes that are decoded."""
        return _sha256(self._descriptor)

    def count_frames(self) -> int:
        """Frames the container holds, up to the limit, by walking its packets undecoded.

        Usually what will decode; an edit list, damage or a cut make it an estimate.
        """
        if self._still is not None:
            return 1
        count = 0
        with self._container() as (container, stream), contextlib.suppress(*_FFMPEG_ERRORS):
            for packet in container.demux(stream):
                count += bool(packet.size) and not packet.is_discard
                if count == self.limits.max_frames:
                    break
        return count

    def pictures(self) -> Iterator[Picture]:
        """Every frame that decodes, in order, up to the limit. Damage is skipped and noted in
        `warnings`.

        Errors: DfdetectError when nothing decodes, or a frame is larger than the limit.
        """
        if self._still is not None:
            image = np.ascontiguousarray(self._still[0])
            self.n_frames = self.n_decoded = 1
            yield Picture(0, 0.0, av.VideoFrame.from_ndarray(image, format="rgb24"))
            return
        index, damaged, hidden, cut, full = 0, 0, 0, "", False
        upright = _Upright()
        with self._container() as (container, stream):
            packets = container.demux(stream)  # ends with an empty packet that drains the decoder
            while not cut and not full:
                try:
                    packet = next(packets, None)
                except _FFMPEG_ERRORS as error:
                    cut, packet = _reason(error), None
                if packet is None and not cut:
                    break
                hidden += bool(packet and packet.is_discard)
                try:
                    frames = packet.decode() if packet else _drained(stream)
                except _FFMPEG_ERRORS as error:
                    damaged += 1
                    log.debug("%s: packet skipped: %s", self.path, error)
                    continue
                for yuv in frames:
                    if full := index == self.limits.max_frames:
                        self.is_longer = True
                        break
                    _check_pixels(self.path, yuv.width, yuv.height, self.limits)
                    damaged += bool(yuv.is_corrupt)
                    yield self._picture(index, yuv, upright)
                    index += 1
        self.n_frames = self.n_decoded = index
        if index == 0:
            raise DfdetectError(
                f"{self.path}: no frame could be decoded" + (f" ({cut})" if cut else ""),
                "the file is damaged or empty; get it again from its source",
            )
        if damaged:
            self._warn(f"{damaged} damaged packets or frames; the rest was used")
        if full:
            self._warn(f"only the first {index} frames were decoded, the limit")
        elif cut:
            self._warn(f"the file is cut after frame {index} ({cut})")
        elif self.info.n_frames and index + hidden < self.info.n_frames:
            self._warn(f"{index + hidden} of {self.info.n_frames} announced frames decode")
        self._warn_of_hidden(hidden)

    def chosen(self, choose: Callable[[int], Collection[int]]) -> Iterator[Picture]:
        """Of n frames those with the indices `choose(n)`, the same pictures as `pictures()` gives,
        but no others are decoded than they need. Damage elsewhere goes unseen.

        Errors: Irregular, at any time, where only `pictures()` can tell which frames there are;
        DfdetectError, as there.
        """
        if self._still is not None:
            yield from self.pictures()
            return
        with contextlib.ExitStack() as stack:
            container, stream = self._unread or stack.enter_context(self._container())
            self._unread = None
            packets = _packets(container, stream)
            order = order_of(packets)
            self.n_frames, self.n_decoded = len(order), 0
            wanted = {order[i]: i for i in sorted(choose(len(order)))}
            need = needed(packets, wanted)
            if len(packets) < (self.info.n_frames or 0):
                raise Irregular
            if sum(need) > (self.limits.max_frames or inf):
                raise Irregular
            left, upright = iter(wanted), _Upright()
            try:
                container.seek(0)
                for yuv in _decoded(container, stream, zip(packets, need, strict=True), wanted):
                    self.n_decoded += 1
                    _check_pixels(self.path, yuv.width, yuv.height, self.limits)
                    if yuv.is_corrupt:
                        raise Irregular
                    if yuv.pts in wanted:
                        if yuv.pts != next(left, None):
                            raise Irregular
                        yield self._picture(wanted[yuv.pts], yuv, upright)
            except _FFMPEG_ERRORS as error:
                raise Irregular from error
        if next(left, None) is not None:
            raise Irregular
        self._warn_of_hidden(len(packets) - len(order))

    def _picture(self, index: int, yuv: av.VideoFrame, upright: "_Upright") -> Picture:
        time_s = yuv.time
        if time_s is None or not np.isfinite(time_s):
            time_s = float(index / self.info.frame_rate)
        if upright.rotation is None:
            self.turned = _turn(upright.of(yuv))
        return Picture(index, float(time_s), yuv, upright.of(yuv))

    @contextlib.contextmanager
    def sound(self) -> Iterator["_Sound | None"]:
        """Of the first stream of sound; None without one that an MP4 holds."""
        with contextlib.ExitStack() as stack:
            streams = []
            if self._still is None:
                container, _ = stack.enter_context(self._container())
                streams = [s for s in container.streams.audio if s.codec_context is not None]
            usable = streams and streams[0].codec_context.name in _SOUND_IN_MP4
            yield _Sound(container, streams[0]) if usable else None

    def _warn_of_hidden(self, n_frames: int) -> None:
        if n_frames:
            self._warn(f"the file hides {n_frames} frames by an edit list; they were not looked at")

    def _warn(self, note: str) -> None:
        if note not in self.warnings:
            self.warnings.append(note)

    @contextlib.contextmanager
    def _container(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        try:
            container = av.open(
                _Nameless(self._descriptor),
                container_options={
                    "protocol_whitelist": "none",
                    "format_whitelist": _CONTAINERS,
                    "max_streams": "100",
                    "probesize": "5000000",
                },
                io_open=_deny,
                metadata_errors="replace",
            )
        except (*_FFMPEG_ERRORS, OSError) as error:
            raise DfdetectError(
                f"{self.path}: not a video or picture in a supported format ({_reason(error)})",
                "supported: MP4, MOV, MKV, WebM, AVI, MPEG, FLV, WMV, GIF, "
                "JPEG, PNG, WebP, AVIF, BMP, TIFF",
            ) from error
        with container:
            streams = [s for s in container.streams.video if s.codec_context is not None]
            moving = [s for s in streams if not s.disposition & av.stream.Disposition.attached_pic]
            if not moving:
                raise DfdetectError(
                    f"{self.path}: holds no video stream that can be decoded",
                    "it is cut, only sound, or of an unknown codec; get it again from its source",
                )
            stream = moving[0]
            codec = stream.codec_context.codec.canonical_name
            if codec not in _CODECS:
                raise DfdetectError(
                    f"{self.path}: the codec {codec} is not supported", "convert it to H.264"
                )
            if stream.codec_context.width and stream.codec_context.height:
                size = (stream.codec_context.width, stream.codec_context.height)
                _check_pixels(self.path, *size, self.limits)
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(self.limits.max_pixels)}
            yield container, stream


@contextlib.contextmanager
def open_media(
    path: str | Path, limits: Limits = Limits(), content: bytes | None = None
) -> Iterator[Media]:
    """Open a video or picture by the safe recipe of the module's head; `content` are its bytes
    where they do not lie in a file of their own (an archive's member).

    Errors: DfdetectError naming the file and the cause (missing, a device, empty, not media).
    """
    path = Path(path)
    if content is None:
        descriptor = _open_regular(path, limits)
    else:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            descriptor = os.dup(file.fileno())
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        yield Media(path, descriptor, limits, stack)


def content_sha256(path: Path, limits: Limits = Limits()) -> str:
    """Of a file's bytes. Errors: those of `open_media` for what is not a regular file."""
    descriptor = _open_regular(path, limits)
    try:
        return _sha256(descriptor)
    except OSError as error:
        raise DfdetectError(f"{path}: {_reason(error)}", "get it again from its source") from error
    finally:
        os.close(descriptor)


def library_versions() -> dict[str, str]:
    """Of what decodes."""
    import PIL

    libav = {k: ".".join(map(str, av.library_versions[k])) for k in ("libavformat", "libavcodec")}
    return {"av": av.__version__, **libav, "pillow": PIL.__version__}


def probe(path: str | Path) -> VideoInfo:
    """What the container says; reads headers only."""
    with open_media(path) as media:
        return media.info


def media_below(root: Path, whole: bool = False) -> list[Path]:
    """Media files below `root`, by suffix, sorted; hidden names are left out.

    Links to folders are not followed, for they may lead out of a stranger's folder. With `whole`,
    for the user's own data sets, they are, each folder once, its own place before a link to it.

    Errors: with `whole`, DfdetectError naming a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        if error.filename != os.fspath(root) or not isinstance(
            error, FileNotFoundError | NotADirectoryError
        ):
            raise DfdetectError(
                f"{error.filename}: cannot be read ({error.strerror})", "allow it, or move it away"
            ) from error

    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(
        root, onerror=refuse if whole else None, followlinks=whole
    ):
        if whole:
            place = os.stat(parent)
            if (place.st_dev, place.st_ino) in seen:
                folders.clear()
                continue
            seen.add((place.st_dev, place.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        folders.sort(key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in MEDIA_SUFFIXES
        ]
    return sorted(found)


def sample_indices(n_frames: int, n_wanted: int) -> list[int]:
    """`n_wanted` indices at the centres of equal stretches of 0..n_frames-1 (all, if fewer)."""
    return sorted({(2 * i + 1) * n_frames // (2 * n_wanted) for i in range(n_wanted)} - {n_frames})


def sample(media: Media, n_wanted: int, see: Callable[[Iterator[Picture]], T]) -> T:
    """What `see` makes of `n_wanted` pictures spread evenly over those that decode.

    Packets tell where they lie. Where they do not, or other frames come than they told, all that
    `see` has seen is forgotten, everything is decoded, and if another number of frames comes than
    expected, the choice is made again over the true one.
    """
    try:
        return see(media.chosen(lambda n: sample_indices(n, n_wanted)))
    except Irregular:
        n_frames = media.count_frames()
    for _ in range(2):
        wanted = set(sample_indices(n_frames, n_wanted))
        seen = see(picture for picture in media.pictures() if picture.index in wanted)
        if media.n_frames == n_frames:
            break
        n_frames = media.n_frames
    return seen


class H264Loop:
    """Push pictures through libx264 at one CRF and straight back through the decoder.

    The whole stream must pass, because compression works between frames; what comes out has the
    indices of what went in. preset medium, one thread, `cpu-independent=1`: the same bits on every
    machine. 4:2:0 needs even sides, so an odd last row or column is cut off.
    """

    def __init__(self, crf: int, frame_rate: Fraction) -> None:
        self._crf = crf
        self._rate = _usual_rate(frame_rate)
        self._encoder: av.VideoCodecContext | None = None
        self._decoder = av.CodecContext.create("h264", "r")
        self._decoder.thread_count = 1
        self._sent: list[tuple[int, float, tuple[int, int, int, int]]] = []
        self._n_back = 0

    def push(self, picture: Picture) -> list[Picture]:
        """Encode one picture; returns those that came out meanwhile (later, in order)."""
        yuv = _as_420(picture.yuv, picture.orientation)
        if self._encoder is None:
            self._encoder = _h264_encoder(yuv, self._rate, self._crf)
            try:
                self._encoder.open()
            except _FFMPEG_ERRORS as error:
                raise DfdetectError(
                    f"frames of {yuv.width}x{yuv.height} cannot be encoded as H.264",
                    "prepare it with --qualities raw",
                ) from error
        elif (self._encoder.width, self._encoder.height) != (yuv.width, yuv.height):
            raise DfdetectError(
                f"frame size changes at frame {picture.index} from "
                f"{self._encoder.width}x{self._encoder.height} to {yuv.width}x{yuv.height}",
                "cut the video into parts of one size, or prepare it with --qualities raw",
            )
        yuv.pts, yuv.time_base, yuv.pict_type = len(self._sent), 1 / self._rate, 0
        self._sent.append((picture.index, picture.time_s, picture.orientation))
        try:
            packets = self._encoder.encode(yuv)
        except av.error.ExternalError as error:  # all that libx264 says when it gets no memory
            raise MemoryError(f"libx264: {error}") from error
        return self._back(packets)

    def flush(self) -> list[Picture]:
        """The pictures still inside the encoder and decoder."""
        if self._encoder is None:
            return []
        return [*self._back(self._encoder.encode(None)), *self._collect(self._decoder.decode(None))]

    def _back(self, packets: Sequence[av.Packet]) -> list[Picture]:
        return [p for packet in packets for p in self._collect(self._decoder.decode(packet))]

    def _collect(self, frames: Sequence[av.VideoFrame]) -> list[Picture]:
        pictures = [
            Picture(index, time_s, yuv, orientation)
            for yuv, (index, time_s, orientation) in zip(
                frames, self._sent[self._n_back :], strict=False
            )
        ]
        self._n_back += len(frames)
        return pictures


def through_h264(images: Sequence[np.ndarray], crf: int) -> list[np.ndarray]:
    """uint8 RGB [H,W,3] images of one size, even sides, as a stream through H264Loop at `crf`."""
    loop = H264Loop(crf, Fraction(25))
    pictures = [p for i, image in enumerate(images) for p in loop.push(Picture.of_rgb(image, i))]
    return [picture.rgb() for picture in [*pictures, *loop.flush()]]


def write_video(images: Sequence[np.ndarray], frame_rate: int, crf: int = 12) -> bytes:
    """An MP4 of uint8 RGB images [H,W,3] (even sides), H.264 yuv420p; returns the file's bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        height, width = images[0].shape[:2]
        stream = container.add_stream("libx264", rate=frame_rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = _x264_options(crf)
        stream.codec_context.thread_count = 1
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def redraw(media: Media, out: Path, draw: Callable[[Frame], np.ndarray]) -> bool:
    """Write what `draw` makes of every frame of `media` (uint8 [h,w,3] RGB, even sides) as an MP4
    to `out`, each frame at its time; returns whether the sound is in it too. Sound is copied, not
    decoded, and left out where there is none that an MP4 holds.

    Errors: as `Media.pictures`; what `draw` raises.
    """
    rate, clock = _usual_rate(media.info.frame_rate), Fraction(1, 90_000)
    with media.sound() as sound, av.open(str(out), "w", format="mp4") as target:
        video = target.add_stream("libx264", rate=rate)
        video.pix_fmt, video.options = "yuv420p", {"preset": "veryfast", "crf": "20"}
        video.codec_context.time_base = clock
        video.codec_context.colorspace, video.codec_context.color_range = _BT709, _LIMITED
        audio = target.add_stream_from_template(sound.stream) if sound else None
        last = -1
        try:
            for picture in media.pictures():
                image = draw(picture.frame())
                if last < 0:
                    video.height, video.width = image.shape[:2]
                yuv = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED
                )
                last = max(last + 1, round(picture.time_s / clock))  # damaged files go back in time
                yuv.pts, yuv.time_base = last, clock
                target.mux(video.encode(yuv))
                if sound:
                    sound.copy(target, audio, picture.time_s)
            target.mux(video.encode(None))
            if sound and picture.index + 1 != media.limits.max_frames:
                sound.copy(target, audio, inf)
        except av.error.FFmpegError as error:
            raise DfdetectError(f"{media.path}: cannot be encoded ({_reason(error)})") from error
    return audio is not None


class _Sound:
    """The packets of a file's sound as they are, up to where they are damaged."""

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream) -> None:
        self.stream = stream
        self._packets = self._read(container)
        self._next = next(self._packets, None)

    def copy(
        self, target: av.container.OutputContainer, stream: av.AudioStream, time_s: float
    ) -> None:
        """Into `stream` of `target`, those up to `time_s` that are not there yet."""
        while self._next and self._next.dts * self._next.time_base <= time_s:
            self._next.stream = stream
            target.mux(self._next)
            self._next = next(self._packets, None)

    def _read(self, container: av.container.InputContainer) -> Iterator[av.Packet]:
        last = -inf
        with contextlib.suppress(*_FFMPEG_ERRORS):
            for packet in container.demux(self.stream):
                if packet.dts is not None and packet.dts > last:
                    last = packet.dts
                    yield packet


# --- opening ---------------------------------------------------------------------------------


class _Nameless:
    """A file without a name, so that libav cannot look for its siblings; with a place of its own,
    so that sound and pictures are read side by side."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(os.dup(descriptor), "rb", buffering=0)
        self._size = os.fstat(descriptor).st_size
        self._at = 0

    def read(self, size: int) -> bytes:
        content = os.pread(self._file.fileno(), size, self._at)
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a place before the file's beginning")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._file.close()


def _deny(url: str, flags: object, options: object) -> None:
    raise PermissionError("the file asks for another file")


def _open_regular(path: Path, limits: Limits) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        cause = "no such file" if isinstance(error, FileNotFoundError) else _reason(error)
        raise DfdetectError(f"{path}: {cause}", "check the path and its permissions") from error
    status = os.fstat(descriptor)
    problem = (
        "a folder, not a file" if stat.S_ISDIR(status.st_mode)
        else "not a regular file" if not stat.S_ISREG(status.st_mode)
        else "an empty file" if status.st_size == 0
        else f"larger than {limits.max_bytes / 2**30:.3g} GiB" if status.st_size > limits.max_bytes
        else ""
    )  # fmt: skip
    if problem:
        os.close(descriptor)
        raise DfdetectError(f"{path}: {problem}", "give a video or picture file")
    return descriptor


def _sha256(descriptor: int) -> str:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> list[Packet]:
    """Errors: Irregular if one is damaged, or has no time, or the file is cut."""
    decoder, packets = stream.codec_context, []
    codec, configuration = decoder.codec.canonical_name, decoder.extradata or b""
    if codec not in CODECS:
        raise Irregular
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.is_corrupt or len(packets) == MOST:
                raise Irregular
            if packet.has_sidedata("new_extradata"):
                raise Irregular
            is_start = starts_anew(codec, packet.is_keyframe, memoryview(packet), configuration)
            packets.append(Packet(packet.pts, is_start, not packet.is_discard))
    except _FFMPEG_ERRORS as error:
        raise Irregular from error
    return packets


def _decoded(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    expected: Iterator[tuple[Packet, bool]],
    wanted: Container[int],
) -> Iterator[av.VideoFrame]:
    """Frames of the `expected` packets that are needed; of those that no other refers to only the
    `wanted`. H.264 alone says of a frame that no other refers to it.

    Errors: libav's own; Irregular if other packets come than before.
    """
    decoder = stream.codec_context
    can_leave_out = decoder.codec.canonical_name == "h264"
    gap = False
    for read in container.demux(stream):
        if not read.size:
            continue
        packet, is_needed = next(expected, (None, False))
        if packet is None or packet.pts != read.pts:
            raise Irregular
        if is_needed:
            if gap and packet.is_start:
                yield from _drained(stream)
                decoder.flush_buffers()
            if can_leave_out:
                decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from decoder.decode(read)
        gap = not is_needed
    yield from _drained(stream)


def _drained(stream: av.VideoStream) -> list[av.VideoFrame]:
    """Frames that the decoder still holds back for reordering, with the clock of their stream."""
    try:
        frames = stream.codec_context.decode(None)
    except _FFMPEG_ERRORS:
        return []
    for frame in frames:
        frame.time_base = stream.time_base
    return frames


def _info(
    path: Path, n_bytes: int, container: av.container.InputContainer, stream: av.VideoStream
) -> VideoInfo:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    seconds = container.duration / 1e6 if container.duration else None
    codec = stream.codec_context
    return VideoInfo(
        path, n_bytes, container.format.name.split(",")[0], codec.width, codec.height,
        Fraction(rate) or Fraction(25), seconds, stream.frames or None, codec.name,
        codec.pix_fmt or "unknown", False,
    )  # fmt: skip


def _check_pixels(path: Path, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise _too_large(path, f"a picture of {width}x{height}", limits)


def _too_large(path: Path, what: str, limits: Limits) -> DfdetectError:
    megapixels = limits.max_pixels / 1e6
    return DfdetectError(
        f"{path}: {what} exceeds the limit of {megapixels:g} megapixels", "scale it down"
    )


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "unknown container" if text == "Invalid argument" else text[0].lower() + text[1:]


# --- still pictures --------------------------------------------------------------------------


_EXIF_ORIENTATION = 0x0112
_EXIF_TURNS = {
    1: (0, False), 2: (0, True), 3: (180, False), 4: (180, True),
    5: (270, True), 6: (90, False), 7: (90, True), 8: (270, False),
}  # fmt: skip
"""EXIF orientation -> degrees clockwise, and whether it is mirrored left to right before."""


def _is_picture(head: bytes) -> bool:
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:12] in (b"ftypavif", b"ftypavis")
    )


def _read_still(path: Path, descriptor: int, limits: Limits) -> _Still | None:
    """None if the file does not start like a picture.

    Transparency is ignored (the colours below it are used); of an animation the first frame counts.
    """
    head = os.pread(descriptor, 16, 0)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1"):
        raise DfdetectError(f"{path}: HEIC pictures are not supported", "convert it to JPEG or PNG")
    if not _is_picture(head):
        return None
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with python_warnings.catch_warnings(), os.fdopen(os.dup(descriptor), "rb") as file:
            python_warnings.simplefilter("ignore")
            file.seek(0)
            with Image.open(file, formats=_PICTURES) as picture:
                _check_pixels(path, *picture.size, limits)
                codec = (picture.format or "picture").lower()
                animated = getattr(picture, "is_animated", False) and picture.format != "MPO"
                picture.load()
                orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
                upright = ImageOps.exif_transpose(picture)
                image = _to_rgb8(upright)
    except UnidentifiedImageError as error:
        raise DfdetectError(
            f"{path}: not a readable picture", "get it again from its source"
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, "the picture", limits) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DfdetectError(
            f"{path}: the picture is damaged or cut ({_reason(error)})",
            "get it again from its source",
        ) from error
    note = "an animated picture: only its first frame was used" if animated else ""
    return _Still(image, note, codec, orientation)


def _to_rgb8(picture: "PIL.Image.Image") -> np.ndarray:  # noqa: F821
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits a channel: scale, do not clip
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        grey = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        return np.asarray(picture.convert("RGBA"))[..., :3]
    return np.asarray(picture.convert("RGB"))


# --- frames ----------------------------------------------------------------------------------


def _orientation(yuv: av.VideoFrame) -> tuple[int, int, int, int]:
    """Signs of the 2x2 part of the display matrix; it can mirror as well as turn."""
    for side in yuv.side_data:
        if side.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(side), dtype="<i4")
            if len(matrix) >= 5:
                a, b, c, d = (int(np.sign(matrix[i])) for i in (0, 1, 3, 4))
                turned = abs(int(matrix[0])) < abs(int(matrix[1]))
                return (0, b or 1, c or 1, 0) if turned else (a or 1, 0, 0, d or 1)
    return (1, 0, 0, 1)


class _Upright:
    """How frames are turned; looked at only where it changes, for a frame whose side data was
    looked at is freed late."""

    def __init__(self) -> None:
        self.rotation: int | None = None
        self._orientation = (1, 0, 0, 1)

    def of(self, yuv: av.VideoFrame) -> tuple[int, int, int, int]:
        if self.rotation != yuv.rotation:
            self.rotation, self._orientation = yuv.rotation, _orientation(yuv)
        return self._orientation


def _turn(orientation: tuple[int, int, int, int]) -> tuple[int, bool]:
    """(degrees clockwise, whether mirrored left to right before) of what `_upright` does."""
    a, b, c, d = orientation
    mirrored = a * d - b * c < 0
    x, y = (-a, -b) if mirrored else (a, b)  # where the upright picture's left to right points
    return {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[x, y], mirrored


def _upright(image: np.ndarray, orientation: tuple[int, int, int, int]) -> np.ndarray:
    """The display matrix sends (x, y) to (a x + c y, b x + d y)."""
    a, b, c, d = orientation
    if a == 0:
        image, x_sign, y_sign = image.transpose(1, 0, 2), c, b
    else:
        x_sign, y_sign = a, d
    return image[:: y_sign or 1, :: x_sign or 1]


def _as_420(yuv: av.VideoFrame, orientation: tuple[int, int, int, int]) -> av.VideoFrame:
    """8-bit 4:2:0 with even sides; the frame itself where it is that already.

    Of odd sides, the row and column are cut off that will lie at the bottom and at the right of
    the upright picture, so that its pixels keep their places.
    """
    even = (yuv.width // 2 * 2, yuv.height // 2 * 2)
    if min(even) < 2:
        raise DfdetectError(f"a frame of {yuv.width}x{yuv.height} is too small for H.264")
    if (yuv.width, yuv.height) == even and yuv.format.name in ("yuv420p", "yuvj420p"):
        return yuv
    if (yuv.width, yuv.height) != even:
        planes = _converted(yuv, "yuv444p")
        a, b, c, d = orientation
        left = int(yuv.width > even[0] and (a or b) < 0)
        top = int(yuv.height > even[1] and (d or c) < 0)
        cropped = planes.to_ndarray()[:, top : top + even[1], left : left + even[0]]
        cropped = np.ascontiguousarray(cropped)
        yuv = av.VideoFrame.from_ndarray(cropped, format="yuv444p")
        yuv.color_range, yuv.colorspace = planes.color_range, planes.colorspace
    return _converted(yuv, "yuv420p")


def _converted(yuv: av.VideoFrame, pix_fmt: str) -> av.VideoFrame:
    if yuv.format.is_rgb or yuv.format.has_palette or len(yuv.format.components) < 3:
        return yuv.reformat(
            format=pix_fmt, dst_colorspace="ITU601", dst_color_range="MPEG", threads=1
        )
    return yuv.reformat(format=pix_fmt, threads=1)


def _x264_options(crf: int) -> dict[str, str]:
    return {"preset": "medium", "crf": str(crf), "x264-params": "cpu-independent=1:log=-1"}


def _usual_rate(rate: Fraction) -> Fraction:
    """Frames per second that an encoder takes."""
    return (Fraction(rate) if 1 <= rate <= 240 else Fraction(25)).limit_denominator(1001)


def _h264_encoder(yuv: av.VideoFrame, rate: Fraction, crf: int) -> av.VideoCodecContext:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = yuv.width, yuv.height, yuv.format.name
    encoder.time_base, encoder.framerate = 1 / rate, rate
    encoder.color_range, encoder.colorspace = yuv.color_range, yuv.colorspace
    encoder.thread_count = 1
    encoder.options = _x264_options(crf)
    return encoder
