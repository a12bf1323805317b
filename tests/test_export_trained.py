"""Trained models to bundles: parity for every model of the registry, and what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxscript", reason="torch's exporter needs it")
torch = pytest.importorskip("torch", reason="the original")
pytest.importorskip("transformers", reason="the encoders")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime", reason="the runtimes of the comparison")

from tiny_models import CHECKPOINT_KINDS, TRAINED, TinyModel, make_tiny_model  # noqa: E402

from memcli.engines.bundle import Bundle, read_bundle, verify_files  # noqa: E402
from memcli.engines.reference import synthetic_captions, synthetic_frames  # noqa: E402
from memcli.engines.select import open_engine  # noqa: E402
from memcli.errors import ModelError, ParityError  # noqa: E402
from memcli.export import trained  # noqa: E402
from memcli.export.trained import export_model  # noqa: E402
from memcli.home import bundles_dir  # noqa: E402
from memcli.models import MODELS, get_model  # noqa: E402
from memcli.tokens import Tokeniser  # noqa: E402

ROOT = Path(__file__).parent.parent
QUIET = {"training": {}, "made_by": {}, "license_text": "test"}


def graph_of(name: str) -> tuple[object, ...]:
    """What decides a model's graph: recipes differ where encoders and head do not."""
    spec = get_model(name)
    kinds = CHECKPOINT_KINDS
    towers = [(one.tower, kinds[one.repository], one.pooling) for one in spec.encoders]
    return (*towers, spec.head.kind, *sorted(spec.head.options.items()), spec.frame_scores)


DISTINCT = tuple({graph_of(name): name for name in reversed(TRAINED)}.values())[::-1]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def export(tiny: TinyModel, **more: Any) -> Bundle:
    text = tiny.checkpoints.get("text")
    where = text.folder if text is not None else None
    given = {**QUIET, "tokenizer": tiny.tokenizer, "checkpoint": where, **more}
    return export_model(tiny.model, tiny.spec, **given)


def content(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def inputs(tiny: TinyModel, clips: int, frames: int, captions: int) -> dict[str, np.ndarray]:
    feeds = {}
    if tiny.spec.prep is not None:
        feeds["frames"] = synthetic_frames(tiny.spec.prep, clips, frames, seed=99)
    if tiny.spec.text is not None:
        assert tiny.tokenizer is not None
        tokens = Tokeniser(tiny.spec.text, tiny.tokenizer).encode(
            synthetic_captions(clips, captions, seed=99)
        )
        feeds |= {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    return feeds


def test_every_trained_model_is_covered() -> None:
    assert len(TRAINED) == 22
    others = set(MODELS) - set(TRAINED)
    assert others == {"resmem", "eeg-cnn"}, "see test_resmem_real.py and test_eeg_export.py"
    assert {graph_of(name) for name in TRAINED} == {graph_of(name) for name in DISTINCT}


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT)
def test_the_installed_bundle_gives_the_scores_of_the_model(name: str, checkpoints: Path) -> None:
    tiny = make_tiny_model(name, checkpoints)
    said: list[str] = []
    installed = export(tiny, report=said.append)
    assert installed.root == bundles_dir() / name
    variant = installed.variants["fp32"]
    verify_files(installed, variant)
    measured = installed.training["parity"]
    assert set(measured) == {"onnxruntime", "openvino"}
    assert all(one["score"]["values"] >= 64 for one in measured.values())
    assert all(one["score"]["max_abs"] <= 1e-5 for one in measured.values())
    for runtime in ("onnxruntime", "openvino"):
        with open_engine(installed, engine=runtime, precision="fp32").engine as engine:
            for shape in ((5, 1, 1), (2, 9, 4), (1, 16, 1), (7, 2, 3)):
                feeds = inputs(tiny, *shape)
                with torch.inference_mode():
                    scores = tiny.model(**{k: torch.from_numpy(v) for k, v in feeds.items()})
                found = engine.run(feeds)
                wanted = scores.score.numpy()
                assert found["score"].shape == (shape[0],)
                # fp32 rounding through a few layers; what the issue asks for is 1e-4.
                np.testing.assert_allclose(found["score"], wanted, atol=1e-5, rtol=0)
                assert shape[0] == 1 or np.ptp(wanted) > 1e-4, "the scores depend on the input"
                assert ("frame_scores" in found) == tiny.spec.frame_scores
                if tiny.spec.frame_scores:
                    expected = scores.frame_scores.numpy()
                    np.testing.assert_allclose(found["frame_scores"], expected, atol=1e-5, rtol=0)


def test_the_graph_is_clean_and_portable(checkpoints: Path) -> None:
    """No paths, traces or code of this machine; standard operators, float32, dynamic axes."""
    tiny = make_tiny_model("clip-text", checkpoints)
    assert str(checkpoints) in json.dumps(tiny.spec.to_dict()), "else nothing is tested"
    report = {"dataset": {"name": "toy", "split": f"{checkpoints}/split.csv"}}
    installed = export(tiny, training=report)
    here = (str(checkpoints), str(ROOT), str(Path.home()), "site-packages", ".py", "stack_trace")
    for path in installed.root.rglob("*"):
        if path.is_file() and path.name not in ("model.bin", "tokenizer.json"):
            text = path.read_bytes().decode("utf-8", errors="replace")
            assert not [one for one in here if len(one) > 2 and one in text], path
    assert installed.training["dataset"] == {"name": "toy", "split": "local folder split.csv"}
    assert installed.spec.encoders[0].repository == "local folder clip"
    graph = installed.graph_path(installed.variants["fp32"])
    model = onnx.load(str(graph), load_external_data=False)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    assert not model.functions
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"head.score.MatMul", "head.score.Add"} <= set(names)
    assert not [node for node in model.graph.node if node.metadata_props or node.doc_string]
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT in kinds
    assert not kinds & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, 11}
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert axes == {
        "input_ids": ["batch", "captions", "tokens"],
        "attention_mask": ["batch", "captions", "tokens"],
        "score": ["batch"],
    }
    inside = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert inside < graph.with_name("model.bin").stat().st_size, "weights are beside the graph"
    onnx.checker.check_model(str(graph), full_check=True)


