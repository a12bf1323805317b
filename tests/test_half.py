"""fp16 and bf16 graphs: consistently typed, islands in fp32, and the scores of fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from half_graph import SIDE, half_graph
from onnx import ModelProto, TensorProto, helper, numpy_helper

from memcli.errors import ModelError
from memcli.export.compare import SeenGraph
from memcli.export.emulate import HALVES, emulate
from memcli.export.half import HEAVY, Half, write_half
from memcli.export.layer_norm import fuse_layer_norms
from memcli.export.parity import cosines, relative_error
from memcli.export.retype import element_types

ort = pytest.importorskip("onnxruntime", reason="what executes the emulated graphs")
PRECISIONS: tuple[Half, ...] = ("fp16", "bf16")
HALF_OPS = HEAVY | {"Cast", "Add", "Sub", "Mul", "Div", "Neg", "Relu", "Where", "MaxPool"}
HALF_OPS |= {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat"}
HALF_OPS |= {"Gather", "Expand", "Identity", "Tile", "Pad", "GatherElements", "GatherND"}


def check_typed(graph: Path) -> ModelProto:
    """Strictly typed, no operator but products, sums and moves in half, and no useless casts."""
    onnx.checker.check_model(str(graph), full_check=True)
    model = onnx.load(str(graph), load_external_data=False)
    types = element_types(model)
    casts = {}
    for node in model.graph.node:
        kinds = {types.get(name) for name in (*node.input, *node.output)}
        if kinds & set(HALVES) and "Shape" not in node.op_type:
            assert node.op_type in HALF_OPS, node.name
            assert node.op_type == "Cast" or TensorProto.FLOAT not in kinds, node.name
        if node.op_type == "Cast" and types[node.input[0]] in (TensorProto.FLOAT, *HALVES):
            key = node.input[0], types[node.output[0]]
            assert key not in casts, f"{node.input[0]} is cast twice to one type"
            casts[key] = node.output[0]
            assert types[node.input[0]] != types[node.output[0]]
            assert node.input[0] not in casts.values(), f"{node.input[0]} is cast back"
    return model


def write(model: ModelProto, folder: Path, precision: Half) -> Path:
    (folder / "fp32").mkdir(parents=True)
    onnx.save(model, folder / "fp32/model.onnx")
    write_half(folder / "fp32/model.onnx", folder / "model.onnx", precision)
    return folder / "model.onnx"


@pytest.mark.parametrize("spelled_out", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_islands(tmp_path: Path, precision: Half, spelled_out: bool) -> None:
    source = half_graph(spelled_out=spelled_out)
    model = check_typed(write(source, tmp_path, precision))
    types = element_types(model)
    half = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
    assert {types[name] for name in ("stem", "fc", "frame_embeddings")} == {half}
    floats = ("pixels", "colour", "normed", "logits", "scores", "score")
    assert {types[name] for name in floats} == {TensorProto.FLOAT}
    (norm,) = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert types[norm.input[0]] == TensorProto.FLOAT
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored["fc.weight." + precision] == half
    assert stored["head.weight"] == TensorProto.FLOAT
    assert [value.name for value in model.graph.output] == ["frame_scores", "score"]
    assert all(one.type.tensor_type.elem_type == 1 for one in model.graph.output)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounding_and_overflow_show_when_emulated(tmp_path: Path, precision: Half) -> None:
    """The emulated graph gives what numpy gives when each value is rounded."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], "floats", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "weight"], ["product"], "product"),
        helper.make_node("MatMul", ["product", "weight"], ["again"], "again"),
        helper.make_node("MatMul", ["again", "small"], ["score"], "score"),
    ]
    weight = np.array([[1.001, 0], [0, 300]], np.float32)
    tensors = [numpy_helper.from_array(weight, "weight")]
    tensors.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "small"))
    ends = [
        helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", 2]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 2]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = write(model, tmp_path, precision)
    seen = SeenGraph(path, ["product", "again"])
    assert seen.emulated
    feeds = {"frames": np.array([[200, 200]], np.uint8)}
    found = seen.run(feeds)
    half = helper.tensor_dtype_to_np_dtype(10 if precision == "fp16" else 16)

    def rounded(values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return values.astype(half).astype(np.float32)

    small = rounded(weight)
    product = rounded(feeds["frames"].astype(np.float32) @ small)
    np.testing.assert_array_equal(found["product"], product)
    np.testing.assert_array_equal(found["again"], rounded(product @ small))
    assert np.isinf(found["again"][0, 1]) == (precision == "fp16"), "18,000,000"
    assert found["product"][0, 0] != 200 * np.float32(1.001)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_half_precision_cannot_hold_stays_in_fp32(tmp_path: Path, precision: Half) -> None:
    """The mask of attention, and the epsilon of a norm."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], "floats", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "weight"], ["scores"], "scores"),
        helper.make_node("Greater", ["floats", "nought"], ["seen"], "seen"),
        helper.make_node("Where", ["seen", "nought", "lowest"], ["mask"], "mask"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], "masked"),
        helper.make_node("Softmax", ["masked"], ["weights"], "weights", axis=-1),
        helper.make_node("MatMul", ["weights", "weight"], ["values"], "values"),
        helper.make_node("Add", ["values", "epsilon"], ["safe"], "safe"),
        helper.make_node("MatMul", ["safe", "weight"], ["score"], "score"),
    ]
    constants = {
        "weight": np.eye(3, dtype=np.float32),
        "nought": np.array(0, np.float32),
        "lowest": np.array(np.finfo(np.float32).min, np.float32),
        "epsilon": np.array(1e-12 if precision == "fp16" else 1e-42, np.float32),
    }
    ends = [
        helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", 3]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 3]),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = write(model, tmp_path, precision)
    types = element_types(check_typed(path))
    assert {types[name] for name in ("mask", "masked", "weights", "safe")} == {TensorProto.FLOAT}
    assert {types[name] for name in ("scores", "values")} <= set(HALVES)
    found = SeenGraph(path).run({"frames": np.array([[1, 0, 2]], np.uint8)})["score"]
    np.testing.assert_allclose(found.sum(), 1, atol=0.01)
    assert found[0, 1] <= 2e-12, "what is masked has no weight"


def test_bytes_are_a_function_of_the_source(tmp_path: Path) -> None:
    first = write(half_graph(), tmp_path / "a", "fp16")
    second = write(half_graph(), tmp_path / "b", "fp16")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_name("model.bin").read_bytes() == second.with_name("model.bin").read_bytes()


def test_a_graph_inside_a_node_is_refused(tmp_path: Path) -> None:
    model = half_graph()
    branch = helper.make_graph(
        [helper.make_node("Identity", ["scores"], ["b"])],
        "b",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    flag = numpy_helper.from_array(np.array(True), "flag")
    model.graph.initializer.append(flag)
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["x"], "branching", then_branch=branch, else_branch=branch)
    )
    with pytest.raises(ModelError, match="branching"):
        write(model, tmp_path, "fp16")
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="not a readable ONNX graph"):
        write_half(tmp_path / "no.onnx", tmp_path / "x.onnx", "fp16")


def test_a_norm_that_is_read_inside_is_left_alone(tmp_path: Path) -> None:
    plain, seen, other = half_graph(), half_graph(), half_graph()
    assert fuse_layer_norms(plain, tmp_path) == 1
    onnx.checker.check_model(plain, full_check=True)
    seen.graph.output.append(helper.make_tensor_value_info("normal", TensorProto.FLOAT, None))
    assert fuse_layer_norms(seen, tmp_path) == 0
    next(node for node in other.graph.node if node.op_type == "Pow").input[1] = "white"
    assert fuse_layer_norms(other, tmp_path) == 0
    frames = {"frames": np.random.default_rng(0).integers(0, 256, (2, 2, SIDE, SIDE, 3), np.uint8)}
    scores = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            ["score"], frames
        )[0]
        for m in (half_graph(), plain)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)


def test_emulating_fp32_changes_nothing() -> None:
    assert len(emulate(half_graph()).graph.node) == len(half_graph().graph.node)


def test_cosines_and_errors_of_what_is_no_number() -> None:
    rows = np.array([[1.0, 0], [0, 0], [np.nan, 1], [np.inf, 1], [0, 0]])
    wanted = np.array([[2.0, 0], [0, 0], [1, 1], [1, 1], [1, 0]])
    assert cosines(rows, wanted).tolist() == [1, 1, -1, -1, -1]
    assert relative_error(np.array([np.nan]), np.array([1.0])) == np.inf
    assert relative_error(np.array([1.0, -np.inf]), np.array([2.0, -np.inf])) == 0.5
