"""From labelled recordings to epochs and their labels; without torch.

What is read: everything that `memcli.eeg` reads. Labels, subjects, videos and splits of epochs are
in their metadata (`-epo.fif`, `.npz`, a table of onsets: columns `label`, `subject`, `video`,
`split`), or in the CSV files of the folder, with the columns `file,epoch,subject,label` and
optionally `video` and `split`, where `epoch` counts from 0; or the label is in the name of the
event (`recognised`). `split` is `train` or `test`; epochs of the latter are never trained on.

Recordings are named by their paths from the folder of the data on. One that does not say whose it
is counts as a person of its own, whom a model with subject conditioning never knows: when it is
scored it does not say so either.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memcli.eeg import EpochOptions, find_recordings, open_recording, read_epochs
from memcli.errors import RecordingError
from memcli.spec import EegPrep
from memcli.text import plural, printable
from memcli.train.datasets.types import DatasetError
from memcli.train.eeg.electrodes import common_channels
from memcli.train.eeg.labels import Row, epoch_row, label_tables, onset_names, relative_name

if TYPE_CHECKING:
    from memcli.eeg import Epoch, Recording

DESCRIPTION_FILE = "dataset.json"
_MAX_JSON_BYTES = 1 << 20
_SHARE_OF_MEMORY = 0.7


@dataclass(frozen=True)
class Source:
    """Where labelled epochs are and how they are read."""

    data: Path
    """A recording, a folder of them, or a BIDS root."""
    channels: tuple[str, ...] = ()
    """Which are taken, in this order; empty: of those that `default_channels` names, the ones that
    all recordings have."""
    event: str | None = None
    onsets: Path | None = None
    recognised: str | None = None
    """A regular expression that is searched in the events' names: label 1 where it is found."""
    on_missing: Literal["fail", "interpolate"] = "fail"


@dataclass(frozen=True)
class Labelled:
    """Epochs and what is known of each."""

    prep: EegPrep
    """With the channels of the data."""
    rows: tuple[Row, ...]
    blocks: list[tuple[Any, list[int]]]
    """Of each recording float32 [E, C, N] in microvolts and the samples that are there of each
    epoch, in the order of `rows`; none if they are not kept."""
    recordings: int
    demonstration: bool
    """Whether dataset.json says that the data was made up."""
    notes: tuple[str, ...]


def stop(error: DatasetError) -> None:
    """What `read` does with a problem unless told otherwise."""
    raise error


def read(
    source: Source,
    prep: EegPrep,
    *,
    keep: bool = True,
    on_problem: Callable[[DatasetError], None] = stop,
) -> Labelled:
    """All labelled epochs; without their samples if these are not to be kept.

    `prep.channels` is not looked at. `on_problem` gets, in one line with what was found and what is
    needed, recordings that cannot be read or have hardly a channel in common, labels that are
    missing or neither 0 nor 1, rows of tables that make no sense, fewer than two epochs of either
    label, and data that memory does not hold. Where it returns, what it was told of is left out.
    Raises UsageError, whatever `on_problem` does, if there is no recording at all.
    """
    import numpy as np

    if not source.data.exists():
        raise DatasetError("there is no such file or folder", where=printable(str(source.data)))
    paths = _found(source, on_problem)
    folder = source.data if source.data.is_dir() else source.data.parent
    names = [relative_name(path, folder) for path in paths]
    table, noticed = label_tables(folder, names, on_problem)
    if source.onsets is not None:
        noticed += onset_names(source.onsets, paths, on_problem)
    notes: dict[str, None] = dict.fromkeys(noticed)
    paths, prep = _prepared(paths, source, prep, notes, on_problem)
    blocks: list[tuple[Any, list[int]]] = []
    rows: list[Row] = []
    for path in paths:
        kept: list[Any] = []
        lengths: list[int] = []
        first = not rows
        try:
            for epoch, total in _epochs(path, source, prep, notes):
                if first:
                    _check_memory(prep, total * len(paths), source.data, on_problem)
                    first = False
                try:
                    row = epoch_row(epoch, relative_name(path, folder), table, source.recognised)
                except DatasetError as error:
                    on_problem(error)
                    continue
                rows.append(row)
                if keep:
                    kept.append(epoch.data)
                    lengths.append(epoch.samples)
        except DatasetError as error:
            on_problem(error)
        if kept:
            blocks.append((np.stack(kept), lengths))
    _check_rows(rows, source.data, on_problem)
    if unsaid := {row.recording for row in rows if row.subject is None}:
        notes[_nobodys(len(unsaid))] = None
    made_up = is_demonstration(folder, paths)
    return Labelled(prep, tuple(rows), blocks, len(paths), made_up, tuple(notes))


