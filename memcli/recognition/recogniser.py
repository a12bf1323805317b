"""Scores the epochs of recordings with an opened model."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memcli.closing import Closeable
from memcli.eeg import open_recording, read_epochs
from memcli.eeg.events import shortened
from memcli.engines.loading import usable_cpus
from memcli.engines.verify import CONTRIBUTIONS, EEG, SAMPLES, SCORE, SUBJECT
from memcli.errors import RecordingError
from memcli.journal import FileIdentity
from memcli.pipeline import Stats
from memcli.recognition.journal import identity_of
from memcli.recognition.rows import DEMONSTRATION, EpochRow, label_of
from memcli.recognition.settings import EegSettings, eeg_prep
from memcli.recognition.stages import Ended, Scored, Stages
from memcli.text import printable

if TYPE_CHECKING:
    from memcli.eeg import Epoch, RecordingSource
    from memcli.engines.base import Array, EngineDescription
    from memcli.engines.bundle import Bundle
    from memcli.engines.select import Selection

NOT_FINITE = "not-finite"
"""Error code of an epoch that the engine gave no number for."""
_BATCH = 16
"""Epochs are small: a batch costs little memory on any device."""
_MOST_READERS = 4
_QUEUE_BYTES = 64 << 20
_PROBABILITY_DIGITS = 6
_SECONDS_DIGITS = 3
_MILLISECONDS_DIGITS = 1
_MOST_CHARACTERS = 20_000
"""Of flags and errors: readers of CSV take no cell of more than 131,072."""

Done = Callable[[str, "FileIdentity | None"], "frozenset[int]"]


@dataclass
class Reading:
    """A recording under way. Its file is looked at by a reader: a dead network mount may hang."""

    source: RecordingSource
    identity: FileIdentity | None = None
    notes: tuple[str, ...] = ()
    """What was noticed about the recording."""
    skipped: int = 0
    """Epochs left out so far."""


class Recogniser(Closeable):
    """An opened model. Use as a context manager, or call `close`."""

    def __init__(self, settings: EegSettings, bundle: Bundle, selection: Selection):
        self.settings = settings
        self.bundle = bundle
        self.selection = selection
        self.prep = eeg_prep(bundle.spec)
        self.description: EngineDescription = selection.engine.describe()
        self.note = DEMONSTRATION if bundle.training.get("demonstration") else None
        self.batch_size = settings.batch_size or _BATCH
        self.readers = settings.readers or min(_MOST_READERS, max(1, usable_cpus() // 2))
        self.stats = Stats(workers=self.readers)
        self._subjects = {name: place for place, name in enumerate(self.prep.subjects, start=1)}

    def close(self) -> None:
        """Release the engine."""
        self.selection.engine.close()

    def identity(self) -> dict[str, Any]:
        """What all rows of one table must have in common."""
        return {
            "model": self.bundle.model,
            "bundle": self.bundle.label(self.selection.variant),
            "precision": self.description.precision,
            **self.settings.identity(),
        }

    def recognise(
        self, sources: Iterable[RecordingSource], done: Done = lambda _key, _identity: frozenset()
    ) -> Generator[tuple[Reading, EpochRow | None], None, None]:
        """Rows as they are finished: of epochs, of recordings that failed, and None after the last
        epoch of a recording that did not. Closing the iterator ends the run.

        `done` says which epochs of a recording need no scoring. Raises EngineError if the engine
        fails, UsageError for options that fit no recording; rows given until then are valid.
        """
        channels, samples = self.prep.epoch_shape()
        room = _QUEUE_BYTES // (4 * channels * samples)
        stages: Stages[Reading, tuple[Reading, Epoch], EpochRow] = Stages(
            lambda reading: self._read(reading, done),
            self._infer,
            readers=self.readers,
            queue_size=min(room, 2 * (self.batch_size + self.readers)),
            batch_size=self.batch_size,
        )
        self.stats = stages.stats
        with closing(stages.run(map(Reading, sources))) as events:
            for event in events:
                if isinstance(event, Ended):
                    yield event.source, self._failure(event)
                else:
                    yield event.source, self._timed(event)

    def _read(self, reading: Reading, done: Done) -> Generator[tuple[Reading, Epoch], None, None]:
        source = reading.source
        if source.error is not None:
            raise RecordingError(*source.error)
        reading.identity = identity_of(source.path)
        known = done(source.key, reading.identity)
        with open_recording(
            source.path, sfreq_hz=self.settings.sfreq_hz, channels=self.settings.channels
        ) as recording:
            epochs = read_epochs(recording, self.prep, self.settings.options)
            reading.notes = epochs.notes
            for epoch in epochs:
                reading.skipped = len(epochs.skipped)
                if epoch.index not in known:
                    yield reading, epoch
            reading.skipped = len(epochs.skipped)

    def _infer(self, batch: Sequence[tuple[Reading, Epoch]]) -> list[EpochRow]:
        outputs = self.selection.engine.run(self._feeds([epoch for _, epoch in batch]))
        return [
            self._scored(reading, epoch, float(score), [float(one) for one in parts])
            for (reading, epoch), score, parts in zip(
                batch, outputs[SCORE], outputs[CONTRIBUTIONS], strict=True
            )
        ]

    def _feeds(self, epochs: Sequence[Epoch]) -> dict[str, Array]:
        import numpy as np

        feeds: dict[str, Array] = {
            EEG: np.stack([epoch.data for epoch in epochs]),
            SAMPLES: np.array([epoch.samples for epoch in epochs], np.int64),
        }
        if self._subjects:
            places = [self._subjects.get(epoch.subject or "", 0) for epoch in epochs]
            feeds[SUBJECT] = np.array(places, np.int64)
        return feeds

    def _scored(
        self, reading: Reading, epoch: Epoch, score: float, contributions: list[float]
    ) -> EpochRow:
        row = replace(
            self._blank(reading.source.path),
            subject=_text(epoch.subject),
            epoch=epoch.index,
            onset_s=None if epoch.onset_s is None else round(epoch.onset_s, _SECONDS_DIGITS),
            event=_text(epoch.event),
            flags="; ".join(map(printable, epoch.flags))[:_MOST_CHARACTERS] or None,
            label=label_of(epoch.metadata),
        )
        if not all(map(math.isfinite, (score, *contributions))):
            return replace(
                row,
                error_code=NOT_FINITE,
                error=f"{self.description} gave no finite probability",
            )
        return replace(
            row,
            status="ok",
            probability=(probability := round(score, _PROBABILITY_DIGITS)),
            recognised=probability >= self.settings.threshold,  # as whoever reads the table finds
            contributions=[round(one, _PROBABILITY_DIGITS) for one in contributions],
        )

    def _blank(self, path: str) -> EpochRow:
        """A row that says no more than what would have scored."""
        return EpochRow(
            path=path,
            subject=None,
            epoch=None,
            onset_s=None,
            event=None,
            status="failed",
            probability=None,
            recognised=None,
            flags=None,
            label=None,
            model=self.bundle.model,
            bundle=self.bundle.label(self.selection.variant),
            engine=f"{self.description.engine} {self.description.version}",
            device=self.description.device,
            precision=self.description.precision,
            note=self.note,
        )

    def _timed(self, event: Scored[Reading, EpochRow]) -> EpochRow:
        return replace(
            event.result,
            read_ms=round(event.read_s * 1000, _MILLISECONDS_DIGITS),
            infer_ms=round(event.infer_s * 1000, _MILLISECONDS_DIGITS),
        )

    def _failure(self, event: Ended[Reading]) -> EpochRow | None:
        if event.error is None:
            return None
        error = event.error
        source = event.source.source
        return replace(
            self._blank(source.path),
            subject=_text(self.settings.options.subject or source.subject),
            error_code=error.code.value,
            error=printable(in_one_line(error, source.path))[:_MOST_CHARACTERS],
            read_ms=round(event.read_s * 1000, _MILLISECONDS_DIGITS),
        )


def in_one_line(error: RecordingError, path: str) -> str:
    """What is wrong and what to do; where, if that is not the recording at `path`."""
    where = f"{error.where}: " if error.where not in (None, path) else ""
    next_step = f" {' '.join(error.next_step.split())}" if error.next_step else ""
    stop = "" if not next_step or error.what.endswith((".", "!", "?")) else "."
    return f"{where}{error.what}{stop}{next_step}"


def _text(value: str | None) -> str | None:
    return None if value is None else shortened(value)
