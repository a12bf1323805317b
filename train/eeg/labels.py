"""What is known of an epoch beside its samples: label, subject, video, split."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from memcli.eeg.onsets import check_onsets, parse_onsets
from memcli.errors import UsageError
from memcli.text import plural, printable
from memcli.train.datasets.types import DatasetError

if TYPE_CHECKING:
    from memcli.eeg import Epoch

COLUMNS = ("file", "epoch", "subject", "label")
_MAX_CSV_BYTES = 256 << 20
_SPLITS = ("train", "test")

Table = Mapping[tuple[str, int], tuple[Mapping[str, str], str]]
"""Rows of CSV files, and their files and lines, by the name of the recording, as `relative_name`
has it, and the epoch."""


@dataclass(frozen=True)
class Row:
    """One epoch."""

    id: str
    """Name of the recording and number of the epoch."""
    recording: str
    subject: str | None
    """None: nothing says whose the recording is."""
    label: int
    split: str
    video: str | None

    @property
    def person(self) -> str:
        """The subject, or where nobody says it the recording."""
        return self.recording if self.subject is None else self.subject


def relative_name(path: Path, folder: Path) -> str:
    """The recording's path from the folder of the data on, with / between the parts."""
    return Path(os.path.relpath(path, folder)).as_posix()


def label_tables(
    folder: Path, recordings: Sequence[str], on_problem: Callable[[DatasetError], None]
) -> tuple[Table, tuple[str, ...]]:
    """Rows of the folder's CSV files that have the columns `COLUMNS`, and what was noticed.

    A row names a recording by its path from `folder` on; without the suffix or without leading
    folders where that names one recording only. `on_problem` gets, with the line, a name that
    several recordings have, an epoch that is no number and one that is named twice.
    """
    spellings = _spellings(recordings)
    rows: dict[tuple[str, int], tuple[dict[str, str], str]] = {}
    notes = []
    for path in sorted(folder.glob("*.csv")):
        if not path.is_file() or path.stat().st_size > _MAX_CSV_BYTES:
            continue
        strangers = 0
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream)
                if not {"file", "epoch", "label"} <= set(reader.fieldnames or ()):
                    continue
                for row in reader:
                    where = f"{printable(str(path))}:{reader.line_num}"
                    try:
                        strangers += not _add(rows, row, spellings, folder, where)
                    except DatasetError as error:
                        on_problem(error)
        except (UnicodeDecodeError, csv.Error) as error:
            on_problem(DatasetError(f"no CSV file in UTF-8: {error}", where=printable(str(path))))
        except OSError as error:
            what = f"cannot be read: {error.strerror or error}"
            on_problem(DatasetError(what, where=printable(str(path))))
        if strangers:
            notes.append(f"{plural(strangers, 'row')} of {printable(path.name)} name no recording")
    return rows, tuple(notes)


def _spellings(recordings: Sequence[str]) -> dict[str, list[str]]:
    """Recordings by every end of their paths, with and without the suffix."""
    found: dict[str, dict[str, None]] = {}
    for name in recordings:
        parts = PurePosixPath(name).parts
        for first in range(len(parts)):
            end = PurePosixPath(*parts[first:])
            for spelling in (end, end.with_name(end.stem)):
                found.setdefault(str(spelling), {})[name] = None
    return {spelling: list(names) for spelling, names in found.items()}


