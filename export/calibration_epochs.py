"""Epochs of EEG for int8 and fp8: what chooses ranges and layers, and what checks them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.verify import EEG, SAMPLES, SUBJECT, epoch_feeds
from memcli.errors import RecordingError, UsageError
from memcli.export.calibration import CalibrationSet, spread_items
from memcli.text import plural

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.eeg import Epoch, Recording
    from memcli.spec import EegPrep

    Feeds = Mapping[str, npt.NDArray[Any]]

MAX_RECORDINGS = 64
MIN_EPOCHS = 24
"""To calibrate with, and as many others to check with: a rank correlation of fewer says little."""
_MAX_EPOCHS = 96
"""Of each half."""
_MAX_HELD = 4 * _MAX_EPOCHS
"""While recordings are read: twice what is used, so that halves of uneven recordings are full."""
_SYNTHETIC_EPOCHS = 64
_SEEDS = 1000, 2000
"""Of synthetic epochs to calibrate and to check with; the gate's own have others."""


@dataclass(frozen=True)
class CalibrationEpochs:
    """Inputs of a graph, one epoch each."""

    calibration: tuple[Feeds, ...]
    holdout: tuple[Feeds, ...]
    source: str
    """What they are, for reports."""
    real: bool = True
    """Whether they are the user's."""

    def as_set(self) -> CalibrationSet:
        """For int8. Raises UsageError if there are too few."""
        kept, held = len(self.calibration), len(self.holdout)
        if min(kept, held) < MIN_EPOCHS:
            raise UsageError(
                f"int8 needs at least {MIN_EPOCHS} epochs to calibrate and {MIN_EPOCHS} others to"
                f" check, not {kept} and {held}",
                next_step="Give more recordings: memcli export MODEL --int8 --calibration DIR",
            )
        return CalibrationSet(self.calibration, self.holdout, epochs=self.source, real=self.real)


def synthetic_calibration_epochs(prep: EegPrep) -> CalibrationEpochs:
    """Epochs made by us: amplitudes and spectrum of recordings, but nobody's."""
    kept, held = (_single(epoch_feeds(prep, _SYNTHETIC_EPOCHS, seed)) for seed in _SEEDS)
    return CalibrationEpochs(tuple(kept), tuple(held), "synthetic epochs", real=False)


def read_calibration_epochs(
    folder: Path, prep: EegPrep, *, report: Callable[[str], None] = lambda _: None
) -> CalibrationEpochs:
    """Epochs of at most 64 recordings in a folder; half of the recordings are held out.

    Existing epochs are taken as they are, continuous recordings are cut from end to end, whatever
    happened in them: ranges are about amplitudes. A single recording is cut in the middle. Bad
    epochs and recordings that do not fit the model are left out, which is said. Raises UsageError
    if no recording is left.
    """
    from memcli.eeg import find_recordings

    sources = []
    for one in find_recordings([folder]):
        if one.error is None:
            sources.append(one)
        else:
            report(f"not used: {one.path}: {one.error[1]}")
    found: list[list[Feeds]] = []
    for source in spread_items(sources, min(len(sources), MAX_RECORDINGS)):
        try:
            epochs = _evenly(_feeds(one, prep) for one in _epochs_of(source.path, prep))
        except RecordingError as error:
            report(f"not used: {source.path}: {error.what}")
            continue
        if epochs:
            found.append(epochs)
            _thin(found)
        else:
            report(f"not used: {source.path}: every epoch of it is bad")
    if not found:
        raise UsageError("no recordings to calibrate with", where=str(folder))
    kept, held = _halves(found)
    report(f"{plural(len(kept) + len(held), 'epoch')}, half of them to check with")
    return CalibrationEpochs(
        tuple(spread_items(kept, _MAX_EPOCHS)),
        tuple(spread_items(held, _MAX_EPOCHS)),
        f"epochs of {plural(len(found), 'recording')}",
    )


def _evenly(epochs: Iterable[Feeds]) -> list[Feeds]:
    """Every one, every second, every fourth, ...: evenly, and never more than can be used."""
    kept: list[Feeds] = []
    step = 1
    for number, one in enumerate(epochs):
        if number % step:
            continue
        kept.append(one)
        if len(kept) > _MAX_HELD:
            del kept[1::2]
            step *= 2
    return kept


def _thin(recordings: list[list[Feeds]]) -> None:
    """Leave out every second epoch of the longest recording until few enough are held."""
    while sum(map(len, recordings)) > _MAX_HELD:
        del max(recordings, key=len)[1::2]


def _halves(recordings: Sequence[list[Feeds]]) -> tuple[list[Feeds], list[Feeds]]:
    """No recording is in both, unless there is only one."""
    if len(recordings) == 1:
        middle = (len(recordings[0]) + 1) // 2
        return recordings[0][middle:], recordings[0][:middle]
    middle = (len(recordings) + 1) // 2
    parts = recordings[middle:], recordings[:middle]
    return tuple([one for epochs in part for one in epochs] for part in parts)  # type: ignore[return-value]


def _epochs_of(path: str, prep: EegPrep) -> Iterator[Epoch]:
    from memcli.eeg import EpochOptions, open_recording, read_epochs

    with open_recording(path) as recording:
        if recording.info.epoched:
            options = EpochOptions(event=".", on_bad="skip", on_dead="flag")
            yield from read_epochs(recording, prep, options)
            return
        with tempfile.TemporaryDirectory(prefix="memcli-onsets-") as folder:
            table = _onsets(recording, prep, Path(folder))
            options = EpochOptions(onsets=table, on_bad="skip", on_dead="flag", on_short="pad")
            yield from read_epochs(recording, prep, options)


def _onsets(recording: Recording, prep: EegPrep, folder: Path) -> Path:
    """A table of onsets that cut a recording from end to end, a long one here and there."""
    held = max(1, int(recording.info.duration_s // prep.duration_s))
    table = folder / "onsets.csv"
    places = spread_items(range(held), min(held, _MAX_HELD))
    times = (place * prep.duration_s - prep.start_s for place in places)
    table.write_text("onset\n" + "".join(f"{max(0.0, time):.6f}\n" for time in times))
    return table


def _feeds(epoch: Epoch, prep: EegPrep) -> Feeds:
    feeds: dict[str, npt.NDArray[Any]] = {
        EEG: epoch.data[None],
        SAMPLES: np.array([epoch.samples], np.int64),
    }
    return feeds | ({SUBJECT: np.zeros(1, np.int64)} if prep.subjects else {})


def _single(feeds: Feeds) -> Iterator[Feeds]:
    """A batch as batches of one."""
    for number in range(len(feeds[EEG])):
        yield {name: array[number : number + 1] for name, array in feeds.items()}
