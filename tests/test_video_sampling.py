"""Which instants and frames are chosen."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.errors import UsageError
from memcli.video.gops import reorder_depth
from memcli.video.keyframes import nearest
from memcli.video.sampling import midpoint_ticks, shown_at

counts = st.integers(1, 64)
ticks = st.integers(-(2**40), 2**40)


def test_known_instants() -> None:
    assert midpoint_ticks(100, 300, 2) == [150, 250]
    assert midpoint_ticks(0, 5, 2) == [1, 3], "rounded down"
    assert midpoint_ticks(5, 5, 3) == [5, 5, 5]
    assert midpoint_ticks(5, 4, 2) == [5, 5], "a reversed interval is empty"


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_frame_is_refused(count: int) -> None:
    with pytest.raises(UsageError):
        midpoint_ticks(0, 1, count)


@given(ticks, st.integers(0, 2**40), counts)
def test_whole_ticks_are_exact_midpoints_rounded_down(start: int, length: int, count: int) -> None:
    exact = [start + Fraction(length * (2 * i + 1), 2 * count) for i in range(count)]
    assert midpoint_ticks(start, start + length, count) == [time.__floor__() for time in exact]


@given(st.lists(ticks, min_size=1, max_size=40), counts)
def test_the_frame_shown_is_the_last_that_has_started(starts: list[int], count: int) -> None:
    starts.sort()
    instants = midpoint_ticks(starts[0], starts[-1] + 1, count)
    for instant, index in zip(instants, shown_at(starts, instants), strict=True):
        assert starts[index] <= instant
        assert index == len(starts) - 1 or starts[index + 1] > instant


def test_an_instant_on_the_start_of_a_frame_shows_that_frame() -> None:
    """160 frames, 16 instants: each falls exactly on a start. 1/30 s is no float: no rounding."""
    starts = [1001 * i for i in range(160)]
    assert shown_at(starts, midpoint_ticks(0, 1001 * 160, 16)) == [5 + 10 * i for i in range(16)]


@given(st.lists(ticks, min_size=1, max_size=30, unique=True), ticks)
def test_nearest(times: list[int], instant: int) -> None:
    times.sort()
    chosen = times[nearest(times, instant)]
    assert abs(chosen - instant) == min(abs(time - instant) for time in times)


def test_of_two_equally_near_key_frames_the_earlier_is_taken() -> None:
    assert nearest([0, 10], 5) == 0


@given(st.permutations(range(12)))
def test_reorder_depth_is_the_largest_overtaking(order: list[int]) -> None:
    naive = max(sum(earlier > time for earlier in order[:i]) for i, time in enumerate(order))
    assert reorder_depth(list(order)) == naive


def test_reorder_depth_stops_at_the_most_h264_allows() -> None:
    assert reorder_depth(list(range(40, 0, -1))) == 16
    assert reorder_depth([0, None, 4, 2, 1, 3]) == 2
