"""An ONNX graph as TensorRT's parser wants it.

TensorRT takes uint8 at the inputs and outputs of a network and nowhere else: the first thing that
happens to `frames` must be a Cast. Our graphs reshape the bytes first, which other runtimes do
faster on a quarter of the memory. The same Cast, moved in front, changes no value.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.engines.files import sha256_file
from memcli.engines.loading import graph_facts

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_MOVES_VALUES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Identity")
"""Operators that a Cast may change places with: they move their first input and compute nothing."""


def graph_digest(graph: Path) -> str:
    """SHA-256 over the graph and the external data that it names, by content and name.

    Raises EngineError if the graph is missing or none; OSError if its data are.
    """
    names = sorted(graph_facts(graph).external_files)
    folder = graph.parent
    content = [sha256_file(graph), *((name, sha256_file(folder / name)) for name in names)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def cast_inputs_first(model: ModelProto) -> bool:
    """Move the Casts of uint8 inputs directly behind them; whether anything changed.

    Changes `model` in place. Only what leads from the input to one kind of Cast over nodes that
    move values is changed; a graph that computes with uint8 is left as it is, for the parser to
    refuse.
    """
    import onnx

    changed = False
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            changed |= _cast_first(model, value.name)
    return changed


def _cast_first(model: ModelProto, name: str) -> bool:
    import onnx

    moved: list[NodeProto] = []
    casts: list[NodeProto] = []
    shapes: list[NodeProto] = []
    open_names = [name]
    while open_names:
        current = open_names.pop()
        for node in model.graph.node:
            if current not in node.input:
                continue
            if node.op_type == "Cast":
                casts.append(node)
            elif node.op_type == "Shape":
                shapes.append(node)
            elif node.op_type in _MOVES_VALUES and node.input[0] == current:
                moved.append(node)
                open_names.append(node.output[0])
            else:
                return False
    kinds = {_cast_to(node) for node in casts}
    if len(kinds) != 1 or not moved:
        return False
    floats = f"{name}.floats"
    for node in [*moved, *casts, *shapes]:
        for index, source in enumerate(node.input):
            if source == name:
                node.input[index] = floats
    for node in casts:  # what was cast is cast already
        node.op_type = "Identity"
        del node.attribute[:]
    model.graph.node.insert(
        0, onnx.helper.make_node("Cast", [name], [floats], name=f"{name}.Cast", to=kinds.pop())
    )
    kept = [value for value in model.graph.value_info if value.name not in _outputs(moved)]
    del model.graph.value_info[:]  # the types of what was moved are others now
    model.graph.value_info.extend(kept)
    return True


def _cast_to(node: NodeProto) -> int:
    return next(int(one.i) for one in node.attribute if one.name == "to")


def _outputs(nodes: list[NodeProto]) -> set[str]:
    return {output for node in nodes for output in node.output}


def prepare(graph: Path, folder: Path) -> Path:
    """The graph for the parser: itself, or a copy in `folder` with its data linked.

    Raises EngineError if the file is no ONNX graph, OSError.
    """
    facts = graph_facts(graph)
    import onnx

    model: Any = onnx.load(str(graph), load_external_data=False)
    if not cast_inputs_first(model):
        return graph
    copy = folder / graph.name
    copy.write_bytes(model.SerializeToString())
    for name in facts.external_files:
        if posixpath.basename(name) == name:
            (folder / name).symlink_to((graph.parent / name).resolve())
    return copy
