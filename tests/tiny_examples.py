"""Small embeddings with scores that a linear head can learn."""

from __future__ import annotations

import torch

from memcli.train.data import Examples, HeldFrames

DIM = 16


def examples(count: int = 60, frames: int = 4, *, shuffled: bool = False) -> Examples:
    random = torch.Generator().manual_seed(1)
    values = torch.randn(count, 1, DIM, generator=random).expand(-1, frames, -1)
    values = values + 0.3 * torch.randn(count, frames, DIM, generator=random)
    scores = torch.sigmoid(values.mean(1) @ torch.randn(DIM, generator=random) / 4)
    if shuffled:
        scores = scores[torch.randperm(count, generator=random)]
    return Examples(tuple(f"v{i}" for i in range(count)), scores, HeldFrames(values))


def caption_examples() -> Examples:
    captions = torch.arange(4 * 3, dtype=torch.float32).reshape(4, 3, 1).repeat(1, 1, DIM)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.float32)
    return Examples(("a", "b", "c", "d"), torch.rand(4), None, captions, mask)
