"""fp16 and bf16 of a bundle through the gate: what passes, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from half_graph import SIDE, half_graph
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import make_tiny_bundle

from memcli.engines.bundle import Bundle, read_bundle, verify_files, write_manifest
from memcli.engines.select import open_engine
from memcli.errors import EngineError, ParityError
from memcli.export import half_variant
from memcli.export.compare import Inputs, compare_graphs
from memcli.export.half import Half, HalfResult, write_half
from memcli.export.parity_table import PARITY_FILE
from memcli.export.precision import make_variant
from memcli.export.retype import load_typed, write_retyped
from memcli.models.encoders import TOLERANCES

ort = pytest.importorskip("onnxruntime", reason="the gate's runtime")
HALVES: tuple[Half, ...] = ("fp16", "bf16")


def scores_of(model: onnx.ModelProto) -> Callable[[np.ndarray], np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda frames: session.run(["frame_scores"], {"frames": frames})[0]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path))
    model = half_graph()
    made = make_tiny_bundle(tmp_path, graph=model, frame_scores=scores_of(model))
    write_manifest(replace(made, spec=replace(made.spec, tolerances=dict(TOLERANCES))))
    return read_bundle(made.root)


def content(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("precision", HALVES)
def test_a_variant_with_its_report(bundle: Bundle, precision: Half) -> None:
    said: list[str] = []
    variant = make_variant(bundle, precision, report=said.append)
    installed = read_bundle(bundle.root)
    assert installed.variants[precision] == variant
    verify_files(installed, variant)
    report = variant.parity[0]
    assert report["clips"] == 64
    assert 0 < report["max_abs"] <= 0.01
    assert 0.999 <= report["cosine_min"] < 1
    assert report["embeddings"] == 40 + 40 + 15 + 4
    assert f"{precision} emulated" in report["runtime"], "no such arithmetic on this machine"
    table = (bundle.root / PARITY_FILE).read_text()
    assert f"| {precision} | gate | fp32 graph | synthetic clips | onnxruntime" in table
    assert f"The gate of {precision} rests on 64 synthetic clips. No real input was given" in table
    assert "cosine of embeddings at least 0.999" in table
    assert [path.name for path in bundle.root.parent.iterdir()] == ["tiny"]


def test_bf16_has_a_graph_for_gpus_and_openvino_the_fp32_one(bundle: Bundle) -> None:
    variant = make_variant(bundle, "bf16")
    installed = read_bundle(bundle.root)
    assert variant.engines == ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
    assert installed.graph_path(variant, "openvino") == bundle.root / "fp32/model.onnx"
    assert installed.graph_path(variant, "tensorrt").parent.name.startswith("bf16-")
    assert set(bundle.variants["fp32"].files) < set(variant.files)
    assert bundle.variants["fp32"].to_dict().get("graphs") is None, "as older manifests"


@pytest.mark.parametrize("precision", HALVES)
def test_no_cpu_computes_in_it_quietly(bundle: Bundle, precision: Half) -> None:
    make_variant(bundle, precision)
    installed = read_bundle(bundle.root)
    with pytest.raises(EngineError, match=f"{precision}"):
        open_engine(installed, precision=precision, engine="onnxruntime", device="cpu")
    with open_engine(installed).engine as engine:
        assert engine.describe().precision == "fp32"


def test_the_same_bytes_again_and_a_new_one_replaces_the_old(bundle: Bundle) -> None:
    first = make_variant(bundle, "fp16")
    second = make_variant(read_bundle(bundle.root), "fp16")
    assert first.files == second.files
    assert len([path for path in bundle.root.iterdir() if path.name.startswith("fp16-")]) == 1


def naive(source: Path, target: Path, precision: Half, **_: Any) -> HalfResult:
    """Everything in half precision, LayerNormalization too, but what an output comes from."""
    model, types = load_typed(source)
    outputs = {value.name for value in model.graph.output}
    choice = [
        not outputs & set(node.output) and node.op_type != "Cast" for node in model.graph.node
    ]
    write_retyped(model, types, source.parent, choice, precision, target)
    return HalfResult(0, (), 0)


def edited(change: Callable[[onnx.ModelProto], None]) -> Callable[..., HalfResult]:
    """`write_half` whose graph is then changed."""

    def write(source: Path, target: Path, precision: Half, **more: Any) -> HalfResult:
        result = write_half(source, target, precision, **more)
        model = onnx.load(str(target), load_external_data=False)
        change(model)
        target.write_bytes(model.SerializeToString())
        return result

    return write


def set_constant(name: str, value: list[float]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = [one for one in model.graph.initializer if one.name == name]
        tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), name))

    return change


def swap_channels(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    node = helper.make_node("Gather", ["frames", "bgr"], ["swapped"], "swap", axis=-1)
    model.graph.node.insert(0, node)
    (cast,) = [one for one in model.graph.node if "frames" in one.input and one.name != "swap"]
    cast.input[0] = "swapped"


def dead(output: str) -> Callable[[onnx.ModelProto], None]:
    """An output that is always 0; what is computed from it is right."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name == output:
                        names[position] = "alive"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "dead"))
        model.graph.node.append(helper.make_node("Mul", ["alive", "dead"], [output]))

    return change


