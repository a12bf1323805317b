"""A file to a clip: the one entry point of this package."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import av

from memcli.errors import VideoError, VideoErrorCode
from memcli.spec import FramePrep, Sampling
from memcli.video import gops, keyframes, whole
from memcli.video.builder import ClipBuilder, Shaped
from memcli.video.extent import missing_end, missing_frames
from memcli.video.files import open_descriptor, unchanged
from memcli.video.nvdec import GPU_RESIZE, NVDEC, Nvdec
from memcli.video.nvdec_frames import NotForNvdecError
from memcli.video.sampling import check_count, shown_at
from memcli.video.source import OpenVideo, is_encrypted, open_video
from memcli.video.timeline import Packets, Timeline, scan, timeline_of
from memcli.video.types import Clip, DecodeLimits, DevicePicture, Guard

_DEFAULT_LIMITS = DecodeLimits()


def read_clip(
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    prep: FramePrep,
    *,
    frames: int | None = None,
    sampling: Sampling = "exact",
    threads: int = 1,
    deadline: float | None = None,
    cancelled: Callable[[], bool] | None = None,
    limits: DecodeLimits = _DEFAULT_LIMITS,
    nvdec: Nvdec | None = None,
    shaped: Shaped | None = None,
) -> Clip:
    """The frames of a video that a model looks at, prepared for it.

    "exact": T instants, and at each the frame shown, that is the last one that has started. The
    instants are those of `prep.sampling`: midpoints of T equal segments of [first frame's start,
    last frame's end), or endpoints, evenly from the first frame's start to the last frame's start.
    "keyframe": the key frame nearest to each of these instants, without reading the rest of the
    file; much faster on long files, and not the same frames. T is `frames`, by default the model's
    own number. The result does not depend on `threads`.

    `shaped` makes the preparation depend on the shape of the video, which is known with its first
    decoded frame; the instants stay those of `prep`.

    `deadline` is a value of time.monotonic(). Raises VideoError with one of its codes and a
    reason in plain words, DecodeCancelledError once `cancelled()` is true, UsageError for fewer
    than one frame.
    """
    count = prep.frames if frames is None else frames
    check_count(count)
    guard = Guard(deadline, cancelled)

    def builder() -> ClipBuilder:
        return ClipBuilder(prep, count, limits, shaped)

    try:
        with open_descriptor(path) as fd, unchanged(fd):
            clip = None
            if sampling == "keyframe":
                clip = keyframes.read(fd, builder, limits, guard)
            if clip is None:
                clip = _read_exact(fd, builder, threads, limits, guard, nvdec)
            lost = [missing_end(fd, guard), clip.damage]
            return replace(clip, damage="; ".join(filter(None, lost)) or None)
    except VideoError as error:
        error.where = os.fsdecode(path)
        raise


def check_video(
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, deadline: float | None = None
) -> None:
    """Raise VideoError, as `read_clip` does, unless a file opens as a video. No frame is decoded,
    so what is damaged further on is not noticed."""
    try:
        with (
            open_descriptor(path) as fd,
            open_video(fd, _DEFAULT_LIMITS, Guard(deadline), threads=1),
        ):
            pass
    except VideoError as error:
        error.where = os.fsdecode(path)
        raise


def _read_exact(
    fd: int,
    new_builder: Callable[[], ClipBuilder],
    threads: int,
    limits: DecodeLimits,
    guard: Guard,
    nvdec: Nvdec | None,
) -> Clip:
    refused = False
    with open_video(fd, limits, guard, threads) as video:
        packets = scan(video, limits, guard)
        if video.container.format.name in ("gif", "apng") and sum(packets.shown) == 1:
            raise VideoError(VideoErrorCode.IMAGE, "a picture, not a video")
        timeline = _trusted_timeline(video, packets, guard)
        if timeline is not None:
            builder = new_builder()
            try:
                return _read_targets(video, packets, timeline, builder, guard, nvdec)
            except gops.PlanFailedError:
                pass  # decided below by what really decodes
            except NotForNvdecError:
                refused = True
    if refused:  # packets that were fed are used up, so from the start
        return _read_exact(fd, new_builder, threads, limits, guard, None)
    return _read_whole(fd, new_builder(), limits, guard)


def _trusted_timeline(video: OpenVideo, packets: Packets, guard: Guard) -> Timeline | None:
    """The timeline by timestamps of packets if these are enough to find every frame by."""
    if packets.corrupt or packets.read_errors or not any(packets.key):
        return None
    timeline = timeline_of(packets)
    if timeline is None:
        return None
    first_key = packets.key.index(1)
    key_pts = packets.pts[first_key]
    if key_pts is None:
        return None
    before_key = first_key > 0 or timeline.begin < key_pts  # in decoding order, or when shown
    if before_key:  # these frames may refer to lost ones
        delivered = gops.first_delivered(video, packets, key_pts, guard)
        return None if delivered is None else timeline_of(packets, delivered)
    return timeline


def _read_targets(
    video: OpenVideo,
    packets: Packets,
    timeline: Timeline,
    builder: ClipBuilder,
    guard: Guard,
    nvdec: Nvdec | None,
) -> Clip:
    instants = builder.instants(timeline.begin, timeline.starts[-1], timeline.end)
    shown = shown_at(timeline.starts, instants)
    slots: dict[int, list[int]] = defaultdict(list)
    targets: dict[int, int] = {}
    for slot, place in enumerate(shown):
        number = timeline.packet[place]
        slots[number].append(slot)
        targets[number] = timeline.starts[place]

    def deliver(number: int, frame: av.VideoFrame | DevicePicture) -> None:
        builder.put(frame, slots[number], video)

    decode = gops.decode_targets if nvdec is None else nvdec.decode_targets
    decode(video, packets, targets, deliver, guard)
    ticks = [timeline.starts[place] - timeline.begin for place in shown]
    length = timeline.end - timeline.begin
    clip = builder.clip(ticks, length, video.stream.time_base, missing_frames(video))
    if nvdec is None:
        return clip
    return replace(clip, decoder=NVDEC if clip.device_frames is None else GPU_RESIZE)


def _read_whole(fd: int, builder: ClipBuilder, limits: DecodeLimits, guard: Guard) -> Clip:
    found = whole.survey(fd, limits, guard)
    if not found.pts:
        if is_encrypted(fd):
            raise VideoError(VideoErrorCode.UNSUPPORTED, "its video is encrypted")
        raise VideoError(VideoErrorCode.DAMAGED, "no frame of the video can be decoded")
    starts, order, end = found.shown()
    shown = shown_at(starts, builder.instants(starts[0], starts[-1], end))
    slots: dict[int, list[int]] = defaultdict(list)
    for slot, place in enumerate(shown):
        slots[order[place]].append(slot)
    tick_s = None

    def deliver(number: int, frame: av.VideoFrame, video: OpenVideo) -> None:
        nonlocal tick_s
        builder.put(frame, slots[number], video)
        tick_s = video.stream.time_base

    whole.decode_numbers(fd, set(slots), deliver, limits, guard)
    ticks: Sequence[int] = [starts[place] - starts[0] for place in shown]
    return builder.clip(ticks, end - starts[0], tick_s, found.damage())
