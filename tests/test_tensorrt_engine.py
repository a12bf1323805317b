"""The TensorRT engine on stand-ins for TensorRT and CUDA that do nothing until waited for."""

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import SIDE, FakeCuda, make_trt
from tiny_bundle import brightness, make_tiny_bundle

from memcli.engines import cuda as cuda_module
from memcli.engines import plans, tensorrt_flavour
from memcli.engines.cuda import Cuda, DeviceArray, driver_version
from memcli.engines.loading import import_runtime
from memcli.engines.select import open_engine
from memcli.engines.tensorrt import open_tensorrt
from memcli.engines.tensorrt_plan import build_plan
from memcli.engines.tensorrt_profile import BuildOptions, Profile, Range, profile_of
from memcli.errors import (
    DeviceError,
    EngineError,
    MissingDependencyError,
    OutputError,
    UsageError,
)
from memcli.spec import FramePrep

PREP = FramePrep(frames=3, resize_width=SIDE, resize_height=SIDE, crop_width=SIDE, crop_height=SIDE)
RANDOM = np.random.default_rng(3)


def clips(count: int, frames: int = 3) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, frames, SIDE, SIDE, 3), np.uint8)


class Stand:
    """A machine with a made-up GPU."""

    def __init__(self, monkeypatch, home: Path, *, rtx: bool = False):
        self.cuda = FakeCuda()
        self.trt = make_trt(self.cuda, rtx=rtx)
        self.flavour = "tensorrt-rtx" if rtx else "tensorrt"
        self.said: list[str] = []
        monkeypatch.setattr(cuda_module, "_import_runtime", lambda: self.cuda)
        monkeypatch.setattr(tensorrt_flavour, "import_runtime", lambda name: self.trt)
        self.bundle = make_tiny_bundle(
            home, prep=PREP, engines=("onnxruntime", "tensorrt", "tensorrt-rtx")
        )
        self.graph = self.bundle.graph_path(self.bundle.variants["fp32"])

    def open(self, **options):
        return open_tensorrt(
            self.graph,
            flavour=self.flavour,
            device=options.pop("device", "cuda"),
            precision="fp32",
            spec=self.bundle.spec,
            label="tiny fp32",
            report=self.said.append,
            **options,
        )


@pytest.fixture(params=[False, True], ids=["tensorrt", "rtx"])
def stand(request, monkeypatch, memcli_home):
    return Stand(monkeypatch, memcli_home, rtx=request.param)


def check(engine, frames):
    outputs = engine.run({"frames": frames})
    np.testing.assert_allclose(outputs["frame_scores"], brightness(frames), atol=1e-6)
    np.testing.assert_allclose(outputs["score"], brightness(frames).mean(axis=1), atol=1e-6)


def test_runs_whole_and_in_parts_and_frees_everything(stand):
    with stand.open() as engine:
        assert engine.inputs[0].name == "frames"
        assert engine.inputs[0].shape == ("batch", "time", SIDE, SIDE, 3)
        assert [one.name for one in engine.outputs] == ["score", "frame_scores"]
        most = engine.profile.axes["batch"].max
        for count in (1, most, most + 1, 3 * most + 2, 2):
            check(engine, clips(count))
        said = f"{stand.flavour} {stand.trt.__version__} on cuda:0, fp32"
        assert str(engine.describe()) == said
    assert not stand.cuda.blocks
    assert not stand.cuda.streams
    assert not stand.cuda.events
    with pytest.raises(EngineError, match="closed"):
        engine.run({"frames": clips(1)})
    assert len(stand.trt.built) == 1


def test_the_next_batch_is_copied_before_the_results_of_one_are_waited_for(stand):
    batches = [clips(2) for _ in range(5)]
    copies_at_result = []
    with stand.open() as engine:
        results = []
        for outputs in engine.stream({"frames": batch} for batch in batches):
            copies_at_result.append(stand.cuda.copies.count("in"))
            results.append(outputs["score"])
    assert copies_at_result == [2, 3, 4, 5, 5]
    for batch, score in zip(batches, results, strict=True):
        np.testing.assert_allclose(score, brightness(batch).mean(axis=1), atol=1e-6)


def test_a_stream_that_is_left_early_disturbs_nothing(stand):
    with stand.open() as engine:
        flow = engine.stream({"frames": clips(2)} for _ in range(9))
        next(flow)
        flow.close()
        check(engine, clips(4))


