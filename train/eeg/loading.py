"""From labelled recordings to the examples of a training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memcli.spec import EegPrep
from memcli.train.eeg.reading import Labelled, Source, read

if TYPE_CHECKING:
    from memcli.train.eeg.data import EegExamples

__all__ = ["EegDataset", "Source", "load"]


@dataclass(frozen=True)
class EegDataset:
    """Labelled epochs."""

    prep: EegPrep
    """With the channels of the data."""
    examples: EegExamples
    """To train and cross-validate on; their subjects are by name, not yet the model's."""
    subjects: tuple[str, ...]
    """Of each example; of one that nobody says the subject of, the recording's name."""
    videos: tuple[str | None, ...]
    """Of each example; None: nothing says it."""
    unnamed: frozenset[str]
    """Of all subjects, those that are names of recordings."""
    test: EegExamples | None
    """Those of the split `test`."""
    test_subjects: tuple[str, ...]
    recordings: int
    demonstration: bool
    """Whether dataset.json says that the data was made up."""
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of all data and labels."""
        found = hashlib.sha256()
        for part in (self.examples, self.test):
            if part is not None:
                for tensor in (part.eeg, part.samples, part.labels):
                    found.update(memoryview(tensor.contiguous().numpy()).cast("B"))
        rest = [self.subjects, self.test_subjects, self.videos, self.prep.channels]
        found.update(json.dumps(rest).encode())
        return found.hexdigest()


def load(source: Source, prep: EegPrep) -> EegDataset:
    """All labelled epochs, in memory. `prep.channels` is not looked at.

    Raises DatasetError for the first problem that `memcli.train.eeg.reading.read` finds.
    """
    import torch

    from memcli.train.eeg.data import EegExamples

    labelled = read(source, prep)
    rows = labelled.rows
    # Block by block into place, so that hardly more than one copy is in memory at a time.
    eeg = torch.empty((len(rows), *labelled.prep.epoch_shape()), dtype=torch.float32)
    samples: list[int] = []
    while labelled.blocks:
        block, lengths = labelled.blocks.pop(0)
        eeg[len(samples) : len(samples) + len(block)] = torch.from_numpy(block)
        samples += lengths
    everything = EegExamples(
        eeg,
        torch.tensor(samples, dtype=torch.int64),
        torch.tensor([float(row.label) for row in rows]),
        torch.zeros(len(rows), dtype=torch.int64),
        (),
        tuple(row.id for row in rows),
    )
    return _dataset(labelled, everything)


def _dataset(labelled: Labelled, everything: EegExamples) -> EegDataset:
    rows = labelled.rows
    test = [i for i, row in enumerate(rows) if row.split == "test"]
    train = [i for i, row in enumerate(rows) if row.split != "test"]
    return EegDataset(
        labelled.prep,
        everything.subset(train) if test else everything,
        tuple(rows[i].person for i in train),
        tuple(rows[i].video for i in train),
        frozenset(row.recording for row in rows if row.subject is None),
        everything.subset(test) if test else None,
        tuple(rows[i].person for i in test),
        labelled.recordings,
        labelled.demonstration,
        labelled.notes,
    )
