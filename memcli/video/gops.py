"""Decoding only what the frames to show depend on.

From the key frame before each target to the target itself: nothing behind a group's last target
is decoded, and between targets frames that no other frame refers to are dropped by the decoder
(`skip_frame`), for codecs where that provably leaves all others as they are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping

import av
from av.video.codeccontext import VideoCodecContext

from memcli.video.source import OpenVideo, video_packets
from memcli.video.timeline import Packets
from memcli.video.types import Guard, VideoPacket

# Codecs in which the decoder can tell a frame that nothing refers to by its own header. Not HEVC
# in general: there the mark only speaks of the same temporal layer (H.265, 7.4.2.2), see
# `_can_drop`. Not VP9 and AV1: their decoders do not drop single frames.
_DROPPABLE = frozenset({"h264", "mpeg1video", "mpeg2video", "mpeg4", "vp8"})
# Codecs whose decoders tell a true key frame from a packet that the container wrongly calls one.
_HONEST_KEYS = frozenset({"h264", "hevc", "mpeg4", "mpeg2video"})


class PlanFailedError(Exception):
    """The packets promised frames that did not come: the file must be decoded as a whole."""


def decode_targets(
    video: OpenVideo,
    packets: Packets,
    targets: Mapping[int, int],
    deliver: Callable[[int, av.VideoFrame], None],
    guard: Guard,
) -> None:
    """Decode the frames of `targets` (packet number -> timestamp) and hand each to `deliver`.

    `deliver(packet number, frame)` is called once per target, in order of presentation within a
    group; it must not keep the frame. Raises PlanFailedError, and what `guard` raises.
    """
    keys = [i for i, key in enumerate(packets.key) if key]
    context = video.stream.codec_context
    if context.is_open:
        _restart(context)
    if not video.probed and context.name == "h264":
        # Too small a depth loses frames, too large a one only holds them back longer.
        context.reorder_depth = max(context.reorder_depth, reorder_depth(packets.pts))
    reader = PacketReader(video, packets)
    by_time = {pts: number for number, pts in targets.items()}
    if len(by_time) != len(targets):
        raise PlanFailedError("two frames with one timestamp")
    can_drop = _can_drop(context)
    position = -1  # number of the next packet to feed; -1 before the first group
    unchecked_key: int | None = None

    def take(frames: list[av.VideoFrame]) -> None:
        nonlocal unchecked_key
        for frame in frames:
            if unchecked_key is not None and frame.pts == unchecked_key:
                if not frame.key_frame:
                    raise PlanFailedError("the container calls a dependent frame a key frame")
                unchecked_key = None
            number = by_time.pop(frame.pts, None) if frame.pts is not None else None
            if number is not None:
                deliver(number, frame)

    try:
        for target in sorted(targets):
            start = start_of(target, keys, packets.pts)
            if position < 0 or start > position:
                if position >= 0:
                    take(context.decode(None))
                    _restart(context)
                reader.seek(start)
                position = start
                if start > 0 and context.name in _HONEST_KEYS and packets.shown[start]:
                    unchecked_key = packets.pts[start]
            while position <= target:
                guard.check()
                if can_drop:
                    drop = position not in targets
                    context.skip_frame = "NONREF" if drop else "DEFAULT"
                take(context.decode(reader.next()))
                position += 1
        take(context.decode(None))
    except (av.FFmpegError, EOFError) as error:
        raise PlanFailedError("a packet could not be decoded") from error
    if by_time:
        raise PlanFailedError("a frame did not come")


def reorder_depth(pts: list[int | None]) -> int:
    """How many frames come before some frame in decoding order and after it when shown.

    At most 16, as many as H.264 allows (num_reorder_frames, E.2.1).
    """
    depth = 0
    ahead: list[int] = []  # the last timestamps so far, sorted; at most 16 are of interest
    for time in pts:
        if time is None:
            continue
        place = bisect_right(ahead, time)
        depth = max(depth, len(ahead) - place)
        if place or len(ahead) < 16:
            ahead.insert(place, time)
            del ahead[:-16]
    return depth


def first_delivered(
    video: OpenVideo, packets: Packets, first_key_pts: int, guard: Guard
) -> frozenset[int] | None:
    """Timestamps of the frames a decoder delivers up to the first key frame in time.

    Recordings cut anywhere begin with frames that refer to lost ones; only decoding tells which
    of them can be shown. None where that stays unclear.
    """
    context = video.stream.codec_context
    reader = PacketReader(video, packets)
    seen: set[int] = set()
    try:
        reader.seek(0)
        for _ in range(len(packets)):
            guard.check()
            try:
                frames = context.decode(reader.next())
            except av.FFmpegError:
                continue  # expected of frames that refer to lost ones
            for frame in frames:
                if frame.pts is None:
                    return None
                if frame.pts >= first_key_pts:
                    return frozenset(seen)
                seen.add(frame.pts)
    except (PlanFailedError, EOFError):
        return None
    return None


def start_of(target: int, keys: list[int], pts: list[int | None]) -> int:
    """The packet to start at: the last key frame that is decoded and shown before the target.

    A frame shown before the key frame it follows in decoding order (open GOP) may refer to the
    group before.
    """
    place = bisect_right(keys, target) - 1
    while place > 0:
        key_pts, target_pts = pts[keys[place]], pts[target]
        if key_pts is None or target_pts is None or target_pts < key_pts:
            place -= 1
        else:
            break
    return keys[place] if place > 0 else 0


def _restart(context: VideoCodecContext) -> None:
    """Ready the decoder for another group.

    Flushing may reset how many frames it holds back to put B-frames in order, and it would then
    drop some (PyAV documents this at `VideoCodecContext.reorder_depth`).
    """
    depth = context.reorder_depth
    context.flush_buffers()
    context.reorder_depth = depth


def _can_drop(context: VideoCodecContext) -> bool:
    if context.name in _DROPPABLE:
        return True
    extradata = context.extradata
    # hvcC (ISO/IEC 14496-15, 8.3.3.1): version 1, byte 21 bits 3 to 5 are numTemporalLayers.
    # With a single layer "not referred to in its layer" is "not referred to".
    return (
        context.name == "hevc"
        and extradata is not None
        and len(extradata) > 22
        and extradata[0] == 1
        and (extradata[21] >> 3) & 7 == 1
    )


class PacketReader:
    """The packets from a given one on, from memory or else from the file."""

    def __init__(self, video: OpenVideo, packets: Packets):
        self._video = video
        self._packets = packets
        self._place = 0
        self._stream: Iterator[VideoPacket] | None = None
        self._first: VideoPacket | None = None

    def seek(self, number: int) -> None:
        """Make packet `number` the next."""
        self._place = number
        if self._packets.kept is None:
            self._seek_file(number)

    def next(self) -> VideoPacket:
        """The next packet. Raises EOFError behind the last."""
        if self._packets.kept is not None:
            packet = self._packets.kept[self._place]
            self._place += 1
            return packet
        if self._first is not None:
            packet, self._first = self._first, None
            return packet
        assert self._stream is not None
        for packet in self._stream:
            if packet.size:
                return packet
        raise EOFError

    def _seek_file(self, number: int) -> None:
        pts, dts = self._packets.pts[number], self._packets.dts[number]
        container, stream = self._video.container, self._video.stream
        second = int(1 / stream.time_base) if stream.time_base else 1
        times = [t for t in (dts, pts) if t is not None]
        times += [t - 10 * second for t in times]
        for time in times:
            try:
                container.seek(time, stream=stream, backward=True)
            except av.FFmpegError:
                continue
            self._stream = video_packets(self._video)
            for packet in self._stream:
                if packet.size and (packet.pts, packet.dts) == (pts, dts):
                    self._first = packet
                    return
                if dts is not None and packet.dts is not None and packet.dts > dts:
                    break
        raise PlanFailedError("a frame was not found again")
