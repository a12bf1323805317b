"""Every source has exactly one outcome, whatever happens to it."""

import queue
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.errors import EngineError, VideoError, VideoErrorCode
from memcli.pipeline import Pipeline

Read = Callable[[int, float | None, Callable[[], bool]], int]


def read(source: int, _deadline: float | None, _cancelled: Callable[[], bool]) -> int:
    if source % 5 == 3:
        raise VideoError(VideoErrorCode.DAMAGED, "damaged")
    if source % 5 == 4:
        raise ValueError("a bug")
    return source * 10


def double(clips: Sequence[int]) -> list[int]:
    return [2 * clip for clip in clips]


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 40),
    workers=st.integers(1, 4),
    queue_size=st.integers(1, 8),
    batch_size=st.integers(1, 5),
)
def test_one_outcome_each(count: int, workers: int, queue_size: int, batch_size: int) -> None:
    pipeline = Pipeline(read, double, workers=workers, queue_size=queue_size, batch_size=batch_size)
    outcomes = {outcome.source: outcome for outcome in pipeline.run(range(count))}
    assert sorted(outcomes) == list(range(count))
    for source, outcome in outcomes.items():
        if source % 5 == 3:
            assert outcome.error is not None
            assert outcome.error.code == VideoErrorCode.DAMAGED
        elif source % 5 == 4:
            assert outcome.error is not None
            assert outcome.error.code == VideoErrorCode.INTERNAL
            assert "a bug" in outcome.error.what
        else:
            assert outcome.result == source * 20


def test_batches_span_files_and_do_not_wait_for_a_slow_one() -> None:
    sizes = []
    release = threading.Event()

    def slow_read(source: int, _deadline: object, _cancelled: object) -> int:
        if source == 0:
            release.wait(10)
        return source

    def infer(clips: Sequence[int]) -> list[int]:
        sizes.append(len(clips))
        return list(clips)

    pipeline = Pipeline(slow_read, infer, workers=2, queue_size=8, batch_size=3)
    order = []
    for outcome in pipeline.run(range(6)):
        order.append(outcome.source)
        if len(order) == 5:
            release.set()
    assert order[-1] == 0
    assert sorted(order) == list(range(6))
    assert max(sizes) == 3


class Counted:
    """A reader and an engine that count the clips between them."""

    def __init__(self, infer_s: float = 0.0):
        self._infer_s = infer_s
        self._lock = threading.Lock()
        self._alive = 0
        self.peak = 0

    def read(self, source: int, _deadline: object, _cancelled: object) -> int:
        with self._lock:
            self._alive += 1
            self.peak = max(self.peak, self._alive)
        return source

    def infer(self, clips: Sequence[int]) -> list[int]:
        time.sleep(self._infer_s)
        with self._lock:
            self._alive -= len(clips)
        return list(clips)


def test_back_pressure_bounds_the_clips_in_memory() -> None:
    counted = Counted(infer_s=0.005)
    pipeline = Pipeline(counted.read, counted.infer, workers=3, queue_size=5)
    assert len(list(pipeline.run(range(60)))) == 60
    assert counted.peak <= 5 + 1  # a clip is released just after the engine has returned


def test_outcomes_that_nobody_takes_stop_the_readers() -> None:
    started = 0

    def failing_read(source: int, _deadline: object, _cancelled: object) -> int:
        nonlocal started
        started += 1
        raise VideoError(VideoErrorCode.EMPTY, "empty")

    run = Pipeline(failing_read, double, workers=2, queue_size=4).run(range(1000))
    next(run)
    time.sleep(0.3)
    assert started <= 1 + 4 + 2  # the one taken, the queue, and what a worker is about to wait with
    assert len(list(run)) == 999


