"""One process at a time: locks of open files, which end with the process, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

from memcli.errors import OutputError, UsageError


def lock(
    descriptor: int,
    place: Path,
    *,
    busy: str,
    wait: str | None = None,
    elsewhere: str,
    on_wait: Callable[[], None] | None = None,
) -> None:
    """Take the lock of an open file that guards `place`, for as long as the file is open.

    Where another process holds it, `on_wait` is called and that process is waited for; without
    `on_wait`, that raises UsageError(`busy`) with the next step `wait`. Raises OutputError with
    the next step `elsewhere` where files cannot be locked.
    """
    try:
        if _locked(descriptor, fcntl.LOCK_NB):
            return
        if on_wait is None:
            raise UsageError(busy, where=str(place), next_step=wait)
        on_wait()
        _locked(descriptor, 0)
    except _NoLocksError as error:
        raise OutputError(
            f"this file system cannot lock files ({error}), so that two runs could mix",
            where=str(place),
            next_step=elsewhere,
        ) from error


class _NoLocksError(Exception):
    """Of the file system."""


def _locked(descriptor: int, flags: int) -> bool:
    """Whether it could be had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _NoLocksError(error.strerror) from error
    return True
