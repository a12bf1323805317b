"""PyNvVideoCodec as `memcli.video.nvdec` uses it, decoding in software.

It takes what NVDEC takes (start codes, parameter sets in the stream, VideoPacketFlag), holds frames
back as it does, and gives NV12 or P016 that the next call overwrites: in host memory, or, where
device memory is asked for, by the CUDA array interface, with its content there only after
`SyncOnCUStream` and each row padded by `PyNvDecoder.padding` bytes. What it offers is compared with
the real package's signatures in `test_nvdec_api.py`.
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


class CAIMemoryView:
    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], address: int):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "strides": strides,
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


class DecodedFrame:
    def __init__(self, data: np.ndarray, pts: int, size: tuple[int, int] | None = None):
        """`size`, height and width, of a frame on the device; then `data` is padded by row."""
        self._data = data
        self._pts = pts
        self._size = size
        self.pending: np.ndarray | None = None
        """What comes to lie in `_data`."""

    def getPTS(self) -> int:
        return self._pts

    def framesize(self) -> int:
        if self._size is None:
            return self._data.size
        return self._size[0] * self._size[1] * 3 // 2

    def GetPtrToPlane(self, arg0: int) -> int:
        assert arg0 == 0
        assert self._size is None, "an address on the device is of no use here"
        return self._data.ctypes.data

    def cuda(self) -> list[CAIMemoryView]:
        assert self._size is not None
        height, width = self._size
        pitch, start = self._data.shape[1], self._data.ctypes.data
        return [
            CAIMemoryView((height, width, 1), (pitch, 1, 1), start),
            CAIMemoryView((height // 2, width // 2, 2), (pitch, 2, 1), start + height * pitch),
        ]


class PyNvDecoder:
    padding = 0

    def __init__(self, codec: cudaVideoCodec, on_device: bool):
        self._codec = codec
        self._on_device = on_device
        self._context = self._new()
        self._lent: list[DecodedFrame] = []

    def _new(self) -> Any:
        context = av.CodecContext.create(_NAMES[self._codec.name], "r")
        context.thread_count = 1
        return context

    def Decode(self, arg0: PacketData) -> list[DecodedFrame]:
        for lent in self._lent:
            lent._data[:] = 77  # what was lent before is gone
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
        self._lent = [self._lend(frame) for frame in frames]
        return list(self._lent)

    def SyncOnCUStream(self) -> None:
        for lent in self._lent:
            if lent.pending is not None:
                lent._data[:, : lent.pending.shape[1]] = lent.pending

    def _lend(self, frame: av.VideoFrame) -> DecodedFrame:
        data = semi_planar(frame)
        if not self._on_device:
            return DecodedFrame(data, frame.pts)
        rows = data.reshape(-1, frame.width)
        memory = np.full((len(rows), frame.width + self.padding), 77, np.uint8)
        lent = DecodedFrame(memory, frame.pts, (frame.height, frame.width))
        lent.pending = rows
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
        CAIMemoryView=CAIMemoryView,
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
        api.decoders.append((gpuid, codec.name))
        return PyNvDecoder(codec, usedevicememory)

    api.CreateDecoder = CreateDecoder
    return api
