"""Decoding on an NVIDIA GPU's NVDEC, through PyNvVideoCodec: the same frames as on the CPU.

Only the decoder is another. Timeline, choice of frames and the packets that are decoded are those
of `memcli.video.gops`; frames are found by their timestamps; what NVDEC gives (NV12, or P016 for
10 bit, in host memory) is laid out as FFmpeg's decoders do and goes through the same swscale pass
to the model's size. With a resizer, 8-bit frames stay in GPU memory and are resized there, where
that is shown to give the same bytes.

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
from types import ModuleType
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from memcli.errors import DeviceError, MissingDependencyError
from memcli.video.annexb import starts_afresh
from memcli.video.gops import PacketReader, PlanFailedError, start_of
from memcli.video.nvdec_frames import (
    CODECS,
    Layout,
    NotForNvdecError,
    device_planes,
    make_example,
    make_layout,
    picture,
)
from memcli.video.source import OpenVideo
from memcli.video.timeline import Packets
from memcli.video.types import DevicePicture, Guard, Resizer, VideoPacket

PACKAGE = "PyNvVideoCodec"
NVDEC, GPU_RESIZE = "nvdec", "nvdec+gpu-resize"
"""What rows say of videos that were resized on the CPU and on the GPU."""
# Start codes and parameter sets in the stream, and these before every key frame, as NVDEC needs
# when decoding starts there.
_FILTERS = {
    "h264": "h264_mp4toannexb,dump_extra=freq=keyframe",
    "hevc": "hevc_mp4toannexb,dump_extra=freq=keyframe",
}
_SESSIONS_KEPT = 4
_CPU = "use --decoder cpu"


class Nvdec:
    """One GPU's decoders. `decode_targets` may be called from several threads."""

    def __init__(self, gpu: int = 0, resizer: Resizer | None = None):
        """`resizer` prepares frames on the same GPU; without one they come to the host.

        Raises MissingDependencyError without PyNvVideoCodec, DeviceError without driver or GPU.
        """
        self._gpu = gpu
        self.resizer = resizer
        self._api = load(gpu)
        self._threads = threading.local()

    @property
    def name(self) -> str:
        """What rows say of videos for which it did all that it can."""
        return NVDEC if self.resizer is None else GPU_RESIZE

    def decode_targets(
        self,
        video: OpenVideo,
        packets: Packets,
        targets: Mapping[int, int],
        deliver: Callable[[int, av.VideoFrame | DevicePicture], None],
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
        layout = make_layout(codec, make_example(video, reader, first))
        plan = None
        if self.resizer is not None and layout.sample_bytes == 1:
            plan = self.resizer.plan(layout.example)
        by_time = {pts: number for number, pts in targets.items()}
        if len(by_time) != len(targets):
            raise PlanFailedError("two frames with one timestamp")
        epoch = min(pts for pts in packets.pts if pts is not None)
        feed = _Feed(video, codec)
        on_device = plan is not None
        key = _session_key(video, layout, on_device)
        session = self._take(key) or _Session(self._api, codec, self._gpu, on_device=on_device)

        def take(frames: Iterator[Any]) -> None:
            for frame in frames:
                number = by_time.pop(frame.getPTS() + epoch, None)
                if number is None:
                    continue
                if plan is None:
                    deliver(number, picture(frame, layout))
                else:
                    planes = device_planes(frame, layout)
                    deliver(number, DevicePicture(layout.example, planes, plan))

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
        raise DeviceError(
            "NVDEC needs an NVIDIA driver, and libcuda.so.1 is not here",
            next_step=f"Install it (in a container: docker run --gpus all), or {_CPU}",
        ) from None
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        raise DeviceError(
            "the NVIDIA driver does not start", next_step=f"See: nvidia-smi; or {_CPU}"
        )
    if gpu >= count.value:
        raise DeviceError(
            f"no GPU {gpu}: there are {count.value}, counted from 0",
            next_step=f"Use --device cuda:N with another N, or {_CPU}",
        )
    logging.getLogger(PACKAGE).disabled = True  # it logs to the terminal what it then raises
    try:
        return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise DeviceError(
                f"{PACKAGE} does not load: {error}",
                next_step=f"Install it again: pip install 'memcli[gpu]', or {_CPU}",
            ) from error
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

    def __init__(self, api: ModuleType, codec: str, gpu: int, *, on_device: bool):
        self._api = api
        self._on_device = on_device
        try:
            self._decoder = api.CreateDecoder(
                gpuid=gpu,
                codec=getattr(api.cudaVideoCodec, CODECS[codec]),
                cudacontext=0,  # the device's primary context, which the engine uses as well
                cudastream=0,
                usedevicememory=on_device,
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
            frames = self._decoder.Decode(packet)
            if self._on_device and frames:
                self._decoder.SyncOnCUStream()  # what reads them does so on streams of its own
            return iter(frames)
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


def _session_key(video: OpenVideo, layout: Layout, on_device: bool) -> tuple[Any, ...] | None:
    """Files of one key can share a decoder: it is laid out by the first one's parameter sets.

    None where these are not known before decoding, so that another file's may need more memory.
    """
    context = video.stream.codec_context
    parameters = bytes(context.extradata or b"")
    if context.name in _FILTERS and not parameters:
        return None
    example = layout.example
    size = (example.width, example.height)
    return context.name, *size, example.format.name, on_device, parameters
