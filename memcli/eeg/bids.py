"""Recordings of a BIDS dataset: with the events, channel types and positions beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_NAME = re.compile(r"^sub-([A-Za-z0-9+]+)_.*_?eeg\.[A-Za-z.]+$")
_SUBJECT = re.compile(r"(?:^|[^A-Za-z0-9])sub-([A-Za-z0-9+]+)")
DESCRIPTION = "dataset_description.json"
NOT_DATA = ("derivatives", "sourcedata", "code", "stimuli", "phenotype")


def subject_of(path: str) -> str | None:
    """ "01" of "sub-01_task-memory_eeg.edf" or "sub-01/run.edf"; None without such a part."""
    for part in (Path(path).name, *(parent.name for parent in Path(path).parents)):
        if match := _SUBJECT.search(part):
            return match[1]
    return None


def bids_root(path: str) -> Path | None:
    """The BIDS dataset that a recording is of by its name and place, or None."""
    if not _NAME.match(Path(path).name):
        return None
    parents = list(Path(path).absolute().parents)[:6]
    return next((parent for parent in parents if (parent / DESCRIPTION).is_file()), None)


def read_bids(path: str, root: Path) -> tuple[Any, tuple[str, ...]]:
    """MNE's Raw with what stands beside it, and notes; without mne-bids the file alone."""
    try:
        import mne_bids
    except ImportError:
        import mne

        note = "events.tsv and channels.tsv beside it are unused: mne-bids is not installed"
        return mne.io.read_raw(path, preload=False), (note,)
    place = mne_bids.get_bids_path_from_fname(path, check=False, verbose="ERROR")
    place = place.copy().update(root=root, datatype="eeg")
    return mne_bids.read_raw_bids(place, verbose="ERROR"), ()
