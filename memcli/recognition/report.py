"""The report of a run: an HTML file made by MNE's Report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli import __version__
from memcli.errors import MissingDependencyError, OutputError
from memcli.recognition import figures
from memcli.recognition.rates import Rates, rates
from memcli.recognition.rows import EpochRow
from memcli.text import plural, printable

if TYPE_CHECKING:
    from memcli.recognition.run import EegSummary
    from memcli.spec import EegPrep

MOST_RECORDINGS = 50
"""With figures of their own; all are in the figures of the whole."""
_MOST_EPOCHS = 1000
"""Rows of a recording's table."""
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 ._-]+")
"""Titles become identifiers and links, which MNE escapes in its own way."""
_HEADINGS = ("epoch", "onset (s)", "event", "probability", "recognised", "label", "flags")


@dataclass
class _Whole:
    """What is kept of all epochs, some bytes each."""

    probabilities: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    of_labelled: list[float] = field(default_factory=list)

    def take(self, row: EpochRow) -> None:
        if row.probability is None:
            return
        self.probabilities.append(row.probability)
        if row.label is not None:
            self.labels.append(row.label)
            self.of_labelled.append(row.probability)


def write_report(
    path: Path, rows: Callable[[], Iterator[EpochRow]], summary: EegSummary, prep: EegPrep
) -> None:
    """Write a report of `rows` (sorted by path) to `path`, atomically.

    `rows` is called twice. Everything that came from outside is escaped. Raises OutputError; an
    older report is then still whole. MissingDependencyError if matplotlib is not there.
    """
    report = _new_report()
    whole = _Whole()
    recordings = 0
    for row in rows():
        whole.take(row)
    report.add_html(_opening(summary, whole), "Run", tags=("run",))
    _add_whole(report, whole, summary.threshold)
    for key, group in groupby(rows(), key=lambda row: row.path):
        recordings += 1
        if recordings <= MOST_RECORDINGS:
            _add_recording(report, recordings, key, list(group), summary.threshold, prep)
    if recordings > MOST_RECORDINGS:
        left = plural(recordings - MOST_RECORDINGS, "recording")
        text = f"<p>{left} more: their epochs are in the table and in the figures of the whole.</p>"
        report.add_html(text, "Further recordings", tags=("recordings",))
    _save(report, path)


def _new_report() -> Any:
    try:
        import matplotlib  # noqa: F401
        import mne
    except ImportError as error:
        raise MissingDependencyError(
            error.name or "matplotlib", purpose="a report", install="pip install 'memcli[eeg]'"
        ) from error
    return mne.Report(title="memcli eeg", verbose="error")


def _opening(summary: EegSummary, whole: _Whole) -> str:
    facts = {
        "model": summary.bundle,
        "engine": summary.engine,
        "recordings": f"{summary.total:,}",
        "scored epochs": f"{len(whole.probabilities):,}",
        "threshold": f"{summary.threshold:g}",
        "table": summary.output,
        "memcli": __version__,
    }
    note = f"<p><strong>{_safe(summary.note)}</strong></p>" if summary.note else ""
    return note + _table(("", ""), ([name, value] for name, value in facts.items()))


def _add_whole(report: Any, whole: _Whole, threshold: float) -> None:
    if not whole.probabilities:
        report.add_html("<p>No epoch has a probability.</p>", "Probabilities", tags=("run",))
        return
    figure = figures.histogram(whole.probabilities, threshold)
    report.add_figure(figure, "Probabilities", tags=("run",), image_format="png")
    if not whole.labels:
        return
    found = rates(whole.labels, whole.of_labelled, threshold)
    if found is None:
        text = f"<p>All {plural(len(whole.labels), 'labelled epoch')} have the same label.</p>"
        report.add_html(text, "Against the labels", tags=("labels",))
        return
    report.add_html(_rates_table(found, threshold), "Against the labels", tags=("labels",))
    report.add_figure(figures.roc(found), "ROC", tags=("labels",), image_format="png")


def _rates_table(found: Rates, threshold: float) -> str:
    facts = {
        "labelled epochs": f"{found.epochs:,}, {found.positives:,} of them recognised",
        "AUROC": f"{found.auroc:.3f}",
        f"balanced accuracy at {threshold:g}": f"{found.balanced_accuracy:.3f}",
        f"accuracy at {threshold:g}": f"{found.accuracy:.3f}",
        "accuracy of always saying the more frequent label": f"{found.majority:.3f}",
    }
    return _table(("", ""), ([name, value] for name, value in facts.items()))


def _add_recording(
    report: Any, number: int, path: str, rows: list[EpochRow], threshold: float, prep: EegPrep
) -> None:
    title = f"Recording {number}: {_NOT_PLAIN.sub('_', Path(path).name)}"
    tags = ("recordings",)
    shown = [_cells(row) for row in rows[:_MOST_EPOCHS] if row.epoch is not None]
    failures = "".join(
        f"<p>failed: {_safe(row.error or '')}</p>" for row in rows if row.status == "failed"
    )
    text = f"<p>{_safe(path)}</p>{failures}{_table(_HEADINGS, shown) if shown else ''}"
    if len(rows) > _MOST_EPOCHS:
        text += f"<p>and {len(rows) - _MOST_EPOCHS:,} more, in the table</p>"
    scored = [row for row in rows if row.probability is not None]
    if scored:
        parts = {
            "probabilities": figures.probabilities(scored, threshold),
            "contributions of windows": figures.contributions(scored, prep.start_s, prep.window_s),
        }
        for name, figure in parts.items():
            report.add_figure(figure, f"{title}, {name}", tags=tags, image_format="png")
    report.add_html(text, title, tags=tags)


def _cells(row: EpochRow) -> list[str]:
    return [
        str(row.epoch),
        "" if row.onset_s is None else f"{row.onset_s:.3f}",
        row.event or "",
        "" if row.probability is None else f"{row.probability:.4f}",
        {True: "yes", False: "no", None: ""}[row.recognised],
        "" if row.label is None else str(row.label),
        row.flags or "",
    ]


def _table(headings: tuple[str, ...], rows: Any) -> str:
    head = "".join(f"<th>{_safe(heading)}</th>" for heading in headings) if any(headings) else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<table class="table table-sm"><thead><tr>{head}</tr></thead>{body}</table>'


def _safe(text: str) -> str:
    """Text from outside for HTML: no markup, no control characters."""
    return escape(printable(text))


def _save(report: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.stem}.tmp.html")
    try:
        report.save(temporary, open_browser=False, overwrite=True, verbose="error")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"the report cannot be written: {error.strerror or error}", where=str(path)
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