def test_frames_on_the_gpu_are_read_in_place(stand):
    frames = clips(70)
    with stand.open() as engine:
        block = ctypes.create_string_buffer(frames.tobytes(), frames.nbytes)
        array = DeviceArray(ctypes.addressof(block), frames.shape, frames.dtype, block)
        outputs = engine.run({"frames": array})
        np.testing.assert_allclose(outputs["frame_scores"], brightness(frames), atol=1e-6)
        assert "in" not in stand.cuda.copies


def test_more_frames_than_the_profile_has_build_a_wider_one_once(stand):
    with stand.open() as engine:
        check(engine, clips(2, frames=3))
        check(engine, clips(2, frames=7))
        check(engine, clips(2, frames=3))
        assert engine.profile.axes["time"].max == 7
    assert len(stand.trt.built) == 2
    assert any("shapes beyond the profile" in line for line in stand.said)
    stand.said.clear()
    with stand.open() as engine:  # the wider one is taken at once
        check(engine, clips(1, frames=7))
    assert len(stand.trt.built) == 2
    assert stand.said == []


@pytest.mark.parametrize("on_gpu", [False, True], ids=["host", "gpu"])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_fewer_clips_than_the_profile_has_are_filled_up(stand, on_gpu, count):
    """Also the last few of a batch that is run in parts; no result of what fills up is given."""
    profile = profile_of(stand.bundle.spec).with_ranges({"batch": (4, 4, 7)})
    build_plan(stand.graph, flavour=stand.flavour, profile=profile)
    frames = clips(count)
    fed = frames
    if on_gpu:
        block = ctypes.create_string_buffer(frames.tobytes(), frames.nbytes)
        fed = DeviceArray(ctypes.addressof(block), frames.shape, frames.dtype, block)
    with stand.open() as engine:
        outputs = engine.run({"frames": fed})
    np.testing.assert_allclose(outputs["frame_scores"], brightness(frames), atol=1e-6)
    np.testing.assert_allclose(outputs["score"], brightness(frames).mean(axis=1), atol=1e-6)
    assert len(stand.trt.built) == 1
    assert ("in" in stand.cuda.copies) != on_gpu


def test_an_engine_for_large_batches_only_is_verified_and_used(stand, monkeypatch):
    monkeypatch.setattr("memcli.engines.select.import_runtime", lambda name: stand.trt)
    monkeypatch.setattr("memcli.engines.candidates.installed_tensorrt", lambda name: "fake")
    monkeypatch.setattr("memcli.engines.candidates.import_runtime", lambda name: stand.trt)
    profile = profile_of(stand.bundle.spec).with_ranges({"batch": (8, 8, 8)})
    build_plan(stand.graph, flavour=stand.flavour, profile=profile)
    selection = open_engine(stand.bundle, engine=stand.flavour)
    with selection.engine as engine:
        assert selection.parity.passed
        assert engine.profile.axes["batch"] == Range(8, 8, 8)
        check(engine, clips(2))


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"frames": clips(1).astype(np.float32)},
        {"frames": clips(1)[:, :, :4]},
        {"frames": clips(1), "more": clips(1)},
        {"frames": clips(0)},
    ],
)
def test_what_the_graph_does_not_take_is_refused(stand, feeds):
    with stand.open() as engine, pytest.raises(EngineError, match="the graph takes"):
        engine.run(feeds)


def test_a_plan_of_another_version_is_built_again_and_why_is_said(stand):
    stand.open().close()
    stand.trt.__version__ = "10.4.0"
    stand.said.clear()
    stand.open().close()
    assert len(stand.trt.built) == 2
    assert "its version is 10.4.0 now" in stand.said[0]


def test_a_new_driver_is_a_new_plan_for_tensorrt_only(stand):
    stand.open().close()
    stand.cuda.driver = 13010
    stand.open().close()
    assert len(stand.trt.built) == (1 if stand.flavour == "tensorrt-rtx" else 2)


def test_a_cached_plan_that_does_not_load_is_built_again(stand):
    stand.open().close()
    refused = iter([False, True])
    stand.trt.loads = lambda plan: next(refused)
    stand.said.clear()
    with stand.open() as engine:
        check(engine, clips(2))
    assert "the cached one does not load: The engine plan file is not compatible" in stand.said[0]


def test_a_plan_that_never_loads_is_one_error(stand):
    stand.trt.loads = lambda plan: False
    with pytest.raises(EngineError, match="does not load the engine that it built"):
        stand.open()


def test_a_run_that_fails_says_so(stand):
    with stand.open() as engine:
        stand.trt.refuses_to_run = True
        with pytest.raises(EngineError, match="cannot run the engine"):
            engine.run({"frames": clips(1)})


