"""Which layers of a graph can compute in 8 bits: products with constant weights.

Left out, whatever the precision:

- what has fewer than 16 input or output channels: the layers that see the pixels (convolutions of
  three channels, patch embeddings among them), depthwise convolutions, and projections to a score,
  all of them cheap and the first and last of them dear in accuracy;
- the last layer of every branch, the one that no other layer follows;
- products of two activations (queries and keys, attention and values), recurrent layers, and
  embeddings, which are tables and no products.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

MIN_CHANNELS = 16
MAX_GROUPS = 16
_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantised."""

    name: str
    input: str
    weight: str
    axis: int = 0
    """Of the weight's output channels."""
    is_conv: bool = True


def quantisable_layers(model: ModelProto) -> list[Layer]:
    """In graph order: convolutions, and matrix products with a constant matrix."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    followed = _followed(model.graph.node, tensors)
    found = []
    for node in model.graph.node:
        if not _has_weight(node, tensors):
            continue
        axis = _output_axis(node)
        shape = tensors[node.input[1]].dims
        channels = (shape[axis], shape[1] if node.op_type == "Conv" else shape[1 - axis])
        # Layers that score are the last, or have one channel. A CNN's last convolution is not.
        if min(channels) >= MIN_CHANNELS and (node.op_type == "Conv" or node.name in followed):
            found.append(
                Layer(node.name, node.input[0], node.input[1], axis, node.op_type == "Conv")
            )
    return found


def _has_weight(node: NodeProto, tensors: dict[str, TensorProto]) -> bool:
    """Whether it multiplies an activation with a constant matrix or kernel."""
    if node.op_type not in ("Conv", *_PRODUCTS) or node.input[1] not in tensors:
        return False
    if node.op_type == "Conv":
        return True
    flipped = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return len(tensors[node.input[1]].dims) == 2 and not flipped and node.input[0] not in tensors


def _output_axis(node: NodeProto) -> int:
    if node.op_type == "Conv":
        return 0
    return 0 if any(one.name == "transB" and one.i for one in node.attribute) else 1


def _followed(nodes: Sequence[NodeProto], tensors: dict[str, TensorProto]) -> set[str]:
    """Names of nodes with weights from whose output another node with weights is reached."""
    leads: set[str] = set()
    found = set()
    for node in reversed(nodes):
        after = any(output in leads for output in node.output)
        weighted = _has_weight(node, tensors)
        if weighted and after:
            found.add(node.name)
        if weighted or after:
            leads.update(name for name in node.input if name not in tensors)
    return found


def is_convolutional(layers: Sequence[Layer]) -> bool:
    """Whether a graph's layers are those of a CNN, rather than of a transformer."""
    return sum(layer.is_conv for layer in layers) * 2 > len(layers)


def make_groups(layers: Sequence[Layer]) -> list[list[Layer]]:
    """At most 16 runs of neighbouring layers, of nearly equal length.

    Layers that read the same activation (queries, keys and values) stay together.
    """
    shared = [list(run) for _, run in itertools.groupby(layers, key=lambda layer: layer.input)]
    bounds = np.linspace(0, len(shared), min(len(shared), MAX_GROUPS) + 1).round().astype(int)
    return [list(itertools.chain.from_iterable(shared[a:b])) for a, b in itertools.pairwise(bounds)]
