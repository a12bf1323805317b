"""PyNvVideoCodec as `memcli.video.nvdec` uses it, decoding in software.

It takes what NVDEC takes (start codes, parameter sets in the stream, VideoPacketFlag), holds frames
back as it does, and gives NV12 or P016 in host memory that the next call overwrites. What it offers
is compared with the real package's signatures in `test_nvdec_api.py`.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import av
import numpy as np

_NAMES = {"H264": "h264", "HEVC": "hevc", "VP9": "vp9", "AV1": "libdav1d"}


class cudaVideoCodec(IntEnum):
    H264 = 4
    HEVC = 8
    VP9 = 10
    AV1 = 11


class VideoPacketFlag(IntEnum):
    ENDOFSTREAM = 1
    TIMESTAMP = 2
    DISCONTINUITY = 4
    ENDOFPICTURE = 8


class PacketData:
    def __init__(self) -> None:
        self.bsl_data = self.bsl = self.pts = self.decode_flag = 0


class DecodedFrame:
    def __init__(self, data: np.ndarray, pts: int):
        self._data = data
        self._pts = pts

    def getPTS(self) -> int:
        return self._pts

    def framesize(self) -> int:
        return self._data.size

    def GetPtrToPlane(self, arg0: int) -> int:
        assert arg0 == 0
        return self._data.ctypes.data


class PyNvDecoder:
    def __init__(self, codec: cudaVideoCodec):
        self._codec = codec
        self._context = self._new()
        self._lent: list[np.ndarray] = []

    def _new(self) -> Any:
        context = av.CodecContext.create(_NAMES[self._codec.name], "r")
        context.thread_count = 1
        return context

    def Decode(self, arg0: PacketData) -> list[DecodedFrame]:
        for data in self._lent:
            data[:] = 77  # what was lent before is gone
        if not arg0.bsl:
            assert arg0.decode_flag == VideoPacketFlag.ENDOFSTREAM
            frames = self._context.decode(None)
            self._context = self._new()
        else:
            assert arg0.decode_flag == VideoPacketFlag.ENDOFPICTURE
            raw = bytes((ctypes.c_uint8 * arg0.bsl).from_address(arg0.bsl_data))
            packet = av.Packet(raw)
            packet.pts = arg0.pts
            frames = self._context.decode(packet)
        lent = [DecodedFrame(semi_planar(frame), frame.pts) for frame in frames]
        self._lent = [frame._data for frame in lent]
        return lent


def semi_planar(frame: av.VideoFrame) -> np.ndarray:
    """NV12 or P016 bytes of a 4:2:0 frame, without any arithmetic but the shift to the top bits."""
    deep = frame.format.name == "yuv420p10le"
    kind = np.uint16 if deep else np.uint8
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        planes.append(rows[:, : plane.width * np.dtype(kind).itemsize].copy().view(kind))
    luma, blue, red = planes
    chroma = np.stack([blue, red], axis=-1).reshape(blue.shape[0], -1)
    whole = np.concatenate([luma.ravel(), chroma.ravel()])
    return (whole << 6 if deep else whole).view(np.uint8)


def make_api() -> Any:
    """A stand-in of the module; `decoders` counts what was created."""
    api = SimpleNamespace(
        cudaVideoCodec=cudaVideoCodec,
        VideoPacketFlag=VideoPacketFlag,
        PacketData=PacketData,
        DecodedFrame=DecodedFrame,
        PyNvDecoder=PyNvDecoder,
        decoders=[],
    )

    def CreateDecoder(
        gpuid: int = 0,
        codec: cudaVideoCodec = cudaVideoCodec.H264,
        cudacontext: int = 0,
        cudastream: int = 0,
        usedevicememory: bool = False,
    ) -> PyNvDecoder:
        assert not usedevicememory
        api.decoders.append((gpuid, codec.name))
        return PyNvDecoder(codec)

    api.CreateDecoder = CreateDecoder
    return api
