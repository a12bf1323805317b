"""Opening files of each format with MNE, or as arrays: lazily, quietly, checked."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from memcli.eeg.arrays import open_arrays
from memcli.eeg.bids import bids_root, describe_as, read_bids
from memcli.eeg.brainvision import check_data, check_length, markers_beyond
from memcli.eeg.edf import read_edf_header
from memcli.eeg.eeglab import locking_events, undescribed
from memcli.eeg.quiet import in_turn, notes, quiet
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
_NO_BIDS = "events.tsv and channels.tsv beside it are unused: mne-bids is not installed"
_REPEATED = re.compile(r"not unique, found duplicates for: \{(.*?)\}")


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
        with in_turn(), quiet() as heard:
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
        mode = place.stat().st_mode
        if not stat.S_ISREG(mode):  # to open a pipe would wait for somebody who writes into it
            what = (
                "a folder, no file" if stat.S_ISDIR(mode) else "a pipe, socket or device, no file"
            )
            raise RecordingError(RecordingErrorCode.UNSUPPORTED, what, where=path)
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
    if suffix == ".vhdr":
        check_data(path)
    odd = read_edf_header(path).odd if suffix in (".edf", ".bdf") else ()
    said = [f"left out, sampled at another rate: {', '.join(odd)}"] if odd else []
    instance = None
    if (root := bids_root(path)) is not None:
        try:
            instance = _any_encoding(suffix, partial(read_bids, path, root))
        except ImportError:
            said.append(_NO_BIDS)
        else:
            if odd:  # mne-bids would bring all to one rate, wrongly
                alone = _read_alone(path, suffix, odd)
                describe_as(alone, instance)
                instance = alone
    if instance is None:
        instance = _read_alone(path, suffix, odd)
    if suffix == ".vhdr":
        check_length(path, instance)
    return instance, tuple(said)


def _read_alone(path: str, suffix: str, odd: Sequence[str]) -> Any:
    """MNE's Raw or Epochs without the signals `odd` and without anything beside the file."""
    import mne

    if suffix == ".fif":
        return _read_fif(path)
    if suffix in (".edf", ".bdf"):
        reader = mne.io.read_raw_edf if suffix == ".edf" else mne.io.read_raw_bdf
        return _any_encoding(suffix, partial(reader, path, exclude=list(odd), preload=False))
    if suffix == ".set":
        try:
            return mne.io.read_raw_eeglab(path, preload=False)
        except TypeError as error:
            if "trials" not in str(error):
                raise
            return mne.io.read_epochs_eeglab(path)
    if suffix == ".gdf":
        return mne.io.read_raw_gdf(path, preload=False)
    return mne.io.read_raw(path, preload=False)


def _any_encoding(suffix: str, read: Callable[..., Any]) -> Any:
    """What `read` gives, also of annotations that are not in UTF-8, as EDF+ wants them."""
    try:
        return read()
    except Exception as error:  # a plain Exception, in MNE
        named = isinstance(error, UnicodeDecodeError) or "latin1" in str(error)
        if suffix not in (".edf", ".bdf") or not named:
            raise
        return read(encoding="latin1")


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
        if suffix == ".vhdr" and bids_root(path) is None:  # BIDS has events of its own
            opened.markers += markers_beyond(path, opened.signal.samples)
        opened.close = instance.close
        opened.signal.read([0], instance.n_times - 1, instance.n_times)  # is the end there?
    else:
        opened.epochs = MneEpochs(instance, path)
        opened.facts = _set_facts(instance, path) if suffix == ".set" else _facts(instance)
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
    if written.orig_time is None:  # MNE then counts onsets from before the first sample
        starts = starts - raw.first_samp
    lengths = (written.duration * raw.info["sfreq"]).round().astype(int)
    return tuple(
        Marker(int(start), int(start + length), str(name))
        for start, length, name in zip(starts, lengths, written.description, strict=True)
    )


def _facts(epochs: Any) -> list[EpochFacts]:
    import numpy as np

    names = {code: name for name, code in epochs.event_id.items()}
    rows = _metadata(epochs.metadata, len(epochs))
    spoiled = epochs.get_annotations_per_epoch()
    # Decimated or resampled epochs keep the events' samples in the recording as it was.
    rate = float(np.ravel(getattr(epochs, "_raw_sfreq", epochs.info["sfreq"]))[0])
    samples = epochs.events[:, 0]
    # As MNE counts epochs that were made of an array, without events.
    counted = len(samples) > 1 and np.array_equal(samples, np.arange(len(samples)))
    return [
        EpochFacts(
            str(names.get(int(code), code)),
            None if counted else float(sample) / rate,
            row,
            any(is_bad(str(one[2])) for one in marks),
        )
        for (sample, _, code), row, marks in zip(epochs.events, rows, spoiled, strict=True)
    ]


def _set_facts(epochs: Any, path: str) -> list[EpochFacts]:
    """Of EEGLAB's epochs, for which MNE joins names and counts samples of the joined epochs."""
    facts = [replace(fact, onset_s=None) for fact in _facts(epochs)]
    events = locking_events(path, len(facts))
    if events is None:
        if set(epochs.event_id) != {"unknown"}:  # MNE's name for none
            raise undescribed(path)
        return facts
    return [
        replace(fact, event=event, onset_s=onset_s)
        for fact, (event, onset_s) in zip(facts, events, strict=True)
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
