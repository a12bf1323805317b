"""Work that must not be interrupted, in a thread of its own, so that waiting for it can be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_PATIENCE_S = 2.0
"""A step of TensorRT may take minutes, and ends no sooner; a user who wants to stop waits less."""


def run_aside(
    work: Callable[[], T], stop: Callable[[], None], *, patience_s: float = _PATIENCE_S
) -> T:
    """What `work` gives; it runs in another thread, and the caller waits.

    Python runs signal handlers in the main thread, in whatever Python code it executes next. If
    that is a callback from C++, the KeyboardInterrupt is lost there: C++ cannot hand it on. In the
    main thread nothing but the waiting is left to interrupt. Then `stop` is called, `work` has
    `patience_s` to end, and the interrupt goes on. Errors of `work` are raised here.
    """
    given: list[T] = []
    raised: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            given.append(work())
        except BaseException as error:
            raised.append(error)
        finally:
            ended.set()

    # A daemon: one that does not stop must not keep the process alive.
    thread = threading.Thread(target=run, name="memcli-build", daemon=True)
    try:
        thread.start()
        ended.wait()
    except BaseException:
        stop()
        ended.wait(patience_s)
        raise
    if raised:
        raise raised[0]
    return given[0]
