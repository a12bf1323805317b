"""Reading the lists of a dataset: text, comma-separated tables, lists of JSON objects.

Nothing here raises for what is in a file: what is wrong becomes a problem with its line, and what
is right is still read, so that one look shows everything.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from memcli.train.datasets.form import columns_fault, columns_of, encoding_fault, form_of
from memcli.train.datasets.types import Severity

_MAX_BYTES = 256 << 20


class Reports(Protocol):
    """Where problems go."""

    def problem(
        self,
        kind: str,
        what: str,
        file: Path,
        line: int | None = None,
        severity: Severity = "error",
    ) -> None: ...


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells by column, without spaces around them."""

    line: int
    """Where it starts, counted from 1 in lines of the file: cells may hold line breaks."""
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def get(self, column: str) -> str:
        """The cell; empty if the table has no such column."""
        return self.cells.get(column, "")


def read_text(path: Path, reports: Reports) -> str | None:
    """A file as text, without a byte order mark and with its line ends as they are.

    Bytes that are not UTF-8 are a problem and become U+FFFD; None if there is nothing to read.
    """
    try:
        size = path.stat().st_size
        data = b"" if size > _MAX_BYTES else path.read_bytes()
    except OSError as error:
        reports.problem("unreadable", f"this file cannot be read: {error.strerror}", path)
        return None
    if size > _MAX_BYTES:
        what = f"{size >> 20:,} MiB is too much for a list; at most {_MAX_BYTES >> 20} are read"
        reports.problem("unreadable", what, path)
        return None
    if (fault := encoding_fault(data)) is not None:
        reports.problem("encoding", fault, path)
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        reports.problem("encoding", what, path, line)
        return data.decode("utf-8-sig", "replace")


def header(path: Path) -> tuple[str, ...]:
    """The columns of a table as `read_table` names them; empty if it has none."""
    return form_of(path, ()).columns


def read_table(path: Path, reports: Reports, required: Sequence[str]) -> Iterator[Row]:
    """The rows of a comma-separated table whose first line names its columns.

    Column names are compared without case and spaces around them. Rows of another width than the
    first line, and a table without the `required` columns, are problems; one without any rows is
    a warning.
    """
    text = read_text(path, reports)
    if text is None:
        return
    records = _records(text, path, reports)
    top, names = next(records, (1, []))
    columns = columns_of(names)
    if (fault := columns_fault(columns, required)) is not None:
        reports.problem("columns", fault, path, 1)
        return
    if len(set(columns)) < len(columns):
        reports.problem("columns", "two columns have the same name", path, 1)
        return
    line = top
    for line, cells in records:
        if len(cells) != len(columns):
            what = f"{len(cells)} columns instead of {len(columns)}"
            reports.problem("columns", what, path, line)
            continue
        stripped = (cell.strip() for cell in cells)
        yield Row(line, dict(zip(columns, stripped, strict=True)))
    if line == top:
        reports.problem("no-rows", "there is no row to read below this line", path, top, "warning")


def _records(text: str, path: Path, reports: Reports) -> Iterator[tuple[int, list[str]]]:
    """Records with the line on which each starts; empty lines are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reports.problem("unreadable", f"not a row of a CSV file: {error}", path, line)
            continue
        if any(cell.strip() for cell in cells):
            yield line, cells


def read_objects(path: Path, reports: Reports) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a JSON file that holds a list of them, each with the line it starts on."""
    text = read_text(path, reports)
    if text is None:
        return
    decoder = json.JSONDecoder()
    at = _skip_space(text, 0)
    if text[at : at + 1] != "[":
        reports.problem("unreadable", "not a JSON list", path, text.count("\n", 0, at) + 1)
        return
    line, counted = 1, 0
    at = _skip_space(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            place = error.lineno if isinstance(error, json.JSONDecodeError) else line
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or long"
            reports.problem("unreadable", f"not JSON from here on: {reason}", path, place)
            return
        if isinstance(value, dict):
            yield line, value
        else:
            reports.problem("value", "not an object with names and values", path, line)
        at = _skip_space(text, at)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
        elif text[at : at + 1] != "]":
            place = text.count("\n", 0, at) + 1
            reports.problem("unreadable", "not JSON from here on: no comma", path, place)
            return


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at
