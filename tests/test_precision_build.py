"""From a filled graph to an installed bundle, through the gate."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_bundle import TINY_PREP, TINY_TOLERANCE, _spec, brightness, brightness_graph

from memcli.engines import records
from memcli.engines.bundle import LICENSE_FILE
from memcli.engines.reference import synthetic_frames
from memcli.engines.select import open_engine
from memcli.errors import ModelError, ParityError
from memcli.export import build
from memcli.export.build import build_bundle, load_reference

SPEC = _spec("tiny", TINY_PREP)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pulled(home, name="staging"):
    """What memcli.export.pull leaves: a graph with its weights beside it, and a licence."""
    folder = home / "bundles" / name
    folder.mkdir(parents=True)
    graph = brightness_graph()
    graph.graph.initializer.append(numpy_helper.from_array(np.ones(2000, np.float32), "weight"))
    graph.graph.node.insert(0, helper.make_node("ReduceMax", ["weight"], ["one"], keepdims=0))
    graph.graph.node[-2].input[1] = "whites"
    graph.graph.node.insert(1, helper.make_node("Mul", ["white", "one"], ["whites"]))
    onnx.save(
        graph,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.bin",
        size_threshold=1024,
    )
    (folder / LICENSE_FILE).write_text("for tests")
    return folder


def reference(offset=0.0):
    scores = brightness(synthetic_frames(TINY_PREP, 3, 4, 5)) + offset
    return {
        "kind": "synthetic-1",
        "clips": 3,
        "frames_per_clip": 4,
        "seed": 5,
        "frame_scores": scores.tolist(),
        "torch": "2.6",
    }


def test_pulled_weights_become_a_bundle(home):
    said = []
    bundle = build_bundle(SPEC, pulled(home), reference=reference(), report=said.append)
    assert bundle.root == home / "bundles" / "tiny"
    variant = bundle.variants["fp32"]
    assert set(variant.files) == {"fp32/model.onnx", "fp32/model.bin"}
    assert len(variant.parity) == 2
    assert variant.reference["tolerance"]["max_abs"] == TINY_TOLERANCE.max_abs
    assert bundle.license == "test licence"
    assert variant.made_by["memcli"]
    assert any("openvino at fp32: max |difference|" in line for line in said)
    assert [path.name for path in (home / "bundles").iterdir()] == ["tiny"]
    said.clear()
    assert open_engine(bundle, report=said.append).parity.passed
    assert said == []  # the gate's results are remembered


def test_a_wrong_graph_is_not_installed_and_the_old_one_stays(home):
    old = build_bundle(SPEC, pulled(home), reference=reference())
    records.clear()
    with pytest.raises(ParityError, match=r"does not reproduce tiny.*0\.1"):
        build_bundle(SPEC, pulled(home), reference=reference(offset=0.1))
    assert open_engine(old).parity.passed


def test_without_a_runtime_the_gate_is_left_to_the_first_use(home, monkeypatch):
    monkeypatch.setattr(build, "installed_runtimes", lambda: ())
    said = []
    bundle = build_bundle(SPEC, pulled(home), reference=reference(), report=said.append)
    assert bundle.variants["fp32"].parity == []
    assert "will be verified at its first use" in said[0]


@pytest.mark.parametrize("missing", ["model.bin", "model.onnx", LICENSE_FILE])
def test_an_incomplete_folder(home, missing):
    folder = pulled(home)
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=r"missing|not beside"):
        build_bundle(SPEC, folder, reference=reference())
    assert not (home / "bundles" / "tiny").exists()


def test_weights_outside_the_folder(home, tmp_path):
    folder = pulled(home)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside.bin"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.bin").rename(folder.parent / "outside.bin")
    with pytest.raises(ModelError, match="not beside it"):
        build_bundle(SPEC, folder, reference=reference())


def test_stored_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "GRAPHS", tmp_path)
    with pytest.raises(ModelError, match="parity reference"):
        load_reference(SPEC)
    (tmp_path / "tiny.reference.json").write_text(json.dumps(reference()))
    assert set(load_reference(SPEC)) == {
        "kind",
        "clips",
        "frames_per_clip",
        "seed",
        "frame_scores",
    }
