"""cNN: the whole stream through libx264 at CRF NN and back (FaceForensics++'s c23 and c40)."""

from dfdetect.video import H264Loop, VideoInfo


class H264(H264Loop):
    def __init__(self, level: int, info: VideoInfo) -> None:
        super().__init__(level, info.frame_rate)
