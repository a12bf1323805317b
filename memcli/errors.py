"""Every error memcli shows: what is wrong, where, and what to do next.

The command line prints `str(error)` and leaves with `error.exit_code`; nothing else decides
how a failure looks. Errors of one input file (`VideoError`) become rows of the table instead.
"""

from __future__ import annotations

import errno
from enum import Enum, IntEnum

_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
)


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    SOME_INPUTS_FAILED = 1
    USAGE = 2
    NOT_USABLE = 3
    """The model, engine, device or output disk is not usable."""
    INTERRUPTED = 130


def is_interrupt(error: BaseException) -> bool:
    """Whether this is KeyboardInterrupt, or an error that was made of one.

    Modules in C++ turn an interrupt during their import into an ImportError "from" it.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:  # `raise error from error` makes a circle
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        cause = cause.__cause__
    return False


def is_disk_error(error: OSError) -> bool:
    """Whether the disk is to blame (full, read-only, no permission), not what was written."""
    return error.errno in _DISK_ERRORS


class MemcliError(Exception):
    """Base of all errors: `what` is wrong, `where` (a file, an option), `next_step` to take."""

    exit_code = ExitCode.NOT_USABLE

    def __init__(self, what: str, *, where: str | None = None, next_step: str | None = None):
        self.what = what
        self.where = where
        self.next_step = next_step
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.next_step:
            text += "".join(f"\n  {line}" for line in self.next_step.splitlines())
        return text


class UsageError(MemcliError, ValueError):
    """The command or call cannot be carried out as asked."""

    exit_code = ExitCode.USAGE


class OutputError(MemcliError, OSError):
    """Results cannot be written (full disk, missing permission). What was written stays valid."""

    __str__ = MemcliError.__str__


class OutputMismatchError(UsageError):
    """The output file holds results of another model, schema or setting."""


class ModelError(MemcliError):
    """A model is unknown, not installed, damaged, or its weights cannot be had."""


class EngineError(MemcliError):
    """A runtime cannot load or run a graph, or no verified engine fits the request."""


class DeviceError(MemcliError):
    """The asked device is not on this machine."""


class ParityError(MemcliError):
    """A graph does not say the same as its reference within the tolerance of its precision."""


class MissingDependencyError(MemcliError, ImportError):
    """An optional package is needed: names the purpose and the command that installs it."""

    __str__ = MemcliError.__str__

    def __init__(self, package: str, *, purpose: str, install: str):
        super().__init__(f"{purpose} needs {package}", next_step=f"Install it: {install}")


class VideoErrorCode(str, Enum):
    """Why a video got no score: the `error_code` column."""

    MISSING = "missing"
    PERMISSION = "permission"
    NOT_A_FILE = "not-a-file"
    EMPTY = "empty"
    NOT_MEDIA = "not-media"
    NO_VIDEO = "no-video"
    IMAGE = "image"
    UNSUPPORTED = "unsupported"
    DAMAGED = "damaged"
    TOO_LARGE = "too-large"
    NO_CAPTION = "no-caption"
    TIMEOUT = "timeout"
    READ = "read-error"
    INTERNAL = "internal"


class VideoError(MemcliError):
    """One video cannot be scored. Becomes a `failed` row; never stops a folder."""

    exit_code = ExitCode.SOME_INPUTS_FAILED

    def __init__(self, code: VideoErrorCode, what: str, *, where: str | None = None):
        super().__init__(what, where=where)
        self.code = code


class RecordingErrorCode(str, Enum):
    """Why an EEG recording cannot be used: the `error_code` column."""

    MISSING = "missing"
    PERMISSION = "permission"
    EMPTY = "empty"
    UNSUPPORTED = "unsupported"
    """No format that is read, or one that is declared too little of (arrays without a rate)."""
    DAMAGED = "damaged"
    NO_EEG = "no-eeg"
    CHANNELS = "missing-channels"
    """A model for other channels, or channels that hold no signal."""
    DUPLICATES = "duplicate-channels"
    MONTAGE = "no-montage"
    """No positions to interpolate with, or an unknown montage."""
    UNITS = "units"
    RATE = "rate-too-low"
    TOO_SHORT = "too-short"
    NO_EVENTS = "no-events"
    ONSETS = "onsets"
    """A file of onsets that cannot be used."""
    READ = "read-error"


class RecordingError(MemcliError):
    """One recording cannot be scored. Becomes a `failed` row; never stops a folder."""

    exit_code = ExitCode.SOME_INPUTS_FAILED

    def __init__(
        self,
        code: RecordingErrorCode,
        what: str,
        *,
        where: str | None = None,
        next_step: str | None = None,
    ):
        super().__init__(what, where=where, next_step=next_step)
        self.code = code
