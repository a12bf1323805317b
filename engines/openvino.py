"""OpenVINO: the runtime of choice on CPUs that have its kernels (x86-64 and arm64)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.closing import Closeable
from memcli.engines.base import EngineDescription, TensorSpec
from memcli.engines.loading import check_feeds, cpu_name, graph_facts, import_runtime, one_line
from memcli.errors import DeviceError, EngineError

if TYPE_CHECKING:
    from memcli.engines.base import Array
    from memcli.engines.cuda import DeviceArray
    from memcli.spec import Precision

_DTYPES = {"u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64", "f16": "float16"}
_DTYPES |= {"f32": "float32", "f64": "float64", "boolean": "bool"}
# The hint decides the arithmetic of everything that the graph itself leaves in floating point.
_FLOAT_HINTS = {"fp32": "f32", "bf16": "bf16"}
_HINT_NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
_HEAVY_LAYERS = ("Convolution", "FullyConnected", "MatMul")


class OpenVinoEngine(Closeable):
    """A compiled model with one infer request. Made by `open_openvino`."""

    def __init__(self, compiled: Any, outputs: Sequence[str], description: EngineDescription):
        """`outputs` are the graph's own names: a compiled output also has those of nodes that
        were fused into it."""
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._description = description
        self._inputs = tuple(_tensor(port) for port in compiled.inputs)
        self._outputs = tuple(
            replace(_tensor(port), name=name)
            for port, name in zip(compiled.outputs, outputs, strict=True)
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Array]:
        """Every output by name. Raises EngineError if the runtime refuses the input or fails."""
        request = self._open()
        check_feeds(feeds, self._inputs)
        try:
            results = request.infer(dict(feeds), share_inputs=True)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise EngineError(f"openvino cannot run the graph: {one_line(error)}") from error
        names = [output.name for output in self._outputs]
        # Copies: the request overwrites its output memory in the next run.
        return {name: results[i].copy() for i, name in enumerate(names)}

    def describe(self) -> EngineDescription:
        return self._description

    def close(self) -> None:
        """Free the compiled model; a later `run` raises EngineError."""
        self._request = self._compiled = None

    def _open(self) -> Any:
        if self._request is None:
            raise EngineError("this engine is closed")
        return self._request


def check_device(device: str) -> None:
    """Raises DeviceError for all but `cpu`."""
    if device != "cpu":
        raise DeviceError(
            f"openvino runs on the CPU here, not on {device!r}", next_step="Use --device cpu"
        )


def open_openvino(
    graph: Path, *, device: str, precision: Precision, threads: int | None
) -> OpenVinoEngine:
    """Compile a graph for the CPU.

    `precision` fp32 and bf16 execute a float graph in that arithmetic; int8 executes a quantised
    graph, and what it leaves in floating point in bf16 where the CPU has it, else in fp32.
    `threads` of None leaves the number to the runtime.

    OpenVINO's own model cache stays off: it would save 0.4 s of a start, take as much disk as the
    weights, and load a damaged file without noticing (2026.4), past the hashes of the bundle.

    One request with all threads ("latency") is as fast as several requests with one thread each:
    the convolutions run at the peak of the arithmetic units either way, and it needs less memory.

    Raises EngineError if the graph does not load or the CPU lacks the precision, DeviceError for
    a device other than `cpu`, MissingDependencyError if the package is absent.
    """
    check_device(device)
    ov = import_runtime("openvino")
    graph_facts(graph)  # OpenVINO tries every frontend it has on a file that is no ONNX graph
    float_precision = _float_precision(precision)
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _FLOAT_HINTS[float_precision],
        # Of 2026.4: attention over one token leaves a kernel in this cache that is wrong for
        # longer sequences (found by the parity gate of exports). Costs some ms per new shape.
        "CPU_RUNTIME_CACHE_CAPACITY": "0",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        model = _core().read_model(str(graph))
        outputs = [port.get_any_name() for port in model.outputs]
        compiled = _core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise EngineError(
            f"openvino cannot load the graph: {one_line(error)}", where=str(graph)
        ) from error
    used = _precision_used(compiled)
    if precision == "int8" and not used.startswith("int8"):
        raise EngineError(
            "openvino executes no layer of this graph in int8 on this CPU",
            where=str(graph),
            next_step="Use --precision fp32",
        )
    if precision != "int8" and used != precision:
        raise EngineError(f"openvino would compute in {used}, not in {precision}, on this CPU")
    return OpenVinoEngine(
        compiled,
        outputs,
        EngineDescription(
            engine="openvino",
            version=ov.__version__.partition("-")[0],
            device=device,
            precision=used,
            threads=threads,
        ),
    )


def cpu_capabilities() -> frozenset[str]:
    """What OpenVINO accelerates on this CPU, e.g. {"FP32", "INT8", "BF16"}.

    Raises MissingDependencyError if OpenVINO is absent.
    """
    return frozenset(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def require_cpu_precision(precision: Precision) -> None:
    """Raise EngineError, saying why, if OpenVINO cannot compute in `precision` on this CPU.

    The hint alone is no refusal: OpenVINO takes it on any CPU and falls back or emulates.
    """
    if precision in ("fp16", "fp8"):
        raise EngineError(
            f"{precision} is for GPUs; on a CPU this version computes in fp32, bf16 or int8",
            next_step="Use --precision fp32",
        )
    if precision == "bf16" and "BF16" not in cpu_capabilities():
        raise EngineError(
            f"this CPU ({cpu_name()}) has no native bf16 (AVX-512 BF16 or AMX): "
            "it would be slower than fp32",
            next_step="Use --precision fp32 or --precision int8",
        )


def _float_precision(precision: Precision) -> str:
    if precision == "int8":
        return "bf16" if "BF16" in cpu_capabilities() else "fp32"
    require_cpu_precision(precision)
    return precision


@functools.cache
def _core() -> Any:
    """One core per process: it holds the plugins, which take a while to load."""
    return import_runtime("openvino").Core()


def _precision_used(compiled: Any) -> str:
    """The arithmetic of the compiled model: `fp32`, `bf16`, `int8+fp32` or `int8+bf16`.

    The float part is what the plugin settled on, the int8 part is counted in the executed graph.
    """
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    floats = _HINT_NAMES.get(hint, hint)
    counts = executed_precisions(compiled)
    return f"int8+{floats}" if counts["i8"] + counts["u8"] else floats


def executed_precisions(compiled: Any) -> Counter[str]:
    """How many convolutions and matrix products run in each precision (`f32`, `u8`, ...)."""
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in _HEAVY_LAYERS:
            counts[info["runtimePrecision"].astype(str)] += 1
    return counts


def _tensor(port: Any) -> TensorSpec:
    shape = tuple(axis.get_length() if axis.is_static else "?" for axis in port.get_partial_shape())
    kind = port.get_element_type().get_type_name()
    return TensorSpec(port.get_any_name(), _DTYPES.get(kind, kind), shape)