def test_small_devices_get_small_builds(stand):
    stand.cuda.memory = 8 << 30
    with stand.open() as engine:
        assert engine.profile.axes["batch"].max == 10
    config = stand.trt.configs[-1]
    assert config.builder_optimization_level == 2
    assert config.max_aux_streams == 0
    assert config.limits["WORKSPACE"] == 512 << 20
    assert config.cleared == ["TF32"]


def test_options_reach_the_builder(stand):
    stand.open(options=BuildOptions(workspace_bytes=1 << 20, level=5, layer_names=True)).close()
    config = stand.trt.configs[-1]
    assert (config.builder_optimization_level, config.profiling_verbosity) == (5, 2)
    assert config.limits == {"WORKSPACE": 1 << 20}
    assert config.target == ("SM89" if stand.flavour == "tensorrt-rtx" else None)


def test_timings_are_kept_for_the_next_build(monkeypatch, memcli_home):
    stand = Stand(monkeypatch, memcli_home)
    stand.open().close()
    plans.clear()
    stand.open().close()
    assert stand.trt.timing_caches == [b"", b"t"]
    (path,) = (memcli_home / "cache" / "tensorrt-timing").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    plans.clear()
    stand.open().close()
    assert stand.trt.timing_caches[-1] == b""  # damaged: as if there were none


def test_what_was_compiled_at_run_time_is_kept_for_the_next_start(monkeypatch, memcli_home):
    stand = Stand(monkeypatch, memcli_home, rtx=True)
    config = stand.open()._loaded.runtime_cache
    assert config.content == b""
    stand.open().close()
    again = stand.open()
    assert again._loaded.runtime_cache.content == b"+kernels"
    again.close()


def test_an_interrupt_ends_the_build(stand, monkeypatch):
    def interrupted(line: str) -> None:
        if "step" in line:
            raise KeyboardInterrupt

    monkeypatch.setattr("memcli.engines.tensorrt_build._REPORT_EVERY_S", 0.0)
    stand.said = type("Said", (), {"append": staticmethod(interrupted)})
    with pytest.raises(KeyboardInterrupt):
        stand.open()
    assert plans.stored() == []


def test_progress_is_told(stand, monkeypatch):
    monkeypatch.setattr("memcli.engines.tensorrt_build._REPORT_EVERY_S", 0.0)
    stand.open().close()
    assert any("building (Building, step 2 of 2)" in line for line in stand.said)
    assert stand.said[0].endswith("none was built yet")


def test_auto_takes_it_only_after_it_passed_here(stand, monkeypatch):
    found = {"tensorrt": None, "tensorrt-rtx": None, stand.flavour: "fake"}
    monkeypatch.setattr("memcli.engines.candidates.installed_tensorrt", found.get)
    runtime = lambda name: stand.trt if "tensorrt" in name else import_runtime(name)  # noqa: E731
    monkeypatch.setattr("memcli.engines.candidates.import_runtime", runtime)
    monkeypatch.setattr("memcli.engines.select.import_runtime", runtime)
    speeds = {"onnxruntime": 2.0, stand.flavour: 50.0}
    monkeypatch.setattr(
        "memcli.engines.verify.measure_speed",
        lambda engine, feeds: speeds[engine.describe().engine],
    )
    with open_engine(stand.bundle).engine as engine:
        assert engine.describe().engine == "onnxruntime"
    assert stand.trt.built == []
    asked = open_engine(stand.bundle, engine=stand.flavour, report=stand.said.append)
    assert asked.parity.passed
    asked.engine.close()
    assert "as asked" in asked.reason
    selection = open_engine(stand.bundle)
    assert selection.engine.describe().engine == stand.flavour
    assert selection.reason.startswith(f"{stand.flavour} on cuda at fp32: fastest of 2 verified")
    selection.engine.close()
    with open_engine(stand.bundle, device="cuda").engine as engine:
        assert engine.describe().engine == stand.flavour
    plans.clear()  # what passed is gone: building it again is not what `auto` does
    with open_engine(stand.bundle).engine as engine:
        assert engine.describe().engine == "onnxruntime"
    assert len(stand.trt.built) == 1
    record = json.loads((Path(plans.plans_dir()).parents[1] / "verified.json").read_text())
    assert any("Fake GPU" in key for key in record["records"])


def test_the_cpu_is_refused(stand):
    with pytest.raises(DeviceError, match="runs on NVIDIA GPUs, not on 'cpu'"):
        open_engine(stand.bundle, engine=stand.flavour, device="cpu")


def test_no_gpu_and_no_such_gpu(stand):
    with pytest.raises(DeviceError, match="there are 1 GPUs here"):
        stand.open(device="cuda:1")
    stand.cuda.devices = 0
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU can be used here: driver too old"):
        open_engine(stand.bundle, engine=stand.flavour)


