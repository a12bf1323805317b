"""An fp32 graph with some of its nodes in half precision: casts, weights, external data.

Which nodes is decided elsewhere (`memcli.export.half`); here the graph becomes consistently typed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from memcli.engines.bundle import DATA_FILE
from memcli.errors import ModelError
from memcli.export.fold import fold_batch_norms

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.export.half import Half

ELEMENT_TYPES: dict[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_BF16_CONV_OPSET, _BF16_CONV_IR = 22, 10
"""The first opset whose convolution may be bf16. What it changed in the operators of our graphs is
which types they take."""
_EXTERNAL_BYTES = 1024
"""As in `memcli.export.trace`: runtimes read shapes and axes off the graph without the weights."""
_ALIGNMENT_BYTES = 64


def half_dtype(precision: Half) -> np.dtype[Any]:
    """The numpy type of a half precision."""
    dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(ELEMENT_TYPES[precision])
    return dtype


def load_typed(path: Path) -> tuple[ModelProto, dict[str, int]]:
    """A graph and the element type of every value by name; weights stay on disk.

    Batch normalisation is folded into convolutions, for which the weights are read. Constant nodes
    become initialisers. Raises ModelError for a graph with subgraphs, or one whose types cannot be
    inferred.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError shares no public base with OSError
        raise ModelError(f"not a readable ONNX graph: {error}", where=str(path)) from error
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        model = fold_batch_norms(onnx.load(str(path)))
    _lift_constants(model)
    for node in model.graph.node:
        if any(one.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for one in node.attribute):
            raise ModelError(
                f"{node.name} ({node.op_type}) has a graph of its own", where=str(path)
            )
    return model, element_types(model)


def element_types(model: ModelProto) -> dict[str, int]:
    """Element type of every value of a graph by name. Raises ModelError if they do not fit."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_light(model), strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        line = str(error).strip().splitlines()[0][:300]
        raise ModelError(f"the graph's types do not fit: {line}") from error
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    types: dict[str, int] = {one.name: one.type.tensor_type.elem_type for one in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    unknown = [n.name for n in model.graph.node for out in n.output if out and not types.get(out)]
    if unknown:
        raise ModelError(f"the type of what {unknown[0]} gives is not known")
    return types


def _light(model: ModelProto) -> ModelProto:
    """A copy whose large tensors have no data: type inference needs none, and copies it."""
    light = ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.ByteSize() > _EXTERNAL_BYTES:
            shell = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            shell.data_location = TensorProto.EXTERNAL
            shell.external_data.add(key="location", value=DATA_FILE)
            light.graph.initializer.append(shell)
        else:
            light.graph.initializer.append(tensor)
    return light


def _lift_constants(model: ModelProto) -> None:
    """Make initialisers of Constant nodes that hold a tensor."""
    kept = []
    for node in model.graph.node:
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(kept)


def read_tensor(tensor: TensorProto, folder: Path) -> npt.NDArray[Any]:
    """The values of an initialiser whose external data, if any, lies in `folder`."""
    array: npt.NDArray[Any] = numpy_helper.to_array(tensor, base_dir=str(folder))
    return array


def write_retyped(
    model: ModelProto,
    types: dict[str, int],
    folder: Path,
    choice: Sequence[bool],
    precision: Half,
    target: Path,
) -> None:
    """Write `target`, and model.bin beside it: the nodes of `choice` in half precision.

    A value is cast at most once, for all who read it in the other type; constants are stored in
    the types that are read. Raises OSError.
    """
    half = ELEMENT_TYPES[precision]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    stored: dict[str, int] = dict(types)
    wanted: dict[tuple[str, int], str] = {}
    nodes: list[NodeProto] = []

    def as_type(name: str, kind: int) -> str:
        """The name of a value in a type."""
        if name in constants:
            return wanted.setdefault((name, kind), _named(name, kind, precision))
        if stored[name] == kind:
            return name
        if (name, kind) not in wanted:
            wanted[name, kind] = cast = _named(name, kind, precision, stored[name])
            nodes.append(helper.make_node("Cast", [name], [cast], name=cast, to=kind))
        return wanted[name, kind]

    for node, is_half in zip(model.graph.node, choice, strict=True):
        copy = NodeProto()
        copy.CopyFrom(node)
        kind = half if is_half else TensorProto.FLOAT
        for position, name in enumerate(node.input):
            if types.get(name) == TensorProto.FLOAT:
                copy.input[position] = as_type(name, kind)
        for name in node.output:
            if types.get(name) == TensorProto.FLOAT:
                stored[name] = kind
        nodes.append(copy)
    result = _empty_like(model)
    result.graph.node.extend(nodes)
    if precision == "bf16" and any(
        node.op_type in ("Conv", "ConvTranspose") and is_half
        for node, is_half in zip(model.graph.node, choice, strict=True)
    ):
        _raise_opset(result)
    with target.with_name(DATA_FILE).open("wb") as data:
        for tensor in model.graph.initializer:
            if tensor.data_type != TensorProto.FLOAT:
                _append(result, data, tensor.name, tensor.data_type, read_tensor(tensor, folder))
                continue
            for kind in (TensorProto.FLOAT, half):
                if (tensor.name, kind) in wanted:
                    array = read_tensor(tensor, folder)
                    array = array.astype(helper.tensor_dtype_to_np_dtype(kind))
                    _append(result, data, wanted[tensor.name, kind], kind, array)
    target.write_bytes(result.SerializeToString(deterministic=True))


def _named(name: str, kind: int, precision: Half, stored: int = TensorProto.FLOAT) -> str:
    """The name of a copy in another type; what is fp32 and stays fp32 keeps its name."""
    if kind == TensorProto.FLOAT:
        return name if stored == TensorProto.FLOAT else f"{name}.fp32"
    return f"{name}.{precision}"


def _empty_like(model: ModelProto) -> ModelProto:
    result = ModelProto()
    result.ir_version = model.ir_version
    result.producer_name = model.producer_name
    result.opset_import.extend(model.opset_import)
    result.metadata_props.extend(model.metadata_props)
    result.graph.name = model.graph.name
    result.graph.input.extend(model.graph.input)
    result.graph.output.extend(model.graph.output)
    return result


def _raise_opset(model: ModelProto) -> None:
    for one in model.opset_import:
        if one.domain in ("", "ai.onnx"):
            one.version = max(one.version, _BF16_CONV_OPSET)
    model.ir_version = max(model.ir_version, _BF16_CONV_IR)


def _append(
    model: ModelProto, data: BinaryIO, name: str, kind: int, array: npt.NDArray[Any]
) -> None:
    """Add a tensor to a graph; a large one goes into the data file."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
    if array.nbytes < _EXTERNAL_BYTES:
        tensor.raw_data = array.tobytes()
    else:
        data.write(bytes(-data.tell() % _ALIGNMENT_BYTES))
        tensor.data_location = TensorProto.EXTERNAL
        entries: Iterable[tuple[str, object]] = (
            ("location", DATA_FILE),
            ("offset", data.tell()),
            ("length", array.nbytes),
        )
        for key, value in entries:
            tensor.external_data.add(key=key, value=str(value))
        data.write(array.reshape(-1).view(np.uint8).data)
    model.graph.initializer.append(tensor)
