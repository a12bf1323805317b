"""What of a PyTorch model is traced: arguments, axes that may change, and names of the results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memcli.engines.verify import (
    ATTENTION_MASK,
    CONTRIBUTIONS,
    EEG,
    FRAME_SCORES,
    INPUT,
    INPUT_IDS,
    SAMPLES,
    SCORE,
    SUBJECT,
)
from memcli.export.cases import CAPTION_EMBEDDINGS, FRAME_EMBEDDINGS
from memcli.spec import MAX_FRAMES, EegPrep, ModelSpec

if TYPE_CHECKING:
    from memcli.train.eeg.network import EegModel
    from memcli.train.model import MemorabilityModel

_BATCH, _TIME, _CAPTIONS, _TOKENS = 2, 3, 4, 5
"""Traced sizes: greater than 1, which is taken for fixed, and all different."""


@dataclass(frozen=True)
class Traced:
    """A module and how it is traced."""

    module: nn.Module
    """Gives a plain tuple of tensors; the model is its attribute `model`."""
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, Any]]
    outputs: list[str]
    inner: list[str]
    """Results after the outputs that the graph keeps inside."""


def traced(model: MemorabilityModel | EegModel, spec: ModelSpec) -> Traced:
    """The graph's inputs are `frames` uint8 [batch, time, H, W, 3] and/or `input_ids` and
    `attention_mask` int64 [batch, captions, tokens] (tokens fixed where the captions are always
    padded to one length), and its outputs `score` float32 [batch] and, where the spec has them,
    `frame_scores` float32 [batch, time]. Inside, `frame_embeddings` [batch, time, D] and
    `caption_embeddings` [batch, captions, D] are what the encoders give.

    Of an EEG model, inputs are `eeg` float32 [batch, channels, samples], `samples` int64 [batch]
    and, with subjects, `subject` int64 [batch]; outputs are `score` and `contributions` float32
    [batch, windows].
    """
    batch = torch.export.Dim("batch")
    if spec.eeg is not None:
        return _of_eeg(_EegModule(model).eval(), spec.eeg, batch)
    inputs: dict[str, Tensor] = {}
    axes: dict[str, dict[int, Any]] = {}
    if spec.prep is not None:
        shape = (_BATCH, _TIME, *spec.prep.frame_shape())
        inputs[INPUT] = torch.zeros(shape, dtype=torch.uint8)
        axes[INPUT] = {0: batch, 1: torch.export.Dim("time", max=MAX_FRAMES)}
    if spec.text is not None:
        fixed = spec.text.fixed_length or spec.text.max_tokens <= _TOKENS
        tokens = spec.text.max_tokens if fixed else _TOKENS
        by_axis = {0: batch, 1: torch.export.Dim("captions")}
        if not fixed:
            by_axis[2] = torch.export.Dim("tokens", max=spec.text.max_tokens)
        for name in (INPUT_IDS, ATTENTION_MASK):
            inputs[name] = torch.ones((_BATCH, _CAPTIONS, tokens), dtype=torch.int64)
            axes[name] = by_axis
    inner = [FRAME_EMBEDDINGS] if spec.prep is not None else []
    inner += [CAPTION_EMBEDDINGS] if spec.text is not None else []
    return Traced(
        module=_VideoModule(model, spec.frame_scores).eval(),
        inputs=inputs,
        axes=axes,
        outputs=[SCORE, FRAME_SCORES] if spec.frame_scores else [SCORE],
        inner=inner,
    )


def _of_eeg(module: nn.Module, prep: EegPrep, batch: Any) -> Traced:
    numbers = [SAMPLES, SUBJECT] if prep.subjects else [SAMPLES]
    inputs = {EEG: torch.zeros((_BATCH, *prep.epoch_shape()))}
    inputs |= {name: torch.ones(_BATCH, dtype=torch.int64) for name in numbers}
    return Traced(module, inputs, {name: {0: batch} for name in inputs}, [SCORE, CONTRIBUTIONS], [])


class _VideoModule(nn.Module):
    """The model with its scores and then its embeddings as a plain tuple of tensors."""

    def __init__(self, model: Any, frame_scores: bool):
        super().__init__()
        self.model = model
        self._frame_scores = frame_scores

    def forward(
        self,
        frames: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        scores, embeddings = self.model.with_embeddings(frames, input_ids, attention_mask)
        frame_scores = (scores.frame_scores,) if self._frame_scores else ()
        return (scores.score, *frame_scores, *embeddings.values())


class _EegModule(nn.Module):
    """The model with score and contributions as a plain tuple of tensors."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self, eeg: Tensor, samples: Tensor, subject: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        found = self.model(eeg, samples, subject)
        return found.score, found.contributions
