"""ONNX Runtime on CUDA, as far as that can be seen without a GPU (`fake_cuda`); numbers on a GPU
are the matter of `tests/gpu`."""

import inspect

import numpy as np
import pytest
from fake_cuda import FakeGpuBuild
from tiny_bundle import brightness, brightness_graph

from memcli.engines import onnxruntime as engine_module
from memcli.engines import ort_cuda
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.ort_cuda import CudaOptions
from memcli.errors import DeviceError, EngineError, UsageError

RNG = np.random.default_rng(3)


def clips(batch, frames=2):
    return RNG.integers(0, 256, (batch, frames, 8, 8, 3), np.uint8)


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(brightness_graph().SerializeToString())
    return path


@pytest.fixture
def fixed_graph(tmp_path):
    model = brightness_graph()
    sizes = {"batch": 2, "frames_per_clip": 2, "height": 8, "width": 8}
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = sizes[axis.dim_param]
    path = tmp_path / "fixed.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def build(monkeypatch):
    def use(**options):
        fake = FakeGpuBuild(**options)
        monkeypatch.setattr(engine_module, "import_runtime", lambda name: fake)
        return fake

    return use


def open_cuda(graph, device="cuda", precision="fp32"):
    return open_onnxruntime(graph, device=device, precision=precision, threads=None)


def assert_scores(engine, frames):
    scores = engine.run({"frames": frames})
    np.testing.assert_allclose(scores["frame_scores"], brightness(frames), atol=1e-6)
    return scores


@pytest.mark.parametrize("host_memory", [False, True])
def test_buffers_are_used_again(graph, build, host_memory):
    fake = build(host_memory=host_memory)
    with open_cuda(graph, "cuda:1") as engine:
        first = assert_scores(engine, clips(3))
        kept = first["score"].copy()
        made = list(fake.allocated)
        places = ["cuda:1", "CudaPinned"] if host_memory else ["cuda:1"]
        assert made == [((3, 2, 8, 8, 3), place) for place in places]
        assert_scores(engine, clips(3))
        np.testing.assert_array_equal(first["score"], kept)  # outputs are not used again
        assert fake.allocated == made
        assert_scores(engine, clips(1))
        assert len(fake.allocated) == 2 * len(made)
        assert engine.describe().device == "cuda:1"
    with pytest.raises(EngineError, match="closed"):
        engine.run({"frames": clips(1)})


def test_four_shapes_are_kept(graph, build):
    fake = build()
    engine = open_cuda(graph)
    for batch in (1, 2, 3, 4, 5, 5, 4, 3, 2):
        assert_scores(engine, clips(batch))
    assert [shape[0] for shape, _ in fake.allocated] == [1, 2, 3, 4, 5]
    assert_scores(engine, clips(1))
    assert len(fake.allocated) == 6


def test_feeds_that_are_no_whole_array(graph, build):
    build()
    assert_scores(open_cuda(graph), clips(4)[::2, :, ::-1])


def test_fixed_shapes_are_recorded(fixed_graph, build):
    fake = build()
    engine = open_cuda(fixed_graph)
    assert [values.get("enable_cuda_graph") for values in fake.opened] == ["1"]
    first = assert_scores(engine, clips(2))
    kept = first["score"].copy()
    assert_scores(engine, clips(2))
    np.testing.assert_array_equal(first["score"], kept)
    assert fake.graph_ids == ["1"]
    # Outputs too are at fixed places on the device.
    assert {place for _, place in fake.allocated} == {"cuda:0"}
    assert sorted(shape for shape, _ in fake.allocated) == [(2,), (2, 2), (2, 2, 8, 8, 3)]


def test_other_shapes_are_not_recorded_unless_asked(graph, build, monkeypatch):
    fake = build()
    assert_scores(open_cuda(graph), clips(2))
    assert not fake.graph_ids
    monkeypatch.setenv("MEMCLI_CUDA_GRAPHS", "1")
    engine = open_cuda(graph)
    for batch in (1, 2, 3, 4, 5, 6, 1):
        assert_scores(engine, clips(batch))
    assert fake.graph_ids == ["1", "2", "3", "4", "-1", "-1"]


def test_what_cannot_be_recorded(graph, fixed_graph, build, monkeypatch):
    fake = build(
        fails={"record": RuntimeError("This session cannot use the graph capture feature")}
    )
    assert_scores(open_cuda(fixed_graph), clips(2))
    assert len(fake.opened) == 2
    monkeypatch.setenv("MEMCLI_CUDA_GRAPHS", "1")
    with pytest.raises(EngineError, match="graph capture") as caught:
        open_cuda(graph)
    assert "MEMCLI_CUDA_GRAPHS=0" in str(caught.value)
    monkeypatch.setenv("MEMCLI_CUDA_GRAPHS", "0")
    open_cuda(fixed_graph)
    assert "enable_cuda_graph" not in fake.opened[-1]


