"""Where the epochs of a recording lie: by its events, a table of onsets, or as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memcli.eeg.epochs import EpochOptions, Skipped
from memcli.eeg.events import choose, is_boundary, is_event, matcher
from memcli.eeg.formats import is_bad
from memcli.eeg.onsets import read_onsets
from memcli.eeg.recording import Recording
from memcli.eeg.signals import Marker
from memcli.errors import RecordingError, RecordingErrorCode
from memcli.spec import EegPrep


@dataclass(frozen=True)
class Wanted:
    """An epoch to read."""

    index: int
    source: int
    """Among existing epochs; -1 in a continuous recording."""
    start: int
    """First sample, in the recording or in the existing epoch."""
    stop: int
    """Sample after the last that is there."""
    onset_s: float | None
    event: str
    flags: tuple[str, ...]
    metadata: dict[str, Any]


def wanted_epochs(
    recording: Recording, prep: EegPrep, options: EpochOptions, length: int, least: int
) -> tuple[list[Wanted], list[Skipped]]:
    """The epochs to read, of `length` samples of the recording, and those of less than `least`.

    Raises RecordingError if there is none.
    """
    if recording.opened.signal is None:
        if options.onsets is not None:
            raise RecordingError(
                RecordingErrorCode.ONSETS,
                "existing epochs have no place for other onsets",
                where=recording.path,
                next_step="Leave the table of onsets out, or name the continuous recording.",
            )
        found = _existing(recording, prep, options, length, least)
        skipped: list[Skipped] = []
    else:
        found, skipped = _continuous(recording, prep, options, length, least)
    if not found:
        raise RecordingError(
            RecordingErrorCode.TOO_SHORT,
            f"no epoch has a window of {prep.window_s:g} s"
            + (f": {skipped[0].reason}" if skipped else ""),
            where=recording.path,
            next_step=f"Needed are {prep.duration_s:g} s from {prep.start_s:g} s after an event.",
        )
    return found, skipped


def _continuous(
    recording: Recording, prep: EegPrep, options: EpochOptions, length: int, least: int
) -> tuple[list[Wanted], list[Skipped]]:
    signal, rate = recording.opened.signal, recording.sfreq_hz
    assert signal is not None
    if signal.samples < length and options.on_short == "fail":
        raise RecordingError(
            RecordingErrorCode.TOO_SHORT,
            f"{signal.samples / rate:.3g} s long, shorter than an epoch of {prep.duration_s:g} s",
            where=recording.path,
            next_step="Pad what is there with --on-short pad, or use a model of shorter epochs.",
        )
    offset = round(prep.start_s * rate)
    found: list[Wanted] = []
    skipped: list[Skipped] = []
    for index, (place, event, metadata) in enumerate(_places(recording, options)):
        start = place + offset
        stop = min(start + length, signal.samples)
        onset_s = place / rate
        if start < 0 or stop - start < least:
            left = max(0, signal.samples - start) / rate
            reason = f"the recording ends {left:.3g} s after it begins"
            if start < 0:
                reason = "begins before the recording"
            skipped.append(Skipped(index, onset_s, event, reason))
            continue
        flags = ("padded", "end-of-recording") if stop - start < length else ()
        found.append(Wanted(index, -1, start, stop, onset_s, event, flags, metadata))
    return found, skipped


def _places(recording: Recording, options: EpochOptions) -> list[tuple[int, str, dict[str, Any]]]:
    """(sample, name, metadata) of each chosen event."""
    if options.onsets is not None:
        rows = read_onsets(options.onsets, recording.path)
        test = matcher(options.event) if options.event is not None else None
        kept = [row for row in rows if test is None or test(row.event)]
        if not kept:
            names = [row.event for row in rows]
            choose(names, options.event, str(options.onsets), "Name one of those.")
        return [
            (round(row.onset_s * recording.sfreq_hz), row.event, dict(row.metadata)) for row in kept
        ]
    chosen = _chosen_markers(recording, options.event)
    return [(marker.start, marker.name, {}) for marker in chosen]


def _chosen_markers(recording: Recording, event: str | None) -> list[Marker]:
    written = [
        marker
        for marker in recording.opened.markers
        if not is_bad(marker.name) and not is_boundary(marker.name)
    ]
    test = is_event if event is None else matcher(event)
    if not any(test(marker.name) for marker in written):
        written += recording.stimuli
    names = [marker.name for marker in written]
    step = "Choose with --event REGEX or ID, or give a table of onsets (--onsets FILE)."
    places = choose(names, event, recording.path, step)
    return sorted((written[place] for place in places), key=lambda marker: marker.start)


def _existing(
    recording: Recording, prep: EegPrep, options: EpochOptions, length: int, least: int
) -> list[Wanted]:
    epochs, facts, rate = recording.opened.epochs, recording.opened.facts, recording.sfreq_hz
    assert epochs is not None
    assert facts is not None
    begin = round((prep.start_s - epochs.first_s) * rate)
    start = max(0, begin)
    stop = min(start + length, epochs.samples)
    if stop - start < least:
        raise RecordingError(
            RecordingErrorCode.TOO_SHORT,
            f"epochs from {epochs.first_s:g} to {epochs.first_s + epochs.samples / rate:g} s have "
            f"no window of {prep.window_s:g} s from {prep.start_s:g} s on",
            where=recording.path,
            next_step=f"Needed are {prep.duration_s:g} s from {prep.start_s:g} s after an event.",
        )
    if -begin >= prep.window_s * rate:
        raise RecordingError(
            RecordingErrorCode.TOO_SHORT,
            f"epochs begin {epochs.first_s:g} s after their events; the model begins at "
            f"{prep.start_s:g} s, and no window of {prep.window_s:g} s may be out of place",
            where=recording.path,
            next_step="Cut the epochs from the event on, or name the continuous recording.",
        )
    flags = ("late-start",) if begin < 0 else ()
    if stop - start < length:
        flags = (*flags, "padded")
    test = matcher(options.event) if options.event is not None else None
    places = [i for i, fact in enumerate(facts) if test is None or test(fact.event)]
    if not places:
        names = [fact.event for fact in facts]
        places = choose(names, options.event, recording.path, "Choose with --event REGEX or ID.")
    return [
        Wanted(
            place,
            place,
            start,
            stop,
            facts[place].onset_s,
            facts[place].event,
            (*flags, "bad-annotation") if facts[place].bad else flags,
            facts[place].metadata,
        )
        for place in places
    ]
