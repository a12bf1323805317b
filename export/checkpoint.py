"""Restricted reader of PyTorch checkpoints (`torch.save` of a state dict): no torch, no code run.

A checkpoint is a zip archive: `NAME/data.pkl`, a pickle that describes the tensors, and one
`NAME/data/KEY` per storage. The standard unpickler runs whatever the pickle says; here
`memcli.export.unpickle` interprets the few opcodes that a state dict needs, and this module
checks each tensor against its storage before a view of the memory-mapped file is handed out.

Format: torch/csrc/jit/serialization and `torch.serialization` (zip container since torch 1.6).
"""

from __future__ import annotations

import mmap
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.files import ZIP_ERRORS
from memcli.errors import MissingDependencyError, ModelError
from memcli.export.unpickle import Storage, Tensor, read_tensors

MAX_PICKLE_BYTES = 16 << 20
"""ResMem's 956 tensors take 150 kB; this is enough for about 100,000."""

MAX_DIRECTORY_BYTES = 64 << 20
"""Central directory of the zip archive, which Python's zipfile reads into memory as a whole."""

MAX_EXPANSION = 20
"""Deflated entries may be this many times larger than the file; torch itself never deflates."""

_KEY = re.compile(r"[0-9A-Za-z_]{1,64}")
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
    "BFloat16Storage": "bfloat16",
}


