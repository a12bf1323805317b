"""A small network with what breaks in fp16: a LayerNormalization spelled out over large values."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import TINY_PREP

SIDE, WIDTH = TINY_PREP.crop_width, 16
OUTLIER = 400.0
"""One channel of the residual stream, as real encoders have them: its square is beyond 65,504."""


def half_graph(seed: int = 0, *, spelled_out: bool = True) -> onnx.ModelProto:
    """`frames` to `frame_scores` and `score`, with `frame_embeddings` [batch, time, 16] inside."""
    random = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {
        "pool": np.array([2, 3], np.int64),
        "last": np.array([-1], np.int64),
        "time": np.array([1], np.int64),
        "white": np.array(255, np.float32),
        "mean": np.array([0.4, 0.5, 0.6], np.float32),
        "std": np.array([0.2, 0.3, 0.25], np.float32),
        "two": np.array(2, np.float32),
        "eps": np.array(1e-6, np.float32),
        "shift": np.where(np.arange(WIDTH) == 3, OUTLIER, 0).astype(np.float32),
        "gamma": random.uniform(0.5, 1.5, WIDTH).astype(np.float32),
        "beta": random.normal(0, 0.1, WIDTH).astype(np.float32),
        "stem.weight": random.normal(0, 1, (3, WIDTH)).astype(np.float32),
        "fc.weight": random.normal(0, 0.5, (WIDTH, WIDTH)).astype(np.float32),
        "head.weight": random.normal(0, 0.5, (WIDTH, 1)).astype(np.float32),
    }

    def add(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    add("Cast", ["frames"], "floats", to=TensorProto.FLOAT)
    add("Div", ["floats", "white"], "unit")
    add("Sub", ["unit", "mean"], "centred")
    add("Div", ["centred", "std"], "pixels")
    add("ReduceMean", ["pixels", "pool"], "colour", keepdims=0)
    add("MatMul", ["colour", "stem.weight"], "stem")
    stream = add("Add", ["stem", "shift"], "stream")
    if spelled_out:
        add("ReduceMean", [stream, "last"], "middle")
        add("Sub", [stream, "middle"], "apart")
        add("Pow", ["apart", "two"], "squares")
        add("ReduceMean", ["squares", "last"], "variance")
        add("Add", ["variance", "eps"], "safe")
        add("Sqrt", ["safe"], "deviation")
        add("Div", ["apart", "deviation"], "normal")
        add("Mul", ["normal", "gamma"], "scaled")
        normed = add("Add", ["scaled", "beta"], "normed")
    else:
        normed = add("LayerNormalization", [stream, "gamma", "beta"], "normed", axis=-1)
    add("MatMul", [normed, "fc.weight"], "fc")
    add("Add", ["stem", "fc"], "frame_embeddings")
    add("Relu", ["frame_embeddings"], "active")
    add("MatMul", ["active", "head.weight"], "logits")
    add("Sigmoid", ["logits"], "scores")
    add("Squeeze", ["scores", "last"], "frame_scores")
    add("ReduceMean", ["frame_scores", "time"], "score", keepdims=0)
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["b", "t", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("frame_scores", TensorProto.FLOAT, ["b", "t"]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["b"]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model
