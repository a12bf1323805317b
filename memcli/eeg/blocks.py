"""Stretches of a signal, in order of time, each sample read once, little of it in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memcli.eeg.signals import Signal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_BLOCK_BYTES = 24 << 20


class Blocks:
    """Gives stretches [start, stop) of some channels.

    Stretches that go beyond the recording are continued by reflection at its ends, as MNE's and
    scipy's "reflect" does: sample -i is sample i. What is read is kept until a later stretch no
    longer needs it; neighbouring stretches are read at once, up to 24 MiB.
    """

    def __init__(self, signal: Signal, picks: Sequence[int], stretches: Sequence[tuple[int, int]]):
        """`stretches` are those that will be asked for, in order of their start."""
        self._signal = signal
        self._picks = list(picks)
        self._stops = _read_ahead(
            stretches, signal.samples, max(1, _BLOCK_BYTES // 8 // max(1, len(self._picks)))
        )
        self._data: Floats | None = None
        self._start = 0

    def get(self, start: int, stop: int) -> Floats:
        """Volts [picks, stop - start]; a view that must not be changed."""
        import numpy as np

        count = self._signal.samples
        low, high = min(max(start, 0), count), max(min(stop, count), 0)
        before, after = max(0, -start), max(0, stop - count)
        if not before and not after:
            return self._held(low, high)
        # Reflection needs as much of the recording as it continues.
        high = min(count, max(high, before + 1, low + 1))
        low = max(0, min(low, count - 1 - after))
        data = np.pad(self._held(low, high), ((0, 0), (before, after)), mode="reflect")
        offset = start - (low - before)
        return data[:, offset : offset + stop - start]

    def _held(self, low: int, high: int) -> Floats:
        import numpy as np

        data, start = self._data, self._start
        if data is None or low < start or low > start + data.shape[1]:
            data, start = self._signal.read(self._picks, low, self._until(high)), low
        elif high > (end := start + data.shape[1]):
            more = self._signal.read(self._picks, end, self._until(high))
            data, start = np.concatenate([data[:, low - start :], more], axis=1), low
        self._data, self._start = data, start
        return data[:, low - start : high - start]

    def _until(self, high: int) -> int:
        """Where to stop reading: at `high`, or at the end of the block that it lies in."""
        import bisect

        place = bisect.bisect_left(self._stops, high)
        return self._stops[place] if place < len(self._stops) else high


def _read_ahead(stretches: Sequence[tuple[int, int]], count: int, longest: int) -> list[int]:
    """Ends of the blocks, ascending: neighbours that touch are joined up to `longest` samples."""
    stops: list[int] = []
    first = last = -1
    for start, stop in stretches:
        low, high = max(0, min(start, count)), max(0, min(stop, count))
        if last < 0 or low > last or high - first > longest:
            if last >= 0:
                stops.append(last)
            first = low if low > last else last
        last = max(last, high)
    if last >= 0:
        stops.append(last)
    return sorted(set(stops))
