"""Reading videos: which frames a model looks at, and getting them fast."""

from memcli.video.clip import check_video, read_clip
from memcli.video.types import Clip, DecodeCancelledError, DecodeLimits, VideoInfo

__all__ = [
    "Clip",
    "DecodeCancelledError",
    "DecodeLimits",
    "VideoInfo",
    "check_video",
    "read_clip",
]
