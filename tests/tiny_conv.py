"""A small residual network as a bundle that int8 can be made of, and clips to calibrate it with."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from tiny_bundle import TINY_PREP, make_graph

from memcli.engines.bundle import Bundle, read_bundle, write_manifest
from memcli.spec import Tolerance

INT8 = Tolerance(max_abs=0.02, mean_abs=0.01, min_srcc=0.99)
SIDE = TINY_PREP.crop_width
CHANNELS = 16


def conv_graph(seed: int = 0) -> onnx.ModelProto:
    """A small residual network with batch normalisation: frames to a score in [0, 1]."""
    random = np.random.default_rng(seed)
    constants = {
        "images": np.array([-1, SIDE, SIDE, 3], np.int64),
        "white": np.array(255, np.float32),
        "vector": np.array([-1, CHANNELS], np.int64),
        "time": np.array([1], np.int64),
        "fc.weight": random.normal(0, 0.7, (CHANNELS, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Shape", ["frames"], ["lead"], end=2),
        helper.make_node("Reshape", ["frames", "images"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "white"], ["x0"]),
    ]

    def conv(source: str, name: str, channels: int, norm: bool) -> str:
        shape = (CHANNELS, channels, 3, 3)
        constants[f"{name}.weight"] = random.normal(0, (2 / 9 / channels) ** 0.5, shape).astype(
            np.float32
        )
        inputs = [source, f"{name}.weight"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.y"], name, pads=[1] * 4))
        if not norm:
            return f"{name}.y"
        parameters = [f"{name}.{part}" for part in ("gamma", "beta", "mean", "var")]
        for parameter, low in zip(parameters, (0.5, -0.5, -0.2, 0.5), strict=True):
            constants[parameter] = random.uniform(low, low + 1, CHANNELS).astype(np.float32)
        nodes.append(
            helper.make_node("BatchNormalization", [f"{name}.y", *parameters], [f"{name}.n"])
        )
        return f"{name}.n"

    nodes.append(helper.make_node("Relu", [conv("x0", "stem", 3, norm=True)], ["x1"]))
    nodes.append(helper.make_node("Relu", [conv("x1", "first", CHANNELS, norm=True)], ["x2"]))
    nodes.append(
        helper.make_node("Add", [conv("x2", "second", CHANNELS, norm=True), "x1"], ["sum"])
    )
    nodes += [
        helper.make_node("Relu", ["sum"], ["x3"]),
        helper.make_node("GlobalAveragePool", ["x3"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "vector"], ["features"]),
        helper.make_node("MatMul", ["features", "fc.weight"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
        helper.make_node("Reshape", ["scores", "lead"], ["frame_scores"]),
        helper.make_node("ReduceMean", ["frame_scores", "time"], ["score"], keepdims=0),
    ]
    return make_graph(nodes, constants)


def original_scores(frames: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        conv_graph().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["frame_scores"], {"frames": frames})[0]


def make_clips(count: int, seed: int, length: int = 6) -> list[np.ndarray]:
    """Clips of different colour and contrast, so that their scores differ."""
    random = np.random.default_rng(seed)
    clips = []
    for _ in range(count):
        colour = random.uniform(0, 255, 3)
        noise = random.normal(0, random.uniform(0, 60), (length, SIDE, SIDE, 3))
        clips.append((colour + noise).clip(0, 255).astype(np.uint8))
    return clips


def with_tolerance(bundle: Bundle, tolerance: Tolerance) -> Bundle:
    """The bundle with this tolerance of int8 and bf16."""
    tolerances = {
        **bundle.spec.tolerances,
        "int8": tolerance,
        "bf16": tolerance,
    }
    spec = dataclasses.replace(bundle.spec, tolerances=tolerances)
    write_manifest(dataclasses.replace(bundle, spec=spec))
    return read_bundle(bundle.root)


def content(root: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }
