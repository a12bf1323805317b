"""What a head returns, and the mean over the captions that are there."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import Tensor, nn

from memcli.errors import ModelError


@dataclass
class Scores:
    """The prediction of a head for a batch of B videos."""

    score: Tensor
    """[B], in [0, 1]; NaN for a video that has no caption where the head reads captions, but of
    LateFusion, whose frames have a score of their own, that one."""
    frame_scores: Tensor | None
    """[B, T], in [0, 1], of heads that score each frame by itself."""
    branches: tuple[Tensor, ...]
    """What the loss is applied to, each [B]: (score,), or one prediction per modality."""


def mean_over_captions(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [B, C] over the captions that `mask` [B, C] says are there (None: all are).

    A video without any has no mean: NaN, so that neither a table nor a loss takes it for a score.
    """
    if mask is None:
        return values.mean(dim=1)
    weights = mask.to(values.dtype)
    return (values * weights).sum(dim=1) / weights.sum(dim=1)


def needed(value: Tensor | None, what: str, head: str) -> Tensor:
    """`value`, or a ModelError that says which input the head was not given."""
    if value is None:
        raise ModelError(f"{head} was given no {what}")
    return value


def needed_dim(dim: int | None, what: str, head: str) -> int:
    """Length of an embedding, or a ModelError that says which encoder is missing."""
    if dim is None:
        raise ModelError(f"{head} reads {what}, but the model has no encoder for them")
    return dim


def option_defaults(kind: type[nn.Module]) -> dict[str, int | float | str]:
    """The options of a head with their defaults: its own, and those of the heads it is made of."""
    found: dict[str, int | float | str] = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for part in getattr(kind, "parts", ()):
        found |= option_defaults(part)
    return found


def in_range(value: float, name: str, low: float, high: float) -> None:
    """ModelError unless low <= value <= high; options may come from a file that anybody wrote."""
    if not low <= value <= high:
        raise ModelError(f"the head's option {name} is {value}, not {low} to {high}")


MAX_WIDTH = 8192
"""Units of one layer that an option may ask for."""
MAX_DEPTH = 64
"""Layers that an option may ask for."""
