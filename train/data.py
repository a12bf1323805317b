"""Examples and batches: tensors in memory or arrays on disk, never one Python object per item.

The same class serves frozen encoders, where an example is embeddings, and fine-tuning, where it is
prepared pixels and token ids. Axes: N videos, T frames, C captions, L tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memcli.spec import Recipe

_EPOCHS_PER_SEED = 1_000_003
"""So that the epochs of two seeds that follow each other do not draw the same numbers."""


class Batch(NamedTuple):
    """What a step sees: the three inputs of a head or a model, and the truth."""

    frames: Tensor | None
    """Embeddings float32 [B, T, D] or pixels uint8 [B, T, H, W, 3]."""
    captions: Tensor | None
    """Embeddings float32 [B, C, D] or token ids int64 [B, C, L]."""
    mask: Tensor | None
    """Which captions are there, float32 [B, C], or which tokens, int64 [B, C, L]."""
    scores: Tensor
    """float32 [B]"""


class Frames(Protocol):
    """The frames of N videos."""

    def take(self, videos: Tensor, frame: Tensor | None) -> Tensor:
        """[B, T, ...] of some videos; with `frame` [B], that one of each: [B, 1, ...]."""

    @property
    def count(self) -> int:
        """Frames per video, T."""


@dataclass(frozen=True)
class HeldFrames:
    """Frames in memory."""

    values: Tensor
    """[N, T, ...]"""

    @property
    def count(self) -> int:
        return int(self.values.shape[1])

    def take(self, videos: Tensor, frame: Tensor | None) -> Tensor:
        if frame is None:
            return self.values[videos]
        return self.values[videos, frame].unsqueeze(1)


@dataclass(frozen=True)
class StoredFrames:
    """Frames on disk, one memory-mapped array a video, all of the same shape."""

    arrays: Sequence[npt.NDArray[np.generic]]
    """N of [T, ...]"""

    @property
    def count(self) -> int:
        return int(self.arrays[0].shape[0])

    def take(self, videos: Tensor, frame: Tensor | None) -> Tensor:
        if frame is None:
            rows = [self.arrays[video] for video in videos.tolist()]
        else:
            pairs = zip(videos.tolist(), frame.tolist(), strict=True)
            rows = [self.arrays[video][one : one + 1] for video, one in pairs]
        return torch.from_numpy(np.stack(rows))


@dataclass(frozen=True)
class Examples:
    """Labelled videos. `subset` shares the arrays."""

    ids: tuple[str, ...]
    scores: Tensor
    """float32 [N]"""
    frames: Frames | None = None
    captions: Tensor | None = None
    """float32 [N, C, D] or int64 [N, C, L]"""
    mask: Tensor | None = None
    """float32 [N, C] or int64 [N, C, L]"""
    trim: bool = False
    """Cut off the columns of token ids that no caption of a batch reaches: captions are short, and
    padding to the longest of the dataset would be most of the work. Not for encoders that were
    trained with captions of one fixed length."""
    rows: Tensor | None = None
    """int64: which videos of the arrays these are; None: all."""

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, positions: Sequence[int]) -> Examples:
        """Some of these videos, in the given order."""
        chosen = torch.as_tensor(positions, dtype=torch.int64)
        return replace(
            self,
            ids=tuple(self.ids[position] for position in positions),
            rows=self._rows()[chosen],
            scores=self.scores[chosen],
        )

    def positions(self) -> Tensor:
        """0 to N - 1, for `batch`: all videos."""
        return torch.arange(len(self))

    def _rows(self) -> Tensor:
        return self.positions() if self.rows is None else self.rows

    def present(self) -> Tensor:
        """Which captions are there: bool [N, C]."""
        if self.mask is None:
            return torch.ones(len(self), 0, dtype=torch.bool)
        mask = self.mask[self._rows()]
        return mask.ne(0).any(-1) if mask.dim() == 3 else mask.ne(0)

    def batch(
        self, videos: Tensor, *, frame: Tensor | None = None, caption: Tensor | None = None
    ) -> Batch:
        """A batch of whole videos, or of one frame or one caption of each; all int64 [B]."""
        rows = self._rows()[videos]
        frames = None if self.frames is None else self.frames.take(rows, frame)
        captions = mask = None
        if self.captions is not None and self.mask is not None:
            captions, mask = self.captions[rows], self.mask[rows]
            if caption is not None:
                each = torch.arange(len(rows))
                captions = captions[each, caption].unsqueeze(1)
                mask = mask[each, caption].unsqueeze(1)
            if self.trim and mask.dim() == 3:
                reached = mask.flatten(0, 1).ne(0).any(0).nonzero()
                used = int(reached.max()) + 1 if len(reached) else 1
                captions, mask = captions[..., :used], mask[..., :used]
        return Batch(frames, captions, mask, self.scores[videos])

    def samples(self, unit: str) -> Tensor:
        """Every training sample as int64 [S, 2]: video, and which frame or caption of it."""
        videos = self.positions()
        if unit == "frame" and self.frames is not None:
            parts = torch.arange(self.frames.count)
            return torch.cartesian_prod(videos, parts).reshape(-1, 2)
        if unit == "caption":
            return self.present().nonzero()
        return torch.stack([videos, torch.zeros_like(videos)], dim=1)


def draw_captions(present: Tensor, generator: torch.Generator) -> Tensor:
    """One of the captions that are there, for each video: bool [N, C] to int64 [N].

    A video without any gets caption 0, which its mask says is absent.
    """
    chances = torch.rand(present.shape, generator=generator)
    return chances.masked_fill(~present, -1).argmax(1)


def shuffled_frames(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Each video's frames in an order of its own: [B, T, ...]."""
    order = torch.rand(frames.shape[:2], generator=generator).argsort(1)
    return frames[torch.arange(len(frames)).unsqueeze(1), order]


