"""Decoding on an NVIDIA GPU's NVDEC, through PyNvVideoCodec: the same frames as on the CPU.

Only the decoder is another. Timeline, choice of frames and the packets that are decoded are those
of `memcli.video.gops`; frames are found by their timestamps; what NVDEC gives (NV12, or P016 for
10 bit, in host memory) is laid out as FFmpeg's decoders do and goes through the same swscale pass
to the model's size.

H.264, HEVC, VP9 and AV1 define every decoded bit, so any decoder gives the same frames; other
codecs do not and stay on the CPU. So do interlaced video (NVDEC would deinterlace it), chroma other
than 4:2:0, odd sizes (NVDEC rounds them up) and files whose timestamps cannot be relied on. Which
of these a file is, is read off its first needed key frame, decoded on the CPU.

Not Jetson: its NVDEC is not the Video Codec SDK's.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from memcli.errors import DeviceError, MissingDependencyError
from memcli.video.annexb import starts_afresh
from memcli.video.gops import PacketReader, PlanFailedError, start_of
from memcli.video.source import OpenVideo
from memcli.video.timeline import Packets
from memcli.video.types import Guard, VideoPacket

PACKAGE = "PyNvVideoCodec"
_CODECS = {"h264": "H264", "hevc": "HEVC", "vp9": "VP9", "av1": "AV1"}
# Start codes and parameter sets in the stream, and these before every key frame, as NVDEC needs
# when decoding starts there.
_FILTERS = {
    "h264": "h264_mp4toannexb,dump_extra=freq=keyframe",
    "hevc": "hevc_mp4toannexb,dump_extra=freq=keyframe",
}
# Pixel format of FFmpeg's decoder -> bytes per sample. NVDEC has ten bits on top of sixteen.
_FORMATS = {"yuv420p": 1, "yuvj420p": 1, "yuv420p10le": 2}
_SHIFT_OF_TEN_BITS = 6
_SESSIONS_KEPT = 4


class NotForNvdecError(Exception):
    """This file is for the CPU; the message says why."""


@dataclass(frozen=True)
class _Layout:
    """What the frames of a file are."""

    example: av.VideoFrame
    """Its first needed key frame from FFmpeg's decoder. NVDEC's pixels are written into it, because
    what else decides about the pixels of the resized frame (colour matrix and range, place of the
    chroma samples, rotation) cannot all be set on a new frame."""

    @property
    def sample_bytes(self) -> int:
        return _FORMATS[self.example.format.name]

    @property
    def frame_bytes(self) -> int:
        return self.example.width * self.example.height * 3 // 2 * self.sample_bytes


class Nvdec:
    """One GPU's decoders. `decode_targets` may be called from several threads."""

    name = "nvdec"

    def __init__(self, gpu: int = 0):
        """Raises MissingDependencyError without PyNvVideoCodec, DeviceError without driver or
        GPU."""
        self._gpu = gpu
        self._api = load(gpu)
        self._threads = threading.local()

    def decode_targets(
        self,
        video: OpenVideo,
        packets: Packets,
        targets: Mapping[int, int],
        deliver: Callable[[int, av.VideoFrame], None],
        guard: Guard,
    ) -> None:
        """As `gops.decode_targets`; the frame is written over after `deliver`.

        The packets fed are used up. Raises NotForNvdecError before any frame is delivered or in the
        midst of it, PlanFailedError, and what `guard` raises.
        """
        keys = [number for number, key in enumerate(packets.key) if key]
        reader = PacketReader(video, packets)
        first = start_of(min(targets), keys, packets.pts)
        codec = video.stream.codec_context.name
        layout = _layout(codec, _example(video, reader, first))
        by_time = {pts: number for number, pts in targets.items()}
        if len(by_time) != len(targets):
            raise PlanFailedError("two frames with one timestamp")
        epoch = min(pts for pts in packets.pts if pts is not None)
        feed = _Feed(video, codec)
        key = _session_key(video, layout)
        session = self._take(key) or _Session(self._api, codec, self._gpu)

        def take(frames: Iterator[Any]) -> None:
            for frame in frames:
                number = by_time.pop(frame.getPTS() + epoch, None)
                if number is not None:
                    deliver(number, _picture(frame, layout))

        position = -1
        try:
            for target in sorted(targets):
                start = start_of(target, keys, packets.pts)
                if position < 0 or start > position:
                    if position >= 0:
                        take(session.flush())
                    reader.seek(start)
                    position = start
                    feed.at_start = True
                while position <= target:
                    guard.check()
                    stamp = packets.pts[position]
                    time = epoch if stamp is None else stamp  # hidden frames may have none
                    for data in feed.filtered(reader.next()):
                        take(session.decode(data, time - epoch))
                    position += 1
            take(session.flush())
        except (av.FFmpegError, EOFError) as error:
            raise PlanFailedError("a packet could not be read") from error
        if by_time:
            raise PlanFailedError("a frame did not come")
        if key is not None:
            self._keep(key, session)

    def _take(self, key: tuple[Any, ...] | None) -> _Session | None:
        """A kept decoder of this thread, no longer kept: it comes back only if all went well."""
        return self._sessions().pop(key, None) if key is not None else None

    def _keep(self, key: tuple[Any, ...], session: _Session) -> None:
        kept = self._sessions()
        kept[key] = session
        if len(kept) > _SESSIONS_KEPT:
            kept.popitem(last=False)

    def _sessions(self) -> OrderedDict[tuple[Any, ...], _Session]:
        if not hasattr(self._threads, "sessions"):
            self._threads.sessions = OrderedDict()
        sessions: OrderedDict[tuple[Any, ...], _Session] = self._threads.sessions
        return sessions


