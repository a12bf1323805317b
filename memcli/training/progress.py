"""Who watches a training: lines on standard error, or JSON for programs."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

from memcli.progress import json_event, say
from memcli.text import plural

if TYPE_CHECKING:
    from memcli.extraction import Counts
    from memcli.training.settings import Progress

_TERMINAL_INTERVAL_S = 2.0
_LOG_INTERVAL_S = 10.0
_SURE_AFTER_S = 5.0
"""A speed of less work says nothing about the time left."""


def make_training_progress(*, as_json: bool) -> Progress:
    """The watcher that fits the options and the terminal."""
    return JsonTraining() if as_json else TextTraining()


class TextTraining:
    """Messages at once, progress every few seconds, and how each stage ended."""

    def __init__(self) -> None:
        self._counts: Counts | None = None
        self._interval_s = _TERMINAL_INTERVAL_S if sys.stderr.isatty() else _LOG_INTERVAL_S
        self._next = time.monotonic() + self._interval_s

    def message(self, text: str) -> None:
        say(text)

    def begin(self, counts: Counts) -> None:
        cached = f", {counts.cached:,} in the cache" if counts.cached else ""
        say(f"features of {plural(counts.total, counts.what)}{cached}")
        self._counts = counts

    def advance(self, counts: Counts) -> None:
        if self._due() and counts.cached + counts.done + counts.failed < counts.total:
            told = [_how_far(counts), f"{counts.per_s:.1f} per s"]
            if counts.done and counts.elapsed_s >= _SURE_AFTER_S:
                told.append(f"{math.ceil(counts.eta_s):,} s left")
            say(", ".join(told))

    def end(self) -> None:
        counts, self._counts = self._counts, None
        if counts is not None and counts.cached < counts.total:
            say(f"{_how_far(counts)}, {counts.elapsed_s:.1f} s")

    def epoch(self, part: str, number: int, of: int, metrics: dict[str, float]) -> None:
        if self._due() or number == of:
            told = [f"{name} {value:.4f}" for name, value in sorted(metrics.items())]
            say(", ".join([f"{part}: epoch {number} of {of}", *told]))

    def _due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._interval_s
        return True


def _how_far(counts: Counts) -> str:
    done = counts.cached + counts.done + counts.failed
    return f"{done:,} of {plural(counts.total, counts.what)}, {counts.failed:,} failed"


class JsonTraining:
    """One JSON object a line: `message`, `features`, `epoch`; `features` at most one a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def message(self, text: str) -> None:
        json_event("message", text=text)

    def begin(self, counts: Counts) -> None:
        self._features(counts)

    def advance(self, counts: Counts) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1.0
            self._features(counts)

    def end(self) -> None: ...

    def epoch(self, part: str, number: int, of: int, metrics: dict[str, float]) -> None:
        json_event("epoch", part=part, epoch=number, of=of, metrics=metrics)

    def _features(self, counts: Counts) -> None:
        json_event(
            "features",
            what=counts.what,
            total=counts.total,
            cached=counts.cached,
            done=counts.done,
            failed=counts.failed,
            per_s=round(counts.per_s, 3),
        )
