"""Run a graph that is still in memory, batch by batch, and look at values inside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto, TensorProto, helper

from memcli.engines.base import EngineName
from memcli.engines.loading import (
    CPU_INSTALL,
    import_runtime,
    installed_runtimes,
    no_runtime_error,
    one_line,
)
from memcli.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Feeds = Mapping[str, Array]
    Run = Callable[[dict[str, Array]], list[Array]]

_MAX_PROTOBUF_BYTES = 1 << 30
"""A message of 2 GiB is refused; larger graphs go through a file."""


def run_batches(
    model: ModelProto, batches: Iterable[Feeds], *, runtime: EngineName | None = None
) -> Iterator[dict[str, Array]]:
    """The graph's outputs by name, for each batch, on the CPU in fp32 and what the graph asks for.

    By default OpenVINO runs it, else ONNX Runtime; float8 only ONNX Runtime, unsigned activations
    only OpenVINO. Raises EngineError if the runtime cannot, MissingDependencyError if there is none
    that can.
    """
    names = [value.name for value in model.graph.output]
    with tempfile.TemporaryDirectory(prefix="memcli-graph-") as folder:
        source = _source(model, Path(folder))
        runtime = runtime or _runtime(model)
        try:
            if runtime == "openvino":
                run = _openvino(source, names)
            else:
                run = _onnxruntime(source, names, optimise=not _has_float8(model))
            for feeds in batches:
                yield dict(zip(names, run(dict(feeds)), strict=True))
        except EngineError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no public base but this
            raise EngineError(f"{runtime} cannot run the graph: {one_line(error)}") from error


def expose(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """A copy of `model` that also gives inner values, float32, as outputs of the same names."""
    result = ModelProto()
    result.CopyFrom(model)
    given = {value.name for value in model.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in given:
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            result.graph.output.append(value)
    return result


def executor(model: ModelProto) -> str:
    """What `run_batches` runs a graph with, for reports. Raises MissingDependencyError."""
    name = _runtime(model)
    return f"{name} {import_runtime(name).__version__.partition('-')[0]} on cpu"


def runs_unsigned() -> bool:
    """Whether a runtime here computes graphs with uint8 activations on the CPU: only OpenVINO does.

    ONNX Runtime gives wrong scores for them, see engines/onnxruntime.py.
    """
    return "openvino" in installed_runtimes()


def unsigned_error() -> MissingDependencyError:
    """`runs_unsigned` is False."""
    return MissingDependencyError(
        "openvino", purpose="int8 with unsigned activations (u8s8)", install=CPU_INSTALL
    )


def _runtime(model: ModelProto) -> EngineName:
    installed = installed_runtimes()
    if _has_unsigned(model):
        if not runs_unsigned():
            raise unsigned_error()
        return "openvino"
    names: tuple[EngineName, ...] = ("openvino", "onnxruntime")
    for name in names[1:] if _has_float8(model) else names:
        if name in installed:
            return name
    raise no_runtime_error()


def _has_unsigned(model: ModelProto) -> bool:
    """Whether a graph rounds anything to uint8, which is also what no zero point means."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return any(
        len(node.input) < 3 or kinds.get(node.input[2]) == TensorProto.UINT8
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    )


def _has_float8(model: ModelProto) -> bool:
    kind = TensorProto.FLOAT8E4M3FN
    return any(tensor.data_type == kind for tensor in model.graph.initializer)


def _source(model: ModelProto, folder: Path) -> bytes | Path:
    """The graph as bytes, or as a file with external data if it is too large."""
    import onnx

    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < _MAX_PROTOBUF_BYTES:
        serialised: bytes = model.SerializeToString()
        return serialised
    copy = ModelProto()
    copy.CopyFrom(model)  # saving moves the data out of a model
    path = folder / "model.onnx"
    onnx.save(copy, str(path), save_as_external_data=True, location="model.bin")
    return path


def _openvino(source: bytes | Path, names: Sequence[str]) -> Run:
    import io

    ov = import_runtime("openvino")
    core = ov.Core()
    model = core.read_model(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "CPU_RUNTIME_CACHE_CAPACITY": "0",  # see engines/openvino.py
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(feeds: dict[str, Array]) -> list[Array]:
        results = request.infer(feeds)
        return [results[index] for index in range(len(names))]

    return run


def _onnxruntime(source: bytes | Path, names: Sequence[str], *, optimise: bool) -> Run:
    ort = import_runtime("onnxruntime")
    options = ort.SessionOptions()
    if not optimise:  # 1.31 fuses float8 into operators that do not take it, and then refuses
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        source if isinstance(source, bytes) else str(source),
        options,
        providers=["CPUExecutionProvider"],
    )

    def run(feeds: dict[str, Array]) -> list[Array]:
        values: list[Array] = session.run(list(names), feeds)
        return values

    return run
