"""The captioner's prompt: from pieces that were rendered from the checkpoint's template at export.

A video is one message of the user, its frames followed by the question. The template gives one
place per image; the processor puts that image's tokens there. Neither jinja nor transformers is
needed for that any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memcli.captioning.images import Tiles
from memcli.errors import ModelError
from memcli.tokens import load_tokenizer, unusable_tokenizer

_MAX_TOKEN = 256
_MAX_TEXT = 10_000


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
            raise ModelError("unusable rules for the prompt: tokens per image")
        tokens = (self.image, self.around, self.whole, self.tile)
        texts = (self.prefix, self.separator, self.suffix)
        if max(map(len, tokens)) > _MAX_TOKEN or max(map(len, texts)) > _MAX_TEXT:
            raise ModelError("unusable rules for the prompt: a piece is too long")
        if any("\ud800" <= one <= "\udfff" for piece in (*tokens, *texts) for one in piece):
            raise ModelError("unusable rules for the prompt: a piece is no text")


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
        """Read a tokenizer.json. Raises ModelError if it cannot be used: one prompt is encoded, as
        some files fail then only."""
        self._rules = rules
        self._where = str(path)
        self._tokenizer = load_tokenizer(path)
        if getattr(self._tokenizer.model, "dropout", None):
            raise ModelError("its tokens are drawn by chance (dropout)", where=self._where)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        image = self._tokenizer.token_to_id(rules.image)
        if image is None:
            raise ModelError(f"the tokenizer has no token {rules.image!r}", where=str(path))
        self.image_id: int = image
        """The id that features replace."""
        self.encode([(0, 0)])

    def encode(self, tiles: Sequence[Tiles]) -> list[int]:
        """Token ids of the prompt for frames cut like this. Raises ModelError."""
        text = prompt_text(self._rules, tiles)
        try:
            ids: list[int] = self._tokenizer.encode(
                text, add_special_tokens=self._rules.add_special
            ).ids
        except BaseException as error:
            raise unusable_tokenizer(error, self._where) from error
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, without special ones and space around it. Raises
        ModelError."""
        try:
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        except BaseException as error:
            raise unusable_tokenizer(error, self._where) from error
        return text.strip()
