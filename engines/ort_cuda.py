"""ONNX Runtime on an NVIDIA GPU: options, opening a session, and saying what went wrong.

CUDA graphs record the launches of one shape and play them again. They are for graphs whose shapes
are all fixed; `MEMCLI_CUDA_GRAPHS=1` also records the first shapes of others, and is refused where
the runtime cannot record them.

fp32 is fp32: TF32, which ONNX Runtime would use by default (use_tf32), is off.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from memcli.engines.loading import one_line
from memcli.errors import DeviceError, EngineError, UsageError

if TYPE_CHECKING:
    from memcli.engines.base import Array
    from memcli.engines.cuda import DeviceArray

PROVIDER = "CUDAExecutionProvider"
LIMIT_VARIABLE = "MEMCLI_CUDA_MEMORY_LIMIT"
ARENA_VARIABLE = "MEMCLI_CUDA_ARENA"
GRAPHS_VARIABLE = "MEMCLI_CUDA_GRAPHS"

_SEVERITY_ERROR = 3
_ARENAS = {"power-of-two": "kNextPowerOfTwo", "as-requested": "kSameAsRequested"}
_GRAPHS: dict[str, Literal["auto", "on", "off"]] = {"": "auto", "auto": "auto", "1": "on"}
_GRAPHS |= {"on": "on", "0": "off", "off": "off"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_OUT_OF_MEMORY = (
    "failed to allocate memory",
    "out of memory",
    "cudaerrormemoryallocation",
    "alloc_failed",
    "available memory of",
)


@dataclass(frozen=True)
class CudaOptions:
    """What a machine's owner may decide. Read from the environment: it belongs to the machine."""

    memory_limit: int | None = None
    """Bytes that ONNX Runtime's arena may take; None for no limit."""
    arena: Literal["power-of-two", "as-requested"] | None = None
    """How the arena grows; None: as requested under a limit, else by powers of two."""
    graphs: Literal["auto", "on", "off"] = "auto"

    @classmethod
    def from_environment(cls, values: Mapping[str, str] = os.environ) -> CudaOptions:
        """Raises UsageError for a value that cannot be meant."""
        arena = values.get(ARENA_VARIABLE, "")
        if arena not in ("", "power-of-two", "as-requested"):
            raise UsageError(f"{arena!r} is none of {', '.join(_ARENAS)}", where=ARENA_VARIABLE)
        graphs = values.get(GRAPHS_VARIABLE, "")
        if graphs not in _GRAPHS:
            raise UsageError(f"{graphs!r} is none of auto, 1, 0", where=GRAPHS_VARIABLE)
        return cls(
            memory_limit=_bytes(values.get(LIMIT_VARIABLE, "")),
            arena=None if arena == "" else "power-of-two" if arena[0] == "p" else "as-requested",
            graphs=_GRAPHS[graphs],
        )

    def provider(self, device_id: int, *, record: bool) -> tuple[str, dict[str, str]]:
        """The provider with its options, as a session takes it."""
        arena = self.arena or ("as-requested" if self.memory_limit else "power-of-two")
        options = {
            "device_id": str(device_id),
            "arena_extend_strategy": _ARENAS[arena],
            "use_tf32": "0",
        }
        if self.memory_limit is not None:
            options["gpu_mem_limit"] = str(self.memory_limit)
        if record:
            options["enable_cuda_graph"] = "1"
        return PROVIDER, options


