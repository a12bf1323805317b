"""How an encoder's captions become token ids, read from the checkpoint's tokenizer files.

The result is a TextPrep and one file in the format of the `tokenizers` library that does all that
the checkpoint's tokenizer does, so that scoring needs nothing else (`memcli.tokens`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from memcli.errors import ModelError
from memcli.home import cache_dir, make_dir
from memcli.spec import MAX_TOKENS, TextPrep
from memcli.train.checkpoints import Checkpoint, first_line, read_json
from memcli.train.encoder_kinds import quiet, tower_config, tower_of, transformers
from memcli.train.sentence import sentence_tokens
from memcli.train.siglip_tokens import siglip_tokenizer

_FORMAT = "2"
"""Part of the file's place: raised when the same checkpoint gives another file."""


def text_prep(checkpoint: Checkpoint) -> tuple[TextPrep, Path]:
    """The preparation that the checkpoint was trained with, and the path of its tokenizer file.

    The file is made from whatever tokenizer files the checkpoint has, in
    `$MEMCLI_HOME/cache/tokenizers`. Raises ModelError if they cannot be used.
    """
    folder = checkpoint.folder
    kind, tower = tower_of(folder, "text")
    settings = _settings(folder)
    if kind == "siglip" and settings.get("tokenizer_class") in (None, *_SIGLIP_CLASSES):
        tokenizer, pad_id, limit = siglip_tokenizer(folder, settings)
    else:
        tokenizer, pad_id, limit = _by_transformers(folder)
        if kind in ("siglip", "siglip2") and settings.get("do_lower_case") is True:
            _lower_first(tokenizer)
    if _pads_left(tokenizer) and not tower.fixed_length:
        # Positions count from the padding on, CLIP ends at the first token of padding, and the
        # first token is none: what a caption is would depend on the others of its batch.
        raise ModelError(
            f"its tokenizer pads on the left, which an encoder of type {kind} is not made for",
            where=str(folder),
            next_step='Set "padding_side": "right" in its tokenizer_config.json (and, where there'
            ' is one, "direction": "Right" under "padding" in tokenizer.json).',
        )
    limits = [limit, _positions(folder, pad_id), sentence_tokens(folder), MAX_TOKENS]
    prep = TextPrep(
        max_tokens=min(one for one in limits if one is not None),
        pad_id=pad_id,
        fixed_length=tower.fixed_length,
    )
    return prep, _stored(tokenizer, checkpoint)


def _pads_left(tokenizer: Any) -> bool:
    return str((tokenizer.padding or {}).get("direction", "right")).lower() == "left"


_SIGLIP_CLASSES = ("SiglipTokenizer", "SiglipTokenizerFast")


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _by_transformers(folder: Path) -> tuple[Any, int, int | None]:
    """The `tokenizers` object, padding id and most tokens of the checkpoint's own tokenizer."""
    from tokenizers import Tokenizer

    package = transformers()
    try:
        with quiet():
            found = package.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
            )
        tokenizer = Tokenizer.from_str(found.backend_tokenizer.to_str())
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"its tokenizer files cannot be used: {first_line(error)}",
            where=str(folder),
            next_step="Put the checkpoint's tokenizer.json there.",
        ) from error
    pad = found.pad_token_id
    if pad is None:
        raise ModelError(
            "its tokenizer has no padding token",
            where=str(folder),
            next_step="Put the tokenizer files of this checkpoint there, or name another encoder.",
        )
    left = found.padding_side == "left"
    # memcli pads itself; of this only the direction counts.
    tokenizer.enable_padding(direction="left" if left else "right", pad_id=int(pad))
    limit = found.model_max_length
    return tokenizer, int(pad), int(limit) if 0 < limit <= MAX_TOKENS else None


def _lower_first(tokenizer: Any) -> None:
    """SigLIP 2 was trained on lower-case text (2502.14786, section 2.1), which its files say only
    in a setting that transformers up to 4 ignores."""
    from tokenizers import normalizers

    lower = normalizers.Lowercase()
    own = tokenizer.normalizer
    tokenizer.normalizer = lower if own is None else normalizers.Sequence([lower, own])


def _positions(folder: Path, pad_id: int) -> int | None:
    """The most tokens that the encoder has positions for."""
    config = tower_config(folder, "text")
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int):
        return None
    # RoBERTa and its kin count positions from the padding id on.
    from_padding = tower_of(folder, "text")[0] in ("roberta", "xlm-roberta", "mpnet")
    return found - pad_id - 1 if from_padding else found


def _stored(tokenizer: Any, checkpoint: Checkpoint) -> Path:
    content = tokenizer.to_str()
    folder = make_dir(cache_dir("tokenizers") / f"{checkpoint.digest[:32]}-{_FORMAT}")
    path = folder / "tokenizer.json"
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(json.loads(content), ensure_ascii=False), encoding="utf-8")
    part.replace(path)
    return path
