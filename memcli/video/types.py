"""What reading a video takes and gives: limits in, a clip out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from av.packet import Packet

from memcli.errors import ExitCode, MemcliError, VideoError, VideoErrorCode

if TYPE_CHECKING:  # PyAV's classes take type arguments only in the eyes of a type checker
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    VideoPacket = Packet[VideoStream]
else:
    VideoPacket = Packet


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video once its first needed frame is decoded."""

    duration_s: float | None
    """Length of the presentation interval in seconds; None where the file does not say."""
    width: int
    """Pixels per row as shown, that is after `rotation`."""
    height: int
    codec: str
    rotation: int
    """Counter-clockwise turn that was applied to the decoded frames: 0, 90, 180 or 270 degrees."""
    container: str


class DeviceFrames(Protocol):
    """The prepared frames of a clip in a GPU's memory: uint8 [T, crop_height, crop_width, 3]."""

    def host(self) -> npt.NDArray[np.uint8]:
        """A copy in host memory."""
        ...


@dataclass(frozen=True)
class DevicePlanes:
    """A decoded frame in a GPU's memory, as NV12. Valid until its decoder is used again."""

    luma: int
    """Address of H rows of W bytes."""
    chroma: int
    """Address of H / 2 rows of W / 2 pairs of bytes, blue and red difference."""
    pitch: int
    """Bytes from one row to the next, of both."""


class ResizePlan(Protocol):
    """How the frames of one file are resized on a GPU."""

    def new_clip(self, count: int) -> DeviceFrames:
        """Room for `count` prepared frames."""
        ...

    def put(self, planes: DevicePlanes, clip: DeviceFrames, slot: int) -> None:
        """Prepare a frame and write it into a clip; done on return."""
        ...


class Resizer(Protocol):
    """Prepares frames on a GPU. May be used from several threads."""

    def plan(self, example: VideoFrame) -> ResizePlan | None:
        """For the frames of a file that are like `example`, whose pixels are written over; None if
        they cannot be prepared to the bytes that the CPU gives."""
        ...

    def gather(self, clips: Sequence[Clip]) -> Any:
        """The frames of several clips, wherever they are, as one array on the GPU that an engine
        takes: uint8 [B, T, crop_height, crop_width, 3]."""
        ...


@dataclass(frozen=True)
class DevicePicture:
    """A frame that is still on the GPU where it was decoded."""

    example: VideoFrame
    """What FFmpeg's decoder would have given, but for the pixels."""
    planes: DevicePlanes
    plan: ResizePlan


@dataclass(frozen=True)
class Clip:
    """The prepared frames of one video.

    `damage` says in one line what was lost when the file is damaged and only a part of it could
    be decoded; it is None for a sound file.
    """

    frames: npt.NDArray[np.uint8]
    """[T, crop_height, crop_width, 3], C-contiguous RGB. T is 0 where they are on a GPU."""
    times_s: npt.NDArray[np.float64]
    """[T], when each shown frame starts, in seconds after the start of the first frame."""
    info: VideoInfo
    frames_used: int
    """Distinct source frames among the T shown."""
    damage: str | None
    decoder: str = "cpu"
    """What decoded it: `cpu`, `nvdec`, or `nvdec+gpu-resize`, which resized it as well."""
    device_frames: DeviceFrames | None = None
    """The frames where they are on a GPU."""

    def host_frames(self) -> npt.NDArray[np.uint8]:
        """The frames in host memory, wherever they are."""
        return self.frames if self.device_frames is None else self.device_frames.host()


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds on what one file may cost. They keep hostile files from exhausting the machine."""

    max_pixels: int = 8192 * 4352
    """Pixels per frame. The default is the largest picture that the highest level (6.2) of
    H.264, HEVC, VP9 and AV1 allows; a reference frame of it takes 53 MB in 8 bit 4:2:0."""
    max_packet_bytes: int = 64 << 20
    """Compressed bytes kept in memory between finding and decoding the frames to show. Files
    with more video than this are read again where frames are needed."""
    max_packets: int = 8_000_000
    """Frames per file (37 hours at 60 frames per second); a table row of each is kept."""


class DecodeCancelledError(MemcliError):
    """The caller's `cancelled` said so. No statement about the file."""

    exit_code = ExitCode.INTERRUPTED


@dataclass(frozen=True)
class Guard:
    """Asked between packets whether to go on. `deadline` is a value of time.monotonic()."""

    deadline: float | None = None
    cancelled: Callable[[], bool] | None = None

    def check(self) -> None:
        """Raise VideoError (TIMEOUT) after the deadline, DecodeCancelledError when cancelled."""
        if self.cancelled is not None and self.cancelled():
            raise DecodeCancelledError("decoding was cancelled")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise timeout_error()

    def remaining_s(self) -> float | None:
        """Seconds left, at least a millisecond; None without a deadline."""
        if self.deadline is None:
            return None
        return max(self.deadline - time.monotonic(), 1e-3)


def timeout_error() -> VideoError:
    """The error of a file that took longer than it was given."""
    return VideoError(VideoErrorCode.TIMEOUT, "not decoded within the time given to one file")
