"""A run of `memcli eeg`: from paths to a finished table and report, through the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from memcli.eeg import RecordingSource, find_recordings
from memcli.errors import ExitCode, UsageError
from memcli.journal import check_place
from memcli.recognition.journal import EpochJournal
from memcli.recognition.recogniser import Reading, Recogniser
from memcli.recognition.rows import EPOCHS, EpochRow
from memcli.recognition.settings import (
    EegSettings,
    check_options,
    check_reading,
    open_recogniser,
)
from memcli.results import output_format, write_rows
from memcli.summary import RunSummary
from memcli.table import Progress, TableOptions, keep_rows

REPORT_SUFFIXES = (".html", ".htm")
LISTED_NOTES = 10


@dataclass(kw_only=True)
class EegSummary(RunSummary):
    """A run of `memcli eeg`. `ok` are recordings with all their epochs, `failed` those without."""

    report: str | None
    model: str
    bundle: str
    engine: str
    reason: str
    """Why this engine."""
    note: str | None
    """What to know about all probabilities of this model."""
    threshold: float
    epochs: int = 0
    """Scored ones."""
    epochs_failed: int = 0
    recognised: int = 0
    """Of the scored epochs, those from the threshold on."""
    flagged: int = 0
    """Of the scored epochs, those with anything unusual."""
    skipped: int = 0
    """Epochs that were left out as asked for."""
    epochs_per_s: float = 0.0
    read_busy_s: float = 0.0
    readers: int = 0
    engine_busy_s: float = 0.0
    bottleneck: str | None = None

    @property
    def exit_code(self) -> ExitCode:
        """Of the command; an epoch without a probability counts as a failure, too."""
        if self.epochs_failed and not self.interrupted:
            return ExitCode.SOME_INPUTS_FAILED
        return super().exit_code

    def count(self, row: EpochRow) -> None:
        """Take one row into the figures."""
        if row.status == "ok":
            self.epochs += 1
            self.recognised += bool(row.recognised)
            self.flagged += row.flags is not None
        elif row.epoch is None:
            self.failed += 1
            self.note_failure(row.path, row.error)
        else:
            self.epochs_failed += 1
            self.note_failure(f"{row.path}, epoch {row.epoch}", row.error)


def recognise_to_table(
    paths: Sequence[str | os.PathLike[str]],
    settings: EegSettings,
    options: TableOptions,
    progress: Progress[EpochRow, EegSummary],
    *,
    report: Path | None = None,
) -> EegSummary:
    """Score the epochs of all recordings in `paths` into a table and say what was done.

    Rows are in the journal as soon as they are finished. The table is written at the end of the
    run, also when it is interrupted or stopped by `on_error`; the report only if it is not. Raises
    UsageError, ModelError, EngineError, DeviceError, MissingDependencyError; OutputError when the
    disk is full, the journal being whole.
    """
    suffix = output_format(options.output)
    check_place(options.output, resume=options.resume)  # before a model is opened
    if report is not None:
        check_report(report)
    check_reading()
    sources = find_recordings(paths, options.shard)
    everything = options.shard is None or options.shard[1] == 1
    noticed = check_options(settings, [one.path for one in sources] if everything else None)
    with (
        open_recogniser(settings, progress.message) as recogniser,
        EpochJournal.open(options.output, recogniser.identity(), resume=options.resume) as journal,
    ):
        pending: list[RecordingSource] = []
        kept: list[RecordingSource] = []
        for source in sources:
            finished = journal.finished(source.key, retry_failed=options.retry_failed)
            (kept if finished else pending).append(source)
        failed = sum(journal.failed(source.key) for source in kept)
        summary = EegSummary(
            output=str(options.output),
            report=None if report is None else str(report),
            model=recogniser.bundle.model,
            bundle=recogniser.bundle.label(recogniser.selection.variant),
            engine=str(recogniser.description),
            reason=recogniser.selection.reason,
            note=recogniser.note,
            threshold=settings.threshold,
            total=len(sources),
            resumed=len(kept),
            resumed_failed=failed,
            readers=recogniser.readers,
        )
        for note in noticed:
            progress.message(note)
        keep_rows(
            journal,
            summary,
            progress,
            run=lambda: _run(recogniser, pending, journal, options, summary, progress),
            finish=lambda: write_rows(
                options.output, journal.rows(), EPOCHS, lists=suffix != ".csv"
            ),
        )
        if report is not None and not summary.interrupted:
            from memcli.recognition.report import write_report

            write_report(report, journal.rows, summary, recogniser.prep)
    return summary


def check_report(path: Path) -> None:
    """Raise UsageError if no report can be written to `path`."""
    if path.suffix.lower() not in REPORT_SUFFIXES:
        raise UsageError("a report is an .html file", where=str(path))
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError("no report can be written here: no such folder", where=str(path))
    if not os.access(path.absolute().parent, os.W_OK):
        raise UsageError("no report can be written here: no permission", where=str(path))


def _run(
    recogniser: Recogniser,
    pending: list[RecordingSource],
    journal: EpochJournal,
    options: TableOptions,
    summary: EegSummary,
    progress: Progress[EpochRow, EegSummary],
) -> None:
    started = time.monotonic()
    noted = 0
    with closing(_rows(recogniser, pending, journal)) as rows:
        for reading, row in rows:
            if row is None:
                summary.ok += 1
            else:
                summary.count(row)
            if row is None or row.epoch is None:  # the recording is over
                summary.skipped += reading.skipped
                noted = _tell(reading, noted, progress)
            _measure(summary, recogniser, time.monotonic() - started)
            if row is not None:
                progress.advance(row, summary)
                if row.status == "failed" and options.on_error == "fail":
                    return


def _rows(
    recogniser: Recogniser, pending: list[RecordingSource], journal: EpochJournal
) -> Generator[tuple[Reading, EpochRow | None], None, None]:
    with closing(recogniser.recognise(pending, journal.scored)) as rows:
        for reading, row in rows:
            if row is None:
                journal.complete(reading.source.key, reading.identity)
            else:
                journal.write(reading.source.key, reading.identity, row)
            yield reading, row


def _tell(reading: Reading, noted: int, progress: Progress[EpochRow, EegSummary]) -> int:
    """Say what was noticed about a recording, of the first ones; gives how many had something."""
    if reading.notes and noted < LISTED_NOTES:
        for note in reading.notes:
            progress.message(f"{reading.source.path}: {note}")
        if noted + 1 == LISTED_NOTES:
            progress.message("(notes about further recordings are left out)")
    return noted + bool(reading.notes)


def _measure(summary: EegSummary, recogniser: Recogniser, elapsed_s: float) -> None:
    stats = recogniser.stats
    summary.elapsed_s = elapsed_s
    summary.epochs_per_s = summary.epochs / elapsed_s if elapsed_s else 0.0
    summary.read_busy_s = stats.decode_busy_s
    summary.engine_busy_s = stats.engine_busy_s
    summary.bottleneck = {"decode": "reading", "engine": "engine"}.get(stats.bottleneck or "")
