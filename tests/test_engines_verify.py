"""Comparing scores, Spearman's rank correlation, references, and the gate on broken graphs."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from tiny_bundle import make_graph, make_tiny_bundle

from memcli.engines.base import EngineDescription
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.engines.verify import Reference, compare, spearman, verify
from memcli.errors import EngineError, ModelError
from memcli.spec import Tolerance

OPENERS = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}
SLACK = Tolerance(max_abs=0.02, mean_abs=0.01, min_srcc=0.99)


@settings(deadline=None)  # the first call imports scipy
@given(
    hnp.arrays(np.float64, st.shared(st.integers(2, 40), key="n"), elements=st.integers(0, 9)),
    hnp.arrays(np.float64, st.shared(st.integers(2, 40), key="n"), elements=st.floats(-1, 1)),
)
def test_spearman_is_scipys(a, b):
    stats = pytest.importorskip("scipy.stats")
    ours = spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert np.isnan(ours)
    else:
        # Two formulas for the same sums of at most 40 ranks: rounding only.
        assert ours == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_spearman_of_nothing_is_undefined():
    assert np.isnan(spearman(np.array([]), np.array([])))
    assert np.isnan(spearman(np.array([1.0]), np.array([2.0])))


def test_compare_measures_clips_and_frames():
    reference = np.array([[0.1, 0.3], [0.5, 0.7]])
    candidate = reference + np.array([[0.01, -0.01], [0.02, 0.0]])
    comparison = compare(candidate, reference, SLACK)
    assert comparison.passed
    assert comparison.max_abs == pytest.approx(0.01)  # frames of one clip cancel out
    assert comparison.mean_abs == pytest.approx(0.005)
    assert comparison.frame_max_abs == pytest.approx(0.02)
    assert comparison.worst_clip == 1
    assert comparison.srcc == pytest.approx(1.0)
    assert "SRCC 1.0000" in comparison.numbers()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_compare_refuses_what_is_no_number(bad):
    reference = np.full((3, 2), 0.5)
    candidate = reference.copy()
    candidate[1, 0] = bad
    comparison = compare(candidate, reference, Tolerance(max_abs=2, mean_abs=2))
    assert not comparison.passed
    assert np.isfinite(comparison.max_abs)


def test_compare_gates_the_order_of_many_clips():
    reference = np.linspace(0.5, 0.51, 20)[:, None]
    candidate = reference[::-1].copy()
    assert not compare(candidate, reference, SLACK).passed
    assert compare(candidate, reference, dataclasses.replace(SLACK, min_srcc=None)).passed
    constant = compare(np.full_like(reference, 0.505), reference, SLACK)
    assert constant.srcc is None
    assert not constant.passed


def test_compare_holds_both_outputs_to_the_reference():
    reference = np.linspace([0.1, 0.3], [0.5, 0.7], 14)
    right = reference.mean(axis=1)
    assert compare(reference, reference, SLACK, clip_scores=right).passed
    off = right.copy()
    off[3] += 0.03
    comparison = compare(reference, reference, SLACK, clip_scores=off)
    assert (comparison.passed, comparison.worst_clip) == (False, 3)
    assert comparison.max_abs == pytest.approx(0.03)
    assert not compare(reference, reference, SLACK, clip_scores=off * np.nan).passed
    only_order = compare(reference, reference, Tolerance(9, 9, 0.99), clip_scores=right[::-1])
    assert (only_order.passed, only_order.srcc) == (False, pytest.approx(-1))
    assert not compare(reference * 0, reference, SLACK, clip_scores=right).passed


def test_compare_needs_equal_shapes():
    with pytest.raises(ValueError, match="shape"):
        compare(np.zeros((2, 3)), np.zeros((3, 2)), SLACK)
    with pytest.raises(ValueError, match="shape"):
        compare(np.zeros((0, 3)), np.zeros((0, 3)), SLACK)
    with pytest.raises(ValueError, match="shape"):
        compare(np.zeros((2, 3)), np.zeros((2, 3)), SLACK, clip_scores=np.zeros(3))


def test_reference_survives_json(tmp_path):
    entry = make_tiny_bundle(tmp_path).variants["fp32"].reference
    assert Reference.from_dict(entry).to_dict()["tolerance"] == entry["tolerance"]
    assert Reference.from_dict(entry).clips == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "synthetic-9"}, "kind"),
        ({"clips": 5}, "do not fit"),
        ({"frame_scores": [[0.1], "x"]}, "damaged"),
        ({"tolerance": {"max": 1}}, "damaged"),
        ({"tolerance": {"max_abs": "1", "mean_abs": 1}}, "damaged"),
        ({"tolerance": {"max_abs": None, "mean_abs": 1}}, "damaged"),
        ({"tolerance": {"max_abs": 1, "mean_abs": 1, "min_srcc": [1]}}, "damaged"),
        ({"tolerance": [1, 1]}, "damaged"),
        ({"seed": None}, "damaged"),
    ],
)
def test_damaged_reference(tmp_path, change, message):
    entry = make_tiny_bundle(tmp_path).variants["fp32"].reference
    with pytest.raises(ModelError, match=message):
        Reference.from_dict({**entry, **change})


@pytest.mark.parametrize("name", OPENERS)
def test_a_right_graph_passes(tmp_path, name):
    bundle = make_tiny_bundle(tmp_path)
    variant = bundle.variants["fp32"]
    opener = OPENERS[name]
    with opener(bundle.graph_path(variant), device="cpu", precision="fp32", threads=1) as engine:
        report = verify(engine, bundle, variant)
    assert report.passed
    assert report.max_abs < 1e-5
    assert report.frames_per_s > 0
    assert report.precision == "fp32"
    assert name in report.engine


def _red_only():
    """Looks at the first channel only, as a model fed with BGR would look at the wrong one."""
    nodes = [
        helper.make_node("Gather", ["frames", "channel"], ["red"], axis=4),
        helper.make_node("Cast", ["red"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "pixels"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "white"], ["frame_scores"]),
        helper.make_node("ReduceMean", ["frame_scores", "time"], ["score"], keepdims=0),
    ]
    return make_graph(nodes, {**_constants(), "channel": np.array([0], np.int64)})


def _wrong_scale(white: float):
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "pixels"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "white"], ["frame_scores"]),
        helper.make_node("ReduceMean", ["frame_scores", "time"], ["score"], keepdims=0),
    ]
    return make_graph(nodes, {**_constants(), "white": np.array(white, np.float32)})


def _dead(output: str):
    """One output is always 0, whatever the other says."""
    names = ("frame_scores", "score")
    alive = {name: f"{name}_alive" if name == output else name for name in names}
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "pixels"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "white"], [alive["frame_scores"]]),
        helper.make_node(
            "ReduceMean", [alive["frame_scores"], "time"], [alive["score"]], keepdims=0
        ),
        helper.make_node("Mul", [alive[output], "zero"], [output]),
    ]
    return make_graph(nodes, {**_constants(), "zero": np.array(0, np.float32)})


def _constants():
    return {
        "pixels": np.array([2, 3, 4], np.int64),
        "white": np.array(255, np.float32),
        "time": np.array([1], np.int64),
    }


@pytest.mark.parametrize(
    "graph",
    [_red_only(), _wrong_scale(256), _wrong_scale(0), _dead("score"), _dead("frame_scores")],
    ids=["swapped channels", "wrong scale", "division by zero", "no score", "no frame scores"],
)
@pytest.mark.parametrize("name", OPENERS)
def test_a_broken_graph_is_refused(tmp_path, name, graph):
    bundle = make_tiny_bundle(tmp_path, graph=graph)
    variant = bundle.variants["fp32"]
    opener = OPENERS[name]
    with opener(bundle.graph_path(variant), device="cpu", precision="fp32", threads=1) as engine:
        report = verify(engine, bundle, variant)
    assert not report.passed
    assert report.frames_per_s == 0


def test_scores_of_the_wrong_shape_are_an_engine_fault(tmp_path):
    class Sideways:
        def run(self, feeds):
            clips = len(feeds["frames"])
            return {
                "score": np.zeros(clips, np.float32),
                "frame_scores": np.zeros((4, 3), np.float32),
            }

        def describe(self):
            return EngineDescription("openvino", "0", "cpu", "fp32")

    bundle = make_tiny_bundle(tmp_path)
    with pytest.raises(EngineError, match=r"\[4, 3\]"):
        verify(Sideways(), bundle, bundle.variants["fp32"])
