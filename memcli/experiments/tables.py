"""Tables of published and obtained figures: as Markdown for people, as CSV for programs."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memcli.errors import OutputError
from memcli.text import csv_cell, printable

ABSENT = "–"
CSV_COLUMNS = (
    "table",
    "row",
    "model",
    "quantity",
    "source",
    "value",
    "std",
    "low",
    "high",
    "videos",
    "status",
    "reason",
    "mark",
)
_STD_FORM = ".2f"
"""As many digits as 000_bcb79d7cf5a52fe8.txt, table 1, has."""
_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)")


@dataclass(frozen=True)
class Figure:
    """A number with what is known of how sure it is."""

    value: float | None
    """None: undefined, as the correlation with a constant is."""
    std: float | None = None
    """Standard deviation over folds."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval."""
    videos: int | None = None
    std_form: str = _STD_FORM
    """Format of the standard deviation."""

    @classmethod
    def of(cls, metrics: Mapping[str, Any], name: str) -> Figure:
        """One correlation of `Metrics.to_dict()`, with its Fisher interval."""
        entry = metrics[name]
        interval = entry["fisher"]
        return cls(
            entry["value"],
            interval=(interval[0], interval[1]) if interval is not None else None,
            videos=metrics["n"],
        )


@dataclass(frozen=True)
class Quantity:
    """A pair of columns: what was published and what was obtained."""

    name: str
    form: str = ".3f"
    """Format of values, as of `format`."""
    plotted: bool = True


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    labels: tuple[str, ...]
    model: str = ""
    published: Mapping[str, Figure] = field(default_factory=dict)
    """By the name of the quantity."""
    obtained: Mapping[str, Figure] = field(default_factory=dict)
    failure: str = ""
    """Why nothing was obtained."""
    absent: str = ""
    """What stands in place of figures that nobody tried to obtain."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """The same by quantity, where one has a reason of its own."""

    def missing(self, quantity: str) -> str:
        """Why the quantity was not obtained; "" if nothing says it."""
        return self.failure or self.reasons.get(quantity, self.absent)


@dataclass(frozen=True)
class Table:
    """A table of a paper, or one like it."""

    name: str
    """For files: letters, digits and hyphens."""
    title: str
    labels: tuple[str, ...]
    """Heads of the columns that say what a row is."""
    quantities: tuple[Quantity, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """Sentences below it: which data, what differs."""
    mark: str = ""
    """What nobody may overlook, e.g. that the data are planted: in every form of the table."""

    @property
    def failed(self) -> bool:
        """Whether a row has failed."""
        return any(row.failure for row in self.rows)

    @property
    def compares(self) -> bool:
        """Whether there is anything published in it."""
        return any(row.published for row in self.rows)


def markdown_text(text: str) -> str:
    """`text` as Markdown that shows it as it is, on one line: in a cell, too."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", printable(text))


def markdown(table: Table) -> str:
    """The table with its title and notes, with a line break at the end."""
    heads = [*table.labels]
    for quantity in table.quantities:
        kinds = [f"{quantity.name}, {kind}" for kind in ("published", "obtained")]
        heads += kinds if table.compares else [quantity.name]
    aligned = ["---"] * len(table.labels) + ["---:"] * (len(heads) - len(table.labels))
    lines = [f"### {markdown_text(table.title)}", ""]
    lines += [f"**{markdown_text(table.mark)}**", ""] if table.mark else []
    lines += [_line(map(markdown_text, heads)), _line(aligned)]
    lines += [_line(_cells(table, row)) for row in table.rows]
    notes = [*table.notes, *(f"{_name(row)} failed: {row.failure}" for row in _failed(table))]
    if notes:
        lines += ["", *(f"- {markdown_text(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def write_csv(path: Path, tables: Sequence[Table]) -> None:
    """Every figure of the tables, one a line, with the columns `CSV_COLUMNS`.

    `source` is published or obtained; `status` of obtained ones ok, failed or absent. An existing
    file is replaced only once the new one is whole. Raises OutputError.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            writer.writerows(_records(table, row))
    write_text(path, stream.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all. Raises OutputError."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error


def shown(figure: Figure | None, form: str) -> str:
    """A figure in a cell: `0.603 (0.589, 0.616)`, `0.362 ± 0.10`."""
    if figure is None:
        return ABSENT
    if figure.value is None:
        return "undefined"
    text = format(figure.value, form)
    if figure.std is not None:
        text += f" ± {figure.std:{figure.std_form}}"
    if figure.interval is not None:
        low, high = figure.interval
        text += f" ({low:{form}}, {high:{form}})"
    return text


def _cells(table: Table, row: Row) -> Iterable[str]:
    yield from map(markdown_text, row.labels)
    for quantity in table.quantities:
        if table.compares:
            yield shown(row.published.get(quantity.name), quantity.form)
        figure = row.obtained.get(quantity.name)
        if figure is None and (reason := row.missing(quantity.name)):
            yield "failed" if row.failure else reason
        else:
            yield shown(figure, quantity.form)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _failed(table: Table) -> list[Row]:
    return [row for row in table.rows if row.failure]


def _name(row: Row) -> str:
    return row.model or ", ".join(row.labels)


def _records(table: Table, row: Row) -> Iterable[tuple[object, ...]]:
    label = csv_cell(", ".join(filter(None, row.labels)))
    start = (table.name, label, csv_cell(row.model))
    mark = csv_cell(table.mark)
    for quantity in table.quantities:
        name = csv_cell(quantity.name)
        if (published := row.published.get(quantity.name)) is not None:
            yield (*start, name, "published", *_numbers(published), "ok", "", mark)
        obtained = row.obtained.get(quantity.name)
        status = "ok" if obtained is not None else "failed" if row.failure else "absent"
        reason = csv_cell(row.missing(quantity.name)) if obtained is None else ""
        yield (*start, name, "obtained", *_numbers(obtained or Figure(None)), status, reason, mark)


def _numbers(figure: Figure) -> tuple[object, ...]:
    low, high = figure.interval or (None, None)
    values = (figure.value, figure.std, low, high, figure.videos)
    return tuple("" if value is None else value for value in values)
