"""Opening files of each format with MNE, or as arrays: lazily, quietly, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcli.eeg.arrays import open_arrays
from memcli.eeg.bids import bids_root, read_bids
from memcli.eeg.edf import read_edf_header
from memcli.eeg.quiet import notes, quiet
from memcli.eeg.signals import (
    EpochFacts,
    ExistingEpochs,
    Marker,
    MneEpochs,
    RawSignal,
    Signal,
    unreadable,
)
from memcli.errors import RecordingError, RecordingErrorCode

SIDECARS = {".vmrk": ".vhdr", ".eeg": ".vhdr", ".dat": ".vhdr", ".fdt": ".set"}
FORMATS = {
    ".fif": "FIF",
    ".edf": "EDF",
    ".bdf": "BDF",
    ".vhdr": "BrainVision",
    ".set": "EEGLAB",
    ".cnt": "CNT",
    ".gdf": "GDF",
    ".npy": "NumPy",
    ".npz": "NumPy",
}
_USUAL_UNITS = {".set": "uV", ".cnt": "uV", ".gdf": "uV"}
"""Of formats that declare none, as MNE takes them."""
_REPEATED = re.compile(r"not unique, found duplicates for: \{(.*?)\}")
_DATA_POINTS = re.compile(r"^DataPoints\s*=\s*(\d+)\s*$", re.MULTILINE)


@dataclass
class Opened:
    """An open file, as its reader sees it."""

    format: str
    sfreq_hz: float
    names: list[str]
    types: list[str]
    """MNE's channel types."""
    units: list[str]
    signal: Signal | None = None
    epochs: ExistingEpochs | None = None
    facts: list[EpochFacts] | None = None
    positions: Any = None
    """float64 [channels, 3] in metres, NaN where a channel has none; None: no channel has."""
    bads: tuple[str, ...] = ()
    markers: tuple[Marker, ...] = ()
    subject: str | None = None
    notes: tuple[str, ...] = ()
    mask: int = ~0
    """Of the bits of a stimulus channel that are triggers."""
    close: Callable[[], None] = lambda: None


def suffix_of(path: str) -> str:
    """ ".fif" also for ".fif.gz"; in small letters."""
    name = path.lower()
    return Path(name.removesuffix(".gz") if name.endswith(".fif.gz") else name).suffix


def open_file(path: str, sfreq_hz: float | None, channels: Sequence[str] | None) -> Opened:
    """Open `path`. Raises RecordingError."""
    suffix = suffix_of(path)
    _check_place(path)
    if suffix in SIDECARS:
        raise RecordingError(
            RecordingErrorCode.UNSUPPORTED,
            f"a part of a recording that begins at its {SIDECARS[suffix]} file",
            where=path,
            next_step=f"Name that one: {Path(path).with_suffix(SIDECARS[suffix]).name}",
        )
    if suffix not in FORMATS:
        raise RecordingError(
            RecordingErrorCode.UNSUPPORTED,
            f"no format that is read ({suffix or 'no suffix'})",
            where=path,
            next_step=f"Needed is one of: {', '.join(FORMATS)}",
        )
    if FORMATS[suffix] == "NumPy":
        arrays = open_arrays(path, sfreq_hz, channels)
        return Opened(
            "NumPy",
            arrays.sfreq_hz,
            list(arrays.names),
            ["eeg"] * len(arrays.names),
            [arrays.unit] * len(arrays.names),
            epochs=arrays.epochs,
            facts=arrays.facts,
        )
    try:
        with quiet() as heard:
            instance, left_out = _read(path, suffix)
            opened = _described(instance, path, suffix)
    except Exception as error:
        raise unreadable(path, error) from error
    opened.notes = (*left_out, *notes(heard))
    _undo_numbers(opened, heard)
    return opened


def _check_place(path: str) -> None:
    try:
        place = Path(path)
        if place.is_dir():
            raise RecordingError(RecordingErrorCode.UNSUPPORTED, "a folder, no file", where=path)
        with place.open("rb") as file:
            if not file.read(1):
                raise RecordingError(
                    RecordingErrorCode.EMPTY,
                    "the file is empty",
                    where=path,
                    next_step="Copy or export it again.",
                )
    except FileNotFoundError:
        raise RecordingError(RecordingErrorCode.MISSING, "no such file", where=path) from None
    except PermissionError:
        raise RecordingError(
            RecordingErrorCode.PERMISSION, "may not be read (permission denied)", where=path
        ) from None
    except (OSError, ValueError) as error:
        raise RecordingError(RecordingErrorCode.READ, str(error), where=path) from error


def _read(path: str, suffix: str) -> tuple[Any, tuple[str, ...]]:
    """MNE's Raw or Epochs, not loaded where the format allows, and notes."""
    import mne

    if suffix in (".edf", ".bdf"):
        header = read_edf_header(path)
    if (root := bids_root(path)) is not None:
        return read_bids(path, root)
    if suffix == ".fif":
        return _read_fif(path), ()
    if suffix in (".edf", ".bdf"):
        odd = header.odd
        reader = mne.io.read_raw_edf if suffix == ".edf" else mne.io.read_raw_bdf
        said = (f"left out, sampled at another rate: {', '.join(odd)}",) if odd else ()
        try:
            return reader(path, exclude=list(odd), preload=False), said
        except UnicodeDecodeError:  # annotations that are not in UTF-8, as the standard wants it
            return reader(path, exclude=list(odd), preload=False, encoding="latin1"), said
    if suffix == ".vhdr":
        raw = mne.io.read_raw_brainvision(path, preload=False)
        _check_brainvision(path, raw)
        return raw, ()
    if suffix == ".set":
        try:
            return mne.io.read_raw_eeglab(path, preload=False), ()
        except TypeError as error:
            if "trials" not in str(error):
                raise
            return mne.io.read_epochs_eeglab(path), ()
    if suffix == ".gdf":
        return mne.io.read_raw_gdf(path, preload=False), ()
    return mne.io.read_raw(path, preload=False), ()


