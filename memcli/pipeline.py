"""Decode workers -> bounded queue -> batches -> engine, all overlapped.

A `Stage` may stand between them, for clips that want it: captions are made there.

Generic over what a worker reads and an engine scores, so that it can be tested with neither. Every
source yields exactly one outcome, whatever happens to it; outcomes come in order of completion.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

from memcli.errors import VideoError, VideoErrorCode

S = TypeVar("S")  # a source: what names a video
C = TypeVar("C")  # a clip: what a worker makes of it
R = TypeVar("R")  # a result: what the engine says of a clip

log = logging.getLogger(__name__)

_TICK_S = 0.1
_WATCHDOG_GRACE_S = 2.0
_LINGER_S = 0.25
QUEUE_BYTES = 256 << 20
"""What decoded clips may take while they wait, for those who choose `queue_size`."""


@dataclass(frozen=True)
class Outcome(Generic[S, R]):
    """What became of one source: a result, or an error. Holds no clip."""

    source: S
    result: R | None = None
    error: VideoError | None = None
    decode_s: float = 0.0
    infer_s: float = 0.0
    """This clip's share of its batch's time in the engine."""


@dataclass(frozen=True)
class Stage(Generic[C]):
    """Work on several clips at once, between reading and the engine, in a thread of its own."""

    wants: Callable[[C], bool]
    """Clips that do not need it go straight to the engine."""
    work: Callable[[Sequence[C], Callable[[], bool]], Sequence[C | VideoError]]
    """What becomes of each clip. The second argument turns true when the run ends early."""
    batch_size: int


@dataclass
class Stats:
    """Where the time went."""

    started: float = field(default_factory=time.monotonic)
    decode_busy_s: float = 0.0
    """Summed over workers."""
    engine_busy_s: float = 0.0
    workers: int = 0
    batches: int = 0
    stage_busy_s: float = 0.0
    """Of the stage between reading and the engine, e.g. the captioner."""

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def bottleneck(self) -> str | None:
        """`engine`, `captions` or `decode`: what needs most time. None before any batch."""
        if not self.batches:
            return None
        busy = {
            "engine": self.engine_busy_s,
            "captions": self.stage_busy_s,
            "decode": self.decode_busy_s / self.workers,
        }
        return max(busy, key=busy.__getitem__)


@dataclass
class _Task(Generic[S]):
    source: S
    started: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    settled: bool = False
    """Set once, by the worker that finished it or by the watchdog that gave it up."""

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started

    def settle(self) -> bool:
        """True for the first caller only."""
        with self.lock:
            first, self.settled = not self.settled, True
            return first


@dataclass(frozen=True)
class _Decoded(Generic[S, C]):
    source: S
    clip: C
    decode_s: float


class Pipeline(Generic[S, C, R]):
    """Runs `read` in worker threads and `infer` in a thread of its own.

    `read(source, deadline, cancelled)` makes a clip or raises VideoError; `deadline` is a
    `time.monotonic` value or None, `cancelled()` turns true when the run ends early. `infer(clips)`
    gives one result per clip. At most `queue_size` sources are under way, from the start of their
    reading until their outcome is taken, which bounds memory also when outcomes are taken slowly.
    It is raised so that a batch can fill while workers read, but never over `most`: batches of
    large clips are smaller then. A worker stuck past its deadline is given up and replaced.
    """

    def __init__(
        self,
        read: Callable[[S, float | None, Callable[[], bool]], C],
        infer: Callable[[Sequence[C]], Sequence[R]],
        *,
        workers: int,
        queue_size: int,
        batch_size: int = 1,
        file_timeout_s: float | None = None,
        grace_s: float = _WATCHDOG_GRACE_S,
        stage: Stage[C] | None = None,
        most: int | None = None,
    ):
        self._read = read
        self._infer = infer
        self._workers = max(1, workers)
        self._batch_size = max(1, batch_size)
        self._timeout_s = file_timeout_s
        self._grace_s = grace_s
        self._next_watch = 0.0
        self._stage = stage
        self._staged: queue.SimpleQueue[_Decoded[S, C]] = queue.SimpleQueue()
        # A batch must be able to fill while the workers prepare the next.
        least = self._batch_size + self._workers + (stage.batch_size if stage else 0)
        slots = max(queue_size, least)
        self._slots = threading.Semaphore(slots if most is None else max(1, min(slots, most)))
        self._decoded: queue.SimpleQueue[_Decoded[S, C]] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome[S, R] | BaseException] = queue.SimpleQueue()
        self._tasks: dict[int, _Task[S]] = {}
        self._source_lock = threading.Lock()
        self._stats_lock = threading.Lock()
        self._cancel = threading.Event()
        self.stats = Stats(workers=self._workers)

    @property
    def cancelled(self) -> bool:
        """Whether the run has ended early, for an `infer` that takes long."""
        return self._cancel.is_set()

    def run(self, sources: Iterable[S]) -> Generator[Outcome[S, R], None, None]:
        """One outcome per source. Closing the iterator ends the run; an exception of `infer`
        ends it too and is raised here."""
        self._sources = iter(sources)
        self._exhausted = False
        self._taken = given = 0
        self.stats.started = time.monotonic()
        threads = [threading.Thread(target=self._run_engine, name="engine", daemon=True)]
        if self._stage is not None:
            work = partial(self._run_stage, self._stage)
            threads.append(threading.Thread(target=work, name="stage", daemon=True))
        for thread in threads:
            thread.start()
        for _ in range(self._workers):
            self._start_worker()
        try:
            while not (self._exhausted and given == self._taken and self._outcomes.empty()):
                self._give_up_stuck()
                outcome = _get(self._outcomes, _TICK_S)
                if outcome is None:
                    continue
                if isinstance(outcome, BaseException):
                    raise outcome
                given += 1
                self._slots.release()
                yield outcome
        finally:
            self._cancel.set()
            for thread in threads:
                thread.join()

    def _start_worker(self) -> None:
        threading.Thread(target=self._run_worker, name="decode", daemon=True).start()

    def _next_source(self) -> _Task[S] | None:
        with self._source_lock:
            if self._exhausted:
                return None
            try:
                source = next(self._sources)
            except StopIteration:
                self._exhausted = True
                return None
            except BaseException as error:
                self._outcomes.put(error)  # first: the run is over once nothing is to come
                self._exhausted = True
                return None
            self._taken += 1
            task = self._tasks[threading.get_ident()] = _Task(source)
            return task

    def _acquire_slot(self) -> bool:
        while not self._cancel.is_set():
            if self._slots.acquire(timeout=_TICK_S):
                return True
        return False

    def _run_worker(self) -> None:
        while self._acquire_slot():
            task = self._next_source()
            if task is None:
                self._slots.release()
                return
            outcome = self._decode(task)
            if not task.settle():
                return  # given up meanwhile: a new worker has this one's place
            self._count(outcome.decode_s)
            if isinstance(outcome, Outcome):
                self._outcomes.put(outcome)
            elif self._stage is not None and self._stage.wants(outcome.clip):
                self._staged.put(outcome)
            else:
                self._decoded.put(outcome)
            with self._source_lock:
                self._tasks.pop(threading.get_ident(), None)

    def _decode(self, task: _Task[S]) -> _Decoded[S, C] | Outcome[S, R]:
        deadline = task.started + self._timeout_s if self._timeout_s is not None else None
        error: VideoError
        try:
            clip = self._read(task.source, deadline, self._cancel.is_set)
            return _Decoded(task.source, clip, task.age_s)
        except VideoError as known:
            error = known
        except MemoryError:
            error = VideoError(VideoErrorCode.TOO_LARGE, "not enough memory to decode it")
        except Exception as unknown:  # one bad file never stops a folder
            error = VideoError(
                VideoErrorCode.INTERNAL, f"unexpected {type(unknown).__name__}: {unknown}"
            )
            if not self._cancel.is_set():  # a cancelled reader may end with any exception
                log.info("unexpected error while decoding", exc_info=unknown)
        error.__traceback__ = error.__context__ = error.__cause__ = None  # they hold decoder state
        return Outcome(task.source, error=error, decode_s=task.age_s)

    def _count(self, seconds: float) -> None:
        with self._stats_lock:
            self.stats.decode_busy_s += seconds

    def _give_up_stuck(self) -> None:
        """A worker that not even its deadline stops is inside a call that cannot be interrupted:
        its file fails, and a new worker takes over."""
        now = time.monotonic()
        if self._timeout_s is None or now < self._next_watch:
            return
        self._next_watch = now + _TICK_S
        latest = now - self._timeout_s - self._grace_s
        with self._source_lock:
            stuck = {thread: task for thread, task in self._tasks.items() if task.started < latest}
            for thread in stuck:
                del self._tasks[thread]
        for task in stuck.values():
            if task.settle():
                error = timeout_error(self._timeout_s)
                self._count(task.age_s)
                self._outcomes.put(Outcome(task.source, error=error, decode_s=task.age_s))
                self._start_worker()

    def _run_engine(self) -> None:
        try:
            while batch := self._next_batch(self._decoded, self._batch_size):
                started = time.monotonic()
                results = self._infer([item.clip for item in batch])
                seconds = time.monotonic() - started
                self.stats.engine_busy_s += seconds
                self.stats.batches += 1
                for item, result in zip(batch, results, strict=True):
                    self._outcomes.put(
                        Outcome(
                            item.source,
                            result=result,
                            decode_s=item.decode_s,
                            infer_s=seconds / len(batch),
                        )
                    )
                del batch, results
        except BaseException as error:
            self._outcomes.put(error)

    def _run_stage(self, stage: Stage[C]) -> None:
        try:
            while batch := self._next_batch(self._staged, stage.batch_size):
                started = time.monotonic()
                results = stage.work([item.clip for item in batch], self._cancel.is_set)
                self.stats.stage_busy_s += time.monotonic() - started
                for item, result in zip(batch, results, strict=True):
                    if isinstance(result, VideoError):
                        self._outcomes.put(
                            Outcome(item.source, error=result, decode_s=item.decode_s)
                        )
                    else:
                        self._decoded.put(replace(item, clip=result))
                del batch, results
        except BaseException as error:
            self._outcomes.put(error)

    def _next_batch(
        self, decoded: queue.SimpleQueue[_Decoded[S, C]], size: int
    ) -> list[_Decoded[S, C]]:
        """Up to a batch of clips; fewer when none has come for a while, so that one slow file
        does not hold back the finished ones. Empty when the run is cancelled."""
        batch: list[_Decoded[S, C]] = []
        while len(batch) < size and not self._cancel.is_set():
            item = _get(decoded, _LINGER_S if batch else _TICK_S)
            if item is not None:
                batch.append(item)
            elif batch:
                break
        return [] if self._cancel.is_set() else batch


T = TypeVar("T")


def _get(items: queue.SimpleQueue[T], timeout_s: float) -> T | None:
    try:
        return items.get(timeout=timeout_s)
    except queue.Empty:
        return None


def timeout_error(seconds: float) -> VideoError:
    """The error of a file that took longer than `--file-timeout`."""
    return VideoError(VideoErrorCode.TIMEOUT, f"not decoded within {seconds:g} s")
