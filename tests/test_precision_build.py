"""From a filled graph to an installed bundle, through the gate."""

import dataclasses
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_bundle import TINY_PREP, TINY_TOLERANCE, _spec, brightness, brightness_graph

from memcli.engines import records
from memcli.engines.bundle import (
    LICENSE_FILE,
    hash_files,
    read_bundle,
    verify_files,
    write_manifest,
)
from memcli.engines.files import locked
from memcli.engines.reference import synthetic_frames
from memcli.engines.select import open_engine
from memcli.errors import ModelError, OutputError, ParityError
from memcli.export import build, precision
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


def with_other_precisions(bundle, **spec):
    """`bundle` with a bf16 that shares its graph, and an int8 with a graph of its own."""
    fp32 = bundle.variants["fp32"]
    folder = bundle.root / "int8-12345678"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(brightness_graph().SerializeToString())
    graph = "int8-12345678/model.onnx"
    bf16 = dataclasses.replace(fp32, precision="bf16", engines=("openvino",))
    int8 = dataclasses.replace(
        bf16, precision="int8", graph=graph, files=hash_files(bundle.root, [graph])
    )
    variants = {"fp32": fp32, "bf16": bf16, "int8": int8}
    spec = dataclasses.replace(bundle.spec, **spec)
    write_manifest(dataclasses.replace(bundle, spec=spec, variants=variants))
    return read_bundle(bundle.root)


def test_a_new_pull_keeps_precisions_made_from_the_same_graph(home):
    old = with_other_precisions(build_bundle(SPEC, pulled(home), reference=reference()))
    said = []
    new = build_bundle(SPEC, pulled(home), reference=reference(), report=said.append)
    assert new.variants["int8"] == old.variants["int8"]
    assert new.variants["bf16"] == old.variants["bf16"]
    for variant in new.variants.values():
        verify_files(new, variant)
    assert not any("not kept" in line for line in said)
    assert [path.name for path in (home / "bundles").iterdir()] == ["tiny"]


@pytest.mark.parametrize("change", ["graph", "tolerance", "damage", "manifest"])
def test_precisions_that_no_longer_fit_are_named(home, change):
    old = build_bundle(SPEC, pulled(home), reference=reference())
    tolerances = {"int8": TINY_TOLERANCE} if change == "tolerance" else {}
    old = with_other_precisions(old, tolerances={**SPEC.tolerances, **tolerances})
    folder = pulled(home)
    kept = {"fp32", "bf16"}
    if change == "graph":
        kept = {"fp32"}
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
        graph.doc_string = "another"
        (folder / "model.onnx").write_bytes(graph.SerializeToString())
    if change == "damage":
        old.graph_path(old.variants["int8"]).write_bytes(b"damaged")
    if change == "manifest":
        kept = {"fp32"}
        (old.root / "manifest.json").write_text("{")
    said = []
    new = build_bundle(SPEC, folder, reference=reference(), report=said.append)
    assert set(new.variants) == kept
    assert sorted(path.name for path in new.root.iterdir()) == [
        LICENSE_FILE,
        "PARITY.md",
        "fp32",
        "manifest.json",
    ]
    assert any("not kept" in line for line in said)


def test_a_full_disk_while_precisions_are_kept(home, monkeypatch):
    old = with_other_precisions(build_bundle(SPEC, pulled(home), reference=reference()))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(OutputError, match="No space left"):
        build_bundle(SPEC, pulled(home), reference=reference())
    assert read_bundle(old.root) == old


def test_a_variant_of_a_graph_that_was_replaced_meanwhile_is_not_added(home):
    old = build_bundle(SPEC, pulled(home), reference=reference())
    fp32 = dataclasses.replace(old.variants["fp32"], files={"fp32/model.onnx": "0"})
    write_manifest(dataclasses.replace(old, variants={"fp32": fp32}))
    bf16 = dataclasses.replace(old.variants["fp32"], precision="bf16")
    with pytest.raises(ModelError, match="was replaced while its bf16 was made"):
        precision._add(old, bf16, None, lambda _: None)
    assert set(read_bundle(old.root).variants) == {"fp32"}


def test_adding_a_variant_waits_for_other_changes(home):
    bundle = build_bundle(SPEC, pulled(home), reference=reference())
    bf16 = dataclasses.replace(bundle.variants["fp32"], precision="bf16")
    waits = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with locked(bundle.root):
            run = pool.submit(precision._add, bundle, bf16, None, lambda _: waits.set())
            assert waits.wait(20)
            assert not run.done()
        run.result(20)
    assert set(read_bundle(bundle.root).variants) == {"fp32", "bf16"}


@pytest.mark.parametrize("graph", ["model.onnx", "fp32/other.onnx", "int8-1/model.onnx"])
def test_only_the_folder_of_the_replaced_variant_is_deleted(home, graph):
    """Whatever a manifest calls the former graph: not the bundle, not what others use."""
    bundle = build_bundle(SPEC, pulled(home), reference=reference())
    path = bundle.root / graph
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(brightness_graph().SerializeToString())
    int8 = dataclasses.replace(bundle.variants["fp32"], precision="int8", graph=graph,
                               files=hash_files(bundle.root, [graph]))  # fmt: skip
    write_manifest(
        dataclasses.replace(bundle, variants={"fp32": bundle.variants["fp32"], "int8": int8})
    )
    new = home / "int8-2"
    new.mkdir()
    (new / "model.onnx").write_bytes(path.read_bytes())
    other = dataclasses.replace(int8, graph="int8-2/model.onnx", files={"int8-2/model.onnx": "0"})
    precision._add(bundle, other, new, lambda _: None)
    after = read_bundle(bundle.root)
    verify_files(after, after.variants["fp32"])
    assert (bundle.root / "int8-2" / "model.onnx").is_file()
    assert path.exists() == (not graph.startswith("int8"))


def test_without_a_runtime_the_gate_is_left_to_the_first_use(home, monkeypatch):
    monkeypatch.setattr(build, "installed_runtimes", lambda: ())
    said = []
    bundle = build_bundle(SPEC, pulled(home), reference=reference(), report=said.append)
    assert bundle.variants["fp32"].parity == []
    assert said[0] == "no runtime is installed: the graph will be verified at its first use"


@pytest.mark.parametrize("of", ["fp8", "int8"])
def test_runtimes_that_do_not_compute_in_a_precision_are_not_called_absent(home, of):
    bundle = build_bundle(SPEC, pulled(home), reference=reference())
    variant = dataclasses.replace(bundle.variants["fp32"], precision=of, engines=("tensorrt",))
    said = []
    assert build.gate_everywhere(bundle, variant, said.append) == []
    told = f"no runtime here computes in {of}: the graph will be verified at its first use"
    assert said == [told]


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
