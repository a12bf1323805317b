"""Models for videos and models for EEG: what a command that takes one says to the other."""

from __future__ import annotations

from memcli.errors import UsageError
from memcli.models import MODELS
from memcli.spec import ModelSpec


def require_videos(spec: ModelSpec | None) -> None:
    """Raise UsageError for a model of EEG; None is a model that is not known yet."""
    if spec is not None and spec.eeg is not None:
        raise UsageError(
            f"{spec.name} is for EEG, not for videos",
            next_step=f"Use it: memcli eeg RECORDINGS --model {spec.name}",
        )


def require_videos_by_name(name: str) -> None:
    """The same for a name of the registry, before anything is opened or fetched."""
    require_videos(MODELS.get(name))
