"""ONNX Runtime: the reference runtime and the fall-back on every CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from memcli.closing import Closeable
from memcli.engines.base import EngineDescription, TensorSpec
from memcli.engines.loading import GPU_INSTALL, check_feeds, graph_facts, import_runtime, one_line
from memcli.errors import DeviceError, EngineError

if TYPE_CHECKING:
    from memcli.engines.base import Array
    from memcli.spec import Precision

_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
}
_SEVERITY_ERROR = 3


class OnnxRuntimeEngine(Closeable):
    """A session on one device. Made by `open_onnxruntime`."""

    def __init__(self, session: Any, description: EngineDescription):
        self._session = session
        self._description = description
        self._inputs = tuple(_tensor(value) for value in session.get_inputs())
        self._outputs = tuple(_tensor(value) for value in session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. Raises EngineError if the runtime refuses the input or fails."""
        session = self._open()
        check_feeds(feeds, self._inputs)
        names = [output.name for output in self._outputs]
        try:
            values = session.run(names, dict(feeds))
        except Exception as error:  # ORT's exceptions share no public base but Exception
            raise EngineError(f"onnxruntime cannot run the graph: {one_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def describe(self) -> EngineDescription:
        return self._description

    def close(self) -> None:
        """Free the session; a later `run` raises EngineError."""
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            raise EngineError("this engine is closed")
        return self._session


def open_onnxruntime(
    graph: Path, *, device: str, precision: Precision, threads: int | None
) -> OnnxRuntimeEngine:
    """Load a graph on `cpu`, `cuda` or `cuda:N`.

    `precision` is the variant's: the graph itself carries it, ONNX Runtime converts nothing. The
    CPU computes float graphs in fp32 only. `threads` of None leaves the number to the runtime.

    Raises EngineError if the graph does not load or would give wrong results, DeviceError if the
    device is not usable, MissingDependencyError if the package is absent.
    """
    ort = import_runtime("onnxruntime")
    facts = graph_facts(graph)
    if device == "cpu":
        _check_cpu(precision, facts.quantised_to, graph)
    providers = execution_providers(ort, device)
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    # Idle threads would spin and take the cores from the decoders; a run lasts seconds, so that
    # waking them costs nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:  # as in run
        raise EngineError(
            f"onnxruntime cannot load the graph: {one_line(error)}", where=str(graph)
        ) from error
    if device != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError(
            "onnxruntime could not start CUDA and would have run on the CPU",
            where=device,
            next_step="Check the NVIDIA driver and the CUDA libraries: memcli doctor",
        )
    return OnnxRuntimeEngine(
        session,
        EngineDescription(
            engine="onnxruntime",
            version=ort.__version__,
            device=device,
            precision="int8+fp32" if facts.is_quantised else precision,
            threads=threads if device == "cpu" else None,
        ),
    )


def _check_cpu(precision: Precision, quantised_to: frozenset[str], graph: Path) -> None:
    if "uint8" in quantised_to:
        # QDQ graphs with unsigned activations and signed weights come out wrong at ONNX Runtime's
        # default graph optimisation (cosine −0.04 to the original for a ViT, 1.31).
        raise EngineError(
            "onnxruntime gives wrong results on the CPU for graphs with uint8 activations",
            where=str(graph),
            next_step="Use --engine openvino, or quantise again: memcli export MODEL --int8",
        )
    if precision in ("fp16", "bf16"):
        raise EngineError(
            f"onnxruntime does not compute in {precision} on a CPU",
            next_step="Use --precision fp32, or --engine openvino where the CPU has bf16",
        )


def execution_providers(ort: ModuleType, device: str) -> list[Any]:
    """What a session takes for `cpu`, `cuda` or `cuda:N`. Raises DeviceError if it is not here."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise DeviceError(f"onnxruntime has no device {device!r}", next_step="Use cpu or cuda[:N]")
    available = ort.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise DeviceError(
            "the installed onnxruntime is the CPU build: it has no CUDA execution provider",
            where=device,
            next_step=f"pip uninstall onnxruntime\nthen {GPU_INSTALL}",
        )
    return [("CUDAExecutionProvider", {"device_id": int(index or 0)})]


def _tensor(value: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else str(axis or "?") for axis in value.shape)
    return TensorSpec(value.name, _DTYPES.get(value.type, value.type), shape)
