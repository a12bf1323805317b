"""Real TensorRT-RTX engines of the registry's models, built on a machine without a GPU."""

import dataclasses
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_bundle import TINY_PREP, brightness_graph, make_tiny_bundle

from memcli.engines import cuda as cuda_module
from memcli.engines import plans
from memcli.engines.cuda import DeviceFacts
from memcli.engines.tensorrt import _Loader, deserialise
from memcli.engines.tensorrt_build import _cannot, build
from memcli.engines.tensorrt_flavour import load_flavour, make_log, reason
from memcli.engines.tensorrt_graph import cast_inputs_first, graph_digest, prepare
from memcli.engines.tensorrt_plan import build_for_bundle, build_plan
from memcli.engines.tensorrt_profile import BuildOptions, Profile, Range, profile_of
from memcli.errors import EngineError, ModelError

CAPABILITIES = ("8.6", "8.9", "12.0")
SMALL = Profile({"batch": Range(1, 2, 2), "time": Range(1, 4, 4)})


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    return load_flavour("tensorrt-rtx")


def sized(model: onnx.ModelProto, side: int) -> onnx.ModelProto:
    """The graph for frames of one size, as those of real models are."""
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:4]:
        axis.dim_value = side
    return model


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(sized(brightness_graph(), 8).SerializeToString())
    return path


FAMILIES = ("vit", "clip-gru", "early-fusion", "text", "vision")
"""Frames, captions and both; `python -m tests.benchmarks.rtx` builds one
of every structure in the registry."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_export):
    """name -> a folder of its fp32 graph, for other precisions, too, and its spec."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("tiny")
    made = {}

    def get(name):
        if name not in made:
            exported = tiny_export(name)
            (folder / name).mkdir()
            exported.copy_graph(folder / name)
            made[name] = folder / name, exported.bundle.spec
        return made[name]

    return get


def quantised(source, target, scheme):
    """All layers that can be, with made-up ranges: what is built here is never run."""
    from memcli.export.layers import quantisable_layers
    from memcli.export.quantize import ActivationRange, quantise

    model = onnx.load(str(source))
    layers = quantisable_layers(model)
    assert layers
    ranges = {layer.input: ActivationRange(4.0, True) for layer in layers}
    onnx.save(quantise(model, layers, ranges, scheme), str(target))


def in_precision(folder, precision):
    """The graph of a folder in another precision, in a folder beside it."""
    target = folder / precision / "model.onnx"
    if target.exists():
        return target
    target.parent.mkdir()
    if precision in ("fp16", "bf16"):
        from memcli.export.half import write_half

        write_half(folder / "model.onnx", target, precision)
    else:
        quantised(folder / "model.onnx", target, {"int8": "s8s8", "fp8": "fp8"}[precision])
    return target


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_models_in_fp16(rtx, tiny, name):
    folder, spec = tiny(name)
    graph = in_precision(folder, "fp16")
    plan = build_plan(
        graph, flavour="tensorrt-rtx", profile=profile_of(spec), target_capability="8.9"
    )
    assert plan.key.capability == "8.9"
    assert plan.path.read_bytes()[4:].startswith(b"\0")
    assert plan.problem() is None


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_capability(rtx, tiny, capability):
    folder, spec = tiny("text")
    graph = in_precision(folder, "bf16")
    built = build(rtx, graph, profile_of(spec), BuildOptions(), capability=capability)
    assert len(built.plan) > 100_000


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("vit", "int8"), ("clip-gru", "fp8")])
def test_eight_bits(rtx, tiny, name, precision):
    folder, spec = tiny(name)
    graph = in_precision(folder, precision)
    assert build(rtx, graph, profile_of(spec), BuildOptions(), capability="8.9").plan


