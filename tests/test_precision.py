"""Making a variant from an installed bundle: int8 end to end on a small network, and refusals."""

import dataclasses
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media import make_video
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import TINY_PREP, _spec, make_tiny_bundle
from tiny_conv import (
    INT8,
    SIDE,
    content,
    conv_graph,
    make_clips,
    original_scores,
    with_tolerance,
)

from memcli.engines.bundle import read_bundle, verify_files, write_manifest
from memcli.engines.loading import graph_facts
from memcli.engines.select import open_engine
from memcli.errors import (
    EngineError,
    ModelError,
    ParityError,
    UsageError,
)
from memcli.export import int8
from memcli.export.calibration import (
    make_calibration_set,
    read_calibration,
    split_by_video,
)
from memcli.export.fold import fold_batch_norms
from memcli.export.graph_run import run_batches
from memcli.export.layers import quantisable_layers
from memcli.export.parity import gate
from memcli.export.precision import make_variant
from memcli.export.quantize import ActivationRange, quantise, quantise_weight
from memcli.export.ranges import best_range
from memcli.spec import Tolerance
from memcli.video import read_clip


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path))
    made = make_tiny_bundle(tmp_path, graph=conv_graph(), frame_scores=original_scores)
    return with_tolerance(made, INT8)


def test_int8_end_to_end(bundle):
    said = []
    variant = make_variant(
        bundle,
        "int8",
        calibration=make_clips(12, seed=1),
        holdout=make_clips(14, seed=2),
        report=said.append,
    )
    installed = read_bundle(bundle.root)
    assert installed.variants["int8"] == variant
    assert installed.variants["fp32"] == bundle.variants["fp32"]
    verify_files(installed, variant)
    folder = variant.graph.removesuffix("/model.onnx")
    names = ("model.onnx", "model.bin", "signed/model.onnx", "signed/model.bin")
    assert set(variant.files) == {f"{folder}/{name}" for name in names}
    listed = {path.name for path in bundle.root.iterdir()}
    assert listed == {"manifest.json", "PARITY.md", "fp32", folder}
    files = [path for path in (bundle.root / folder).rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1
    assert variant.engines == ("openvino", "tensorrt", "tensorrt-rtx")
    signed = bundle.root / folder / "signed/model.onnx"
    assert installed.graph_path(variant, "tensorrt") == signed
    assert graph_facts(signed).quantised_to == {"int8"}
    assert "uint8" in graph_facts(installed.graph_path(variant)).quantised_to
    shown, shown_twin, engine, twin, holdout = variant.parity
    assert [one["role"] for one in variant.parity] == [*["shown only"] * 2, "engine check",
                                                       *["gate"] * 2]  # fmt: skip
    assert (shown["against"], engine["against"], holdout["against"]) == (
        "PyTorch model",
        "the graph's own scores when it was made",
        "fp32 graph",
    )
    assert min(shown["max_abs"], shown_twin["max_abs"]) > engine["max_abs"]
    assert holdout["reference_min"] < holdout["reference_max"]
    table = (bundle.root / "PARITY.md").read_text()
    assert "The gate of int8 rests on 14 held-out videos." in table
    assert "| int8 | shown only | PyTorch model | synthetic reference clips | openvino" in table
    assert (twin["scheme"], holdout["scheme"]) == ("s8s8", "u8s8")
    assert holdout["clips"] == 14
    assert holdout["max_abs"] <= INT8.max_abs
    assert holdout["int8_layers"] + len(holdout["float_layers"]) == 2
    assert engine["passed"]
    assert any("holdout" in line for line in said)
    with open_engine(installed, precision="int8").engine as opened:
        assert opened.describe().precision.startswith("int8+")
        frames = np.stack(make_clips(14, seed=3))
        difference = opened.run({"frames": frames})["frame_scores"] - original_scores(frames)
    assert 0 < np.abs(difference.mean(axis=1)).max() <= INT8.max_abs
    assert sorted(path.name for path in bundle.root.parent.iterdir()) == ["tiny"]


@pytest.mark.parametrize("installed_before", [False, True])
def test_a_failing_gate_keeps_the_old_bundle(bundle, installed_before):
    data = {"calibration": make_clips(12, seed=1), "holdout": make_clips(14, seed=2)}
    if installed_before:
        make_variant(bundle, "int8", **data)
    strict = with_tolerance(read_bundle(bundle.root), Tolerance(max_abs=1e-7, mean_abs=1e-7))
    before = content(strict.root)
    with pytest.raises(ParityError, match=r"max \|difference\|"):
        make_variant(strict, "int8", **data)
    assert content(strict.root) == before
    assert [path.name for path in strict.root.parent.iterdir()] == ["tiny"]


def test_another_int8_replaces_the_first(bundle):
    holdout = make_clips(14, seed=2)
    make_variant(bundle, "int8", calibration=make_clips(12, seed=1), holdout=holdout)
    second = make_variant(bundle, "int8", calibration=make_clips(12, seed=9), holdout=holdout)
    folder = second.graph.removesuffix("/model.onnx")
    listed = {path.name for path in bundle.root.iterdir()}
    assert listed == {"manifest.json", "PARITY.md", "fp32", folder}
    verify_files(read_bundle(bundle.root), second)


def test_int8_needs_enough_and_different_videos(bundle):
    clips = make_clips(26, seed=1)
    with pytest.raises(UsageError, match="at least 64 frames to calibrate and 12 other videos"):
        make_variant(bundle, "int8")
    with pytest.raises(UsageError, match="not 72 and 11 with 66"):
        make_variant(bundle, "int8", calibration=clips[:12], holdout=clips[12:23])
    with pytest.raises(UsageError, match="both in the calibration"):
        make_variant(bundle, "int8", calibration=clips[:12], holdout=clips[11:])
    with pytest.raises(UsageError, match="a clip is float64"):
        make_variant(bundle, "int8", calibration=[clips[0].astype(float)], holdout=clips)
    with pytest.raises(UsageError, match="not uint8"):
        make_variant(bundle, "int8", calibration=[clips[0][:, :5]], holdout=clips)


def test_precisions_that_cannot_be_made(bundle):
    with pytest.raises(UsageError, match="fp32"):
        make_variant(bundle, "fp32")
    with pytest.raises(ModelError, match="no tolerance for fp16"):
        make_variant(bundle, "fp16")
    assert set(read_bundle(bundle.root).variants) == {"fp32"}


def test_no_tolerance_no_gate_no_variant(tmp_path):
    bundle = make_tiny_bundle(tmp_path)
    with pytest.raises(ModelError, match="no tolerance"):
        make_variant(bundle, "int8", calibration=make_clips(12, 1), holdout=make_clips(14, 2))


def test_a_graph_without_convolutions(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path))
    bundle = with_tolerance(make_tiny_bundle(tmp_path), INT8)
    with pytest.raises(ParityError, match="no layer"):
        make_variant(bundle, "int8", calibration=make_clips(12, 1), holdout=make_clips(14, 2))


