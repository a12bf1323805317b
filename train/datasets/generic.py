"""The generic form: one CSV table with `path,score[,caption][,split][,fold][,group]`."""

from __future__ import annotations

import os
from pathlib import Path

from memcli.text import printable
from memcli.train.datasets.draft import Draft, Entry
from memcli.train.datasets.form import form_of
from memcli.train.datasets.tables import Row, header, read_table
from memcli.train.datasets.types import Dataset, DatasetError, shown

REQUIRED = ("path", "score")
_SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "val": "dev",
    "validation": "dev",
    "test": "test",
}
_COLUMNS = "path,score[,caption][,split][,fold][,group]"
_SHOWN = 3


def find_table(root: Path) -> Path:
    """The table itself, or the only one in a folder. Raises DatasetError if there is not one."""
    if root.is_file():
        fault = form_of(root, REQUIRED).fault
        if fault is None:
            return root
        raise DatasetError(
            f"no table of videos and scores: {fault}",
            where=str(root),
            next_step=f"Its first line must name the columns {_COLUMNS}.",
        )
    tables = tables_in(root)
    if len(tables) == 1:
        return tables[0]
    near = nearly_tables_in(root)
    if not tables and len(near) == 1:
        return find_table(near[0])  # which says what is wrong with it
    count = f"{len(tables)} tables" if tables else "no table"
    raise DatasetError(
        f"{count} with the columns path and score here{'' if tables else faults_in(root)}",
        where=str(root),
        next_step=f"Name the CSV file itself; its first line: {_COLUMNS}.",
    )


def tables_in(root: Path) -> list[Path]:
    """The generic tables directly in a folder."""
    return [path for path in _files(root) if set(REQUIRED) <= set(header(path))]


def nearly_tables_in(root: Path) -> list[Path]:
    """The files directly in a folder that would be generic tables if saved in another way."""
    forms = [(path, form_of(path, REQUIRED)) for path in _files(root)]
    return [path for path, form in forms if form.fault and form.would_do]


def faults_in(root: Path) -> str:
    """Why each CSV file directly in a folder is no generic table, a line each, for the end of a
    message; those that only have to be saved in another way come first."""
    near = nearly_tables_in(root)
    files = [*near, *(path for path in _files(root) if path not in near)]
    forms = [(path, form_of(path, REQUIRED)) for path in files]
    lines = [f"\n  {printable(path.name)}: {form.fault}" for path, form in forms if form.fault]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"\n  and {len(lines) - _SHOWN:,} more"]
    return "".join(lines)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*.csv") if path.is_file())


def load(name: str, root: Path, target: str) -> Dataset:
    """One row per video and caption: several rows of one path are several captions of it.

    `path` counts from the table's folder, or from `videos/` in it; `score` is in [0, 1] and may be
    empty for split test; `split` is train, dev or test; `fold` a whole number from 0; `group` names
    what must stay together (a film). Later rows of a path may leave all but the caption empty.
    """
    table = find_table(root)
    draft = Draft(name, root)
    scored: dict[str, tuple[str, int]] = {}
    rows: dict[str, set[tuple[str, ...]]] = {}
    for row in read_table(table, draft, REQUIRED):
        video = os.path.normpath(row["path"]) if row["path"] else ""
        cells = tuple(row.cells.values())
        entry = draft.get(video)
        if entry is None:
            entry = _entry(row, video, table, draft)
            if not draft.add(entry):
                continue
        else:
            _compare(entry, row, table, draft)
            if cells in rows[video] or not row.get("caption"):
                what = f"{shown(video)} again, with nothing new: it stands in line {entry.line}"
                draft.problem("duplicate", what, table, row.line)
                continue
        rows.setdefault(video, set()).add(cells)
        draft.caption(entry, row.get("caption"), table, row.line)
        if row["score"]:
            _score(draft, entry, target, row, table, scored)
    for entry in draft.entries():
        if entry.id not in scored and entry.split != "test":
            draft.score(entry, target, None, table, entry.line)
    return draft.finish((target,), target)


def _entry(row: Row, video: str, table: Path, draft: Draft) -> Entry:
    return Entry(
        id=video,
        split=_split(row, table, draft),
        file=table,
        line=row.line,
        paths=(table.parent / video, table.parent / "videos" / video),
        fold=_fold(row, table, draft),
        group=row.get("group") or None,
    )


def _split(row: Row, table: Path, draft: Draft) -> str | None:
    text = row.get("split")
    split = _SPLITS.get(text.lower())
    if text and split is None:
        draft.problem("value", f"split {shown(text)} is not train, dev or test", table, row.line)
    return split


def _fold(row: Row, table: Path, draft: Draft) -> int | None:
    text = row.get("fold")
    if text.isdecimal() and len(text) < 10:
        return int(text)
    if text:
        draft.problem("value", f"fold {shown(text)} is not a whole number", table, row.line)
    return None


def _score(
    draft: Draft,
    entry: Entry,
    target: str,
    row: Row,
    table: Path,
    scored: dict[str, tuple[str, int]],
) -> None:
    """The first score of a video counts; a later one must say the same."""
    first, line = scored.setdefault(entry.id, (row["score"], row.line))
    if line == row.line:
        draft.score(entry, target, row["score"], table, row.line)
    elif first != row["score"]:
        what = (
            f"score {shown(row['score'])} of {shown(entry.id)}, but {shown(first)} in line {line}"
        )
        draft.problem("conflict", what, table, row.line)


def _compare(entry: Entry, row: Row, table: Path, draft: Draft) -> None:
    """Later rows of a video may leave split, fold and group empty, but not change them."""
    for column, first, here in (
        ("split", entry.split, _split(row, table, draft)),
        ("fold", entry.fold, _fold(row, table, draft)),
        ("group", entry.group, row.get("group") or None),
    ):
        if here is not None and here != first:
            what = f"{column} {shown(here)}, but {shown(first)} in line {entry.line}"
            draft.problem("conflict", what, table, row.line)