def _bytes(text: str) -> int | None:
    """`4G`, `512MiB` or a number of bytes; None for nothing."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,15})\s*([KMG]?)(i?B)?", text, re.IGNORECASE)
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if not size:
        raise UsageError(
            f"{text!r} is no amount of memory", where=LIMIT_VARIABLE, next_step="Say e.g. 4G"
        )
    return size


def open_session(ort: ModuleType, graph: Path, options: Any, device_id: int) -> tuple[Any, bool]:
    """A session that runs on the GPU, and whether it records CUDA graphs.

    Raises DeviceError if CUDA does not start, and says what is missing; EngineError if the graph
    does not load.
    """
    cuda = CudaOptions.from_environment()
    _load_libraries(ort)
    if cuda.graphs == "on" or (cuda.graphs == "auto" and _has_fixed_shapes(graph)):
        try:
            return _started(ort, graph, options, cuda, device_id, record=True), True
        except EngineError as error:  # e.g. a node without a CUDA kernel
            if cuda.graphs == "on":
                error.next_step = f"Run it without CUDA graphs: {GRAPHS_VARIABLE}=0"
                raise
    return _started(ort, graph, options, cuda, device_id, record=False), False


def open_unrecorded(ort: ModuleType, graph: Path, options: Any, device_id: int) -> Any:
    """As `open_session`, without CUDA graphs: for a graph that each run gives other shapes."""
    cuda = CudaOptions.from_environment()
    _load_libraries(ort)
    return _started(ort, graph, options, cuda, device_id, record=False)


def open_stage(ort: ModuleType, graph: bytes, device_id: int) -> Any:
    """A session of a graph that may run nowhere but on the GPU, without CUDA graphs.

    Raises as `open_session`.
    """
    cuda = CudaOptions.from_environment()
    _load_libraries(ort)
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return _started(ort, graph, options, cuda, device_id, record=False)


def _started(
    ort: ModuleType,
    graph: Path | bytes,
    options: Any,
    cuda: CudaOptions,
    device_id: int,
    *,
    record: bool,
) -> Any:
    provider = cuda.provider(device_id, record=record)
    try:
        # Without enable_fallback=0 a provider that does not start is replaced by the CPU's.
        source = graph if isinstance(graph, bytes) else str(graph)
        session = ort.InferenceSession(source, options, providers=[provider], enable_fallback=0)
    except Exception as error:  # ORT's exceptions share no public base but Exception
        raise _open_error(ort, graph, device_id, error) from error
    if PROVIDER not in session.get_providers():
        raise why_no_cuda(ort, device_id)
    return session


def _has_fixed_shapes(graph: Path) -> bool:
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    axes = [axis for value in model.graph.input for axis in value.type.tensor_type.shape.dim]
    return all(axis.HasField("dim_value") for axis in axes)


def _load_libraries(ort: ModuleType) -> None:
    """Let ONNX Runtime find the CUDA and cuDNN wheels (from 1.21), which no loader path names."""
    ort.set_default_logger_severity(4)  # what fails is said by our errors, in one line
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            preload()


def _open_error(
    ort: ModuleType, graph: Path | bytes, device_id: int, error: Exception
) -> EngineError | DeviceError:
    if is_out_of_memory(error):
        return EngineError(
            "the GPU has not enough free memory for the model's weights",
            where=f"cuda:{device_id}",
            next_step=f"End what else runs there, or raise {LIMIT_VARIABLE} if it is set.",
        )
    if "CUDA" in str(error) and "provider" in str(error).lower():
        return why_no_cuda(ort, device_id)
    where = f"cuda:{device_id}" if isinstance(graph, bytes) else str(graph)
    return EngineError(f"onnxruntime cannot load the graph: {one_line(error)}", where=where)


def why_no_cuda(ort: ModuleType, device_id: int) -> DeviceError:
    """Why a GPU build of ONNX Runtime did not start CUDA; looked at only after it failed."""
    where = f"cuda:{device_id}"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return DeviceError(
            "this machine has no NVIDIA driver (libcuda.so.1): onnxruntime would run on the CPU",
            where=where,
            next_step="Install the driver; in a container: docker run --gpus all ...",
        )
    missing = _missing_library(Path(str(ort.__file__)).parent / "capi")
    if missing is not None:
        return DeviceError(
            f"onnxruntime {ort.__version__} does not find {missing}, and would run on the CPU",
            where=where,
            next_step="Install CUDA and cuDNN for it: pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return DeviceError(
            "the NVIDIA driver does not start", where=where, next_step="See: nvidia-smi"
        )
    if device_id >= count.value:
        return DeviceError(f"there are {count.value} GPUs here, counted from 0", where=where)
    return DeviceError(
        "onnxruntime could not start CUDA and would have run on the CPU",
        where=where,
        next_step="Check the NVIDIA driver and the CUDA libraries: memcli doctor",
    )


def _missing_library(folder: Path) -> str | None:
    """The library that the CUDA provider asks for and the loader does not find."""
    provider = folder / "libonnxruntime_providers_cuda.so"
    if not provider.is_file():
        return provider.name
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
    except OSError as error:
        found = re.match(r"(\S+): cannot open shared object file", str(error))
        return found[1] if found else one_line(error)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a message of ONNX Runtime, CUDA, cuBLAS or cuDNN says that memory did not suffice."""
    text = str(error).lower()
    return any(sign in text for sign in _OUT_OF_MEMORY)


def run_error(error: Exception, feeds: Mapping[str, Array | DeviceArray]) -> EngineError:
    """What to say of a run that failed; out of memory names the batch."""
    if not is_out_of_memory(error):
        return EngineError(f"onnxruntime cannot run the graph: {one_line(error)}")
    batch = max(array.shape[0] for array in feeds.values())
    sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in sorted(feeds.items()))
    return EngineError(
        f"the GPU has not enough memory for a batch of {batch} ({sizes})",
        next_step=f"Use a smaller one: --batch-size {max(1, batch // 2)}",
    )
