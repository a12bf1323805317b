"""A vision transformer of one block in plain ONNX: frames to a score, by numpy's random weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, PATCHES, WIDTH, HIDDEN = 8, 4, 32, 64
OUTLIER = 40.0


def make_frames(count: int, seed: int, frames: int = 2) -> np.ndarray:
    """uint8 [count, frames, 8, 8, 3] of different colour and contrast."""
    random = np.random.default_rng(seed)
    colour = random.uniform(0, 255, (count, 1, 1, 1, 3))
    noise = random.normal(0, 1, (count, frames, SIDE, SIDE, 3)) * random.uniform(
        5, 60, (count, 1, 1, 1, 1)
    )
    return (colour + noise).clip(0, 255).astype(np.uint8)


def vit_graph(
    seed: int = 0, *, outliers: bool = False, post_norm: bool = False, bad_layer: bool = False
) -> onnx.ModelProto:
    """`outliers`: one channel of the second norm is 40 times the others. `post_norm`: the residual
    reads the norm, too, as in BERT. `bad_layer`: one whose input is 400 plus what matters, so that
    int8 leaves nothing of that."""
    random = np.random.default_rng(seed)
    make = helper.make_node
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {
        "patches": np.array([0, 0, PATCHES, SIDE * SIDE * 3 // PATCHES], np.int64),
        "heads": np.array([0, 0, PATCHES, 2, WIDTH // 2], np.int64),
        "joined": np.array([0, 0, PATCHES, WIDTH], np.int64),
        "white": np.array(255, np.float32),
        "half": np.array(0.5, np.float32),
        "one": np.array(1, np.float32),
        "root": np.array(2**0.5, np.float32),
        "scale": np.array((WIDTH // 2) ** -0.5, np.float32),
        "two": np.array([2], np.int64),
        "time": np.array([1], np.int64),
        "last": np.array([2], np.int64),
    }

    def linear(source: str, name: str, inputs: int, outputs: int, bias: bool = True) -> str:
        constants[f"{name}.weight"] = random.normal(0, inputs**-0.5, (inputs, outputs)).astype("f4")
        nodes.append(make("MatMul", [source, f"{name}.weight"], [f"{name}.y"], name))
        if not bias:
            return f"{name}.y"
        constants[f"{name}.bias"] = random.normal(0, 0.1, outputs).astype("f4")
        nodes.append(make("Add", [f"{name}.y", f"{name}.bias"], [f"{name}.z"]))
        return f"{name}.z"

    def norm(source: str, name: str) -> str:
        constants[f"{name}.weight"] = random.uniform(0.5, 1.5, WIDTH).astype("f4")
        constants[f"{name}.bias"] = random.normal(0, 0.1, WIDTH).astype("f4")
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(make("LayerNormalization", inputs, [name], name, axis=-1))
        return name

    def add(a: str, b: str, name: str) -> str:
        nodes.append(make("Add", [a, b], [name]))
        return name

    nodes.append(make("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT))
    nodes.append(make("Div", ["floats", "white"], ["pixels"]))
    nodes.append(make("Reshape", ["pixels", "patches"], ["tokens"]))
    constants["position"] = random.normal(0, 0.5, (PATCHES, WIDTH)).astype("f4")
    x = add(linear("tokens", "patch", SIDE * SIDE * 3 // PATCHES, WIDTH), "position", "x0")
    first = norm(x, "norm1")
    sources = {name: linear(first, name, WIDTH, WIDTH) for name in ("query", "key", "value")}
    nodes += [make("Reshape", [source, "heads"], [f"{n}.split"]) for n, source in sources.items()]
    perm, keys = [0, 1, 3, 2, 4], [0, 1, 3, 4, 2]
    nodes += [
        make("Transpose", ["query.split"], ["q"], perm=perm),
        make("Transpose", ["key.split"], ["k"], perm=keys),
        make("Transpose", ["value.split"], ["v"], perm=perm),
        make("MatMul", ["q", "k"], ["products"], "products"),
        make("Mul", ["products", "scale"], ["scaled"]),
        make("Softmax", ["scaled"], ["attention"], axis=-1),
        make("MatMul", ["attention", "v"], ["mixed"], "mixed"),
        make("Transpose", ["mixed"], ["together"], perm=perm),
        make("Reshape", ["together", "joined"], ["heads.out"]),
    ]
    x = add(x, linear("heads.out", "out", WIDTH, WIDTH), "x1")
    second = norm(x, "norm2")
    if outliers:
        constants["norm2.weight"][3] *= OUTLIER
    x = second if post_norm else x
    hidden = linear(second, "fc1", WIDTH, HIDDEN)
    if outliers:
        constants["fc1.weight"][3] /= OUTLIER
    nodes += [
        make("Div", [hidden, "root"], ["erf.in"]),
        make("Erf", ["erf.in"], ["erf"]),
        make("Add", ["erf", "one"], ["erf.one"]),
        make("Mul", [hidden, "erf.one"], ["twice"]),
        make("Mul", ["twice", "half"], ["gelu"]),
    ]
    x = add(x, linear("gelu", "fc2", HIDDEN, WIDTH), "x2")
    if bad_layer:
        constants["far"] = np.array(400, np.float32)
        x = linear(add(x, "far", "x3"), "bad", WIDTH, WIDTH, bias=False)
        constants["bad.weight"] -= constants["bad.weight"].mean(axis=0)
    nodes.append(make("ReduceMean", [x, "two"], ["frame_embeddings"], keepdims=0))
    nodes.append(make("Relu", [linear("frame_embeddings", "head", WIDTH, WIDTH)], ["relu"]))
    nodes.append(make("Sigmoid", [linear("relu", "score.layer", WIDTH, 1)], ["sigmoid"]))
    nodes.append(make("Squeeze", ["sigmoid", "last"], ["by_frame"]))
    nodes.append(make("ReduceMean", ["by_frame", "time"], ["score"], keepdims=0))
    shape = ["batch", "time_axis", SIDE, SIDE, 3]
    graph = helper.make_graph(
        nodes,
        "vit",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(np.asarray(array), key) for key, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model
