"""A run of `memcli caption`: from paths to a table of captions, through the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from memcli.caption_maker import CaptionFrames, CaptionMaker, captioning_device, open_maker
from memcli.caption_rows import CAPTIONS, CaptionJournal, CaptionRow, Sidecars
from memcli.captioning.cache import MadeCaption
from memcli.captioning.choice import none_for
from memcli.engines.loading import usable_cpus
from memcli.errors import ExitCode, VideoError, VideoErrorCode
from memcli.inputs import Source, collect
from memcli.journal import FileIdentity, check_place
from memcli.pipeline import QUEUE_BYTES, Outcome, Pipeline, Stats
from memcli.results import output_format, write_rows
from memcli.spec import Sampling
from memcli.summary import LISTED_FAILURES, RunSummary
from memcli.table import Progress, TableOptions, keep_rows
from memcli.text import printable

_MILLISECONDS_DIGITS = 1


@dataclass(frozen=True)
class CaptionSettings:
    """How to make captions. None means: choose well, and say what was chosen."""

    captioner: str | None = None
    """Name, folder or size."""
    device: str = "auto"
    sampling: Sampling = "exact"
    threads: int | None = None
    batch_size: int | None = None
    workers: int | None = None
    file_timeout_s: float | None = 300.0


@dataclass(kw_only=True)
class CaptionSummary(RunSummary):
    """A run of `memcli caption`."""

    captioner: str
    device: str
    precision: str
    weights_license: str
    left_out: int
    workers: int
    cut: int = 0
    """Captions that had more to say than the captioner's longest."""
    sidecars: int = 0
    """Files written beside videos."""
    sidecars_kept: int = 0
    """Files that were there, with other captions in them."""
    sidecars_failed: int = 0
    """Captions that could not be written beside their videos, of earlier runs as well."""
    sidecar_failures: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of the first of them."""
    videos_per_s: float = 0.0
    decode_busy_s: float = 0.0
    captioner_busy_s: float = 0.0

    @property
    def exit_code(self) -> ExitCode:
        code = super().exit_code
        if code == ExitCode.OK and self.sidecars_failed:
            return ExitCode.SOME_INPUTS_FAILED
        return code

    def count(self, row: CaptionRow) -> None:
        """Take one row into the figures."""
        self.count_video(row.status, row.path, row.error)
        self.cut += bool(row.cut)
        self.count_sidecar(row)

    def count_sidecar(self, row: CaptionRow) -> None:
        """The same for what was to be written beside the video."""
        if row.sidecar_error is None:
            return
        self.sidecars_failed += 1
        if len(self.sidecar_failures) < LISTED_FAILURES:
            self.sidecar_failures.append((row.path, row.sidecar_error))


def caption_to_table(
    paths: Sequence[str | os.PathLike[str]],
    settings: CaptionSettings,
    options: TableOptions,
    progress: Progress[CaptionRow, CaptionSummary],
    *,
    sidecars: bool = False,
) -> CaptionSummary:
    """Caption `paths` into a table, and beside the videos if asked for, and say what was done.

    Resumes as `memcli.table.score_to_table` does. Raises UsageError, ModelError (no captioner),
    EngineError, DeviceError, OutputError.
    """
    output_format(options.output)
    check_place(options.output, resume=options.resume)
    sources = collect(paths, options.shard)
    beside = Sidecars(source.path for source in sources.items) if sidecars else None
    maker = open_maker(
        settings.captioner,
        device=captioning_device(settings.device),
        threads=settings.threads,
        sampling=settings.sampling,
        report=progress.message,
    )
    if maker is None:
        raise none_for(captioning_device(settings.device))
    maker.batch_size = settings.batch_size or maker.batch_size
    identity = {**maker.identity(), "sampling": settings.sampling}
    with (
        maker,
        CaptionJournal.open(options.output, identity, resume=options.resume) as journal,
    ):
        pending: list[Source] = []
        kept: list[Source] = []
        for source in sources.items:
            finished = journal.finished(source.key, retry_failed=options.retry_failed)
            (kept if finished else pending).append(source)
        run = _Run(maker, settings)
        summary = CaptionSummary(
            output=str(options.output),
            captioner=maker.label,
            device=maker.device,
            precision=maker.bundle.precision,
            weights_license=maker.bundle.licence,
            total=len(sources.items),
            resumed=len(kept),
            resumed_failed=sum(journal.failed(source.key) for source in kept),
            left_out=sources.left_out,
            workers=run.workers,
        )

        def fill() -> None:
            started = time.monotonic()
            if beside is not None:  # an earlier run may not have written these
                rows_of = journal.rows_of(source.key for source in kept)
                for source, row in zip(kept, rows_of, strict=True):
                    amended = _with_sidecar(source, row, beside)
                    if amended != row:
                        journal.amend(source.key, amended)
                    summary.count_sidecar(amended)
                _measure(summary, run.stats, beside, time.monotonic() - started)
            with closing(_rows(run, pending, journal, beside)) as rows:
                for row in rows:
                    summary.count(row)
                    _measure(summary, run.stats, beside, time.monotonic() - started)
                    progress.advance(row, summary)
                    if row.status == "failed" and options.on_error == "fail":
                        return

        keep_rows(
            journal,
            summary,
            progress,
            run=fill,
            finish=lambda: write_rows(options.output, journal.rows(), CAPTIONS, lists=False),
        )
    return summary


def _rows(
    run: _Run, pending: Sequence[Source], journal: CaptionJournal, beside: Sidecars | None
) -> Generator[CaptionRow, None, None]:
    with closing(run.rows(pending)) as outcomes:
        for source, identity, row in outcomes:
            written = row if beside is None else _with_sidecar(source, row, beside)
            journal.write(source.key, identity, written)
            yield written


def _with_sidecar(source: Source, row: CaptionRow, beside: Sidecars) -> CaptionRow:
    """The row after its caption was written beside the video, if it has one."""
    if row.caption is None:
        return row
    return replace(row, sidecar_error=beside.write(source.path, row.caption))


def _measure(
    summary: CaptionSummary, stats: Stats, beside: Sidecars | None, elapsed_s: float
) -> None:
    summary.elapsed_s = elapsed_s
    summary.videos_per_s = (summary.ok + summary.partial) / elapsed_s if elapsed_s else 0.0
    summary.decode_busy_s = stats.decode_busy_s
    summary.captioner_busy_s = stats.engine_busy_s
    if beside is not None:
        summary.sidecars, summary.sidecars_kept = beside.written, beside.kept


@dataclass
class _Item:
    source: Source
    identity: FileIdentity | None = None


class _Run:
    """The pipeline with the captioner at its end."""

    def __init__(self, maker: CaptionMaker, settings: CaptionSettings):
        self._maker = maker
        cores = usable_cpus()
        on_cpu = maker.device == "cpu"
        self.workers = settings.workers or (min(4, max(2, cores // 2)) if on_cpu else cores)
        self._pipeline: Pipeline[_Item, MadeCaption | CaptionFrames, MadeCaption] = Pipeline(
            self._read,
            self._make,
            workers=self.workers,
            queue_size=2 * (maker.batch_size + self.workers),
            most=QUEUE_BYTES // maker.clip_bytes,
            batch_size=maker.batch_size,
            file_timeout_s=settings.file_timeout_s,
        )
        self.stats = self._pipeline.stats

    def rows(
        self, sources: Iterable[Source]
    ) -> Generator[tuple[Source, FileIdentity | None, CaptionRow], None, None]:
        """One row per source, as they are finished. Closing the iterator ends the run."""
        items = (_Item(source) for source in sources)
        with closing(self._pipeline.run(items)) as outcomes:
            for outcome in outcomes:
                item = outcome.source
                yield item.source, item.identity, self._row(item.source, outcome)

    def _read(
        self, item: _Item, deadline: float | None, cancelled: Callable[[], bool]
    ) -> MadeCaption | CaptionFrames:
        source = item.source
        item.identity = FileIdentity.of(source.path)
        if source.error is not None:
            raise VideoError(*source.error)
        return self._maker.read(source.path, item.identity, deadline, cancelled)

    def _make(self, videos: Sequence[MadeCaption | CaptionFrames]) -> list[MadeCaption]:
        wanted = [video for video in videos if isinstance(video, CaptionFrames)]
        made = iter(self._maker.make(wanted, lambda: self._pipeline.cancelled) if wanted else [])
        return [next(made) if isinstance(video, CaptionFrames) else video for video in videos]

    def _row(self, source: Source, outcome: Outcome[_Item, MadeCaption]) -> CaptionRow:
        maker = self._maker
        row = CaptionRow(
            path=source.path,
            status="failed",
            caption=None,
            caption_source=None,
            captioner=maker.label,
            device=maker.device,
            precision=maker.bundle.precision,
            sampling=maker.sampling,
            weights_license=maker.bundle.licence,
            decode_ms=round(outcome.decode_s * 1000, _MILLISECONDS_DIGITS),
        )
        if outcome.error is not None:
            error = outcome.error
            return replace(row, error_code=error.code.value, error=printable(error.what))
        made = outcome.result
        if made is None:
            raise AssertionError("an outcome has a result or an error")
        row = replace(
            row,
            tokens=made.tokens,
            cut=made.cut,
            duration_s=made.duration_s,
            width=made.width,
            height=made.height,
            frames_used=made.frames_used,
            decoder=made.decoder,
            caption_ms=round(outcome.infer_s * 1000, _MILLISECONDS_DIGITS),
        )
        if (problem := made.problem) is not None:
            return replace(row, error_code=VideoErrorCode.NO_CAPTION.value, error=problem)
        return replace(
            row,
            status="partial" if made.damage else "ok",
            caption=made.text,
            caption_source="generated",
            error_code="damaged" if made.damage else None,
            error=printable(made.damage) if made.damage else None,
        )
