"""Events of EEGLAB's epochs: what each epoch was cut at.

MNE names an epoch by all events within it, joined by "/", so that an epoch that was cut at
clip/new and sees clip/old later would be both. Here it has the name of the event at latency 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from memcli.errors import RecordingError, RecordingErrorCode
from memcli.text import printable

_NEXT_STEP = (
    "Cut the epochs again at one kind of event, or save the continuous recording, whose events "
    "--event chooses among."
)
_SHOWN = 120


def locking_events(path: str, count: int) -> list[tuple[str, float | None]] | None:
    """Name of the event at latency 0 and its second in the recording, of each of `count` epochs.

    None for the second where the file does not say (urevent); None altogether for a file without
    events. Raises RecordingError for an epoch without an event at latency 0 or with several of
    different names: nobody can say what it was cut at.
    """
    from mne.io.eeglab.eeglab import _check_load_mat

    told = _check_load_mat(path, None)
    epochs = list(_rows(told.get("epoch")))
    if not epochs or not list(_rows(told.get("event"))):
        return None
    if len(epochs) != count:
        raise _unclear(path, f"{len(epochs)} epochs are described, {count} are there")
    rate = float(told["srate"])
    origin = [_number(row.get("latency")) for row in _rows(told.get("urevent"))]
    return [_locking(path, index, epoch, rate, origin) for index, epoch in enumerate(epochs)]


def _locking(
    path: str, index: int, epoch: Mapping[str, Any], rate: float, origin: list[float]
) -> tuple[str, float | None]:
    names = [_name(one) for one in _flat(epoch.get("eventtype"))]
    latencies = [_number(one) for one in _flat(epoch.get("eventlatency"))]
    if not latencies and len(names) == 1:
        latencies = [0.0]
    if len(latencies) != len(names):
        raise _unclear(path, f"epoch {index} has {len(names)} events, {len(latencies)} latencies")
    # In milliseconds; EEGLAB rounds to samples where an epoch was cut.
    at_zero = [place for place, one in enumerate(latencies) if abs(one) <= 500 / rate + 1e-6]
    kinds = list(dict.fromkeys(names[place] for place in at_zero))
    if len(kinds) != 1:
        held = printable(", ".join(dict.fromkeys(names)))[:_SHOWN] or "none"
        what = "several events" if kinds else "no event"
        raise _unclear(path, f"epoch {index} has {what} at latency 0 (its events: {held})")
    return kinds[0], _onset(epoch, at_zero[0], rate, origin)


def _onset(epoch: Mapping[str, Any], place: int, rate: float, origin: list[float]) -> float | None:
    """By the event's row in the table of the recording's own events, whose samples begin at 1."""
    rows = [_number(one) for one in _flat(epoch.get("eventurevent"))]
    if place >= len(rows) or not 1 <= rows[place] <= len(origin):
        return None
    sample = origin[int(rows[place]) - 1]
    return (sample - 1) / rate if math.isfinite(sample) else None


def _rows(table: Any) -> Iterator[Mapping[str, Any]]:
    """Rows of a MATLAB struct array, which is a list of structs or a struct of lists."""
    if isinstance(table, Mapping):
        columns = {name: list(_listed(values)) for name, values in table.items()}
        for place in range(max(map(len, columns.values()), default=0)):
            yield {name: values[place] for name, values in columns.items() if place < len(values)}
    elif table is not None and not isinstance(table, str):
        yield from (row for row in table if isinstance(row, Mapping))


def _listed(values: Any) -> Any:
    single = isinstance(values, (str, bytes, int, float)) or getattr(values, "ndim", 1) == 0
    return [values] if single else values


def _flat(value: Any) -> Iterator[Any]:
    """The values of a cell, however deep they are nested."""
    if value is None:
        return
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _flat(one)
    else:
        yield value


def _name(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)


def _number(value: Any) -> float:
    try:
        return float(next(_flat(value)))
    except (StopIteration, TypeError, ValueError):
        return math.nan


def undescribed(path: str) -> RecordingError:
    """The error of a file that names events in a way that is not understood."""
    return _unclear(path, "does not say at which events its epochs were cut")


def _unclear(path: str, what: str) -> RecordingError:
    return RecordingError(RecordingErrorCode.NO_EVENTS, what, where=path, next_step=_NEXT_STEP)
