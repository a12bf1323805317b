"""Does a bundle's tokenizer file give the ids that the encoder was trained with?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from memcli.errors import ModelError, ParityError
from memcli.spec import TextPrep
from memcli.tokens import Tokeniser

CAPTIONS = (
    "",
    " ",
    "a man walks on the beach",
    "A MAN walks on The Beach.",
    "  two   spaces,\ttabs\nand lines \r\n ",
    "it's 3:45 p.m. -- isn't it?! (yes) [no] {maybe} #1 $2.50 100% a/b a\\b 'quoted' \"twice\"",
    "semi;colon: dot... dash-dash under_score e-mail@example.org https://example.org/a?b=c&d",
    "café naïve Ångström Straße œuvre cafe\N{COMBINING ACUTE ACCENT}",
    "\N{GRINNING FACE} two dogs \N{DOG FACE}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER} run",
    "犬が走る ビデオ 中文字幕 한국어 자막",
    "человек идёт по улице Мужчина",
    "رجل يمشي על החוף",
    "एक आदमी चलता है ผู้ชาย",
    "full－width ＡＢＣ １２３ ﬁne ½ ² ™",
    "zero\N{ZERO WIDTH SPACE}width no\N{NO-BREAK SPACE}break soft\N{SOFT HYPHEN}hyphen",
    "<s> </s> [CLS] [SEP] <pad> <|endoftext|>",
    "x" * 300,
    " ".join(["word"] * 500),
    " ".join(f"word{number}" for number in range(500)),
)
"""Captions on which implementations of the same tokenizer tend to differ."""

Encode = Callable[[str], list[int]]


def check_tokenizer(prep: TextPrep, file: Path, checkpoint: Path | None) -> str:
    """Compare the ids of `file` with those of the checkpoint's own tokenizer; says with what.

    `checkpoint` is the encoder's folder. Without it, or where its tokenizer needs a package that
    is not installed, transformers reads `file` itself: this finds a Tokeniser that is wrong, but
    not a file that is. Raises ParityError with the first caption and id that differ, ModelError
    for a file that cannot be used.
    """
    ours = _tokeniser(prep, file)
    encode, name = _reference(prep, file, checkpoint)
    for caption in CAPTIONS:
        found, wanted = ours(caption), encode(caption) or [prep.pad_id]
        if found == wanted:
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
            min(len(found), len(wanted)),
        )
        raise ParityError(
            f"the tokenizer file gives other ids than {name} for {caption[:40]!r}: "
            f"{found[at : at + 4]} instead of {wanted[at : at + 4]} at token {at}",
            where=str(file),
            next_step="Nothing was installed.",
        )
    return name


def _tokeniser(prep: TextPrep, file: Path) -> Encode:
    tokeniser = Tokeniser(prep, file)

    def encode(caption: str) -> list[int]:
        batch = tokeniser.encode([[caption]])
        ids, mask = batch.input_ids[0, 0], batch.attention_mask[0, 0]
        if (ids[mask == 0] != prep.pad_id).any():
            raise ParityError("padded with another id", where=str(file))
        return [int(one) for one in ids[mask == 1]]

    return encode


def _reference(prep: TextPrep, file: Path, checkpoint: Path | None) -> tuple[Encode, str]:
    """An independent implementation, and its name for the report."""
    import transformers

    own = None
    why = "the checkpoint is not here"
    if checkpoint is not None and checkpoint.is_dir():
        try:
            own = transformers.AutoTokenizer.from_pretrained(
                str(checkpoint), local_files_only=True, trust_remote_code=False
            )
        except ImportError:  # SigLIP's own one needs sentencepiece
            why = "the checkpoint's own tokenizer needs a package that is not installed"
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"the checkpoint's tokenizer cannot be read: {str(error).splitlines()[0][:200]}",
                where=str(checkpoint),
            ) from error
    if own is None or checkpoint is None:
        name = f"tokenizer.json in transformers ({why})"
        return _encode(transformers.PreTrainedTokenizerFast(tokenizer_file=str(file)), prep), name
    if own.pad_token_id != prep.pad_id:
        raise ParityError(
            f"captions are padded with {prep.pad_id}, not {own.pad_token_id} as the encoder's own"
        )
    encode = _encode(own, prep)
    name = type(own).__name__
    if _lowers(checkpoint) and encode("A B C") != encode("a b c"):
        # transformers ignores the setting for some tokenizers.
        return (lambda caption: encode(caption.lower())), f"{name} on lower-case text"
    return encode, name


def _encode(tokenizer: Callable[..., dict[str, list[int]]], prep: TextPrep) -> Encode:
    def encode(caption: str) -> list[int]:
        return list(tokenizer(caption, truncation=True, max_length=prep.max_tokens)["input_ids"])

    return encode


def _lowers(checkpoint: Path) -> bool:
    try:
        settings = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("do_lower_case") is True