class TrainingBatches:
    """The batches of an epoch; each epoch has an order, and draws, of its own.

    What an epoch draws depends on the seed and the epoch's number only, so that a resumed training
    goes on as if it had not stopped. With several devices, `share` says which part of each batch is
    ours: (rank, of how many).
    """

    def __init__(
        self,
        examples: Examples,
        recipe: Recipe,
        *,
        seed: int,
        epoch: Callable[[], int],
        share: tuple[int, int] = (0, 1),
    ):
        self._examples = examples
        self._recipe = recipe
        self._seed = seed
        self._epoch = epoch
        self._rank, self._ranks = share
        self._samples = examples.samples(recipe.unit)
        self._present = examples.present()

    def __len__(self) -> int:
        return -(-len(self._samples) // self._recipe.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        recipe = self._recipe
        generator = epoch_generator(self._seed, self._epoch())
        order = self._samples[torch.randperm(len(self._samples), generator=generator)]
        draws = recipe.unit == "video" and self._present.shape[1] > 1
        drawn = draw_captions(self._present, generator) if draws else None
        for chosen in order.split(recipe.batch_size):
            # Every device must take part in every step, were it with a sample of its neighbour.
            mine = chosen[self._rank :: self._ranks] if len(chosen) >= self._ranks else chosen
            videos, part = mine.unbind(1)
            caption = part if recipe.unit == "caption" else None
            batch = self._examples.batch(
                videos,
                frame=part if recipe.unit == "frame" else None,
                caption=caption if drawn is None else drawn[videos],
            )
            if recipe.shuffle_frames and batch.frames is not None:
                batch = batch._replace(frames=shuffled_frames(batch.frames, generator))
            yield batch


class WholeVideos:
    """Batches of whole videos in their order, for validation and prediction."""

    def __init__(self, examples: Examples, size: int):
        self._examples = examples
        self._size = max(1, size)

    def __len__(self) -> int:
        return -(-len(self._examples) // self._size)

    def __iter__(self) -> Iterator[Batch]:
        for videos in self._examples.positions().split(self._size):
            yield self._examples.batch(videos)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Random numbers of one epoch."""
    return torch.Generator().manual_seed(epoch_seed(seed, epoch))


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of one epoch, for what draws from torch's global generator (dropout)."""
    return seed * _EPOCHS_PER_SEED + epoch
