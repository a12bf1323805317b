"""From a recording to epochs: what a model takes, one epoch at a time, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memcli.spec import EegPrep

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from memcli.eeg.recording import Recording


@dataclass(frozen=True)
class EpochOptions:
    """How epochs are found in a recording and what is done about trouble."""

    event: str | None = None
    """A regular expression that is searched in the events' names, or an id ("3" is the value of
    a stimulus channel and "Stimulus/S  3"). None: the recording's only kind of event. Also
    selects among existing epochs."""
    onsets: Path | None = None
    """A table of onsets (see `memcli.eeg.onsets`); the recording's own events are then unused."""
    on_missing: Literal["fail", "interpolate"] = "fail"
    """Channels that the model takes and the recording lacks."""
    on_dead: Literal["fail", "flag"] = "fail"
    """Channels that are flat or NaN wherever they were looked at: as missing, or flagged."""
    on_bad: Literal["flag", "skip"] = "flag"
    """Epochs with a flat, clipped or NaN channel or within an annotation that begins with BAD."""
    on_short: Literal["fail", "pad"] = "fail"
    """Recordings that are shorter than an epoch. Existing epochs are always padded."""
    unit: Literal["check", "recorded", "V", "mV", "uV"] = "check"
    """"check" refuses amplitudes that no EEG has; "recorded" takes them as the file says; the
    others say what the numbers in the file are, whatever it declares."""
    montage: str | None = None
    """Name of a standard montage of MNE for interpolation. None: the recording's own positions,
    else that of the whole 10-05 system."""
    subject: str | None = None
    """Of all epochs; None: as the metadata, BIDS, the recording or its name say. Where nothing
    says it an epoch has no subject, in training as at run time: a model that knows subjects then
    takes none of them."""


@dataclass(frozen=True)
class Epoch:
    """One epoch as a graph takes it."""

    data: npt.NDArray[np.float32]
    """[channels, samples] in microvolts, after pick, resampling, filter and reference; zeros
    after the samples that are there. Not normalised: the graph does it."""
    samples: int
    """How many are there; the rest is padding."""
    index: int
    """Among the chosen events of the recording, or of existing epochs in their file; from 0."""
    onset_s: float | None
    """Of the event from the start of the recording, in seconds; None for existing epochs of a file
    that does not say."""
    event: str
    flags: tuple[str, ...] = ()
    """"padded", "end-of-recording", "late-start" (an existing epoch that begins less than a window
    later than the model's; its first sample is then taken for the model's), "bad-annotation",
    "boundary", "flat:CHANNEL", "clipped:CHANNEL", "nan:CHANNEL", "bad-channel:CHANNEL" (marked so
    in the recording), "interpolated:CHANNEL"."""
    subject: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the epochs' metadata or the table of onsets say: label, video, ..."""


@dataclass(frozen=True)
class Skipped:
    """An epoch that was left out, and why in a few words."""

    index: int
    onset_s: float | None
    event: str
    reason: str


class EpochStream(Iterator[Epoch]):
    """The epochs of a recording. Everything that can be refused is refused before the first."""

    total: int
    """Epochs that will come, or be skipped."""
    notes: tuple[str, ...]
    """What was noticed about the recording: one short sentence each."""
    skipped: list[Skipped]
    """So far."""

    def __init__(self, recording: Recording, prep: EegPrep, options: EpochOptions):
        """`read_epochs` makes it, and says what it raises."""
        from memcli.eeg.cutting import Cutter

        cutter = Cutter(recording, prep, options)
        self.total = len(cutter.wanted) + len(cutter.skipped)
        self.notes = cutter.notes
        self.skipped = cutter.skipped
        self._epochs = cutter.epochs()

    def __next__(self) -> Epoch:
        return next(self._epochs)


def read_epochs(
    recording: Recording, prep: EegPrep, options: EpochOptions | None = None
) -> EpochStream:
    """The epochs of `recording` as `prep` says, in order of time.

    Samples are resampled, filtered and re-referenced so that each epoch equals the same stretch of
    a whole recording treated so (see `Resampler`, `BandFilter`); beyond its ends a recording, and
    an existing epoch, is continued by reflection. The average reference is that of the model's
    channels. An epoch of which less than a window is there is skipped.

    Raises RecordingError if the recording does not fit (channels, rate, units, events, length),
    UsageError for options that make no sense.
    """
    return EpochStream(recording, prep, options or EpochOptions())
