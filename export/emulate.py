"""A half precision graph as fp32 operators that round: what a GPU computes, on any CPU.

Every value of the type fp16 or bf16 becomes an fp32 value that was rounded to it, so that overflow
and lost digits show; products are summed in fp32, as the matrix units of GPUs do. Not even ONNX
Runtime's CPU kernels would do: it has none for most operators in these types.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, helper

from memcli.export.retype import element_types

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_EXACT = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat"}
    | {"Gather", "Expand", "Identity", "Tile", "Pad", "MaxPool", "Relu", "Neg", "Where", "Max"}
    | {"Min", "GatherElements", "GatherND"}
)
"""What they give needs no rounding where their inputs are rounded."""


def is_half(model: ModelProto) -> bool:
    """Whether a graph computes anything in fp16 or bf16."""
    return any(
        attribute.name == "to" and attribute.i in HALVES
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
    ) or any(tensor.data_type in HALVES for tensor in model.graph.initializer)


def emulate(model: ModelProto) -> ModelProto:
    """The graph that gives in fp32 what `model` gives in half precision; names stay.

    `model` may have its weights outside; the result then reads the same file. Raises ModelError if
    its types do not fit.
    """
    types = element_types(model)
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    renamed: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for tensor in result.graph.initializer:
        if tensor.data_type in HALVES:
            renamed[tensor.name] = f"{tensor.name}:float"
            nodes.append(_cast(tensor.name, renamed[tensor.name], TensorProto.FLOAT))
    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        rounds = [name for name in node.output if types.get(name) in HALVES]
        if node.op_type == "Cast" and rounds:
            _set_float(node)
        nodes.append(node)
        if rounds and node.op_type not in _EXACT:
            for position, name in enumerate(original.output):
                if name in rounds:
                    node.output[position] = f"{name}:exact"
                    nodes.append(_cast(f"{name}:exact", f"{name}:half", types[name]))
                    nodes.append(_cast(f"{name}:half", name, TensorProto.FLOAT))
    result.graph.node.extend(nodes)
    for value in result.graph.output:
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del result.graph.value_info[:]
    return result


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}:cast", to=kind)


def _set_float(node: NodeProto) -> None:
    """Make a cast to half a cast to fp32; what rounds stands behind it."""
    for attribute in node.attribute:
        if attribute.name == "to":
            attribute.i = TensorProto.FLOAT
