"""From labelled recordings to the examples of a training.

What is read: everything that `memcli.eeg` reads. Labels, subjects, videos and splits of epochs are
in their metadata (`-epo.fif`, `.npz`, a table of onsets: columns `label`, `subject`, `video`,
`split`), or in the CSV files of the folder, with the columns `file,epoch,subject,label` and
optionally `video` and `split`, where `epoch` counts from 0; or the label is in the name of the
event (`recognised`). `split` is `train` or `test`; epochs of the latter are never trained on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memcli.eeg import EpochOptions, find_recordings, open_recording, read_epochs
from memcli.errors import RecordingError
from memcli.spec import EegPrep
from memcli.text import plural, printable
from memcli.train.datasets.types import DatasetError

if TYPE_CHECKING:
    from memcli.eeg import Epoch, Recording
    from memcli.train.eeg.data import EegExamples

COLUMNS = ("file", "epoch", "subject", "label")
DESCRIPTION_FILE = "dataset.json"
_MAX_CSV_BYTES = 256 << 20
_MAX_JSON_BYTES = 1 << 20
_SHARE_OF_MEMORY = 0.7
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Source:
    """Where labelled epochs are and how they are read."""

    data: Path
    """A recording, a folder of them, or a BIDS root."""
    channels: tuple[str, ...] = ()
    """Which are taken, in this order; empty: all that the recordings have, which must agree."""
    event: str | None = None
    onsets: Path | None = None
    recognised: str | None = None
    """A regular expression that is searched in the events' names: label 1 where it is found."""
    on_missing: Literal["fail", "interpolate"] = "fail"


@dataclass(frozen=True)
class EegDataset:
    """Labelled epochs."""

    prep: EegPrep
    """With the channels of the data."""
    examples: EegExamples
    """To train and cross-validate on; their subjects are by name, not yet the model's."""
    subjects: tuple[str, ...]
    """Of each example."""
    test: EegExamples | None
    """Those of the split `test`."""
    test_subjects: tuple[str, ...]
    recordings: int
    demonstration: bool
    """Whether dataset.json says that the data was made up."""
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of all data and labels."""
        found = hashlib.sha256()
        for part in (self.examples, self.test):
            if part is not None:
                for tensor in (part.eeg, part.samples, part.labels):
                    found.update(memoryview(tensor.contiguous().numpy()).cast("B"))
        told = [self.subjects, self.test_subjects, self.prep.channels]
        found.update(json.dumps(told).encode())
        return found.hexdigest()


@dataclass(frozen=True)
class _Row:
    """What is known of one epoch beside its samples."""

    id: str
    subject: str
    label: int
    split: str


def load(source: Source, prep: EegPrep) -> EegDataset:
    """All labelled epochs, in memory.

    `prep.channels` is not looked at. Raises DatasetError, in one line with what was found and what
    is needed, for recordings that cannot be read or have other channels than the first, labels that
    are missing or neither 0 nor 1, fewer than two of either, and data that memory does not hold.
    """
    import numpy as np
    import torch

    if not source.data.exists():
        raise DatasetError("there is no such file or folder", where=printable(str(source.data)))
    paths = [Path(one.path) for one in _found(source)]
    table = _tables(source.data)
    prep = replace(prep, channels=source.channels or _common_channels(paths))
    blocks: list[tuple[Any, list[int]]] = []
    rows: list[_Row] = []
    notes: dict[str, None] = {}
    for path in paths:
        kept: list[Any] = []
        lengths: list[int] = []
        for epoch, total in _epochs(path, source, prep, notes):
            if not rows and not kept:
                _check_memory(prep, total * len(paths), source.data)
            rows.append(_row(epoch, path, source, table))
            kept.append(epoch.data)
            lengths.append(epoch.samples)
        if kept:
            blocks.append((np.stack(kept), lengths))
    if not rows:
        raise DatasetError("there are no epochs in it", where=printable(str(source.data)))
    # Block by block into place, so that hardly more than one copy is in memory at a time.
    eeg = torch.empty((len(rows), *prep.epoch_shape()), dtype=torch.float32)
    samples: list[int] = []
    while blocks:
        block, lengths = blocks.pop(0)
        eeg[len(samples) : len(samples) + len(block)] = torch.from_numpy(block)
        samples += lengths
    return _dataset(source, prep, rows, eeg, samples, len(paths), tuple(notes))


def _dataset(
    source: Source,
    prep: EegPrep,
    rows: list[_Row],
    eeg: Any,
    samples: list[int],
    recordings: int,
    notes: tuple[str, ...],
) -> EegDataset:
    import torch

    from memcli.train.eeg.data import EegExamples

    everything = EegExamples(
        eeg,
        torch.tensor(samples, dtype=torch.int64),
        torch.tensor([float(row.label) for row in rows]),
        torch.zeros(len(rows), dtype=torch.int64),
        (),
        tuple(row.id for row in rows),
    )
    test = [i for i, row in enumerate(rows) if row.split == "test"]
    train = [i for i, row in enumerate(rows) if row.split != "test"]
    counts = [sum(rows[i].label == label for i in train) for label in (0, 1)]
    if min(counts) < 2:
        raise DatasetError(
            f"{counts[1]:,} epochs are recognised (label 1) and {counts[0]:,} are not (label 0);"
            " a training needs at least two of each",
            where=printable(str(source.data)),
        )
    return EegDataset(
        prep,
        everything.subset(train) if test else everything,
        tuple(rows[i].subject for i in train),
        everything.subset(test) if test else None,
        tuple(rows[i].subject for i in test),
        recordings,
        is_demonstration(source.data),
        notes,
    )


def is_demonstration(data: Path) -> bool:
    """Whether the dataset.json of a folder, or beside a file, says that the data was made up."""
    path = (data if data.is_dir() else data.parent) / DESCRIPTION_FILE
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            return False
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and entry.get("demonstration") is True


def _found(source: Source) -> list[Any]:
    found = find_recordings([source.data])
    for one in found:
        if one.error is not None:
            raise DatasetError(one.error[1], where=printable(one.path))
    return found


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


def _common_channels(paths: list[Path]) -> tuple[str, ...]:
    """The first recording's EEG channels, which all others must have, too, in whatever order."""
    first: tuple[str, ...] = ()
    for path in paths:
        with _opened(path) as recording:
            names = recording.info.eeg
        first = first or names
        if differing := sorted(set(first) ^ set(names)):
            shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
            raise DatasetError(
                f"has {len(names)} EEG channels, {printable(paths[0].name)} has {len(first)};"
                f" only one of the two has {printable(shown)}",
                where=printable(str(path)),
                next_step="Name those to train on:  --channels A,B,C",
            )
    return first


