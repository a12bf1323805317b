"""Which events of a recording begin epochs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from memcli.eeg.formats import is_bad
from memcli.eeg.signals import Marker, Signal
from memcli.errors import RecordingError, RecordingErrorCode, UsageError
from memcli.text import plural, printable

_TECHNICAL = ("edge boundary", "boundary", "new segment", "syncstatus", "comment")
_SCAN_SAMPLES = 1 << 18
_LISTED = 12
MOST_CHARACTERS = 200


def is_boundary(name: str) -> bool:
    """Whether an annotation marks where pieces of a recording were joined."""
    return name.lower().startswith(("edge boundary", "boundary"))


def is_event(name: str) -> bool:
    """Whether an annotation may begin an epoch: nothing bad, nothing the recorder wrote."""
    return not is_bad(name) and not name.lower().startswith(_TECHNICAL)


def stimuli(signal: Signal, channel: int, mask: int) -> list[Marker]:
    """Events of a stimulus channel: samples where its value rises, named by the value.

    As `mne.find_events` with its defaults, but read in stretches.
    """
    import numpy as np

    found: list[Marker] = []
    before = None
    for start in range(0, signal.samples, _SCAN_SAMPLES):
        stop = min(start + _SCAN_SAMPLES, signal.samples)
        values = np.nan_to_num(signal.read([channel], start, stop)[0])
        codes = np.abs(np.rint(values)).clip(0, 2**53).astype(np.int64) & mask
        previous = np.concatenate([codes[:1] if before is None else [before], codes[:-1]])
        places = np.flatnonzero(codes > previous)
        found += [Marker(start + int(i), start + int(i), str(int(codes[i]))) for i in places]
        before = int(codes[-1])
    return found


def matcher(event: str) -> Callable[[str], bool]:
    """What `EpochOptions.event` says, as a test of a name. Raises UsageError."""
    if not event:
        raise UsageError(
            "an empty name of events would match all of them",
            next_step="Name an event as --info lists them; for all: --event '.*'",
        )
    if event.isascii() and event.isdigit():
        number = int(event)

        def has_id(name: str) -> bool:
            match = re.search(r"(\d{1,18})$", name)
            return match is not None and int(match[1]) == number

        return has_id
    try:
        pattern = re.compile(event)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"{printable(event)!r} is no regular expression: {error}",
            next_step="Name an event as --info lists them; a backslash goes before ( ) [ ] * + ?",
        ) from error
    return lambda name: pattern.search(name) is not None


def choose(names: Sequence[str], event: str | None, where: str, next_step: str) -> list[int]:
    """Indices of the events that are meant.

    Raises RecordingError "no-events" if none is, or if there are several kinds and none is named;
    it lists those that exist.
    """
    kinds = Counter(name for name in names if is_event(name))
    if event is None:
        if len(kinds) == 1:
            return [index for index, name in enumerate(names) if name in kinds]
        what = "several kinds of events"
        if not kinds:
            what = "no event that is taken by default" if names else "no events"
            kinds = Counter(names)
    else:
        wanted = matcher(event)
        chosen = [index for index, name in enumerate(names) if wanted(name)]
        if chosen:
            return chosen
        what = f"no event matches {printable(event)!r}"
        kinds = kinds or Counter(names)
    raise RecordingError(
        RecordingErrorCode.NO_EVENTS,
        f"{what}; it has {listed(kinds.items())}",
        where=where,
        next_step=next_step,
    )


def shortened(name: str) -> str:
    """A name of an event or a subject for a table or a line: printable, at most 200 characters."""
    text = printable(name[: MOST_CHARACTERS + 1])
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def listed(kinds: Iterable[tuple[str, int]]) -> str:
    """ "square (80), rt (74)", most frequent first, not more than a dozen; "none"."""
    ranked = sorted(kinds, key=lambda kind: (-kind[1], kind[0]))
    shown = [f"{shortened(name)} ({count})" for name, count in ranked[:_LISTED]]
    more = len(ranked) - _LISTED
    return ", ".join(shown) + (f" and {plural(more, 'other')}" if more > 0 else "") or "none"
