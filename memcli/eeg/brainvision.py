"""BrainVision: whether data are whole, and markers beyond their end, which MNE drops."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from memcli.eeg.signals import Marker
from memcli.errors import RecordingError, RecordingErrorCode
from memcli.text import printable

_HEADER_BYTES = 1 << 20
_MARKER_BYTES = 64 << 20
_BYTES = {"INT_16": 2, "UINT_16": 2, "INT_32": 4, "IEEE_FLOAT_32": 4}
_COPY = "Copy or export it again."
_MARKER = re.compile(r"^Mk\d+\s*=([^,\r\n]*),([^,\r\n]*),\s*(\d{1,15})\s*,\s*(\d{0,15})", re.M)


def check_data(path: str) -> None:
    """Raise RecordingError if the data file is not there, empty, or ends within a sample.

    A file without a DataPoints entry says no more about its length.
    """
    text = _start_of(path)
    name = _entry(text, "DataFile")
    if name is None:
        return
    data = _beside(path, name)
    if not data.is_file():
        raise RecordingError(
            RecordingErrorCode.DAMAGED,
            f"its data file {printable(data.name)} is not there",
            where=path,
            next_step="Put it beside the header, under the name that the header gives.",
        )
    size = data.stat().st_size
    if not size:
        raise _damaged(path, f"its data file {printable(data.name)} is empty")
    if (_entry(text, "DataFormat") or "BINARY").upper() != "BINARY":
        return
    width = _BYTES.get((_entry(text, "BinaryFormat") or "").upper())
    channels = _entry(text, "NumberOfChannels") or ""
    if width is None or not channels.isdecimal() or not 0 < int(channels) < 100_000:
        return
    frame = width * int(channels)
    if size % frame:
        what = f"cut short: {printable(data.name)} ends within sample {size // frame:,}"
        raise _damaged(path, what)


def check_length(path: str, raw: Any) -> None:
    """Raise RecordingError if the data are fewer than the header says."""
    points = _entry(_start_of(path), "DataPoints") or ""
    if points.isdecimal() and raw.n_times < int(points):
        raise _damaged(path, f"cut short: {raw.n_times:,} of {int(points):,} samples are there")


def markers_beyond(path: str, samples: int) -> tuple[Marker, ...]:
    """Markers of the marker file from sample `samples` on, named as MNE names them."""
    name = _entry(_start_of(path), "MarkerFile")
    if name is None or not (file := _beside(path, name)).is_file():
        return ()
    with file.open("rb") as stream:
        text = stream.read(_MARKER_BYTES).decode("utf-8", "replace")
    found = []
    for kind, word, position, length in _MARKER.findall(text):
        start = int(position) - 1
        if start >= samples:
            title = f"{kind.strip()}/{word}".replace(r"\1", ",")
            found.append(Marker(start, start + int(length or 0), title))
    return tuple(found)


def _start_of(path: str) -> str:
    with Path(path).open("rb") as file:
        return file.read(_HEADER_BYTES).decode("utf-8", "replace")


def _entry(text: str, name: str) -> str | None:
    match = re.search(rf"^{name}\s*=\s*(.*?)\s*$", text, re.MULTILINE | re.IGNORECASE)
    return match[1] if match and match[1] else None


def _beside(path: str, name: str) -> Path:
    """A file that the header names."""
    return Path(path).parent / name


def _damaged(path: str, what: str) -> RecordingError:
    return RecordingError(RecordingErrorCode.DAMAGED, what, where=path, next_step=_COPY)