@pytest.mark.slow
def test_plans_are_the_same_each_time(rtx, tiny):
    """To the byte, though not each time: the compiler may file records in another order."""
    folder, spec = tiny("vit")
    graph = in_precision(folder, "fp16")
    usual = profile_of(spec)
    fixed = Profile({name: Range(one.max, one.max, one.max) for name, one in usual.axes.items()})
    seen: set[bytes] = set()
    for _ in range(4):
        plan = bytes(build(rtx, graph, fixed, BuildOptions(), capability="8.9").plan)
        if plan in seen:
            return
        seen.add(plan)
    pytest.fail("four builds gave four different plans")


def test_a_second_build_is_a_hit_and_damage_a_miss(rtx, graph):
    said = []

    def make():
        said.clear()
        return build_plan(
            graph,
            flavour="tensorrt-rtx",
            profile=SMALL,
            target_capability="8.9",
            report=said.append,
        )

    first = make()
    assert "none was built yet" in said[0]
    assert make() == first
    assert said == ["TensorRT-RTX engine for compute capability 8.9: in the cache"]
    content = bytearray(first.path.read_bytes())
    content[-1] ^= 1
    first.path.write_bytes(content)
    assert make().problem() is None
    assert "SHA-256 differs" in said[0]
    graph.write_bytes(graph.read_bytes() + b"\x12\x00")  # another graph, which means the same
    make()
    assert "none was built yet" in said[0]


def test_without_a_driver_a_plan_does_not_load_and_why_is_said(rtx, graph):
    if _has_gpu():
        pytest.skip("there is a GPU here")
    plan = build(rtx, graph, SMALL, BuildOptions(), capability="8.9").plan
    for content in (plan, plan[:1000], b"garbage", b""):
        log = make_log(rtx.trt)
        assert deserialise(rtx, log, content) is None
        assert reason(log, "") != ""


def _has_gpu() -> bool:
    try:
        cuda_module.Cuda()
    except Exception:
        return False
    return True


def test_a_plan_of_another_version_is_built_again(rtx, graph):
    """The whole way on a machine without a driver, where the new plan does not load either."""
    if _has_gpu():
        pytest.skip("there is a GPU here")
    facts = DeviceFacts(0, "GPU", "8.9", 24 << 30, "570.1, CUDA 12.8")
    said: list[str] = []
    threads = []
    gpu = SimpleNamespace(use=lambda: threads.append(threading.current_thread()))
    loader = _Loader(rtx, gpu, facts, graph, graph_digest(graph), "tiny", said.append)
    with pytest.raises(EngineError, match="does not load the engine that it built"):
        loader.load(SMALL, BuildOptions(), exact=False)
    assert "none was built yet" in said[0]
    assert threads != [threading.main_thread()], "the thread that builds has the GPU, too"
    assert len(threads) == 1
    (plan,) = plans.stored()
    old = dataclasses.replace(plan.key, version="1.6.0.1")
    plans.clear()
    content = b"an engine of version 1.6"
    plans.store(plans.new_plan(old, content, label="tiny", seconds=0), content)
    said.clear()
    with pytest.raises(EngineError, match="does not load the engine that it built"):
        loader.load(SMALL, BuildOptions(), exact=False)
    assert f"its version is {rtx.version} now" in said[0]
    said.clear()
    with pytest.raises(EngineError, match="does not load the engine that it built"):
        loader.load(SMALL, BuildOptions(), exact=False)
    assert "the cached one does not load" in said[0]


def test_a_bundle_is_built_for_another_gpu_and_carried_there(rtx, memcli_home, tmp_path):
    graph = sized(brightness_graph(), TINY_PREP.crop_width)
    bundle = make_tiny_bundle(memcli_home, engines=("onnxruntime", "tensorrt-rtx"), graph=graph)
    plan = build_for_bundle(
        bundle,
        "fp32",
        flavour="tensorrt-rtx",
        target_capability="12.0",
        ranges={"batch": (1, 1, 2)},
        output=tmp_path / "out",
    )
    assert plan.key.profile["batch"] == [1, 1, 2]
    plans.clear()
    (added,) = plans.add(tmp_path / "out")
    assert added.sha256 == plan.sha256
    with pytest.raises(ModelError, match="not at fp16"):
        build_for_bundle(bundle, "fp16", flavour="tensorrt-rtx", target_capability="8.9")


