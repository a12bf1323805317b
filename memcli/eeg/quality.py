"""What can be wrong with a stretch of EEG, by its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

FLAT_V = 5e-8
"""A channel that moves less than this in a whole epoch is flat."""
PLAUSIBLE_V = (5e-8, 2e-3)
"""Standard deviation of EEG after removal of drift: usually 2 to 100 microvolts, with wide margins
for quiet and for poor recordings."""
CLIPPED_S = 0.02
CLIPPED_SAMPLES = 5


def without_nan(data: Floats) -> tuple[Floats, Floats | None]:
    """`data` with NaN and infinities replaced along time, and where they were (None: nowhere).

    By straight lines between the samples beside them; a channel without any number becomes 0.
    """
    import numpy as np

    if np.isfinite(data.sum()):  # one pass, no array: almost every stretch is whole
        return data, None
    good = np.isfinite(data)
    data = data.copy()
    for row, there in zip(data, good, strict=True):
        if not there.any():
            row[:] = 0
        elif not there.all():
            row[~there] = np.interp(np.flatnonzero(~there), np.flatnonzero(there), row[there])
    return data, ~good


def flat(data: Floats, below: float = FLAT_V) -> npt.NDArray[np.bool_]:
    """Which channels of volts [C, n] move by less than `below`."""
    result: npt.NDArray[np.bool_] = (data.max(axis=1) - data.min(axis=1)) < below
    return result


def clipped(data: Floats, sfreq_hz: float) -> npt.NDArray[np.bool_]:
    """Which channels of [C, n] stay at their largest or smallest value for 20 ms or longer.

    And for five samples; channels that never move are not clipped but flat.
    """
    import numpy as np

    run = max(CLIPPED_SAMPLES, int(np.ceil(CLIPPED_S * sfreq_hz)))
    result = np.zeros(len(data), dtype=bool)
    top, bottom = data.max(axis=1, keepdims=True), data.min(axis=1, keepdims=True)
    for edge in (top, bottom):
        at_edge = data == edge
        for channel in np.flatnonzero((at_edge.sum(axis=1) >= run) & (top != bottom)[:, 0]):
            result[channel] |= _longest_run(at_edge[channel]) >= run
    return result


def _longest_run(there: npt.NDArray[np.bool_]) -> int:
    import numpy as np

    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def typical_amplitude(stretches: Sequence[Floats]) -> float:
    """Median over channels and stretches of the standard deviation, in the stretches' unit.

    Without drift (the straight line through each channel) and without channels that do not move
    at all; 0 if none moves.
    """
    import numpy as np
    from scipy.signal import detrend

    values = []
    for data in stretches:
        moving = data[np.isfinite(data).all(axis=1)]
        moving = moving[moving.max(axis=1) > moving.min(axis=1)] if moving.size else moving
        if moving.size and moving.shape[1] > 2:
            values.append(detrend(moving, axis=1).std(axis=1))
    return float(np.median(np.concatenate(values))) if values else 0.0
