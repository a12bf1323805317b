"""Fold batch normalisation into the convolution before it.

Runtimes do this on their own for float graphs; a graph with quantised weights must come folded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper


def fold_batch_norms(model: ModelProto) -> ModelProto:
    """The same function with every BatchNormalization that follows a convolution folded into it.

    Initialisers must hold their data. A convolution whose output something else reads too, or
    whose weights another node shares, keeps its normalisation. Every convolution that was folded
    has a bias named `NODE.bias`. Changes `model` and returns it.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers = _readers(graph.node)
    outputs = {value.name for value in graph.output}
    added = []
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producers.get(norm.input[0])
        if (
            conv is None
            or conv.op_type != "Conv"
            or conv.output[0] in outputs
            or readers[conv.output[0]] != 1
            or readers[conv.input[1]] != 1
        ):
            continue
        scale, shift = _scale_and_shift(norm, tensors)
        weight = numpy_helper.to_array(tensors[conv.input[1]])
        folded = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        if len(conv.input) > 2:
            shift = shift + numpy_helper.to_array(tensors[conv.input[2]]) * scale
        tensors[conv.input[1]].CopyFrom(
            numpy_helper.from_array(folded.astype(weight.dtype), conv.input[1])
        )
        bias = f"{conv.name}.bias"
        added.append(numpy_helper.from_array(shift.astype(weight.dtype), bias))
        inputs = [conv.input[0], conv.input[1], bias]
        del conv.input[:]
        conv.input.extend(inputs)
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    used = {name for node in graph.node for name in node.input}
    fresh = {tensor.name for tensor in added}
    for tensor in [t for t in graph.initializer if t.name not in used or t.name in fresh]:
        graph.initializer.remove(tensor)
    graph.initializer.extend(added)
    return model


def _readers(nodes: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in nodes:
        for name in node.input:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _scale_and_shift(norm: NodeProto, tensors: dict[str, Any]) -> tuple[Any, Any]:
    """float64 [C] each, so that norm(x) = x * scale + shift."""
    gamma, beta, mean, variance = (
        numpy_helper.to_array(tensors[name]).astype(np.float64) for name in norm.input[1:5]
    )
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale
