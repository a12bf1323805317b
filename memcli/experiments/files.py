"""Writes tables into a folder: one Markdown page, one CSV of all figures, a plot per table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memcli.experiments.tables import Figure, Quantity, Table, markdown, write_csv, write_text

if TYPE_CHECKING:
    from memcli.train.dot_plot import Dot

PAGE_FILE = "tables.md"
CSV_FILE = "figures.csv"


def page(tables: Sequence[Table]) -> str:
    """All tables as Markdown, without pictures."""
    return "\n".join(markdown(table) for table in tables)


def write_tables(folder: Path, tables: Sequence[Table], *, plots: bool) -> None:
    """Write all files.

    Each is replaced only once the new one is whole. Raises OutputError, and
    MissingDependencyError without matplotlib.
    """
    parts = [markdown(table) for table in tables]
    if plots:
        for number, table in enumerate(tables):
            parts[number] += f"\n![{table.name}: published and obtained]({table.name}.png)\n"
    write_csv(folder / CSV_FILE, tables)
    write_text(folder / PAGE_FILE, "\n".join(parts))
    for table in tables if plots else ():
        plot_table(folder / f"{table.name}.png", table)


def plot_table(path: Path, table: Table) -> None:
    """Dots with intervals: those published and those obtained, a panel per quantity."""
    from memcli.train.dot_plot import Panel, dot_plot

    panels = [
        Panel(
            quantity.name,
            [_dot(row.published.get(quantity.name)) for row in table.rows],
            [_dot(row.obtained.get(quantity.name)) for row in table.rows],
        )
        for quantity in _plotted(table)
    ]
    rows = [row.model or ", ".join(row.labels) for row in table.rows]
    dot_plot(path, [table.title, table.mark], rows, panels)


def _plotted(table: Table) -> list[Quantity]:
    return [quantity for quantity in table.quantities if quantity.plotted]


def _dot(figure: Figure | None) -> Dot | None:
    """The interval, or one standard deviation to each side."""
    from memcli.train.dot_plot import Dot

    if figure is None or figure.value is None:
        return None
    if figure.interval is not None:
        return Dot(figure.value, *figure.interval)
    if figure.std is not None:
        return Dot(figure.value, figure.value - figure.std, figure.value + figure.std)
    return Dot(figure.value)
