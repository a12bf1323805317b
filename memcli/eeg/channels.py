"""From the channels of a recording to those of a model: pick, order, interpolate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from memcli.eeg.names import harmonised, key
from memcli.eeg.quiet import quiet
from memcli.eeg.recording import Recording
from memcli.eeg.splines import sphere_centre, spline_weights
from memcli.errors import RecordingError, RecordingErrorCode, UsageError
from memcli.text import plural, printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MAX_INTERPOLATED = 0.2
"""Of the model's channels."""
_MONTAGES = ("standard_1005", "colin27_1005")
"""One montage, by its name before and since MNE 1.13."""
_ALSO_MADE = ("standard_1005", "standard_1020")
"""By their older names, which MNE 1.13 no longer lists."""
_LISTED = 70


@dataclass(frozen=True)
class ChannelPlan:
    """What to read, and how to make the model's channels of it."""

    names: tuple[str, ...]
    """The model's, in its order."""
    picks: tuple[int, ...]
    """Channels to read: those of the model that are there, in its order, then others that only
    interpolation needs."""
    present: tuple[int, ...]
    """Places in `names` of the first channels of `picks`."""
    missing: tuple[int, ...]
    """Places in `names` that are interpolated."""
    weights: Any = None
    """float64 [missing, picks]."""
    bads: frozenset[str] = frozenset()
    """Of `names`: marked bad in the recording."""

    def __call__(self, data: Floats) -> Floats:
        """[picks, samples] to [names, samples]."""
        import numpy as np

        if len(self.present) == len(self.names) == len(data):
            return data
        result = np.empty((len(self.names), data.shape[1]))
        result[list(self.present)] = data[: len(self.present)]
        if self.missing:
            result[list(self.missing)] = self.weights @ data
        return result


def plan_channels(
    recording: Recording,
    names: Sequence[str],
    on_missing: Literal["fail", "interpolate"],
    montage: str | None,
    dead: frozenset[int] = frozenset(),
) -> ChannelPlan:
    """How to make `names` of the recording's channels.

    `dead` are channels of the recording that hold no signal: as if they were not there. Raises
    RecordingError: several channels of one name, missing ones, too many to interpolate, no places;
    UsageError for a montage that nobody knows.
    """
    if montage is not None:
        check_montage(montage)
    keys = [key(name) for name in names]
    there = _eeg_by_key(recording, keys)
    missing = tuple(i for i, one in enumerate(keys) if there.get(one, -1) in (-1, *dead))
    present = tuple(i for i in range(len(keys)) if i not in missing)
    bads = {key(name) for name in recording.opened.bads}
    marked = frozenset(names[i] for i in present if keys[i] in bads)
    picks = tuple(there[keys[i]] for i in present)
    if not missing:
        return ChannelPlan(tuple(names), picks, present, (), bads=marked)
    if on_missing == "fail":
        raise _missing(recording, [names[i] for i in missing], dead, len(names))
    if len(missing) > MAX_INTERPOLATED * len(names):
        raise RecordingError(
            RecordingErrorCode.CHANNELS,
            f"lacks {len(missing)} of the model's {len(names)} channels, more than the "
            f"{MAX_INTERPOLATED:.0%} that may be interpolated: "
            f"{_listed([names[i] for i in missing])}",
            where=recording.path,
            next_step="Use a model that was trained on this recording's channels.",
        )
    good = {one: place for one, place in there.items() if one not in bads and place not in dead}
    extra = tuple(place for place in good.values() if place not in picks)
    sources = [*picks, *extra]
    usable = [place in good.values() for place in sources]
    weights = _weights(recording, [names[i] for i in missing], sources, usable, montage, there)
    return ChannelPlan(tuple(names), (*picks, *extra), present, missing, weights, marked)


def _eeg_by_key(recording: Recording, wanted: Sequence[str]) -> dict[str, int]:
    """EEG channels by key. Raises RecordingError if a wanted one is there several times."""
    there: dict[str, int] = {}
    needed = set(wanted)
    for place, channel in enumerate(recording.channels):
        if channel.kind != "eeg":
            continue
        one = key(channel.original)
        if one in there and one in needed:
            both = f"{recording.channels[there[one]].original!r} and {channel.original!r}"
            raise RecordingError(
                RecordingErrorCode.DUPLICATES,
                f"several channels are {channel.name}: {printable(both)}",
                where=recording.path,
                next_step="Rename or delete one of them in the recording.",
            )
        there.setdefault(one, place)
    return there


