"""A real bundle that costs nothing: its score is the mean brightness of the frames.

The graph, the manifest and the reference are what every bundle has, so that the whole program runs
on it: `make_tiny_bundle(home)`, then `memcli score DIR --model tiny` with `$MEMCLI_HOME` = home.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from memcli.engines.base import EngineName
from memcli.engines.bundle import Bundle, Variant, hash_files, read_bundle, write_manifest
from memcli.engines.reference import synthetic_frames
from memcli.engines.verify import Reference
from memcli.spec import FramePrep, ModelSpec, Precision, Tolerance, WeightSource

TINY_PREP = FramePrep(frames=4, resize_width=64, resize_height=64, crop_width=48, crop_height=48)
TINY_TOLERANCE = Tolerance(max_abs=1e-3, mean_abs=1e-3)
"""float32 sums of 6,912 bytes differ by some 1e-6 between runtimes; bfloat16 by less than this
only for the division, and is not what the tests are about."""
OPSET = 18
_SEED = 7
_CLIPS = 3
FrameScores = Callable[[np.ndarray], np.ndarray]


def make_tiny_bundle(
    home: Path,
    name: str = "tiny",
    *,
    prep: FramePrep = TINY_PREP,
    precisions: Sequence[Precision] = ("fp32",),
    engines: Sequence[EngineName] = ("onnxruntime", "openvino"),
    graph: onnx.ModelProto | None = None,
    frame_scores: FrameScores | None = None,
    reference_offset: float = 0.0,
) -> Bundle:
    """Write a bundle to `home/bundles/name` and open it.

    `graph` takes `frames` uint8 [B, T, H, W, 3] and gives `frame_scores` [B, T] and `score` [B],
    and `frame_scores` says the same in numpy, for the reference; both default to the mean
    brightness. A `reference_offset` makes every runtime fail verification by that much.
    """
    root = home / "bundles" / name
    model = graph if graph is not None else brightness_graph()
    score_frames = frame_scores if frame_scores is not None else brightness
    frames = synthetic_frames(prep, _CLIPS, prep.frames, _SEED)
    reference = Reference(
        clips=_CLIPS,
        frames_per_clip=prep.frames,
        seed=_SEED,
        frame_scores=tuple(
            tuple(float(score) + reference_offset for score in clip)
            for clip in score_frames(frames)
        ),
        tolerance=TINY_TOLERANCE,
    )
    variants: dict[Precision, Variant] = {}
    for precision in precisions:
        path = f"{precision}/model.onnx"
        (root / precision).mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(model.SerializeToString())
        variants[precision] = Variant(
            precision=precision,
            graph=path,
            engines=tuple(engines),
            files=hash_files(root, [path]),
            reference=reference.to_dict(),
            made_by={"tests": "tiny_bundle"},
        )
    spec = _spec(name, prep)
    write_manifest(Bundle(root, spec, variants))
    return read_bundle(root)


def brightness(frames: np.ndarray) -> np.ndarray:
    """Frame scores [B, T] in [0, 1] of frames uint8 [B, T, H, W, 3]."""
    means: np.ndarray = frames.astype(np.float64).mean(axis=(2, 3, 4)) / 255
    return means


def brightness_graph() -> onnx.ModelProto:
    """The same as a graph."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "pixels"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "white"], ["frame_scores"]),
        helper.make_node("ReduceMean", ["frame_scores", "time"], ["score"], keepdims=0),
    ]
    constants: dict[str, np.ndarray] = {
        "pixels": np.array([2, 3, 4], np.int64),
        "white": np.array(255, np.float32),
        "time": np.array([1], np.int64),
    }
    return make_graph(nodes, constants)


def make_graph(nodes: Sequence[Any], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A checked model from `frames` to `frame_scores` and `score`."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(
                "frames", TensorProto.UINT8, ["batch", "frames_per_clip", "height", "width", 3]
            )
        ],
        [
            helper.make_tensor_value_info(
                "frame_scores", TensorProto.FLOAT, ["batch", "frames_per_clip"]
            ),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10  # readable by every ONNX Runtime that memcli supports
    onnx.checker.check_model(model)
    return model


def _spec(name: str, prep: FramePrep) -> ModelSpec:
    return ModelSpec(
        name=name,
        summary="the mean brightness of a clip",
        predicts="brightness",
        source="tests/tiny_bundle.py",
        prep=prep,
        graph="none.onnx",
        weights=WeightSource(
            package="none",
            version="0",
            filename="none",
            license_filename="none",
            sha256="0" * 64,
            size_bytes=0,
            license="test licence",
            license_note="for tests",
            homepage="none",
        ),
        trained_on="nothing",
        published=(),
        tolerances={"fp32": TINY_TOLERANCE},
    )
