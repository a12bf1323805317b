"""Queries, keys and values as one product.

Attention multiplies one activation with three matrices. ONNX Runtime computes such products of
signed 8-bit numbers in 8 bits only where each has its own activation: of shared ones it makes float
products again (1.31, x86: the pass from s8 to u8 wants a QuantizeLinear with one reader). One
product with the matrices side by side has one reader, gives the same numbers, and is larger, which
every runtime computes faster. Only 8-bit graphs are joined: the fp32 graph keeps the checkpoint's
matrices, which light files look for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class _Product:
    node: NodeProto
    weight: NodeProto
    """The DequantizeLinear of its matrix [inputs, outputs], one scale per output."""


def join_products(
    nodes: Sequence[NodeProto], tensors: Iterable[TensorProto]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """`nodes` with the 8-bit MatMuls of one activation as one MatMul and a Split, and constants.

    The order stays topological, and the names of all results stay.
    """
    constants = {tensor.name: tensor for tensor in tensors}
    groups = [group for group in _groups(nodes, constants) if len(group) > 1]
    replaced = {id(product.node): group for group in groups for product in group}
    joined: list[NodeProto] = []
    for node in nodes:
        group = replaced.get(id(node))
        if group is None:
            joined.append(node)
        elif node is group[0].node:
            joined.extend(_one_product(group, constants))
    used = {name for node in joined for name in node.input}
    needed = [
        node for node in joined if node.op_type != "DequantizeLinear" or node.output[0] in used
    ]
    used = {name for node in needed for name in node.input}
    return needed, [tensor for name, tensor in constants.items() if name in used]


def _groups(
    nodes: Sequence[NodeProto], constants: dict[str, TensorProto]
) -> Iterable[list[_Product]]:
    """8-bit MatMuls by the activation that they read."""
    weights = {
        node.output[0]: node
        for node in nodes
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and len(constants[node.input[0]].dims) == 2
    }
    found: dict[str, list[_Product]] = {}
    taken: set[str] = set()
    for node in nodes:
        if node.op_type == "MatMul" and node.input[1] in weights and node.input[1] not in taken:
            taken.add(node.input[1])
            found.setdefault(node.input[0], []).append(_Product(node, weights[node.input[1]]))
    return found.values()


def _one_product(group: Sequence[_Product], constants: dict[str, TensorProto]) -> list[NodeProto]:
    """The nodes that take the place of the group's MatMuls; adds their constants."""
    name = f"{group[0].node.name}.joined"
    parts = [[constants[key] for key in product.weight.input] for product in group]
    values, scales, zeros = zip(*parts, strict=True)
    merged = [
        _beside(f"{name}.weight", values, axis=1),
        _beside(f"{name}.scale", scales, axis=0),
        _beside(f"{name}.zero", zeros, axis=0),
    ]
    sizes = numpy_helper.from_array(
        np.array([one.dims[1] for one in values], np.int64), f"{name}.sizes"
    )
    constants |= {tensor.name: tensor for tensor in (*merged, sizes)}
    weight, product = f"{name}.rounded", f"{name}.product"
    outputs = [one.node.output[0] for one in group]
    return [
        helper.make_node("DequantizeLinear", [one.name for one in merged], [weight], axis=1),
        helper.make_node("MatMul", [group[0].node.input[0], weight], [product], name=name),
        helper.make_node("Split", [product, sizes.name], outputs, name=f"{name}.split", axis=-1),
    ]


def _beside(name: str, parts: Sequence[TensorProto], axis: int) -> TensorProto:
    """Tensors of one type, joined along an axis; of float8 by their bytes."""
    shapes = [list(part.dims) for part in parts]
    kind = parts[0].data_type
    size = 4 if kind == TensorProto.FLOAT else 1
    arrays = [
        np.frombuffer(_raw(part), np.uint8).reshape(*shape, size)
        for part, shape in zip(parts, shapes, strict=True)
    ]
    whole = np.concatenate(arrays, axis=axis)
    return helper.make_tensor(name, kind, whole.shape[:-1], whole.tobytes(), raw=True)


def _raw(tensor: TensorProto) -> bytes:
    """Its bytes; those that numpy_helper and helper.make_tensor write raw."""
    return bytes(tensor.raw_data)
