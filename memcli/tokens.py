"""THE captions-to-token-ids step, for scoring and training alike: executes a TextPrep.

Only the `tokenizers` library is needed. All that a checkpoint's own tokenizer does (lower-casing,
special tokens, the side to pad on) is in the tokenizer file; see `memcli.train.text_prep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.errors import ModelError
from memcli.spec import TextPrep

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_FILE_BYTES = 64 << 20
"""Of a tokenizer file; the largest in use, Gemma's with 256,000 tokens, has 34 MB."""
MAX_CAPTION_CHARACTERS = 100_000
"""More is dropped unread: a caption of that length is over any model's number of tokens."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of B videos with up to C captions of up to L tokens."""

    input_ids: npt.NDArray[np.int64]
    """[B, C, L]."""
    attention_mask: npt.NDArray[np.int64]
    """[B, C, L]: 1 for tokens, 0 for padding. Rows of absent captions are 0 throughout; a caption
    that is there, even an empty one, has at least one 1."""
    cut: int
    """Captions that were longer than the model takes, and were cut."""


class Tokeniser:
    """Turns captions into ids. Not changed by use, so threads may share one."""

    def __init__(self, prep: TextPrep, path: Path):
        """Read the tokenizer file at `path`, in the format of the `tokenizers` library.

        Raises ModelError if it cannot be read, is too large or no such file, or leaves no room
        for a single word beside its special tokens.
        """
        self.prep = prep
        self._where = str(path)
        self._tokenizer = load_tokenizer(path)
        padding = self._tokenizer.padding or {}
        self._pad_left = str(padding.get("direction", "right")).lower() == "left"
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        special = self._tokenizer.num_special_tokens_to_add(False)
        if prep.max_tokens <= special:
            raise ModelError(
                f"adds {special} special tokens, which leaves no word of {prep.max_tokens} tokens",
                where=self._where,
            )
        self._tokenizer.enable_truncation(prep.max_tokens)

    def encode(self, captions: Sequence[Sequence[str]]) -> TokenBatch:
        """Ids of the captions of B videos, each of which may have any number of them.

        C is the largest number of captions of a video, at least 1; L the longest caption's tokens,
        or always `max_tokens` with `fixed_length`. Absent captions are rows of `pad_id`. Lone
        surrogates, which no tokenizer takes, are read as U+FFFD.
        Raises ModelError if the tokenizer file fails on a caption.
        """
        import numpy as np

        flat = [_encodable(text) for video in captions for text in video]
        try:
            found = self._tokenizer.encode_batch(flat)
        except BaseException as error:
            raise unusable_tokenizer(error, self._where) from error
        rows = [encoding.ids or [self.prep.pad_id] for encoding in found]
        length = max((len(row) for row in rows), default=1)
        if self.prep.fixed_length:
            length = self.prep.max_tokens
        shape = (len(captions), max((len(video) for video in captions), default=1) or 1, length)
        ids = np.full(shape, self.prep.pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        places = [(i, k) for i, video in enumerate(captions) for k in range(len(video))]
        for (i, k), row in zip(places, rows, strict=True):
            at = slice(length - len(row), None) if self._pad_left else slice(len(row))
            ids[i, k, at] = row
            mask[i, k, at] = 1
        texts = (text for video in captions for text in video)
        cut = sum(
            bool(encoding.overflowing) or len(text) > MAX_CAPTION_CHARACTERS
            for encoding, text in zip(found, texts, strict=True)
        )
        return TokenBatch(ids, mask, cut)


def _encodable(text: str) -> str:
    text = text[:MAX_CAPTION_CHARACTERS]
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return "".join(_REPLACEMENT if "\ud800" <= c <= "\udfff" else c for c in text)


def load_tokenizer(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file. Raises ModelError if it cannot be used."""
    from tokenizers import Tokenizer

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(content) > MAX_FILE_BYTES:
        raise ModelError(
            f"is larger than a tokenizer file may be ({MAX_FILE_BYTES >> 20} MiB)", where=str(path)
        )
    try:
        return Tokenizer.from_str(content.decode("utf-8"))
    except BaseException as error:
        raise unusable_tokenizer(error, str(path)) from error


def unusable_tokenizer(error: BaseException, where: str) -> BaseException:
    """ModelError for what the library raises; its panics derive from BaseException only."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return ModelError(
        f"is not a tokenizer file that can be used: {reason}",
        where=where,
        next_step="Export or install the model again.",
    )