def load(gpu: int) -> ModuleType:
    """PyNvVideoCodec, once driver and GPU are known to be there.

    The driver is asked first: without one, the package ends the process instead of raising.
    """
    import importlib

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise DeviceError("NVDEC needs an NVIDIA driver, and libcuda.so.1 is not here") from None
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        raise DeviceError("the NVIDIA driver does not start", next_step="See: nvidia-smi")
    if gpu >= count.value:
        raise DeviceError(f"no GPU {gpu}: there are {count.value}, counted from 0")
    logging.getLogger(PACKAGE).disabled = True  # it logs to the terminal what it then raises
    try:
        return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise DeviceError(f"{PACKAGE} does not load: {error}") from error
        raise MissingDependencyError(
            PACKAGE, purpose="decoding with NVDEC", install="pip install 'memcli[gpu]'"
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DeviceError(
            f"{PACKAGE} does not load: {reason}",
            next_step="In a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility,video",
        ) from error


class _Session:
    """One decoder of the GPU."""

    def __init__(self, api: ModuleType, codec: str, gpu: int):
        self._api = api
        try:
            self._decoder = api.CreateDecoder(
                gpuid=gpu,
                codec=getattr(api.cudaVideoCodec, _CODECS[codec]),
                cudacontext=0,  # the device's primary context, which the engine uses as well
                cudastream=0,
                usedevicememory=False,
            )
        except Exception as error:  # its exceptions share no public base but Exception
            raise NotForNvdecError(f"this GPU does not decode {codec}") from error

    def decode(self, data: memoryview, time: int) -> Iterator[Any]:
        """Frames that are ready, in order of presentation. Each is valid until the next call."""
        buffer = np.frombuffer(data, np.uint8)
        return self._decode(buffer.ctypes.data, buffer.size, time, "ENDOFPICTURE")

    def flush(self) -> Iterator[Any]:
        """The frames still held back. The decoder can then start at another key frame."""
        return self._decode(0, 0, 0, "ENDOFSTREAM")

    def _decode(self, address: int, size: int, time: int, flag: str) -> Iterator[Any]:
        packet = self._api.PacketData()
        packet.bsl_data, packet.bsl, packet.pts = address, size, time
        packet.decode_flag = getattr(self._api.VideoPacketFlag, flag)
        try:
            return iter(self._decoder.Decode(packet))
        except Exception as error:  # as above; a damaged stream, or a size the GPU does not take
            raise NotForNvdecError("NVDEC does not decode this stream") from error


class _Feed:
    """Packets as NVDEC takes them."""

    def __init__(self, video: OpenVideo, codec: str):
        self._codec = codec
        self.at_start = True
        """Whether the next packet starts a group."""
        filters = _FILTERS.get(codec)
        self._filter = BitStreamFilterContext(filters, video.stream) if filters else None

    def filtered(self, packet: VideoPacket) -> Iterator[memoryview]:
        """Uses `packet` up."""
        parts = [packet] if self._filter is None else self._filter.filter(packet)
        for part in parts:
            data = memoryview(part)
            if self.at_start and not starts_afresh(self._codec, bytes(data)):
                raise NotForNvdecError("the container calls a dependent frame a key frame")
            self.at_start = False
            yield data


def _session_key(video: OpenVideo, layout: _Layout) -> tuple[Any, ...] | None:
    """Files of one key can share a decoder: it is laid out by the first one's parameter sets.

    None where these are not known before decoding, so that another file's may need more memory.
    """
    context = video.stream.codec_context
    parameters = bytes(context.extradata or b"")
    if context.name in _FILTERS and not parameters:
        return None
    example = layout.example
    return context.name, example.width, example.height, example.format.name, parameters


def _example(video: OpenVideo, reader: PacketReader, number: int) -> av.VideoFrame:
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


def _layout(codec: str, example: av.VideoFrame) -> _Layout:
    if codec not in _CODECS:
        raise NotForNvdecError(f"{codec} is decoded on the CPU")
    if example.format.name not in _FORMATS:
        raise NotForNvdecError(f"{example.format.name} is decoded on the CPU")
    if example.interlaced_frame:
        raise NotForNvdecError("interlaced video is decoded on the CPU")
    if example.width % 2 or example.height % 2:
        raise NotForNvdecError("odd sizes are decoded on the CPU")
    return _Layout(example)


def _picture(frame: Any, layout: _Layout) -> av.VideoFrame:
    """NVDEC's frame as FFmpeg's decoder would give it, in planes.

    NVDEC's lies in host memory without padding: luma, then both chromas in turns.
    """
    size = int(frame.framesize())
    if size != layout.frame_bytes:
        raise NotForNvdecError("the size of its frames changes")
    picture = layout.example
    raw = (ctypes.c_uint8 * size).from_address(int(frame.GetPtrToPlane(0)))
    kind = np.uint16 if layout.sample_bytes > 1 else np.uint8
    rows = np.frombuffer(memoryview(raw), kind).reshape(-1, picture.width)
    chroma = rows[picture.height :]
    parts = (rows[: picture.height], chroma[:, 0::2], chroma[:, 1::2])
    for plane, part in zip(picture.planes, parts, strict=True):
        stored = np.frombuffer(memoryview(plane), kind)
        target = stored.reshape(-1, plane.line_size // layout.sample_bytes)
        target = target[: part.shape[0], : part.shape[1]]
        if layout.sample_bytes > 1:
            np.right_shift(part, _SHIFT_OF_TEN_BITS, out=target)
        else:
            target[:] = part
    return picture
