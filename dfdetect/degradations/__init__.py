"""Degradations of a video stream: pictures in, the same pictures at a lower quality out.

A degradation sees every frame (`push`) because video compression works between frames; it returns
the pictures that are ready, and the rest on `flush`. Add one: a file here, and a line in SHELF.
raw needs none, and all others work on a crop alone (corruptions.py).
"""

from collections.abc import Callable
from typing import Protocol

from dfdetect.degradations.h264 import H264
from dfdetect.quality import Quality
from dfdetect.video import Picture, VideoInfo


class Degradation(Protocol):
    def push(self, picture: Picture) -> list[Picture]: ...

    def flush(self) -> list[Picture]: ...


SHELF: dict[str, Callable[[int, VideoInfo], Degradation]] = {"h264": H264}


def make_degradation(quality: Quality, info: VideoInfo) -> Degradation:
    return SHELF[quality.kind](int(quality.level), info)