def _missing(
    recording: Recording, lacking: list[str], dead: frozenset[int], count: int
) -> RecordingError:
    silent = {key(recording.channels[place].original) for place in dead}
    flat = [name for name in lacking if key(name) in silent]
    others = {key(one.original): one.kind for one in recording.channels if one.kind != "eeg"}
    absent = [
        f"{name} (there as {others[key(name)]})" if key(name) in others else name
        for name in lacking
        if name not in flat
    ]
    eeg = [one.name for one in recording.channels if one.kind == "eeg"]
    parts = []
    if absent:
        parts.append(f"lacks {len(absent)} of the model's {count} channels: {_listed(absent)}")
    if flat:
        parts.append(f"no signal (flat or NaN wherever looked at) in {_listed(flat)}")
    has = f"; it has {plural(len(eeg), 'EEG channel')}: {_listed(eeg)}" if absent else ""
    allowed = len(lacking) <= MAX_INTERPOLATED * count
    return RecordingError(
        RecordingErrorCode.CHANNELS,
        "; ".join(parts) + has,
        where=recording.path,
        next_step="Interpolate them (--on-missing interpolate), or use a model of these channels."
        if allowed
        else "Use a model that was trained on this recording's channels.",
    )


def _weights(
    recording: Recording,
    lacking: list[str],
    sources: list[int],
    usable: list[bool],
    montage: str | None,
    there: dict[str, int],
) -> Floats:
    """[lacking, sources], 0 for sources without a place. Raises RecordingError."""
    import numpy as np

    own = recording.opened.positions
    wanted = None
    if montage is None and own is not None and all(key(name) in there for name in lacking):
        places = own[sources]  # the recording's own: it has the channels, but without signal
        wanted = own[[there[key(name)] for name in lacking]]
    if wanted is None or not np.isfinite(wanted).all():
        standard = _standard(montage or default_montage())
        nowhere = np.full(3, np.nan)
        places = np.array(
            [standard.get(key(recording.channels[i].original), nowhere) for i in sources]
        )
        unplaced = [name for name in lacking if key(name) not in standard]
        if unplaced:
            raise _unplaced(recording, f"no position for {_listed(unplaced)}", montage)
        wanted = np.array([standard[key(name)] for name in lacking])
    known = np.isfinite(places).all(axis=1) & np.array(usable)
    if known.sum() < max(4, 4 * len(lacking)):
        what = f"positions for {known.sum()} of {len(sources)} channels only"
        raise _unplaced(recording, what, montage)
    weights = np.zeros((len(lacking), len(sources)))
    centre = sphere_centre(np.concatenate([places[known], wanted]))
    weights[:, known] = spline_weights(places[known], wanted, centre)
    return weights


def _unplaced(recording: Recording, what: str, montage: str | None) -> RecordingError:
    return RecordingError(
        RecordingErrorCode.MONTAGE,
        f"{_listed([what])}: nothing to interpolate with",
        where=recording.path,
        next_step="Name a montage that has these channels "
        f"({montage or default_montage()} was tried), or record positions in the file.",
    )


def default_montage() -> str:
    """Name of MNE's montage of the whole 10-05 system."""
    import mne

    known = mne.channels.get_builtin_montages()
    return next((name for name in _MONTAGES if name in known), _MONTAGES[0])


def check_montage(montage: str) -> None:
    """Raise UsageError unless MNE makes a montage of this name; it makes more than it lists."""
    import mne

    if montage in _MONTAGES:
        return
    try:
        with quiet():
            mne.channels.make_standard_montage(montage)
    except Exception:
        known = {*mne.channels.get_builtin_montages(), *_ALSO_MADE}
        raise UsageError(
            f"unknown montage {printable(montage)!r}",
            next_step=f"Known are: {', '.join(sorted(known))}",
        ) from None


def _standard(montage: str) -> dict[str, Any]:
    import mne

    with quiet():
        places = mne.channels.make_standard_montage(montage).get_positions()["ch_pos"]
    exact = {name: place for name, place in places.items() if harmonised(name) == name}
    return {key(name): place for name, place in {**places, **exact}.items()}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
