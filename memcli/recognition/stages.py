"""Reader threads -> bounded queue -> batches over recordings -> engine, all overlapped.

Unlike `memcli.pipeline`, a source gives many items, as many as it likes, so memory is bounded by
items: at most `queue_size` of all sources are under way. Every source ends exactly once, after its
last result.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from memcli.errors import (
    MemcliError,
    MissingDependencyError,
    RecordingError,
    RecordingErrorCode,
)
from memcli.pipeline import Stats

S = TypeVar("S")  # a source
I = TypeVar("I")  # noqa: E741 (an item of a source)
R = TypeVar("R")  # a result: what the engine says of an item
T = TypeVar("T")

log = logging.getLogger(__name__)

_TICK_S = 0.1
_LINGER_S = 0.25
STALL_S = 300.0
"""A reader that gives nothing for this long is inside a call that does not come back."""


@dataclass(frozen=True)
class Scored(Generic[S, R]):
    """What became of one item. Holds none of its samples."""

    source: S
    result: R
    read_s: float
    infer_s: float
    """This item's share of its batch's time in the engine."""


@dataclass(frozen=True)
class Ended(Generic[S]):
    """A source has given all it had; `error` says why that was not everything."""

    source: S
    error: RecordingError | None
    read_s: float


@dataclass(eq=False)
class _Task(Generic[S]):
    source: S
    lock: threading.Lock = field(default_factory=threading.Lock)
    moved: float = field(default_factory=time.monotonic)
    waiting: bool = False
    """For room in the queue, which is not the reader's fault."""
    settled: bool = False
    count: int = 0
    """Items read; final once settled."""
    given: int = 0
    """Results handed out, by the calling thread."""
    read_s: float = 0.0
    end: Ended[S] | None = None

    def settle(self) -> bool:
        """True for the first caller only: the reader, or the watchdog that gave it up."""
        with self.lock:
            first, self.settled = not self.settled, True
            return first


@dataclass(frozen=True)
class _Read(Generic[S, I]):
    task: _Task[S]
    item: I
    read_s: float


