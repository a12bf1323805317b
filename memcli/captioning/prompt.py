"""The captioner's prompt: from pieces that were rendered from the checkpoint's template at export.

A video is one message of the user, its frames followed by the question. The template gives one
place per image; the processor puts that image's tokens there. Neither jinja nor transformers is
needed for that any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcli.captioning.images import Tiles
from memcli.errors import ModelError

MAX_TOKENIZER_BYTES = 64 << 20


@dataclass(frozen=True)
class PromptRules:
    """Pieces of the prompt, and what stands for an image in it."""

    prefix: str
    """Before the first image."""
    separator: str
    """Between two images."""
    suffix: str
    """After the last image: the question and the start of the answer."""
    image: str
    """The token that the vision tower's features replace, e.g. `<image>`."""
    around: str
    """The token on both sides of an image's tokens."""
    whole: str
    """The token before a whole image."""
    tile: str
    """The token before a tile, with {row} and {column}, counted from 1."""
    tokens: int
    """Image tokens per image or tile."""
    add_special: bool
    """Whether the tokenizer adds what it adds to every text."""

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= 4096 or not self.image:
            raise ModelError(f"unusable rules for the prompt: {self.tokens} tokens per image")

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> PromptRules:
        """Raises KeyError, TypeError, ModelError."""
        texts = ("prefix", "separator", "suffix", "image", "around", "whole", "tile")
        if not all(isinstance(value[name], str) for name in texts):
            raise TypeError("a piece of the prompt is no text")
        return cls(
            **{name: value[name] for name in texts},
            tokens=int(value["tokens"]),
            add_special=bool(value["add_special"]),
        )


def prompt_text(rules: PromptRules, tiles: Sequence[Tiles]) -> str:
    """The whole prompt of a video whose frames were cut as `tiles` says, one entry per frame."""
    return rules.prefix + rules.separator.join(_image(rules, *one) for one in tiles) + rules.suffix


def _image(rules: PromptRules, rows: int, columns: int) -> str:
    place = rules.image * rules.tokens
    parts = []
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            name = rules.tile.replace("{row}", str(row)).replace("{column}", str(column))
            parts.append(rules.around + name + place)
        parts.append("\n")
    if parts:
        parts.append("\n")
    return "".join(parts) + rules.around + rules.whole + place + rules.around


class PromptTokenizer:
    """Prompts to token ids and ids to text. Not changed by use, so threads may share one."""

    def __init__(self, path: Path, rules: PromptRules):
        """Read a tokenizer.json. Raises ModelError if it cannot be used."""
        from tokenizers import Tokenizer

        self._rules = rules
        try:
            if path.stat().st_size > MAX_TOKENIZER_BYTES:
                raise ModelError("is too large for a tokenizer", where=str(path))
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except ModelError:
            raise
        except Exception as error:  # the tokenizers library raises Exception itself
            raise ModelError(f"no usable tokenizer: {error}", where=str(path)) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        image = self._tokenizer.token_to_id(rules.image)
        if image is None:
            raise ModelError(f"the tokenizer has no token {rules.image!r}", where=str(path))
        self.image_id: int = image
        """The id that features replace."""

    def encode(self, tiles: Sequence[Tiles]) -> list[int]:
        """Token ids of the prompt for frames cut like this."""
        text = prompt_text(self._rules, tiles)
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=self._rules.add_special
        ).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, without special ones and space around it."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()
