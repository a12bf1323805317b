"""EEG models in every precision: typed graphs, calibration, TensorRT-RTX engines."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxscript", reason="torch's exporter needs it")
torch = pytest.importorskip("torch", reason="the original")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime", reason="the gate's runtime")

from eeg_media import real  # noqa: E402
from tiny_eeg_model import NAME, make_tiny_eeg_model, tiny_eeg_spec  # noqa: E402

from memcli.engines.bundle import Bundle, read_bundle, write_manifest  # noqa: E402
from memcli.engines.loading import installed_runtimes  # noqa: E402
from memcli.engines.onnxruntime import open_onnxruntime  # noqa: E402
from memcli.engines.openvino import open_openvino  # noqa: E402
from memcli.engines.select import open_engine  # noqa: E402
from memcli.engines.tensorrt_profile import BuildOptions, profile_of  # noqa: E402
from memcli.engines.verify import CONTRIBUTIONS, SCORE, epoch_feeds  # noqa: E402
from memcli.errors import ParityError, UsageError  # noqa: E402
from memcli.export import calibration_epochs as module  # noqa: E402
from memcli.export import precision as precision_module  # noqa: E402
from memcli.export.calibration_epochs import (  # noqa: E402
    CalibrationEpochs,
    read_calibration_epochs,
    synthetic_calibration_epochs,
)
from memcli.export.compare import SeenGraph  # noqa: E402
from memcli.export.precision import make_variant  # noqa: E402
from memcli.export.retype import load_typed  # noqa: E402
from memcli.export.trained import export_model  # noqa: E402
from memcli.spec import Precision, Tolerance  # noqa: E402

SPEC = tiny_eeg_spec(members=2, subjects=("anna", "ben"))
OPENERS = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}
RUNTIMES = [name for name in OPENERS if name in installed_runtimes()]
MADE: tuple[Precision, ...] = ("fp16", "bf16", "int8", "fp8")
FLOAT, FLOAT16, BFLOAT16 = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_model(
        make_tiny_eeg_model(SPEC),
        SPEC,
        tokenizer=None,
        training={},
        made_by={},
        license_text="test",
        target=tmp_path_factory.mktemp("fp32") / NAME,
    )


@pytest.fixture(scope="module")
def whole(fp32: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle in every precision; no test changes it."""
    bundle = copied(fp32, tmp_path_factory.mktemp("whole"))
    for precision in MADE:
        make_variant(bundle, precision)
    return read_bundle(bundle.root)


def copied(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.root, folder / NAME)
    return read_bundle(folder / NAME)


@pytest.mark.parametrize("precision", MADE)
def test_every_precision_is_made_within_its_tolerance(precision: Precision, whole: Bundle) -> None:
    variant = whole.variants[precision]
    limit = SPEC.tolerances[precision]
    measured = [one for one in variant.parity if one["clips"] == 64]
    assert measured, "64 synthetic epochs"
    for one in measured:
        assert 0 < one["max_abs"] <= limit.max_abs
        assert one["mean_abs"] <= limit.mean_abs
        assert "synthetic epochs" in (one.get("inputs") or one.get("frames_of"))
    assert set(variant.engines) >= {"tensorrt", "tensorrt-rtx"}
    assert f"| {precision} | " in (whole.root / "PARITY.md").read_text()


@pytest.mark.parametrize(("precision", "kind"), [("fp16", FLOAT16), ("bf16", BFLOAT16)])
def test_z_scores_and_what_scores_stay_fp32(precision: Precision, kind: int, whole: Bundle) -> None:
    """Microvolts, sums over 400 samples and squares of them would not fit into half precision."""
    path = whole.graph_path(whole.variants[precision])
    model, types = load_typed(path)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    half = [node for node in convolutions if types[node.output[0]] == kind]
    assert len(half) == 4, "two of the three of each member; the last one scores"
    sums = ("ReduceSum", "Sqrt", "Div", "Sub", "Sigmoid", "ReduceMean")
    for node in model.graph.node:
        if node.op_type in sums:
            assert types[node.output[0]] == FLOAT, node.name
        if node.op_type == "Cast" and types[node.output[0]] == kind:
            assert types[node.input[0]] == FLOAT, "at the edges of the island only"
    for value in (*model.graph.input, *model.graph.output):
        assert types[value.name] in (FLOAT, onnx.TensorProto.INT64)


