"""float8e4m3fn in numpy: 1 sign, 4 exponent and 3 mantissa bits, no infinities, 448 at most.

Micikevicius et al., "FP8 formats for deep learning" (2022), table 1; ONNX's FLOAT8E4M3FN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 448.0


def _values() -> npt.NDArray[np.float32]:
    """Those of the codes 0 to 126, in ascending order; 127 is not a number."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    return np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal).astype(np.float32)


_VALUES = _values()
_BETWEEN = (_VALUES[1:].astype(np.float64) + _VALUES[:-1]) / 2


def encode(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Codes of the nearest values, ties to the even code; larger ones than 448 become 448."""
    magnitudes = np.minimum(np.abs(values.astype(np.float64)), LARGEST)
    low = np.searchsorted(_BETWEEN, magnitudes, side="left")
    high = np.searchsorted(_BETWEEN, magnitudes, side="right")  # differs from low in ties only
    codes = np.where(low % 2 == 0, low, high)
    result: npt.NDArray[np.uint8] = (codes + 128 * np.signbit(values)).astype(np.uint8)
    return result


def decode(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The values of codes other than NaN's."""
    values = _VALUES[codes & 127]
    result: npt.NDArray[np.float32] = np.where(codes & 128, -values, values)
    return result
