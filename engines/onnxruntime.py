"""ONNX Runtime: the reference runtime and the fall-back on every CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from memcli.closing import Closeable
from memcli.engines import ort_cuda
from memcli.engines.base import EngineDescription, TensorSpec
from memcli.engines.loading import GPU_INSTALL, check_feeds, graph_facts, import_runtime, one_line
from memcli.engines.ort_buffers import DeviceRunner
from memcli.errors import DeviceError, EngineError

if TYPE_CHECKING:
    from memcli.engines.base import Array
    from memcli.engines.cuda import DeviceArray
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

    def __init__(
        self,
        session: Any,
        description: EngineDescription,
        runner: DeviceRunner | None = None,
    ):
        """`runner` executes the session through buffers on a GPU; None: on the CPU."""
        self._session = session
        self._description = description
        self._runner = runner
        self._inputs, self._outputs = _tensors(session)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Array]:
        """Every output by name. Raises EngineError if the runtime refuses the input or fails.

        On a GPU feeds may be `DeviceArray`s.
        """
        session = self._open()
        check_feeds(feeds, self._inputs)
        names = [output.name for output in self._outputs]
        try:
            if self._runner is not None:
                return self._runner.run(feeds)
            values = session.run(names, dict(feeds))
        except Exception as error:  # ORT's exceptions share no public base but Exception
            raise ort_cuda.run_error(error, feeds) from error
        return dict(zip(names, values, strict=True))

    def describe(self) -> EngineDescription:
        return self._description

    def close(self) -> None:
        """Free the session; a later `run` raises EngineError."""
        if self._runner is not None:
            self._runner.close()
        self._session = self._runner = None

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
    runner = None
    used: str = "int8+fp32" if facts.is_quantised else precision
    if device == "cpu":
        try:
            session = ort.InferenceSession(str(graph), options, providers=providers)
        except Exception as error:  # as in run
            raise EngineError(
                f"onnxruntime cannot load the graph: {one_line(error)}", where=str(graph)
            ) from error
    else:
        device_id = providers[0][1]["device_id"]
        session, records = ort_cuda.open_session(ort, graph, options, device_id)
        runner = DeviceRunner(ort, session, device_id, *_tensors(session), records=records)
        if facts.is_quantised:
            used = "int8 as float"  # it rounds to int8, but has no int8 kernels for what follows
    return OnnxRuntimeEngine(
        session,
        EngineDescription(
            engine="onnxruntime",
            version=ort.__version__,
            device=device,
            precision=used,
            threads=threads if device == "cpu" else None,
        ),
        runner,
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
        other = ", or --engine openvino where the CPU has bf16" if precision == "bf16" else ""
        raise EngineError(
            f"onnxruntime does not compute in {precision} on a CPU",
            next_step=f"Use --precision fp32{other}",
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


def _tensors(session: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a session."""
    inputs = tuple(_tensor(value) for value in session.get_inputs())
    return inputs, tuple(_tensor(value) for value in session.get_outputs())


def _tensor(value: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else str(axis or "?") for axis in value.shape)
    return TensorSpec(value.name, _DTYPES.get(value.type, value.type), shape)