def test_memory_options_reach_the_provider(graph, build, monkeypatch):
    fake = build()
    open_cuda(graph, "cuda:1")
    monkeypatch.setenv("MEMCLI_CUDA_MEMORY_LIMIT", "4G")
    open_cuda(graph)
    monkeypatch.setenv("MEMCLI_CUDA_ARENA", "power-of-two")
    open_cuda(graph)
    assert fake.opened == [
        {"device_id": "1", "arena_extend_strategy": "kNextPowerOfTwo", "use_tf32": "0"},
        {
            "device_id": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
            "gpu_mem_limit": str(4 << 30),
        },
        {
            "device_id": "0",
            "arena_extend_strategy": "kNextPowerOfTwo",
            "use_tf32": "0",
            "gpu_mem_limit": str(4 << 30),
        },
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 << 30), ("512MiB", 512 << 20), ("1000000", 1000000), ("8 gb", 8 << 30), ("", None)],
)
def test_amounts_of_memory(text, size):
    assert CudaOptions.from_environment({"MEMCLI_CUDA_MEMORY_LIMIT": text}).memory_limit == size


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEMCLI_CUDA_MEMORY_LIMIT", "much"),
        ("MEMCLI_CUDA_MEMORY_LIMIT", "0"),
        ("MEMCLI_CUDA_MEMORY_LIMIT", "-4G"),
        ("MEMCLI_CUDA_ARENA", "kSameAsRequested"),
        ("MEMCLI_CUDA_GRAPHS", "yes"),
    ],
)
def test_values_that_cannot_be_meant(name, value):
    with pytest.raises(UsageError, match=value) as caught:
        CudaOptions.from_environment({name: value})
    assert caught.value.where == name


@pytest.mark.parametrize(
    "message",
    [
        "RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 1207959552",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "BFCArena: Available memory of 1024 is smaller than requested bytes of 4096",
    ],
)
def test_out_of_memory_names_the_batch(graph, build, message):
    build(fails={"run": RuntimeError(message)})
    with pytest.raises(EngineError, match=r"batch of 6 \(frames \[6, 2, 8, 8, 3\]\)") as caught:
        open_cuda(graph).run({"frames": clips(6)})
    assert "--batch-size 3" in str(caught.value)


def test_another_failure_is_not_called_out_of_memory(graph, build):
    build(fails={"run": RuntimeError("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED")})
    with pytest.raises(EngineError, match="cannot run the graph: CUDNN failure 5000"):
        open_cuda(graph).run({"frames": clips(6)})


def test_weights_that_do_not_fit(graph, build):
    build(fails={"open": RuntimeError("CUDA failure 2: out of memory")})
    with pytest.raises(EngineError, match="model's weights"):
        open_cuda(graph)


def test_int8_says_how_it_is_computed(tmp_path, build):
    from test_engines_runtimes import quantised_graph

    path = tmp_path / "model.onnx"
    path.write_bytes(quantised_graph(np.array(0, np.int8)).SerializeToString())
    build()
    assert open_cuda(path, precision="int8").describe().precision == "int8 as float"


class Driver:
    """libcuda with so many GPUs."""

    def __init__(self, gpus, result=0):
        self.gpus, self.result = gpus, result

    def cuInit(self, flags):
        return self.result

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.gpus
        return 0


@pytest.mark.parametrize(
    ("driver", "missing", "said"),
    [
        (None, None, "no NVIDIA driver"),
        (Driver(1), "libcublasLt.so.13", "does not find libcublasLt.so.13"),
        (Driver(0, result=100), None, "driver does not start"),
        (Driver(2), None, "there are 2 GPUs"),
        (Driver(8), None, "could not start CUDA"),
    ],
)
def test_cuda_that_does_not_start_says_why(graph, build, monkeypatch, capfd, driver, missing, said):
    def load(name, mode=0):
        if name == "libcuda.so.1":
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver
        if missing and name.endswith("_cuda.so"):
            raise OSError(f"{missing}: cannot open shared object file: No such file or directory")
        return None

    monkeypatch.setattr(ort_cuda.ctypes, "CDLL", load)
    monkeypatch.setattr(ort_cuda.Path, "is_file", lambda self: True)
    build(starts=False)
    with pytest.raises(DeviceError, match=said) as caught:
        open_cuda(graph, "cuda:3")
    assert caught.value.where == "cuda:3"
    assert capfd.readouterr() == ("", "")


def test_the_installed_package_offers_what_is_called():
    """The GPU build has the same Python API; its extra calls are in `tests/gpu`."""
    import onnxruntime

    value = inspect.signature(onnxruntime.OrtValue.ortvalue_from_shape_and_type).parameters
    assert list(value)[:4] == ["shape", "element_type", "device_type", "device_id"]
    assert "memory_info" in value
    run = inspect.signature(onnxruntime.InferenceSession.run_with_iobinding).parameters
    assert list(run) == ["self", "iobinding", "run_options"]
    for name in ("bind_ortvalue_input", "bind_ortvalue_output", "synchronize_inputs"):
        assert callable(getattr(onnxruntime.IOBinding, name))
    assert callable(onnxruntime.preload_dlls)
    assert hasattr(onnxruntime.OrtEpDevice, "memory_info")
    assert hasattr(onnxruntime.OrtDeviceMemoryType, "HOST_ACCESSIBLE")
    assert hasattr(onnxruntime.RunOptions, "add_run_config_entry")