class StateDict(Mapping[str, NDArray[Any]]):
    """Tensors of a checkpoint by name, read-only, loaded when asked for.

    Arrays of stored (not deflated) entries are views of the mapped file: they cost no memory of
    their own and stay valid while they are referenced.
    """

    def __init__(self, path: Path, tensors: dict[str, Tensor], archive: _Archive):
        self._path = path
        self._tensors = tensors
        self._archive = archive

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor = self._tensors[name]
        dtype = _dtype(tensor.storage.kind)
        try:
            flat = np.frombuffer(
                self._archive.read_storage(tensor.storage, dtype.itemsize),
                dtype,
                tensor.storage.numel,
            )
        except ModelError as error:
            raise ModelError(f"{name}: {error.what}", where=str(self._path)) from error
        return np.lib.stride_tricks.as_strided(
            flat[tensor.offset :],
            tensor.shape,
            tuple(step * dtype.itemsize for step in tensor.stride),
            writeable=False,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_state_dict(path: Path) -> StateDict:
    """Open the checkpoint at `path` (zip container, little-endian).

    All entries, sizes and bounds are checked here. Raises ModelError if the file is not such a
    checkpoint, is damaged, asks for anything but tensors, or would expand beyond reason.
    Checksums of stored entries are not verified: check the file's SHA-256 where one is known.
    """
    try:
        archive = _Archive(path)
        tensors = read_tensors(archive.read_pickle())
        for name, tensor in tensors.items():
            archive.check_storage(name, tensor.storage, _dtype(tensor.storage.kind).itemsize)
    except ModelError as error:
        raise ModelError(error.what, where=str(path), next_step=error.next_step) from error
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return StateDict(path, tensors, archive)


def _dtype(kind: str) -> np.dtype[Any]:
    """numpy's dtype of a torch storage type."""
    name = _DTYPES.get(kind)
    if name is None:
        raise ModelError(f"{kind} is not supported")
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise MissingDependencyError(
                "ml_dtypes", purpose="reading bfloat16 weights", install="pip install ml_dtypes"
            ) from error
        name = ml_dtypes.bfloat16
    return np.dtype(name)


class _Archive:
    """The zip container: checked directory, mapped file."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ModelError("is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _check_directory_size(self._map)
        try:
            self._zip = zipfile.ZipFile(path)
        except (*ZIP_ERRORS, OSError) as error:
            raise ModelError(f"is not a PyTorch checkpoint (zip archive): {error}") from error
        self._entries = _check_entries(self._zip.infolist(), size)
        self._prefix = _prefix(self._entries)
        order = self._entries.get(f"{self._prefix}/byteorder")
        if order and self._inflate(order, 16) != b"little":
            raise ModelError("is big-endian, which is not supported")
        self._inflated: tuple[str, bytes] = ("", b"")

    def read_pickle(self) -> bytes:
        """The pickle that describes the tensors."""
        return self._inflate(self._entries[f"{self._prefix}/data.pkl"], MAX_PICKLE_BYTES)

    def check_storage(self, name: str, storage: Storage, itemsize: int) -> None:
        """Raise ModelError unless the storage of tensor `name` is there and large enough."""
        entry = None
        if _KEY.fullmatch(storage.key):
            entry = self._entries.get(f"{self._prefix}/data/{storage.key}")
        if entry is None:
            raise ModelError(f"the data of {name!r:.80} is missing")
        if entry.file_size < storage.numel * itemsize:
            raise ModelError(f"the data of {name!r:.80} is too short")
        if entry.compress_type == zipfile.ZIP_STORED:
            self._data_start(entry)

    def read_storage(self, storage: Storage, itemsize: int) -> memoryview:
        """The bytes of a storage: a view of the file, or inflated (the last one is kept)."""
        entry = self._entries[f"{self._prefix}/data/{storage.key}"]
        length = storage.numel * itemsize
        if entry.compress_type == zipfile.ZIP_STORED:
            start = self._data_start(entry)
            return memoryview(self._map)[start : start + length]
        if self._inflated[0] != storage.key:
            self._inflated = (storage.key, self._inflate(entry, entry.file_size))
        return memoryview(self._inflated[1])[:length]

    def _inflate(self, entry: zipfile.ZipInfo, limit: int) -> bytes:
        """The whole content of an entry, at most `limit` bytes; its checksum is verified."""
        if entry.file_size > limit:
            raise ModelError(f"{entry.filename!r:.80} is larger than {limit} bytes")
        try:
            with self._zip.open(entry) as file:
                content = file.read(entry.file_size)
                if len(content) < entry.file_size or file.read(1):
                    raise ModelError(f"{entry.filename!r:.80} has another size than declared")
        except (*ZIP_ERRORS, OSError) as error:
            raise ModelError(f"{entry.filename!r:.80} is damaged: {error}") from error
        return content

    def _data_start(self, entry: zipfile.ZipInfo) -> int:
        """Where a stored entry's bytes begin, behind its local header; wholly inside the file."""
        header = self._map[entry.header_offset : entry.header_offset + 30]
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise ModelError(f"{entry.filename!r:.80} has no local header")
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        start = entry.header_offset + 30 + int(name_length) + int(extra_length)
        if start + entry.file_size > len(self._map):
            raise ModelError("is truncated")
        return start


def _check_directory_size(data: mmap.mmap) -> None:
    """Refuse a central directory that would fill the memory once zipfile parses it."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_557))
    if end < 0 or end + 22 > len(data):
        raise ModelError("is not a PyTorch checkpoint (zip archive), or it is truncated")
    (size,) = struct.unpack_from("<L", data, end + 12)
    if end >= 76 and data[end - 20 : end - 16] == b"PK\x06\x07":
        (size,) = struct.unpack_from("<Q", data, end - 76 + 40)
    if size > MAX_DIRECTORY_BYTES:
        raise ModelError("has an absurdly large zip directory")


def _check_entries(infos: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by name; their names, kinds and sizes are sane."""
    entries: dict[str, zipfile.ZipInfo] = {}
    inflated = 0
    for info in infos:
        name = info.filename
        if name in entries:
            raise ModelError(f"has two entries named {name!r:.80}")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ModelError(f"has an entry outside of itself: {name!r:.80}")
        if info.flag_bits & 1:
            raise ModelError("is encrypted")
        if info.compress_type == zipfile.ZIP_DEFLATED:
            inflated += info.file_size
        elif info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ModelError(f"{name!r:.80} is compressed in an unsupported way")
        entries[name] = info
    if inflated > max(MAX_PICKLE_BYTES, MAX_EXPANSION * size):
        raise ModelError(f"would expand to {inflated} bytes")
    return entries


def _prefix(entries: dict[str, zipfile.ZipInfo]) -> str:
    """The folder inside the archive that holds everything."""
    found = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise ModelError("is not a PyTorch checkpoint: it holds no single data.pkl")
    prefix = found[0].removesuffix("/data.pkl")
    if f"{prefix}/constants.pkl" in entries:
        raise ModelError(
            "is a TorchScript program, not a state dict",
            next_step="Save the tensors only: torch.save(model.state_dict(), FILE)",
        )
    return prefix
