"""Inputs that a graph is compared with its original on: made by us, or the user's own. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.reference import synthetic_captions, synthetic_frames
from memcli.engines.verify import ATTENTION_MASK, INPUT, INPUT_IDS, epoch_feeds
from memcli.errors import EngineError, UsageError
from memcli.tokens import Tokeniser

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.spec import ModelSpec

    Feeds = dict[str, npt.NDArray[Any]]
    Clip = npt.NDArray[np.uint8]

FRAME_EMBEDDINGS = "frame_embeddings"
"""Inner value of graphs with an encoder for frames, [batch, time, D]."""
CAPTION_EMBEDDINGS = "caption_embeddings"
"""Inner value of graphs with an encoder for captions, [batch, captions, D]."""
EMBEDDINGS = (FRAME_EMBEDDINGS, CAPTION_EMBEDDINGS)
BATCH_CLIPS = 8
_LONG_WORDS = 1000


@dataclass(frozen=True)
class Case:
    """Synthetic inputs of one shape."""

    clips: int
    frames: int
    """Per clip; 0 for as many as the model samples."""
    captions: int
    """At most, per clip."""
    long: bool = False
    """Captions of as many tokens as the model takes."""


CASES = (
    Case(clips=40, frames=1, captions=1),
    Case(clips=20, frames=2, captions=3),
    Case(clips=3, frames=5, captions=2),
    Case(clips=1, frames=0, captions=2, long=True),
)
"""64 clips in shapes that differ from each other and from the traced one in every axis; few frames,
because a large encoder takes seconds for each. Of EEG models as many epochs, whole and padded."""


def make_feeds(spec: ModelSpec, tokenizer: Path | None, index: int) -> Feeds:
    """The inputs of a case by name; its number is the seed."""
    case = CASES[index]
    if spec.eeg is not None:
        return epoch_feeds(spec.eeg, case.clips, seed=index)
    feeds: Feeds = {}
    if spec.prep is not None:
        frames = case.frames or spec.prep.frames
        feeds[INPUT] = synthetic_frames(spec.prep, case.clips, frames, seed=index)
    captions = [list(one) for one in case_captions(index)]
    if case.long:
        captions[0].append("word " * _LONG_WORDS)
    return feeds | _tokens(spec, tokenizer, captions)


def case_captions(index: int) -> tuple[tuple[str, ...], ...]:
    """The captions of the clips of a case, without the long ones."""
    return synthetic_captions(CASES[index].clips, CASES[index].captions, seed=index)


def make_real_feeds(
    spec: ModelSpec,
    tokenizer: Path | None,
    clips: Iterable[Clip],
    captions: Sequence[Sequence[str]],
) -> list[Feeds]:
    """The user's clips uint8 [T, H, W, 3], one entry each, or captions by video, in batches.

    Empty if there is nothing of what the model needs: clips for one that looks at frames, captions
    for one that only reads. A model of both is given each clip with its own captions (`captions` in
    the order of `clips`), or with synthetic ones if there are none at all.

    Raises UsageError if a model of both is given captions of another number of clips.
    """
    if spec.prep is None:
        starts = range(0, len(captions), BATCH_CLIPS)
        return [_tokens(spec, tokenizer, captions[start : start + BATCH_CLIPS]) for start in starts]
    made = list(clips)
    texts: Sequence[Sequence[str]] = captions
    if spec.text is None or not captions:
        texts = synthetic_captions(len(made), 2, seed=len(CASES))
    elif len(captions) != len(made):
        raise UsageError(f"captions of {len(captions)} videos, but {len(made)} videos")
    return [
        {INPUT: clip[None]} | _tokens(spec, tokenizer, [text])
        for clip, text in zip(made, texts, strict=True)
    ]


def _tokens(spec: ModelSpec, tokenizer: Path | None, captions: Sequence[Sequence[str]]) -> Feeds:
    if spec.text is None or tokenizer is None:
        return {}
    batch = Tokeniser(spec.text, tokenizer).encode(captions)
    return {INPUT_IDS: batch.input_ids, ATTENTION_MASK: batch.attention_mask}


def embeddings_of(outputs: Mapping[str, Any], feeds: Mapping[str, Any]) -> Feeds:
    """The embeddings among outputs by name, as rows [N, D], without those of absent captions."""
    rows: Feeds = {}
    for name in EMBEDDINGS:
        if name in outputs:
            array = outputs[name]
            flat = array.reshape(-1, array.shape[-1])
            there = feeds[ATTENTION_MASK].any(-1).reshape(-1) if name == CAPTION_EMBEDDINGS else ...
            rows[name] = flat[there]
    return rows


def parts_of(feeds: Mapping[str, Any]) -> Iterator[Feeds]:
    """Feeds of a few clips each, in order."""
    for start in range(0, len(next(iter(feeds.values()))), BATCH_CLIPS):
        yield {name: array[start : start + BATCH_CLIPS] for name, array in feeds.items()}


def in_batches(run: Callable[[Feeds], Feeds], feeds: Mapping[str, Any]) -> Feeds:
    """Outputs for all clips, a few at a time: large models have no memory for more.

    Raises EngineError if an output has another number of clips.
    """
    parts = []
    for part in parts_of(feeds):
        found = run(part)
        if any(len(array) != len(next(iter(part.values()))) for array in found.values()):
            shapes = {name: list(array.shape) for name, array in found.items()}
            raise EngineError(f"the graph gives {shapes} for {len(part)} clips")
        parts.append(found)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