def test_a_capability_that_is_not_known(rtx, graph):
    with pytest.raises(EngineError, match=r"no engines for compute capability 9\.0") as caught:
        build_plan(graph, flavour="tensorrt-rtx", profile=SMALL, target_capability="9.0")
    assert "8.9" in str(caught.value)
    assert set(CAPABILITIES) <= set(rtx.capabilities())


def test_a_graph_that_tensorrt_does_not_take(rtx, tmp_path):
    node = helper.make_node("NoSuchThing", ["frames"], ["score"], name="odd")
    frames = helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", 3])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])
    model = helper.make_model(helper.make_graph([node], "odd", [frames], [score]))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="cannot parse the graph: NoSuchThing odd"):
        build(rtx, path, SMALL, BuildOptions(), capability="8.9")


def test_unsigned_quantisation_is_refused_and_the_reason_is_tensorrts(rtx, tmp_path):
    from test_engines_runtimes import quantised_graph

    path = tmp_path / "model.onnx"
    path.write_bytes(sized(quantised_graph(np.array(3, np.uint8)), 8).SerializeToString())
    with pytest.raises(EngineError, match="QuantizeLinear"):
        build(rtx, path, SMALL, BuildOptions(), capability="8.9")
    path.write_bytes(sized(quantised_graph(np.array(0, np.int8)), 8).SerializeToString())
    assert build(rtx, path, SMALL, BuildOptions(), capability="8.9").plan


def reshaped_graph() -> onnx.ModelProto:
    """Frames through Reshape and Transpose as bytes, as our exports have it."""
    nodes = [
        helper.make_node("Shape", ["frames"], ["shape"]),
        helper.make_node("Reshape", ["frames", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["channels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["score"]),
    ]
    shape = ["batch", "time", 8, 8, 3]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, shape)
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, shape)
    flat = helper.make_tensor("flat", TensorProto.INT64, [4], [-1, 8, 8, 3])
    made = helper.make_model(
        helper.make_graph(nodes, "reshaped", [frames], [score], [flat]),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    made.ir_version = 10
    return made


def test_too_little_scratch_memory_says_what_to_give(rtx, tmp_path):
    error = _cannot(rtx, tmp_path, "cannot compile the graph", "no tactics within workspace limit")
    assert "--workspace MIB" in str(error)
    assert "--workspace" not in str(_cannot(rtx, tmp_path, "cannot parse the graph", "an operator"))


def test_bytes_become_floats_first_and_no_value_changes(rtx, tmp_path):
    import onnxruntime

    path = tmp_path / "model.onnx"
    path.write_bytes(reshaped_graph().SerializeToString())
    frames = np.random.default_rng(2).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    model = reshaped_graph()
    assert cast_inputs_first(model)
    onnx.checker.check_model(model, full_check=True)
    scores = [
        onnxruntime.InferenceSession(
            one.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, {"frames": frames})[0]
        for one in (reshaped_graph(), model)
    ]
    np.testing.assert_array_equal(*scores)
    assert [node.op_type for node in model.graph.node][:2] == ["Cast", "Shape"]
    assert not cast_inputs_first(model)  # nothing left to do
    folder = tmp_path / "made"
    folder.mkdir()
    assert prepare(path, folder) == folder / "model.onnx"
    shutil.rmtree(folder)
    assert build(rtx, path, SMALL, BuildOptions(), capability="8.9").plan


def test_a_graph_that_computes_with_bytes_is_left_alone():
    model = reshaped_graph()
    model.graph.node.append(helper.make_node("Max", ["rows"], ["largest"]))
    before = model.SerializeToString()
    assert not cast_inputs_first(model)
    assert model.SerializeToString() == before
