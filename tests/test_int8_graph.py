"""8 bit graphs of transformers: against the standard's arithmetic in numpy, and the search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_vit import make_frames, vit_graph

from memcli.engines.loading import graph_facts
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.errors import MissingDependencyError, ParityError
from memcli.export import graph_run, int8
from memcli.export.calibration import CalibrationSet
from memcli.export.graph_run import expose, run_batches
from memcli.export.int8 import collect, make_int8
from memcli.export.layers import is_convolutional, make_groups, quantisable_layers
from memcli.export.quantize import ActivationRange, Scheme, quantise, quantise_weight, round_to
from memcli.export.ranges import METHODS, choose_range
from memcli.export.smooth import best_factors, smooth
from memcli.spec import Tolerance

TOLERANCE = Tolerance(max_abs=0.03, mean_abs=0.01, min_srcc=0.95)
"""Random weights give nearly the same score to all, whose order then hangs on little."""
LAYERS = ["query", "key", "value", "out", "fc1", "fc2", "head"]


def batches(count: int, seed: int) -> tuple[dict[str, np.ndarray], ...]:
    return tuple({"frames": clip[None]} for clip in make_frames(count, seed))


DATA = CalibrationSet(batches(32, seed=1), batches(24, seed=2))


def quantised(model: onnx.ModelProto, scheme: Scheme) -> onnx.ModelProto:
    layers = quantisable_layers(model)
    found = collect(model, [layer.input for layer in layers], DATA.batches[:8], "minmax")
    ranges = {name: choose_range(one, "minmax", scheme) for name, one in found.items()}
    return quantise(model, layers, ranges, scheme)


def run(model: onnx.ModelProto, frames: np.ndarray, runtime: str) -> np.ndarray:
    (found,) = run_batches(model, [{"frames": frames}], runtime=runtime)
    return found["score"]


def by_the_standard(model: onnx.ModelProto, frames: np.ndarray) -> np.ndarray:
    """onnx's reference in numpy, which has the rounding operators from opset 19 on only."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = 19
    copy.ir_version = 9
    (scores,) = ReferenceEvaluator(copy).run(["score"], {"frames": frames})
    return scores


def test_which_layers() -> None:
    layers = quantisable_layers(vit_graph())
    assert [layer.name for layer in layers] == ["patch", *LAYERS]
    assert {layer.axis for layer in layers} == {1}
    assert not is_convolutional(layers)
    groups = make_groups(layers)
    assert [[one.name for one in group] for group in groups][1] == ["query", "key", "value"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_compute_s8s8_as_the_standard_says(runtime: str) -> None:
    """Both with all their optimisations; the reference is onnx's own, in numpy."""
    model = quantised(vit_graph(), "s8s8")
    onnx.checker.check_model(model, full_check=True)
    frames = make_frames(16, seed=5)
    expected = by_the_standard(model, frames)
    exact = by_the_standard(vit_graph(), frames)
    found = run(model, frames, runtime)
    # A value at the edge of two steps may fall on either side: float sums differ in their order.
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(found - expected).max() < np.abs(found - exact).max() / 3


def test_fp8_is_that_of_the_standard() -> None:
    model = quantised(vit_graph(), "fp8")
    onnx.checker.check_model(model, full_check=True)
    kinds = {t.data_type for t in model.graph.initializer if t.name.endswith(".fp8")}
    assert kinds == {onnx.TensorProto.FLOAT8E4M3FN}
    frames = make_frames(16, seed=5)
    expected = by_the_standard(model, frames)
    found = run(model, frames, "onnxruntime")
    np.testing.assert_allclose(found, expected, atol=2e-3)
    exact = run(vit_graph(), frames, "onnxruntime")
    assert 1e-5 < np.abs(found - exact).max() < 0.03


@pytest.mark.parametrize("scheme", ["s8s8", "u8s8", "fp8"])
def test_one_layer_in_numpy(scheme: Scheme) -> None:
    """The rounding of both sides spelled out for one layer, `fc2`."""
    model = vit_graph()
    (layer,) = [one for one in quantisable_layers(model) if one.name == "fc2"]
    limits = ActivationRange(2.0, signed=True)
    candidate = quantise(model, [layer], {"gelu": limits}, scheme)
    frames = make_frames(3, seed=6)
    seen = expose(candidate, ["gelu", "fc2.y"])
    options = {"runtime": "onnxruntime"}
    (values,) = run_batches(seen, [{"frames": frames}], **options)  # type: ignore[arg-type]
    weight = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}["fc2.weight"]
    if scheme == "fp8":
        import ml_dtypes

        scales = np.abs(weight).max(axis=0) / 448
        rounded_weight = (weight / scales).astype(ml_dtypes.float8_e4m3fn).astype("f8") * scales
        activation = (values["gelu"] / (2 / 448)).clip(-448, 448)
        activation = activation.astype(ml_dtypes.float8_e4m3fn).astype("f8") * (2 / 448)
    else:
        scales = np.abs(weight).max(axis=0) / 63
        rounded_weight = np.round(weight / scales) * scales
        activation = np.round(values["gelu"] / (2 / 127)).clip(-128, 127) * (2 / 127)
    np.testing.assert_allclose(values["fc2.y"], activation @ rounded_weight, atol=1e-4)
    np.testing.assert_allclose(round_to(values["gelu"], limits, scheme), activation, atol=1e-6)


