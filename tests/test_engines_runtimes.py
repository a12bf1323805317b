"""ONNX Runtime and OpenVINO behind one protocol: what they run, say and refuse."""

import builtins
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import brightness, brightness_graph, make_graph

from memcli.engines import loading, openvino
from memcli.engines.loading import check_feeds, graph_facts, import_runtime
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.errors import DeviceError, EngineError, MissingDependencyError

OPENERS = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}
FRAMES = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(brightness_graph().SerializeToString())
    return path


def quantised_graph(zero_point: np.ndarray) -> onnx.ModelProto:
    """Brightness with one QuantizeLinear / DequantizeLinear pair."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["floats", "scale", "zero"], ["small"]),
        helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["large"]),
        helper.make_node("ReduceMean", ["large", "pixels"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "white"], ["frame_scores"]),
        helper.make_node("ReduceMean", ["frame_scores", "time"], ["score"], keepdims=0),
    ]
    constants = {
        "pixels": np.array([2, 3, 4], np.int64),
        "white": np.array(255, np.float32),
        "time": np.array([1], np.int64),
        "scale": np.array(2, np.float32),
        "zero": zero_point,
    }
    return make_graph(nodes, constants)


@pytest.mark.parametrize("name", OPENERS)
def test_runs_and_describes_itself(graph, name):
    with OPENERS[name](graph, device="cpu", precision="fp32", threads=2) as engine:
        scores = engine.run({"frames": FRAMES})
        # float32 sums of 192 bytes
        np.testing.assert_allclose(scores["frame_scores"], brightness(FRAMES), atol=1e-6)
        np.testing.assert_allclose(scores["score"], brightness(FRAMES).mean(axis=1), atol=1e-6)
        first = scores["score"].copy()
        engine.run({"frames": FRAMES // 2})
        np.testing.assert_array_equal(scores["score"], first)  # outputs are not reused
        description = engine.describe()
        assert (description.engine, description.device, description.precision) == (
            name,
            "cpu",
            "fp32",
        )
        assert description.threads == 2
        assert engine.inputs[0].name == "frames"
        assert engine.inputs[0].dtype == "uint8"
        assert engine.inputs[0].shape[4] == 3
        assert isinstance(engine.inputs[0].shape[0], str)
        assert {output.name for output in engine.outputs} == {"score", "frame_scores"}
    with pytest.raises(EngineError, match="closed"):
        engine.run({"frames": FRAMES})


@pytest.mark.parametrize("name", OPENERS)
@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"frame": FRAMES},
        {"frames": FRAMES.astype(np.float32)},
        {"frames": FRAMES[0]},
        {"frames": FRAMES[..., :2]},
        {"frames": FRAMES[:0]},
    ],
    ids=["none", "other name", "float", "one clip", "two channels", "empty"],
)
def test_refuses_feeds_that_do_not_fit(graph, name, feeds):
    engine = OPENERS[name](graph, device="cpu", precision="fp32", threads=1)
    with pytest.raises(EngineError, match="the graph takes"):
        engine.run(feeds)


def test_non_contiguous_input(graph):
    mirrored = FRAMES[:, :, :, ::-1]
    for opener in OPENERS.values():
        scores = opener(graph, device="cpu", precision="fp32", threads=1).run({"frames": mirrored})
        np.testing.assert_allclose(scores["frame_scores"], brightness(mirrored), atol=1e-6)


@pytest.mark.parametrize("name", OPENERS)
@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_garbage_is_one_clear_line(tmp_path, name, content, capfd):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError) as caught:
        OPENERS[name](path, device="cpu", precision="fp32", threads=1)
    assert str(path) in str(caught.value)
    assert "\n" not in caught.value.what
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", OPENERS)
def test_missing_external_data(tmp_path, name):
    path = tmp_path / "model.onnx"
    weight = numpy_helper.from_array(np.ones(1000, np.float32), "weight")
    graph = brightness_graph()
    graph.graph.initializer.append(weight)
    graph.graph.node.insert(0, helper.make_node("ReduceMax", ["weight"], ["x"], keepdims=0))
    onnx.save(graph, path, save_as_external_data=True, location="model.bin", size_threshold=0)
    assert graph_facts(path).external_files == {"model.bin"}
    (tmp_path / "model.bin").unlink()
    with pytest.raises(EngineError, match="cannot load"):
        OPENERS[name](path, device="cpu", precision="fp32", threads=1)


def test_onnxruntime_refuses_unsigned_activations(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(quantised_graph(np.array(0, np.uint8)).SerializeToString())
    assert graph_facts(path).quantised_to == {"uint8"}
    with pytest.raises(EngineError, match="wrong results") as caught:
        open_onnxruntime(path, device="cpu", precision="int8", threads=1)
    assert "openvino" in str(caught.value)


def test_onnxruntime_runs_signed_activations(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(quantised_graph(np.array(0, np.int8)).SerializeToString())
    assert graph_facts(path).quantised_to == {"int8"}
    engine = open_onnxruntime(path, device="cpu", precision="int8", threads=1)
    assert engine.describe().precision == "int8+fp32"


def test_a_missing_zero_point_means_unsigned(tmp_path):
    graph = quantised_graph(np.array(0, np.uint8))
    for node in graph.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            del node.input[2]
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    assert graph_facts(path).quantised_to == {"uint8"}


def test_openvino_refuses_int8_that_is_none(graph):
    with pytest.raises(EngineError, match="no layer of this graph in int8"):
        open_openvino(graph, device="cpu", precision="int8", threads=1)


@pytest.mark.parametrize("name", OPENERS)
def test_fp16_is_not_for_cpus(graph, name):
    with pytest.raises(EngineError, match="fp16"):
        OPENERS[name](graph, device="cpu", precision="fp16", threads=1)


def test_bf16_without_the_instructions(graph, monkeypatch):
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: frozenset({"FP32", "INT8"}))
    with pytest.raises(EngineError, match="no native bf16") as caught:
        open_openvino(graph, device="cpu", precision="bf16", threads=1)
    assert "--precision fp32" in str(caught.value)


def test_cuda_without_cuda_names_what_is_missing(graph):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(DeviceError, match="CUDA execution provider") as caught:
        open_onnxruntime(graph, device="cuda", precision="fp32", threads=None)
    assert "memcli[gpu]" in str(caught.value)


def test_cuda_that_does_not_start_is_not_the_cpu(graph, monkeypatch):
    import onnxruntime

    # A GPU build on a machine without a driver: the session silently has the CPU provider only.
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers, enable_fallback: session(
            path, options, ["CPUExecutionProvider"]
        ),
    )
    with pytest.raises(DeviceError, match=r"would (have )?run on the CPU"):
        open_onnxruntime(graph, device="cuda:0", precision="fp32", threads=None)


def test_openvino_has_no_cuda(graph):
    with pytest.raises(DeviceError, match="openvino"):
        open_openvino(graph, device="cuda", precision="fp32", threads=None)


@pytest.fixture
def without(monkeypatch):
    """Makes packages look uninstalled."""

    def hide(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
        real = builtins.__import__

        def fake(name, *args, **kwargs):
            if name.partition(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", fake)
        monkeypatch.setattr(
            loading.importlib, "import_module", lambda name: fake(name) or sys.modules[name]
        )

    return hide


@pytest.mark.parametrize("name", OPENERS)
def test_a_missing_runtime_says_how_to_install_it(without, name):
    without(name)
    with pytest.raises(MissingDependencyError) as caught:
        import_runtime(name)
    assert f"running a model with {name} needs {name}" in str(caught.value)
    assert "pip install 'memcli[cpu]'" in str(caught.value)


def test_a_runtime_that_does_not_load(monkeypatch):
    def broken(name):
        raise ImportError("libstdc++.so.6: version `GLIBCXX_3.4.30' not found")

    monkeypatch.setattr(loading.importlib, "import_module", broken)
    with pytest.raises(EngineError, match="GLIBCXX"):
        import_runtime("onnxruntime")


def test_nothing_is_printed(graph):
    """Runtimes warn on stderr by default; a user's terminal belongs to memcli."""
    code = (
        "import sys, pathlib, numpy as np\n"
        "from memcli.engines.onnxruntime import open_onnxruntime\n"
        "from memcli.engines.openvino import open_openvino\n"
        "for opener in (open_onnxruntime, open_openvino):\n"
        "    path = pathlib.Path(sys.argv[1])\n"
        "    engine = opener(path, device='cpu', precision='fp32', threads=1)\n"
        "    engine.run({'frames': np.zeros((1, 1, 8, 8, 3), np.uint8)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(graph)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_feeds_accepts_what_fits(graph):
    engine = open_openvino(graph, device="cpu", precision="fp32", threads=1)
    check_feeds({"frames": FRAMES}, engine.inputs)


def test_cpu_facts_are_text():
    assert loading.cpu_name()
    assert set(loading.cpu_features()) <= set(loading._CPU_FEATURES)


def test_ctrl_c_while_a_runtime_is_imported_is_not_a_broken_runtime(monkeypatch):
    def interrupted(name):
        try:
            raise ImportError("initialization failed") from KeyboardInterrupt()
        except ImportError as inner:
            raise ImportError("its module does not load") from inner

    monkeypatch.setattr("memcli.engines.loading.importlib.import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_runtime("openvino")
