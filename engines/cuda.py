"""What the TensorRT engine needs of CUDA, through `cuda-python` (`cuda.bindings.runtime`).

The runtime API of `cuda.bindings` is the same from CUDA 12.6 (JetPack 6) to 13; the higher-level
`cuda.core` has its first stable version for CUDA 13 only, and allocates from stream-ordered pools,
which not every Jetson and virtual GPU has.
"""

from __future__ import annotations

import ctypes
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.engines.loading import one_line
from memcli.errors import DeviceError, EngineError, MissingDependencyError

if TYPE_CHECKING:
    from memcli.engines.base import Array

_INSTALL = "pip install 'cuda-python>=12.6'   (JetPack 6: 'cuda-python>=12.6,<13')"
"""Not `memcli[gpu]`, which would put onnxruntime-gpu over an onnxruntime that is there."""
_SMALL_DEVICE_BYTES = 9 << 30
"""Boards sold with 8 GB report a little less or, rounded up, a little more."""


@dataclass(frozen=True)
class DeviceFacts:
    """One GPU."""

    index: int
    name: str
    capability: str
    """E.g. "8.9"."""
    memory_bytes: int
    driver: str
    """Driver and the CUDA version that it speaks, e.g. `570.86.15, CUDA 12.8`."""

    @property
    def is_small(self) -> bool:
        """Whether it needs the low-memory build: 8 GB, as on small Jetsons."""
        return self.memory_bytes <= _SMALL_DEVICE_BYTES


@dataclass(frozen=True)
class DeviceArray:
    """An array in GPU memory, contiguous, that an engine reads in place.

    What writes it must have finished. `owner` is kept as long as the array is.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: Any
    """numpy.dtype."""
    owner: object = None

    @property
    def nbytes(self) -> int:
        size = int(self.dtype.itemsize)
        for length in self.shape:
            size *= length
        return size

    def rows(self, start: int, stop: int) -> DeviceArray:
        """A part along the first axis, without a copy."""
        size = int(self.dtype.itemsize)
        for length in self.shape[1:]:
            size *= length
        stop = min(stop, self.shape[0])
        shape = (stop - start, *self.shape[1:])
        return DeviceArray(self.pointer + start * size, shape, self.dtype, self.owner)


DEFAULT_STREAM = 0
"""CUDA's own, which needs no making."""


def device_index(device: str) -> int:
    """N of `cuda:N`, 0 of `cuda` and `auto`."""
    return int(device.partition(":")[2] or 0)


class Cuda:
    """The CUDA runtime on one GPU. Every call raises EngineError, in one line, where it fails."""

    def __init__(self, index: int = 0):
        """Raises MissingDependencyError without cuda-python, DeviceError without driver or GPU."""
        self.runtime = _import_runtime()
        self.index = index
        where = f"cuda:{index}"
        error, count = _call(self.runtime.cudaGetDeviceCount)
        if int(error) != 0:
            raise DeviceError(
                f"no NVIDIA GPU can be used here: {_error_text(self.runtime, error)}",
                where=where,
                next_step="Install the NVIDIA driver (in a container: docker run --gpus all); "
                "memcli doctor shows what there is.",
            )
        if index >= count:
            raise DeviceError(f"there are {count} GPUs here, counted from 0", where=where)
        self.use()

    def use(self) -> None:
        """Make the GPU the one of the calling thread."""
        self.check(self.runtime.cudaSetDevice(self.index))

    def check(self, result: Any) -> Any:
        """The value of a call's result. Raises EngineError if the call failed."""
        error, *values = result
        if int(error) != 0:
            text = _error_text(self.runtime, error)
            hint = "Use a smaller batch: --batch-size N" if "out of memory" in text else None
            raise EngineError(f"the GPU failed: {text}", next_step=hint)
        return values[0] if values else None

    def facts(self) -> DeviceFacts:
        """Name, capability, memory, driver."""
        found = self.check(self.runtime.cudaGetDeviceProperties(self.index))
        cuda = self.check(self.runtime.cudaDriverGetVersion())
        name = found.name.decode(errors="replace") if isinstance(found.name, bytes) else found.name
        driver = driver_version() or "unknown driver"
        return DeviceFacts(
            index=self.index,
            name=str(name).rstrip("\0"),
            capability=f"{found.major}.{found.minor}",
            memory_bytes=int(found.totalGlobalMem),
            driver=f"{driver}, CUDA {cuda // 1000}.{cuda % 1000 // 10}",
        )

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self.check(
            self.runtime.cudaStreamCreateWithFlags(self.runtime.cudaStreamNonBlocking)
        )

    def event(self) -> Any:
        """An event that only orders: without a time."""
        return self.check(
            self.runtime.cudaEventCreateWithFlags(self.runtime.cudaEventDisableTiming)
        )

    def record(self, event: Any, stream: Any) -> None:
        self.check(self.runtime.cudaEventRecord(event, stream))

    def wait(self, stream: Any, event: Any) -> None:
        """Let a stream wait for an event; the calling thread goes on."""
        self.check(self.runtime.cudaStreamWaitEvent(stream, event, 0))

    def wait_here(self, event: Any) -> None:
        """Let the calling thread wait for an event."""
        self.check(self.runtime.cudaEventSynchronize(event))

    def to_device(self, target: int, source: int, size: int, stream: Any) -> None:
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.check(self.runtime.cudaMemcpyAsync(target, source, size, kind, stream))

    def to_host(self, target: int, source: int, size: int, stream: Any) -> None:
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.check(self.runtime.cudaMemcpyAsync(target, source, size, kind, stream))

    def on_device(self, target: int, source: int, size: int, stream: Any) -> None:
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.check(self.runtime.cudaMemcpyAsync(target, source, size, kind, stream))

    def wait_stream(self, stream: Any) -> None:
        """Let the calling thread wait for all that a stream was asked for."""
        self.check(self.runtime.cudaStreamSynchronize(stream))

    def free_stream(self, stream: Any) -> None:
        self.wait_stream(stream)
        self.check(self.runtime.cudaStreamDestroy(stream))

    def free_event(self, event: Any) -> None:
        self.check(self.runtime.cudaEventDestroy(event))


