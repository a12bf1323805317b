"""The SHA-256 of a checkpoint, remembered by size and time of change of its files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from memcli.errors import ModelError
from memcli.home import cache_dir, make_dir

INPUT_FILES = {
    "vision": ("preprocessor_config.json", "processor_config.json"),
    "text": (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "spiece.model",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
    ),
}
"""What prepares the inputs, by tower: a folder of the hub's cache gets the other tower's files once
somebody asks for them, which changes nothing for this one."""
_MAX_REMEMBERED = 1000
_BLOCK = 1 << 20


def folder_digest(folder: Path, weights: Sequence[Path], tower: Literal["vision", "text"]) -> str:
    """SHA-256 over the names and contents of configuration, `weights` and what prepares the inputs
    of the tower.

    Files are hashed anew only if their size or time of change differ from the last time.
    Raises ModelError if one cannot be read.
    """
    names = ("config.json", *INPUT_FILES[tower])
    files = {name: folder / name for name in names if (folder / name).is_file()}
    files.update({path.name: path for path in weights})
    memory = _Memory()
    total = hashlib.sha256()
    try:
        for name in sorted(files):
            total.update(f"{name}\0{memory.sha256(files[name])}\n".encode())
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(files[name])) from error
    memory.save()
    return total.hexdigest()


class _Memory:
    """Digests by path in `$MEMCLI_HOME/cache/digests/files.json`. Losing it costs only time."""

    def __init__(self) -> None:
        self._path = cache_dir("digests") / "files.json"
        self._changed = False
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            known = None
        self._known: dict[str, list[object]] = known if isinstance(known, dict) else {}

    def sha256(self, path: Path) -> str:
        real = path.resolve()
        found = real.stat()
        state = [found.st_size, found.st_mtime_ns, found.st_ino]
        known = self._known.get(str(real))
        if isinstance(known, list) and known[:3] == state and isinstance(known[-1], str):
            return known[-1]
        digest = hashlib.sha256()
        with real.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        self._known.pop(str(real), None)
        self._known[str(real)] = [*state, digest.hexdigest()]
        self._changed = True
        return digest.hexdigest()

    def save(self) -> None:
        if not self._changed:
            return
        newest = dict(list(self._known.items())[-_MAX_REMEMBERED:])
        make_dir(self._path.parent)
        part = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            part.write_text(json.dumps(newest), encoding="utf-8")
            part.replace(self._path)
        except OSError:
            part.unlink(missing_ok=True)
