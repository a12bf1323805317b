"""Greedy generation for a batch: what to take next, when a text ends, and what it is.

The loop knows nothing of a runtime: a `Decoder` computes, holds the keys and values of what was
read, and forgets texts that have ended. The prompts of a batch have one length: padding would
change the order in which attention sums, int8 would round some of these sums otherwise, and a
caption would depend on what else is in its batch. Every choice depends on a text's own logits only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from memcli.errors import ModelError

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
MAX_NEW_TOKENS = 1024
MAX_VOCABULARY = 1 << 20
_LOOP_TOKENS = 12
_LOOP_REPEATS = 3
_CUT_TOKENS = 9
_LEAVE_AT = 0.25
"""Texts that ended are taken out of the batch when they are this share of it: a row's keys and
values are copied then, which costs as much as one step of it."""


@dataclass(frozen=True)
class GenerationRules:
    """When a generated text ends."""

    max_new_tokens: int
    stop: tuple[int, ...]
    """Ids of which any ends the text; it is not part of it."""
    end_loops: bool = True
    """Whether repetition ends a text, see `loop_length`."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= MAX_NEW_TOKENS:
            raise ModelError("unusable rules for generation")
        if not all(0 <= one < MAX_VOCABULARY for one in self.stop):
            raise ModelError("unusable rules for generation: a stop that is no token")


@dataclass(frozen=True)
class Generated:
    """One text as tokens."""

    tokens: tuple[int, ...]
    """Without the stop token; of a loop, once what repeats."""
    looping: bool
    """It repeated itself and was ended."""
    cut: bool
    """It had more to say than `max_new_tokens`."""
    broken: bool = False
    """It was ended because what comes next was no number (NaN or infinite)."""


class Decoder(Protocol):
    """Reads embeddings and token ids; gives logits float32 [B, vocabulary] of what comes next."""

    def start(self, embeddings: Floats) -> Floats:
        """Read the prompts, [B, L, D]."""
        ...

    def step(self, ids: Integers) -> Floats:
        """Read one more token of each text, [B]."""
        ...

    def keep(self, rows: Integers) -> bool:
        """Go on with these rows only, if that is cheap; says whether it was done."""
        ...


def generate(decoder: Decoder, embeddings: Floats, rules: GenerationRules) -> list[Generated]:
    """The texts that follow the prompts, in their order.

    A text whose logits are no numbers ends there, the others go on. Raises what the decoder raises.
    """
    texts: list[list[int]] = [[] for _ in embeddings]
    ended: list[Generated | None] = [None] * len(texts)
    rows = np.arange(len(texts))
    logits = decoder.start(embeddings)
    while True:
        ids, sound = _choose(logits)
        for place, row in enumerate(rows):
            if ended[row] is None and not sound[place]:
                ended[row] = Generated(tuple(texts[row]), False, False, broken=True)
            elif ended[row] is None:
                ended[row] = _take(texts[row], int(ids[place]), rules)
        live = np.array([place for place, row in enumerate(rows) if ended[row] is None], np.int64)
        if not len(live):
            return [one for one in ended if one is not None]
        gone = 1 - len(live) / len(rows)
        if gone >= _LEAVE_AT and decoder.keep(live):
            rows, ids = rows[live], ids[live]
        logits = decoder.step(ids)


def _choose(logits: Floats) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """The next token of each text, and whether it was chosen by numbers."""
    ids: Integers = np.argmax(logits, axis=-1).astype(np.int64)
    best = np.take_along_axis(logits, ids[:, None], axis=-1)
    # argmax gives the place of a NaN if there is one.
    return ids, np.isfinite(best[:, 0])


def _take(text: list[int], token: int, rules: GenerationRules) -> Generated | None:
    """Add a token to a text; what the text is, if that ended it."""
    if token in rules.stop:
        return Generated(tuple(text), False, False)
    text.append(token)
    cut = len(text) == rules.max_new_tokens
    repeated = 0
    if rules.end_loops:
        repeated = loop_length(text) or (repetition_at_cut(text) if cut else 0)
    if repeated:
        return Generated(tuple(text[: len(text) - repeated]), True, False)
    return Generated(tuple(text), False, True) if cut else None


def loop_length(text: Sequence[int]) -> int:
    """How many tokens at the end only repeat what stands before them; 0 if none do.

    A loop is a run of tokens, of whatever length, at least three times in a row and over at least
    12 tokens: "very, very, very" is none yet.
    """
    for size in range(1, len(text) // _LOOP_REPEATS + 1):
        repeats = max(_LOOP_REPEATS, -(-_LOOP_TOKENS // size))
        if _repeats(text, size, repeats):
            return size * (repeats - 1)
    return 0


def repetition_at_cut(text: Sequence[int]) -> int:
    """As `loop_length`, for a text that was cut: whatever stands there twice, of 9 tokens and more,
    would have gone on so."""
    for size in range(_CUT_TOKENS, len(text) // 2 + 1):
        if _repeats(text, size, 2):
            return size
    return 0


def _repeats(text: Sequence[int], size: int, times: int) -> bool:
    """Whether a text ends with one run of `size` tokens, `times` in a row."""
    if len(text) < size * times or text[-1] != text[-1 - size]:
        return False
    tail = list(text[-size * times :])
    return tail[size:] == tail[:-size]
