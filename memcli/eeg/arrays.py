"""Epochs in .npy and .npz files: arrays that say what they are, or are told.

A .npz holds `data` [epochs, channels, samples] (or one epoch [channels, samples]), `sfreq` in Hz
and `ch_names`; optional are `unit` ("V", "mV", "uV"), `tmin` in seconds, and `event`, `onset_s`,
`subject`, `label`, `video` or any other array with one entry per epoch, which becomes metadata.
A .npy holds the data alone; beside it NAME.json may hold {"sfreq": 256, "ch_names": [...],
"unit": "uV", "tmin": 0}. Arrays are in microvolts unless they say otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcli.eeg.npz import read_npz
from memcli.eeg.signals import (
    VOLTS,
    ArrayEpochs,
    EpochFacts,
    python_objects,
    unreadable,
)
from memcli.errors import RecordingError, RecordingErrorCode
from memcli.text import printable

_DATA = ("data", "X", "x", "epochs", "eeg")
_RATE = ("sfreq", "sfreq_hz", "fs", "srate")
_NAMES = ("ch_names", "channels", "channel_names")
_TMIN = ("tmin", "tmin_s")
_MAGIC = b"\x93NUMPY"
_MAX_JSON = 1 << 20
_SHOWN = 200


@dataclass(frozen=True)
class ArrayFile:
    """An opened file of epochs."""

    epochs: ArrayEpochs
    sfreq_hz: float
    names: tuple[str, ...]
    unit: str
    facts: list[EpochFacts]


def open_arrays(path: str, sfreq_hz: float | None, channels: Sequence[str] | None) -> ArrayFile:
    """Open a .npy or .npz file; what is given goes before what the file says.

    Raises RecordingError if it is no such file, or if rate or channel names are not known.
    """
    data, said = _load(path)
    if data.ndim == 2:
        data = data[None]
    if data.ndim != 3 or data.dtype.kind not in "fiu" or 0 in data.shape:
        raise RecordingError(
            RecordingErrorCode.UNSUPPORTED,
            f"holds {data.dtype} {list(data.shape)}; needed: numbers [epochs, channels, samples]",
            where=path,
        )
    given_rate = sfreq_hz if sfreq_hz is not None else _first(said, _RATE)
    given_names = channels or _first(said, _NAMES)
    if given_rate is None and given_names is None:
        raise _lacking(path, "no sampling rate and no channel names")
    rate = _rate(path, given_rate)
    names = _names(path, given_names, data.shape[1])
    unit = str(_scalar(said.get("unit", "uV"))).replace("µ", "u").replace("μ", "u")
    if unit not in VOLTS:
        raise _lacking(path, f"its unit {printable(unit[:_SHOWN])!r} is none of {', '.join(VOLTS)}")
    tmin = _first(said, _TMIN)
    first_s = 0.0 if tmin is None else _number(path, "tmin", tmin)
    facts = _facts(said, data.shape[0])
    return ArrayFile(ArrayEpochs(data, VOLTS[unit], first_s), rate, names, unit, facts)


def _load(path: str) -> tuple[Any, Mapping[str, Any]]:
    import numpy as np

    try:
        if path.lower().endswith(".npy"):
            _check_magic(path)
            return np.load(path, mmap_mode="r", allow_pickle=False), _sidecar(path)
    except RecordingError:
        raise
    except Exception as error:
        if "Python objects in dtype" in str(error) or "allow_pickle" in str(error):
            raise python_objects(path) from None
        raise unreadable(path, error) from error
    said, names = read_npz(path, _DATA, (*_RATE, *_NAMES, *_TMIN, "unit"))
    data = _first(said, _DATA)
    if data is None:
        held = ", ".join(sorted(map(printable, names)))[:_SHOWN] or "nothing"
        raise _lacking(path, f"no array called data (it holds {held})")
    return data, said


def _check_magic(path: str) -> None:
    """NumPy takes anything else for a pickle, and proposes to load it."""
    with Path(path).open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it does not begin as a file of NumPy does")


def _sidecar(path: str) -> Mapping[str, Any]:
    beside = Path(path).with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        if beside.stat().st_size > _MAX_JSON:
            raise ValueError("too large")
        said = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(str(beside), error) from error
    return said


def _first(said: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((said[name] for name in names if name in said), None)


def _scalar(value: Any) -> Any:
    return value.reshape(-1)[0].item() if hasattr(value, "reshape") and value.size else value


def _number(path: str, name: str, value: Any) -> float:
    try:
        number = float(_scalar(value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _lacking(path, f"its {name} is no number")
    return number


def _rate(path: str, value: Any) -> float:
    if value is None:
        raise _lacking(path, "no sampling rate")
    rate = _number(path, "sampling rate", value)
    if not 0 < rate < 1e7:
        raise _lacking(path, f"its sampling rate is {rate:g} Hz")
    return rate


def _names(path: str, value: Any, count: int) -> tuple[str, ...]:
    if value is None:
        raise _lacking(path, "no channel names")
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        value = value.tolist() if value.ndim == 1 and dtype.kind in "US" else None
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(one, (str, bytes)) for one in value
    ):
        raise _lacking(path, "its channel names are no list of texts")
    names = tuple(
        one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in value
    )
    if any(len(one) > _SHOWN for one in names):
        raise _lacking(path, f"a channel name of more than {_SHOWN} characters")
    if len(names) != count:
        raise _lacking(path, f"{count} channels in the data, {len(names)} names")
    return names


def _facts(said: Mapping[str, Any], count: int) -> list[EpochFacts]:
    """Events, onsets and metadata: the arrays that have one entry per epoch."""
    named = {*_DATA, *_RATE, *_NAMES, *_TMIN, "unit"}
    columns = {
        name: list(value)
        for name, value in said.items()
        if name not in named and getattr(value, "ndim", None) == 1 and len(value) == count
    }
    facts = []
    for index in range(count):
        row = {name: _scalar(values[index]) for name, values in columns.items()}
        event = str(row.pop("event", "epoch"))
        onset = row.pop("onset_s", None)
        known = isinstance(onset, (int, float)) and math.isfinite(onset)
        facts.append(EpochFacts(event, float(onset) if known else None, row))
    return facts


def _lacking(path: str, what: str) -> RecordingError:
    return RecordingError(
        RecordingErrorCode.UNSUPPORTED,
        what,
        where=path,
        next_step="An .npz holds data [epochs, channels, samples], sfreq and ch_names; an .npy has "
        "sfreq and ch_names in NAME.json; or give --sfreq HZ and --channel-names A,B,...",
    )
