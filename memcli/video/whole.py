"""Decoding a file as a whole: for damaged files and for timestamps that cannot be relied on.

Twice: once to learn when each frame that really decodes is shown, once to take the ones wanted.
So memory stays that of one frame however long the file is. On one thread, because what a decoder
makes of damage may depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av

from memcli.text import plural
from memcli.video.source import MAX_READ_ERRORS, OpenVideo, open_video, video_packets
from memcli.video.timeline import last_duration
from memcli.video.types import DecodeLimits, Guard, timeout_error


@dataclass
class Survey:
    """What decodes: per frame, in the order it comes, its timestamp; and what went wrong."""

    pts: list[int]
    last_duration: int = 0
    bad_packets: int = 0
    read_errors: int = 0

    def damage(self) -> str | None:
        """What was lost, in one line."""
        decoded = f"{plural(len(self.pts), 'frame')} decoded"
        if self.bad_packets:
            return f"{plural(self.bad_packets, 'damaged packet')}; {decoded}"
        if self.read_errors:
            return f"the file could not be read to its end; {decoded}"
        return None

    def shown(self) -> tuple[list[int], list[int], int]:
        """Starts in order of presentation, the number of the frame for each, the end."""
        order = sorted(range(len(self.pts)), key=self.pts.__getitem__)
        starts = [self.pts[i] for i in order]
        return starts, order, starts[-1] + last_duration(starts, self.last_duration)


def survey(fd: int, limits: DecodeLimits, guard: Guard) -> Survey:
    """Decode everything and keep only the timestamps."""
    found = Survey([])
    latest: int | None = None
    with open_video(fd, limits, guard, threads=1, probe=True) as video:
        for frame in _frames(video, guard, found):
            pts = frame.pts if frame.pts is not None else frame.dts
            if pts is None:  # no clock at all: one frame per mean frame duration
                pts = found.pts[-1] + _mean_duration(video) if found.pts else 0
            found.pts.append(pts)
            if latest is None or pts >= latest:
                latest = pts
                found.last_duration = int(frame.duration or 0)
    return found


def decode_numbers(
    fd: int,
    wanted: set[int],
    deliver: Callable[[int, av.VideoFrame, OpenVideo], None],
    limits: DecodeLimits,
    guard: Guard,
) -> None:
    """Decode again up to the last wanted frame, handing the wanted ones to `deliver`."""
    last = max(wanted)
    with open_video(fd, limits, guard, threads=1, probe=True) as video:
        for number, frame in enumerate(_frames(video, guard, Survey([]))):
            if number in wanted:
                deliver(number, frame, video)
            if number >= last:
                return


def _frames(video: OpenVideo, guard: Guard, found: Survey) -> Iterator[av.VideoFrame]:
    context = video.stream.codec_context
    read_errors = 0
    while read_errors < MAX_READ_ERRORS:
        try:
            for packet in video_packets(video):
                guard.check()
                if not packet.size:
                    continue
                found.bad_packets += packet.is_corrupt
                try:
                    frames = context.decode(packet)
                except av.FFmpegError:
                    found.bad_packets += not packet.is_corrupt  # each once
                    continue
                yield from frames
            break
        except av.error.ExitError as error:
            raise timeout_error() from error
        except av.FFmpegError:
            read_errors += 1
    found.read_errors += read_errors
    try:
        yield from context.decode(None)
    except av.FFmpegError:
        found.bad_packets += 1


def _mean_duration(video: OpenVideo) -> int:
    stream = video.stream
    if not stream.average_rate or not stream.time_base:
        return 1
    return max(1, round(1 / (stream.average_rate * stream.time_base)))
