"""A recording of EEG, open but not loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from memcli.closing import Closeable
from memcli.eeg.bids import subject_of
from memcli.eeg.events import is_boundary, is_event, stimuli
from memcli.eeg.formats import Opened, is_bad, open_file
from memcli.eeg.names import Kind, harmonised, kind_of
from memcli.eeg.signals import Marker
from memcli.errors import RecordingError, RecordingErrorCode

_MEG = ("mag", "grad", "ref_meg")
"""MNE's types of what is told as misc otherwise."""


@dataclass(frozen=True)
class Channel:
    """A channel of a recording."""

    name: str
    """Harmonised: "T7" for "EEG T3-REF"."""
    original: str
    """As the file says."""
    kind: Kind
    """By the reader's type and by the name: "EOG1" is no EEG, whatever the file says."""
    unit: str
    """That the file declares: "uV", "V", ...; "" if none."""


@dataclass(frozen=True)
class RecordingInfo:
    """What a recording says about itself."""

    path: str
    format: str
    sfreq_hz: float
    duration_s: float
    """Of the recording; of one epoch, of existing epochs."""
    channels: tuple[Channel, ...]
    events: tuple[tuple[str, int], ...]
    """Names and counts, most frequent first: annotations that may begin epochs, or the values of
    the stimulus channels if there is none; existing epochs by their events."""
    has_positions: bool
    """Whether the file places its EEG channels on the head."""
    subject: str | None
    epoched: bool
    n_epochs: int
    """Of existing epochs; 0 for a continuous recording."""
    notes: tuple[str, ...] = ()
    """What the reader had to say: one short sentence each."""

    not_taken: tuple[tuple[str, int], ...] = ()
    """Names and counts of annotations that begin epochs only where they are named: comments and
    what else recorders write."""

    @property
    def eeg(self) -> tuple[str, ...]:
        """Harmonised names of the EEG channels, in the file's order."""
        return tuple(channel.name for channel in self.channels if channel.kind == "eeg")


class Recording(Closeable):
    """Open for reading; a context manager. `read_epochs` takes it."""

    def __init__(self, path: str, opened: Opened):
        """`open_recording` makes it."""
        self.path = path
        self.opened = opened
        self.sfreq_hz = opened.sfreq_hz
        self.channels = tuple(
            Channel(harmonised(name), name, _kind(name, type_), unit)
            for name, type_, unit in zip(opened.names, opened.types, opened.units, strict=True)
        )

    @property
    def subject(self) -> str | None:
        """As the name or the folders say ("sub-01"), else as the file does."""
        return subject_of(self.path) or self.opened.subject

    @cached_property
    def stimuli(self) -> tuple[Marker, ...]:
        """Events of the stimulus channels; reads them through on first use."""
        opened = self.opened
        if opened.signal is None:
            return ()
        places = [index for index, one in enumerate(self.channels) if one.kind == "stim"]
        found = [
            marker for place in places for marker in stimuli(opened.signal, place, opened.mask)
        ]
        return tuple(sorted(found, key=lambda marker: marker.start))

    @cached_property
    def info(self) -> RecordingInfo:
        """What the recording says about itself."""
        opened = self.opened
        if opened.signal is not None:
            samples, count = opened.signal.samples, 0
            names = [marker.name for marker in opened.markers if is_event(marker.name)]
            names = names or [marker.name for marker in self.stimuli]
            others = [
                one.name
                for one in opened.markers
                if not (is_event(one.name) or is_bad(one.name) or is_boundary(one.name))
            ]
        else:
            assert opened.epochs is not None
            samples, count = opened.epochs.samples, opened.epochs.count
            names, others = [fact.event for fact in opened.facts or ()], []
        return RecordingInfo(
            path=self.path,
            format=opened.format,
            sfreq_hz=self.sfreq_hz,
            duration_s=samples / self.sfreq_hz,
            channels=self.channels,
            events=_ranked(names),
            has_positions=self._has_positions(),
            subject=self.subject,
            epoched=opened.signal is None,
            n_epochs=count,
            notes=opened.notes,
            not_taken=_ranked(others),
        )

    def _has_positions(self) -> bool:
        import numpy as np

        eeg = [index for index, one in enumerate(self.channels) if one.kind == "eeg"]
        places = self.opened.positions
        return bool(places is not None and eeg and np.isfinite(places[eeg]).all())

    def close(self) -> None:
        """Let go of the file."""
        self.opened.close()


def _ranked(names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Names and counts, most frequent first."""
    return tuple(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def open_recording(
    path: str | Path,
    *,
    sfreq_hz: float | None = None,
    channels: Sequence[str] | None = None,
) -> Recording:
    """Open a recording or a file of epochs without loading it.

    Loaded all the same are EEGLAB files that hold their data themselves and EEGLAB epochs: MNE
    reads them no other way. `sfreq_hz` and `channels` are for .npy and .npz files that do not
    say. Raises RecordingError: what was found, and what is needed.
    """
    recording = Recording(str(path), open_file(str(path), sfreq_hz, channels))
    if not any(channel.kind == "eeg" for channel in recording.channels):
        recording.close()
        kinds = Counter(
            "MEG" if type_ in _MEG else channel.kind
            for channel, type_ in zip(recording.channels, recording.opened.types, strict=True)
        )
        held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
        raise RecordingError(
            RecordingErrorCode.NO_EEG,
            f"no EEG channel (channels: {held})",
            where=str(path),
            next_step="Channels are EEG by the type that the file or BIDS's channels.tsv gives.",
        )
    return recording


def _kind(name: str, type_: str) -> Kind:
    """By the reader's type; a name that says that it is no EEG goes before the type EEG."""
    by_name = kind_of(name)
    if type_ == "eeg":
        return by_name or "eeg"
    kinds: dict[str, Kind] = {"eog": "eog", "ecg": "ecg", "emg": "emg", "stim": "stim"}
    return kinds.get(type_) or (by_name if by_name not in (None, "stim") else "misc") or "misc"
