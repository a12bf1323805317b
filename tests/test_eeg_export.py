"""EEG models to bundles: parity in every runtime, what the gate refuses, the command."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxscript", reason="torch's exporter needs it")
torch = pytest.importorskip("torch", reason="the original")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime", reason="the runtimes of the comparison")

from click.testing import CliRunner  # noqa: E402
from tiny_eeg_model import NAME, make_tiny_eeg_model, tiny_eeg_spec  # noqa: E402

from memcli.commands.export import command  # noqa: E402
from memcli.engines.bundle import (  # noqa: E402
    Bundle,
    hash_files,
    read_bundle,
    verify_files,
    write_manifest,
)
from memcli.engines.loading import installed_runtimes  # noqa: E402
from memcli.engines.select import open_engine  # noqa: E402
from memcli.engines.verify import CONTRIBUTIONS, EEG, SAMPLES, SCORE, epoch_feeds  # noqa: E402
from memcli.errors import ParityError  # noqa: E402
from memcli.export import trained  # noqa: E402
from memcli.export.provenance import license_text_of, training_report  # noqa: E402
from memcli.export.trained import export_model  # noqa: E402
from memcli.home import bundles_dir, home  # noqa: E402
from memcli.spec import ModelSpec  # noqa: E402
from memcli.train.run import read_run  # noqa: E402

RUNTIMES = [name for name in ("onnxruntime", "openvino") if name in installed_runtimes()]
QUIET: dict[str, Any] = {"tokenizer": None, "training": {}, "made_by": {}, "license_text": "test"}
VARIANTS = {
    "single": tiny_eeg_spec(),
    "ensemble": tiny_eeg_spec(members=3),
    "subjects": tiny_eeg_spec(subjects=("anna", "ben")),
}


def run_torch(model: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        found = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    return {SCORE: found.score.numpy(), CONTRIBUTIONS: found.contributions.numpy()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name of a variant -> its model and its bundle, which no test changes; each is made once."""
    made: dict[str, tuple[Any, Bundle]] = {}

    def get(name: str) -> tuple[Any, Bundle]:
        if name not in made:
            model = make_tiny_eeg_model(VARIANTS[name])
            target = tmp_path_factory.mktemp(name) / NAME
            made[name] = model, export_model(model, VARIANTS[name], target=target, **QUIET)
        return made[name]

    return get


@pytest.mark.parametrize("name", VARIANTS)
def test_the_installed_bundle_gives_what_the_model_gives(name: str, exported: Any) -> None:
    model, installed = exported(name)
    spec = VARIANTS[name]
    assert installed.spec == spec
    verify_files(installed, installed.variants["fp32"])
    measured = installed.training["parity"]
    assert set(measured) == set(RUNTIMES)
    for one in measured.values():
        assert one[SCORE]["values"] == 64
        assert one[CONTRIBUTIONS]["values"] == 64 * spec.eeg.windows
        assert max(one[SCORE]["max_abs"], one[CONTRIBUTIONS]["max_abs"]) <= 1e-5
    for runtime in RUNTIMES:
        with open_engine(installed, engine=runtime, precision="fp32").engine as engine:
            for epochs in (1, 2, 7, 33):
                feeds = epoch_feeds(spec.eeg, epochs, seed=99)
                found, wanted = engine.run(feeds), run_torch(model, feeds)
                assert found[CONTRIBUTIONS].shape == (epochs, spec.eeg.windows)
                for output in (SCORE, CONTRIBUTIONS):
                    np.testing.assert_allclose(found[output], wanted[output], atol=1e-5)
                assert epochs == 1 or np.ptp(wanted[SCORE]) > 1e-3, "scores depend on the input"


def test_the_graph_normalises_masks_and_explains(exported: Any) -> None:
    """Gain, offset and padding change nothing; the windows' shares make up the logit."""
    _, installed = exported("single")
    spec = installed.spec
    feeds = epoch_feeds(spec.eeg, 12, seed=3)
    there = np.arange(spec.eeg.samples) < feeds[SAMPLES][:, None, None]
    rng = np.random.default_rng(0)
    gains = rng.uniform(0.2, 5, (12, len(spec.eeg.channels), 1))
    offsets = rng.uniform(-500, 500, gains.shape)
    changed = np.where(there, feeds[EEG] * gains + offsets, 1e4).astype(np.float32)
    with open_engine(installed, engine=RUNTIMES[0], precision="fp32").engine as engine:
        before = engine.run(feeds)
        after = engine.run({**feeds, EEG: changed})
        # float32 microvolts around an offset of 500 are exact to 3e-5 of a deviation.
        np.testing.assert_allclose(after[SCORE], before[SCORE], atol=1e-4)
        logits = before[CONTRIBUTIONS].sum(axis=1)
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), before[SCORE], atol=1e-6)
        silent = {EEG: np.zeros_like(feeds[EEG]), SAMPLES: np.zeros_like(feeds[SAMPLES])}
        assert np.isfinite(engine.run(silent)[SCORE]).all()


