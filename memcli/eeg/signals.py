"""What is read from: a continuous signal, or epochs that exist already."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol

from memcli.eeg.quiet import quiet
from memcli.errors import RecordingError, RecordingErrorCode
from memcli.text import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_INTERNAL = (AttributeError, IndexError, KeyError, TypeError, AssertionError, ZeroDivisionError)
"""Errors whose texts name Python's variables, or nothing."""
_PATH = re.compile(r"(?:Posix|Windows)Path\(('[^']*')\)")
_SPLIT = re.compile(r"Split raw file detected but next file (.+?) does not exist")

VOLTS = {"V": 1.0, "mV": 1e-3, "uV": 1e-6, "nV": 1e-9}


@dataclass(frozen=True)
class Marker:
    """Something that is written beside a continuous signal."""

    start: int
    """First sample."""
    stop: int
    """Sample after the last; `start` for a point in time."""
    name: str


class Signal(Protocol):
    """A continuous recording."""

    @property
    def samples(self) -> int:
        """Per channel."""
        ...

    def read(self, picks: Sequence[int], start: int, stop: int) -> Floats:
        """Volts [picks, stop - start], by the units that the file declares."""
        ...


class ExistingEpochs(Protocol):
    """Epochs of a file."""

    count: int
    samples: int
    """Of each, per channel."""
    first_s: float
    """Time of the first sample after the event; negative before it."""

    def read(self, picks: Sequence[int], index: int) -> Floats:
        """Volts [picks, samples] of one epoch."""
        ...


@dataclass(frozen=True)
class EpochFacts:
    """What a file says about one of its epochs."""

    event: str
    onset_s: float | None
    """Of the event in the recording that the epoch was cut from; None: the file does not say."""
    metadata: dict[str, Any] = field(default_factory=dict)
    bad: bool = False
    """Overlapped by a bad annotation."""


class RawSignal:
    """A `Raw` of MNE that is not loaded."""

    def __init__(self, raw: Any, path: str):
        self._raw = raw
        self._path = path
        self.samples = int(raw.n_times)

    def read(self, picks: Sequence[int], start: int, stop: int) -> Floats:
        """See `Signal`."""
        import numpy as np

        try:
            with quiet():
                data = self._raw.get_data(picks=np.asarray(picks, int), start=start, stop=stop)
        except Exception as error:
            raise unreadable(self._path, error, at=f"samples {start} to {stop}") from error
        if data.shape[1] != stop - start:
            raise unreadable(self._path, EOFError("the file ends"), at=f"sample {start}")
        result: Floats = data
        return result


class MneEpochs:
    """`Epochs` of MNE, loaded or not."""

    def __init__(self, epochs: Any, path: str):
        self._epochs = epochs
        self._path = path
        self.count = len(epochs)
        self.samples = len(epochs.times)
        self.first_s = float(epochs.tmin)

    def read(self, picks: Sequence[int], index: int) -> Floats:
        """See `ExistingEpochs`."""
        import numpy as np

        try:
            with quiet():
                data = self._epochs.get_data(picks=np.asarray(picks, int), item=[index])
        except Exception as error:
            raise unreadable(self._path, error, at=f"epoch {index}") from error
        if len(data) != 1:
            raise unreadable(self._path, EOFError("the epoch is not there"), at=f"epoch {index}")
        result: Floats = np.asarray(data[0], np.float64)
        return result


class ArrayEpochs:
    """An array [epochs, channels, samples], mapped or loaded."""

    def __init__(self, data: Any, volts: float, first_s: float):
        """`volts` is one unit of the array."""
        self._data = data
        self._volts = volts
        self.count, _, self.samples = data.shape
        self.first_s = first_s

    def read(self, picks: Sequence[int], index: int) -> Floats:
        """See `ExistingEpochs`."""
        import numpy as np

        result: Floats = np.asarray(self._data[index][list(picks)], np.float64) * self._volts
        return result


def unreadable(path: str, error: BaseException, *, at: str = "") -> RecordingError:
    """The error of a file that a reader gave up on."""
    if isinstance(error, RecordingError):
        return error
    said = " ".join(str(error).split())
    place = f" at {at}" if at else ""
    if split := _SPLIT.search(said):
        return RecordingError(
            RecordingErrorCode.DAMAGED,
            f"its next part is not there: {printable(PurePath(split[1]).name)}",
            where=path,
            next_step="Copy all parts of a split recording, under the names that they had.",
        )
    # What the reader stumbled over says something of its code, nothing of the file.
    inside = isinstance(error, _INTERNAL) or not said
    words = "its content is not what its format says" if inside else _PATH.sub(r"\1", said)
    return RecordingError(
        RecordingErrorCode.DAMAGED,
        f"this recording cannot be read{place}: {printable(words)[:200]}",
        where=path,
        next_step="Is it whole, and what its name says? Copy or export it again.",
    )


def python_objects(path: str) -> RecordingError:
    """The error of arrays that are pickles, which are never loaded: they may run any code."""
    return RecordingError(
        RecordingErrorCode.UNSUPPORTED,
        "holds Python objects, which are not loaded",
        where=path,
        next_step="Save arrays of numbers, and of texts for names (not dtype=object).",
    )
