"""Outliers of activations moved into weights before quantising (SmoothQuant, Xiao et al. 2022).

Transformers have a few channels whose activations are tens of times larger than the rest; with one
scale for the whole tensor, the rest is left a few of 255 levels. Each channel of an activation is
divided by a factor, and the weights that read it are multiplied: the product stays what it is.

The division goes into the weight and bias of the LayerNormalization before, where nothing else
reads that, as in encoders that normalise first; else it is a multiplication of its own, which
runtimes fuse with the rounding (BERT's residual reads the normalised value, too, and the output of
a GELU cannot take a factor).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from memcli.export.cases import EMBEDDINGS
from memcli.export.graph_run import expose, run_batches
from memcli.export.layers import Layer
from memcli.export.quantize import ActivationRange, quantise_weight, round_to

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Feeds = Mapping[str, npt.NDArray[Any]]

STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""How much of the outliers moves: at 0 nothing, at 1 all of them. The best is searched for each
activation: none suits all (see `best_factors`)."""
_MIN_GAIN = 0.5
"""What is left of the error must be less than this share, or a multiplication is not worth it."""
_ROWS = 512
"""Tokens of each activation to search with."""
_TINY = 1e-5


def smooth(
    model: ModelProto, layers: Sequence[Layer], batches: Sequence[Feeds]
) -> tuple[ModelProto, list[Layer]]:
    """The same function with activations that int8 keeps better apart, and its layers.

    `model` itself is not changed. Convolutions are left alone: their activations have no such
    outliers, and their padding would need care.
    """
    names = list(dict.fromkeys(layer.input for layer in layers if not layer.is_conv))
    if not names:
        return model, list(layers)
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name in {layer.weight for layer in layers if not layer.is_conv}
    }
    largest, rows = _observe(model, names, batches)
    factors = {}
    for name in names:
        readers = [
            weights[one.weight] if one.axis == 1 else weights[one.weight].T
            for one in layers
            if one.input == name and not one.is_conv
        ]
        found = best_factors(largest[name], rows.pop(name), np.concatenate(readers, axis=1))
        if found is not None:
            factors[name] = found
    return _rewrite(model, layers, factors, weights) if factors else (model, list(layers))


def best_factors(largest: Floats, rows: Floats, weight: Floats) -> Floats | None:
    """What to divide the channels of an activation by, or None for nothing.

    `largest` [K] is the magnitude of each channel, `rows` [N, K] are some of its values and
    `weight` [K, M] what reads it. The factors with the least squared error of the product are
    taken, both sides rounded to int8.
    """
    exact = rows @ weight
    channels = np.abs(weight).max(axis=1)

    def error(factors: Floats) -> float:
        limits = ActivationRange(float((largest / factors).max()), signed=True)
        rounded = round_to(rows / factors, limits, "s8s8").astype(np.float32)
        values, scales = quantise_weight(weight * factors[:, None], axis=1)
        return float(np.square(rounded @ (values * scales) - exact).sum())

    plain = error(np.ones_like(largest))
    choices = [smoothing_factors(largest, channels, strength) for strength in STRENGTHS]
    errors = [error(factors) for factors in choices]
    best = int(np.argmin(errors))
    return choices[best] if errors[best] < _MIN_GAIN * plain else None


def smoothing_factors(activations: Floats, weights: Floats, strength: float) -> Floats:
    """Factors of channels from the largest magnitudes [K] of the activation and of the weights
    that read it; their geometric mean is 1.

    Equation 4 of the paper: max|X|^a / max|W|^(1 - a).
    """
    logs = strength * np.log(np.maximum(activations, _TINY))
    logs -= (1 - strength) * np.log(np.maximum(weights, _TINY))
    factors: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return factors


def _observe(
    model: ModelProto, names: Sequence[str], batches: Sequence[Feeds]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """The largest magnitude of each channel [K], and some rows [N, K], of activations."""
    largest: dict[str, Floats] = {}
    rows: dict[str, list[Floats]] = {name: [] for name in names}
    random = np.random.default_rng(0)
    share = -(-_ROWS // len(batches))
    for values in run_batches(expose(model, names), batches):
        for name in names:
            flat = values[name].reshape(-1, values[name].shape[-1])
            found = np.abs(flat).max(axis=0)
            largest[name] = np.maximum(largest[name], found) if name in largest else found
            picked = random.permutation(len(flat))[:share]
            rows[name].append(flat[picked].copy())
    return largest, {name: np.concatenate(parts) for name, parts in rows.items()}


def _rewrite(
    model: ModelProto,
    layers: Sequence[Layer],
    factors: Mapping[str, Floats],
    weights: Mapping[str, npt.NDArray[Any]],
) -> tuple[ModelProto, list[Layer]]:
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    by_name = {one.name: one for one in layers if one.input in factors and not one.is_conv}
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    for value in model.graph.output:
        readers.setdefault(value.name, []).append("")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    renamed: dict[str, Layer] = {}
    added: list[Any] = []
    nodes: list[NodeProto] = []
    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        nodes.append(node)
        if layer := by_name.get(node.name):
            factor = np.expand_dims(factors[layer.input], layer.axis)
            changed = replace(
                layer, input=f"{layer.input}.smoothed", weight=f"{layer.name}.smoothed_weight"
            )
            scaled = (weights[layer.weight] * factor).astype(np.float32)
            added.append(numpy_helper.from_array(scaled, changed.weight))
            renamed[node.name] = changed
            node.input[0], node.input[1] = changed.input, changed.weight
        name = node.output[0]
        if name not in factors:
            continue
        inverse = (1 / factors[name]).astype(np.float32)
        foldable = (
            node.op_type == "LayerNormalization"
            and name not in EMBEDDINGS  # which keep their name and their values
            and all(one in tensors for one in node.input[1:])
        )
        if foldable and all(reader in by_name for reader in readers[name]):
            for place, part in enumerate(node.input[1:], start=1):
                own = f"{name}.smoothed:{place}"
                values = numpy_helper.to_array(tensors[part]) * inverse
                added.append(numpy_helper.from_array(values.astype(np.float32), own))
                node.input[place] = own
            node.output[0] = f"{name}.smoothed"
        else:
            added.append(numpy_helper.from_array(inverse, f"{name}.smoothing"))
            nodes.append(helper.make_node("Mul", [name, f"{name}.smoothing"], [f"{name}.smoothed"]))
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *added])
    return result, [renamed.get(layer.name, layer) for layer in layers]
