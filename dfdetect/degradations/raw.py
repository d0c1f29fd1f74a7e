"""raw: the frames as they were shipped."""

from dfdetect.video import Picture, VideoInfo


class Raw:
    def __init__(self, level: int, info: VideoInfo) -> None:
        """Nothing to set up: `level` and `info` mean nothing to raw frames."""

    def push(self, picture: Picture) -> list[Picture]:
        return [picture]

    def flush(self) -> list[Picture]:
        return []
