"""The graphs of an int8 variant: what each must reproduce, and what is made without OpenVINO."""

import dataclasses
import json

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from tiny_bundle import make_tiny_bundle
from tiny_conv import INT8, content, conv_graph, make_clips, original_scores, with_tolerance

from memcli.engines import records
from memcli.engines.base import EngineDescription
from memcli.engines.bundle import read_bundle
from memcli.engines.verify import Reference, reference_feeds, verify
from memcli.errors import ModelError, ParityError
from memcli.export import build, graph_run, int8, int8_variant
from memcli.export.fold import fold_batch_norms
from memcli.export.precision import make_variant
from memcli.export.quantize import quantise


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path))
    made = make_tiny_bundle(tmp_path, graph=conv_graph(), frame_scores=original_scores)
    return with_tolerance(made, INT8)


def test_each_graph_has_a_reference_of_its_own(bundle):
    """TensorRT executes the all-signed twin, whose rounding is another."""
    data = {"calibration": make_clips(12, seed=1), "holdout": make_clips(14, seed=2)}
    variant = make_variant(bundle, "int8", **data)
    installed = read_bundle(bundle.root)
    assert installed.variants["int8"] == variant
    assert set(variant.references) == {"tensorrt", "tensorrt-rtx"}
    spec, parsed = installed.spec, Reference.from_dict(variant.reference_of("tensorrt"))
    assert variant.reference_of("openvino") is variant.reference
    own = Reference.from_dict(variant.reference)
    assert np.abs(parsed.expected() - own.expected()).max() > 1e-5
    feeds = reference_feeds(parsed, spec, None)
    # Another runtime than the one that made the reference, as TensorRT will be.
    session = onnxruntime.InferenceSession(installed.graph_path(variant, "tensorrt"))
    found = session.run(["frame_scores"], feeds)[0]
    np.testing.assert_allclose(found, parsed.expected(), atol=2e-3)
    signed = records.RecordKey(variant, "tensorrt", "1", "cpu", None)
    changed = dataclasses.replace(variant, references={})
    assert dataclasses.replace(signed, variant=changed).text() != signed.text()

    class TensorRT:
        """Computes what the twin computes."""

        def run(self, feeds):
            names = ["score", "frame_scores"]
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))

        def describe(self):
            return EngineDescription("tensorrt", "1", "cuda:0", "int8")

    strict = {**parsed.to_dict(), "tolerance": {"max_abs": 1e-6, "mean_abs": 1e-6}}
    strict["frame_scores"] = found.tolist()
    tight = dataclasses.replace(variant, references={"tensorrt": strict})
    assert verify(TensorRT(), installed, tight).passed, "against its own reference"


def test_manifests_without_references_of_engines(bundle):
    data = {"calibration": make_clips(12, seed=1), "holdout": make_clips(14, seed=2)}
    new = make_variant(bundle, "int8", **data)
    path = bundle.root / "manifest.json"
    entry = json.loads(path.read_text())
    assert "references" not in entry["variants"]["fp32"]
    del entry["variants"]["int8"]["references"]
    path.write_text(json.dumps(entry))
    old = read_bundle(bundle.root).variants["int8"]
    assert old.digest == new.digest
    assert old.reference_of("tensorrt") == new.reference
    for damage in ({"onnxruntime": new.reference}, {"tensorrt": 5}, []):
        entry["variants"]["int8"]["references"] = damage
        path.write_text(json.dumps(entry))
        with pytest.raises(ModelError, match="manifest is damaged"):
            read_bundle(bundle.root)


def test_without_openvino_int8_is_all_signed(bundle, monkeypatch):
    for module in (build, graph_run, int8_variant):
        monkeypatch.setattr(module, "installed_runtimes", lambda: ("onnxruntime",))
    said = []
    data = {"calibration": make_clips(12, seed=1), "holdout": make_clips(14, seed=2)}
    variant = make_variant(bundle, "int8", **data, report=said.append)
    assert variant.engines == ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
    assert (variant.graphs, variant.references) == ({}, {})
    assert variant.parity[-1]["scheme"] == "s8s8"
    assert any("all signed (s8s8): OpenVINO" in line for line in said)


def test_a_dead_output_of_an_int8_graph_is_refused(bundle, monkeypatch):
    def without_score(*arguments):
        model = quantise(*arguments)
        for node in model.graph.node:
            if node.output[0] == "score":
                node.output[0] = "alive"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "dead"))
        model.graph.node.append(helper.make_node("Mul", ["alive", "dead"], ["score"]))
        return model

    monkeypatch.setattr(int8, "quantise", without_score)
    before = content(bundle.root)
    with pytest.raises(ParityError, match=r"misses its tolerance.*\(0\.0000 instead of"):
        make_variant(
            bundle, "int8", calibration=make_clips(12, seed=1), holdout=make_clips(14, seed=2)
        )
    assert content(bundle.root) == before


def test_a_fault_of_folding_is_refused(bundle, monkeypatch):
    """What int8 is compared with is the installed graph, which nothing was folded in."""

    def wrong(model):
        folded = fold_batch_norms(model)
        (weight,) = [one for one in folded.graph.initializer if one.name == "first.weight"]
        flipped = np.ascontiguousarray(numpy_helper.to_array(weight)[:, ::-1])
        weight.CopyFrom(numpy_helper.from_array(flipped, weight.name))
        return folded

    monkeypatch.setattr(int8, "fold_batch_norms", wrong)
    before = content(bundle.root)
    with pytest.raises(ParityError, match="graph misses its tolerance"):
        make_variant(
            bundle, "int8", calibration=make_clips(12, seed=1), holdout=make_clips(14, seed=2)
        )
    assert content(bundle.root) == before
