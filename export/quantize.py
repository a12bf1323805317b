"""int8 in the graph: QuantizeLinear / DequantizeLinear around convolutions, for OpenVINO on CPUs.

Activations have one scale per tensor, are unsigned (0 to 255) where they are never negative, as
after a ReLU, and signed else; never a zero point. Weights are signed, one scale per output channel,
and use 7 bits: instruction sets before VNNI add two products of 8 bit numbers in 16 bits, which
255 * 127 * 2 overflows and 255 * 63 * 2 does not, and the scores of a graph must not depend on the
CPU. Measured with ResMem on an AVX2 CPU, mean |difference| of 18 videos: 0.0099 signed with 8 bit
weights, 0.0081 signed with 7, 0.0057 unsigned with 7.

ONNX Runtime computes such graphs wrong and TensorRT refuses them: they want everything signed.

Residual additions stay in floating point: with them in int8 too (NNCF, the same frames) the largest
difference of a video was 0.046 instead of 0.033 and SRCC 0.969 instead of 0.988. So do linear
layers, 1 % of ResMem's time, and convolutions of fewer than 16 channels: those that see the pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

UNSIGNED_LEVELS = 255
SIGNED_LEVELS = 127
WEIGHT_LEVELS = 63
_MIN_CHANNELS = 16


@dataclass(frozen=True)
class ActivationRange:
    """Values of one tensor that int8 keeps apart; larger ones are clipped."""

    clip: float
    """Largest magnitude."""
    signed: bool

    @property
    def levels(self) -> int:
        """Steps from 0 to the clip."""
        return SIGNED_LEVELS if self.signed else UNSIGNED_LEVELS


@dataclass(frozen=True)
class Layer:
    """A convolution that can be quantised."""

    name: str
    input: str
    weight: str


def quantisable_layers(model: ModelProto) -> list[Layer]:
    """Convolutions in graph order: constant weights, at least 16 input channels per group."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        Layer(
            name=node.name,
            input=node.input[0],
            weight=node.input[1],
        )
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.input[1] in tensors
        and tensors[node.input[1]].dims[1] >= _MIN_CHANNELS
    ]


def quantise(
    model: ModelProto,
    layers: Collection[Layer],
    ranges: Mapping[str, ActivationRange],
) -> ModelProto:
    """A new graph in which `layers` compute in int8.

    `ranges` has the input of every layer by name.
    """
    by_node = {layer.name: layer for layer in layers}
    dropped = {layer.weight for layer in layers}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    added = []
    activations: set[str] = set()
    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        layer = by_node.get(node.name)
        if layer is not None:
            if layer.input not in activations:
                activations.add(layer.input)
                pair, constants = _round_activation(layer.input, ranges[layer.input])
                nodes.extend(pair)
                added.extend(constants)
            values, scales = quantise_weight(numpy_helper.to_array(tensors[layer.weight]))
            names = [f"{layer.weight}.{part}" for part in ("int8", "scale", "zero")]
            zero = np.zeros(len(scales), np.int8)
            for name, array in zip(names, (values, scales, zero), strict=True):
                added.append(numpy_helper.from_array(array, name))
            nodes.append(
                helper.make_node("DequantizeLinear", names, [f"{layer.weight}.rounded"], axis=0)
            )
            node.input[0] = f"{layer.input}.rounded"
            node.input[1] = f"{layer.weight}.rounded"
        nodes.append(node)
    kept = [t for name, t in tensors.items() if name not in dropped]
    return _model(model, nodes, [*kept, *added])


def _round_activation(
    name: str, limits: ActivationRange
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The node pair that makes `NAME.rounded` from `NAME`, and its constants."""
    scale = np.array(max(limits.clip, 1e-12) / limits.levels, np.float32)
    zero = np.array(0, np.int8 if limits.signed else np.uint8)
    parameters = [f"{name}.scale", f"{name}.zero"]
    nodes = [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}.int8"]),
        helper.make_node("DequantizeLinear", [f"{name}.int8", *parameters], [f"{name}.rounded"]),
    ]
    arrays = zip(parameters, (scale, zero), strict=True)
    return nodes, [numpy_helper.from_array(array, parameter) for parameter, array in arrays]


def quantise_weight(
    weight: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Weights [C, ...] -> int8 [C, ...] in −63..63 and the scale of each output channel [C]."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scales = (np.maximum(largest, 1e-12) / WEIGHT_LEVELS).astype(np.float32)
    values = np.round(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
    return values.clip(-WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8), scales


def _model(model: ModelProto, nodes: list[NodeProto], tensors: list[TensorProto]) -> ModelProto:
    """`model` with other nodes and initialisers."""
    result = ModelProto()
    result.ir_version = model.ir_version
    result.opset_import.extend(model.opset_import)
    result.graph.name = model.graph.name
    result.graph.input.extend(model.graph.input)
    result.graph.output.extend(model.graph.output)
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(tensors)
    return result
