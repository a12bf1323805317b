"""One process at a time in an experiment's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memcli.errors import OutputError
from memcli.locking import lock

LOCK_FILE = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder, which is there; the lock ends with the process, however it ends.

    Raises UsageError if another process holds it, OutputError where files cannot be locked.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    try:
        lock(
            descriptor,
            folder,
            busy="another memcli is at work in this folder",
            wait="Wait until it is done, or choose another:  --output DIR",
            elsewhere="Choose another place:  --output DIR",
        )
        yield
    finally:
        os.close(descriptor)
