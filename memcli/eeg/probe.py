"""A look at a few epochs before all are read: units, and channels that hold no signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memcli.eeg.channels import ChannelPlan
from memcli.eeg.epochs import EpochOptions
from memcli.eeg.quality import FLAT_V, PLAUSIBLE_V, typical_amplitude
from memcli.eeg.recording import Recording
from memcli.eeg.signals import VOLTS
from memcli.eeg.wanted import Wanted
from memcli.errors import RecordingError, RecordingErrorCode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

PLACES = 8
"""Epochs that are looked at, spread over the recording."""


@dataclass(frozen=True)
class Probe:
    """What was seen."""

    scale: Any
    """float64 [channels of the recording]: what to multiply the reader's volts by; None: 1."""
    flat_below: float
    """Volts."""
    dead: frozenset[int]
    """Channels of the recording that are flat or NaN in every epoch looked at."""
    notes: tuple[str, ...] = ()


def probe(
    recording: Recording, plan: ChannelPlan, wanted: Sequence[Wanted], options: EpochOptions
) -> Probe:
    """Look at up to 8 of the wanted epochs. Raises RecordingError for units no EEG has."""
    import numpy as np

    scale = _scale(recording, options)
    picks = plan.picks
    places = np.unique(np.linspace(0, len(wanted) - 1, PLACES).round().astype(int))
    drift_free = max(3, round(2 * recording.sfreq_hz))
    heads, moved = [], []
    for place in places:
        data = _read(recording, picks, wanted[place])
        if scale is not None:
            data = data * scale[list(picks)][:, None]
        heads.append(data[:, :drift_free].copy())
        moved.append(
            [np.ptp(row[there]) if (there := np.isfinite(row)).any() else 0.0 for row in data]
        )
    typical = typical_amplitude(heads)
    notes: tuple[str, ...] = ()
    low, high = PLAUSIBLE_V
    if typical and not low <= typical <= high:
        if options.unit == "check":
            raise _implausible(recording, typical, picks)
        notes = (f"amplitudes of {_volts(typical)} are no EEG's",)
    flat_below = min(FLAT_V, typical / 1000) if typical else FLAT_V
    still = np.asarray((np.array(moved) < flat_below).all(axis=0))
    dead = frozenset(pick for pick, is_dead in zip(picks, still.tolist(), strict=True) if is_dead)
    return Probe(scale, flat_below, dead, notes)


def _read(recording: Recording, picks: Sequence[int], one: Wanted) -> Floats:
    opened = recording.opened
    if opened.signal is not None:
        return opened.signal.read(picks, one.start, one.stop)
    assert opened.epochs is not None
    return opened.epochs.read(picks, one.source)[:, one.start : one.stop]


def _scale(recording: Recording, options: EpochOptions) -> Any:
    """What to multiply the reader's volts by, if the user says what the numbers are."""
    import numpy as np

    if options.unit in ("check", "recorded"):
        return None
    declared = [VOLTS.get(channel.unit, 1.0) for channel in recording.channels]
    return VOLTS[options.unit] / np.array(declared)


def _implausible(recording: Recording, typical: float, picks: Sequence[int]) -> RecordingError:
    unit = recording.channels[picks[0]].unit
    numbers = typical / VOLTS.get(unit, 1.0)
    low, high = PLAUSIBLE_V
    fits = [name for name in ("V", "mV", "uV") if low <= numbers * VOLTS[name] <= high]
    guess = f"If its numbers are in {fits[-1]}: --unit {fits[-1]}. " if fits else ""
    return RecordingError(
        RecordingErrorCode.UNITS,
        f"amplitudes of {_volts(typical)}, by the unit {unit or 'V'} that the file declares; "
        "EEG has 2 to 100 uV",
        where=recording.path,
        next_step=f"{guess}To take them as they are: --unit recorded.",
    )


def _volts(value: float) -> str:
    """ "23 V", "0.5 uV", "20 pV"."""
    for name, one in (("V", 1.0), ("mV", 1e-3), ("uV", 1e-6), ("nV", 1e-9)):
        if value >= one:
            return f"{value / one:.3g} {name}"
    return f"{value / 1e-12:.3g} pV"
