"""Collects prepared frames into a clip. Decoded frames are never kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

from memcli.errors import VideoError, VideoErrorCode
from memcli.preprocess import FramePreparer
from memcli.spec import FramePrep
from memcli.video.sampling import instants
from memcli.video.source import OpenVideo, frame_rotation
from memcli.video.types import Clip, DecodeLimits, DeviceFrames, DevicePicture, VideoInfo

Shaped = Callable[[int, int], FramePrep]
"""How to prepare the frames of a video of this height and width, as shown."""


class ClipBuilder:
    """The T frames of one clip while they come in, in any order."""

    def __init__(
        self, prep: FramePrep, count: int, limits: DecodeLimits, shaped: Shaped | None = None
    ):
        self.count = count
        self._sampling = prep.sampling
        self._shaped = shaped
        self._limits = limits
        self._make_room(prep)
        self._filled = np.zeros(count, dtype=np.bool_)
        self._used = 0
        self._on_device: DeviceFrames | None = None
        self._info: VideoInfo | None = None

    def instants(self, begin: int, last: int, end: int) -> list[int]:
        """The ticks of the T instants to show; see `memcli.video.sampling.instants`."""
        return instants(self._sampling, begin, last, end, self.count)

    def put(
        self, decoded: av.VideoFrame | DevicePicture, slots: Sequence[int], video: OpenVideo
    ) -> None:
        """Prepare one decoded frame and show it at all `slots` of the clip.

        The frames of a clip are all in host memory, or all on the GPU. Raises VideoError: TOO_LARGE
        if the frame is over the limit, UNSUPPORTED if its pixel format cannot be turned into RGB.
        """
        frame = decoded.example if isinstance(decoded, DevicePicture) else decoded
        if frame.width * frame.height > self._limits.max_pixels:
            raise VideoError(
                VideoErrorCode.TOO_LARGE,
                f"a frame of {frame.width} × {frame.height} pixels is over the limit",
            )
        rotation = frame_rotation(frame)
        if self._info is None:
            turned = rotation % 180 != 0
            info = self._info = VideoInfo(
                duration_s=None,
                width=frame.height if turned else frame.width,
                height=frame.width if turned else frame.height,
                codec=video.stream.codec_context.name,
                rotation=rotation,
                container=video.container.format.name,
            )
            if self._shaped is not None:
                self._make_room(self._shaped(info.height, info.width))
        if isinstance(decoded, DevicePicture):
            self._prepare_on_device(decoded, slots)
        else:
            self._prepare(frame, rotation, slots)
        self._filled[list(slots)] = True
        self._used += 1

    def _make_room(self, prep: FramePrep) -> None:
        self._preparer = FramePreparer(prep)
        self._frames = np.empty((self.count, *prep.frame_shape()), dtype=np.uint8)

    def _prepare(self, frame: av.VideoFrame, rotation: int, slots: Sequence[int]) -> None:
        try:
            first = self._frames[slots[0]]
            self._preparer.prepare(frame, rotation, out=first)
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(
                VideoErrorCode.UNSUPPORTED,
                f"its pixel format {frame.format.name} cannot be turned into RGB",
            ) from error
        for slot in slots[1:]:
            self._frames[slot] = first

    def _prepare_on_device(self, picture: DevicePicture, slots: Sequence[int]) -> None:
        if self._on_device is None:
            self._on_device = picture.plan.new_clip(self.count)
        for slot in slots:
            picture.plan.put(picture.planes, self._on_device, slot)

    def clip(
        self,
        ticks: Sequence[int],
        length: int | None,
        tick_s: Fraction | None,
        damage: str | None,
    ) -> Clip:
        """The finished clip. `ticks` per slot and `length` count `tick_s` seconds each.

        Raises VideoError (READ) if a slot was not filled: the frames to show were found on a
        first pass over the file, and the second did not give all of them.
        """
        if self._info is None or not self._filled.all():
            raise VideoError(
                VideoErrorCode.READ, "the file gave fewer frames when it was read again"
            )
        unit = tick_s or Fraction(1)
        times = np.array([float(tick * unit) for tick in ticks], dtype=np.float64)
        info = VideoInfo(
            duration_s=None if length is None else float(length * unit),
            width=self._info.width,
            height=self._info.height,
            codec=self._info.codec,
            rotation=self._info.rotation,
            container=self._info.container,
        )
        on_device = self._on_device
        frames = self._frames if on_device is None else self._frames[:0]
        return Clip(frames, times, info, self._used, damage, device_frames=on_device)
