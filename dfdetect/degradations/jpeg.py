"""jNN: each frame through JPEG at quality NN (4:2:0, libjpeg as OpenCV ships it) and back."""

from dataclasses import dataclass

import numpy as np

from dfdetect.quality import jpeg_round_trip
from dfdetect.video import Picture, VideoInfo


@dataclass(frozen=True)
class _JpegPicture(Picture):
    """Compressed when somebody looks: most frames of a stream are never cut."""

    jpeg_quality: int = 75

    def rgb(self) -> np.ndarray:
        return jpeg_round_trip(super().rgb(), self.jpeg_quality)


class Jpeg:
    def __init__(self, level: int, info: VideoInfo) -> None:
        self._level = level

    def push(self, picture: Picture) -> list[Picture]:
        return [_JpegPicture(**vars(picture), jpeg_quality=self._level)]

    def flush(self) -> list[Picture]:
        return []
