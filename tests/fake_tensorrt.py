"""TensorRT and the CUDA runtime without a GPU: what our code calls, with their rules of order.

`FakeCuda` queues what is asked of a stream and does it as late as is allowed: when an event or the
stream is waited for, or memory is freed. A copy or a run that nothing waits for has not happened,
and what is read too early is garbage. `make_trt()` compiles nothing: a plan is its profile as JSON,
and an engine computes the mean brightness of each clip.
"""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace
from typing import Any

import numpy as np

GARBAGE = 0xA5
SIDE = 8


class FakeCuda:
    """Stands for the module `cuda.bindings.runtime`."""

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )

    def __init__(self, *, devices: int = 1, memory: int = 24 << 30, capability: str = "8.9"):
        self.devices = devices
        self.memory = memory
        self.capability = capability
        self.driver = 13000
        self.blocks: dict[int, Any] = {}
        self.streams: dict[int, list[Any]] = {}
        self.default_stream: list[Any] = []
        self.events: dict[int, tuple[int, object] | None] = {}
        self.copies: list[str] = []
        self.order: list[str] = []
        self._next = 1

    def _number(self) -> int:
        self._next += 1
        return self._next

    def cudaGetDeviceCount(self) -> Any:
        return (0, self.devices) if self.devices else (35, None)

    def cudaGetErrorString(self, error: Any) -> Any:
        return 0, {35: b"driver too old", 2: b"out of memory"}.get(int(error), b"unknown")

    def cudaSetDevice(self, index: int) -> Any:
        return (0,)

    def cudaGetDeviceProperties(self, index: int) -> Any:
        major, minor = self.capability.split(".")
        return 0, SimpleNamespace(
            name=b"Fake GPU\0", major=int(major), minor=int(minor), totalGlobalMem=self.memory
        )

    def cudaDriverGetVersion(self) -> Any:
        return 0, self.driver

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        number = self._number()
        self.streams[number] = []
        return 0, number

    def cudaStreamDestroy(self, stream: int) -> Any:
        assert not self.streams.pop(stream)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        self._until(stream, None)
        return (0,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        number = self._number()
        self.events[number] = None
        return 0, number

    def cudaEventDestroy(self, event: int) -> Any:
        del self.events[event]
        return (0,)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        mark = object()
        self.streams[stream].append(mark)
        self.events[event] = (stream, mark)
        return (0,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        recorded = self.events[event]
        if recorded is not None:
            self.streams[stream].append(lambda: self._until(*recorded))
        return (0,)

    def cudaEventSynchronize(self, event: int) -> Any:
        recorded = self.events[event]
        if recorded is not None:
            self._until(*recorded)
        return (0,)

    def cudaMalloc(self, size: int) -> Any:
        return self._allocate(size) if size <= self.memory else (2, None)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        return self._allocate(size)

    def cudaFree(self, pointer: int) -> Any:
        for stream in self.streams:
            self._until(stream, None)
        block = self.blocks.pop(pointer)
        ctypes.memset(block, GARBAGE, len(block))
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> Any:
        name = {1: "in", 2: "out", 3: "within"}[kind]
        self.copies.append(name)

        def copy() -> None:
            self.order.append(name)
            ctypes.memmove(target, source, size)

        queue = self.streams[stream] if stream else self.default_stream
        queue.append(copy)
        return (0,)

    def _allocate(self, size: int) -> Any:
        block = (ctypes.c_uint8 * size)()
        ctypes.memset(block, GARBAGE, size)
        pointer = ctypes.addressof(block)
        self.blocks[pointer] = block
        return 0, pointer

    def _until(self, stream: int, mark: object) -> None:
        queue = self.streams[stream] if stream else self.default_stream
        if mark is not None and mark not in queue:
            return
        while queue:
            step = queue.pop(0)
            if callable(step):
                step()
            if step is mark:
                return


class _Named:
    """An enumerator."""

    def __init__(self, name: str, value: int = 0):
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value


class _Context:
    def __init__(self, trt: Any, profile: dict[str, list[int]]):
        self._trt, self._profile = trt, profile
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._scratch = (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        fits = zip(("batch", "time"), shape, strict=False)
        return all(self._profile[axis][0] <= n <= self._profile[axis][2] for axis, n in fits)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return bool(address)

    def update_device_memory_size_for_shapes(self) -> int:
        return int(np.prod(self._shape))

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = (memory, size)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape[:1] if name == "score" else self._shape[:2]

    def execute_async_v3(self, stream: int) -> bool:
        addresses, shape, scratch = dict(self._addresses), self._shape, self._scratch
        cuda = self._trt.cuda
        if self._trt.refuses_to_run:
            return False
        assert scratch[1] >= np.prod(shape)

        def compute() -> None:
            cuda.order.append("run")
            assert scratch[0] in cuda.blocks
            frames = _array(addresses["frames"], shape, np.uint8)
            means = frames.reshape(*shape[:2], -1).mean(axis=2) / 255
            means += 0.5 * self._trt.computes_wrongly(self._profile)
            _array(addresses["frame_scores"], shape[:2], np.float32)[:] = means
            _array(addresses["score"], shape[:1], np.float32)[:] = means.mean(axis=1)

        cuda.streams[stream].append(compute)
        return True


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    count = int(np.prod(shape))
    block = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(block, dtype=dtype).reshape(shape)


class _RuntimeCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob
        return True

    def serialize(self) -> bytes:
        return self.content + b"+kernels"


class _RuntimeConfig:
    cache: Any = None

    def create_runtime_cache(self) -> _RuntimeCache:
        return _RuntimeCache()

    def set_runtime_cache(self, cache: _RuntimeCache) -> bool:
        _RuntimeConfig.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        assert strategy.name == "USER_MANAGED"


class _Engine:
    _TENSORS = (
        ("frames", "INPUT", "UINT8", (-1, -1, SIDE, SIDE, 3)),
        ("score", "OUTPUT", "FLOAT", (-1,)),
        ("frame_scores", "OUTPUT", "FLOAT", (-1, -1)),
    )
    num_io_tensors = len(_TENSORS)

    def __init__(self, trt: Any, profile: dict[str, list[int]]):
        self._trt, self._profile = trt, profile

    def get_tensor_name(self, index: int) -> str:
        return self._TENSORS[index][0]

    def _of(self, name: str) -> Any:
        return next(one for one in self._TENSORS if one[0] == name)

    def get_tensor_mode(self, name: str) -> _Named:
        return _Named(self._of(name)[1])

    def get_tensor_dtype(self, name: str) -> _Named:
        return _Named(self._of(name)[2])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._of(name)[3])

    def create_runtime_config(self) -> _RuntimeConfig:
        return _RuntimeConfig()

    def create_execution_context(self, how: Any) -> _Context:
        return _Context(self._trt, self._profile)


def make_trt(cuda: FakeCuda, *, rtx: bool = False, version: str | None = None) -> Any:
    """Stands for the module `tensorrt` or `tensorrt_rtx`; `built` lists the profiles compiled."""
    trt = SimpleNamespace(
        __version__=version or ("1.7.1.116" if rtx else "10.3.0"),
        cuda=cuda,
        built=[],
        configs=[],
        timing_caches=[],
        loads=lambda plan: True,
        refuses_to_run=False,
        computes_wrongly=lambda profile: False,
        ILogger=type("ILogger", (), {}),
        IProgressMonitor=type("IProgressMonitor", (), {}),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        BuilderFlag=SimpleNamespace(TF32="TF32"),
        ProfilingVerbosity=SimpleNamespace(DETAILED=2, LAYER_NAMES_ONLY=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE", TACTIC_DRAM="TACTIC_DRAM"),
        ComputeCapability=SimpleNamespace(SM86="SM86", SM89="SM89", SM120="SM120"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=_Named("USER_MANAGED")),
    )

    class Parser:
        num_errors = 0

        def __init__(self, network: Any, log: Any):
            pass

        def parse_from_file(self, path: str) -> bool:
            return True

    class Shapes:
        def __init__(self) -> None:
            self.axes: dict[str, list[int]] = {}

        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            for index, axis in enumerate(("batch", "time")):
                self.axes[axis] = [shape[index] for shape in shapes]

    class TimingCache:
        def __init__(self, content: bytes):
            self.content = content

        def serialize(self) -> bytes:
            return self.content + b"t"

    class Config:
        progress_monitor: Any = None
        profile: Any = None

        def __init__(self) -> None:
            self.limits: dict[str, int] = {}
            self.cleared: list[str] = []
            self.target: Any = None
            trt.configs.append(self)

        def clear_flag(self, flag: str) -> None:
            self.cleared.append(flag)

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            self.limits[pool] = size

        def set_compute_capability(self, capability: Any, index: int) -> bool:
            self.target = capability
            return True

        def add_optimization_profile(self, shapes: Shapes) -> None:
            self.profile = shapes.axes

        def create_timing_cache(self, content: bytes) -> TimingCache:
            return TimingCache(content)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            trt.timing_caches.append(cache.content)
            return not cache.content.startswith(b"other")

    frames = SimpleNamespace(name="frames", shape=(-1, -1, SIDE, SIDE, 3))

    class Builder:
        def __init__(self, log: Any):
            pass

        def create_network(self, flags: int) -> Any:
            assert flags == 2
            return SimpleNamespace(num_inputs=1, get_input=lambda index: frames)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Shapes:
            return Shapes()

        def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
            trt.built.append(config.profile)
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 2)
            if not (monitor.step_complete("Building", 0) and monitor.step_complete("Building", 1)):
                return None
            monitor.phase_finish("Building")
            return b"PLAN" + json.dumps([trt.__version__, config.profile]).encode()

    class Runtime:
        def __init__(self, log: Any):
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
            if not plan.startswith(b"PLAN") or not trt.loads(plan):
                self.log.log(_Named("ERROR"), "The engine plan file is not compatible")
                return None
            return _Engine(trt, json.loads(plan[4:])[1])

    trt.OnnxParser, trt.Builder, trt.Runtime = Parser, Builder, Runtime
    return trt