def _row(
    epoch: Epoch, path: Path, source: Source, table: Mapping[tuple[str, int], Mapping[str, str]]
) -> _Row:
    """Label, subject and split of an epoch. Raises DatasetError."""
    where = f"{printable(str(path))}, epoch {epoch.index}"
    said: Mapping[str, Any] = epoch.metadata
    for name in (path.name, path.stem):
        said = table.get((name, epoch.index), said)
    if source.recognised is not None:
        label = int(re.search(source.recognised, epoch.event) is not None)
    else:
        label = _label(said, where)
    subject = said.get("subject") or epoch.subject or path.stem
    split = str(said.get("split") or "train").strip().lower()
    if split not in _SPLITS:
        raise DatasetError(f"split is {printable(split)!r}, not train or test", where=where)
    return _Row(f"{path.name}:{epoch.index}", str(subject), label, split)


def _label(said: Mapping[str, Any], where: str) -> int:
    value = said.get("label")
    if value is None:
        columns = ", ".join(printable(str(one)) for one in said) or "nothing"
        raise DatasetError(
            f"has no label; its metadata has {columns}",
            where=where,
            next_step="Give the epochs a column `label` (0 or 1), put a CSV file with the columns"
            f" {','.join(COLUMNS)} beside them,\nor say which events are label 1:"
            "  --recognised REGEX",
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number not in (0.0, 1.0):
        raise DatasetError(
            f"label is {printable(str(value))[:40]!r}, neither 0 nor 1 (recognised)", where=where
        )
    return int(number)


def _tables(data: Path) -> dict[tuple[str, int], dict[str, str]]:
    """Rows of the folder's CSV files with the columns `COLUMNS`, by file and epoch."""
    folder = data if data.is_dir() else data.parent
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for path in sorted(folder.glob("*.csv")):
        if path.stat().st_size > _MAX_CSV_BYTES:
            continue
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream)
                if not {"file", "epoch", "label"} <= set(reader.fieldnames or ()):
                    continue
                for row in reader:
                    _add(rows, row, f"{printable(str(path))}:{reader.line_num}")
        except (UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(f"no CSV file in UTF-8: {error}", where=str(path)) from error
    return rows


def _add(
    rows: dict[tuple[str, int], dict[str, str]], row: dict[str | None, Any], where: str
) -> None:
    said = {name: value for name, value in row.items() if name and isinstance(value, str)}
    number = said.get("epoch", "")
    if not number.isascii() or not number.isdecimal():
        raise DatasetError(f"epoch is {printable(number)!r}, not 0, 1, 2, ...", where=where)
    key = Path(said.get("file", "")).name, int(number)
    if key in rows:
        raise DatasetError("names the same epoch a second time", where=where)
    rows[key] = said


def _check_memory(prep: EegPrep, epochs: int, data: Path) -> None:
    channels, samples = prep.epoch_shape()
    needed = 4 * channels * samples * epochs
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _SHARE_OF_MEMORY * there:
        raise DatasetError(
            f"about {plural(epochs, 'epoch')} of {channels} channels take {needed / 1e9:.1f} GB;"
            f" this machine has {there / 1e9:.1f} GB of memory",
            where=printable(str(data)),
            next_step="Take fewer channels:  --channels A,B,C",
        )