def test_shared_weights_stay_where_a_float_layer_reads_them() -> None:
    model = vit_graph()
    for node in model.graph.node:
        if node.name == "key":
            node.input[1] = "query.weight"
    layers = [one for one in quantisable_layers(model) if one.name == "query"]
    ranges = {"norm1": ActivationRange(3.0, signed=True)}
    onnx.checker.check_model(quantise(model, layers, ranges, "s8s8"), full_check=True)
    both = [one for one in quantisable_layers(model) if one.name in ("query", "key")]
    onnx.checker.check_model(quantise(model, both, ranges, "s8s8"), full_check=True)


@pytest.mark.parametrize("method", METHODS)
def test_make_int8(method: str, tmp_path: Path) -> None:
    onnx.save(vit_graph(), tmp_path / "fp32.onnx")
    target = tmp_path / "model.onnx"
    said: list[str] = []
    result = make_int8(tmp_path / "fp32.onnx", target, DATA, TOLERANCE, said.append, method=method)
    assert (result.scheme, result.method, result.signed) == ("s8s8", method, None)
    assert result.int8_layers + len(result.float_layers) == len(LAYERS) + 1
    assert result.holdout.clips == 24
    assert result.cosine_min is not None
    assert result.cosine_mean is not None
    assert 0.9 < result.cosine_min <= result.cosine_mean < 1
    assert graph_facts(target).quantised_to == {"int8"}
    frames = make_frames(24, seed=2)
    exact = run(vit_graph(), frames, "onnxruntime")
    for open_graph in (open_onnxruntime, open_openvino):
        with open_graph(target, device="cpu", precision="int8", threads=1) as engine:
            assert engine.describe().precision.startswith("int8+")
            found = engine.run({"frames": frames})["score"]
        assert np.abs(found - exact).max() == pytest.approx(result.holdout.max_abs, abs=2e-3)


def test_onnxruntime_still_refuses_unsigned_activations(tmp_path: Path) -> None:
    from memcli.errors import EngineError

    onnx.save(vit_graph(), tmp_path / "fp32.onnx")
    (layer,) = [one for one in quantisable_layers(vit_graph()) if one.name == "fc2"]
    unsigned = quantise(vit_graph(), [layer], {"gelu": ActivationRange(2.0, False)}, "u8s8")
    onnx.save(unsigned, tmp_path / "u8.onnx")
    with pytest.raises(EngineError, match="wrong results on the CPU for graphs with uint8"):
        open_onnxruntime(tmp_path / "u8.onnx", device="cpu", precision="int8", threads=1)


def test_the_sweep_leaves_the_bad_layer_in_float(tmp_path: Path) -> None:
    onnx.save(vit_graph(bad_layer=True), tmp_path / "fp32.onnx")
    said: list[str] = []
    result = make_int8(
        tmp_path / "fp32.onnx", tmp_path / "model.onnx", DATA, TOLERANCE, said.append
    )
    assert "bad" in result.float_layers
    assert len(result.float_layers) <= 3
    assert result.holdout.passed
    report = result.reports()[-1]
    assert report["float_layers"] == list(result.float_layers)
    assert any("bad to bad: error" in line for line in said)


def test_a_tolerance_that_cannot_be_met_is_refused_with_numbers(tmp_path: Path) -> None:
    onnx.save(vit_graph(), tmp_path / "fp32.onnx")
    strict = Tolerance(max_abs=1e-7, mean_abs=1e-7)
    with pytest.raises(ParityError, match=r"s8s8 graph misses its tolerance: max \|difference\| "):
        make_int8(tmp_path / "fp32.onnx", tmp_path / "m.onnx", DATA, strict, lambda _: None)
    assert not (tmp_path / "m.onnx").exists()


def test_embeddings_are_held_to_the_tolerance(tmp_path: Path) -> None:
    """With layers in float as long as that helps; else the numbers are told."""
    onnx.save(vit_graph(), tmp_path / "fp32.onnx")
    least = 0.9999995
    strict = dataclasses.replace(TOLERANCE, min_srcc=None, min_cosine=least)
    said: list[str] = []
    with pytest.raises(ParityError, match=r"misses its tolerance: .*cosine min 0\.99") as caught:
        make_int8(tmp_path / "fp32.onnx", tmp_path / "m.onnx", DATA, strict, said.append)
    assert f"cosine of embeddings at least {least:g}" in str(caught.value)
    assert any("error" in line for line in said), "the sweep for layers to leave in float"
    assert not (tmp_path / "m.onnx").exists()