def _prepared(
    paths: list[Path],
    source: Source,
    prep: EegPrep,
    notes: dict[str, None],
    on_problem: Callable[[DatasetError], None],
) -> tuple[list[Path], EegPrep]:
    """The recordings that can be opened, and how they are read: with which channels."""
    if source.channels:
        return paths, replace(prep, channels=source.channels)
    held = [(path, names) for path in paths if (names := _eeg_channels(path, on_problem))]
    if not held:
        return [], prep
    try:
        common, told = common_channels(held)
    except DatasetError as error:
        on_problem(error)
        return [], prep
    notes.update(dict.fromkeys(told))
    return [path for path, _ in held], replace(prep, channels=common)


def _eeg_channels(path: Path, on_problem: Callable[[DatasetError], None]) -> tuple[str, ...]:
    """Of a recording; empty if it cannot be opened."""
    try:
        with _opened(path) as recording:
            return recording.info.eeg
    except DatasetError as error:
        on_problem(error)
        return ()


def _check_rows(
    rows: Sequence[Row], data: Path, on_problem: Callable[[DatasetError], None]
) -> None:
    where = printable(str(data))
    if not rows:
        on_problem(DatasetError("there are no epochs with a label in it", where=where))
        return
    train = [row.label for row in rows if row.split != "test"]
    counts = [train.count(label) for label in (0, 1)]
    if min(counts) < 2:
        on_problem(
            DatasetError(
                f"{counts[1]:,} epochs are recognised (label 1) and {counts[0]:,} are not (label"
                " 0); a training needs at least two of each",
                where=where,
            )
        )


def _nobodys(count: int) -> str:
    one = count == 1
    return (
        f"{plural(count, 'recording')} {'does' if one else 'do'} not say whose"
        f" {'it is and counts' if one else 'they are: each counts'} as a person of its own"
    )


def is_demonstration(top: Path, recordings: Sequence[Path]) -> bool:
    """Whether a dataset.json says that data were made up, of any recording.

    Looked at are the folders of the recordings, those above them, and `top`, the highest.
    """
    folders = {top}
    for path in recordings:
        for folder in path.parents:
            if folder in folders:
                break
            folders.add(folder)
    return any(_says_made_up(folder / DESCRIPTION_FILE) for folder in sorted(folders))


def _says_made_up(path: Path) -> bool:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            return False
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and entry.get("demonstration") is True


def _found(source: Source, on_problem: Callable[[DatasetError], None]) -> list[Path]:
    paths = []
    for one in find_recordings([source.data]):
        if one.error is not None:
            on_problem(DatasetError(one.error[1], where=printable(one.path)))
        else:
            paths.append(Path(one.path))
    return paths


def _opened(path: Path) -> Recording:
    try:
        return open_recording(path)
    except RecordingError as error:
        raise _unusable(error, path) from error


def _epochs(
    path: Path, source: Source, prep: EegPrep, notes: dict[str, None]
) -> Iterator[tuple[Epoch, int]]:
    """Each epoch, and how many the recording has."""
    options = EpochOptions(
        event=source.event, onsets=source.onsets, on_missing=source.on_missing, on_dead="flag"
    )
    with _opened(path) as recording:
        try:
            stream = read_epochs(recording, prep, options)
            for epoch in stream:
                if any(flag.startswith("nan") for flag in epoch.flags):
                    notes[f"epochs with NaN in {printable(path.name)} are left out"] = None
                    continue
                yield epoch, stream.total
        except RecordingError as error:
            raise _unusable(error, path) from error
        notes.update(dict.fromkeys(stream.notes))


def _unusable(error: RecordingError, path: Path) -> DatasetError:
    return DatasetError(
        error.what, where=error.where or printable(str(path)), next_step=error.next_step
    )


def _check_memory(
    prep: EegPrep, epochs: int, data: Path, on_problem: Callable[[DatasetError], None]
) -> None:
    channels, samples = prep.epoch_shape()
    needed = 4 * channels * samples * epochs
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _SHARE_OF_MEMORY * there:
        error = DatasetError(
            f"about {plural(epochs, 'epoch')} of {channels} channels take {needed / 1e9:.1f} GB;"
            f" this machine has {there / 1e9:.1f} GB of memory",
            where=printable(str(data)),
            next_step="Take fewer channels:  --channels A,B,C",
        )
        on_problem(error)