@pytest.mark.parametrize("installed_before", [False, True])
def test_a_graph_that_differs_is_refused(
    installed_before: bool, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_tiny_model("clip-text", checkpoints)
    if installed_before:
        export(tiny)
    before = content(bundles_dir())
    write = trained.write_traced

    def perturbed(model: Any, spec: Any, folder: Path) -> None:
        with torch.no_grad():
            model.head.score.bias += 0.01
        write(model, spec, folder)
        with torch.no_grad():
            model.head.score.bias -= 0.01

    monkeypatch.setattr(trained, "write_traced", perturbed)
    with pytest.raises(ParityError, match=r"max \|difference\| 0\.00.* 64 values of score; worst"):
        export(tiny)
    assert content(bundles_dir()) == before
    assert [path.name for path in bundles_dir().iterdir()] == ["clip-text"] * installed_before


def test_a_tokenizer_file_of_another_encoder_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    tiny = make_tiny_model("clip-text", checkpoints)
    assert tiny.tokenizer is not None
    entry = json.loads(tiny.tokenizer.read_text())
    vocabulary = entry["model"]["vocab"]
    vocabulary["a</w>"], vocabulary["b</w>"] = vocabulary["b</w>"], vocabulary["a</w>"]
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(entry))
    with pytest.raises(ParityError, match=r"other ids than CLIPTokenizer for 'a man walks"):
        export(tiny, tokenizer=other)
    with pytest.raises(ModelError, match="there is no tokenizer file"):
        export(tiny, tokenizer=None)
    assert not bundles_dir().exists() or not list(bundles_dir().iterdir())


def test_weights_that_are_no_numbers_are_refused(checkpoints: Path) -> None:
    tiny = make_tiny_model("clip-text", checkpoints)
    with torch.no_grad():
        tiny.model.head.score.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="scores that are no numbers"):
        export(tiny)


def test_a_model_that_does_not_fit_its_spec_is_refused(checkpoints: Path) -> None:
    tiny = make_tiny_model("clip-text", checkpoints)
    with pytest.raises(ModelError, match="gives no scores of frames"):
        export(replace(tiny, spec=replace(tiny.spec, frame_scores=True)))


def test_an_older_bundle_is_replaced(checkpoints: Path) -> None:
    first = export(make_tiny_model("clip-text", checkpoints, seed=1))
    second = export(make_tiny_model("clip-text", checkpoints, seed=2))
    assert first.variants["fp32"].digest != second.variants["fp32"].digest
    assert read_bundle(first.root).variants == second.variants