def test_a_stuck_file_is_given_up_and_the_others_go_on() -> None:
    """The reader ignores its deadline, as a call into a decoder would."""
    forever = threading.Event()

    def stuck_read(source: int, _deadline: object, _cancelled: object) -> int:
        if source in (1, 2):
            forever.wait(60)
        return source

    pipeline = Pipeline(
        stuck_read, double, workers=2, queue_size=4, file_timeout_s=0.2, grace_s=0.1
    )
    started = time.monotonic()
    outcomes = {outcome.source: outcome for outcome in pipeline.run(range(8))}
    assert time.monotonic() - started < 10
    forever.set()
    assert sorted(outcomes) == list(range(8))
    for source in (1, 2):
        error = outcomes[source].error
        assert error is not None
        assert error.code == VideoErrorCode.TIMEOUT
    assert outcomes[7].result == 14


def test_the_deadline_reaches_the_reader() -> None:
    seen = []

    def reading(source: int, deadline: float | None, _cancelled: object) -> int:
        assert deadline is not None
        seen.append(deadline - time.monotonic())
        return source

    list(Pipeline(reading, double, workers=1, queue_size=1, file_timeout_s=7.0).run([1]))
    assert 6.5 < seen[0] <= 7.0


def test_an_engine_failure_ends_the_run_with_what_is_finished() -> None:
    def failing(clips: Sequence[int]) -> list[int]:
        if clips[0] >= 30:
            raise EngineError("out of memory")
        return list(clips)

    def plain(source: int, _deadline: object, _cancelled: object) -> int:
        return source * 10

    run = Pipeline(plain, failing, workers=1, queue_size=2).run(range(10))
    assert [next(run).source for _ in range(3)] == [0, 1, 2]
    with pytest.raises(EngineError, match="out of memory"):
        next(run)


def test_closing_early_stops_readers_and_threads() -> None:
    cancelled_seen = threading.Event()

    def patient(source: int, _deadline: object, cancelled: Callable[[], bool]) -> int:
        if source > 0:
            while not cancelled():
                time.sleep(0.005)
            cancelled_seen.set()
        return source

    before = threading.active_count()
    run = Pipeline(patient, double, workers=2, queue_size=4).run(range(100))
    assert next(run).source == 0
    run.close()
    assert cancelled_seen.wait(5)
    limit = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < limit:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_the_slower_stage_is_named() -> None:
    def slow_read(source: int, _deadline: object, _cancelled: object) -> int:
        time.sleep(0.02)
        return source

    def fast_read(source: int, _deadline: object, _cancelled: object) -> int:
        return source

    def slow_infer(clips: Sequence[int]) -> list[int]:
        time.sleep(0.02)
        return list(clips)

    decode = Pipeline(slow_read, double, workers=1, queue_size=2)
    list(decode.run(range(10)))
    assert decode.stats.bottleneck == "decode"
    engine = Pipeline(fast_read, slow_infer, workers=1, queue_size=2)
    list(engine.run(range(10)))
    assert engine.stats.bottleneck == "engine"


@pytest.mark.parametrize("late", [False, True])
def test_an_error_of_the_source_list_is_raised_whoever_is_first(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is there before the outcomes are looked at; or the list's end is known before."""

    def sources() -> object:
        raise RuntimeError("the list broke")
        yield

    pipeline = Pipeline(read, double, workers=1, queue_size=2)

    class Slow(queue.SimpleQueue):
        def put(self, item: object, *_: object, **__: object) -> None:
            time.sleep(0.3)
            super().put(item)

    if late:
        monkeypatch.setattr(pipeline, "_outcomes", Slow())
    else:
        monkeypatch.setattr(pipeline, "_start_worker", pipeline._run_worker)
    with pytest.raises(RuntimeError, match="the list broke"):
        list(pipeline.run(sources()))


def test_an_error_of_the_source_list_is_raised() -> None:
    def sources() -> object:
        yield 1
        raise RuntimeError("the list broke")

    with pytest.raises(RuntimeError, match="the list broke"):
        list(Pipeline(read, double, workers=2, queue_size=2).run(sources()))


@pytest.mark.parametrize("most", [1, 2])
def test_large_clips_are_fewer_than_a_batch(most: int) -> None:
    counted = Counted()
    pipeline = Pipeline(
        counted.read, counted.infer, workers=4, queue_size=9, batch_size=8, most=most
    )
    assert sorted(outcome.source for outcome in pipeline.run(range(6))) == list(range(6))
    assert counted.peak <= most