def test_out_of_memory_names_the_way_out(stand):
    stand.cuda.memory = 1000
    with stand.open() as engine, pytest.raises(EngineError, match="out of memory") as caught:
        engine.run({"frames": clips(8)})
    assert "--batch-size" in str(caught.value)


def test_tensorrt_that_is_too_old(monkeypatch, memcli_home):
    stand = Stand(monkeypatch, memcli_home)
    stand.trt.__version__ = "10.2.0.19"
    with pytest.raises(EngineError, match="too old"):
        stand.open()


@pytest.fixture
def home_that_refuses(memcli_home):
    (memcli_home / "cache").mkdir(parents=True)
    (memcli_home / "cache" / "engines").write_text("")


def test_an_engine_that_cannot_be_kept_is_refused_before_it_is_built(stand, home_that_refuses):
    with pytest.raises(OutputError, match=r"the engine cannot be kept: \w+") as caught:
        build_plan(stand.graph, flavour=stand.flavour, profile=profile_of(stand.bundle.spec))
    assert "MEMCLI_HOME" in (caught.value.next_step or "")
    assert stand.trt.built == []


def test_a_disk_that_is_full_after_the_build_is_the_error(stand, monkeypatch):
    def full(plan, content):
        raise OutputError("the engine cannot be kept: No space left on device")

    monkeypatch.setattr(plans, "store", full)
    with pytest.raises(OutputError, match="No space left on device"):
        build_plan(
            stand.graph,
            flavour=stand.flavour,
            profile=profile_of(stand.bundle.spec),
            report=stand.said.append,
        )
    assert len(stand.trt.built) == 1
    assert not any("again" in line for line in stand.said), "nobody will build it again"


def test_an_engine_that_cannot_be_kept_is_written_where_it_was_asked_for(
    stand, home_that_refuses, tmp_path, monkeypatch
):
    profile = profile_of(stand.bundle.spec)
    options = {"flavour": stand.flavour, "profile": profile, "report": stand.said.append}
    plan = build_plan(stand.graph, output=tmp_path / "out", **options)
    assert plan.folder.parent == tmp_path / "out"
    assert any("alone: " in line and "cannot be kept: " in line for line in stand.said)
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path / "other"))
    (added,) = plans.add(tmp_path / "out")
    assert plans.find(added.key).plan == added
    kept = build_plan(stand.graph, output=tmp_path / "again", **options)
    assert (kept, len(stand.trt.built)) == (added, 1)
    assert len(list((tmp_path / "again").iterdir())) == 1


def test_scoring_goes_on_with_an_engine_that_cannot_be_kept(stand, home_that_refuses):
    with stand.open() as engine:
        check(engine, clips(2))
    (line,) = [one for one in stand.said if "cannot be kept" in one]
    assert line.endswith("the next run builds it again")


def test_tensorrt_builds_for_no_other_gpu(monkeypatch, memcli_home):
    stand = Stand(monkeypatch, memcli_home)
    profile = profile_of(stand.bundle.spec)
    with pytest.raises(UsageError, match="no other"):
        build_plan(stand.graph, flavour="tensorrt", profile=profile, target_capability="8.9")


def test_cuda_python_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("builtins.__import__", _without_cuda(__import__))
    with pytest.raises(MissingDependencyError, match="cuda-python") as caught:
        Cuda()
    assert "pip install 'cuda-python>=12.6'" in str(caught.value)
    assert "memcli[gpu]" not in str(caught.value), "it would replace an onnxruntime that is here"


def _without_cuda(real):
    def imported(name, *args, **options):
        if name.split(".")[0] == "cuda":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **options)

    return imported


def test_the_driver_is_read_where_linux_and_jetson_write_it(tmp_path):
    assert driver_version(tmp_path) is None
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.0, GCID: 3\n")
    assert driver_version(tmp_path) == "R36.4.0"
    proc = tmp_path / "proc/driver/nvidia"
    proc.mkdir(parents=True)
    (proc / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu")
    assert driver_version(tmp_path) == "570.86.15"


def test_ranges_must_be_in_order_and_known():
    profile = Profile({"batch": Range(1, 4, 8)})
    assert profile.with_ranges({"batch": (2, 2, 2)}).axes["batch"] == Range(2, 2, 2)
    with pytest.raises(UsageError, match="no axis 'time'"):
        profile.with_ranges({"time": (1, 2, 3)})
    with pytest.raises(UsageError, match="in order"):
        profile.with_ranges({"batch": (4, 2, 8)})
    with pytest.raises(EngineError, match="axis 1 of the input frames"):
        profile.shapes("frames", (-1, -1, 8, 8, 3))
