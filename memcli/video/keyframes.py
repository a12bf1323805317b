"""Sampling key frames only: nearest to each instant, found by the file's index.

Nothing between key frames is decoded, and where the file has an index, hardly read either. The
frames are not those of exact sampling.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

import av

from memcli.video.builder import ClipBuilder
from memcli.video.extent import missing_frames
from memcli.video.source import OpenVideo, open_video, video_packets
from memcli.video.timeline import scan, timeline_of
from memcli.video.types import Clip, DecodeLimits, Guard, VideoPacket, timeout_error

_PACKETS_TO_KEY = 2000  # packets read at most after a seek until a key frame comes


def read(
    fd: int, new_builder: Callable[[], ClipBuilder], limits: DecodeLimits, guard: Guard
) -> Clip | None:
    """A clip of key frames, or None where key frames alone cannot make one.

    Raises VideoError and DecodeCancelledError as `read_clip` does.
    """
    try:
        with open_video(fd, limits, guard, threads=1) as video:
            if video.container.format.name in ("gif", "apng"):
                return None  # small, and its frames build on each other
            clip = _by_index(video, new_builder(), guard)
            if clip is not None:
                return clip
        with open_video(fd, limits, guard, threads=1) as video:
            return _by_scan(video, new_builder(), limits, guard)
    except av.error.ExitError as error:
        raise timeout_error() from error


def nearest(times: Sequence[int], instant: int) -> int:
    """Index of the nearest of the sorted `times`; of two equally near ones the earlier."""
    place = bisect_left(times, instant)
    if place == 0:
        return 0
    if place == len(times) or instant - times[place - 1] <= times[place] - instant:
        return place - 1
    return place


def _by_index(video: OpenVideo, builder: ClipBuilder, guard: Guard) -> Clip | None:
    """Seek from one key frame of the index to the next."""
    stream, container = video.stream, video.container
    start = stream.start_time or 0
    length = _stated_length(video)
    if not length:
        return None
    try:
        container.seek(start, stream=stream, backward=True)  # Matroska reads its index only now
        first = _next_key(video, None)
    except av.error.ExitError:
        raise
    except av.FFmpegError:
        return None
    keys = sorted({e.timestamp for e in stream.index_entries if e.is_keyframe and not e.is_discard})
    if first is None or first.pts is None or not _covers(keys, start, start + length):
        return None
    start = first.pts  # headers may start a frame earlier, as AVI's do
    # MP4 lists decoding times. How much later a key frame is shown is the same for all of them
    # (the reordering depth), so the first tells.
    later = first.pts - keys[0] if keys[0] in (first.dts, first.pts) else 0
    shown = [key + later for key in keys]
    end = start + length
    instants = builder.instants(start, end - _last_duration(video, length), end)
    slots: dict[int, list[int]] = defaultdict(list)
    for slot, instant in enumerate(instants):
        slots[keys[nearest(shown, instant)]].append(slot)
    starts = [start] * builder.count
    for key in sorted(slots):
        guard.check()
        try:
            container.seek(key, stream=stream, backward=True)
            packet = _next_key(video, key)
            frame = _decode_alone(video, packet)
        except av.error.ExitError:
            raise
        except av.FFmpegError:
            return None
        if frame is None or packet is None or packet.pts is None:
            return None
        builder.put(frame, slots[key], video)
        for slot in slots[key]:
            starts[slot] = packet.pts
    ticks = [max(0, time - start) for time in starts]
    return builder.clip(ticks, length, stream.time_base, missing_frames(video))


def _by_scan(
    video: OpenVideo, builder: ClipBuilder, limits: DecodeLimits, guard: Guard
) -> Clip | None:
    """Without an index: read all packets, decode only key frames."""
    packets = scan(video, limits, guard)
    timeline = timeline_of(packets)
    if timeline is None or packets.kept is None or packets.corrupt or packets.read_errors:
        return None
    keyed = sorted(
        (pts, i)
        for i, pts in enumerate(packets.pts)
        if packets.key[i] and packets.shown[i] and pts is not None
    )
    if not keyed:
        return None
    times = [pts for pts, _ in keyed]
    instants = builder.instants(timeline.begin, timeline.starts[-1], timeline.end)
    places = [nearest(times, instant) for instant in instants]
    for place in sorted(set(places)):
        guard.check()
        frame = _decode_alone(video, packets.kept[keyed[place][1]])
        if frame is None:
            return None
        builder.put(frame, [s for s, p in enumerate(places) if p == place], video)
    ticks = [times[place] - timeline.begin for place in places]
    length = timeline.end - timeline.begin
    return builder.clip(ticks, length, video.stream.time_base, missing_frames(video))


def _next_key(video: OpenVideo, time: int | None) -> VideoPacket | None:
    """The next key frame, of those at or after `time` by either clock."""
    for count, packet in enumerate(video_packets(video)):
        stamps = [stamp for stamp in (packet.pts, packet.dts) if stamp is not None]
        reached = time is None or not stamps or max(stamps) >= time
        if reached and packet.size and packet.is_keyframe and not packet.is_discard:
            return packet
        if count > _PACKETS_TO_KEY:
            return None
    return None


def _decode_alone(video: OpenVideo, packet: VideoPacket | None) -> av.VideoFrame | None:
    """The frame of one key packet, without any other."""
    if packet is None:
        return None
    context = video.stream.codec_context
    context.flush_buffers()
    try:
        frames = [*context.decode(packet), *context.decode(None)]
    except av.FFmpegError:
        return None
    context.flush_buffers()
    return frames[0] if frames else None


def _stated_length(video: OpenVideo) -> int | None:
    """Length by the headers in ticks of the stream's clock."""
    stream = video.stream
    if stream.duration:
        return int(stream.duration)
    if video.container.duration and stream.time_base:
        return int(video.container.duration / av.time_base / stream.time_base)
    return None


def _last_duration(video: OpenVideo, length: int) -> int:
    """How long the last frame is shown: not known without reading it, so as long as the mean."""
    stream = video.stream
    if not stream.average_rate or not stream.time_base:
        return 0
    return min(length, round(1 / (stream.average_rate * stream.time_base)))


def _covers(keys: Sequence[int], start: int, end: int) -> bool:
    """Whether the index speaks of the whole file: no hole at the end wider than elsewhere."""
    if len(keys) < 2:
        return False
    widest = max(b - a for a, b in pairwise(keys))
    return end - keys[-1] <= 2 * widest + 1 and keys[0] - start <= widest
