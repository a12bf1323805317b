"""A real EEG bundle that costs nothing, and recordings whose probabilities are known.

Each window contributes tanh(mean of its microvolts over channels and samples / 100), windows that
are not there nothing; the score is the sigmoid of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from memcli.engines.bundle import Bundle, Variant, hash_files, read_bundle, write_manifest
from memcli.engines.synthetic_eeg import synthetic_epochs
from memcli.engines.verify import SYNTHETIC_EEG, Reference
from memcli.spec import EegPrep, ModelSpec, Tolerance

CHANNELS = ("Fz", "Cz", "Pz", "Oz")
TINY_EEG = EegPrep(channels=CHANNELS, duration_s=2.0)
NAME = "tiny-eeg"
RATE_HZ = 100.0
SPACING_S = 3.0
_OPSET = 18
_SEED = 7
_EPOCHS = 6


def tiny_scores(
    eeg: np.ndarray, samples: np.ndarray, prep: EegPrep = TINY_EEG
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [B] and contributions [B, W] of epochs [B, C, N] in microvolts."""
    by_window = eeg.astype(np.float64).reshape(len(eeg), len(prep.channels), prep.windows, -1)
    contributions = np.tanh(by_window.mean(axis=(1, 3)) / 100)
    there = np.arange(prep.windows) * prep.window_samples < np.asarray(samples)[:, None]
    contributions = contributions * there
    return 1 / (1 + np.exp(-contributions.sum(1))), contributions


def tiny_eeg_graph(prep: EegPrep = TINY_EEG) -> onnx.ModelProto:
    """The same as a graph; a `subject` of a model that knows some changes nothing."""
    make = helper.make_node
    shape = [0, len(prep.channels), prep.windows, prep.window_samples]
    constants: dict[str, np.ndarray] = {
        "shape": np.array(shape, np.int64),
        "within": np.array([1, 3], np.int64),
        "last": np.array([1], np.int64),
        "hundred": np.array(100, np.float32),
        "starts": (np.arange(prep.windows) * prep.window_samples).astype(np.int64)[None],
    }
    nodes = [
        make("Reshape", ["eeg", "shape"], ["by_window"]),
        make("ReduceMean", ["by_window", "within"], ["means"], keepdims=0),
        make("Div", ["means", "hundred"], ["scaled"]),
        make("Tanh", ["scaled"], ["bounded"]),
        make("Unsqueeze", ["samples", "last"], ["lengths"]),
        make("Less", ["starts", "lengths"], ["there"]),
        make("Cast", ["there"], ["mask"], to=TensorProto.FLOAT),
        make("Mul", ["bounded", "mask"], ["contributions"]),
        make("ReduceSum", ["contributions", "last"], ["logit"], keepdims=0),
        make("Sigmoid", ["logit"], ["score"]),
    ]
    channels, samples = prep.epoch_shape()
    inputs = [
        helper.make_tensor_value_info("eeg", TensorProto.FLOAT, ["batch", channels, samples]),
        helper.make_tensor_value_info("samples", TensorProto.INT64, ["batch"]),
    ]
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("contributions", TensorProto.FLOAT, ["batch", prep.windows]),
    ]
    tensors = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    graph = helper.make_graph(nodes, NAME, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def make_eeg_bundle(
    home: Path, *, prep: EegPrep = TINY_EEG, demonstration: bool = False, name: str = NAME
) -> Bundle:
    """Write the bundle to `home/bundles/NAME` and open it."""
    root = home / "bundles" / name
    (root / "fp32").mkdir(parents=True)
    (root / "fp32/model.onnx").write_bytes(tiny_eeg_graph(prep).SerializeToString())
    made = synthetic_epochs(prep, _EPOCHS, _SEED)
    scores, contributions = tiny_scores(made.eeg, made.samples, prep)
    reference = Reference(
        clips=_EPOCHS,
        frames_per_clip=0,
        seed=_SEED,
        scores=tuple(map(float, scores)),
        contributions=tuple(tuple(map(float, row)) for row in contributions),
        tolerance=Tolerance(1e-3, 1e-3),
        kind=SYNTHETIC_EEG,
    )
    variant = Variant(
        precision="fp32",
        graph="fp32/model.onnx",
        engines=("onnxruntime", "openvino"),
        files=hash_files(root, ["fp32/model.onnx"]),
        reference=reference.to_dict(),
        made_by={"tests": "tiny_eeg"},
    )
    spec = ModelSpec(
        name=name,
        summary="how positive the voltage is",
        predicts="voltage",
        source="tests/tiny_eeg.py",
        prep=None,
        eeg=prep,
        trained_on="nothing",
        published=(),
        tolerances={"fp32": Tolerance(1e-3, 1e-3)},
    )
    training: dict[str, Any] = {"demonstration": True} if demonstration else {}
    write_manifest(Bundle(root, spec, {"fp32": variant}, training))
    return read_bundle(root)


def noise(channels: int, samples: int, seed: int = 0) -> np.ndarray:
    """Microvolts [channels, samples] whose mean over each second is nearly zero."""
    rng = np.random.default_rng(seed)
    wave: np.ndarray = rng.normal(0, 10, (channels, samples))
    return wave - wave.mean(axis=1, keepdims=True)


def voltages(levels: Sequence[float], seed: int = 0) -> np.ndarray:
    """Microvolts [channels, samples]: an epoch at each level every SPACING_S, from SPACING_S on."""
    step = round(SPACING_S * RATE_HZ)
    data = noise(len(CHANNELS), step * (len(levels) + 1), seed)
    for number, level in enumerate(levels, start=1):
        data[:, number * step : (number + 1) * step] += level
    return data


def make_recording(
    path: Path, levels: Sequence[float] = (-40.0, 0.0, 60.0), *, event: str = "clip", seed: int = 0
) -> np.ndarray:
    """Write a FIF recording with one event per level; gives its microvolts [channels, samples]."""
    import mne

    data = voltages(levels, seed)
    info = mne.create_info(list(CHANNELS), RATE_HZ, "eeg")
    raw = mne.io.RawArray(data / 1e6, info, verbose="error")
    onsets = [SPACING_S * number for number in range(1, len(levels) + 1)]
    raw.set_annotations(mne.Annotations(onsets, [0.0] * len(levels), [event] * len(levels)))
    raw.save(path, overwrite=True, fmt="double", verbose="error")
    return data
