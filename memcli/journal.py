"""The journal: every row as it is finished, so that nothing is lost and nothing scored twice.

A table is written once, at the end; until then, and after a crash, its rows are in the journal
beside it (`scores.csv.journal`), one JSON object a line. The first line says which model and
settings the rows belong to. A line torn by a crash is dropped when the journal is opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from memcli.closing import Closeable
from memcli.errors import OutputError, OutputMismatchError, UsageError
from memcli.locking import lock
from memcli.results import SCHEMA, R, Row

_KIND = "memcli journal"
J = TypeVar("J", bound="RowJournal[Any]")


@dataclass(frozen=True)
class FileIdentity:
    """A file's content as far as its metadata tell: a changed file is scored again."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> FileIdentity | None:
        """None where there is no file to look at."""
        try:
            status = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):
            return None
        return cls(status.st_size, status.st_mtime_ns)

    @classmethod
    def read(cls, entry: list[int] | None) -> FileIdentity | None:
        """From what a journal's line has. Raises TypeError for anything else."""
        return cls(*entry) if entry else None

    @staticmethod
    def stored(identity: FileIdentity | None) -> list[int] | None:
        """For a journal's line."""
        return [identity.size, identity.mtime_ns] if identity else None


@dataclass(frozen=True)
class _Entry:
    offset: int
    identity: FileIdentity | None
    failed: bool


class RowJournal(Closeable, Generic[R]):
    """An open journal of rows of one type. One process at a time may hold it.

    Only the position of each row is kept in memory, so that a million rows need little of it.
    """

    row_type: ClassVar[type[Any]]
    """What its rows are made of again."""

    def __init__(self, descriptor: int, path: Path, settings: dict[str, Any]):
        self._descriptor = descriptor
        self._path = path
        self._header = {"kind": _KIND, "schema": SCHEMA, "settings": settings}
        self._entries: dict[str, _Entry] = {}
        self._end = 0

    @classmethod
    def open(cls: type[J], table: Path, settings: dict[str, Any], *, resume: bool) -> J:
        """Open or begin the journal of `table` for rows made with `settings`.

        Raises UsageError if another run holds it, or the folder cannot be written; OutputError
        where files cannot be locked;
        OutputMismatchError if it (or a table without a journal) belongs to something else.
        """
        check_place(table, resume=resume)
        path = journal_path(table)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(path, error.strerror or str(error)) from error
        journal = cls(descriptor, path, settings)
        try:
            lock(
                descriptor,
                table,
                busy="another memcli run is writing this table",
                wait="Wait for it, or choose another --output.",
                elsewhere="Choose another place with --output FILE.",
            )
            if not resume:
                os.ftruncate(descriptor, 0)
            journal.load()
        except BaseException:
            journal.close()
            raise
        return journal

    def load(self) -> None:
        """Take what the file holds, which is the truth also after an exception in `write`.

        Raises OutputMismatchError if it belongs to something else.
        """
        self._entries.clear()
        self._end = 0
        with self._path.open("rb") as stream:
            first = stream.readline()
            if first.endswith(b"\n"):
                _check_header(first, self._header, self._path)
                self._end = len(first)
                for line in stream:
                    if not line.endswith(b"\n"):  # torn by a crash: the next row takes its place
                        break
                    self._remember(line)
                    self._end += len(line)
            elif first and not _encode(self._header).startswith(first):
                raise OutputMismatchError("not a memcli journal", where=str(self._path))
        os.ftruncate(self._descriptor, self._end)
        if self._end == 0:
            self._append(self._header)

    def _remember(self, line: bytes) -> None:
        try:
            value = json.loads(line)
            row = self.row_type(**value["row"])
            self._entries[value["key"]] = _Entry(
                self._end, FileIdentity.read(value["file"]), row.status == "failed"
            )
            self._regard(value["key"], row)
        except (ValueError, KeyError, TypeError):
            # A line that the disk damaged: its video is scored again, the others keep their rows.
            return

    def _regard(self, key: str, row: R) -> None:
        """For journals that must know something of every file's newest row of earlier runs."""

    def finished(self, key: str, *, retry_failed: bool) -> bool:
        """Whether a row for this very file is here already."""
        entry = self._entries.get(key)
        if entry is None or (retry_failed and entry.failed):
            return False
        return entry.identity == FileIdentity.of(key)

    def failed(self, key: str) -> bool:
        """Whether the row of a finished file says that it failed."""
        return self._entries[key].failed

    def write(self, key: str, identity: FileIdentity | None, row: R) -> None:
        """Append a row; it survives whatever happens to the process afterwards.

        Raises OutputError if the disk does not take it; the journal is then as it was before.
        """
        place = self._end
        self._append({"key": key, "file": FileIdentity.stored(identity), "row": asdict(row)})
        self._entries[key] = _Entry(place, identity, row.status == "failed")

    def _append(self, value: dict[str, Any]) -> None:
        line = memoryview(_encode(value))
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._descriptor, line[written:], self._end + written)
        except OSError as error:
            os.ftruncate(self._descriptor, self._end)
            raise OutputError(
                f"results cannot be written: {error.strerror}",
                where=str(self._path),
                next_step="Make room and run the same command again: it goes on from here.",
            ) from error
        self._end += written

    def rows(self) -> Iterator[R]:
        """The newest row of every file, sorted by path."""
        return self._rows_at(
            self._entries[key].offset for key in sorted(self._entries, key=os.fsencode)
        )

    def _rows_at(self, offsets: Iterable[int]) -> Iterator[R]:
        with self._path.open("rb") as stream:
            for offset in offsets:
                stream.seek(offset)
                row: R = self.row_type(**json.loads(stream.readline())["row"])
                yield row

    def __len__(self) -> int:
        return len(self._entries)

    def sync(self) -> None:
        """Have the disk confirm what was written."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the journal back to other runs."""
        os.close(self._descriptor)


