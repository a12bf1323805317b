"""Ctrl-C and SIGTERM: one interrupt that arrives, and a way out that cannot be held up."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

REPEAT_S = 1.0
"""Signals within this time of one that was taken are the same wish: they are ignored, so that the
run can finish its table."""
_AGAIN_S = 0.05


class Interrupts:
    """Turns signals into KeyboardInterrupt in the main thread."""

    def __init__(self) -> None:
        self._taken_at = -REPEAT_S

    def install(self) -> None:
        """Take over SIGTERM, SIGINT and SIGALRM for the rest of the process.

        SIGINT stays ignored where the caller's shell ignores it for jobs in the background.
        """
        signal.signal(signal.SIGTERM, self._take)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._take)
        signal.signal(signal.SIGALRM, self._raise)
        self._report_unraisable = sys.unraisablehook
        sys.unraisablehook = self._on_unraisable

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._taken_at >= REPEAT_S:
            self._taken_at = now
            self._raise(number, frame)

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def _on_unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised in a weak reference's callback or a `__del__`, and there are
        many of both while modules are imported. An interrupt that fell there is raised again."""
        if issubclass(lost.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            self._report_unraisable(lost)


def leave(code: int) -> NoReturn:
    """End the process at once, with what was printed.

    Not `sys.exit`: after an interrupt threads may still be inside a runtime, and when they come
    back to an interpreter that is being taken down, they abort or block the process. Python also
    replaces the exit code by SIGINT where the interrupt fell into code run by `exec`, such as a
    dataclass being made.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # gone, closed, or never there
            stream.flush()
    os._exit(code)
