"""From what the user names (files, folders, BIDS roots) to recordings."""

from __future__ import annotations

import glob
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memcli.eeg.bids import DESCRIPTION, NOT_DATA, subject_of
from memcli.errors import RecordingErrorCode, UsageError
from memcli.walk import walk

EEG_SUFFIXES = frozenset(
    (".fif", ".fif.gz", ".edf", ".bdf", ".vhdr", ".set", ".cnt", ".gdf", ".npy", ".npz")
)
"""Names of recordings; `.vmrk`, `.eeg`, `.dat` and `.fdt` belong to one and are none."""

_PART = re.compile(r"^(?P<stem>.*)-\d+(?P<end>\.fif(?:\.gz)?)$", re.IGNORECASE)
_BIDS_PART = re.compile(r"_split-0*(\d+)_")
# FIF files of MNE that hold no EEG in time.
_NO_SIGNAL = re.compile(
    r"[-_](?:ave|cov|fwd|inv|ica|trans|src|bem|sol|eve|proj|tfr)\.fif(?:\.gz)?$"
)


@dataclass(frozen=True)
class RecordingSource:
    """One recording to read, or a place that cannot even be looked at."""

    path: str
    subject: str | None = None
    """As its name or folder says: "01" of sub-01."""
    error: tuple[RecordingErrorCode, str] | None = None

    @property
    def key(self) -> str:
        """The same for every spelling of a path: absolute, without `.` and `..`."""
        return os.path.abspath(self.path)  # noqa: PTH100 (Path would keep `..`)


def find_recordings(
    paths: Sequence[str | os.PathLike[str]], shard: tuple[int, int] | None = None
) -> list[RecordingSource]:
    """The recordings that `paths` name, in order and each once.

    A path is a recording, a folder (searched recursively; of a BIDS dataset, which has
    dataset_description.json, the `_eeg` files outside of derivatives and sourcedata) or a glob.
    Parts of split FIF files after the first, and files that belong to another, are none.
    `shard` (i, n) keeps the i-th of n parts, i from 1. Raises UsageError for a path that does not
    exist, and if nothing is found.
    """
    found: dict[str, RecordingSource] = {}
    for path in paths:
        for source in _named(os.fspath(path)):
            found.setdefault(source.key, source)
    if not found:
        raise UsageError(
            "no recording found",
            where=", ".join(os.fspath(path) for path in paths) or None,
            next_step=f"Names of recordings end in: {', '.join(sorted(EEG_SUFFIXES))}",
        )
    sources = list(found.values())
    if shard is not None:
        # CRC-32 of the name: stable over machines, runs and additions to the folder.
        sources = [
            source
            for source in sources
            if zlib.crc32(os.fsencode(source.path)) % shard[1] + 1 == shard[0]
        ]
    return sources


def _named(path: str) -> Iterator[RecordingSource]:
    if os.path.isdir(path):  # noqa: PTH112
        yield from _folder(path)
    elif os.path.lexists(path):
        yield RecordingSource(path, subject_of(path))
    elif glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (keeps the spelling)
        if not matches:
            raise UsageError("nothing matches this pattern", where=path)
        for match in matches:
            if Path(match).is_dir():
                yield from _folder(match)
            elif _is_recording(Path(match), bids=False):
                yield RecordingSource(match, subject_of(match))
    else:
        raise UsageError(
            "no such file or folder", where=path, next_step="Check the spelling of the path."
        )


def _folder(top: str) -> Iterator[RecordingSource]:
    """Recordings below `top`, sorted; links are followed, each folder is entered once."""
    roots: list[str] = []
    for visited in walk(top):
        if visited.problem is not None:
            code = RecordingErrorCode.PERMISSION if visited.denied else RecordingErrorCode.READ
            yield RecordingSource(visited.path, error=(code, visited.problem))
            continue
        if any(entry.name == DESCRIPTION for entry in visited.files):
            roots.append(visited.path)
            visited.folders[:] = [one for one in visited.folders if one.name not in NOT_DATA]
        bids = any(Path(visited.path).is_relative_to(root) for root in roots)
        for entry in visited.files:
            if _is_recording(Path(entry.path), bids):
                yield RecordingSource(entry.path, subject_of(entry.path))


def _is_recording(path: Path, bids: bool) -> bool:
    name = path.name.lower()
    suffix = next((one for one in EEG_SUFFIXES if name.endswith(one)), None)
    if suffix is None or name.startswith("._") or _NO_SIGNAL.search(name):
        return False
    if bids and not name.removesuffix(suffix).endswith(("_eeg", "-epo", "_epo")):
        return False
    part = _PART.match(path.name)
    if part and (path.parent / f"{part['stem']}{part['end']}").exists():
        return False
    split = _BIDS_PART.search(path.name)
    return split is None or int(split[1]) <= 1
