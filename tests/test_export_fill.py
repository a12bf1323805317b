"""Weights into a weightless graph: complete or refused by name, streamed, atomic, without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from memcli.engines.bundle import DATA_FILE, GRAPH_FILE
from memcli.errors import ModelError
from memcli.export.fill import ALIGNMENT_BYTES, write_filled

SHAPES = {"layer.weight": (3, 5), "layer.bias": (5,), "scale": ()}


def placeholder(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=DATA_FILE)
    return tensor


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = (x @ weight + bias) * scale + one."""
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    nodes = [
        helper.make_node("Gemm", ["x", "layer.weight", "layer.bias"], ["a"]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["y"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
            [*(placeholder(name, shape) for name, shape in SHAPES.items()), one],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "graph.onnx"


@pytest.fixture
def weights() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, dtype=np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_filled_graph_holds_the_weights(
    graph: Path, weights: dict[str, NDArray[Any]], out: Path
) -> None:
    weights["layer.weight"] = np.asfortranarray(weights["layer.weight"])
    write_filled(graph, weights, out)
    model_path = out / GRAPH_FILE
    onnx.checker.check_model(model_path, full_check=True)
    model = onnx.load(model_path, load_external_data=False)
    offsets = [
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) == len(SHAPES)
    assert all(offset % ALIGNMENT_BYTES == 0 for offset in offsets)
    load_external_data_for_model(model, str(out))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, array in weights.items():
        assert np.array_equal(found[name], array)
    assert found["one"] == 1


def test_same_input_same_bytes(
    graph: Path, weights: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_filled(graph, dict(reversed(list(weights.items()))), tmp_path / name)
    for file in (GRAPH_FILE, DATA_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def with_value(array: NDArray[Any], value: float) -> NDArray[Any]:
    array = array.copy()
    array.flat[-1] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("scale"), "lack 1 tensor: scale"),
        (lambda w: w.clear(), "lack 3 tensors: layer.bias, layer.weight, scale"),
        (lambda w: w.update(other=np.zeros(1)), "no place for 1 tensor: other"),
        (lambda w: w.update({"layer.bias": np.zeros(4, np.float32)}), r"layer.bias has shape \(4,"),
        (lambda w: w.update({"layer.bias": np.zeros(5)}), "layer.bias is float64"),
        (lambda w: w.update(scale=np.array(np.nan, np.float32)), "scale holds values"),
        (
            lambda w: w.update({"layer.weight": with_value(w["layer.weight"], np.inf)}),
            "layer.weight holds values",
        ),
    ],
)
def test_wrong_weights_are_named(
    graph: Path, weights: dict[str, NDArray[Any]], out: Path, change: Any, message: str
) -> None:
    change(weights)
    with pytest.raises(ModelError, match=message):
        write_filled(graph, weights, out)
    assert not (out / GRAPH_FILE).exists()


def test_only_what_is_declared_ignorable_is_ignored(
    graph: Path, weights: dict[str, NDArray[Any]], out: Path
) -> None:
    weights["bn.num_batches_tracked"] = np.array(7)
    write_filled(graph, weights, out)
    with pytest.raises(ModelError, match="num_batches_tracked"):
        write_filled(graph, weights, out, ignorable=re.compile("(?!)"))


def test_each_tensor_is_loaded_once_in_graph_order(
    graph: Path, weights: dict[str, NDArray[Any]], out: Path
) -> None:
    """What bounds memory: a lazy mapping never has to hold more than one."""
    asked = []

    class Lazy(Mapping[str, NDArray[Any]]):
        def __getitem__(self, name: str) -> NDArray[Any]:
            asked.append(name)
            return weights[name]

        def __iter__(self) -> Iterator[str]:
            return reversed(list(weights))

        def __len__(self) -> int:
            return len(weights)

    write_filled(graph, Lazy(), out)
    assert asked == list(SHAPES)


def test_damaged_graph(weights: dict[str, NDArray[Any]], tmp_path: Path, out: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="not a readable ONNX graph"):
        write_filled(tmp_path / "graph.onnx", weights, out)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, memcli.export.checkpoint, memcli.export.fill, memcli.export.pull\n"
        "print([m for m in ('torch', 'onnxscript', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
