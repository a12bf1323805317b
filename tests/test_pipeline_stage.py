"""The stage between reading and the engine: batches, errors, its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from memcli.errors import EngineError, VideoError, VideoErrorCode
from memcli.pipeline import Pipeline, Stage


def read(source: int, deadline: float | None, cancelled: Callable[[], bool]) -> int:
    return source


def pipeline(
    work: Callable[[Sequence[int], Callable[[], bool]], Sequence[int | VideoError]],
    *,
    queue_size: int = 12,
    infer: Callable[[Sequence[int]], Sequence[int]] = lambda clips: list(clips),
) -> Pipeline[int, int, int]:
    """Odd numbers want the stage."""
    stage = Stage(lambda clip: clip % 2 == 1, work, 4)
    return Pipeline(read, infer, workers=2, queue_size=queue_size, batch_size=2, stage=stage)


def test_what_wants_it_passes_the_stage_and_all_else_does_not() -> None:
    sizes = []

    def work(clips: Sequence[int], cancelled: Callable[[], bool]) -> list[int]:
        assert all(clip % 2 for clip in clips)
        assert not cancelled()
        sizes.append(len(clips))
        return [clip * 100 for clip in clips]

    running = pipeline(work)
    found = {outcome.source: outcome.result for outcome in running.run(range(50))}
    assert found == {n: n * 100 if n % 2 else n for n in range(50)}
    assert sum(sizes) == 25
    assert max(sizes) <= 4
    assert running.stats.stage_busy_s >= 0


def test_an_error_of_one_is_its_outcome() -> None:
    def work(clips: Sequence[int], cancelled: Callable[[], bool]) -> list[int | VideoError]:
        error = VideoError(VideoErrorCode.NO_CAPTION, "nothing to say")
        return [error if clip % 3 == 0 else clip for clip in clips]

    outcomes = {outcome.source: outcome for outcome in pipeline(work).run(range(20))}
    assert len(outcomes) == 20
    for source, outcome in outcomes.items():
        assert (outcome.error is None) == (source % 2 == 0 or source % 3 != 0)


def test_an_exception_ends_the_run() -> None:
    def work(clips: Sequence[int], cancelled: Callable[[], bool]) -> list[int]:
        raise EngineError("broken")

    with pytest.raises(EngineError, match="broken"):
        list(pipeline(work).run(range(50)))


def test_closing_the_run_ends_the_stage() -> None:
    inside, seen = threading.Event(), []

    def work(clips: Sequence[int], cancelled: Callable[[], bool]) -> list[int]:
        inside.set()
        limit = time.monotonic() + 20
        while not cancelled() and time.monotonic() < limit:
            time.sleep(0.01)
        seen.append(cancelled())
        return list(clips)

    outcomes = pipeline(work).run(range(50))
    assert next(outcomes).source % 2 == 0  # the engine goes on meanwhile
    assert inside.wait(20)
    outcomes.close()
    assert seen == [True]


def test_no_more_is_under_way_than_the_queue_holds() -> None:
    taken = 0
    given = 0
    most = 0

    def sources() -> object:
        nonlocal taken
        for number in range(60):
            taken += 1
            yield number

    def work(clips: Sequence[int], cancelled: Callable[[], bool]) -> list[int]:
        nonlocal most
        time.sleep(0.005)
        most = max(most, taken - given)
        return list(clips)

    for _ in pipeline(work, queue_size=9).run(sources()):  # type: ignore[arg-type]
        given += 1
    assert most <= 9 + 1  # one may have been given but not counted yet
    assert given == 60


def test_the_stage_and_the_engine_overlap() -> None:
    """Both wait for each other: neither could alone."""
    meeting = threading.Barrier(2, timeout=20)

    def work(clips: Sequence[int], cancelled: Callable[[], bool]) -> list[int]:
        if not meeting.broken and not met:
            meeting.wait()
            met.append(True)
        return list(clips)

    met: list[bool] = []

    def infer(clips: Sequence[int]) -> list[int]:
        if not met:
            meeting.wait()
            met.append(True)
        return list(clips)

    assert len(list(pipeline(work, infer=infer).run(range(12)))) == 12
    assert met


def test_what_needs_most_time_is_the_bottleneck() -> None:
    running = pipeline(lambda clips, cancelled: list(clips))
    assert running.stats.bottleneck is None
    running.stats.batches = 1
    for name, busy in (("engine", (3, 1, 1)), ("captions", (1, 3, 1)), ("decode", (1, 1, 9))):
        stats = running.stats
        stats.engine_busy_s, stats.stage_busy_s, stats.decode_busy_s = busy
        assert stats.bottleneck == name
