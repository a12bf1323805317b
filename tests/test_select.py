"""Choosing an engine: what was asked for, or the fastest that passed, and never anything else."""

import dataclasses
import json
import multiprocessing

import numpy as np
import pytest
from tiny_bundle import make_text_bundle, make_tiny_bundle

from memcli.engines import candidates, openvino, records, select
from memcli.engines.bundle import read_bundle, write_manifest
from memcli.engines.records import RecordKey
from memcli.engines.select import open_engine
from memcli.engines.verify import ParityReport
from memcli.errors import (
    DeviceError,
    EngineError,
    MissingDependencyError,
    ModelError,
    ParityError,
    UsageError,
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def bundle(home):
    return make_tiny_bundle(home)


def make_report(speed: float, *, passed: bool = True) -> ParityReport:
    return ParityReport(
        clips=3,
        frames=12,
        max_abs=0.0 if passed else 0.3,
        mean_abs=0.0,
        frame_max_abs=0.0,
        frame_mean_abs=0.0,
        srcc=None,
        worst_clip=0,
        passed=passed,
        engine="made up",
        precision="fp32",
        clips_per_s=speed / 4,
        frames_per_s=speed,
    )


def remember(bundle, engine, speed, *, passed=True, precision="fp32", threads=None):
    version = select.import_runtime(engine).__version__
    key = RecordKey(bundle.variants[precision], engine, version, "cpu", threads)
    assert records.store(key, make_report(speed, passed=passed))


def test_auto_is_the_fastest_that_passed(bundle):
    remember(bundle, "onnxruntime", 6.04)
    remember(bundle, "openvino", 8.12)
    selection = open_engine(bundle)
    assert selection.engine.describe().engine == "openvino"
    assert selection.reason == (
        "openvino at fp32: fastest of 2 verified (8.1 against 6.0 frames/s)"
    )
    remember(bundle, "onnxruntime", 9)
    assert open_engine(bundle).engine.describe().engine == "onnxruntime"


def test_a_failed_runtime_is_never_used_and_named(bundle):
    remember(bundle, "onnxruntime", 6.0)
    remember(bundle, "openvino", 800.0, passed=False)
    selection = open_engine(bundle)
    assert selection.engine.describe().engine == "onnxruntime"
    assert "not openvino at fp32" in selection.reason
    assert "0.3" in selection.reason
    with pytest.raises(ParityError, match="does not reproduce"):
        open_engine(bundle, engine="openvino")


def test_the_first_use_verifies_and_later_ones_do_not(bundle, monkeypatch):
    said = []
    first = open_engine(bundle, report=said.append)
    assert first.parity.passed
    assert sum("verifying" in line for line in said) == 2
    monkeypatch.setattr(select, "verify", None)
    said.clear()
    again = open_engine(bundle, report=said.append)
    assert said == []
    assert again.parity == first.parity
    frames = np.zeros((1, 2, 24, 24, 3), np.uint8)
    assert again.engine.run({"frames": frames})["score"] == pytest.approx(0)


@pytest.mark.parametrize("change", ["threads", "version", "reference", "file"])
def test_records_hold_for_exactly_what_was_verified(bundle, change, monkeypatch):
    variant = bundle.variants["fp32"]
    key = RecordKey(variant, "openvino", "1.0", "cpu", None)
    records.store(key, make_report(1))
    assert records.load(key) == make_report(1)
    other = {
        "threads": {"threads": 7},
        "version": {"engine_version": "1.1"},
        "reference": {
            "variant": dataclasses.replace(variant, reference={**variant.reference, "seed": 8})
        },
        "file": {"variant": dataclasses.replace(variant, files={variant.graph: "0"})},
    }[change]
    assert records.load(dataclasses.replace(key, **other)) is None
    monkeypatch.setattr(records, "cpu_features", lambda: ("avx512_bf16",))
    assert records.load(key) is None


@pytest.mark.parametrize(
    "content", ["", "garbage", "[]", '{"schema": 9}', '{"schema": 2, "records": []}', "[" * 99999]
)
def test_damaged_records_are_a_cache_miss(bundle, home, content):
    (home / "verified.json").write_text(content)
    assert open_engine(bundle, engine="onnxruntime").parity.passed
    assert len(json.loads((home / "verified.json").read_text())["records"]) == 1


def test_damaged_entries_are_a_cache_miss(bundle, home):
    key = RecordKey(bundle.variants["fp32"], "openvino", "1.0", "cpu", None)
    for entry in (
        None,
        {},
        {**make_report(1).to_dict(), "passed": "yes"},
        {**make_report(1).to_dict(), "frames_per_s": "fast"},
        {**make_report(1).to_dict(), "clips_per_s": None},
        {k: v for k, v in make_report(1).to_dict().items() if k != "clips_per_s"},  # 0.1.0
        {**make_report(1).to_dict(), "more": 1},
    ):
        content = {"schema": 2, "records": {key.text(): entry}}
        (home / "verified.json").write_text(json.dumps(content))
        assert records.load(key) is None


def test_an_unwritable_home_only_costs_time(bundle, home):
    (home / "verified.json").mkdir()
    assert open_engine(bundle, engine="openvino").parity.passed


def _store_one(bundle, index):
    records.store(RecordKey(bundle.variants["fp32"], "openvino", str(index), "cpu", None), REPORT)


REPORT = make_report(1)


def test_concurrent_writers_lose_nothing(bundle):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_store_one, args=(bundle, i)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    for i in range(8):
        key = RecordKey(bundle.variants["fp32"], "openvino", str(i), "cpu", None)
        assert records.load(key) == REPORT


def test_clear_forgets(bundle):
    remember(bundle, "openvino", 1)
    records.clear()
    records.clear()
    key = RecordKey(bundle.variants["fp32"], "openvino", "1", "cpu", None)
    assert records.load(key) is None


def test_explicit_engine_and_threads(bundle):
    selection = open_engine(bundle, engine="onnxruntime", precision="fp32", device="cpu", threads=1)
    assert selection.engine.describe().engine == "onnxruntime"
    assert selection.engine.describe().threads == 1
    assert selection.reason.startswith("onnxruntime at fp32: as asked, verified (")


def test_a_bundle_that_fails_everywhere(home):
    bundle = make_tiny_bundle(home, reference_offset=0.1)
    with pytest.raises(ParityError) as caught:
        open_engine(bundle)
    assert "openvino at fp32" in str(caught.value)
    assert "onnxruntime at fp32" in str(caught.value)


def test_a_damaged_file_is_found_with_records_too(bundle):
    open_engine(bundle)
    path = bundle.graph_path(bundle.variants["fp32"])
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        open_engine(bundle)
    path.unlink()
    with pytest.raises(ModelError, match="missing"):
        open_engine(bundle, engine="openvino")


def test_precision_that_is_not_installed(bundle):
    with pytest.raises(ModelError) as caught:
        open_engine(bundle, precision="int8")
    assert caught.value.next_step == "Make it: memcli export tiny --int8 --calibration VIDEOS"
    with pytest.raises(ModelError) as caught:
        open_engine(bundle, precision="fp16", device="cuda")
    assert caught.value.next_step == "Make it: memcli export tiny --fp16"


def test_a_precision_of_a_model_that_reads_no_frames_needs_no_videos(home):
    with pytest.raises(ModelError) as caught:
        open_engine(make_text_bundle(home), precision="int8")
    assert caught.value.next_step == "Make it: memcli export tiny-text --int8"


def test_bf16_without_the_instructions_is_said(home, monkeypatch):
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: frozenset({"FP32"}))
    bundle = make_tiny_bundle(home, precisions=("fp32", "bf16"))
    with pytest.raises(EngineError, match="no native bf16"):
        open_engine(bundle, precision="bf16", engine="openvino")
    with pytest.raises(EngineError, match="no native bf16"):
        open_engine(bundle, precision="bf16")
    selection = open_engine(bundle)  # precision auto: fp32, and the reason says what was not
    assert selection.variant.precision == "fp32"
    assert "not openvino at bf16" in selection.reason


def test_a_precision_this_cpu_cannot_have_is_not_advised(bundle, monkeypatch):
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: frozenset({"FP32"}))
    with pytest.raises(EngineError, match="no native bf16"):
        open_engine(bundle, precision="bf16")
    with pytest.raises(EngineError, match="fp16 is for GPUs"):
        open_engine(bundle, precision="fp16", device="cpu")
    with pytest.raises(ModelError, match="not at fp16"):
        open_engine(bundle, precision="fp16", device="cuda")


def test_engine_outside_the_variant(bundle):
    variant = dataclasses.replace(bundle.variants["fp32"], engines=("openvino",))
    write_manifest(dataclasses.replace(bundle, variants={"fp32": variant}))
    with pytest.raises(EngineError, match="cannot run with onnxruntime on auto") as caught:
        open_engine(read_bundle(bundle.root), engine="onnxruntime")
    made_for = "It was made for fp32: openvino."
    assert caught.value.next_step == f"{made_for}\nUse --engine openvino"
    with pytest.raises(EngineError, match="at precision fp32") as caught:
        open_engine(read_bundle(bundle.root), precision="fp32", device="cuda")
    assert caught.value.next_step == f"{made_for}\nUse --device cpu or another --precision"


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_is_for_gpus(bundle, engine):
    with pytest.raises(DeviceError, match="runs on NVIDIA GPUs, not on 'cpu'"):
        open_engine(bundle, engine=engine, device="cpu")


def test_tensorrt_alone_is_a_runtime(bundle, monkeypatch):
    """Not "no runtime is installed": what is missing is said by the engine that was asked for."""
    monkeypatch.setattr(candidates, "installed_runtimes", lambda: ())
    monkeypatch.setattr(candidates, "installed_tensorrt", lambda name: "tensorrt")
    with pytest.raises(EngineError, match="cannot run with") as caught:
        open_engine(bundle)
    assert "pip install 'memcli[cpu]'" in caught.value.next_step


@pytest.mark.parametrize(
    "request_",
    [
        {"engine": "torch"},
        {"precision": "fp64"},
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"device": "cuda:"},
        {"device": "cpu:1"},
    ],
)
def test_requests_that_make_no_sense(bundle, request_):
    with pytest.raises(UsageError):
        open_engine(bundle, **request_)


def test_cuda_without_cuda_is_an_error(bundle):
    if candidates._has_cuda():
        pytest.skip("this onnxruntime has CUDA")
    said: list[str] = []
    with pytest.raises(DeviceError, match="CUDA"):
        open_engine(bundle, device="cuda", report=said.append)
    with pytest.raises(DeviceError, match="openvino"):
        open_engine(bundle, device="cuda:1", engine="openvino", report=said.append)
    assert said == []  # no verification is announced of what cannot run


def test_no_runtime_at_all_names_both_extras(bundle, monkeypatch):
    monkeypatch.setattr(candidates, "installed_runtimes", lambda: ())
    monkeypatch.setattr(candidates, "installed_tensorrt", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        open_engine(bundle)
    assert "memcli[cpu]" in str(caught.value)
    assert "memcli[gpu]" in str(caught.value)


def test_an_empty_bundle(bundle):
    with pytest.raises(ModelError, match="no graph"):
        open_engine(dataclasses.replace(bundle, variants={}))


def test_losers_and_failures_are_closed(bundle, monkeypatch):
    closed = []

    class Spy:
        def __init__(self, name):
            self.name = name

        def close(self):
            closed.append(self.name)

    monkeypatch.setattr("memcli.engines.openvino.open_openvino", lambda *a, **k: Spy("openvino"))
    monkeypatch.setattr("memcli.engines.onnxruntime.open_onnxruntime", lambda *a, **k: Spy("ort"))
    speeds = {"openvino": 2.0, "ort": 1.0}
    monkeypatch.setattr(select, "verify", lambda engine, *_: make_report(speeds[engine.name]))
    assert open_engine(bundle).engine.name == "openvino"
    assert closed == ["ort"]