def onset_names(
    table: Path, recordings: Sequence[Path], on_problem: Callable[[DatasetError], None]
) -> tuple[str, ...]:
    """What was noticed of the names in a table of onsets.

    `on_problem` gets what makes the table unusable, and names that are the ends of several paths:
    whoever reads one recording's rows does not know of the others and would take them for its own.
    """
    try:
        noticed = check_onsets(table, [str(path) for path in recordings])
    except UsageError as error:
        on_problem(DatasetError(error.what, where=error.where, next_step=error.next_step))
        return ()
    rows = parse_onsets(table.read_text(encoding="utf-8-sig"), table)
    spellings = _spellings([path.as_posix() for path in recordings])
    for name in dict.fromkeys(row[0] for row in rows):
        meant = spellings.get(name.removeprefix("./"), [])
        if len(meant) > 1:
            shown = ", ".join(meant[:3]) + (", ..." if len(meant) > 3 else "")
            on_problem(
                DatasetError(
                    f"{printable(name)} may be any of {len(meant)} recordings: {printable(shown)}",
                    where=printable(str(table)),
                    next_step="Name each as it is named here.",
                )
            )
    return noticed


def _add(
    rows: dict[tuple[str, int], tuple[dict[str, str], str]],
    row: dict[str | None, Any],
    spellings: Mapping[str, list[str]],
    folder: Path,
    where: str,
) -> bool:
    """Whether the row names a recording, of which it then tells. Raises DatasetError."""
    said = {name: value for name, value in row.items() if name and isinstance(value, str)}
    number = said.get("epoch", "")
    if not number.isascii() or not number.isdecimal():
        raise DatasetError(f"epoch is {printable(number)!r}, not 0, 1, 2, ...", where=where)
    file = Path(said.get("file", "").strip())
    name = relative_name(file, folder.absolute()) if file.is_absolute() else file.as_posix()
    meant = spellings.get(name, [])
    if name in meant:  # a whole path goes before the ends of others
        meant = [name]
    if not meant:
        return False
    if len(meant) > 1:
        shown = ", ".join(meant[:3]) + (", ..." if len(meant) > 3 else "")
        raise DatasetError(
            f"{printable(name)} may be any of {len(meant)} recordings: {printable(shown)}",
            where=where,
            next_step="Name it by its path from the folder of the data on.",
        )
    key = meant[0], int(number)
    if key in rows:
        raise DatasetError("names the same epoch a second time", where=where)
    rows[key] = said, where
    return True


def epoch_row(epoch: Epoch, recording: str, table: Table, recognised: str | None) -> Row:
    """What an epoch's metadata, or instead of them a row of `table`, say of it.

    `recognised`: as in `memcli.train.eeg.reading.Source`. The subject is that of the road which
    recordings to be scored take, too, unless the row names another. Raises DatasetError.
    """
    where = f"{printable(recording)}, epoch {epoch.index}"
    said: Mapping[str, Any] = epoch.metadata
    if (row := table.get((recording, epoch.index))) is not None:
        said, where = row[0], f"{row[1]}: {where}"
    if recognised is not None:
        label = int(re.search(recognised, epoch.event) is not None)
    else:
        label = _label(said, where)
    split = (_word(said.get("split")) or "train").lower()
    if split not in _SPLITS:
        raise DatasetError(f"split is {printable(split)!r}, not train or test", where=where)
    subject = _word(said.get("subject")) or _word(epoch.subject)
    name = f"{recording}:{epoch.index}"
    return Row(name, recording, subject, label, split, _word(said.get("video")))


def _word(value: object) -> str | None:
    """A value of metadata as text; None where nothing stands there."""
    if value is None or value != value:  # NaN, as in a table with gaps
        return None
    return str(value).strip() or None


def _label(said: Mapping[str, Any], where: str) -> int:
    value = said.get("label")
    if value is None:
        columns = ", ".join(printable(str(one)) for one in said) or "nothing"
        raise DatasetError(
            f"has no label; its metadata has {columns}",
            where=where,
            next_step="Give the epochs a column `label` (0 or 1), put a CSV file with the columns"
            f" {','.join(COLUMNS)} beside them,\nor say which events are label 1:"
            "  --recognised REGEX",
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number not in (0.0, 1.0):
        raise DatasetError(
            f"label is {printable(str(value))[:40]!r}, neither 0 nor 1 (recognised)", where=where
        )
    return int(number)
