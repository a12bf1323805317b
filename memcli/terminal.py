"""Tables on standard output."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from memcli.text import printable

_ALL_ROWS = 40
_ENDS = 10


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Columns aligned; colour and lines only on a terminal. Cells are made safe here."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain(columns, cells, right)
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*[Text(cell) for cell in row])
    Console().print(table)


def _print_plain(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]
) -> None:
    table = [list(columns), *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(columns))]
    for row in table:
        line = "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        print(line.rstrip())


def show_table(path: Path) -> None:
    """The videos of a CSV table, most memorable first; of many, the two ends."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    scored = sorted((row for row in rows if row["score"]), key=_order)
    failed = [row for row in rows if not row["score"]]
    if len(rows) <= _ALL_ROWS:
        shown = [_cells(row) for row in scored + failed]
    else:
        left = len(scored) - 2 * _ENDS
        gap = [["...", "", f"{left:,} more in {path}"]] if left > 0 else []
        shown = [_cells(row) for row in scored[:_ENDS]] + gap
        shown += [_cells(row) for row in scored[max(_ENDS, len(scored) - _ENDS) :]]
    print_table(("score", "seconds", "video"), shown, right=("score", "seconds"))


def _order(row: dict[str, str]) -> tuple[float, str]:
    return -float(row["score"]), row["path"]


def _cells(row: dict[str, str]) -> list[str]:
    if not row["score"]:
        return ["failed", "", row["path"]]
    seconds = f"{float(row['duration_s']):.1f}" if row["duration_s"] else ""
    note = "  (partial)" if row["status"] == "partial" else ""
    return [f"{float(row['score']):.4f}", seconds, row["path"] + note]
