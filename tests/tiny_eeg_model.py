"""The EEG model at a tiny size, with random weights that make it look at everything.

The spec is the registry's, with fewer channels and a shorter epoch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memcli.models import get_model
from memcli.spec import EegPrep, ModelSpec

NAME = "eeg-cnn"
CHANNELS = (
    *("Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4"),
    *("O1", "O2", "F7", "F8", "T7", "T8", "Fz", "Cz"),
)
TINY_PREP = EegPrep(channels=CHANNELS, duration_s=4.0)


def tiny_eeg_spec(*, members: int = 1, subjects: tuple[str, ...] = ()) -> ModelSpec:
    """The registry's spec at a tiny size: 16 channels, 4 windows, 16 filters."""
    spec = get_model(NAME)
    assert spec.head is not None
    options = {**spec.head.options, "filters": 16, "embedding": 16, "members": members}
    prep = replace(TINY_PREP, subjects=subjects)
    return replace(spec, eeg=prep, head=replace(spec.head, options=options))


def make_tiny_eeg_model(spec: ModelSpec, seed: int = 0, temperature: float = 1.5) -> Any:
    """An `EegModel` in evaluation mode whose scores spread over most of their range."""
    import torch

    from memcli.train.eeg.network import EegModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = EegModel(spec).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim > 1 and "classifier" in name:
                    value.normal_(std=2.5 * value.shape[-1] ** -0.5)
                elif value.ndim > 1:
                    value.normal_(std=1.4 * value[0].numel() ** -0.5)
            for name, value in model.named_buffers():
                if name.endswith("running_mean"):
                    value.normal_(std=0.1)
                elif name.endswith("temperature"):
                    value.fill_(temperature)
    return model
