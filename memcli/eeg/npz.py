"""Members of a .npz archive: only those that are wanted, only as large as memory allows."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memcli.eeg.signals import python_objects, unreadable
from memcli.errors import RecordingError, RecordingErrorCode

_SHARE_OF_MEMORY = 0.7
_MAX_TOLD_BYTES = 64 << 20
"""Of a member that is not the data."""


def read_npz(
    path: str, data_names: tuple[str, ...], told_names: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """Members of `path` by name, and the names of all.

    Read are the first of `data_names` that is there, those of `told_names`, and whatever is by its
    header a list of as many entries as the data have epochs. What an archive unpacks to is decided
    by headers before anything is unpacked. Raises RecordingError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [one.removesuffix(".npy") for one in archive.namelist() if one.endswith(".npy")]
            data_name = next((one for one in data_names if one in names), None)
            if data_name is None:
                return {}, names
            shape, size = _header(archive, data_name)
            _check_size(path, data_name, size, _SHARE_OF_MEMORY * memory_bytes())
            said = {data_name: _array(archive, data_name)}
            count = shape[0] if len(shape) == 3 else 1
            for name in names:
                if name in data_names:
                    continue
                shape, size = _header(archive, name)
                if name in told_names:
                    _check_size(path, name, size, _MAX_TOLD_BYTES)
                elif shape != (count,) or size > _MAX_TOLD_BYTES:
                    continue
                said[name] = _array(archive, name)
    except Exception as error:
        raise unreadable(path, error) from error
    return said, names


def memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], int]:
    """Shape and bytes of a member, which is not read."""
    from numpy.lib import format as npy

    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }
    with archive.open(f"{name}.npy") as member:
        version = npy.read_magic(member)
        if version not in readers:
            raise ValueError(f"{name}: version {version} of NumPy's format")
        shape, _, dtype = readers[version](member)
    size = int(dtype.itemsize)
    for length in shape:
        size *= int(length)
    return tuple(map(int, shape)), size


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    from numpy.lib import format as npy

    with archive.open(f"{name}.npy") as member:
        try:
            return npy.read_array(member, allow_pickle=False)
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise python_objects(str(archive.filename)) from None
            raise


def _check_size(path: str, name: str, size: int, most: float) -> None:
    if size > most:
        raise RecordingError(
            RecordingErrorCode.UNSUPPORTED,
            f"its {name} unpacks to {size / 2**30:.3g} GiB, more than {most / 2**30:.3g}",
            where=path,
            next_step=f"Save the data alone as {Path(path).stem}.npy, which is read in parts.",
        )