class Stages(Generic[S, I, R]):
    """Runs `read` in reader threads and `infer` in a thread of its own.

    `read(source)` is a generator of items, which is closed whatever happens; RecordingError ends
    its source, another MemcliError the run. `infer(items)` gives one result per item. A reader that
    is stuck for `stall_s` seconds is given up and replaced.
    """

    def __init__(
        self,
        read: Callable[[S], Generator[I, None, None]],
        infer: Callable[[Sequence[I]], Sequence[R]],
        *,
        readers: int,
        queue_size: int,
        batch_size: int,
        stall_s: float = STALL_S,
    ):
        self._read = read
        self._infer = infer
        self._readers = max(1, readers)
        self._batch_size = max(1, batch_size)
        self._stall_s = stall_s
        # A batch must be able to fill while each reader prepares its next.
        self._slots = threading.Semaphore(max(queue_size, self._batch_size + self._readers))
        self._items: queue.SimpleQueue[_Read[S, I]] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[tuple[_Task[S], Scored[S, R] | Ended[S]] | BaseException]
        self._events = queue.SimpleQueue()
        self._active: set[_Task[S]] = set()
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self.stats = Stats(workers=self._readers)

    def run(self, sources: Iterable[S]) -> Generator[Scored[S, R] | Ended[S], None, None]:
        """Results as they come, and the end of each source. Closing the iterator ends the run; an
        exception that concerns all sources is raised here."""
        self._sources = iter(sources)
        self._exhausted = False
        self._taken = ended = 0
        self.stats.started = time.monotonic()
        engine = threading.Thread(target=self._run_engine, name="engine", daemon=True)
        engine.start()
        for _ in range(self._readers):
            self._start_reader()
        try:
            while not (self._exhausted and ended == self._taken and self._events.empty()):
                self._give_up_stuck()
                event = _get(self._events, _TICK_S)
                if event is None:
                    continue
                if isinstance(event, BaseException):
                    raise event
                task, what = event
                if isinstance(what, Ended):
                    task.end = what
                else:
                    self._slots.release()
                    task.given += 1
                    yield what
                if task.end is not None and task.given == task.count:
                    ended += 1
                    yield task.end
        finally:
            self._cancel.set()
            engine.join()

    def _start_reader(self) -> None:
        threading.Thread(target=self._run_reader, name="reader", daemon=True).start()

    def _next_task(self) -> _Task[S] | None:
        with self._lock:
            if self._exhausted or self._cancel.is_set():
                return None
            try:
                task = _Task(next(self._sources))
            except StopIteration:
                self._exhausted = True
                return None
            except BaseException as error:
                self._events.put(error)
                self._exhausted = True
                return None
            self._taken += 1
            self._active.add(task)
            return task

    def _run_reader(self) -> None:
        while (task := self._next_task()) is not None:
            try:
                error = self._read_all(task)
            except BaseException as fatal:
                self._events.put(fatal)
                return
            if not task.settle():
                return  # given up meanwhile: a new reader has this one's place
            self._end(task, error)

    def _end(self, task: _Task[S], error: RecordingError | None) -> None:
        with self._lock:
            self._active.discard(task)
            self.stats.decode_busy_s += task.read_s
        self._events.put((task, Ended(task.source, error, task.read_s)))

    def _read_all(self, task: _Task[S]) -> RecordingError | None:
        """Read a source to its end; the error that ended it, if one did."""
        error: RecordingError
        try:
            with closing(self._read(task.source)) as items:
                while self._read_one(task, items):
                    pass
            return None
        except RecordingError as known:
            error = known
        except MissingDependencyError as missing:  # of one format
            text = " ".join(filter(None, (missing.what, missing.next_step)))
            error = RecordingError(RecordingErrorCode.UNSUPPORTED, text)
        except MemcliError:
            raise
        except MemoryError:
            error = RecordingError(RecordingErrorCode.READ, "not enough memory to read it")
        except Exception as unknown:  # one bad file never stops a folder
            what = f"unexpected {type(unknown).__name__}: {unknown}"
            error = RecordingError(RecordingErrorCode.READ, what)
            if not self._cancel.is_set():
                log.info("unexpected error while reading", exc_info=unknown)
        error.__traceback__ = error.__context__ = error.__cause__ = None  # they hold samples
        return error

    def _read_one(self, task: _Task[S], items: Generator[I, None, None]) -> bool:
        """Read and hand on one item; False at the end of the source or of the run."""
        task.waiting = True
        if not self._acquire_slot():
            return False
        started = task.moved = time.monotonic()
        task.waiting = False
        handed = False
        try:
            item = next(items)
            seconds = time.monotonic() - started
            with task.lock:
                if not task.settled:
                    task.count += 1
                    task.read_s += seconds
                    self._items.put(_Read(task, item, seconds))
                    handed = True
        except StopIteration:
            pass
        finally:
            if not handed:
                self._slots.release()
        return handed

    def _acquire_slot(self) -> bool:
        while not self._cancel.is_set():
            if self._slots.acquire(timeout=_TICK_S):
                return True
        return False

    def _give_up_stuck(self) -> None:
        latest = time.monotonic() - self._stall_s
        with self._lock:
            stuck = [task for task in self._active if not task.waiting and task.moved < latest]
        for task in stuck:
            if task.settle():
                what = f"nothing could be read for {self._stall_s:g} s"
                self._end(task, RecordingError(RecordingErrorCode.READ, what))
                self._start_reader()

    def _run_engine(self) -> None:
        try:
            while batch := self._next_batch():
                started = time.monotonic()
                results = self._infer([read.item for read in batch])
                seconds = time.monotonic() - started
                self.stats.engine_busy_s += seconds
                self.stats.batches += 1
                for read, result in zip(batch, results, strict=True):
                    source = read.task.source
                    scored = Scored(source, result, read.read_s, seconds / len(batch))
                    self._events.put((read.task, scored))
                del batch, results
        except BaseException as error:
            self._events.put(error)

    def _next_batch(self) -> list[_Read[S, I]]:
        """Up to a batch; fewer when none has come for a while. Empty when the run is over."""
        batch: list[_Read[S, I]] = []
        while len(batch) < self._batch_size and not self._cancel.is_set():
            item = _get(self._items, _LINGER_S if batch else _TICK_S)
            if item is not None:
                batch.append(item)
            elif batch:
                break
        return [] if self._cancel.is_set() else batch


def _get(items: queue.SimpleQueue[T], timeout_s: float) -> T | None:
    try:
        return items.get(timeout=timeout_s)
    except queue.Empty:
        return None