def _read_fif(path: str) -> Any:
    import mne

    def raw() -> Any:
        return mne.io.read_raw_fif(path, allow_maxshield="yes", preload=False)

    def epochs() -> Any:
        return mne.read_epochs(path, proj=False, preload=False)

    named_epochs = "epo" in Path(path).name.lower()
    first, second = (epochs, raw) if named_epochs else (raw, epochs)
    try:
        return first()
    except Exception as error:
        try:
            return second()
        except Exception:
            raise error from None


def _check_brainvision(path: str, raw: Any) -> None:
    """Raise RecordingError if the data are fewer than the header says."""
    text = Path(path).read_bytes()[: 1 << 20].decode("latin-1")
    match = _DATA_POINTS.search(text)
    if match and raw.n_times < int(match[1]):
        raise RecordingError(
            RecordingErrorCode.DAMAGED,
            f"cut short: {raw.n_times:,} of {int(match[1]):,} samples are there",
            where=path,
            next_step="Copy or export it again.",
        )


def _described(instance: Any, path: str, suffix: str) -> Opened:
    import mne

    info = instance.info
    declared = getattr(instance, "_orig_units", None) or {}
    usual = _USUAL_UNITS.get(suffix, "V")
    names = list(instance.ch_names)
    opened = Opened(
        FORMATS[suffix],
        float(info["sfreq"]),
        names,
        list(instance.get_channel_types()),
        [_unit(declared.get(name, usual)) for name in names],
        positions=_positions(info),
        bads=tuple(info["bads"]),
        subject=_subject(info),
        mask=0xFFFF if suffix == ".bdf" else ~0,
    )
    if isinstance(instance, mne.io.BaseRaw):
        opened.signal = RawSignal(instance, path)
        opened.markers = _markers(instance)
        opened.close = instance.close
        opened.signal.read([0], instance.n_times - 1, instance.n_times)  # is the end there?
    else:
        opened.epochs = MneEpochs(instance, path)
        opened.facts = _facts(instance)
    return opened


def _unit(text: str) -> str:
    return text.replace("µ", "u").replace("μ", "u") if text not in ("n/a", "NA") else ""


def _positions(info: Any) -> Any:
    import numpy as np

    places = np.array([channel["loc"][:3] for channel in info["chs"]], np.float64)
    places[~np.isfinite(places).all(axis=1) | (places == 0).all(axis=1)] = np.nan
    return None if np.isnan(places).all() else places


def _subject(info: Any) -> str | None:
    said = (info.get("subject_info") or {}).get("his_id")
    return str(said) if said and str(said) not in ("X", "0") else None


def _markers(raw: Any) -> tuple[Marker, ...]:
    written = raw.annotations
    starts = raw.time_as_index(written.onset, use_rounding=True, origin=written.orig_time)
    lengths = (written.duration * raw.info["sfreq"]).round().astype(int)
    return tuple(
        Marker(int(start), int(start + length), str(name))
        for start, length, name in zip(starts, lengths, written.description, strict=True)
    )


def _facts(epochs: Any) -> list[EpochFacts]:
    names = {code: name for name, code in epochs.event_id.items()}
    rows = _metadata(epochs.metadata, len(epochs))
    spoiled = epochs.get_annotations_per_epoch()
    return [
        EpochFacts(
            str(names.get(int(code), code)),
            float(sample) / float(epochs.info["sfreq"]),
            row,
            any(is_bad(str(one[2])) for one in marks),
        )
        for (sample, _, code), row, marks in zip(epochs.events, rows, spoiled, strict=True)
    ]


def is_bad(name: str) -> bool:
    """Whether an annotation of this name marks what should not be used, as MNE has it."""
    return name.lower().startswith("bad")


def _metadata(table: Any, count: int) -> list[dict[str, Any]]:
    if table is None:
        return [{} for _ in range(count)]
    rows = table.to_dict("records") if hasattr(table, "to_dict") else list(table)
    return [
        {
            str(name): value.item() if hasattr(value, "item") else value
            for name, value in row.items()
            if value is not None and value == value  # NaN: not there
        }
        for row in rows
    ]


def _undo_numbers(opened: Opened, heard: list[str]) -> None:
    """MNE numbers channels of one name ("Fp1-0", "Fp1-1"); give them the file's name again."""
    repeated = {
        name.strip(" '\"")
        for text in heard
        for match in _REPEATED.findall(" ".join(text.split()))
        for name in match.split(",")
    }
    for place, name in enumerate(opened.names):
        base, dash, number = name.rpartition("-")
        if dash and number.isdigit() and base in repeated:
            opened.names[place] = base