@pytest.mark.parametrize(
    ("precision", "runtime"),
    [
        *((one, name) for one in ("fp32", "int8") for name in RUNTIMES),
        ("fp16", "emulated"),
        ("bf16", "emulated"),
    ],
)
def test_runtimes_agree_with_the_original_in_each_precision(
    precision: Precision, runtime: Any, fp32: Bundle, whole: Bundle
) -> None:
    """Half precision is emulated in ONNX Runtime: CPUs have none, or OpenVINO alone uses it."""
    feeds = epoch_feeds(SPEC.eeg, 24, seed=77)
    with OPENERS["onnxruntime"](
        fp32.graph_path(fp32.variants["fp32"]), device="cpu", precision="fp32", threads=1
    ) as engine:
        wanted = engine.run(feeds)
    variant = whole.variants[precision]
    path = whole.graph_path(variant)
    if runtime == "emulated":
        found = SeenGraph(path).run(feeds)
    else:
        assert runtime in variant.engines
        options: dict[str, Any] = {"device": "cpu", "precision": precision, "threads": 1}
        with OPENERS[runtime](path, **options) as engine:
            found = engine.run(feeds)
    limit = SPEC.tolerances[precision]
    assert np.abs(found[SCORE] - wanted[SCORE]).max() <= limit.max_abs
    largest = max(1.0, float(np.abs(wanted[CONTRIBUTIONS]).max()))
    errors = np.abs(found[CONTRIBUTIONS] - wanted[CONTRIBUTIONS])
    assert errors.max() <= 4 * largest * limit.max_abs


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_is_verified_and_used(runtime: Any, whole: Bundle) -> None:
    selection = open_engine(whole, engine=runtime, precision="int8")
    with selection.engine:
        assert selection.parity.of == "epochs"
        assert selection.parity.unit == "epochs/s"
        assert "epochs/s" in selection.reason
    again = open_engine(whole, engine=runtime, precision="int8")
    with again.engine:
        assert again.parity == selection.parity, "from the records"


def test_a_precision_that_misses_changes_nothing(fp32: Bundle, tmp_path: Path) -> None:
    bundle = copied(fp32, tmp_path)
    strict = {**SPEC.tolerances, "fp16": Tolerance(1e-9, 1e-9)}
    write_manifest(replace(bundle, spec=replace(bundle.spec, tolerances=strict)))
    bundle = read_bundle(bundle.root)
    with pytest.raises(ParityError, match="the fp16 graph misses its tolerance"):
        make_variant(bundle, "fp16")
    assert set(read_bundle(bundle.root).variants) == {"fp32"}
    assert {path.name for path in bundle.root.iterdir()} >= {"fp32", "manifest.json"}
    assert not list(bundle.root.glob("fp16*"))


