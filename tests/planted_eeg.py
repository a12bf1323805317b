"""Small planted EEG as the examples of a training, without files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from memcli.models import get_model
from memcli.spec import ModelSpec
from memcli.train.eeg.data import EegExamples
from memcli.train.eeg.planted import Planted, planted_subject

CHANNELS = ("Fz", "C3", "Cz", "C4", "Pz", "Oz")


def planted(**changes: Any) -> Planted:
    """Six channels at the model's rate, three seconds an epoch."""
    own: dict[str, Any] = {"channels": CHANNELS, "sfreq_hz": 100.0, "duration_s": 3.0}
    return Planted(**(own | changes))


def planted_examples(what: Planted) -> EegExamples:
    """All subjects' epochs; `subject` counts them from 1."""
    subjects = [planted_subject(what, index) for index in range(what.subjects)]
    eeg = torch.from_numpy(np.concatenate([one.data for one in subjects]).astype(np.float32))
    return EegExamples(
        eeg,
        torch.full((len(eeg),), eeg.shape[2]),
        torch.tensor([float(label) for one in subjects for label in one.labels]),
        torch.tensor([i for i, one in enumerate(subjects, 1) for _ in one.labels]),
        tuple(one.name for one in subjects),
        tuple(f"{one.name}:{i}" for one in subjects for i in range(len(one.labels))),
    )


def eeg_spec(
    what: Planted | None = None, subjects: tuple[str, ...] = (), **options: Any
) -> ModelSpec:
    """The registry's model for such data, narrow unless `options` say otherwise."""
    what = what or planted()
    spec = get_model("eeg-cnn")
    assert spec.eeg is not None
    assert spec.head is not None
    narrow = {"filters": 16, "embedding": 8}
    return replace(
        spec,
        eeg=replace(
            spec.eeg, channels=what.channels, duration_s=what.duration_s, subjects=subjects
        ),
        head=replace(spec.head, options=spec.head.options | narrow | options),
    )


def of_subjects(examples: EegExamples, least: int, most: int) -> EegExamples:
    """Those of subjects `least` to `most`."""
    numbers = examples.subject.tolist()
    return examples.subset([i for i, one in enumerate(numbers) if least <= one <= most])