def test_the_graph_is_clean_and_its_inputs_are_as_agreed(exported: Any) -> None:
    _, installed = exported("subjects")
    spec = installed.spec
    graph = installed.graph_path(installed.variants["fp32"])
    model = onnx.load(str(graph), load_external_data=False)
    kinds = {one.name: one.type.tensor_type for one in [*model.graph.input, *model.graph.output]}
    sizes = {
        name: [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
        for name, kind in kinds.items()
    }
    assert sizes["eeg"] == ["batch", *spec.eeg.epoch_shape()]
    assert sizes["samples"] == sizes["subject"] == sizes["score"] == ["batch"]
    assert sizes["contributions"][0] == "batch"
    types = {name: onnx.TensorProto.DataType.Name(kind.elem_type) for name, kind in kinds.items()}
    assert types == {
        **dict.fromkeys(("eeg", "score", "contributions"), "FLOAT"),
        **dict.fromkeys(("samples", "subject"), "INT64"),
    }
    text = graph.read_bytes().decode("utf-8", errors="replace")
    assert not [one for one in (str(Path.home()), "site-packages", ".py") if one in text]


def constant(model: Any, name: str) -> Any:
    return next(one for one in model.graph.initializer if one.name == name)


def swapped_channels(model: Any) -> None:
    weight = constant(model, "members.0.encoder.layers.0.weight")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[:, [2, 3]] = array[:, [3, 2]]
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))


def wrong_temperature(model: Any) -> None:
    temperature = constant(model, "members.0.temperature")
    array = onnx.numpy_helper.to_array(temperature) / 1.5
    temperature.CopyFrom(onnx.numpy_helper.from_array(array, temperature.name))


def no_z_score(model: Any) -> None:
    """The windows are cut from the microvolts as they are."""
    makers = {name: node for node in model.graph.node for name in node.output}
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    windows = makers[first.input[0]]
    assert windows.op_type == "Reshape"
    windows.input[0] = "eeg"


DEFECTS = [swapped_channels, wrong_temperature, no_z_score]


def spoil(source: Path, target: Path, defect: Any) -> None:
    """A graph and its weights with a defect, in the folder `target`."""
    model = onnx.load(str(source))
    defect(model)
    for name in ("model.onnx", "model.bin"):
        (target / name).unlink(missing_ok=True)
    path = str(target / "model.onnx")
    onnx.save(model, path, save_as_external_data=True, location="model.bin")


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_refused_at_export(
    defect: Any, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, installed = exported("single")
    source = installed.root / "fp32/model.onnx"
    monkeypatch.setattr(trained, "write_traced", lambda _m, _s, to: spoil(source, to, defect))
    with pytest.raises(ParityError, match="does not give the scores of the PyTorch model"):
        export_model(model, installed.spec, **QUIET)
    assert not (bundles_dir() / NAME).exists()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_refused_at_the_first_use(
    defect: Any, runtime: Any, exported: Any, tmp_path: Path
) -> None:
    """Also where every hash is right: what the reference is for."""
    _, installed = exported("single")
    root = tmp_path / NAME
    shutil.copytree(installed.root, root)
    spoil(root / "fp32/model.onnx", root / "fp32", defect)
    variant = installed.variants["fp32"]
    variant = replace(variant, files=hash_files(root, variant.files))
    write_manifest(Bundle(root, installed.spec, {"fp32": variant}))
    with pytest.raises(ParityError, match="does not reproduce the scores of eeg-cnn"):
        open_engine(read_bundle(root), engine=runtime, precision="fp32")


def make_run(spec: ModelSpec, model: Any, *, demonstration: bool) -> Path:
    """A finished run, as training leaves it."""
    from safetensors.torch import save_file

    from memcli.train.run import MODEL_FILE, Run

    folder = home() / "runs" / NAME / "one"
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / MODEL_FILE)
    run = Run(
        folder,
        spec,
        dataset={
            "name": "toy",
            "root": "/somewhere",
            "target": "recognised",
            "videos": 4,
            "demonstration": demonstration,
        },
        seed=5,
        encoders=(),
        dims={},
        status="complete",
        files={MODEL_FILE: hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()},
        created="2026-01-31T10:15:00+00:00",
    )
    (folder / "run.json").write_text(json.dumps(run.to_dict()))
    (folder.parent / "latest").write_text("one\n")
    return folder


def test_the_command_exports_a_run_and_says_what_to_do_next() -> None:
    spec = VARIANTS["single"]
    make_run(spec, make_tiny_eeg_model(spec), demonstration=True)
    result = CliRunner().invoke(command, [NAME])
    assert result.exit_code == 0, result
    assert f"Use it: memcli eeg RECORDINGS --model {NAME}" in result.output
    installed = read_bundle(bundles_dir() / NAME)
    assert installed.training["demonstration"] is True
    assert installed.training["seed"] == 5
    assert "/somewhere" not in (installed.root / "manifest.json").read_text()
    terms = (installed.root / "LICENSE.weights.txt").read_text()
    assert "mean nothing for people" in terms
    table = (installed.root / "PARITY.md").read_text()
    assert "| fp32 | gate | PyTorch model | synthetic epochs | onnxruntime | 64 |" in table
    assert "clips" not in table


def test_only_made_up_data_is_a_demonstration() -> None:
    spec = VARIANTS["single"]
    run = read_run(make_run(spec, make_tiny_eeg_model(spec), demonstration=False))
    assert "demonstration" not in training_report(run)
    assert "mean nothing" not in license_text_of(run)
