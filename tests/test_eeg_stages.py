"""The stages of `memcli eeg`: every item once, in bounded memory, whatever a source does."""

import threading
import time
from collections.abc import Generator, Sequence

import pytest

from memcli.errors import (
    EngineError,
    MissingDependencyError,
    RecordingError,
    RecordingErrorCode,
    UsageError,
)
from memcli.recognition.stages import Ended, Scored, Stages


def double(items: Sequence[int]) -> list[int]:
    return [2 * item for item in items]


def stages(read, infer=double, **options):
    settings = {"readers": 2, "queue_size": 8, "batch_size": 4, **options}
    return Stages(read, infer, **settings)


def counting(source: int) -> Generator[int, None, None]:
    yield from range(source)


def test_every_item_once_and_every_end_after_its_items() -> None:
    running = stages(counting)
    results: dict[int, list[int]] = {}
    ended: dict[int, int] = {}
    for event in running.run([3, 0, 17, 5]):
        if isinstance(event, Ended):
            assert event.error is None
            ended[event.source] = len(results.get(event.source, []))
        else:
            assert event.source not in ended
            results.setdefault(event.source, []).append(event.result)
    assert results == {n: [2 * i for i in range(n)] for n in (3, 17, 5)}
    assert ended == {3: 3, 0: 0, 17: 17, 5: 5}


def test_batches_go_over_sources() -> None:
    sizes = []

    def infer(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        return double(items)

    assert len(list(stages(counting, infer, readers=1).run([1] * 8))) == 16
    assert sum(sizes) == 8
    assert max(sizes) == 4


def test_no_more_than_the_queue_is_under_way() -> None:
    """Readers stop while nobody takes results."""
    read = 0
    lock = threading.Lock()

    def reader(source: int) -> Generator[int, None, None]:
        nonlocal read
        for item in range(source):
            with lock:
                read += 1
            yield item

    events = stages(reader, queue_size=6, batch_size=2).run([1000, 1000])
    next(events)
    time.sleep(0.3)
    assert read <= 7 + 2  # the queue, the one that was taken, and one asked for by each reader
    events.close()


def test_one_bad_source_does_not_stop_the_others() -> None:
    def reader(source: str) -> Generator[int, None, None]:
        yield 1
        if source == "damaged":
            raise RecordingError(RecordingErrorCode.DAMAGED, "cut off")
        if source == "strange":
            raise ZeroDivisionError("oh")
        if source == "foreign":
            raise MissingDependencyError("x", purpose="this format", install="pip install x")
        yield 2

    sources = ["good", "damaged", "strange", "foreign", "good too"]
    events = list(stages(reader).run(sources))
    errors = {event.source: event.error for event in events if isinstance(event, Ended)}
    assert errors["good"] is None
    assert errors["good too"] is None
    assert errors["damaged"] is not None
    assert errors["damaged"].code is RecordingErrorCode.DAMAGED
    assert "ZeroDivisionError: oh" in str(errors["strange"])
    assert "pip install x" in str(errors["foreign"])
    assert sum(isinstance(event, Scored) for event in events) == 7


@pytest.mark.parametrize("where", ["read", "infer", "sources"])
def test_what_concerns_all_ends_the_run(where: str) -> None:
    def reader(source: int) -> Generator[int, None, None]:
        if where == "read":
            raise UsageError("no such option")
        yield source

    def infer(items: Sequence[int]) -> list[int]:
        raise EngineError("gone")

    def sources() -> Generator[int, None, None]:
        if where == "sources":
            raise UsageError("no list")
        yield 1

    with pytest.raises((UsageError, EngineError)):
        list(stages(reader, infer if where == "infer" else double).run(sources()))


def test_a_stuck_reader_is_given_up_and_replaced() -> None:
    release = threading.Event()

    def reader(source: int) -> Generator[int, None, None]:
        yield source
        if source == 0:
            release.wait(30)
            yield -1

    running = stages(reader, readers=1, stall_s=0.3)
    events = []
    for event in running.run([0, 1, 2]):
        events.append(event)
        if isinstance(event, Ended) and event.source == 0:
            release.set()  # what it gives now comes too late
    assert [event.result for event in events if isinstance(event, Scored)] == [0, 2, 4]
    ends = {event.source: event.error for event in events if isinstance(event, Ended)}
    assert set(ends) == {0, 1, 2}
    assert "nothing could be read for 0.3 s" in str(ends[0])


def test_waiting_for_the_engine_is_not_being_stuck() -> None:
    def slow(items: Sequence[int]) -> list[int]:
        time.sleep(0.25)
        return double(items)

    running = stages(counting, slow, readers=1, queue_size=2, batch_size=1, stall_s=0.2)
    ends = [event for event in running.run([4]) if isinstance(event, Ended)]
    assert [end.error for end in ends] == [None]


def test_closing_ends_readers_and_closes_what_they_hold() -> None:
    closed = threading.Event()

    def reader(_: int) -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    events = stages(reader, readers=1).run([1])
    next(events)
    events.close()
    assert closed.wait(5)
