"""A run of `memcli score`: from paths to a finished table, through the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from memcli.errors import MemcliError, OutputError
from memcli.inputs import Source, Sources, collect
from memcli.journal import Journal, RowJournal, check_place
from memcli.opening import open_scorer
from memcli.results import Row, output_format, write_table
from memcli.summary import RunSummary
from memcli.text import plural

if TYPE_CHECKING:
    from memcli.scoring import Scorer, ScoreSettings

_LISTED_NAMES = 3


@dataclass(frozen=True)
class TableOptions:
    """Where rows go and which videos are taken."""

    output: Path
    resume: bool = True
    retry_failed: bool = False
    on_error: Literal["skip", "fail"] = "skip"
    shard: tuple[int, int] | None = None


@dataclass(kw_only=True)
class Summary(RunSummary):
    """A run of `memcli score`."""

    model: str
    bundle: str
    engine: str
    reason: str
    """Why this engine."""
    decoder: str
    decoder_reason: str
    """Why this decoder."""
    weights_license: str
    license_note: str
    left_out: int
    videos_per_s: float = 0.0
    """Scored ones; failures are quick and would flatter."""
    frames_per_s: float = 0.0
    decode_busy_s: float = 0.0
    workers: int = 0
    engine_busy_s: float = 0.0
    bottleneck: str | None = None
    decoded_by: dict[str, int] = field(default_factory=dict)
    """Videos of this run by what decoded them: `cpu`, `nvdec`, `nvdec+gpu-resize`."""
    captioner: str | None = None
    """What makes captions; None: nothing does, or the model reads none."""
    caption_sources: dict[str, int] = field(default_factory=dict)
    """Videos of this run by where their captions are from."""
    caption_notes: int = 0
    """Videos of this run with files beside them that are not used."""
    captioner_busy_s: float = 0.0
    captions_cut: int = 0
    """Captions that were longer than the model takes."""

    def count(self, row: Row) -> None:
        """Take one row into the figures."""
        self.count_video(row.status, row.path, row.error)
        if row.decoder is not None:
            self.decoded_by[row.decoder] = self.decoded_by.get(row.decoder, 0) + 1
        self.caption_notes += row.caption_note is not None
        if (source := row.caption_source) is not None:
            self.caption_sources[source] = self.caption_sources.get(source, 0) + 1


T = TypeVar("T", contravariant=True)
S = TypeVar("S", bound=RunSummary, contravariant=True)


class Progress(Protocol[T, S]):
    """Who watches a run of rows T with a summary S."""

    def message(self, text: str) -> None:
        """Something worth saying, e.g. that a model is being fetched."""
        ...

    def begin(self, summary: S) -> None: ...

    def advance(self, row: T, summary: S) -> None: ...

    def end(self) -> None:
        """The run is over, however it ended; called once."""
        ...


def score_to_table(
    paths: Sequence[str | os.PathLike[str]],
    settings: ScoreSettings,
    options: TableOptions,
    progress: Progress[Row, Summary],
) -> Summary:
    """Score `paths` into a table and say what was done.

    Rows are in the journal as soon as they are finished. The table is written at the end of the
    run, also when it is interrupted or stopped by `on_error`. Raises UsageError, ModelError,
    EngineError, DeviceError; OutputError when the disk is full, the journal being whole.
    """
    output_format(options.output)
    check_place(options.output, resume=options.resume)  # before a model is fetched or opened
    sources = collect(paths, options.shard)
    if options.shard is None:  # the others of a shard's captions belong to other shards
        _tell_of_captions(settings, sources, progress)
    with (
        open_scorer(
            settings,
            progress.message,
            [source.path for source in sources.items],
            whole=options.shard is None,
        ) as scorer,
        Journal.open(options.output, scorer.identity(), resume=options.resume) as journal,
    ):
        journal.check_captioner(None if scorer.maker is None else scorer.maker.label)
        pending: list[Source] = []
        kept: list[Source] = []
        for source in sources.items:
            finished = journal.finished(source.key, retry_failed=options.retry_failed)
            (kept if finished else pending).append(source)
        failed = sum(journal.failed(source.key) for source in kept)
        scorer.choose_decoder(lambda: [source.path for source in pending])
        summary = _new_summary(scorer, options, sources, len(kept), failed)
        keep_rows(
            journal,
            summary,
            progress,
            run=lambda: _run(scorer, pending, journal, options, summary, progress),
            finish=lambda: write_table(options.output, journal.rows(), curve=settings.curve),
        )
    return summary


def keep_rows(
    journal: RowJournal[Any],
    summary: S,
    progress: Progress[Any, S],
    *,
    run: Callable[[], None],
    finish: Callable[[], None],
) -> None:
    """`run`, which fills the journal, then `finish`, which makes a table of it.

    The table is made, too, if the run is interrupted or ended by an error; not if it ended because
    the disk takes no more.
    """
    progress.begin(summary)
    try:
        run()
    except KeyboardInterrupt:
        summary.interrupted = True
        journal.load()  # it may have come between writing a row and remembering it
    except OutputError:
        raise
    except MemcliError:
        journal.sync()
        finish()
        raise
    finally:
        progress.end()
    journal.sync()
    finish()


def _tell_of_captions(
    settings: ScoreSettings, sources: Sources, progress: Progress[Row, Summary]
) -> None:
    """Say once what of a file of captions is not used."""
    from memcli.captions import Captions

    captions = settings.captions
    if not isinstance(captions, Captions):
        return
    if captions.empty:
        progress.message(f"{plural(captions.empty, 'empty caption')} ignored in {captions.name}")
    if settings.caption_mode == "require":
        return  # which tells of them if there are any
    unused = captions.unused(source.path for source in sources.items)
    if unused and len(unused) < len(captions.entries):  # all of them are an error that follows
        first = ", ".join(unused[:_LISTED_NAMES]) + (", ..." if len(unused) > _LISTED_NAMES else "")
        names = plural(len(unused), "name")
        progress.message(f"{names} in {captions.name} fit no video of this run: {first}")


def _run(
    scorer: Scorer,
    pending: list[Source],
    journal: Journal,
    options: TableOptions,
    summary: Summary,
    progress: Progress[Row, Summary],
) -> None:
    started = time.monotonic()
    with closing(_rows(scorer, pending, journal)) as rows:
        for row in rows:
            summary.count(row)
            _measure(summary, scorer, time.monotonic() - started)
            progress.advance(row, summary)
            if row.status == "failed" and options.on_error == "fail":
                return


def _rows(scorer: Scorer, pending: list[Source], journal: Journal) -> Generator[Row, None, None]:
    with closing(scorer.score(pending)) as outcomes:
        for source, identity, row in outcomes:
            journal.write(source.key, identity, row)
            yield row


def _measure(summary: Summary, scorer: Scorer, elapsed_s: float) -> None:
    stats = scorer.stats
    scored = summary.ok + summary.partial
    summary.elapsed_s = elapsed_s
    summary.videos_per_s = scored / elapsed_s if elapsed_s else 0.0
    summary.frames_per_s = scored * scorer.frames / elapsed_s if elapsed_s else 0.0
    summary.decode_busy_s = stats.decode_busy_s
    summary.engine_busy_s = stats.engine_busy_s
    summary.captioner_busy_s = stats.stage_busy_s
    summary.bottleneck = stats.bottleneck
    summary.captions_cut = scorer.captions_cut


def _new_summary(
    scorer: Scorer, options: TableOptions, sources: Sources, resumed: int, resumed_failed: int
) -> Summary:
    return Summary(
        output=str(options.output),
        model=scorer.bundle.model,
        bundle=scorer.bundle.label(scorer.selection.variant),
        engine=str(scorer.description),
        reason=scorer.selection.reason,
        decoder=scorer.decoding.name,
        decoder_reason=scorer.decoding.reason,
        weights_license=scorer.bundle.license,
        license_note=scorer.bundle.spec.license_note,
        total=len(sources.items),
        resumed=resumed,
        resumed_failed=resumed_failed,
        left_out=sources.left_out,
        workers=scorer.workers,
        captioner=None if scorer.maker is None else str(scorer.maker),
    )
