"""Which instants and frames are chosen."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.errors import UsageError
from memcli.video.gops import reorder_depth
from memcli.video.keyframes import nearest
from memcli.video.sampling import endpoint_ticks, instants, midpoint_ticks, shown_at

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


def test_known_endpoints() -> None:
    assert endpoint_ticks(100, 300, 3) == [100, 200, 300], "first, middle, last"
    assert endpoint_ticks(100, 301, 1) == [200], "one is the middle"
    assert endpoint_ticks(0, 7, 2) == [0, 7]
    assert endpoint_ticks(0, 10, 4) == [0, 3, 6, 10]
    assert endpoint_ticks(5, 5, 3) == endpoint_ticks(5, 4, 3) == [5, 5, 5]


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_endpoint_is_refused(count: int) -> None:
    with pytest.raises(UsageError):
        endpoint_ticks(0, 1, count)


@given(ticks, st.integers(0, 2**40), counts)
def test_endpoints_are_exact_rounded_down(begin: int, length: int, count: int) -> None:
    steps = [Fraction(i, count - 1) for i in range(count)] if count > 1 else [Fraction(1, 2)]
    exact = [(begin + step * length).__floor__() for step in steps]
    assert endpoint_ticks(begin, begin + length, count) == exact


def test_the_rule_chooses_the_instants() -> None:
    assert instants("midpoints", 0, 90, 100, 2) == midpoint_ticks(0, 100, 2)
    assert instants("endpoints", 0, 90, 100, 2) == [0, 90]


@given(st.integers(1, 200), st.integers(2, 64))
def test_first_and_last_frame_are_always_shown(frames: int, count: int) -> None:
    starts = [1001 * i for i in range(frames)]
    shown = shown_at(starts, endpoint_ticks(starts[0], starts[-1], count))
    assert (shown[0], shown[-1]) == (0, frames - 1)
