"""SigLIP's tokenizer as one file of the `tokenizers` library.

The checkpoint's own tokenizer is sentencepiece (Unigram) behind lower-casing and the removal of
ASCII punctuation (SiglipTokenizer of transformers, after big_vision's canonicalisation); needs the
sentencepiece package and cannot be saved as a `tokenizer.json`. Its steps are written down here as
normalisers, and its vocabulary is read from `spiece.model` or from a `tokenizer.json`.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcli.errors import ModelError
from memcli.spec import MAX_TOKENS
from memcli.text import printable

_MAX_BYTES = 64 << 20
_END = "</s>"
_SPACES = r"[\s\x1c-\x1f\x85\x{a0}]"
"""What Python takes for white space; the regular expressions of `tokenizers` leave some out."""
_CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
_UNIGRAM = 1  # sentencepiece's TrainerSpec.ModelType
_BYTE_PIECE = 6  # and SentencePiece.Type


@dataclass(frozen=True)
class _Vocabulary:
    pieces: list[tuple[str, float]]
    unknown: int
    charsmap: bytes
    """sentencepiece's compiled normalisation (NFKC and the like); empty for none."""
    byte_fallback: bool


def siglip_tokenizer(folder: Path, settings: dict[str, Any]) -> tuple[Any, int, int | None]:
    """The `tokenizers` object, padding id and most tokens of a SigLIP checkpoint.

    `settings` is its `tokenizer_config.json`. Raises ModelError, naming the file, if the vocabulary
    cannot be read.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    files = [folder / name for name in ("spiece.model", "tokenizer.json")]
    path = next((one for one in files if one.is_file()), None)
    if path is None:
        raise ModelError(
            "this folder has no spiece.model and no tokenizer.json",
            where=str(folder),
            next_step="Put the checkpoint's own there.",
        )
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError("it is too large")
        found = (_from_spiece if path.suffix == ".model" else _from_json)(content)
        end = next(i for i, (piece, _) in enumerate(found.pieces) if piece == _END)
        steps: list[Any] = [
            normalizers.Replace("▁", " "),
            normalizers.Prepend("▁"),
            normalizers.Replace(Regex(rf"(?<={_CASED})Σ(?!{_CASED})"), "ς"),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
            normalizers.Replace(Regex(rf"{_SPACES}+"), " "),
        ]
        if settings.get("do_lower_case") is False:
            del steps[2:4]
        if found.charsmap:
            steps.append(normalizers.Precompiled(found.charsmap))
        steps += [
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex("[ ▁]+$"), ""),
        ]
        tokenizer = Tokenizer(
            models.Unigram(found.pieces, unk_id=found.unknown, byte_fallback=found.byte_fallback)
        )
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {_END}", pair=f"$A {_END} $B {_END}", special_tokens=[(_END, end)]
        )
        left = settings.get("padding_side") == "left"  # memcli pads itself; only the side counts
        tokenizer.enable_padding(direction="left" if left else "right", pad_id=end)
    except BaseException as error:  # the library's panics derive from BaseException only
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(
            f"is no tokenizer of SigLIP: {printable(str(reason)[:200]) or type(error).__name__}",
            where=str(path),
            next_step="Put the spiece.model or tokenizer.json of this SigLIP checkpoint there.",
        ) from error
    limit = settings.get("model_max_length")
    usable = isinstance(limit, int) and 0 < limit <= MAX_TOKENS
    return tokenizer, end, limit if usable else None


def _from_json(content: bytes) -> _Vocabulary:
    found = json.loads(content)
    model = found["model"]
    if model["type"] != "Unigram":
        raise ValueError(f"its model is {str(model['type'])[:40]}, not Unigram")
    return _Vocabulary(
        pieces=[(str(piece), float(score)) for piece, score in model["vocab"]],
        unknown=int(model["unk_id"]),
        charsmap=_charsmap(found.get("normalizer")),
        byte_fallback=model.get("byte_fallback") is True,
    )


def _charsmap(normalizer: Any) -> bytes:
    if not isinstance(normalizer, dict):
        return b""
    if normalizer.get("type") == "Precompiled":
        return base64.b64decode(normalizer["precompiled_charsmap"])
    parts = normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else ()
    return next(filter(None, map(_charsmap, parts or ())), b"")


def _from_spiece(content: bytes) -> _Vocabulary:
    """Of sentencepiece's ModelProto: pieces = 1, trainer_spec = 2, normalizer_spec = 3."""
    pieces: list[tuple[str, float]] = []
    unknown, kind, charsmap, byte_fallback = 0, _UNIGRAM, b"", False
    for number, value in _fields(content):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))  # piece = 1, score = 2, type = 3
            text, score = piece.get(1, b""), piece.get(2, 0.0)
            if not isinstance(text, bytes) or not isinstance(score, float):
                raise ValueError("a piece is damaged")
            pieces.append((text.decode("utf-8"), score))
            byte_fallback |= piece.get(3) == _BYTE_PIECE
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))  # model_type = 3, unk_id = 40
            kind, unknown = int(trainer.get(3, _UNIGRAM)), int(trainer.get(40, 0))
        elif number == 3 and isinstance(value, bytes):
            found = dict(_fields(value)).get(2, b"")  # precompiled_charsmap = 2
            charsmap = found if isinstance(found, bytes) else b""
    if kind != _UNIGRAM:
        raise ValueError("it is not a Unigram model")
    if not pieces:
        raise ValueError("it has no pieces")
    return _Vocabulary(pieces, unknown, charsmap, byte_fallback)


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a protocol buffers message, in order."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == 2:
            length, place = _varint(message, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("it is no protocol buffers message")
        content = message[place : place + length]
        if len(content) != length:
            raise ValueError("it ends early")
        place += length
        yield (
            number,
            content if wire == 2 else struct.unpack("<d" if wire == 1 else "<f", content)[0],
        )


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(message):
            raise ValueError("it ends early")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, place
    raise ValueError("it is no protocol buffers message")