BROKEN = {
    "no score": (edited(dead("score")), "score"),
    "no frame scores": (edited(dead("frame_scores")), "frame_scores"),
    "LayerNormalization in fp16": (naive, "squares"),
    "wrong mean": (edited(set_constant("mean", [0.5, 0.5, 0.5])), "centred"),
    "wrong std": (edited(set_constant("std", [0.5, 0.5, 0.5])), "pixels"),
    "swapped channels": (edited(swap_channels), "floats"),
}


@pytest.mark.parametrize("installed_before", [False, True])
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_graphs_are_refused_and_the_old_bundle_stays(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, fault: str, installed_before: bool
) -> None:
    write, layer = BROKEN[fault]
    if installed_before:
        make_variant(bundle, "fp16")
    before = content(bundle.root)
    monkeypatch.setattr(half_variant, "write_half", write)
    with pytest.raises(ParityError, match=r"fp16 graph misses its tolerance: max \|diff") as caught:
        make_variant(read_bundle(bundle.root), "fp16")
    text = str(caught.value)
    assert "Allowed: max 0.01, mean 0.005, cosine of embeddings at least 0.999" in text
    assert f"worst: {layer} " in text, "the layer where it goes wrong is named"
    assert content(bundle.root) == before
    assert [path.name for path in bundle.root.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("fault", sorted(set(BROKEN) - {"LayerNormalization in fp16"}))
def test_broken_graphs_of_bf16_are_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Its tolerance is no wider; LayerNormalization has the range that it needs there."""
    monkeypatch.setattr(half_variant, "write_half", BROKEN[fault][0])
    with pytest.raises(ParityError, match=r"bf16 graph misses its tolerance: max \|diff"):
        make_variant(bundle, "bf16")


def test_a_wrong_embedding_behind_right_scores_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores alone would not tell: what is left of the embedding is what the head reads."""

    def halve(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                if name.startswith("frame_embeddings"):
                    node.input[position] = name.replace("frame_embeddings", "kept")
            for position, name in enumerate(node.output):
                if name == "frame_embeddings":
                    node.output[position] = "kept"
        model.graph.initializer.append(
            numpy_helper.from_array(np.arange(16).astype(np.float16), "ramp")
        )
        model.graph.node.append(helper.make_node("Mul", ["kept", "ramp"], ["frame_embeddings"]))

    monkeypatch.setattr(half_variant, "write_half", edited(halve))
    with pytest.raises(ParityError, match=r"cosine min -?0\.\d+"):
        make_variant(bundle, "fp16")


def renamed(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    """A value inside under another name: nothing that is computed changes."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name == old:
                        names[position] = new

    return change


@pytest.mark.parametrize("name", ["frame_embeddings", "frame_scores"])
def test_a_graph_that_does_not_name_what_is_compared_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is not there cannot be compared, and is not taken for the same."""

    def change(model: onnx.ModelProto) -> None:
        renamed(name, "other")(model)
        outputs = [value for value in model.graph.output if value.name != name]
        del model.graph.output[:]
        model.graph.output.extend(outputs)

    monkeypatch.setattr(half_variant, "write_half", edited(change))
    before = content(bundle.root)
    with pytest.raises(ParityError, match=f"the fp16 graph gives no {name}: its original does"):
        make_variant(bundle, "fp16")
    assert content(bundle.root) == before


@pytest.mark.parametrize("bright_first", [False, True])
def test_each_kind_of_input_must_pass(tmp_path: Path, bright_first: bool) -> None:
    """A graph that is right for dark frames only: the user's are bright, or ours are."""
    model = half_graph()
    onnx.save(model, tmp_path / "original.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(100), "ceiling"))
    (cast,) = [node for node in model.graph.node if node.name == "floats"]
    cast.output[0] = "unlimited"
    dark = helper.make_node("Min", ["unlimited", "ceiling"], ["floats"], "limit")
    model.graph.node.insert(1, dark)
    onnx.save(model, tmp_path / "candidate.onnx")
    random = np.random.default_rng(2)
    shape = (12, 2, SIDE, SIDE, 3)
    feeds = [{"frames": random.integers(low, low + 100, shape, np.uint8)} for low in (0, 150)]
    if bright_first:
        feeds.reverse()
    synthetic, videos = Inputs("ours", feeds[:1]), Inputs("theirs", feeds[1:], real=True)
    graphs = tmp_path / "original.onnx", tmp_path / "candidate.onnx"
    wrong = "ours" if bright_first else "theirs"
    with pytest.raises(ParityError, match=f"misses its tolerance: .* on 12 {wrong}"):
        compare_graphs(*graphs, [synthetic, videos], "fp16", TOLERANCES["fp16"], lambda _: None)
    right = videos if bright_first else synthetic
    (parity,) = compare_graphs(*graphs, [right], "fp16", TOLERANCES["fp16"], lambda _: None)
    assert parity.max_abs == 0


def test_real_clips_are_compared_too(bundle: Bundle) -> None:
    random = np.random.default_rng(0)
    clips = [random.integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(3)]
    variant = make_variant(bundle, "fp16", calibration=clips[:1], holdout=clips[1:])
    synthetic, real = variant.parity
    assert (real["inputs"], real["clips"], real["embeddings"]) == ("videos", 3, 9)
    assert synthetic["inputs"] == "synthetic clips"


def test_additions_stay_in_fp32_where_fp16_has_no_room_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A residual stream beyond 65,504: the first graph misses, the second is right and says so."""
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path))
    model = half_graph(spelled_out=False)
    weight = np.random.default_rng(1).normal(0, 1, (3, 16)).astype(np.float32)
    weight[:, 3] = 16000  # large enough that twice the product overflows, and the product not
    model.graph.initializer.append(numpy_helper.from_array(weight, "large.weight"))
    place = next(i for i, node in enumerate(model.graph.node) if node.name == "stream")
    model.graph.node.remove(model.graph.node[place])
    doubled = helper.make_node("Add", ["large", "large"], ["stream"], "stream")
    model.graph.node.insert(place, doubled)
    large = helper.make_node("MatMul", ["colour", "large.weight"], ["large"], "large")
    model.graph.node.insert(place, large)
    made = make_tiny_bundle(tmp_path, graph=model, frame_scores=scores_of(model))
    write_manifest(replace(made, spec=replace(made.spec, tolerances=dict(TOLERANCES))))
    said: list[str] = []
    variant = make_variant(read_bundle(made.root), "fp16", report=said.append)
    assert any("once more, with additions in fp32" in line for line in said)
    assert variant.parity[0]["additions"] == "fp32"
    graph = onnx.load(str(made.root / variant.graph))
    assert {t.data_type for t in graph.graph.initializer} >= {TensorProto.FLOAT16}
