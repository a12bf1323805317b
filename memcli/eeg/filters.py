"""Band-pass of epochs at the model's rate, the same as of the whole recording."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from memcli.errors import UsageError
from memcli.spec import EegPrep

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


class BandFilter:
    """High-pass and low-pass of an `EegPrep`, or nothing.

    MNE's default FIR design (firwin, Hamming window, zero phase; transition bands of a quarter of
    the cut-off, at least 2 Hz and for a high-pass at most the cut-off itself; -6 dB in their
    middle), at the rate after resampling. Each sample sees `margin` samples on both sides.
    """

    def __init__(self, prep: EegPrep):
        """Raises UsageError for bands that the rate cannot hold."""
        self._taps = None
        self.margin = 0
        low, high = prep.high_pass_hz, prep.low_pass_hz
        if low is None and high is None:
            return
        nyquist = prep.sfreq_hz / 2
        good = (low is None or 0 < low < nyquist) and (high is None or 0 < high < nyquist)
        if not good or (low is not None and high is not None and low >= high):
            raise UsageError(
                f"no band: high-pass {low} Hz, low-pass {high} Hz at {prep.sfreq_hz:g} Hz",
                next_step=f"Name frequencies between 0 and {nyquist:g} Hz, the high-pass lower.",
            )
        self._taps = _design(prep.sfreq_hz, low, high)
        self.margin = len(self._taps) // 2

    def __call__(self, data: Floats) -> Floats:
        """[C, samples + 2 margin] to [C, samples]."""
        if self._taps is None:
            return data
        from scipy.signal import oaconvolve

        result: Floats = oaconvolve(data, self._taps[None], mode="valid", axes=1)
        return result


@lru_cache(maxsize=8)
def _design(sfreq_hz: float, low: float | None, high: float | None) -> Any:
    from mne.filter import create_filter

    from memcli.eeg.quiet import quiet

    with quiet():
        return create_filter(None, sfreq_hz, low, high, method="fir", phase="zero")
