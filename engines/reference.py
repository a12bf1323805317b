"""Synthetic frames and captions that are the same on every platform and numpy version.

A parity reference stores no frames; they are made again where they are needed. So: integer
arithmetic throughout, and random numbers from PCG64's raw output, whose stream numpy guarantees
(that of `Generator`'s methods it does not).

The images have structure at every scale (gradients, stripes, blocks, discs, band-limited
noise, ridges, simple figures),
so that the scores of an image model spread over its range instead of clustering as they do on
noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memcli.spec import FramePrep

Plane = NDArray[np.int64]
"""Values 0 to 255, [H, W] or [H, W, 3]."""


def synthetic_frames(
    prep: FramePrep, clips: int, frames_per_clip: int, seed: int
) -> NDArray[np.uint8]:
    """Frames for `prep`: uint8 [clips, frames_per_clip, H, W, 3], a function of the arguments.

    Every clip is one scene; from frame to frame its layers move and its lighting changes.
    """
    height, width, channels = prep.frame_shape()
    frames = np.empty((clips, frames_per_clip, height, width, channels), dtype=np.uint8)
    for clip in range(clips):
        for frame in range(frames_per_clip):
            # The same stream for every frame of a clip: the same scene, at another time.
            frames[clip, frame] = _Scene(height, width, seed, clip).draw(frame)
    return frames


_SUBJECTS = (
    "a man",
    "two children",
    "a brown dog",
    "an old woman in a red coat",
    "a crowd",
    "the camera",
    "a surfer",
    "someone",
)
_ACTIONS = (
    "walks",
    "is dancing",
    "jumps over a fence",
    "talks to the audience",
    "pours water into a glass",
    "turns around slowly",
    "rides a bicycle",
)
_PLACES = (
    "",
    "on a beach",
    "in a dark kitchen",
    "at night",
    "while it is raining and people are passing by with umbrellas",
    "in front of a large building",
)


def synthetic_captions(clips: int, per_clip: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """Captions for `clips` clips, a function of the arguments: English sentences of 2 to 18 words.

    Clip i has 1 + i % per_clip captions, so that captions that are absent occur from per_clip 2 on.
    """
    result = []
    for clip in range(clips):
        # Another stream than that of the clip's frames, which has two words of entropy.
        bits = np.random.PCG64([seed, clip, 1])
        sentences = []
        for _ in range(1 + clip % per_clip):
            picks = [int(raw) for raw in bits.random_raw(3)]
            parts = [
                words[pick % len(words)]
                for words, pick in zip((_SUBJECTS, _ACTIONS, _PLACES), picks, strict=True)
            ]
            sentences.append(" ".join(filter(None, parts)))
        result.append(tuple(sentences))
    return tuple(result)


class _Scene:
    """One picture under construction: a background and layers masked into it."""

    def __init__(self, height: int, width: int, seed: int, clip: int):
        self._bits = np.random.PCG64([seed, clip])
        self.clip = clip
        self.shape = height, width
        self.y, self.x = np.indices((height, width), dtype=np.int64)

    def integers(self, low: int, high: int, count: int = 1) -> NDArray[np.int64]:
        """`count` integers in [low, high); the modulo's bias (2**-56) is of no matter."""
        raw = self._bits.random_raw(count)
        offsets = np.asarray(raw, dtype=np.uint64) % np.uint64(high - low)
        result: NDArray[np.int64] = low + offsets.astype(np.int64)
        return result

    def integer(self, low: int, high: int) -> int:
        """One integer in [low, high)."""
        return int(self.integers(low, high)[0])

    def draw(self, time: int) -> NDArray[np.uint8]:
        """The scene at frame number `time`: uint8 [H, W, 3]."""
        kinds: list[Callable[[int], Plane]] = [
            self.noise,
            self.stripes,
            self.blocks,
            self.discs,
            self.gradient,
        ]
        # The clip's number decides the kind of scene, so that few clips already span the scores.
        scene = self.clip % 4
        if scene in (0, 2):
            picture = self.landscape(time)
        else:
            picture = self.tint(kinds[self.integer(0, len(kinds))](time))
        for _ in range(self.integer(1, 4) if scene == 3 else 0):
            layer = self.tint(kinds[self.integer(0, len(kinds))](time))
            picture = np.where(self.window(time)[..., None], layer, picture)
        if scene == 1:
            picture = self.figure(picture, time)
        light = 256 - 12 * time
        return (picture * light >> 8).clip(0, 255).astype(np.uint8)

    def landscape(self, time: int) -> Plane:
        """Hazy sky over ridges, darker and greener the nearer: what is forgotten most."""
        height, width = self.shape
        sky = np.array([150, 180, 215], dtype=np.int64) + self.integers(-25, 26, 3)
        ground = np.array([55, 70, 40], dtype=np.int64) + self.integers(-25, 26, 3)
        haze = self.interpolated(8, time) // 12
        picture: Plane = sky + (self.y * 40 // height + haze)[..., None]
        ridges = self.integer(2, 6)
        for ridge in range(1, ridges + 1):
            outline = self.interpolated(4 * ridge, time)[0] + self.interpolated(16, time)[0] // 4
            top = height * (ridge + 1) // (ridges + 3) + outline * height // 1500
            texture = self.interpolated(64, time) // (4 * (ridges + 1 - ridge))
            colour = (sky * (ridges - ridge) + ground * ridge) // ridges
            inside = self.y >= top[np.arange(width)][None, :]
            picture = np.where(inside[..., None], colour + texture[..., None] - 20, picture)
        return picture

    def tint(self, plane: Plane) -> Plane:
        """Map 0..255 to a ramp between two colours: [H, W] -> [H, W, 3]."""
        first, second = self.integers(0, 256, 3), self.integers(0, 256, 3)
        return (plane[..., None] * second + (255 - plane[..., None]) * first) // 255

    def gradient(self, time: int) -> Plane:
        """A ramp in some direction."""
        a, b = self.integers(-4, 5, 2)
        ramp: Plane = a * self.x + b * self.y + 4 * time
        span = max(1, int(ramp.max() - ramp.min()))
        scaled: Plane = (ramp - ramp.min()) * 255 // span
        return scaled

    def stripes(self, time: int) -> Plane:
        """Sharp bars, 3 to 40 pixels wide."""
        a, b = self.integers(-3, 4, 2)
        period = self.integer(3, 41) * max(1, abs(int(a)) + abs(int(b)))
        bars: Plane = ((a * self.x + (b or 1) * self.y + 5 * time) // period & 1) * 255
        return bars

    def blocks(self, time: int) -> Plane:
        """A checker of random greys, 4 to 30 cells a side."""
        height, width = self.shape
        cells = self.integer(4, 31)
        grid = self.integers(0, 256, cells * cells).reshape(cells, cells)
        row, column = self.y * cells // height, (self.x + 3 * time) * cells // width % cells
        plane: Plane = grid[row, column]
        return plane

    def discs(self, time: int) -> Plane:
        """Five to twenty discs of random greys."""
        height, width = self.shape
        plane = np.full(self.shape, self.integer(0, 256), dtype=np.int64)
        for _ in range(self.integer(5, 21)):
            centre_y, centre_x = self.integer(0, height), self.integer(0, width) + 4 * time
            radius = self.integer(5, max(6, height // 4))
            inside = (self.y - centre_y) ** 2 + (self.x - centre_x) ** 2 <= radius * radius
            plane[inside] = self.integer(0, 256)
        return plane

    def noise(self, time: int) -> Plane:
        """Octaves of noise, each interpolated linearly: clouds, from 4 to 64 cells a side."""
        total = np.zeros(self.shape, dtype=np.int64)
        for octave, weight in ((4, 8), (8, 4), (16, 2), (32, 1), (64, 1)):
            total += weight * self.interpolated(octave, time)
        low, high = int(total.min()), int(total.max())
        return (total - low) * 255 // max(1, high - low)

    def interpolated(self, cells: int, time: int) -> Plane:
        """A random grid of `cells` a side, bilinear between grid points, in 1/256 steps."""
        height, width = self.shape
        grid = self.integers(0, 256, (cells + 2) ** 2).reshape(cells + 2, cells + 2)
        y, x = self.y * cells * 256 // height, (self.x + 2 * time) * cells * 256 // width
        x %= cells * 256
        row, down = y >> 8, y & 255
        column, right = x >> 8, x & 255
        upper = grid[row, column] * (256 - right) + grid[row, column + 1] * right
        lower = grid[row + 1, column] * (256 - right) + grid[row + 1, column + 1] * right
        plane: Plane = upper * (256 - down) + lower * down >> 16
        return plane

    def window(self, time: int) -> NDArray[np.bool_]:
        """Where a layer shows: a rectangle or an ellipse."""
        height, width = self.shape
        half_y, half_x = (self.integer(size // 11, size // 2 + 1) + 1 for size in self.shape)
        centre_y, centre_x = self.integer(0, height), self.integer(0, width) - 3 * time
        dy, dx = np.abs(self.y - centre_y), np.abs(self.x - centre_x)
        mask: NDArray[np.bool_] = (dy <= half_y) & (dx <= half_x)
        if self.integer(0, 2):
            mask = (dy * half_x) ** 2 + (dx * half_y) ** 2 <= (half_x * half_y) ** 2
        return mask

    def figure(self, picture: Plane, time: int) -> Plane:
        """A head on shoulders, in the middle: what is remembered best."""
        height, width = self.shape
        size = max(1, min(height, width) // self.integer(4, 8))
        y, x = self.y - height * 2 // 5, self.x - width // 2 - 2 * time
        skin, coat, dark = (self.integers(*bounds, 3) for bounds in ((120, 240), (0, 256), (0, 60)))
        parts = (
            (x**2 + (y - 3 * size) ** 2 <= (2 * size) ** 2, coat),
            (x**2 * 16 + y**2 * 9 <= (4 * size) ** 2, skin - 10 * (x > 0)[..., None]),
            ((np.abs(x) - size // 2) ** 2 + (y + size // 4) ** 2 <= (size // 6) ** 2, dark),
            ((np.abs(x) <= size // 3) & (np.abs(y - size // 2) <= size // 12), dark),
        )
        for mask, colour in parts:
            picture = np.where(mask[..., None], colour, picture)
        return picture
