"""Ending what ONNX Runtime computes, while it does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from memcli.closing import Closeable
from memcli.errors import EngineError

_TICK_S = 0.05


class RunEndedError(EngineError):
    """The run was ended: nothing is to be tried again."""

    def __init__(self) -> None:
        super().__init__("the run was ended while captions were made")


class Stopping(Closeable):
    """Within it, runs that take `options` end once `cancelled()` is true.

    ONNX Runtime looks at `options.terminate` before each node of a graph, so that a run ends
    within the longest of its products; it takes no callback, so a thread asks `cancelled`.
    """

    def __init__(self, ort: Any, cancelled: Callable[[], bool]):
        self.options = ort.RunOptions()
        self._cancelled = cancelled
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="captions-stop", daemon=True)

    def __enter__(self) -> Stopping:
        self._thread.start()
        return self

    def close(self) -> None:
        """Watch no longer."""
        self._done.set()
        self._thread.join()

    def check(self) -> None:
        """Raise RunEndedError if the run was ended."""
        if self.options.terminate or self._cancelled():
            self.options.terminate = True
            raise RunEndedError

    def _watch(self) -> None:
        while not self._done.wait(_TICK_S):
            if self._cancelled():
                self.options.terminate = True
                return
