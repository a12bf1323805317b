"""When each frame of a video is shown, learnt from its packets without decoding them."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import av

from memcli.errors import VideoError, VideoErrorCode
from memcli.video.source import MAX_READ_ERRORS, OpenVideo, video_packets
from memcli.video.types import DecodeLimits, Guard, VideoPacket, timeout_error

_GUARD_EVERY = 256  # packets between two looks at the clock; reading that many takes milliseconds


@dataclass
class Packets:
    """All video packets of a file in decoding order, as columns (ticks of the stream's clock).

    `kept` holds the packets themselves while they fit the budget, else None.
    """

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    duration: array[int] = field(default_factory=lambda: array("q"))
    key: bytearray = field(default_factory=bytearray)
    shown: bytearray = field(default_factory=bytearray)
    """Zero for packets whose frame is decoded but not shown: cut off by an edit list, or hidden."""
    kept: list[VideoPacket] | None = field(default_factory=list)
    empty: int = 0
    """Packets without content: the frame before is shown on."""
    corrupt: int = 0
    read_errors: int = 0

    def __len__(self) -> int:
        return len(self.pts)


def scan(video: OpenVideo, limits: DecodeLimits, guard: Guard) -> Packets:
    """Read all packets once.

    Raises VideoError: DAMAGED where there are none, TOO_LARGE for more than `max_packets`.
    """
    packets = Packets()
    budget = limits.max_packet_bytes
    number = 0
    is_vp8 = video.stream.codec_context.name in ("vp8", "libvpx")
    while packets.read_errors < MAX_READ_ERRORS:
        try:
            for packet in video_packets(video):
                size = packet.size
                if not size:
                    packets.empty += packet.dts is not None
                    continue
                number += 1
                if number % _GUARD_EVERY == 0:
                    guard.check()
                packets.pts.append(packet.pts)
                packets.dts.append(packet.dts)
                packets.duration.append(packet.duration or 0)
                packets.key.append(packet.is_keyframe)
                hidden = packet.is_discard or (is_vp8 and not memoryview(packet)[0] & 0x10)
                packets.shown.append(not hidden)
                packets.corrupt += packet.is_corrupt
                if packets.kept is not None:
                    budget -= size
                    packets.kept.append(packet)
                    if budget < 0:
                        packets.kept = None
                if number > limits.max_packets:
                    raise VideoError(
                        VideoErrorCode.TOO_LARGE,
                        f"more than {limits.max_packets} frames are over the limit",
                    )
            break
        except av.error.ExitError as error:
            raise timeout_error() from error
        except av.FFmpegError:
            packets.read_errors += 1  # the next packet may be sound
    if not packets:
        raise VideoError(
            VideoErrorCode.DAMAGED, "the file announces video but holds no frame of it"
        )
    return packets


@dataclass(frozen=True)
class Timeline:
    """The shown frames in order of presentation."""

    starts: list[int]
    """Per frame when it starts, sorted."""
    packet: list[int]
    """Per frame the number of its packet in `Packets`."""
    end: int
    """When the last frame ends."""

    @property
    def begin(self) -> int:
        """When the first frame starts."""
        return self.starts[0]


def timeline_of(packets: Packets, only: frozenset[int] | None = None) -> Timeline | None:
    """The timeline by the packets' own timestamps; None where they are not enough.

    `only` restricts the frames before the first key frame's start to these timestamps (the ones
    a decoder is known to deliver).
    """
    shown = [(pts, i) for i, pts in enumerate(packets.pts) if packets.shown[i] and pts is not None]
    if len(shown) != sum(packets.shown) or not shown:
        return None
    if only is not None:
        first_key_pts = packets.pts[packets.key.index(1)]
        assert first_key_pts is not None, "only timestamped files are restricted"
        shown = [(pts, i) for pts, i in shown if pts >= first_key_pts or pts in only]
    shown.sort()
    starts = [pts for pts, _ in shown]
    last = shown[-1][1]
    end = starts[-1] + last_duration(starts, packets.duration[last])
    return Timeline(starts, [i for _, i in shown], end)


def last_duration(starts: list[int], stated: int) -> int:
    """How long the last frame is shown: as stated, else as long as the one before it."""
    if stated > 0:
        return stated
    return starts[-1] - starts[-2] if len(starts) > 1 else 0
