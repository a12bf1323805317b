"""Frames to what the captioner's vision tower takes: the image processor's steps in numpy.

The checkpoint's image processor resizes with Pillow, in up to three passes, and cuts large images
into tiles. Here `resize` computes what Pillow computes, in the same fixed-point numbers, so that
the pixels are equal to the last bit; Pillow itself is not needed. Rescaling and normalisation are
in the graph.

Steps and sizes: SmolVLMImageProcessor of transformers (documented in its model page), which is
that of Idefics3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from memcli.errors import ModelError

Image = npt.NDArray[np.uint8]
Tiles = tuple[int, int]
"""Rows and columns that an image is cut into; (0, 0) if it is not."""
MAX_SIDE = 4096
"""The image processor's own limit of a side after its first resize."""
_MAX_TILE = 2048
_BITS = 22
_COLUMNS = 512


@dataclass(frozen=True)
class ImageRules:
    """What the checkpoint's image processor does with the frames of a video."""

    side: int
    """Height and width of what the vision tower takes, in pixels."""
    longest: int | None
    """The longer side after the first resize, which keeps the aspect; None: there is none."""
    splitting: bool
    """Whether images larger than `side` are cut into tiles, followed by the whole in small."""
    resample: str
    """lanczos, bicubic or bilinear, as Pillow defines them."""

    def __post_init__(self) -> None:
        if (
            not 1 <= self.side <= _MAX_TILE
            or self.resample not in _FILTERS
            or (self.longest is not None and not 1 <= self.longest <= MAX_SIDE)
        ):
            raise ModelError(f"unusable rules for images: {self}")


def prepare_clip(clip: Image, rules: ImageRules) -> tuple[Image, Tiles]:
    """Frames as the vision tower takes them, and how each frame was cut.

    Takes uint8 [T, H, W, 3], RGB, at the video's size. Returns uint8 [N, side, side, 3] with N = T
    without tiles and T x (rows x columns + 1) with them: the tiles of a frame by row, then the
    whole frame.
    """
    height, width = clip.shape[1:3]
    images: list[Image] = []
    grid: Tiles = (0, 0)
    for frame in clip:
        image = frame
        if rules.longest is not None:
            image = resize(image, *longest_size(height, width, rules.longest), rules.resample)
        if rules.splitting:
            size = tiled_size(image.shape[0], image.shape[1], rules.side)
            image = resize(image, *size, rules.resample)
            grid = _grid(*size, rules.side)
            images += _cut(image, grid, rules.side)
        images.append(resize(image, rules.side, rules.side, rules.resample))
    return np.stack(images), grid


def tiles_of(height: int, width: int, rules: ImageRules) -> Tiles:
    """How frames of this size are cut."""
    if not rules.splitting:
        return (0, 0)
    if rules.longest is not None:
        height, width = longest_size(height, width, rules.longest)
    return _grid(*tiled_size(height, width, rules.side), rules.side)


def longest_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width after the first resize: the shorter side is made even, upwards."""
    aspect = width / height
    if width >= height:
        width = longest
        height = int(width / aspect)
        height += height % 2
    else:
        height = longest
        width = int(height * aspect)
        width += width % 2
    return max(height, 1), max(width, 1)


def tiled_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width before an image is cut: multiples of the side of a tile, not smaller."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / aspect) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * aspect) / side) * side
    return max(height, side), max(width, side)


def _grid(height: int, width: int, side: int) -> Tiles:
    if height <= side and width <= side:
        return (0, 0)
    return height // side, width // side


def _cut(image: Image, grid: Tiles, side: int) -> list[Image]:
    return [
        image[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(grid[0])
        for column in range(grid[1])
    ]


def resize(image: Image, height: int, width: int, resample: str) -> Image:
    """Resize as Pillow does, to the last bit: first the width, then the height.

    Takes and returns uint8 [H, W, 3]. Pillow rounds its weights to 22 bits after the point, sums in
    32-bit integers and rounds after either pass, and so does this. It runs in the caller's thread:
    a product of matrices would wake as many threads as there are cores, beside the decoders'.
    The width comes first, as in every Pillow to 12; later ones resize the height first where that
    loses more than twice as many lines as the width loses columns (frames more than twice as high
    as wide), which moves single pixels by a few of 255.
    """
    if image.shape[1] != width:
        image = _along(image.transpose(1, 0, 2), width, resample).transpose(1, 0, 2)
    if image.shape[0] != height:
        image = _along(image, height, resample)
    return np.ascontiguousarray(image)


def _along(image: Image, size: int, resample: str) -> Image:
    """Resize the first axis of uint8 [N, M, 3]."""
    lines = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    result = np.empty((size, lines.shape[1]), np.uint8)
    taps = _taps(image.shape[0], size, resample)
    for start in range(0, lines.shape[1], _COLUMNS):
        part = lines[:, start : start + _COLUMNS].astype(np.int32)
        sums = np.full((size, part.shape[1]), 1 << (_BITS - 1), np.int32)
        for places, weights in taps:
            product = part[places]
            product *= weights
            sums += product
        sums >>= _BITS
        result[:, start : start + _COLUMNS] = np.clip(sums, 0, 255, out=sums)
    return result.reshape(size, *image.shape[1:])


@lru_cache(maxsize=64)
def _taps(
    length: int, size: int, resample: str
) -> tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]], ...]:
    """The first input line of every output line and its weight, then the second, and so on."""
    kernel, support = _FILTERS[resample]
    scale = length / size
    stretch = max(scale, 1.0)
    reach = support * stretch
    most = 2 * math.ceil(reach) + 1
    places = np.zeros((most, size), np.int64)
    fixed = np.zeros((most, size, 1), np.int32)
    for place in range(size):
        centre = (place + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), length)
        weights = [kernel((at - centre + 0.5) / stretch) for at in range(first, last)]
        total = sum(weights)
        for tap, weight in enumerate(weights):
            places[tap, place] = first + tap
            exact = weight / total * (1 << _BITS)
            fixed[tap, place] = int(exact + math.copysign(0.5, exact))
    return tuple(zip(places, fixed, strict=True))


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


def _bicubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _bilinear(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


_FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "lanczos": (_lanczos, 3.0),
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}
