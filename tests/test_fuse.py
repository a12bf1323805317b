"""GELU spelled for ONNX Runtime: fused there, the same to the bit, other products left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime", reason="what fuses")
pytest.importorskip("onnxscript", reason="rewrites the graph")
import onnx_ir  # noqa: E402
from onnx import ModelProto, TensorProto, helper, numpy_helper  # noqa: E402

from memcli.export.fuse import fuse  # noqa: E402

X = np.linspace(-8, 8, 4096, dtype=np.float32).reshape(1, -1)
X[0, :3] = 0.0, 1e-6, 1000.0
SPELLINGS = {"Tanh": "FastGelu", "Erf": "Gelu"}


def gelu(kind: str, *, half: float = 0.5, one: float = 1.0, watched: bool = False) -> ModelProto:
    """`x` to `y` = -GELU as torch's exporter writes it; `watched` gives an inner value, too."""
    nodes = []
    constants = {
        "half": half,
        "one": one,
        "root": 2**0.5,
        "three": 3.0,
        "a": 0.044715,
        "b": 0.7978846,
    }

    def add(op: str, *inputs: str, output: str) -> str:
        nodes.append(helper.make_node(op, inputs, [output]))
        return output

    if kind == "Erf":
        inner = add("Div", "x", "root", output="inner")
    else:
        add("Pow", "x", "three", output="cube")
        add("Mul", "a", "cube", output="part")
        add("Add", "x", "part", output="sum")
        inner = add("Mul", "b", "sum", output="inner")
    add(kind, inner, output="f")
    add("Add", "f", "one", output="shifted")
    add("Mul", "half", "shifted", output="halved")
    add("Mul", "x", "halved", output="gelu")
    add("Neg", "gelu", output="y")  # outputs of the graph are not fused
    shape = ["batch", X.shape[1]]
    outputs = ["y", "halved"] if watched else ["y"]
    graph = helper.make_graph(
        nodes,
        "gelu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, shape) for o in outputs],
        [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def respelled(model: ModelProto) -> tuple[ModelProto, int]:
    loaded = onnx_ir.serde.deserialize_model(model)
    count = fuse(loaded)
    return onnx_ir.serde.serialize_model(loaded), count


def run(model: ModelProto, *, optimise: bool) -> Any:
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(["y"], {"x": X})[0]


def optimised(path: Path, target: Path) -> Counter[str]:
    """How many of each operator ONNX Runtime executes."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3  # it says that the result is for this machine
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(target, load_external_data=False).graph.node)


@pytest.mark.parametrize("kind", SPELLINGS)
def test_the_same_to_the_bit_and_fused(kind: str, tmp_path: Path) -> None:
    before = gelu(kind)
    after, count = respelled(before)
    assert count == 1
    onnx.checker.check_model(after, full_check=True)
    assert np.array_equal(run(after, optimise=False), run(before, optimise=False))
    # Fused kernels have polynomials of their own.
    np.testing.assert_allclose(run(after, optimise=True), run(before, optimise=False), atol=2e-6)
    for name, model in (("before", before), ("after", after)):
        onnx.save(model, tmp_path / f"{name}.onnx")
        found = optimised(tmp_path / f"{name}.onnx", tmp_path / "optimised.onnx")
        assert found[SPELLINGS[kind]] == (name == "after"), found
        assert found[kind] == (name == "before"), found


@pytest.mark.parametrize("changed", [{"half": 0.25}, {"one": 2.0}, {"watched": True}])
def test_what_is_no_gelu_or_read_inside_is_left_alone(changed: Any) -> None:
    model = gelu("Tanh", **changed)
    after, count = respelled(model)
    assert count == 0
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in model.graph.node]


@pytest.mark.parametrize(("name", "kind"), [("vision", "Tanh"), ("vit", "Erf"), ("text", "Erf")])
def test_encoders_have_every_gelu_fused(
    name: str, kind: str, tiny_export: Any, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the exporter")
    pytest.importorskip("transformers", reason="the encoders")
    from memcli.export import trained

    made = tiny_export(name)
    for folder in ("ours", "torch"):
        (tmp_path / folder).mkdir()
    made.copy_graph(tmp_path / "ours")
    with patch.object(trained, "fuse", lambda _: 0):
        trained.write_traced(made.tiny.model, made.tiny.spec, tmp_path / "torch")
    found = {
        folder: optimised(tmp_path / folder / "model.onnx", tmp_path / f"{folder}.onnx")
        for folder in ("ours", "torch")
    }
    assert found["torch"][kind] >= 2
    assert found["ours"][kind] == 0, "ONNX Runtime computes a GELU part by part"