def test_bf16_that_openvino_does_not_execute_is_refused(bundle, monkeypatch):
    """The hint alone is no guarantee: OpenVINO takes it anywhere and computes in fp32."""
    from memcli.engines import openvino

    if "BF16" in openvino.cpu_capabilities():
        pytest.skip("this CPU has bf16")
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: frozenset({"BF16"}))
    before = content(bundle.root)
    with pytest.raises(EngineError, match="would compute in fp32, not in bf16"):
        make_variant(bundle, "bf16")
    assert content(bundle.root) == before


@pytest.mark.skipif(
    "BF16" not in __import__("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no native bf16",
)
def test_bf16_executes_the_fp32_graph(bundle):
    variant = make_variant(bundle, "bf16", holdout=make_clips(3, seed=2))
    installed = read_bundle(bundle.root)
    assert installed.graph_path(variant, "openvino") == bundle.root / "fp32/model.onnx"
    assert open_engine(installed, precision="bf16").engine.describe().precision == ("bf16")


def test_folding_changes_nothing_but_rounding():
    folded = fold_batch_norms(conv_graph())
    assert not [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    onnx.checker.check_model(folded)
    frames = np.stack(make_clips(3, seed=5))
    session = onnxruntime.InferenceSession(
        folded.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    scores = session.run(["frame_scores"], {"frames": frames})[0]
    np.testing.assert_allclose(scores, original_scores(frames), atol=1e-5)


def test_folding_keeps_what_something_else_reads():
    model = conv_graph()
    model.graph.output.append(helper.make_tensor_value_info("first.y", 1, None))
    folded = fold_batch_norms(model)
    kept = [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    assert [node.input[0] for node in kept] == ["first.y"]


def test_few_channels_stay_in_float():
    layers = quantisable_layers(fold_batch_norms(conv_graph()))
    assert [layer.name for layer in layers] == ["first", "second"]


def test_quantised_graph_is_valid_onnx_and_close_in_another_runtime():
    """ONNX Runtime with its graph optimisation off computes what the standard says."""
    model = fold_batch_norms(conv_graph())
    layers = quantisable_layers(model)
    ranges = {"x1": ActivationRange(6, signed=False), "x2": ActivationRange(8, signed=False)}
    quantised = quantise(model, layers, ranges)
    onnx.checker.check_model(quantised, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        quantised.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    frames = np.stack(make_clips(6, seed=5))
    exact = session.run(["frame_scores"], {"frames": frames})[0]
    np.testing.assert_allclose(exact, original_scores(frames), atol=0.03)
    # OpenVINO's integer kernels against the standard: the order of float operations differs.
    (found,) = run_batches(quantised, [{"frames": frames}])
    np.testing.assert_allclose(found["frame_scores"], exact, atol=2e-3)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_weights_are_rounded_to_the_nearest_of_127_values(seed):
    random = np.random.default_rng(seed)
    weight = random.normal(0, 1, (5, 3, 3, 3)).astype(np.float32) * 10 ** random.uniform(-6, 3)
    weight[2] = 0
    values, scales = quantise_weight(weight)
    assert np.abs(values).max() == 63
    restored = values * scales[:, None, None, None]
    assert np.all(np.abs(restored - weight) <= scales[:, None, None, None] * 0.501)


@pytest.mark.parametrize("signed", [False, True])
def test_ranges_clip_outliers_and_nothing_else(signed):
    random = np.random.default_rng(0)
    uniform = random.uniform(0, 1, 20_000).astype(np.float32)
    assert best_range(uniform, 1.0, signed=signed).clip == pytest.approx(1.0)
    outlier = np.append(random.normal(0, 0.1, 20_000), 3.0).astype(np.float32)
    assert best_range(np.abs(outlier), 3.0, signed=signed).clip < 3.0
    assert best_range(np.zeros(9, np.float32), 0.0, signed=signed).clip == 0


def test_first_guess_adds_squares():
    assert int8.first_guess([0.01, 0.001], target=0.02) == 0
    assert int8.first_guess([0.03, 0.01, 0.01], target=0.012) == 1
    assert int8.first_guess([0.9, 0.9], target=0.01) == 1


def test_gate_names_the_worst_clip():
    reference = np.full((3, 2), 0.5)
    candidate = reference + np.array([[0.0], [0.1], [0.0]])
    with pytest.raises(ParityError) as caught:
        gate(candidate, reference, INT8, what="the graph", names=["a.mp4", "b.mp4", "c.mp4"])
    assert "worst: b.mp4 (0.6000 instead of 0.5000)" in str(caught.value)
    assert "Allowed: max 0.02, mean 0.01, SRCC at least 0.99" in str(caught.value)
    assert gate(reference, reference, INT8, what="the graph").passed


def test_calibration_frames_are_spread_over_all_clips():
    clips = [np.full((10, SIDE, SIDE, 3), value, np.uint8) for value in range(30)]
    spec = _spec("tiny", TINY_PREP)
    data = make_calibration_set(spec, clips, make_clips(14, seed=2, length=5))
    frames = np.concatenate([batch["frames"][0] for batch in data.batches])
    assert frames.shape == (96, SIDE, SIDE, 3)
    assert set(frames[:, 0, 0, 0].tolist()) == set(range(30))
    assert {feeds["frames"].shape for feeds in data.holdout} == {(1, 5, SIDE, SIDE, 3)}
    assert len(data.holdout) == 14


def test_read_calibration_leaves_out_what_cannot_calibrate(tmp_path):
    for number, name in enumerate(("a/1.mp4", "a/2.mp4", "b/3.mp4")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_video(tmp_path / name, frames=5 + 3 * number)
    shutil.copy(tmp_path / "a/1.mp4", tmp_path / "b/copy.mp4")
    make_video(tmp_path / "still.mp4", frames=1)
    (tmp_path / "broken.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not looked at")
    said = []
    clips = read_calibration(tmp_path, TINY_PREP, report=said.append)
    assert (len(clips.calibration), len(clips.holdout)) == (16, 64)
    assert (len(set(clips.holdout_paths)), clips.holdout_videos) == (2, 2)
    whole = read_clip(clips.holdout_paths[0], TINY_PREP, frames=32 * TINY_PREP.frames).frames
    np.testing.assert_array_equal(np.concatenate(clips.holdout[:32]), whole)
    assert said == [
        f"not used: {tmp_path}/broken.mp4: the file is empty (zero bytes)",
        f"not used: {tmp_path}/still.mp4: a still picture",
        f"not used: {tmp_path}/b/copy.mp4: the same frames as another video",
        "3 videos, half of them to check with",
        "16 clips to calibrate with, 64 to check with",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no video"):
        read_calibration(tmp_path / "empty", TINY_PREP)


def test_read_calibration_takes_some_of_many_from_the_whole_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("memcli.export.calibration.MAX_CLIPS", 3)
    for number in range(5):
        make_video(tmp_path / f"{number}.mp4", frames=4 + 2 * number)
    opened = []
    monkeypatch.setattr(
        "memcli.video.read_clip",
        lambda path, *args, **more: opened.append(path[-5]) or read_clip(path, *args, **more),
    )
    read_calibration(tmp_path, TINY_PREP)
    assert opened == ["0", "2", "4", "4", "0", "2"], "again, for the segments"


def test_several_clips_of_a_video_are_no_more_videos(bundle):
    clips = make_clips(24, seed=1)
    with pytest.raises(UsageError, match="not 144 and 11 with 144"):
        make_variant(bundle, "int8", calibration=clips, holdout=make_clips(24, 2), videos=11)
    data = make_calibration_set(_spec("tiny", TINY_PREP), clips, make_clips(24, 2), videos=12)
    assert (len(data.holdout), data.videos) == (24, 12)


def test_frames_of_many_clips_are_bounded(monkeypatch):
    monkeypatch.setattr("memcli.export.calibration.MAX_GATE_FRAMES", 64)
    spec = _spec("tiny", TINY_PREP)
    data = make_calibration_set(spec, make_clips(24, 1), make_clips(16, 2))
    assert {feeds["frames"].shape[:2] for feeds in data.holdout} == {(1, 4)}
    whole = dataclasses.replace(spec, frame_scores=False)
    data = make_calibration_set(whole, make_clips(24, 1), make_clips(16, 2))
    assert {feeds["frames"].shape[:2] for feeds in data.holdout} == {(1, 6)}


def test_split_by_video_keeps_neighbours_together():
    clips = make_clips(5, seed=0)
    calibration, holdout = split_by_video(clips)
    assert [id(clip) for clip in (*holdout, *calibration)] == [id(clip) for clip in clips]
    assert len(holdout) == 3


def test_initialisers_of_the_quantised_graph_hold_no_float_weights():
    model = fold_batch_norms(conv_graph())
    layers = quantisable_layers(model)
    ranges = {layer.input: ActivationRange(6, signed=False) for layer in layers}
    tensors = {t.name: t for t in quantise(model, layers, ranges).graph.initializer}
    assert "first.weight" not in tensors
    assert numpy_helper.to_array(tensors["first.weight.int8"]).dtype == np.int8


def test_fp8_is_for_tensorrt(bundle):
    tolerances = {**bundle.spec.tolerances, "fp8": INT8}
    spec = dataclasses.replace(bundle.spec, tolerances=tolerances)
    write_manifest(dataclasses.replace(bundle, spec=spec))
    data = {"calibration": make_clips(12, seed=1), "holdout": make_clips(14, seed=2)}
    variant = make_variant(read_bundle(bundle.root), "fp8", **data)
    assert (variant.precision, variant.engines) == ("fp8", ("tensorrt", "tensorrt-rtx"))
    assert variant.parity[-1]["scheme"] == "fp8"
    assert 0 < variant.parity[-1]["max_abs"] <= INT8.max_abs
    installed = read_bundle(bundle.root)
    verify_files(installed, variant)
    graph = onnx.load(installed.graph_path(variant))
    kinds = {tensor.data_type for tensor in graph.graph.initializer}
    assert TensorProto.FLOAT8E4M3FN in kinds
    assert TensorProto.INT8 not in kinds
