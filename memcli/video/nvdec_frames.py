"""What NVDEC's frames are, and how they become what the rest of the program takes.

They are NV12, or P016 for 10 bit: luma, then both chromas in turns. In host memory they are laid
out as FFmpeg's decoders do; in GPU memory they stay as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from memcli.video.gops import PacketReader
from memcli.video.source import OpenVideo
from memcli.video.types import DevicePlanes

CODECS = {"h264": "H264", "hevc": "HEVC", "vp9": "VP9", "av1": "AV1"}
# Pixel format of FFmpeg's decoder -> bytes per sample. NVDEC has ten bits on top of sixteen.
_FORMATS = {"yuv420p": 1, "yuvj420p": 1, "yuv420p10le": 2}
_SHIFT_OF_TEN_BITS = 6


class NotForNvdecError(Exception):
    """This file is for the CPU; the message says why."""


@dataclass(frozen=True)
class Layout:
    """What the frames of a file are."""

    example: av.VideoFrame
    """Its first needed key frame from FFmpeg's decoder. Pixels are written into it, because what
    else decides about the pixels of the resized frame (colour matrix and range, place of the
    chroma samples, rotation) cannot all be set on a new frame."""

    @property
    def sample_bytes(self) -> int:
        return _FORMATS[self.example.format.name]

    @property
    def frame_bytes(self) -> int:
        return self.example.width * self.example.height * 3 // 2 * self.sample_bytes


def make_layout(codec: str, example: av.VideoFrame) -> Layout:
    """Raises NotForNvdecError for what NVDEC does not give exactly."""
    if codec not in CODECS:
        raise NotForNvdecError(f"{codec} is decoded on the CPU")
    if example.format.name not in _FORMATS:
        raise NotForNvdecError(f"{example.format.name} is decoded on the CPU")
    if example.interlaced_frame:
        raise NotForNvdecError("interlaced video is decoded on the CPU")
    if example.width % 2 or example.height % 2:
        raise NotForNvdecError("odd sizes are decoded on the CPU")
    return Layout(example)


def make_example(video: OpenVideo, reader: PacketReader, number: int) -> av.VideoFrame:
    """The frame of one key packet, decoded on the CPU."""
    context = video.stream.codec_context
    try:
        reader.seek(number)
        frames = [*context.decode(reader.next()), *context.decode(None)]
        context.flush_buffers()
    except (av.FFmpegError, EOFError) as error:
        raise NotForNvdecError("its first key frame does not decode") from error
    if not frames or not frames[0].key_frame:
        raise NotForNvdecError("its first key frame does not decode alone")
    return frames[0]


def picture(frame: Any, layout: Layout) -> av.VideoFrame:
    """NVDEC's frame in host memory, without padding, as FFmpeg's decoder would give it."""
    size = _checked_size(frame, layout)
    example = layout.example
    raw = (ctypes.c_uint8 * size).from_address(int(frame.GetPtrToPlane(0)))
    deep = layout.sample_bytes > 1
    rows = np.frombuffer(memoryview(raw), np.uint16 if deep else np.uint8)
    rows = rows.reshape(-1, example.width)
    chroma = rows[example.height :]
    parts = (rows[: example.height], chroma[:, 0::2], chroma[:, 1::2])
    write_planes(example, parts, shift=_SHIFT_OF_TEN_BITS if deep else 0)
    return example


def write_planes(
    frame: av.VideoFrame, parts: Sequence[npt.NDArray[np.generic]], *, shift: int = 0
) -> None:
    """Write luma and both chromas into a planar frame, shifted to the right by `shift` bits."""
    for plane, part in zip(frame.planes, parts, strict=True):
        stored = np.frombuffer(memoryview(plane), part.dtype)
        target = stored.reshape(-1, plane.line_size // part.itemsize)
        target = target[: part.shape[0], : part.shape[1]]
        if shift:
            np.right_shift(part, shift, out=target)
        else:
            target[:] = part


def device_planes(frame: Any, layout: Layout) -> DevicePlanes:
    """Where NVDEC's frame of 8 bits lies in GPU memory, by the CUDA array interface of its planes.

    Raises NotForNvdecError for any other layout than NV12 of the size that the file should have.
    """
    _checked_size(frame, layout)
    width, height = layout.example.width, layout.example.height
    views = [view.__cuda_array_interface__ for view in frame.cuda()]
    if [tuple(view["shape"])[:2] for view in views] != [(height, width), (height // 2, width // 2)]:
        raise NotForNvdecError("its frames on the GPU are not NV12")
    pitches = {width if view.get("strides") is None else int(view["strides"][0]) for view in views}
    luma, chroma = (int(view["data"][0]) for view in views)
    pitch = pitches.pop()
    if pitches or pitch < width or pitch % 2 or not (luma and chroma):
        raise NotForNvdecError("its frames on the GPU are not NV12")
    return DevicePlanes(luma, chroma, pitch)


def _checked_size(frame: Any, layout: Layout) -> int:
    size = int(frame.framesize())
    if size != layout.frame_bytes:
        raise NotForNvdecError("the size of its frames changes")
    return size
