"""jNN: each frame through JPEG at quality NN (4:2:0, libjpeg as OpenCV ships it) and back."""

from dataclasses import dataclass

import cv2
import numpy as np

from dfdetect.video import Picture, VideoInfo


def jpeg_round_trip(image: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [H,W,3] RGB -> the same after JPEG at `quality` (1..100)."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, code = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


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
