"""Epochs with labels in memory: what a training works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EegExamples:
    """E epochs of C channels and N samples."""

    eeg: Tensor
    """float32 [E, C, N] in microvolts, as `memcli.eeg` reads them; padding is 0."""
    samples: Tensor
    """int64 [E]: how many are there."""
    labels: Tensor
    """float32 [E]: 0 or 1."""
    subject: Tensor
    """int64 [E]: from 1 on, the subject's place in `subjects`; 0: unknown to the model."""
    subjects: tuple[str, ...]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, positions: list[int]) -> EegExamples:
        """Those at `positions`, in that order; a copy."""
        at = torch.tensor(positions, dtype=torch.int64)
        return EegExamples(
            self.eeg[at],
            self.samples[at],
            self.labels[at],
            self.subject[at],
            self.subjects,
            tuple(self.ids[i] for i in positions),
        )
