"""Resampling of stretches of a recording, the same as of the whole.

The anti-aliasing filter is that of `scipy.signal.resample_poly`: a linear-phase FIR low-pass of
20 max(up, down) + 1 taps, Kaiser window with beta 5, -6 dB at half the lower of the two rates.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_MAX_PERIOD = 512
"""Input samples in a row of the matrix form; longer periods go through upfirdn."""


def ratio(sfreq_hz: float, target_hz: float) -> Fraction:
    """target / sfreq as a fraction of small numbers, to 1e-6 (11 microseconds in 11 s)."""
    exact = Fraction(target_hz) / Fraction(sfreq_hz)
    for limit in (1_000, 10_000, 100_000):
        close = exact.limit_denominator(limit)
        if close and abs(close / exact - 1) < 1e-6:
            return close
    return exact.limit_denominator(1_000_000)


class Resampler:
    """From one sampling rate to a lower or equal one, for stretches of any length."""

    def __init__(self, sfreq_hz: float, target_hz: float):
        """Both in Hz."""
        fraction = ratio(sfreq_hz, target_hz)
        self.up, self.down = fraction.numerator, fraction.denominator
        self.identity = self.up == self.down
        half = 10 * max(self.up, self.down)
        self.margin = 0 if self.identity else half // self.up + 1
        """Input samples needed before the first output's place and after the last one's."""

    def input_length(self, outputs: int) -> int:
        """Input samples, margins included, that `outputs` samples are made of."""
        if not self.identity and self._fits:
            period, matrix = _matrix(self.up, self.down, self.margin)
            blocks: int = -(-outputs // matrix.shape[1])
            return blocks * period + 2 * self.margin
        return -(-(outputs - 1) * self.down // self.up) + 1 + 2 * self.margin

    @property
    def _fits(self) -> bool:
        return max(self.up, self.down) <= _MAX_PERIOD

    def output_length(self, inputs: int) -> int:
        """Samples that a recording of `inputs` samples becomes, as in scipy."""
        return -(-inputs * self.up // self.down)

    def __call__(self, data: Floats, outputs: int) -> Floats:
        """[C, input_length(outputs)] to [C, outputs]; the first output lies at data[:, margin]."""

        if self.identity:
            return data[:, :outputs]
        if not self._fits:
            return self._upfirdn(data, outputs)
        period, matrix = _matrix(self.up, self.down, self.margin)
        blocks = -(-outputs // matrix.shape[1])
        if data.shape[1] < blocks * period + 2 * self.margin:
            raise ValueError("fewer samples than input_length")  # views would leave the array
        # A block's outputs see its own samples and, as a period is no shorter than both margins,
        # those at the start of the next; views of that form go to BLAS without a copy.
        own = _framed(data, blocks, period, period)
        after = _framed(data[:, period:], blocks, period, 2 * self.margin)
        result: Floats = own @ matrix[:period]
        result += after @ matrix[period:]
        return result.reshape(len(data), -1)[:, :outputs]

    def _upfirdn(self, data: Floats, outputs: int) -> Floats:
        import numpy as np
        from scipy.signal import upfirdn

        taps = _taps(self.up, self.down)
        delay = len(taps) // 2 + self.margin * self.up  # of the first output, at the upper rate
        before = -delay % self.down
        first = (delay + before) // self.down
        result = upfirdn(np.concatenate([np.zeros(before), taps]), data, self.up, self.down)
        cut: Floats = result[:, first : first + outputs]
        return cut


def _framed(data: Floats, blocks: int, step: int, width: int) -> Floats:
    """[C, n] as [C, blocks, width], a view: `width` samples from every `step`-th on."""
    import numpy as np

    row, item = data.strides
    shape = (len(data), blocks, width)
    return np.lib.stride_tricks.as_strided(data, shape, (row, step * item, item), writeable=False)


@lru_cache(maxsize=16)
def _taps(up: int, down: int) -> Any:
    from scipy.signal import firwin

    half = 10 * max(up, down)
    return firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", 5.0)) * up


@lru_cache(maxsize=16)
def _matrix(up: int, down: int, margin: int) -> tuple[int, Any]:
    """The filter as a matrix [period + 2 margin, outputs of a period]: resampling as one product.

    Of `period` input samples; several periods of the ratio where one is short against the filter,
    so that few products are with zeros.
    """
    import numpy as np

    repeats = max(1, math.ceil(2 * margin / down))
    period, block = repeats * down, repeats * up
    taps = _taps(up, down)
    places = np.arange(-margin, period + margin)[:, None]
    index = len(taps) // 2 + np.arange(block)[None, :] * down - places * up
    inside = (index >= 0) & (index < len(taps))
    return period, np.where(inside, taps[np.clip(index, 0, len(taps) - 1)], 0.0)
