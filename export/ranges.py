"""The range of an activation tensor that 8 bits keep apart, from what real inputs make of it.

Methods, by what decides the largest magnitude that is not clipped:

- `minmax`: the largest that occurs;
- `percentile`: 99.99 % of all values lie below it;
- `entropy`: the least information is lost, by the divergence of Kullback and Leibler between the
  distributions before and after (Migacz, "8-bit inference with TensorRT", GTC 2017);
- `mse`: the mean squared error of rounded values is least.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from memcli.export.quantize import ActivationRange, Scheme, round_to

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.99
_BINS = 4096
"""Of a histogram; between half of them and all are in use."""
_FIRST_BINS = 128
"""The smallest range that `entropy` tries: below, every bin has a level of its own."""
_STRIDE = 8
"""Bins from one range that `entropy` tries to the next: 0.4 % of the range at most."""
_SAMPLES = 4096
"""Values kept of one batch: enough for the bulk."""
_RATIOS = np.linspace(0.4, 1.0, 25)

Floats = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.int64]


class Statistics:
    """What is remembered of a tensor's values, batch by batch, in bounded memory."""

    def __init__(self, seed: int = 0) -> None:
        self.largest = 0.0
        """Magnitude."""
        self.signed = False
        """Whether a value was negative."""
        self.counts: Counts = np.zeros(_BINS, np.int64)
        """Of magnitudes, in bins of `width` from 0 on."""
        self.width = 0.0
        self._samples: list[npt.NDArray[np.float32]] = []
        self._random = np.random.default_rng(seed)

    def add(self, values: npt.NDArray[np.float32], method: Method) -> None:
        """Take in values of any shape, as far as `method` needs them."""
        flat = np.abs(values).reshape(-1)
        if not flat.size:
            return
        self.signed |= bool(values.min() < 0)
        largest = float(flat.max())
        self.largest = max(self.largest, largest)
        if method == "mse":
            self._samples.append(flat[self._random.integers(0, flat.size, _SAMPLES)])
        elif method != "minmax" and largest > 0:
            self._count(flat, largest)

    def samples(self) -> npt.NDArray[np.float32]:
        """Magnitudes drawn at random, for `mse`."""
        return np.concatenate(self._samples) if self._samples else np.zeros(1, np.float32)

    def _count(self, flat: npt.NDArray[np.float32], largest: float) -> None:
        if not self.width:
            self.width = largest * 2 / _BINS
        while largest >= self.width * _BINS:  # twice as wide: pairs of bins become one
            self.counts[: _BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[_BINS // 2 :] = 0
            self.width *= 2
        places = (flat / np.float32(self.width)).astype(np.int64)
        self.counts += np.bincount(places.clip(max=_BINS - 1), minlength=_BINS)


def choose_range(statistics: Statistics, method: Method, scheme: Scheme) -> ActivationRange:
    """The range of a tensor by `method`."""
    signed = statistics.signed or scheme != "u8s8"
    largest = statistics.largest
    if method == "mse":
        return best_range(statistics.samples(), largest, signed=signed, scheme=scheme)
    clip = largest
    if method == "percentile" and largest > 0:
        clip = percentile_clip(statistics.counts, statistics.width)
    if method == "entropy" and largest > 0:
        levels = ActivationRange(largest, signed).levels + 1
        clip = entropy_clip(statistics.counts, statistics.width, levels)
    return ActivationRange(min(clip, largest), signed)


def percentile_clip(counts: Counts, width: float) -> float:
    """The end of the first bin by which 99.99 % of all values are in."""
    wanted = counts.sum() * (PERCENTILE / 100)
    return float((np.searchsorted(np.cumsum(counts), wanted) + 1) * width)


def entropy_clip(counts: Counts, width: float, levels: int) -> float:
    """The range that keeps most information in `levels` levels, as TensorRT's calibrator has it.

    For every range: values beyond it count as its last bin; the bins are merged into `levels`
    levels, and each level is spread again evenly over those of its bins that were not empty. The
    range with the least divergence between both distributions is taken. The first bin holds the
    zeros of a ReLU, which round to zero whatever the range, and gets its neighbour's count.
    """
    counts = counts.copy()
    counts[0] = counts[1]
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    first = max(_FIRST_BINS, levels)
    if used <= first:
        return used * width
    ends = [*range(first, used, _STRIDE), used]
    losses = [_divergence(counts, end, levels) for end in ends]
    return float(ends[int(np.argmin(losses))] * width)


def _divergence(counts: Counts, end: int, levels: int) -> float:
    """Kullback-Leibler divergence that `levels` levels over the first `end` bins cost."""
    kept = counts[:end].astype(np.float64)
    before = kept.copy()
    before[-1] += counts[end:].sum()
    level = np.arange(end) * levels // end
    filled = before > 0
    total = np.bincount(level, weights=kept, minlength=levels)
    spread = np.bincount(level, weights=filled, minlength=levels)
    after = np.where(filled, total[level] / np.maximum(spread, 1)[level], 0.0)
    if not after.any():
        return float("inf")
    before /= before.sum()
    after /= after.sum()
    if (after[filled] == 0).any():
        return float("inf")  # a value that occurs would be impossible
    return float((before[filled] * np.log(before[filled] / after[filled])).sum())


def best_range(
    magnitudes: npt.NDArray[np.float32], largest: float, *, signed: bool, scheme: Scheme = "u8s8"
) -> ActivationRange:
    """The clip in [0.4, 1] * largest with the least squared error of rounded `magnitudes`."""

    def error(limits: ActivationRange) -> float:
        # Negative values are rounded like positive ones; int8's -128 has no counterpart.
        return float(np.square(round_to(magnitudes, limits, scheme) - magnitudes).mean())

    return min((ActivationRange(float(r * largest), signed) for r in _RATIOS), key=error)