def test_int8_that_misses_with_synthetic_epochs_asks_for_recordings(
    fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misses(*_: Any, **__: Any) -> None:
        raise ParityError("the s8s8 graph misses its tolerance", next_step="Nothing was changed.")

    monkeypatch.setattr(precision_module, "make_int8", misses)
    with pytest.raises(ParityError, match="misses") as caught:
        make_variant(fp32, "int8")
    assert "Nothing was changed." in str(caught.value)
    assert "--int8 --calibration DIR" in str(caught.value)
    given = synthetic_calibration_epochs(SPEC.eeg)
    with pytest.raises(ParityError, match="misses") as caught:
        make_variant(fp32, "int8", epochs=given)
    assert "--calibration" not in str(caught.value)


def test_calibration_sets_have_no_epoch_in_both_halves() -> None:
    made = synthetic_calibration_epochs(SPEC.eeg)
    kept, held = (
        {one["eeg"].tobytes() for one in part} for part in (made.calibration, made.holdout)
    )
    assert len(kept) == len(held) == 64
    assert not kept & held
    with pytest.raises(UsageError, match="int8 needs at least 24 epochs to calibrate"):
        CalibrationEpochs(made.calibration[:23], made.holdout, "few").as_set()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Three continuous recordings without events, and one file of epochs; one of other channels."""
    mne = pytest.importorskip("mne")
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    info = mne.create_info(list(SPEC.eeg.channels), 100.0, "eeg")
    for name in "abc":
        data = rng.normal(0, 1e-5, (len(SPEC.eeg.channels), 60 * 100))
        mne.io.RawArray(data, info, verbose=False).save(folder / f"{name}_raw.fif", verbose=False)
    data = rng.normal(0, 1e-5, (20, len(SPEC.eeg.channels), 400))
    events = np.stack([np.arange(20), np.zeros(20), np.arange(20) % 2 + 1], axis=1).astype(int)
    epochs = mne.EpochsArray(data, info, events, verbose=False)
    epochs.save(folder / "d-epo.fif", verbose=False)
    other = mne.create_info(["A1x", "A2x"], 100.0, "eeg")
    raw = mne.io.RawArray(rng.normal(0, 1e-5, (2, 3000)), other, verbose=False)
    raw.save(folder / "e_raw.fif", verbose=False)
    return folder


def test_int8_of_own_recordings(recordings: Path, fp32: Bundle, tmp_path: Path) -> None:
    said: list[str] = []
    found = read_calibration_epochs(recordings, SPEC.eeg, report=said.append)
    assert found.source == "epochs of 4 recordings"
    assert (len(found.holdout), len(found.calibration)) == (30, 35), "two recordings each"
    assert all(one["eeg"].shape == (1, *SPEC.eeg.epoch_shape()) for one in found.calibration)
    assert [line for line in said if "not used" in line and "e_raw.fif" in line]
    bundle = copied(fp32, tmp_path)
    variant = make_variant(bundle, "int8", epochs=found)
    assert any(one["inputs"] == f"held-out {found.source}" for one in variant.parity)
    half = make_variant(bundle, "fp16", epochs=found)
    assert [one["inputs"] for one in half.parity] == ["synthetic epochs", found.source]
    with pytest.raises(UsageError, match="no recordings"):
        read_calibration_epochs(recordings, replace(SPEC.eeg, channels=("Q1", "Q2")))


def test_calibration_holds_few_epochs_and_says_what_it_left_out(
    recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the recordings are: here 65 epochs, of which 24 are used at most."""
    import memcli.eeg
    from memcli.errors import RecordingErrorCode

    found = memcli.eeg.find_recordings([recordings])
    denied = memcli.eeg.RecordingSource(
        "locked", error=(RecordingErrorCode.PERMISSION, "may not be searched")
    )
    monkeypatch.setattr(memcli.eeg, "find_recordings", lambda _: [denied, *found])
    monkeypatch.setattr(module, "_MAX_EPOCHS", 6)
    monkeypatch.setattr(module, "_MAX_HELD", 24)
    held = 0
    thin = module._thin

    def watched(epochs: list[list[Any]]) -> None:
        nonlocal held
        held = max(held, sum(map(len, epochs)))
        thin(epochs)

    monkeypatch.setattr(module, "_thin", watched)
    said: list[str] = []
    made = read_calibration_epochs(recordings, SPEC.eeg, report=said.append)
    assert (len(made.calibration), len(made.holdout)) == (6, 6)
    assert held <= 2 * 24
    assert "not used: locked: may not be searched" in said
    kept, halves = ({one["eeg"].tobytes() for one in p} for p in (made.calibration, made.holdout))
    assert not kept & halves


@pytest.mark.parametrize("count", [0, 1, 24, 25, 100, 1000])
def test_epochs_are_thinned_evenly(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_HELD", 24)
    kept = module._evenly(range(count))  # type: ignore[arg-type]
    steps = set(np.diff(np.array(kept)).tolist())
    assert len(kept) == count if count <= 24 else 12 <= len(kept) <= 24
    assert len(steps) <= 1
    assert not kept or kept[0] == 0


def test_real_recordings_calibrate() -> None:
    folder = real("eeglab")
    pytest.importorskip("mne")
    prep = replace(SPEC.eeg, channels=("Fz", "Cz", "Pz", "Oz"), duration_s=2.0)
    found = read_calibration_epochs(folder, prep)
    assert min(len(found.calibration), len(found.holdout)) >= 24
    deviations = [one["eeg"].std() for one in found.calibration]
    assert 1 < np.median(deviations) < 200, "microvolts"


@pytest.mark.parametrize("precision", ["fp32", *MADE])
def test_tensorrt_rtx_builds_it(precision: Precision, whole: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    from memcli.engines.tensorrt_build import build
    from memcli.engines.tensorrt_flavour import load_flavour

    flavour = load_flavour("tensorrt-rtx")
    graph = whole.graph_path(whole.variants[precision], "tensorrt-rtx")
    built = build(flavour, graph, profile_of(SPEC), BuildOptions(), capability="8.9")
    assert len(built.plan) > 100_000
