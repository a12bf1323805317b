"""Folders that appear complete or not at all, and what else models' files have in common.

Whatever is under construction lies beside its place NAME as `.NAME.KIND.PID`. Only what a dead
process left is ever cleared; an installed folder that it had moved aside is put back.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

try:
    from lzma import LZMAError
except ImportError:  # a Python built without it cannot read such zips
    LZMAError = zlib.error  # type: ignore[assignment,misc]

Kind = Literal["pull", "add", "make", "old", "rm"]
KINDS: tuple[Kind, ...] = ("pull", "add", "make", "old", "rm")

ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,  # raised by zipfile for a compression method that it does not have
    RuntimeError,  # encrypted
    ValueError,
    LookupError,
    OverflowError,
)
"""What Python's zipfile raises on damaged archives, by experience of fuzzing it; and OSError."""

_BLOCK_BYTES = 1 << 20
_in_use_here: set[Path] = set()


def sha256_of(stream: IO[bytes]) -> str:
    """SHA-256 of what is left of a stream, as hexadecimal text."""
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as stream:
        return sha256_of(stream)


@contextmanager
def staging(target: Path, kind: Kind) -> Iterator[Path]:
    """An empty folder beside `target`, removed afterwards if it is still there.

    What killed processes left beside `target` is cleared first. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target)
    folder = _beside(target, kind)
    _in_use_here.add(folder)
    try:
        folder.mkdir()
        with _marked_in_use(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _in_use_here.discard(folder)


def install(folder: Path, target: Path) -> None:
    """Move a finished folder to its place.

    An older one is moved aside and comes back if that fails, at once or, after a kill, with the
    next `restore`. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target)
    if not target.exists():
        folder.replace(target)
        return
    old = _beside(target, "old")
    with _marked_in_use(target):
        try:
            target.replace(old)
            folder.replace(target)
        except BaseException:
            if not target.exists():
                old.replace(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def discard(target: Path) -> None:
    """Delete a folder, or the link to one. It is gone at once, however long that takes.

    Raises OSError.
    """
    if target.is_symlink():
        target.unlink()
        return
    clear_leftovers(target)
    gone = _beside(target, "rm")
    target.replace(gone)
    shutil.rmtree(gone)


def clear_leftovers(target: Path) -> None:
    """Delete what dead processes left beside `target`, after `restore`."""
    restore(target)
    for kind in KINDS:
        for left in _left(target, kind):
            if not _in_use(left):
                shutil.rmtree(left, ignore_errors=True)


def restore(target: Path) -> None:
    """Put back the folder that a process moved aside before it was killed."""
    for old in _left(target, "old"):
        if not target.exists() and not _in_use(old):
            with contextlib.suppress(OSError):
                old.replace(target)


def _beside(target: Path, kind: Kind) -> Path:
    return target.with_name(f".{target.name}.{kind}.{os.getpid()}")


def _left(target: Path, kind: Kind) -> list[Path]:
    return sorted(target.parent.glob(f"{glob.escape(f'.{target.name}.{kind}.')}*"))


@contextmanager
def _marked_in_use(folder: Path) -> Iterator[None]:
    """Tell it to other processes, also to those that cannot see the number of this one."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _flock(handle, wait=False)
        yield
    finally:
        os.close(handle)


def _in_use(folder: Path) -> bool:
    number = folder.name.rpartition(".")[2]
    if not number.isdecimal():
        return True  # not a name of ours
    if folder in _in_use_here:
        return True
    if int(number) != os.getpid() and _is_running(int(number)):
        return True
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        return _flock(handle, wait=False) is False
    finally:
        os.close(handle)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def locked(target: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold off other processes that change `target`; gives whether there was one to wait for.

    On a file system without locks it goes on without one.
    """
    path = target.with_name(f".{target.name}.lock")
    handle, waited = _acquire(path, on_wait)
    try:
        yield waited
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: who waits for it notices and makes a new one
            os.close(handle)


def _acquire(path: Path, on_wait: Callable[[], None]) -> tuple[int | None, bool]:
    waited = False
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return None, waited
        try:
            got = _flock(handle, wait=False)
            if got is False:
                if not waited:
                    on_wait()
                waited = True
                got = _flock(handle, wait=True)
            if got is None:
                os.close(handle)
                return None, waited
            if _is_open_at(handle, path):
                return handle, waited
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_open_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _flock(handle: int, *, wait: bool) -> bool | None:
    """True if the lock is held now, False if another has it, None where there are no locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True
