"""The epochs of a table on standard output."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

from memcli.terminal import print_table

_MOST_ROWS = 40


def show_epochs(path: Path) -> None:
    """The first epochs of a CSV table, in its order."""
    with path.open(encoding="utf-8", newline="") as stream:
        table = csv.DictReader(stream)
        rows = [_cells(row) for row in islice(table, _MOST_ROWS)]
        left = sum(1 for _ in table)
    if left:
        rows.append(["...", "", "", "", f"{left:,} more in {path}", ""])
    print_table(
        ("probability", "recognised", "onset_s", "event", "recording", "flags"),
        rows,
        right=("probability", "onset_s"),
    )


def _cells(row: dict[str, str]) -> list[str]:
    if not row["probability"]:
        return ["failed", "", row["onset_s"], row["event"], row["path"], row["error"]]
    recognised = "yes" if row["recognised"] == "True" else "no"
    probability = f"{float(row['probability']):.4f}"
    return [probability, recognised, row["onset_s"], row["event"], row["path"], row["flags"]]
