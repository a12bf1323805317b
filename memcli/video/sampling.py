"""Which instants of a video are looked at."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

from memcli.errors import UsageError


def midpoint_ticks(start: int, end: int, count: int) -> list[int]:
    """Midpoints of `count` equal segments of [start, end), in whole ticks, rounded down.

    A frame starts at a whole tick, so it has started at an instant exactly if it has started at
    that instant rounded down. Whole numbers keep the choice exact where an instant falls on the
    start of a frame, as it does for all 16 of a clip of 160 frames; floats would decide that by
    their rounding.

    Raises UsageError if count < 1. An empty or reversed interval yields `count` copies of start.
    Source: uniform sampling, 000_bcb79d7cf5a52fe8.txt, section 2.1 (midpoints are ours: they
    avoid black first and last frames).
    """
    check_count(count)
    length = max(0, end - start)
    return [start + (2 * i + 1) * length // (2 * count) for i in range(count)]


def endpoint_ticks(begin: int, last: int, count: int) -> list[int]:
    """`count` instants evenly from the first frame's start to the last frame's, rounded down.

    Both ends included: the first, the middle and the last frame for 3. One instant is the middle.
    Whole ticks choose the same frame as exact instants do, see `midpoint_ticks`.

    Raises UsageError if count < 1. If `last` is not after `begin`, all are `begin`.
    Source: "initial, middle and last frames", 001_de183854d7703535.txt, section 4.1.1; that the
    middle is the middle of time rather than of the count of frames is ours.
    """
    check_count(count)
    length = max(0, last - begin)
    if count == 1:
        return [begin + length // 2]
    return [begin + i * length // (count - 1) for i in range(count)]


def instants(
    rule: Literal["midpoints", "endpoints"], begin: int, last: int, end: int, count: int
) -> list[int]:
    """The instants that a FramePrep's `sampling` looks at, in whole ticks.

    `begin` and `last` are when the first and the last frame start, `end` is when the last ends.
    """
    if rule == "endpoints":
        return endpoint_ticks(begin, last, count)
    return midpoint_ticks(begin, end, count)


def shown_at(starts: Sequence[int], instants: Sequence[int]) -> list[int]:
    """Per instant the index of the frame shown: the last of the sorted `starts` not after it.

    An instant before the first frame shows the first frame.
    """
    return [max(0, bisect_right(starts, instant) - 1) for instant in instants]


def check_count(count: int) -> None:
    """Raise UsageError if `count` is not at least one."""
    if count < 1:
        raise UsageError(f"{count} frames cannot be sampled; ask for at least one")
