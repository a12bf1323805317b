"""LayerNormalization that a graph spells out, made one operator again.

Between casts, ONNX Runtime's own fusion of the parts takes the value before a cast for the input
and then refuses the graph for its types (1.31); as one operator it is also faster everywhere.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, helper

from memcli.export.retype import read_tensor

_FIRST_OPSET = 17


def fuse_layer_norms(model: ModelProto, folder: Path) -> int:
    """Replace (x - mean) / sqrt(mean((x - mean)^2) + eps) * scale + bias over the last axis.

    In place; gives how many. Inner values that something else reads, or outputs, are left alone, as
    is everything that looks different. `folder` has the external data.
    """
    if not any(o.domain == "" and o.version >= _FIRST_OPSET for o in model.opset_import):
        return 0
    found = 0
    while match := _Finder(model, folder).first():
        dropped, fused = match
        place = list(model.graph.node).index(dropped[-1])
        model.graph.node.insert(place, fused)
        for node in dropped:
            model.graph.node.remove(node)
        found += 1
    return found


class _Finder:
    def __init__(self, model: ModelProto, folder: Path):
        self.nodes = list(model.graph.node)
        self.folder = folder
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {value.name for value in model.graph.output}

    def first(self) -> tuple[list[NodeProto], NodeProto] | None:
        """The nodes of one occurrence in order, and what replaces them."""
        for add in self.nodes:
            if add.op_type == "Add" and (match := self._match(add)):
                return match
        return None

    def _match(self, add: NodeProto) -> tuple[list[NodeProto], NodeProto] | None:
        scaled, bias = self._with_constant(add, "Mul")
        if scaled is None:
            return None
        divided, scale = self._with_constant(scaled, "Div")
        if divided is None:
            return None
        apart, root = (self.maker.get(name) for name in divided.input)
        if apart is None or root is None or (apart.op_type, root.op_type) != ("Sub", "Sqrt"):
            return None
        safe = self.maker.get(root.input[0])
        if safe is None or safe.op_type != "Add":
            return None
        variance, epsilon = self._with_constant(safe, "ReduceMean")
        mean = self.maker.get(apart.input[1])
        if variance is None or mean is None or mean.op_type != "ReduceMean":
            return None
        square = self.maker.get(variance.input[0])
        if square is None or not self._is_square(square, apart.output[0]):
            return None
        if mean.input[0] != apart.input[0] or not (self._is_last(mean) and self._is_last(variance)):
            return None
        inner = [mean, apart, square, variance, safe, root, divided, scaled]
        if any(self._is_seen(node, [*inner, add]) for node in inner):
            return None
        if any(len(self.constants[name].dims) != 1 for name in (scale, bias)):
            return None
        return [*inner, add], helper.make_node(
            "LayerNormalization",
            [apart.input[0], scale, bias],
            [add.output[0]],
            name=add.name,
            axis=-1,
            epsilon=float(read_tensor(self.constants[epsilon], self.folder).reshape(-1)[0]),
        )

    def _with_constant(self, node: NodeProto, kind: str) -> tuple[NodeProto | None, str]:
        """The operand of a node that a `kind` computes, where the other is a constant."""
        for one, other in (node.input, node.input[::-1]):
            maker = self.maker.get(one)
            if other in self.constants and maker is not None and maker.op_type == kind:
                return maker, other
        return None, ""

    def _is_square(self, node: NodeProto, name: str) -> bool:
        if node.op_type == "Mul":
            return list(node.input) == [name, name]
        if node.op_type != "Pow" or node.input[0] != name or node.input[1] not in self.constants:
            return False
        exponent = read_tensor(self.constants[node.input[1]], self.folder)
        return exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2

    def _is_last(self, node: NodeProto) -> bool:
        """Whether a mean is over the last axis, which it keeps."""
        axes = [list(a.ints) for a in node.attribute if a.name == "axes"]
        if not axes and len(node.input) > 1 and node.input[1] in self.constants:
            tensor = self.constants[node.input[1]]
            if tensor.data_type == TensorProto.INT64:
                axes = [read_tensor(tensor, self.folder).reshape(-1).tolist()]
        kept = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
        return kept and axes == [[-1]]

    def _is_seen(self, node: NodeProto, group: list[NodeProto]) -> bool:
        """Whether something outside of the group reads what a node gives."""
        return any(
            name in self.outputs or any(all(r is not g for g in group) for r in self.readers[name])
            for name in node.output
        )