class Journal(RowJournal[Row]):
    """The journal of `memcli score`."""

    row_type = Row

    def __init__(self, descriptor: int, path: Path, settings: dict[str, Any]):
        super().__init__(descriptor, path, settings)
        self._captioners: dict[str, str] = {}

    def _regard(self, key: str, row: Row) -> None:
        self._captioners.pop(key, None)
        if row.captioner is not None and row.caption_source == "generated":
            self._captioners[key] = row.captioner

    def check_captioner(self, label: str | None) -> None:
        """Raise OutputMismatchError if another captioner than this made captions in the table: all
        that are made are of one. `label` of None: this run makes none."""
        others = sorted(set(self._captioners.values()) - {label})
        if label is None or not others:
            return
        raise OutputMismatchError(
            f"it has captions of captioner {', '.join(others)}; this run's is {label}",
            where=str(self._path),
            next_step=f"Choose another --output, use --captioner {others[0].split()[0]}, or start"
            " anew with --no-resume.",
        )


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def check_place(table: Path, *, resume: bool) -> None:
    """Raise UsageError if no results can be written as `table`: no such folder, not allowed, or a
    file that memcli did not write (OutputMismatchError)."""
    if table.is_dir():
        raise UsageError("this is a folder, not a table", where=str(table))
    folder = table.absolute().parent
    if not folder.is_dir():
        raise _unwritable(folder, "no such folder")
    if not os.access(folder, os.W_OK):
        raise _unwritable(folder, "no permission to write there")
    if resume and table.exists() and not journal_path(table).exists():
        raise OutputMismatchError(
            "this file exists and no memcli journal is beside it",
            where=str(table),
            next_step="Choose another --output, or replace it with --no-resume.",
        )


def _unwritable(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"results cannot be written here: {reason}",
        where=str(path),
        next_step="Choose another place with --output FILE.",
    )


def journal_path(table: Path) -> Path:
    """The journal beside a table."""
    return table.with_name(f"{table.name}.journal")


def _check_header(line: bytes, expected: dict[str, Any], path: Path) -> None:
    try:
        found = json.loads(line)
        same_kind = found["kind"] == _KIND
        schema, settings = found["schema"], dict(found["settings"])
    except (ValueError, KeyError, TypeError):
        same_kind = False
    if not same_kind:
        raise OutputMismatchError("not a memcli journal", where=str(path))
    if schema != expected["schema"]:
        raise OutputMismatchError(
            f"results of schema {schema}, this memcli writes schema {SCHEMA}",
            where=str(path),
            next_step="Choose another --output.",
        )
    wanted = expected["settings"]
    names = sorted(settings.keys() | wanted.keys())
    differing = [name for name in names if settings.get(name) != wanted.get(name)]
    if differing:
        was = ", ".join(_said(name, settings.get(name)) for name in differing)
        now = ", ".join(_said(name, wanted.get(name)) for name in differing)
        raise OutputMismatchError(
            f"its results were made with {was}; this run has {now}",
            where=str(path),
            next_step="Choose another --output, use the same settings, or start anew with"
            " --no-resume.",
        )


def _said(name: str, value: Any) -> str:
    """A setting in the words of its user."""
    if name == "caption_mode":
        return f"--captions {value or 'prefer'}"
    if name == "captions":
        return "no file of captions" if value is None else f"a file of captions ({value})"
    label = name.replace("_", " ")
    if isinstance(value, bool):
        return f"{label} {'on' if value else 'off'}"
    return f"no {label}" if value is None else f"{label} {value}"
