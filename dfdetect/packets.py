"""Which packets of a video must be decoded for some of its frames to be exact.

A frame is predicted from frames before it, back to the last one that stands alone; what lies
before that, and behind the frame, need not be decoded. Between the two a decoder can leave out the
frames that no other refers to. Nothing here decodes.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

# FFmpeg's names. Of these a packet is a frame; of others it may be a field, or hidden.
CODECS = frozenset(["h264", "hevc", "vp9", "av1"])
MOST = 1_000_000  # packets to reason about: eleven hours at 25 frames a second
_IDR = (5,)  # H.264, table 7-1: nothing behind it refers to anything before it
_IRAP = tuple(range(16, 22))  # H.265, table 7-1: nor does what is shown after it
_H264_SETS, _H265_SETS = (7, 8, 13, 15), (32, 33, 34)  # parameters of sequences and pictures
MOST_UNITS = 1000  # in a packet; a picture has few


class Irregular(Exception):
    """The packets do not tell which frames there are, or other frames came than they told."""


class Packet(NamedTuple):
    """`pts` orders the frames; decoding can begin where it is a `start`; a frame that is not
    `shown` (before an edit list's beginning) is only there to be referred to."""

    pts: int
    is_start: bool
    is_shown: bool


def starts_anew(codec: str, is_key: bool, content: memoryview, configuration: bytes) -> bool:
    """Whether decoding can begin at this packet; `is_key` is what its container says of it.

    Of H.264 and H.265 the container is not believed: it may mean a frame from which the picture
    only begins to recover. `configuration` is the avcC or hvcC box.

    Errors: Irregular without such a box, or where the packet holds parameters of the stream that
    are not in it: what follows would be decoded wrongly by who left the packet out.
    """
    if codec not in ("h264", "hevc"):
        return is_key
    at, is_start = 4 if codec == "h264" else 21, False
    if configuration[:1] != b"\1" or len(configuration) <= at:
        raise Irregular
    for n, unit in enumerate(_units(content, (configuration[at] & 3) + 1)):
        kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        is_start |= kind in (_IDR if codec == "h264" else _IRAP)
        is_set = kind in (_H264_SETS if codec == "h264" else _H265_SETS)
        if (is_set and bytes(unit) not in configuration) or n == MOST_UNITS:
            raise Irregular
    return is_start


def _units(content: memoryview, n_prefix: int) -> Iterator[memoryview]:
    """The network abstraction layer units in a packet, each behind its length."""
    at = n_prefix
    while at < len(content):
        size = int.from_bytes(content[at - n_prefix : at])
        if size:
            yield content[at : at + size]
        at += size + n_prefix


def order_of(packets: Sequence[Packet]) -> list[int]:
    """The pts of the frames that are shown, in their order.

    Errors: Irregular if they cannot be told apart, or the first ones lack what they refer to.
    """
    shown = sorted(packet.pts for packet in packets if packet.is_shown)
    if not shown or not packets[0].is_start or shown[0] < packets[0].pts:
        raise Irregular
    if any(pts == later for pts, later in pairwise(shown)):
        raise Irregular
    return shown


def needed(packets: Sequence[Packet], wanted: Collection[int]) -> list[bool]:
    """Which packets (in the order in which they are stored) must be decoded for the shown frames
    with the pts `wanted`.

    From each wanted one back to a start that is not shown after it; but none that is shown before
    the start, for those may refer to frames before it and nothing wanted refers to them.
    """
    need = [False] * len(packets)
    starts: list[int] = []
    for position, packet in enumerate(packets):
        if packet.is_start:
            starts.append(position)
        if not packet.is_shown or packet.pts not in wanted:
            continue
        first = next(s for s in reversed(starts) if packets[s].pts <= packet.pts)
        for i in range(first, position + 1):
            need[i] |= packets[i].pts >= packets[first].pts
    return need
