"""The file itself, before FFmpeg sees it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from memcli.errors import VideoError, VideoErrorCode

_CHANGED = "the file changed while it was read"


@contextmanager
def open_descriptor(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Iterator[int]:
    """A descriptor of a regular file with something in it, closed at the end.

    Raises VideoError: MISSING, PERMISSION, NOT_A_FILE, EMPTY or READ. Never blocks: FIFOs,
    sockets and devices are refused before and after opening.
    """
    name = os.fsencode(path)
    try:
        _check_kind(os.stat(name))  # noqa: PTH116, bytes are names too
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:  # a null byte in the name
        raise VideoError(VideoErrorCode.MISSING, "no file can have this name") from error
    except OSError as error:
        raise from_os_error(error) from error
    try:
        status = os.fstat(fd)
        _check_kind(status)  # again: the name may lead elsewhere by now
        if status.st_size == 0:
            raise VideoError(VideoErrorCode.EMPTY, "the file is empty (zero bytes)")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def unchanged(fd: int) -> Iterator[None]:
    """Raise VideoError (READ) if the file is written to meanwhile, whatever else is found of it.

    What was read would be neither the old video nor the new one.
    """
    before = _version(fd)
    try:
        yield
    except VideoError as error:
        if error.code != VideoErrorCode.TIMEOUT and _version(fd) != before:
            raise VideoError(VideoErrorCode.READ, _CHANGED) from error
        raise
    if _version(fd) != before:
        raise VideoError(VideoErrorCode.READ, _CHANGED)


def _version(fd: int) -> tuple[int, int]:
    try:
        status = os.fstat(fd)
    except OSError as error:  # of a network mount that went away
        raise from_os_error(error) from error
    return status.st_size, status.st_mtime_ns


def _check_kind(status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return
    for test, kind in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            raise VideoError(VideoErrorCode.NOT_A_FILE, f"this is {kind}, not a file")
    raise VideoError(VideoErrorCode.NOT_A_FILE, "this is a device, not a file")


def from_os_error(error: OSError) -> VideoError:
    """What the system says about a file, in our words."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return VideoError(VideoErrorCode.MISSING, "there is no such file")
    if error.errno == errno.ELOOP:
        return VideoError(VideoErrorCode.NOT_A_FILE, "the symbolic link leads in a circle")
    if error.errno == errno.ENAMETOOLONG:
        return VideoError(VideoErrorCode.MISSING, "no file can have a name this long")
    if error.errno in (errno.EACCES, errno.EPERM):
        return VideoError(VideoErrorCode.PERMISSION, "no permission to read the file")
    if error.errno == errno.ENXIO:
        return VideoError(VideoErrorCode.NOT_A_FILE, "this is a socket or device, not a file")
    reason = os.strerror(error.errno) if error.errno else "unknown reason"
    return VideoError(VideoErrorCode.READ, f"the file cannot be read ({reason})")
