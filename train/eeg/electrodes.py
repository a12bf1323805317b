"""Which channels a training takes where nobody names them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median

from memcli.eeg.channels import default_montage
from memcli.eeg.names import key
from memcli.eeg.quiet import quiet
from memcli.text import plural, printable
from memcli.train.datasets.types import DatasetError

_MORE = (
    *("CB1", "CB2", "Nz", "T1", "T2", "F11", "F12", "FT11", "FT12", "TP11", "TP12"),
    *("P11", "P12"),
)
"""Electrodes of usual caps that the montage has no places for."""
_LISTED = 20
_LEAST_SHARE = 0.25
"""Of the channels that half of the recordings have."""


def default_channels(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The channels to take of those that a recording calls EEG, and the names of no electrodes.

    A channel that tells the label (a trigger, a button) may be called EEG by its file and have any
    name. Where more than half of the names are of the 10-05 system, the others are not taken; where
    the names are of another system (E1 to E128, derivations), all are.
    """
    known = _electrodes()
    strange = tuple(name for name in names if key(name) not in known)
    if 2 * len(strange) < len(names):
        return tuple(name for name in names if key(name) in known), strange
    return tuple(names), strange


def channels_note(taken: Sequence[str], strange: Sequence[str]) -> str:
    """What there is to say about `default_channels`; "" if nothing."""
    if not strange:
        return ""
    shown = _shown(strange)
    count = plural(len(strange), "channel")
    if set(strange) <= set(taken):
        return (
            f"{count} taken that are no electrodes by name: {shown}; if one is no EEG, name those"
            " to train on (--channels A,B,C)"
        )
    return f"{count} left out, no electrodes by name: {shown}; --channels A,B,C takes what it names"


def common_channels(
    recordings: Sequence[tuple[Path, Sequence[str]]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of recordings and their EEG channels (at least one): those to take, and what to say of it.

    Taken are the channels of `default_channels` that all recordings have, in the order of the
    first. Raises DatasetError if they are fewer than a quarter of what half of the recordings have
    at least: then one that is unlike the others would decide.
    """
    held: list[tuple[Path, tuple[str, ...]]] = []
    refused: dict[str, None] = {}
    kept: dict[str, None] = {}
    for path, names in recordings:
        taken, strange = default_channels(names)
        held.append((path, taken))
        for name in strange:
            (kept if name in taken else refused)[name] = None
    spelled = {key(name): name for _, names in held for name in reversed(names)}
    everywhere = set(spelled).intersection(*({key(name) for name in names} for _, names in held))
    common = tuple(name for name in held[0][1] if key(name) in everywhere)
    rare = [name for one, name in spelled.items() if one not in everywhere]
    if len(common) < max(1, _LEAST_SHARE * median(len(names) for _, names in held)):
        raise _too_few(held, common)
    notes = [
        channels_note(common, tuple(refused)),
        channels_note(common, [name for name in kept if key(name) in everywhere]),
    ]
    if rare:
        notes.append(
            f"{plural(len(common), 'channel')} common to all {len(held):,} recordings taken,"
            f" {len(rare):,} left out that some of them lack: {_shown(rare)};"
            " --channels A,B,C takes what it names"
        )
    return common, tuple(filter(None, notes))


def _too_few(held: Sequence[tuple[Path, Sequence[str]]], common: Sequence[str]) -> DatasetError:
    path, fewest = min(held, key=lambda one: len(one[1]))
    most = max(len(names) for _, names in held)
    what = "no EEG channel is common to all recordings"
    if common:
        what = f"only {_shown(common)} common to all recordings, which have up to {most}"
    return DatasetError(
        f"{what}; this one has the fewest, {len(fewest)}: {_shown(fewest)}",
        where=printable(str(path)),
        next_step="Leave out what is unlike the others, or name those to train on:"
        "  --channels A,B,C",
    )


def _shown(names: Sequence[str]) -> str:
    shown = printable(", ".join(names[:_LISTED]))
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


@cache
def _electrodes() -> frozenset[str]:
    """The 10-05 system, as `key` spells it."""
    import mne

    with quiet():
        montage = mne.channels.make_standard_montage(default_montage())
    return frozenset(key(name) for name in (*montage.ch_names, *_MORE))
