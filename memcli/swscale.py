"""The resize of `memcli.preprocess` as data: what swscale computes, as weights and integers.

With the flags that `FramePreparer` sets, swscale works in integers throughout, the same on every
processor, and so can be done elsewhere to the bit. For a 4:2:0 frame of 8 bits it

1. weights each row with 14-bit weights and keeps 15 bits, floor(sum / 2^7), at most 32767;
2. weights the columns of that with 12-bit weights and keeps floor((sum + 2^9) / 2^10);
3. turns that into red, green and blue with 13-bit factors: floor((sum + 2^21) / 2^22) in int32,
   clipped to 0 to 255.

Weights are the filter's (a triangle, or a cubic of a = -0.6), widened when shrinking, without the
tails of both sides that make up 0.2 % or less, and rounded so that each row of them sums to one;
what lies beyond an edge counts as the edge. Chroma has weights of its own, which depend on where
its samples lie between those of luma.

`test_swscale` holds all this against swscale, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from memcli.preprocess import resized_size
from memcli.spec import FramePrep

Weights = npt.NDArray[np.int64]
Position = tuple[int, int]

ROW_ONE = 1 << 14
COLUMN_ONE = 1 << 12
POSITIONS: dict[str, Position] = {
    "left": (0, 128),
    "centre": (128, 128),
    "top left": (0, 0),
    "top": (128, 0),
    "bottom left": (0, 256),
    "bottom": (128, 256),
}
"""Where the samples of chroma lie, in 256ths of the distance of two samples of luma. FFmpeg takes
the centre where a stream does not say. PyAV does not tell what a stream says."""
_MIDDLE = 128
_TAIL = 0.002
_CUBIC = 0.6
# Per AVColorSpace, in 65536ths for limited range: red from V, blue from U, green from U and V.
_BT601 = (104597, 132201, 25675, 53279)
_COLOURS = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    2: _BT601,  # not said
    4: (104448, 132798, 24759, 53109),  # FCC
    5: _BT601,
    6: _BT601,
    7: (117579, 136230, 16907, 35559),  # SMPTE 240M
    9: (110013, 140363, 12277, 42626),  # BT.2020
}


@dataclass(frozen=True)
class Tables:
    """What turns one size and kind of 4:2:0 frames into prepared ones, crop included."""

    across: Weights
    """[width, crop_width], for rows of luma."""
    across_chroma: Weights
    """[width / 2, crop_width]."""
    down: Weights
    """[crop_height, height], for columns."""
    down_chroma: Weights
    """[crop_height, height / 2]."""
    colour: npt.NDArray[np.int32]
    """[6]: offset and factor of Y; factors of V in red, U in green, V in green, U in blue."""


def make_tables(
    prep: FramePrep,
    width: int,
    height: int,
    colour: npt.NDArray[np.int32],
    position: Position,
) -> Tables:
    """The tables of frames of `width` x `height`, both even."""
    resized = resized_size(prep, width, height)
    left, top = (resized[0] - prep.crop_width) // 2, (resized[1] - prep.crop_height) // 2
    columns, rows = slice(left, left + prep.crop_width), slice(top, top + prep.crop_height)
    chroma = [(place + _MIDDLE) >> 1 for place in position]
    sizes = ((width, resized[0], ROW_ONE), (height, resized[1], COLUMN_ONE))
    luma_weights, chroma_weights = [], []
    for (source, target, one), place in zip(sizes, chroma, strict=True):
        luma_weights.append(axis_weights(source, target, prep.filter, one))
        chroma_weights.append(axis_weights(source // 2, target, prep.filter, one, place))
    return Tables(
        across=luma_weights[0][columns].T,
        across_chroma=chroma_weights[0][columns].T,
        down=luma_weights[1][rows],
        down_chroma=chroma_weights[1][rows],
        colour=colour,
    )


def colour_terms(space: int, *, full_range: bool) -> npt.NDArray[np.int32] | None:
    """`Tables.colour` of an AVColorSpace; None for one that is not in swscale's table."""
    if space not in _COLOURS:
        return None
    factors = _COLOURS[space]
    luma, offset = (1 << 16) * 255 // 219, 16 << 9
    if full_range:
        factors = tuple(factor * 224 // 255 for factor in factors)  # type: ignore[assignment]
        luma, offset = 1 << 16, 0
    red, blue, green_u, green_v = factors
    terms = [_thirteen_bits(x) for x in (luma, red, -green_u, -green_v, blue)]
    return np.array([offset, *terms], np.int32)


def _thirteen_bits(factor: int) -> int:
    return ((factor << 13) + (1 << 15)) >> 16


def axis_weights(
    source: int,
    target: int,
    kind: Literal["bilinear", "bicubic"],
    one: int,
    position: int = _MIDDLE,
) -> Weights:
    """Integer weights [target, source] of one direction, each row with the sum `one`.

    `position` is where the samples of the source lie, in 256ths of their distance.
    """
    step = ((source << 16) + (target >> 1)) // target
    if abs(step - (1 << 16)) < 10 and position == _MIDDLE:
        return one * np.eye(target, source, dtype=np.int64)
    start = ((_MIDDLE * step) >> 7) - ((position << 16) >> 7)
    centres = start + 2 * step * np.arange(target, dtype=np.int64)
    reach = 2 if kind == "bilinear" else 4
    taps = 1 + (reach if step <= 1 << 16 else -(-reach * source // target))
    taps = max(1, min(taps, source - 2))
    first = _divided(centres - ((taps - 2) << 16), 1 << 17)
    distance = np.abs(((first[:, None] + np.arange(taps)) << 17) - centres[:, None]) << 13
    if step > 1 << 16:
        distance = distance * target // source
    # So many bits fewer than 54 as keep the sum of a wide filter in 63.
    bits = 54 - min(max(source // target, 1).bit_length() - 1, 8)
    heights = _triangle(distance, bits) if kind == "bilinear" else _cubic(distance, bits)
    first, heights = _without_tails(first, heights, int(_TAIL * (1 << bits)))
    return _rounded(first, heights, source, one)


def _triangle(distance: Weights, bits: int) -> Weights:
    """`distance` counts in 2^-30; the height of one is 2^bits."""
    return np.maximum((1 << 30) - distance, 0) << (bits - 30)


def _cubic(distance: Weights, bits: int) -> Weights:
    squared = (distance * distance) >> 30
    cubed = (squared * distance) >> 30
    a = int(_CUBIC * (1 << 24))
    six = 6 << 24
    near = (2 * six - 6 * a) * cubed + (-3 * six + 6 * a) * squared + (six << 30)
    far = -6 * a * cubed + 30 * a * squared - 48 * a * distance + ((24 * a) << 30)
    heights = np.where(distance < 1 << 30, near, np.where(distance < 1 << 31, far, 0))
    return _divided(heights, 1 << (54 - bits))


def _without_tails(first: Weights, heights: Weights, least: int) -> tuple[Weights, Weights]:
    """Windows moved over small heights on their left, and cut to the longest needed on the right.

    A window never starts behind the one after it.
    """
    size = heights.shape[1]
    small = (np.abs(heights).cumsum(axis=1) <= least).sum(axis=1)
    moved = first + small
    for row in range(len(first) - 2, -1, -1):
        moved[row] = max(first[row], min(moved[row], moved[row + 1]))
    places = (moved - first)[:, None] + np.arange(size)
    padded = np.pad(heights, ((0, 0), (0, size)))
    heights = np.take_along_axis(padded, places, axis=1)
    needed = size - (np.abs(heights[:, :0:-1]).cumsum(axis=1) <= least).sum(axis=1)
    return moved, heights[:, : needed.max()]


def _rounded(first: Weights, heights: Weights, source: int, one: int) -> Weights:
    """Heights as integers with the sum `one`; what rounding takes from a tap goes to the next."""
    rows, taps = heights.shape
    every = np.arange(rows)
    places = np.clip(first[:, None] + np.arange(taps), 0, source - 1)
    folded = np.zeros_like(heights)  # what was clipped has come to lie on the edge
    for tap in range(taps):
        folded[every, places[:, tap] - places[:, 0]] += heights[:, tap]
    unit = np.maximum((folded.sum(axis=1) + one // 2) // one, 1)
    weights = np.zeros((rows, source), np.int64)
    carried = np.zeros(rows, np.int64)
    for tap in range(taps):
        inside = places[:, 0] + tap <= places[:, -1]
        wanted = folded[:, tap] + carried
        half = np.where(wanted < 0, -(unit >> 1), unit >> 1)
        given = _divided(wanted + half, unit)
        weights[every[inside], places[inside, 0] + tap] = given[inside]
        carried = np.where(inside, wanted - given * unit, carried)
    return weights


def _divided(value: Weights, by: int | Weights) -> Weights:
    """Division towards zero, as C's."""
    quotient = np.abs(value) // np.asarray(by, np.int64)
    return np.where(value < 0, -quotient, quotient)
