"""What a checkpoint of the sentence-transformers library says of itself."""

from __future__ import annotations

import json
from pathlib import Path

from memcli.errors import ModelError
from memcli.spec import Pooling
from memcli.train.checkpoints import read_json

_MAX_BYTES = 1 << 20
_KNOWN = ("Transformer", "Pooling", "Normalize")


def sentence_pooling(folder: Path) -> Pooling | None:
    """How a sentence encoder pools its tokens; None if the checkpoint is none.

    "mean" is at length 1 whether or not the checkpoint normalises, "cls" is as it comes: a head
    that is trained on it does not need more. Raises ModelError, naming file and module, for
    modules or poolings that memcli does not have.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError
        modules = [
            str(module["type"]).rpartition(".")[2] for module in json.loads(path.read_text())
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError("is not a list of modules", where=str(path)) from error
    for module in modules:
        if module not in _KNOWN:
            raise ModelError(
                f"has a module that memcli cannot run: {module[:40]!r}", where=str(path)
            )
    if "Pooling" not in modules:
        return None
    where = folder / "1_Pooling" / "config.json"
    config = read_json(where)
    flags = {key for key, value in config.items() if key.startswith("pooling_mode_") and value}
    # Newer files name the pooling, older ones have a flag for each.
    mode = config.get("pooling_mode") or ", ".join(sorted(flags))
    if mode in ("mean", "pooling_mode_mean_tokens"):
        return "mean"
    if mode in ("cls", "pooling_mode_cls_token"):
        return "cls"
    raise ModelError(f"pools by {str(mode)[:60]!r}; memcli has mean and cls", where=str(where))


def sentence_tokens(folder: Path) -> int | None:
    """The most tokens that a sentence encoder takes by its own settings; None if not stated."""
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    found = read_json(path).get("max_seq_length")
    return found if isinstance(found, int) and found > 0 else None
