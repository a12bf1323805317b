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


def read_bids(path: str, root: Path, **options: Any) -> Any:
    """MNE's Raw with what stands beside it; `options` are of the format's reader in MNE.

    Raises ImportError without mne-bids.
    """
    import mne_bids

    place = mne_bids.get_bids_path_from_fname(path, check=False, verbose="ERROR")
    place = place.copy().update(root=root, datatype="eeg")
    return mne_bids.read_raw_bids(place, extra_params=options, verbose="WARNING")


def describe_as(raw: Any, described: Any) -> None:
    """Give `raw` what the same recording was told by BIDS; it may have fewer channels.

    For signals that mne-bids cannot leave out.
    """
    types = dict(zip(described.ch_names, described.get_channel_types(), strict=True))
    raw.set_channel_types({name: types[name] for name in raw.ch_names}, on_unit_change="ignore")
    raw.info["bads"] = [name for name in described.info["bads"] if name in raw.ch_names]
    raw.set_meas_date(described.info["meas_date"])
    raw.set_annotations(described.annotations)
    raw.set_montage(described.get_montage(), on_missing="ignore")
    raw.info["subject_info"] = described.info["subject_info"]
