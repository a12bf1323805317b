"""Opening a video file: checks before FFmpeg sees it, what FFmpeg may do, the stream to decode.

FFmpeg gets an open descriptor (its `fd:` protocol), never a name. So a name cannot be taken for
a URL, a pattern ("%03d") or an option; the file that was checked is the file that is read; and
since `fd` is the only protocol allowed, a playlist or a reference inside hostile media cannot
make it open anything else. Reading stays native, without calls back into Python.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from memcli.errors import VideoError, VideoErrorCode
from memcli.video.extent import lacks_index
from memcli.video.files import from_os_error
from memcli.video.types import DecodeLimits, Guard, VideoPacket, timeout_error

MAX_READ_ERRORS = 8
"""Failures of `video_packets` after which a file is not read on."""
# Demuxers of files that hold their own media. Left out on purpose: everything that opens other
# files or addresses (hls, dash, concat, sdp, image2 and the like) and capture devices.
_VIDEO_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,flv,live_flv,asf,asf_o,"
    "rm,ogg,gif,apng,mxf,mxf_opatom,dv,nut,wtv,nsv,roq,smk,bink,yuv4mpegpipe,mjpeg,mjpeg_2000,"
    "h261,h263,vc1,vc1test,dirac,avs2,avs3,cavsvideo,evc,flic,4xm,ea,film_cpk,gxf,lxf,dxa,pva,"
    "thp,ivr,webp_anim"
)
# Recognised only to say that a file holds sound or a picture instead of calling it garbage.
_AUDIO_FORMATS = (
    "mp3,wav,w64,aac,flac,ac3,eac3,dts,dtshd,truehd,aiff,au,caf,ape,wv,tta,tak,amr,amrnb,amrwb,"
    "mpc,mpc8,dsf,voc,loas"
)
_STILL_BRANDS = frozenset({"avif", "heic", "heix", "mif1", "miaf"})
_PLAYLIST_STARTS = (b"#EXTM3U", b"ffconcat", b"v=0\r\n", b"v=0\n", b"<?xml", b"<MPD")
_CONTAINER_STARTS = (b"\x1aE\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"GIF8", b"0&\xb2u", b"\0\0\1\xba")
_CONTAINER_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"})
_NO_INDEX = "its index (moov) is not all there: the file is cut short, or was never finished"
# Before 18, options for decoders crash PyAV where streams turn up late, as in MPEG-PS: it sizes
# their array by the streams known at first and frees it by those known in the end.
_PROBING_CAN_BE_BOUND = int(av.__version__.split(".")[0]) >= 18
_DISCARD: Any = getattr(av.stream, "Discard", None)  # PyAV 18 and later
# Titles and comments in any encoding; PyAV 19 always does so and takes no such argument.
_METADATA: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)


@dataclass(frozen=True)
class OpenVideo:
    """An open file and the video stream of it that is decoded."""

    fd: int
    container: InputContainer
    stream: VideoStream
    probed: bool
    """Whether FFmpeg has guessed how far frames are reordered."""


@contextmanager
def open_video(
    fd: int, limits: DecodeLimits, guard: Guard, threads: int, *, probe: bool = False
) -> Iterator[OpenVideo]:
    """Open the media behind `fd` and choose its video stream; no frame is taken yet.

    FFmpeg decodes up to seven frames of H.264 while opening, to guess how far B-frames are
    reordered; that can take as long as a tenth of all we decode, and happens before the frame
    size can be checked. MP4 and Matroska headers say all else, and the reordering shows in the
    packets (see `gops`), so for these it is left out unless `probe` asks for it.

    Raises VideoError: NOT_MEDIA, NO_VIDEO, IMAGE, UNSUPPORTED, DAMAGED, TOO_LARGE, READ, TIMEOUT.
    """
    guard.check()
    probed = probe or not _header_suffices(fd)
    container = _open(fd, limits, guard, probe=probed and _PROBING_CAN_BE_BOUND)
    try:
        stream = _choose_stream(container, fd, guard)
        _check_size(stream, limits)
        if not _PROBING_CAN_BE_BOUND and probed:
            container.close()
            container = _open(fd, limits, guard, probe=True)
            stream = _choose_stream(container, fd, guard)
        elif not stream.codec_context.width:
            # Probing leaves no size where it is over the limit; the header still tells it.
            container.close()
            container = _open(fd, limits, guard, probe=not probed)
            stream = _choose_stream(container, fd, guard)
            _check_size(stream, limits)
            if probed:
                container.close()
                container = _open(fd, limits, guard, probe=True)
                stream = _choose_stream(container, fd, guard)
            probed = True
        for other in container.streams:
            if other is not stream and _DISCARD is not None:
                other.discard = _DISCARD.all  # demuxers then skip sound and subtitles unread
        context = stream.codec_context
        context.thread_count = max(1, threads)
        context.thread_type = "AUTO" if threads > 1 else "SLICE"
        context.options = {"max_pixels": _decoder_limit(limits)}
        yield OpenVideo(fd, container, stream, probed)
    finally:
        container.close()


def _header_suffices(fd: int) -> bool:
    head = os.pread(fd, 8, 0)
    return head[4:] == b"ftyp" or head.startswith(b"\x1aE\xdf\xa3")


def _open(fd: int, limits: DecodeLimits, guard: Guard, *, probe: bool) -> InputContainer:
    os.lseek(fd, 0, os.SEEK_SET)
    remaining = guard.remaining_s()
    options = {
        "fd": str(fd),
        "protocol_whitelist": "fd",
        "format_whitelist": _allowed_formats(),
    }
    if not probe:
        options["codec_whitelist"] = "none"  # probing may use no decoder; ours is not affected
    bounded = probe and _PROBING_CAN_BE_BOUND
    try:
        container: InputContainer = av.open(
            "fd:",
            options={"max_pixels": _decoder_limit(limits)} if bounded else {},
            container_options=options,
            timeout=None if remaining is None else (remaining, remaining),
            **_METADATA,
        )
        return container
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _from_open_error(error, fd, guard) from error


def video_packets(video: OpenVideo) -> Iterator[VideoPacket]:
    """Packets of the video stream from where the file is, those without content included.

    Raises av.FFmpegError on what cannot be read; call again to go on behind it.
    """
    try:
        yield from video.container.demux(video.stream)
    except IndexError:
        # Of a stream that turned up while reading: PyAV's demux looks for it in its list when it
        # flushes at the end of the file (InputContainer.demux, "Flush!"), so all has been read.
        return


def _decoder_limit(limits: DecodeLimits) -> str:
    """What decoders may allocate: they count pixels with padding to blocks of up to 128 × 128."""
    return str(limits.max_pixels * 5 // 4 + (1 << 20))


def is_encrypted(fd: int) -> bool:
    """Whether an MP4 says that its samples are encrypted (ISO/IEC 23001-7: an `encv` entry)."""
    span = 1 << 20
    size = os.fstat(fd).st_size
    return any(
        b"encv" in part and b"sinf" in part
        for part in (os.pread(fd, span, 0), os.pread(fd, span, max(0, size - span)))
    )


@cache
def _allowed_formats() -> str:
    pictures = sorted(name for name in av.formats_available if name.endswith("_pipe"))
    return ",".join([_VIDEO_FORMATS, _AUDIO_FORMATS, *pictures])


def _from_open_error(error: Exception, fd: int, guard: Guard) -> VideoError:
    code = VideoErrorCode
    if isinstance(error, av.error.ExitError):
        return timeout_error()
    try:
        head = os.pread(fd, 64, 0)
    except OSError as read_error:
        return from_os_error(read_error)
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE):
        return from_os_error(error)
    if lacks_index(fd, guard):
        return VideoError(code.DAMAGED, _NO_INDEX)
    if head.startswith(_PLAYLIST_STARTS):
        return VideoError(code.NOT_MEDIA, "a playlist or a text file, not a video")
    if head.startswith(_CONTAINER_STARTS) or head[4:8] in _CONTAINER_BOXES:
        return VideoError(code.DAMAGED, "the file starts like a video but its header is damaged")
    return VideoError(code.NOT_MEDIA, "not a video, or in a format that is not known")


def _choose_stream(container: InputContainer, fd: int, guard: Guard) -> VideoStream:
    code = VideoErrorCode
    brand = str(container.metadata.get("major_brand", "")).strip()
    if container.format.name.endswith("_pipe") or brand in _STILL_BRANDS:
        raise VideoError(code.IMAGE, "a picture, not a video")
    cover = av.stream.Disposition.attached_pic
    videos = [s for s in container.streams.video if not s.disposition & cover]
    if not videos:
        if any(s.codec_context is not None for s in container.streams.audio):
            raise VideoError(code.NO_VIDEO, "the file has sound but no video")
        if any(s.type in ("unknown", "data", "video") for s in container.streams):
            raise VideoError(code.UNSUPPORTED, "no stream of the file can be decoded here")
        if lacks_index(fd, guard):
            raise VideoError(code.DAMAGED, _NO_INDEX)
        raise VideoError(code.NOT_MEDIA, "the file holds neither video nor sound")
    stream = next((s for s in videos if s.codec_context is not None), None)
    if stream is None:
        reason = "its video is encrypted" if is_encrypted(fd) else "its video codec is not known"
        raise VideoError(code.UNSUPPORTED, reason)
    return stream


def _check_size(stream: VideoStream, limits: DecodeLimits) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.max_pixels:
        raise VideoError(
            VideoErrorCode.TOO_LARGE,
            f"frames of {width} × {height} pixels are over the limit of {limits.max_pixels} pixels",
        )


def frame_rotation(frame: Any) -> int:
    """Counter-clockwise turn to apply to a decoded frame: 0, 90, 180 or 270 degrees.

    Display matrices that turn by anything else are ignored, as players do.
    """
    degrees = int(frame.rotation)
    quarter_turns = round(degrees / 90)
    # PyAV cuts 89.99, what a matrix of fixed-point numbers may come to, down to 89.
    return quarter_turns % 4 * 90 if abs(degrees - 90 * quarter_turns) <= 1 else 0
