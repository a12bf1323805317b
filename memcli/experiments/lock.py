"""One process at a time in an experiment's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memcli.errors import OutputError, UsageError

LOCK_FILE = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder, which is there; the lock ends with the process, however it ends.

    Raises UsageError if another process holds it, OutputError where files cannot be locked.
    """
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                "another memcli is at work in this folder",
                where=str(folder),
                next_step="Wait until it is done, or choose another:  --output DIR",
            ) from error
        except OSError as error:
            raise OutputError(
                f"this file system cannot lock files ({error.strerror}), so that two processes"
                " could mix",
                where=str(folder),
                next_step="Choose another place:  --output DIR",
            ) from error
        yield
    finally:
        os.close(lock)
