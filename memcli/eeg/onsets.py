"""Tables of onsets: where epochs begin, for recordings without events of their own.

A CSV, TSV or semicolon-separated file whose first line names its columns: `onset_s` or `onset`
(seconds from the start of the recording); optional `file` (path, name or stem of the recording the
row is of), `event` (or `trial_type`), and anything else, which becomes metadata (subject, video,
...; label, which is 1, 0 or nothing). The events.tsv of BIDS is such a table.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memcli.errors import RecordingError, RecordingErrorCode, UsageError
from memcli.text import plural, printable

_ONSET = ("onset_s", "onset")
_FILE = ("file", "path", "recording", "filename")
_EVENT = ("event", "trial_type", "description")
LABEL = "label"
_MAX_BYTES = 64 << 20
_SHOWN = 60


@dataclass(frozen=True)
class Onset:
    """A row of the table."""

    onset_s: float
    event: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class _Row:
    file: str
    """As the table names the recording; "" for all."""
    onset: Onset
    line: int


def read_onsets(table: Path, recording: str) -> list[Onset]:
    """The rows of `table` that are of the file `recording`, in order of time.

    Raises RecordingError for a table that cannot be used, naming the line, or without a row for
    this recording.
    """
    onsets = [row for row in _rows(_text(table), table) if _is_of(row.file, recording)]
    if not onsets:
        raise _unusable(table, f"has no row for {Path(recording).name}")
    _check_labels(onsets, table)
    return sorted((row.onset for row in onsets), key=lambda onset: onset.onset_s)


def check_onsets(table: Path, recordings: Sequence[str] | None) -> tuple[str, ...]:
    """What is to be told of a table: rows that name none of `recordings`, if these are known.

    Raises UsageError for a table that no recording could use, as `read_onsets` would for each.
    """
    try:
        rows = _rows(_text(table), table)
        groups: dict[str, list[_Row]] = {}
        for row in rows:
            groups.setdefault(row.file, []).append(row)
        for group in groups.values():
            _check_labels(group, table)
    except RecordingError as error:
        raise UsageError(error.what, where=error.where, next_step=error.next_step) from None
    if recordings is None:
        return ()
    strangers = [
        row
        for name, group in groups.items()
        if not any(_is_of(name, recording) for recording in recordings)
        for row in group
    ]
    if not strangers:
        return ()
    first = strangers[0]
    return (
        f"{printable(str(table))}: {plural(len(strangers), 'row')} of no recording that was named,"
        f" the first in line {first.line} ({printable(first.file)[:_SHOWN]})",
    )


def _text(table: Path) -> str:
    try:
        if table.stat().st_size > _MAX_BYTES:
            raise _unusable(table, "too large for a table of onsets")
        return table.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _unusable(table, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _unusable(table, "no text in UTF-8") from error


def parse_onsets(text: str, table: Path) -> list[tuple[str, Onset]]:
    """(recording's name or "", onset) of each row. Raises RecordingError."""
    return [(row.file, row.onset) for row in _rows(text, table)]


def _rows(text: str, table: Path) -> list[_Row]:
    first = text.split("\n", 1)[0]
    delimiter = max("\t;,", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[_Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        lower = [name.lower() for name in header]
        onset = next((lower.index(name) for name in _ONSET if name in lower), None)
        if onset is None:
            held = ", ".join(printable(name) for name in header if name)[:200] or "nothing"
            raise _unusable(table, f"no column onset_s (it has {held})", line=1)
        if len(set(lower)) != len(lower):
            raise _unusable(table, "two columns have the same name", line=1)
        file = next((lower.index(name) for name in _FILE if name in lower), None)
        event = next((lower.index(name) for name in _EVENT if name in lower), None)
        taken = {onset, file, event}
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                what = f"{len(cells)} cells where the first line has {len(header)}"
                raise _unusable(table, what, line=reader.line_num)
            values = [cell.strip() for cell in cells]
            metadata = {
                name: value
                for place, (name, value) in enumerate(zip(header, values, strict=True))
                if place not in taken and name and value not in ("", "n/a")
            }
            seconds = _seconds(values[onset], table, reader.line_num)
            kind = values[event] if event is not None and values[event] else "onset"
            _check_label(metadata, table, reader.line_num)
            name = "" if file is None else values[file]
            rows.append(_Row(name, Onset(seconds, kind, metadata), reader.line_num))
    except csv.Error as error:
        raise _unusable(table, str(error), line=reader.line_num) from error
    return rows


def _seconds(text: str, table: Path, line: int) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        what = f"{printable(text)[:60]!r} is no onset in seconds"
        raise _unusable(table, what, line=line)
    return seconds


def _check_label(metadata: Mapping[str, str], table: Path, line: int) -> None:
    """A label that is neither would be lost without a word."""
    label = metadata.get(LABEL)
    if label is not None and _label(label) is None:
        what = f"label is {printable(label)[:_SHOWN]!r}, neither 0 nor 1 (recognised)"
        raise _unusable(table, what, line=line)


def _check_labels(rows: Sequence[_Row], table: Path) -> None:
    """Raise RecordingError for one onset of a recording that is recognised and not."""
    seen: dict[float, tuple[float, int]] = {}
    for row in rows:
        label = _label(row.onset.metadata.get(LABEL))
        if label is None:
            continue
        known, line = seen.setdefault(row.onset.onset_s, (label, row.line))
        if known != label:
            what = f"label {label:g} at {row.onset.onset_s:g} s, which has {known:g} in line {line}"
            raise _unusable(table, what, line=row.line)


def _label(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if number in (0.0, 1.0) else None


def _is_of(name: str, recording: str) -> bool:
    """Whether a row's name means this recording: none, its path, its name or its stem."""
    if not name:
        return True
    path = Path(recording)
    if name in (recording, path.name, path.stem):
        return True
    return "/" in name and path.as_posix().endswith("/" + name.lstrip("./"))


def _unusable(table: Path, what: str, line: int | None = None) -> RecordingError:
    where = f"{table}, line {line}" if line is not None else str(table)
    return RecordingError(
        RecordingErrorCode.ONSETS,
        what,
        where=where,
        next_step="A table of onsets has a column onset_s, in seconds from the recording's start.",
    )
