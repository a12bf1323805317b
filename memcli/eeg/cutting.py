"""Cuts epochs out of a recording, as `memcli.eeg.epochs` promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memcli.eeg.blocks import Blocks
from memcli.eeg.channels import ChannelPlan, plan_channels
from memcli.eeg.epochs import Epoch, EpochOptions, Skipped
from memcli.eeg.events import is_boundary
from memcli.eeg.filters import BandFilter
from memcli.eeg.formats import is_bad
from memcli.eeg.probe import Probe, probe
from memcli.eeg.quality import clipped, flat, without_nan
from memcli.eeg.recording import Recording
from memcli.eeg.resample import Resampler
from memcli.eeg.wanted import Wanted, wanted_epochs
from memcli.errors import RecordingError, RecordingErrorCode
from memcli.spec import EegPrep
from memcli.text import plural

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_BAD = ("bad-annotation", "flat:", "clipped:", "nan:")
"""Beginnings of the flags of bad epochs."""


@dataclass(frozen=True)
class _Held:
    """An existing epoch as a signal of its own."""

    data: Any

    @property
    def samples(self) -> int:
        return int(self.data.shape[1])

    def read(self, picks: Sequence[int], start: int, stop: int) -> Any:
        """What was read before, by samples alone."""
        return self.data[:, start:stop]


class Cutter:
    """Plans all that can be planned, then gives the epochs."""

    def __init__(self, recording: Recording, prep: EegPrep, options: EpochOptions):
        """Raises RecordingError and UsageError, see `read_epochs`."""
        self._recording = recording
        self._prep = prep
        self._options = options
        rate = recording.sfreq_hz
        if rate < prep.sfreq_hz * (1 - 1e-6):
            raise RecordingError(
                RecordingErrorCode.RATE,
                f"sampled at {rate:g} Hz; the model needs at least {prep.sfreq_hz:g} Hz",
                where=recording.path,
                next_step="Use the recording before it was downsampled, or a model of this rate.",
            )
        self._resample = Resampler(rate, prep.sfreq_hz)
        self._band = BandFilter(prep)
        up, down = self._resample.up, self._resample.down
        length = -(-prep.samples * down // up)
        least = -(-(prep.window_samples - 1) * down // up) + 1
        plan = plan_channels(recording, prep.channels, options.on_missing, options.montage)
        self.wanted, self.skipped = wanted_epochs(recording, prep, options, length, least)
        seen = probe(recording, plan, self.wanted, options)
        dead: frozenset[int] = frozenset()
        while new := self._to_avoid(plan, seen) - dead:  # another plan may read other channels
            dead |= new
            plan = plan_channels(
                recording, prep.channels, options.on_missing, options.montage, dead
            )
            seen = probe(recording, plan, self.wanted, options)
        self._plan: ChannelPlan = plan
        self._seen: Probe = seen
        # Outputs before the epoch that the filter needs, as a whole number of input samples.
        self._lead = -(-self._band.margin // up) * up
        self._outputs = self._lead + prep.samples + self._band.margin
        self._spoiled = [m for m in recording.opened.markers if is_bad(m.name)]
        self._joints = [m for m in recording.opened.markers if is_boundary(m.name)]
        self._always = (
            *(f"interpolated:{prep.channels[place]}" for place in plan.missing),
            *(f"bad-channel:{name}" for name in prep.channels if name in plan.bads),
        )
        self.notes = (*recording.opened.notes, *seen.notes, *self._remarks())

    def _to_avoid(self, plan: ChannelPlan, seen: Probe) -> frozenset[int]:
        """Channels without signal that are not to be read: with "flag" the model's stay."""
        own = plan.picks[: len(plan.present)] if self._options.on_dead == "flag" else ()
        return seen.dead.difference(own)

    def _remarks(self) -> Iterator[str]:
        if self._plan.missing:
            names = ", ".join(self._prep.channels[place] for place in self._plan.missing)
            yield f"interpolated: {names}"
        if late := sum("end-of-recording" in one.flags for one in self.wanted):
            yield f"{plural(late, 'epoch')} padded: beyond the recording's end"
        if self.skipped:
            yield f"{plural(len(self.skipped), 'event')} without a window: skipped"

    def epochs(self) -> Iterator[Epoch]:
        """All that are wanted and not skipped."""
        for one, data, offset in self._stretches():
            epoch = self._epoch(one, data, offset)
            bad = [flag for flag in epoch.flags if flag.startswith(_BAD)]
            if bad and self._options.on_bad == "skip":
                self.skipped.append(Skipped(one.index, one.onset_s, one.event, ", ".join(bad)))
            else:
                yield epoch

    def _span(self, start: int) -> tuple[int, int]:
        """First sample that an epoch at `start` needs, and the one after the last."""
        first = start - self._lead * self._resample.down // self._resample.up
        first -= self._resample.margin
        return first, first + self._resample.input_length(self._outputs)

    def _stretches(self) -> Iterator[tuple[Wanted, Floats, int]]:
        """(epoch, volts [picks, n] with margins, place of the epoch's first sample)."""
        opened = self._recording.opened
        spans = [self._span(one.start) for one in self.wanted]
        blocks = Blocks(opened.signal, self._plan.picks, spans) if opened.signal else None
        for one, (first, last) in zip(self.wanted, spans, strict=True):
            source = blocks
            if source is None:
                assert opened.epochs is not None
                held = _Held(opened.epochs.read(self._plan.picks, one.source))
                source = Blocks(held, range(len(self._plan.picks)), [(first, last)])
            yield one, source.get(first, last), one.start - first

    def _epoch(self, one: Wanted, data: Floats, offset: int) -> Epoch:
        import numpy as np

        prep, there = self._prep, one.stop - one.start
        if self._seen.scale is not None:
            data = data * self._seen.scale[list(self._plan.picks)][:, None]
        data, nan = without_nan(data)
        here = slice(offset, offset + there)
        flags = [*one.flags, *self._always, *self._annotated(one)]
        flags += self._faults(data[:, here], None if nan is None else nan[:, here])
        signal = self._resampled(self._plan(data), offset)
        signal = self._band(signal[:, self._lead - self._band.margin :])
        if prep.reference == "average":
            signal = signal - signal.mean(axis=0)
        samples = min(prep.samples, self._resample.output_length(there))
        epoch = np.zeros((len(prep.channels), prep.samples), np.float32)
        np.multiply(signal[:, :samples], 1e6, out=epoch[:, :samples], casting="same_kind")
        return Epoch(
            epoch,
            samples,
            one.index,
            one.onset_s,
            one.event,
            tuple(dict.fromkeys(flags)),
            self._subject(one),
            one.metadata,
        )

    def _resampled(self, data: Floats, offset: int) -> Floats:
        """Resampled without the channels' offsets, which come back afterwards.

        The polyphase filter's gain at 0 Hz differs a little from one output to the next: of an
        offset of 20 mV, as of amplifiers without a high-pass, it would make a wave of 2 uV, and
        this alone would be what the z-score shows of a flat channel. The offset is the epoch's
        first sample, so that a channel that does not move stays as it is.
        """
        level = data[:, offset : offset + 1]
        return self._resample(data - level, self._outputs) + level

    def _faults(self, data: Floats, nan: Any) -> Iterator[str]:
        """Flags of the model's channels by volts [picks, n] of the epoch itself."""
        import numpy as np

        names = [self._prep.channels[place] for place in self._plan.present]
        data = data[: len(names)]
        empty = np.zeros(len(names), bool) if nan is None else nan[: len(names)].all(axis=1)
        lost = [] if nan is None else nan[: len(names)].any(axis=1)
        for word, found in (
            ("nan", lost),
            # Without any number a channel is not flat as well: 0 only stands in for it.
            ("flat", flat(data, self._seen.flat_below) & ~empty),
            ("clipped", clipped(data, self._recording.sfreq_hz)),
        ):
            yield from (f"{word}:{name}" for name, is_so in zip(names, found) if is_so)  # noqa: B905

    def _annotated(self, one: Wanted) -> Iterator[str]:
        if one.source >= 0:
            return  # samples of an existing epoch are not the recording's
        if any(m.start < one.stop and max(m.stop, m.start + 1) > one.start for m in self._spoiled):
            yield "bad-annotation"
        if any(one.start < m.start < one.stop for m in self._joints):
            yield "boundary"

    def _subject(self, one: Wanted) -> str | None:
        said = one.metadata.get("subject")
        told = self._recording.subject if said in (None, "") else str(said)
        return self._options.subject or told
