"""A plot of published against obtained figures: a line per row, dots with intervals, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcli.errors import MissingDependencyError
from memcli.text import printable
from memcli.train import plots

_LABEL_LENGTH = 60
_TITLE_LENGTH = 100
_PANEL_INCHES = 3.6
_LABEL_INCHES = 2.4
_ROW_INCHES = 0.34
_MARGIN_INCHES = 1.6
_MOST_INCHES = 40.0
_APART = 0.14
"""How far the two dots of a row are from its line, in rows."""


@dataclass(frozen=True)
class Dot:
    """A value with its interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """One quantity: a published and an obtained dot for every row, or None."""

    name: str
    published: Sequence[Dot | None]
    obtained: Sequence[Dot | None]


def dot_plot(
    path: Path, title: Sequence[str], rows: Sequence[str], panels: Sequence[Panel]
) -> None:
    """Write panels side by side; rows from top to bottom. Each panel has as many dots as rows.
    `title` are lines above them.

    An existing file is replaced only once the new one is whole. OutputError if it cannot be
    written, MissingDependencyError without matplotlib.
    """
    figure = _figure(len(rows), len(panels))
    lines = [printable(line)[:_TITLE_LENGTH] for line in title if line]
    figure.suptitle("\n".join(lines), parse_math=False, fontsize="medium")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _dots(axis, panel.published, -_APART, "published", marker="D", color="0.45", hollow=True)
        _dots(axis, panel.obtained, _APART, "obtained", marker="o", color="C0", hollow=False)
        axis.set_xlabel(printable(panel.name), parse_math=False)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(rows)))
    labels = [printable(row)[:_LABEL_LENGTH] for row in rows]
    axes[0].set_yticklabels(labels, parse_math=False, fontsize="small")
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    plots.save(figure, path)


def _dots(
    axis: Any,
    dots: Sequence[Dot | None],
    shift: float,
    name: str,
    *,
    marker: str,
    color: str,
    hollow: bool,
) -> None:
    there = [(row, dot) for row, dot in enumerate(dots) if dot is not None]
    errors = [
        [dot.value - dot.low if dot.low is not None else 0.0 for _, dot in there],
        [dot.high - dot.value if dot.high is not None else 0.0 for _, dot in there],
    ]
    axis.errorbar(
        [dot.value for _, dot in there],
        [row + shift for row, _ in there],
        xerr=errors,
        label=name,
        fmt=marker,
        color=color,
        markerfacecolor="white" if hollow else color,
        markersize=5,
        linewidth=1,
        capsize=2,
    )


def _figure(rows: int, panels: int) -> Any:
    try:
        # Not pyplot: it keeps figures and looks for a display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib", purpose="plotting", install="pip install 'memcli[train]'"
        ) from error
    size = (
        min(_MOST_INCHES, _LABEL_INCHES + _PANEL_INCHES * panels),
        min(_MOST_INCHES, _MARGIN_INCHES + _ROW_INCHES * rows),
    )
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
