"""Queries, keys and values as one 8-bit product: the same numbers, and all of them in 8 bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tiny_vit import make_frames, vit_graph

from memcli.export import quantize
from memcli.export.int8 import collect
from memcli.export.layers import quantisable_layers
from memcli.export.quantize import Scheme, quantise
from memcli.export.ranges import choose_range


def eight_bits(scheme: Scheme, without: tuple[str, ...] = ()) -> onnx.ModelProto:
    model = vit_graph()
    layers = [layer for layer in quantisable_layers(model) if layer.name not in without]
    frames = [{"frames": clip[None]} for clip in make_frames(8, 1)]
    found = collect(model, [layer.input for layer in layers], frames, "minmax")
    ranges = {name: choose_range(one, "minmax", scheme) for name, one in found.items()}
    return quantise(model, layers, ranges, scheme)


def apart(nodes, tensors):  # type: ignore[no-untyped-def]
    return list(nodes), list(tensors)


def by_the_standard(model: onnx.ModelProto) -> np.ndarray:
    model.opset_import[0].version = 19  # the first whose rounding operators onnx's reference has
    model.ir_version = 9
    (scores,) = ReferenceEvaluator(model).run(["score"], {"frames": make_frames(8, 5)})
    return scores


@pytest.mark.parametrize("scheme", ["s8s8", "u8s8", "fp8"])
def test_one_product_gives_what_three_give(scheme: Scheme) -> None:
    joined = eight_bits(scheme)
    onnx.checker.check_model(joined, full_check=True)
    with patch.object(quantize, "join_products", apart):
        three = eight_bits(scheme)
    names = [node.name for node in joined.graph.node if node.op_type == "MatMul"]
    assert "query.joined" in names
    assert not {"query", "key", "value"} & set(names)
    assert len([n for n in three.graph.node if n.op_type == "MatMul"]) == len(names) + 2
    # numpy adds the products of a wider matrix in another order.
    np.testing.assert_allclose(by_the_standard(joined), by_the_standard(three), atol=1e-6)


def test_what_stays_in_float_stays_apart() -> None:
    model = eight_bits("s8s8", without=("key",))
    split = next(node for node in model.graph.node if node.op_type == "Split")
    assert list(split.output) == ["query.y", "value.y"]
    key = next(node for node in model.graph.node if node.name == "key")
    assert list(key.input) == ["norm1", "key.weight"]
    names = {tensor.name for tensor in model.graph.initializer}
    used = {name for node in model.graph.node for name in node.input}
    assert names <= used


def test_onnx_runtime_leaves_no_product_of_weights_in_float(tmp_path: Path) -> None:
    """The reason for it: of three products of one activation it made float products."""
    import onnxruntime

    path, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    onnx.save(eight_bits("s8s8"), str(path))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    made = onnx.load(str(optimised))
    constants = {tensor.name for tensor in made.graph.initializer}
    kinds = Counter(
        node.op_type
        for node in made.graph.node
        if "MatMul" in node.op_type and constants & set(node.input)
    )
    # patch, query with key and value, out, fc1, fc2, head; the last one is a score and float.
    assert kinds["MatMulIntegerToFloat"] == 6, kinds
    assert not [n for n in made.graph.node if n.op_type == "DequantizeLinear"]
