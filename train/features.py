"""A cache of arrays on disk: what an encoder said of a frame or a caption, computed once.

A folder holds `description.json` (what the arrays are), `data.bin` (one array after the other, in
C order) and `index.jsonl` (a line `[key, first row, rows]` for each array). Both files only grow.
A line is written after the disk has confirmed the data that it speaks of, so that every key found
in the index has its array whole, whatever happened to the process or the machine. What was written
without a line is overwritten by the next run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from memcli.errors import ModelError, OutputError
from memcli.home import home, make_dir
from memcli.locking import lock

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from memcli.spec import EncoderSpec, FramePrep, TextPrep

FORMAT = 1
"""Raised when features of an older memcli are no longer those that it would compute."""
_DESCRIPTION = "description.json"
_INDEX = "index.jsonl"
_DATA = "data.bin"
_KIND = "memcli features"
_MAX_DESCRIPTION_BYTES = 1 << 20
_FLUSH_BYTES = 64 << 20
_FLUSH_S = 2.0


class FeatureStore:
    """An open cache. One process at a time may hold it; arrays that `get` gave outlive it.

    Made by `FeatureStore.open`; a context manager. Not for several threads at once.
    """

    def __init__(self, folder: Path, tail: tuple[int, ...], dtype: npt.DTypeLike, index: int):
        import numpy as np

        self.folder = folder
        self.tail = tail
        self.dtype = np.dtype(dtype)
        self._row_bytes = self.dtype.itemsize * int(np.prod(tail, dtype=np.int64))
        self._index = index
        self._index_end = 0
        self._data = -1
        self._rows = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._pending: dict[str, tuple[int, int]] = {}
        self._pending_bytes = 0
        self._flushed_at = time.monotonic()
        self._mapped: npt.NDArray[np.generic] | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        tail: tuple[int, ...],
        dtype: str,
        description: dict[str, Any],
        *,
        on_wait: Callable[[], None] | None = None,
    ) -> FeatureStore:
        """Open or begin the cache in `folder` of arrays [n, *tail] of `dtype`.

        `description` says in JSON's terms what the arrays are, e.g. which encoder made them.
        Where another process holds the cache, `on_wait` is called once and this waits for it;
        without `on_wait` that is a UsageError. Raises ModelError if the folder holds arrays of
        another description, UsageError if it cannot be made, OutputError if it cannot be written.
        """
        make_dir(folder)
        path = folder / _INDEX
        try:
            index = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(path, error) from error
        store = cls(folder, tail, dtype, index)
        try:
            lock(
                index,
                folder,
                busy="another memcli run is computing these features",
                wait="Wait for it: this run can use what it leaves.",
                elsewhere="Choose another place: MEMCLI_HOME=DIR memcli ...",
                on_wait=on_wait,
            )
            store._check_description(description)
            store._load()
        except BaseException:
            store._release()
            raise
        return store

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, key: str, array: npt.NDArray[Any]) -> None:
        """Append `array` [n, *tail], n >= 1; it replaces an earlier one of the same key.

        Raises ValueError for another shape or a dtype that does not fit, OutputError if the disk
        does not take it: what was added before stays valid.
        """
        import numpy as np

        if array.shape[1:] != self.tail or array.ndim != len(self.tail) + 1 or not len(array):
            raise ValueError(f"features are {array.shape}, not (n, {str(self.tail)[1:]}")
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise ValueError(f"features are {array.dtype}, not {self.dtype}")
        data = np.ascontiguousarray(array, self.dtype).data.cast("B")
        start = self._rows * self._row_bytes
        try:
            _write(self._data, data, start)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._data, start)  # leaves room for the lines of what was added
            raise _unwritable(self.folder / _DATA, error) from error
        place = (self._rows, len(array))
        self._rows += len(array)  # first: an interrupt after this line costs room, no array
        self._places[key] = self._pending[key] = place
        self._pending_bytes += len(data)
        late = time.monotonic() - self._flushed_at >= _FLUSH_S
        if late or self._pending_bytes >= _FLUSH_BYTES:
            self.flush()

    def get(self, key: str) -> npt.NDArray[Any]:
        """The array [n, *tail] of a key: read-only, memory-mapped, valid also after `close`.

        Raises KeyError for a key that is not here.
        """
        first, count = self._places[key]
        if self._mapped is None or len(self._mapped) < first + count:
            import numpy as np

            shape = (self._rows, *self.tail)
            self._mapped = np.memmap(self.folder / _DATA, self.dtype, "r", shape=shape)
        return self._mapped[first : first + count]

    def flush(self) -> None:
        """Have the disk confirm what was added: from here on it survives a crash.

        Raises OutputError if the disk does not take it; what was flushed before stays valid, and
        the next `flush` tries again.
        """
        self._flushed_at = time.monotonic()
        if not self._pending:
            return
        lines = "".join(json.dumps([key, *place]) + "\n" for key, place in self._pending.items())
        line_bytes = lines.encode("ascii")
        try:
            os.fsync(self._data)
            _write(self._index, memoryview(line_bytes), self._index_end)
            os.fsync(self._index)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._index, self._index_end)
            raise _unwritable(self.folder / _INDEX, error) from error
        self._index_end += len(line_bytes)
        self._pending.clear()
        self._pending_bytes = 0

    def close(self) -> None:
        """Flush and give the cache back to other processes. Raises OutputError as `flush` does."""
        if self._index < 0:
            return
        try:
            self.flush()
        finally:
            self._release()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The first error is the one to show: a full disk would only repeat itself here.
        with contextlib.suppress(OutputError) if error else contextlib.nullcontext():
            self.close()

    def _release(self) -> None:
        for descriptor in (self._data, self._index):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._index = -1

    def _check_description(self, description: dict[str, Any]) -> None:
        """Write the description of a new cache; raise ModelError for the cache of another."""
        wanted = {
            "kind": _KIND,
            "format": FORMAT,
            "dtype": self.dtype.str,
            "tail": list(self.tail),
            "of": json.loads(json.dumps(description)),
        }
        path = self.folder / _DESCRIPTION
        if not path.exists() and os.fstat(self._index).st_size == 0:
            beside = path.with_name(f".{path.name}.new")
            try:
                with beside.open("w", encoding="utf-8") as stream:
                    json.dump(wanted, stream, indent=1)
                    stream.flush()
                    os.fsync(stream.fileno())
                beside.replace(path)
            except OSError as error:
                raise _unwritable(path, error) from error
            return
        try:
            with path.open("rb") as stream:
                found = json.loads(stream.read(_MAX_DESCRIPTION_BYTES))
        except (OSError, ValueError, RecursionError):
            found = None
        if found != wanted:
            raise ModelError(
                "this cache holds features of another encoder or preparation, or is damaged",
                where=str(self.folder),
                next_step="Delete this folder: the features are then computed again.",
            )

    def _load(self) -> None:
        """Take what the index says; lines that a crash tore or the disk damaged are passed over."""
        path = self.folder / _DATA
        try:
            self._data = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._data).st_size
            with (self.folder / _INDEX).open("rb") as stream:
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    self._index_end += len(line)
                    self._remember(line, size // self._row_bytes)
            os.ftruncate(self._index, self._index_end)
        except OSError as error:
            raise _unwritable(path, error) from error

    def _remember(self, line: bytes, rows: int) -> None:
        try:
            key, first, count = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            return
        if type(key) is not str or type(first) is not int or type(count) is not int:
            return
        if first >= 0 and count >= 1 and first + count <= rows:
            self._places[key] = (first, count)
            self._rows = max(self._rows, first + count)


def encoder_description(
    checkpoint_digest: str, spec: EncoderSpec, prep: FramePrep | TextPrep
) -> dict[str, Any]:
    """What features are of: the encoder (by name and content) and how its input was prepared."""
    return {
        "encoder": dataclasses.asdict(spec),
        "digest": checkpoint_digest,
        "prep": dataclasses.asdict(prep),
    }


def open_features(
    checkpoint_digest: str,
    spec: EncoderSpec,
    prep: FramePrep | TextPrep,
    *,
    on_wait: Callable[[], None] | None = None,
) -> FeatureStore:
    """The cache of an encoder's features, float32 [n, spec.dim]. Raises as `FeatureStore.open`."""
    description = encoder_description(checkpoint_digest, spec, prep)
    folder = _features_dir(spec.repository, description)
    return FeatureStore.open(folder, (spec.dim,), "float32", description, on_wait=on_wait)


def open_prepared_frames(
    prep: FramePrep, *, on_wait: Callable[[], None] | None = None
) -> FeatureStore:
    """The cache of decoded frames, uint8 [T, H, W, 3], for encoders that are trained themselves.

    mean, std and scale have no part in it: they are applied inside the encoder.
    """
    fields = dataclasses.asdict(prep)
    description = {
        "frames": {name: fields[name] for name in fields if name not in ("scale", "mean", "std")}
    }
    folder = _features_dir("frames", description)
    return FeatureStore.open(folder, prep.frame_shape(), "uint8", description, on_wait=on_wait)


def _features_dir(name: str, description: dict[str, Any]) -> Path:
    text = json.dumps({"format": FORMAT, **description}, sort_keys=True)
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name.rstrip("/").rpartition("/")[2])[:48]
    return home() / "features" / f"{readable}-{digest}"


def _write(descriptor: int, data: memoryview, place: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], place + written)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"features cannot be written: {error.strerror or error}",
        where=str(path),
        next_step="Make room (or choose another place with MEMCLI_HOME) and run the same command"
        " again: it goes on from here.",
    )
