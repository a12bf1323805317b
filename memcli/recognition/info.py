"""`memcli eeg --info`: what recordings hold, and whether a model fits, without scoring."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from memcli.eeg import find_recordings, open_recording, read_epochs
from memcli.errors import ExitCode, MemcliError, ModelError, RecordingError, RecordingErrorCode
from memcli.progress import say
from memcli.recognition.recogniser import in_one_line
from memcli.recognition.rows import DEMONSTRATION
from memcli.recognition.settings import (
    EegSettings,
    check_options,
    check_reading,
    eeg_prep,
    open_bundle,
)
from memcli.text import plural, printable

if TYPE_CHECKING:
    from memcli.eeg import RecordingInfo, RecordingSource
    from memcli.engines.bundle import Bundle

_LISTED_EVENTS = 20
_LISTED_CHANNELS = 80


@dataclass(frozen=True)
class Fit:
    """Whether a model takes a recording."""

    model: str
    fits: bool | None
    """None: the model is not here, so nobody knows."""
    reason: str
    epochs: int | None = None
    """That would be scored."""
    note: str | None = None
    """What to know about all probabilities of the model."""


def show_recordings(
    paths: Sequence[str | os.PathLike[str]], settings: EegSettings, *, as_json: bool
) -> ExitCode:
    """Print what each recording holds; as JSON, one object a line.

    SOME_INPUTS_FAILED if one cannot be opened; a model that does not fit is no failure. Raises
    UsageError for paths that name nothing, and for a model of videos.
    """
    check_reading()
    sources = find_recordings(paths)
    notes = check_options(settings, [source.path for source in sources])
    bundle, missing = _bundle(settings)
    failed = False
    for note in notes:
        say(note)
    for number, source in enumerate(sources):
        try:
            info, fit = _look(source, settings, bundle, missing)
        except RecordingError as error:
            failed = True
            lines = [f"{source.path}: {in_one_line(error, source.path)}"]
            entry: dict[str, Any] = {
                "path": source.path,
                "error_code": error.code.value,
                "error": in_one_line(error, source.path),
            }
        else:
            lines = list(_lines(info, fit))
            entry = {**asdict(info), "model": asdict(fit)}
        if as_json:
            print(json.dumps(entry))
        else:
            separator = "\n" if number else ""
            print(separator + "\n".join(map(printable, lines)))
    return ExitCode.SOME_INPUTS_FAILED if failed else ExitCode.OK


def _bundle(settings: EegSettings) -> tuple[Bundle | None, str]:
    """The model if it is here, and why not if it is not."""
    try:
        return open_bundle(settings), ""
    except ModelError as error:
        return None, error.what


def _look(
    source: RecordingSource, settings: EegSettings, bundle: Bundle | None, missing: str
) -> tuple[RecordingInfo, Fit]:
    if source.error is not None:
        raise RecordingError(*source.error)
    try:
        with open_recording(
            source.path, sfreq_hz=settings.sfreq_hz, channels=settings.channels
        ) as recording:
            info = recording.info
            if bundle is None:
                return info, Fit(settings.model, None, missing)
            note = DEMONSTRATION if bundle.training.get("demonstration") else None
            try:
                epochs = read_epochs(recording, eeg_prep(bundle.spec), settings.options)
            except RecordingError as error:
                reason = in_one_line(error, source.path)
                return info, Fit(bundle.model, False, reason, note=note)
            found = plural(epochs.total, "epoch")
            return info, Fit(bundle.model, True, found, epochs.total, note)
    except MemcliError:
        raise
    except Exception as error:  # one bad file never stops a folder
        what = f"unexpected {type(error).__name__}: {error}"
        raise RecordingError(RecordingErrorCode.READ, what) from error


def _lines(info: RecordingInfo, fit: Fit) -> Iterator[str]:
    yield info.path
    yield f"  format     {info.format}"
    if info.epoched:
        yield f"  length     {plural(info.n_epochs, 'epoch')} of {info.duration_s:g} s"
    else:
        yield f"  length     {info.duration_s:.1f} s"
    yield f"  rate       {info.sfreq_hz:g} Hz"
    if info.subject is not None:
        yield f"  subject    {info.subject}"
    kinds = Counter(channel.kind for channel in info.channels)
    yield f"  channels   {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
    shown = info.eeg[:_LISTED_CHANNELS]
    more = f" ... and {len(info.eeg) - len(shown)} more" if len(info.eeg) > len(shown) else ""
    yield f"  EEG        {' '.join(shown)}{more}"
    yield f"  positions  {'of the recording' if info.has_positions else 'none in the file'}"
    events = info.events[:_LISTED_EVENTS]
    yield f"  events     {plural(sum(count for _, count in info.events), 'event')}"
    for name, count in events:
        yield f"    {count:>6}  {name}"
    if len(info.events) > len(events):
        yield f"    and {len(info.events) - len(events)} more kinds"
    if info.not_taken:
        yield "  not taken by default (name them with --event)"
        for name, count in info.not_taken[:_LISTED_EVENTS]:
            yield f"    {count:>6}  {name}"
        if (more_kinds := len(info.not_taken) - _LISTED_EVENTS) > 0:
            yield f"    and {more_kinds} more kinds"
    for note in info.notes:
        yield f"  note       {note}"
    verdict = {True: "fits", False: "does not fit", None: "not checked"}[fit.fits]
    yield f"  model      {fit.model} {verdict}: {fit.reason}"
    if fit.note:
        yield f"  note       {fit.note}"
