"""8 bits in the graph: QuantizeLinear / DequantizeLinear around layers with constant weights.

Three schemes, all without zero points, with one scale per activation tensor and one per output
channel of a weight:

- `u8s8`, for CNNs on OpenVINO: activations are unsigned (0 to 255) where they are never negative,
  as after a ReLU, and signed else. Measured with ResMem on an AVX2 CPU, mean |difference| of 18
  videos: 0.0099 signed with 8 bit weights, 0.0081 signed with 7, 0.0057 unsigned with 7. ONNX
  Runtime computes such graphs wrong and TensorRT refuses them: they want everything signed;
- `s8s8`, for every runtime: everything is signed;
- `fp8`, for TensorRT: float8e4m3fn, scaled so that the range ends at 448.

int8 weights use 7 bits: instruction sets before VNNI add two products of 8 bit numbers in 16 bits,
which 255 * 127 * 2 overflows and 255 * 63 * 2 does not, and the scores of a graph must not depend
on the CPU.

Residual additions stay in floating point: with them in int8 too (NNCF, the same frames) the largest
difference of a video was 0.046 instead of 0.033 and SRCC 0.969 instead of 0.988.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from memcli.export import float8
from memcli.export.join import join_products
from memcli.export.layers import Layer

Scheme = Literal["u8s8", "s8s8", "fp8"]
UNSIGNED_LEVELS = 255
SIGNED_LEVELS = 127
WEIGHT_LEVELS = 63
_TINY = 1e-12
_FLOAT8_OPSET, _FLOAT8_IR = 19, 9
"""The first that know float8e4m3fn. Opset 19 only adds types to the operators of 18."""


@dataclass(frozen=True)
class ActivationRange:
    """Values of one tensor that 8 bits keep apart; larger ones are clipped."""

    clip: float
    """Largest magnitude."""
    signed: bool

    @property
    def levels(self) -> int:
        """Steps of int8 from 0 to the clip."""
        return SIGNED_LEVELS if self.signed else UNSIGNED_LEVELS


def round_to(
    values: npt.NDArray[Any], limits: ActivationRange, scheme: Scheme
) -> npt.NDArray[np.float64]:
    """What QuantizeLinear and DequantizeLinear make of an activation: the arithmetic in numpy."""
    scale = activation_scale(limits, scheme)
    steps = values.astype(np.float64) / scale
    if scheme == "fp8":
        return float8.decode(float8.encode(steps)).astype(np.float64) * scale
    signed = limits.signed or scheme == "s8s8"
    low, high = (-128, 127) if signed else (0, 255)
    result: npt.NDArray[np.float64] = np.round(steps).clip(low, high) * scale
    return result


def activation_scale(limits: ActivationRange, scheme: Scheme) -> float:
    """The value of one step, or of 1 in fp8."""
    levels: float = limits.levels
    if scheme != "u8s8":
        levels = float8.LARGEST if scheme == "fp8" else SIGNED_LEVELS
    return float(np.float32(max(limits.clip, _TINY) / levels))


def quantise(
    model: ModelProto,
    layers: Collection[Layer],
    ranges: Mapping[str, ActivationRange],
    scheme: Scheme = "u8s8",
) -> ModelProto:
    """A new graph in which `layers` compute in 8 bits.

    `ranges` has the input of every layer by name.
    """
    by_node = {layer.name: layer for layer in layers}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    added: list[TensorProto] = []
    done: set[str] = set()
    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        layer = by_node.get(node.name)
        if layer is not None:
            for name in (layer.input, layer.weight):
                if name in done:  # of queries, keys and values, or a weight that is shared
                    continue
                done.add(name)
                if name == layer.input:
                    extra, constants = _round_activation(name, ranges[name], scheme)
                else:
                    extra, constants = _round_weight(tensors[name], layer.axis, scheme)
                nodes.extend(extra)
                added.extend(constants)
            node.input[0] = f"{layer.input}.rounded"
            node.input[1] = f"{layer.weight}.rounded"
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in tensors.items() if name in used]
    return _model(model, *join_products(nodes, [*kept, *added]), scheme)


def _round_activation(
    name: str, limits: ActivationRange, scheme: Scheme
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The node pair that makes `NAME.rounded` from `NAME`, and its constants."""
    scale = numpy_helper.from_array(
        np.array(activation_scale(limits, scheme), np.float32), f"{name}.scale"
    )
    signed = limits.signed or scheme != "u8s8"
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    if scheme == "fp8":
        kind = TensorProto.FLOAT8E4M3FN
    zero = helper.make_tensor(f"{name}.zero", kind, [], b"\0", raw=True)
    parameters = [scale.name, zero.name]
    nodes = [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}.quantised"]),
        helper.make_node(
            "DequantizeLinear", [f"{name}.quantised", *parameters], [f"{name}.rounded"]
        ),
    ]
    return nodes, [scale, zero]


def _round_weight(
    tensor: TensorProto, axis: int, scheme: Scheme
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The node that makes `NAME.rounded` from constants, and these."""
    name = tensor.name
    values, scales = quantise_weight(numpy_helper.to_array(tensor), axis, scheme)
    kind = TensorProto.FLOAT8E4M3FN if scheme == "fp8" else TensorProto.INT8
    names = [f"{name}.{part}" for part in ("int8" if scheme != "fp8" else "fp8", "scale", "zero")]
    constants = [
        helper.make_tensor(names[0], kind, values.shape, values.tobytes(), raw=True),
        numpy_helper.from_array(scales, names[1]),
        helper.make_tensor(names[2], kind, scales.shape, bytes(len(scales)), raw=True),
    ]
    node = helper.make_node("DequantizeLinear", names, [f"{name}.rounded"], axis=axis)
    return [node], constants


def quantise_weight(
    weight: npt.NDArray[Any], axis: int = 0, scheme: Scheme = "s8s8"
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Weights and the scale of each channel [C] along `axis`.

    int8 in −63..63, of the shape of `weight`; codes of float8 as uint8 for `fp8`.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others)
    levels = float8.LARGEST if scheme == "fp8" else WEIGHT_LEVELS
    scales = (np.maximum(largest, _TINY) / levels).astype(np.float32)
    steps = weight / np.expand_dims(scales, others)
    if scheme == "fp8":
        return float8.encode(steps), scales
    return np.round(steps).clip(-WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8), scales


def _model(
    model: ModelProto, nodes: list[NodeProto], tensors: list[TensorProto], scheme: Scheme
) -> ModelProto:
    """`model` with other nodes and initialisers."""
    result = ModelProto()
    result.ir_version = model.ir_version
    result.opset_import.extend(model.opset_import)
    if scheme == "fp8":
        result.ir_version = max(model.ir_version, _FLOAT8_IR)
        for opset in result.opset_import:
            if opset.domain == "":
                opset.version = max(opset.version, _FLOAT8_OPSET)
    result.graph.name = model.graph.name
    result.graph.input.extend(model.graph.input)
    result.graph.output.extend(model.graph.output)
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(tensors)
    return result
