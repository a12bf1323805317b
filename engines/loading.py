"""What runtimes share: finding their packages, and reading facts off a graph before it runs."""

from __future__ import annotations

import functools
import importlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from memcli.engines.base import EngineName, TensorSpec
from memcli.errors import EngineError, MissingDependencyError, is_interrupt

if TYPE_CHECKING:
    from memcli.engines.base import Array
    from memcli.engines.cuda import DeviceArray

CPU_INSTALL = "pip install 'memcli[cpu]'"
GPU_INSTALL = "pip install 'memcli[gpu]'"
BOTH_INSTALLS = f"{CPU_INSTALL}   (this CPU)\n       or:  {GPU_INSTALL}   (an NVIDIA GPU)"

_PACKAGES: dict[EngineName, str] = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
_TENSORRT: dict[EngineName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Modules by preference: the wheels of the bindings come with or without the package around them,
and JetPack has the first only."""
_TENSORRT_INSTALL: dict[EngineName, str] = {
    "tensorrt": "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13"
    "   (the vendor's index)\n       or, on a Jetson:  sudo apt install tensorrt python3-libnvinfer"
    "   (JetPack)\n       or use --engine tensorrt-rtx on a GeForce or RTX GPU",
    "tensorrt-rtx": "pip install 'memcli[tensorrt-rtx]'",
}
_TITLES: dict[EngineName, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
# The instruction set extensions that decide which runtime is fastest, as Linux spells them.
_CPU_FEATURES = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)


@dataclass(frozen=True)
class GraphFacts:
    """What a graph says about itself, read without its weights."""

    quantised_to: frozenset[str]
    """Element types its QuantizeLinear nodes produce, e.g. `int8`; empty for a float graph."""
    external_files: frozenset[str]
    """External data files it names anywhere, subgraphs and functions included; as written."""

    @property
    def is_quantised(self) -> bool:
        """Whether the graph quantises activations."""
        return bool(self.quantised_to)


def import_runtime(name: EngineName) -> ModuleType:
    """The module of an installed runtime.

    Raises MissingDependencyError, naming the extra that installs it, or EngineError if it is
    installed but broken (a missing system library, for instance).
    """
    if name in _TENSORRT:
        package = installed_tensorrt(name) or _TENSORRT[name][0]
    else:
        package = _PACKAGES[name]
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise EngineError(f"{package} is installed but does not load: {error}") from error
        extras = CPU_INSTALL if name == "openvino" else BOTH_INSTALLS
        raise MissingDependencyError(
            package,
            purpose=f"running a model with {_TITLES.get(name, name)}",
            install=_TENSORRT_INSTALL.get(name, extras),
        ) from error
    except (ImportError, OSError) as error:
        if is_interrupt(error):
            raise KeyboardInterrupt from error  # Ctrl-C while the package's modules initialise
        raise EngineError(
            f"{package} is installed but does not load: {one_line(error)}",
            next_step=f"Install it again: pip install --force-reinstall {package}",
        ) from error


def installed_runtimes() -> tuple[EngineName, ...]:
    """Runtimes that need no GPU and whose package is present; nothing is imported."""
    import importlib.util

    return tuple(name for name, package in _PACKAGES.items() if importlib.util.find_spec(package))


def installed_tensorrt(name: EngineName) -> str | None:
    """The module of `tensorrt` or `tensorrt-rtx`, None without one; nothing is imported."""
    import importlib.util

    return next((one for one in _TENSORRT[name] if importlib.util.find_spec(one)), None)


def no_runtime_error() -> MissingDependencyError:
    """Neither runtime is installed: both extras are named, because they exclude each other."""
    return MissingDependencyError(
        "a runtime (onnxruntime or openvino)", purpose="running a model", install=BOTH_INSTALLS
    )


def graph_facts(graph: Path) -> GraphFacts:
    """Read a graph's quantisation and external files; the weights stay on disk.

    Raises EngineError if the file is no ONNX graph.
    """
    import onnx

    try:
        model = onnx.load(str(graph), load_external_data=False)
    except FileNotFoundError:
        raise EngineError("the graph is missing", where=str(graph)) from None
    except Exception as error:  # protobuf raises its own DecodeError, which it does not export
        raise EngineError(f"not an ONNX graph: {one_line(error)}", where=str(graph)) from error
    tensors: dict[str, Any] = {}
    nodes: list[Any] = []
    files: set[str] = set()
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto":
            files |= {entry.value for entry in message.external_data if entry.key == "location"}
        elif kind == "GraphProto":
            tensors |= {tensor.name: tensor for tensor in message.initializer}
        elif kind == "NodeProto" and message.op_type == "Constant":
            values = [one.t for one in message.attribute if one.name == "value"]
            tensors |= dict(zip(message.output, values, strict=False))
        elif kind == "NodeProto" and message.op_type == "QuantizeLinear":
            nodes.append(message)
    kinds = {_quantised_type(node, tensors) for node in nodes}
    return GraphFacts(quantised_to=frozenset(kinds), external_files=frozenset(files))


def _messages(model: Any) -> Iterator[Any]:
    """A protobuf message and all that it holds: graphs inside nodes, functions, sparse tensors.

    By what is there and not by where ONNX has tensors today, so that none is missed.
    """
    pending = [model]
    while pending:
        message = pending.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None and field.name not in ("value_info", "type"):
                pending += [value] if hasattr(value, "ListFields") else value


def _quantised_type(node: Any, tensors: dict[str, Any]) -> str:
    """Element type one QuantizeLinear produces: its zero point's, uint8 where it has none."""
    import onnx

    kind = onnx.TensorProto.UINT8
    if len(node.input) > 2 and node.input[2] in tensors:
        kind = tensors[node.input[2]].data_type
    else:
        kind = next((a.i for a in node.attribute if a.name == "output_dtype" and a.i), kind)
    return str(onnx.TensorProto.DataType.Name(kind)).lower()


def check_feeds(feeds: Mapping[str, Array | DeviceArray], inputs: Sequence[TensorSpec]) -> None:
    """Compare names, element types and fixed axes with the graph's inputs.

    Raises EngineError. Done here because OpenVINO converts other element types silently.
    """
    if set(feeds) != {spec.name for spec in inputs}:
        wanted = ", ".join(spec.name for spec in inputs)
        raise EngineError(f"the graph takes {wanted}, not {', '.join(sorted(feeds)) or 'nothing'}")
    for spec in inputs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            isinstance(axis, str) or axis == size
            for axis, size in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype.name != spec.dtype or not fits or 0 in array.shape:
            raise EngineError(
                f"{spec.name} is {array.dtype.name} {list(array.shape)}; "
                f"the graph takes {spec.dtype} {list(spec.shape)}"
            )


def usable_cpus() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def cpu_name() -> str:
    """The processor as the system names it, e.g. `AMD EPYC`."""
    for key in ("model name", "Model", "Hardware"):
        if value := _cpuinfo().get(key):
            return value
    return platform.processor() or platform.machine() or "unknown CPU"


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """The extensions of this CPU that runtimes choose their kernels by."""
    info = _cpuinfo()
    flags = set(f"{info.get('flags', '')} {info.get('Features', '')}".split())
    return tuple(name for name in _CPU_FEATURES if name in flags)


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def one_line(error: BaseException, limit: int = 300) -> str:
    """The first telling line of a runtime's message: theirs carry stack traces and C++ files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    text = (telling or lines or [type(error).__name__])[0]
    return text if len(text) <= limit else text[: limit - 1] + "…"
