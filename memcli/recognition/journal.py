"""The journal of `memcli eeg`: epochs as they are scored, and which recordings are complete.

A recording has many rows. Each is a line of its own, so that an interrupted recording goes on at
the epoch where it stopped; a last line says that all are there:

    {"key": PATH, "file": [SIZE, MTIME_NS], "part": 17, "row": {...}}     epoch 17
    {"key": PATH, "file": [SIZE, MTIME_NS], "parts": 18}                  complete
    {"key": PATH, "file": [SIZE, MTIME_NS], "row": {...}}                 failed, and why
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memcli.journal import FileIdentity, RowJournal
from memcli.recognition.rows import EpochRow

_SIDECARS = (".fdt", ".eeg", ".vmrk", ".dat")
_BIDS_TABLES = ("events", "channels", "electrodes")
_BIDS_ENDING = "_eeg"


def identity_of(path: str) -> FileIdentity | None:
    """The content of a recording and of the files beside it that are read with it.

    A change goes unnoticed of data files under names of their own, which headers may choose; in
    BIDS also of tables and descriptions that a recording inherits from a folder above or under a
    shorter name (sub-01_electrodes.tsv), and of the parts of a FIF file after _split-01_.
    """
    whole = FileIdentity.of(path)
    if whole is None:
        return None
    size, mtime_ns = whole.size, whole.mtime_ns
    for beside in _beside(path):
        part = FileIdentity.of(beside)
        if part is not None:
            size, mtime_ns = size + part.size, max(mtime_ns, part.mtime_ns)
    return FileIdentity(size, mtime_ns)


def _beside(path: str) -> Iterator[str]:
    stem, ending = os.path.splitext(path)  # noqa: PTH122 (keeps the spelling)
    for suffix in _SIDECARS:
        if suffix != ending:
            yield stem + suffix
    # No other .csv or .json: it may be the very table that is written.
    if ending == ".npy" or stem.endswith(_BIDS_ENDING):
        yield f"{stem}.json"
    if stem.endswith(_BIDS_ENDING):
        for table in _BIDS_TABLES:
            yield f"{stem.removesuffix(_BIDS_ENDING)}_{table}.tsv"
    if ending == ".fif":
        number = 1
        while os.path.exists(split := f"{stem}-{number}{ending}"):  # noqa: PTH110
            yield split
            number += 1


@dataclass
class _Recording:
    identity: FileIdentity | None
    parts: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """Offset of each epoch's row and whether it failed."""
    failure: int | None = None
    """Offset of the row that says why the recording failed."""
    complete: bool = False

    @property
    def failed(self) -> bool:
        return self.failure is not None or any(failed for _, failed in self.parts.values())


class EpochJournal(RowJournal[EpochRow]):
    """An open journal of epochs. Rows of a recording that changed meanwhile are dropped."""

    row_type = EpochRow

    def __init__(self, descriptor: int, path: Path, settings: dict[str, Any]):
        super().__init__(descriptor, path, settings)
        self._recordings: dict[str, _Recording] = {}

    def load(self) -> None:
        self._recordings.clear()
        super().load()

    def _remember(self, line: bytes) -> None:
        try:
            value = json.loads(line)
            row = EpochRow(**value["row"]) if "row" in value else None
            identity = FileIdentity.read(value["file"])
            part = int(value["part"]) if "part" in value else None
            self._note(str(value["key"]), identity, part, row, self._end)
        except (ValueError, KeyError, TypeError):
            return  # a line that the disk damaged: its epoch is scored again

    def _note(
        self,
        key: str,
        identity: FileIdentity | None,
        part: int | None,
        row: EpochRow | None,
        offset: int,
    ) -> None:
        known = self._recordings.get(key)
        if known is None or known.identity != identity:
            known = self._recordings[key] = _Recording(identity)
        if row is None:
            known.complete, known.failure = True, None
        elif part is None:
            known.complete, known.failure = False, offset
        else:
            known.parts[part] = offset, row.status == "failed"
            known.complete, known.failure = False, None

    def finished(self, key: str, *, retry_failed: bool) -> bool:
        """Whether everything about this very recording is here already."""
        known = self._recordings.get(key)
        if known is None or (retry_failed and known.failed):
            return False
        done = known.complete or known.failure is not None
        return done and known.identity == identity_of(key)

    def failed(self, key: str) -> bool:
        """Whether a finished recording failed, or an epoch of it."""
        return self._recordings[key].failed

    def scored(self, key: str, identity: FileIdentity | None) -> frozenset[int]:
        """Epochs of this very recording that have a probability already."""
        known = self._recordings.get(key)
        if known is None or known.identity != identity:
            return frozenset()
        return frozenset(part for part, (_, failed) in known.parts.items() if not failed)

    def count(self, key: str) -> int:
        """Epochs of a recording that are here."""
        return len(self._recordings[key].parts)

    def write(self, key: str, identity: FileIdentity | None, row: EpochRow) -> None:
        """Append the row of an epoch, or, without an epoch, why its recording failed.

        Raises OutputError if the disk does not take it; the journal is then as it was before.
        """
        offset = self._end
        part = {} if row.epoch is None else {"part": row.epoch}
        file = FileIdentity.stored(identity)
        self._append({"key": key, "file": file, **part, "row": asdict(row)})
        self._note(key, identity, row.epoch, row, offset)

    def complete(self, key: str, identity: FileIdentity | None) -> None:
        """Append that all epochs of a recording are here. Raises OutputError as `write` does."""
        offset = self._end
        known = self._recordings.get(key)
        parts = len(known.parts) if known is not None else 0
        self._append({"key": key, "file": FileIdentity.stored(identity), "parts": parts})
        self._note(key, identity, None, None, offset)

    def rows(self) -> Iterator[EpochRow]:
        """Every epoch and every failure, by path and then by epoch."""
        return self._rows_at(offset for key in self.keys() for offset in self._offsets(key))

    def keys(self) -> list[str]:
        """Every recording, sorted."""
        return sorted(self._recordings, key=os.fsencode)

    def _offsets(self, key: str) -> Iterator[int]:
        known = self._recordings[key]
        for _, (offset, _) in sorted(known.parts.items()):
            yield offset
        if known.failure is not None:
            yield known.failure

    def __len__(self) -> int:
        return sum(len(one.parts) + (one.failure is not None) for one in self._recordings.values())