def swap_channels(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    (cast,) = [node for node in model.graph.node if "frames" in node.input]
    cast.input[0] = "swapped"
    swap = onnx.helper.make_node("Gather", ["frames", "bgr"], ["swapped"], "swap", axis=-1)
    model.graph.node.insert(0, swap)


def darken(model: onnx.ModelProto) -> None:
    (white,) = [one for one in model.graph.initializer if one.name == "white"]
    white.CopyFrom(numpy_helper.from_array(np.float32(400), "white"))


@pytest.mark.parametrize("scheme", ["s8s8", "fp8"])
@pytest.mark.parametrize("fault", [swap_channels, darken])
def test_broken_graphs_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: Scheme,
    fault: Callable[[onnx.ModelProto], None],
) -> None:
    """Whatever the layers that are left in float."""

    def broken(*arguments: Any) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(quantise(*arguments))
        fault(model)
        return model

    monkeypatch.setattr(int8, "quantise", broken)
    onnx.save(vit_graph(), tmp_path / "fp32.onnx")
    with pytest.raises(ParityError, match=f"the {scheme} graph misses its tolerance"):
        make_int8(
            tmp_path / "fp32.onnx",
            tmp_path / "m.onnx",
            DATA,
            TOLERANCE,
            lambda _: None,
            scheme=scheme,
        )
    assert not (tmp_path / "m.onnx").exists()


def test_no_unsigned_graph_runs_in_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_run, "installed_runtimes", lambda: ("onnxruntime",))
    frames = [{"frames": make_frames(1, seed=6)}]
    (layer,) = [one for one in quantisable_layers(vit_graph()) if one.name == "fc2"]
    limits = {"gelu": ActivationRange(2.0, False)}
    assert list(run_batches(quantise(vit_graph(), [layer], limits, "s8s8"), frames))
    with pytest.raises(MissingDependencyError, match=r"u8s8\) needs openvino"):
        list(run_batches(quantise(vit_graph(), [layer], limits, "u8s8"), frames))


def test_unsigned_without_openvino_is_refused_before_anything_is_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_run, "installed_runtimes", lambda: ("onnxruntime",))
    onnx.save(vit_graph(), tmp_path / "fp32.onnx")
    said: list[str] = []
    with pytest.raises(MissingDependencyError, match="openvino"):
        make_int8(
            tmp_path / "fp32.onnx", tmp_path / "m.onnx", DATA, TOLERANCE, said.append, scheme="u8s8"
        )
    assert said == []


@pytest.mark.parametrize("post_norm", [False, True])
def test_smoothing_is_the_same_function_and_pays(post_norm: bool) -> None:
    model = vit_graph(outliers=True, post_norm=post_norm)
    before = model.SerializeToString()
    layers = quantisable_layers(model)
    smoothed, changed = smooth(model, layers, DATA.batches[:8])
    assert model.SerializeToString() == before
    onnx.checker.check_model(smoothed, full_check=True)
    frames = make_frames(24, seed=3)
    exact = run(model, frames, "onnxruntime")
    np.testing.assert_allclose(run(smoothed, frames, "onnxruntime"), exact, atol=1e-5)
    # In the weights of the norm, unless the residual reads it, too.
    names = [node.output[0] for node in smoothed.graph.node if node.op_type == "Mul"]
    assert ("norm2.smoothed" in names) == post_norm
    (fc1,) = [one for one in changed if one.name == "fc1"]
    assert fc1.input == "norm2.smoothed"
    errors = []
    for graph, some in ((model, layers), (smoothed, changed)):
        part = [one for one in some if one.name == "fc1"]
        found = collect(graph, [part[0].input], DATA.batches[:8], "minmax")
        ranges = {name: choose_range(one, "minmax", "s8s8") for name, one in found.items()}
        scores = run(quantise(graph, part, ranges, "s8s8"), frames, "onnxruntime")
        errors.append(float(np.abs(scores - exact).mean()))
    assert errors[1] < errors[0] / 2


def test_factors_only_where_they_pay() -> None:
    random = np.random.default_rng(0)
    rows = random.uniform(-1, 1, (200, 16)).astype("f4")
    weight = random.uniform(-1, 1, (16, 64)).astype("f4")
    assert best_factors(np.abs(rows).max(axis=0), rows, weight) is None
    rows[:, 5] *= 50
    factors = best_factors(np.abs(rows).max(axis=0), rows, weight)
    assert factors is not None
    assert factors.argmax() == 5
    assert np.prod(factors.astype("f8")) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_have_a_scale_for_each_output(axis: int) -> None:
    weight = np.random.default_rng(1).normal(0, 1, (6, 9)).astype("f4")
    weight *= np.expand_dims(10.0 ** np.arange(weight.shape[axis]), 1 - axis)
    values, scales = quantise_weight(weight, axis)
    assert (np.abs(values).max(axis=1 - axis) == 63).all()
    np.testing.assert_allclose(scales, np.abs(weight).max(axis=1 - axis) / 63, rtol=1e-6)
