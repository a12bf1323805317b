"""Tokenizers of a few dozen words, of the kinds that published encoders have."""

from __future__ import annotations

import struct
from typing import Any

# The last two lines are the words of tests/planted.py.
_TEXT = (
    "a the man woman dog cat bird car red blue green old small runs jumps sits sleeps on in over "
    "under near street beach tree house water snow night day with and of bright dark crowd "
    "background is light medium moving one picture size slides square there wall white across "
    "teal olive yellow orange tiny large huge"
)
WORDS = _TEXT.split()


def wordpiece() -> Any:
    """As BERT's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    signs = [*"0123456789.,!?'-"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *letters]
    tokens += [f"##{letter}" for letter in [*letters, *"0123456789"]]
    tokens += [word for word in WORDS if word not in tokens]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(tokens[:5])
    return tokenizer


def _merged(words: list[list[str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Merges, in order, that put each word together from its left, and the tokens they make."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        left = word[0]
        for right in word[1:]:
            merges[left, right] = None
            left += right
    return [left + right for left, right in merges], list(merges)


def _byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_bpe() -> Any:
    """As CLIP's: byte-level BPE with word ends."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    alphabet = _byte_alphabet()
    tokens, merges = _merged([[*word[:-1], f"{word[-1]}</w>"] for word in WORDS])
    everything = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *tokens]
    everything = [*dict.fromkeys(everything), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(everything)}
    end = "<|endoftext|>"
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=end,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    start = "<|startoftext|>"
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (start, vocabulary[start]), False, False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([start, end])
    return tokenizer


def roberta_bpe() -> Any:
    """As RoBERTa's: byte-level BPE."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    spaced = [["Ġ", *word] for word in WORDS]
    tokens, merges = _merged([*map(list, WORDS), *spaced])
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    everything = [*dict.fromkeys([*special, *_byte_alphabet(), *tokens]), "<mask>"]
    vocabulary = {token: i for i, token in enumerate(everything)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True)])
    return tokenizer


def unigram() -> tuple[Any, list[tuple[str, float]]]:
    """The vocabulary of SigLIP's tokenizer, whose lower-casing is not in its files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -3.0 - i / 64) for i, word in enumerate(WORDS)]
    pieces += [(letter, -8.0 - i / 64) for i, letter in enumerate([*letters, *"0123456789é"])]
    pieces += [(sign, -9.0) for sign in ".,!?'-"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    return tokenizer, pieces


def spiece_file(pieces: list[tuple[str, float]]) -> bytes:
    """The same vocabulary as sentencepiece stores it: a ModelProto of protocol buffers."""
    normal, unknown, control = 1, 2, 3
    kinds = {"<unk>": unknown, "<pad>": control, "</s>": control}
    content = b""
    for text, score in pieces:
        encoded = text.encode()
        piece = b"\x0a" + bytes([len(encoded)]) + encoded
        piece += b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kinds.get(text, normal)])
        content += b"\x0a" + bytes([len(piece)]) + piece
    # TrainerSpec: model_type = Unigram, unk_id = 2, bos_id = -1, eos_id = 1, pad_id = 0
    ids = [(40, 2), (41, (1 << 64) - 1), (42, 1), (43, 0)]
    trainer = b"\x18\x01" + b"".join(_varint(n << 3) + _varint(value) for n, value in ids)
    content += b"\x12" + bytes([len(trainer)]) + trainer
    # NormalizerSpec: add_dummy_prefix, remove_extra_whitespaces and escape_whitespaces
    normalizer = b"\x0a\x08identity\x18\x01\x20\x01\x28\x01"
    return content + b"\x1a" + bytes([len(normalizer)]) + normalizer


def _varint(value: int) -> bytes:
    content = b""
    while value > 0x7F:
        content += bytes([value & 0x7F | 0x80])
        value >>= 7
    return content + bytes([value])


def gemma() -> Any:
    """As Gemma's: BPE that falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    capitals = [letter.upper() for letter in letters]
    tokens, merges = _merged([*map(list, WORDS), *(["▁", *word] for word in WORDS)])
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    everything = dict.fromkeys(
        [*special, *bytes_, "▁", *letters, *capitals, *"0123456789.,!?'-", *tokens]
    )
    vocabulary = {token: i for i, token in enumerate(everything)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer
