"""Plans are verified one by one, and built only where they will be used."""

import dataclasses

import numpy as np
import pytest
from test_plans import KEY, keep
from test_tensorrt_engine import PREP, Stand, check, clips
from tiny_bundle import make_tiny_bundle

from memcli import app
from memcli.engines import candidates, plans, records
from memcli.engines.bundle import read_bundle, write_manifest
from memcli.engines.loading import import_runtime
from memcli.engines.records import RecordKey
from memcli.engines.select import list_candidates, open_engine
from memcli.engines.tensorrt_plan import build_for_bundle, build_plan
from memcli.engines.tensorrt_profile import profile_of
from memcli.engines.verify import ParityReport, Reference
from memcli.errors import EngineError, ExitCode, ParityError
from memcli.export.build import make_float_variant


@pytest.fixture(params=[False, True], ids=["tensorrt", "rtx"])
def stand(request, monkeypatch, memcli_home):
    made = Stand(monkeypatch, memcli_home, rtx=request.param)
    found = {"tensorrt": None, "tensorrt-rtx": None, made.flavour: "fake"}
    monkeypatch.setattr(candidates, "installed_tensorrt", found.get)
    runtime = lambda name: made.trt if "tensorrt" in name else import_runtime(name)  # noqa: E731
    monkeypatch.setattr(candidates, "import_runtime", runtime)
    monkeypatch.setattr("memcli.engines.select.import_runtime", runtime)
    monkeypatch.setattr("memcli.engines.verify.measure_speed", lambda engine, feeds: 50.0)
    return made


def ask(stand):
    stand.said.clear()
    return open_engine(stand.bundle, engine=stand.flavour, report=stand.said.append)


def verifications(stand):
    return sum("verifying" in line for line in stand.said)


def wide(stand, frames=9):
    usual = profile_of(stand.bundle.spec)
    return usual.with_ranges({"time": (1, 3, frames)})


def test_each_plan_is_verified_by_itself(stand):
    ask(stand).engine.close()
    assert verifications(stand) == 1
    ask(stand).engine.close()
    assert verifications(stand) == 0
    build_plan(stand.graph, flavour=stand.flavour, profile=wide(stand))  # newer, so it is taken
    with ask(stand).engine as engine:
        assert engine.profile.axes["time"].max == 9
    assert verifications(stand) == 1
    assert len(stand.trt.built) == 2


def test_a_newer_plan_that_computes_wrongly_is_never_given(stand):
    ask(stand).engine.close()
    stand.trt.computes_wrongly = lambda profile: profile["time"][2] == 9
    build_plan(stand.graph, flavour=stand.flavour, profile=wide(stand))
    with pytest.raises(ParityError, match="does not reproduce"):
        ask(stand)
    assert not stand.cuda.blocks
    with open_engine(stand.bundle).engine as engine:  # auto
        assert engine.describe().engine == "onnxruntime"


def test_a_wider_plan_is_verified_before_it_gives_anything(stand):
    with ask(stand).engine as engine:
        check(engine, clips(2, frames=7))
        assert verifications(stand) == 2
        check(engine, clips(2, frames=7))
        assert verifications(stand) == 2
    with ask(stand).engine as engine:
        check(engine, clips(2, frames=7))
    assert verifications(stand) == 0


def test_a_wider_plan_that_computes_wrongly_gives_nothing(stand):
    stand.trt.computes_wrongly = lambda profile: profile["time"][2] > 3
    with ask(stand).engine as engine:
        results = engine.stream({"frames": clips(2, frames=count)} for count in (3, 3, 7, 3))
        given = [next(results)]
        with pytest.raises(ParityError, match="does not reproduce"):
            given.extend(results)
        assert len(given) == 1
        with pytest.raises(EngineError, match="closed"):
            engine.run({"frames": clips(1)})
    assert not stand.cuda.blocks
    assert not stand.cuda.streams


def test_a_batch_after_the_wider_plan_is_in_order(stand):
    batches = [clips(2, frames=count) for count in (3, 7, 3, 8)]
    with ask(stand).engine as engine:
        results = list(engine.stream({"frames": batch} for batch in batches))
    for batch, outputs in zip(batches, results, strict=True):
        expected = batch.mean(axis=(1, 2, 3, 4)) / 255
        np.testing.assert_allclose(outputs["score"], expected, atol=1e-6)


def report():
    numbers = dict.fromkeys((field.name for field in dataclasses.fields(ParityReport)), 0.0)
    return ParityReport(**{**numbers, "passed": True, "of": "clips"})


def test_records_of_plans_are_found_and_forgotten(memcli_home):
    variant = make_tiny_bundle(memcli_home).variants["fp32"]
    key = RecordKey(variant, "tensorrt", "10.3.0", "cpu", None)
    made = report()
    for plan in (None, "a" * 64, "b" * 64):
        records.store(dataclasses.replace(key, plan=plan), made)
    assert records.load_plans(key) == {"a" * 64: made, "b" * 64: made}
    assert records.forget(["a" * 64])
    assert records.load_plans(key) == {"b" * 64: made}
    assert records.load(key) == made
    assert records.forget([])


def test_what_is_added_is_verified_at_its_first_use(memcli_home, tmp_path):
    variant = make_tiny_bundle(memcli_home).variants["fp32"]
    key = RecordKey(variant, "tensorrt", "10.3.0", "cpu", None)
    folder = plans.export_plan(keep(content=b"from elsewhere"), tmp_path).folder
    added = plans.find(KEY).plan
    here = keep(content=b"made here")
    for plan in (here, added):
        records.store(dataclasses.replace(key, plan=plan.sha256), report())
    assert app.run(["engines", "add", str(folder)]) == ExitCode.OK
    assert records.load_plans(key) == {}


@pytest.mark.parametrize("memory", [8 << 30, 24 << 30])
def test_what_export_builds_is_what_the_first_use_takes(stand, memory):
    stand.cuda.memory = memory
    plan = build_for_bundle(stand.bundle, "fp32", flavour=stand.flavour)
    small = memory == 8 << 30
    assert plan.key.profile["batch"][2] == (10 if small else 64)
    assert plan.key.options["low_memory"] is small
    with ask(stand).engine as engine:
        assert engine.plan_sha256 == plan.sha256
    plans.clear()
    stand.open().close()  # and without it, the same is built
    assert plans.stored()[0].key == plan.key


def without(stand, precision, engines):
    """The bundle with one variant, made for `engines`."""
    variant = dataclasses.replace(
        stand.bundle.variants["fp32"], precision=precision, engines=engines
    )
    write_manifest(dataclasses.replace(stand.bundle, variants={precision: variant}))
    return read_bundle(stand.bundle.root)


def test_what_would_never_run_is_not_built(stand):
    old = without(stand, "fp32", ("openvino", "onnxruntime"))
    with pytest.raises(EngineError, match="made for openvino, onnxruntime") as caught:
        build_for_bundle(old, "fp32", flavour=stand.flavour)
    assert "--fp16" in str(caught.value)
    unsigned = without(stand, "int8", ("openvino",))
    with pytest.raises(EngineError, match="int8 with signed values only"):
        build_for_bundle(unsigned, "int8", flavour=stand.flavour)
    assert stand.trt.built == []


def test_fp32_is_for_tensorrt_too_when_asked_for(stand):
    root = stand.bundle.root
    old = stand.bundle.variants["fp32"]
    reference = Reference.from_dict(old.reference)
    made = make_float_variant(root, stand.bundle.spec, "fp32", reference, {})
    assert set(made.engines) == {"openvino", "onnxruntime", "tensorrt", "tensorrt-rtx"}
    assert make_float_variant(root, stand.bundle.spec, "bf16", reference, {}).engines == (
        "openvino",
    )
    both = make_tiny_bundle(
        root.parents[1],
        "both",
        prep=PREP,
        precisions=("fp32", "fp16"),
        engines=made.engines,
    )
    for engine in (stand.flavour, "auto"):
        found = list_candidates(both, engine=engine, device="cuda", precision="auto")
        chosen = [one.variant.precision for one in found if one.engine == stand.flavour]
        assert chosen == ["fp16"]
    (asked,) = list_candidates(both, engine=stand.flavour, device="auto", precision="fp32")
    open_engine(both, engine=stand.flavour, precision="fp32").engine.close()
    found = list_candidates(both, engine=stand.flavour, device="auto", precision="auto")
    assert asked in found  # verified by now: no minutes
    assert len(found) == 2
    auto = list_candidates(both, engine="auto", device="auto", precision="auto")
    assert [one.variant.precision for one in auto if one.engine == stand.flavour] == ["fp32"]