class _Buffer(ABC):
    """Bytes that grow when more are needed."""

    def __init__(self, cuda: Cuda):
        self._cuda = cuda
        self.pointer = 0
        self.size = 0

    def reserve(self, size: int) -> int:
        """At least `size` bytes; their address. What was there is lost if they grow."""
        if size > self.size or not self.pointer:
            self.free()
            self.pointer = int(self._cuda.check(self._allocate(max(size, 1))))
            self.size = size
        return self.pointer

    def free(self) -> None:
        if self.pointer:
            pointer, self.pointer, self.size = self.pointer, 0, 0
            self._cuda.check(self._release(pointer))

    @abstractmethod
    def _allocate(self, size: int) -> Any:
        """The runtime's answer to an allocation."""

    @abstractmethod
    def _release(self, pointer: int) -> Any:
        """The runtime's answer to giving it back."""


class DeviceBuffer(_Buffer):
    """Bytes in GPU memory."""

    def _allocate(self, size: int) -> Any:
        return self._cuda.runtime.cudaMalloc(size)

    def _release(self, pointer: int) -> Any:
        return self._cuda.runtime.cudaFree(pointer)


class PinnedBuffer(_Buffer):
    """Bytes of host memory that the GPU copies from and to without the CPU's help."""

    def view(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """The bytes as an array that shares them; `reserve` first."""
        import numpy as np

        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        content = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(self.pointer)
        array: Array = np.frombuffer(content, dtype=kind, count=count).reshape(shape)
        return array

    def _allocate(self, size: int) -> Any:
        runtime = self._cuda.runtime
        return runtime.cudaHostAlloc(size, runtime.cudaHostAllocDefault)

    def _release(self, pointer: int) -> Any:
        return self._cuda.runtime.cudaFreeHost(pointer)


def driver_version(root: Path = Path("/")) -> str | None:
    """The NVIDIA driver's version, or the L4T release of a Jetson; None where there is neither."""
    for path, pattern in (
        ("proc/driver/nvidia/version", r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s"),
        ("etc/nv_tegra_release", r"#\s*(R\d+.*?REVISION:\s*[\d.]+)"),
    ):
        try:
            text = (root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if match := re.search(pattern, text):
            return re.sub(r"\W*(\(release\))?, REVISION: ", ".", match[1])
    return None


def gpu_label(device: str) -> str:
    """The GPU and driver behind `cuda[:N]` in a few words; empty where they cannot be asked."""
    try:
        facts = Cuda(device_index(device)).facts()
    except (MissingDependencyError, DeviceError, EngineError):
        return driver_version() or ""
    return f"{facts.name}, {facts.driver}"


def _import_runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "cuda-python", purpose="running a model with TensorRT", install=_INSTALL
        ) from error
    except Exception as error:  # a driver or library that is not there, each in its own kind
        raise DeviceError(
            f"cuda-python does not load: {one_line(error)}",
            next_step="Install the NVIDIA driver; memcli doctor shows what there is.",
        ) from error
    return runtime


def _call(function: Any) -> tuple[Any, Any]:
    """A call of the CUDA runtime that may be the first, and so find no library."""
    try:
        error, value = function()
    except Exception as problem:  # cuda-python's own errors, of several kinds
        raise DeviceError(
            f"no NVIDIA GPU can be used here: {one_line(problem)}",
            next_step="Install the NVIDIA driver; memcli doctor shows what there is.",
        ) from problem
    return error, value


def _error_text(runtime: Any, error: Any) -> str:
    name = str(getattr(error, "name", error))
    try:
        _, text = runtime.cudaGetErrorString(error)
        decoded = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    except Exception:  # it only explains
        return name
    return f"{decoded} ({name})"
