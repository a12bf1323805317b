"""Light files of every kind of encoder: filled in without torch, and the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli import memcli, without_torch

pytest.importorskip("onnxscript", reason="torch's exporter needs it")
torch = pytest.importorskip("torch", reason="the original")
pytest.importorskip("transformers", reason="the encoders")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from tiny_exports import Exporter  # noqa: E402
from tiny_models import TinyModel, make_tiny_model  # noqa: E402

from memcli import store  # noqa: E402
from memcli.engines.bundle import (  # noqa: E402
    FP32_GRAPH,
    Bundle,
    Variant,
    hash_files,
    read_bundle,
    write_manifest,
)
from memcli.engines.reference import synthetic_captions, synthetic_frames  # noqa: E402
from memcli.errors import UsageError  # noqa: E402
from memcli.export.build import graph_files  # noqa: E402
from memcli.export.light import find_left_out, write_light  # noqa: E402
from memcli.export.provenance import without_paths  # noqa: E402
from memcli.export.trained import write_traced  # noqa: E402
from memcli.spec import ModelSpec  # noqa: E402
from memcli.tokens import Tokeniser  # noqa: E402

MODELS = {
    "early-fusion": "siglip",
    "clip-vision": "clip",
    "clip-l14-transformer": "clip",
    "vit": "vit",
    "late-fusion": "siglip and roberta",
    "distilbert": "distilbert",
}
"""Between them, every kind of encoder of the registry, and every way of pooling."""


def make_traced_bundle(tiny: TinyModel, root: Path) -> Bundle:
    """What `export_model` would install, without its gates."""
    (root / "fp32").mkdir(parents=True)
    write_traced(tiny.model, tiny.spec, root / "fp32")
    if tiny.tokenizer is not None and tiny.spec.text is not None:
        (root / "fp32" / tiny.spec.text.tokenizer).write_bytes(tiny.tokenizer.read_bytes())
    (root / "LICENSE.weights.txt").write_text("terms\n")
    spec = ModelSpec.from_dict(without_paths(tiny.spec.to_dict()))
    files = hash_files(root, graph_files(root, FP32_GRAPH, spec))
    variant = Variant("fp32", FP32_GRAPH, ("onnxruntime", "openvino"), files, reference={})
    write_manifest(Bundle(root, spec, {"fp32": variant}))
    return read_bundle(root)


def inputs(tiny: TinyModel) -> dict[str, np.ndarray]:
    feeds = {}
    if tiny.spec.prep is not None:
        feeds["frames"] = synthetic_frames(tiny.spec.prep, 3, 2, seed=99)
    if tiny.spec.text is not None:
        assert tiny.tokenizer is not None
        tokens = Tokeniser(tiny.spec.text, tiny.tokenizer).encode(synthetic_captions(3, 2, seed=99))
        feeds |= {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    return feeds


def outputs(
    graph: Path, names: tuple[str, ...], feeds: dict[str, np.ndarray], folder: Path
) -> dict[str, np.ndarray]:
    """Scores and, as more outputs, the embeddings inside the graph."""
    model = onnx.load(str(graph))
    for name in names:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.bin")
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    wanted = [value.name for value in session.get_outputs()]
    return dict(zip(wanted, session.run(wanted, feeds), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_light_file_becomes_the_same_model_without_torch(
    name: str, tiny_export: Exporter, tmp_path: Path
) -> None:
    made = tiny_export(name)
    tiny, whole = made.tiny, made.bundle
    folders = {tower: one.folder for tower, one in tiny.checkpoints.items()}
    table = find_left_out(whole, folders)
    with store.new_archive(tmp_path / "light.memcli") as archive:
        write_light(archive, whole, table)
    graph = whole.graph_path(whole.variants["fp32"])
    names = [
        tensor.name
        for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL and "encoder." in tensor.name
    ]
    assert names
    assert {one.name for one in table.tensors} >= set(names), "all weights of the encoders"

    encoders = [word for one in set(folders.values()) for word in ("--encoder", one)]
    words = ("models", "add", "light.memcli", "--offline", *encoders)
    done = memcli(*words, cwd=tmp_path, **without_torch(tmp_path / "blocked"))
    assert done.returncode == 0, done.stderr
    added = store.find(name)
    assert added.variants == whole.variants
    feeds = inputs(tiny)
    with torch.inference_mode():
        given = {key: torch.from_numpy(value) for key, value in feeds.items()}
        _, embeddings = tiny.model.with_embeddings(
            *(given.get(key) for key in ("frames", "input_ids", "attention_mask"))
        )
    inner = tuple(embeddings)
    before = outputs(graph, inner, feeds, tmp_path / "before")
    after = outputs(added.graph_path(added.variants["fp32"]), inner, feeds, tmp_path / "after")
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)
    for key, value in embeddings.items():
        ours, theirs = after[key].astype(np.float64), value.numpy().astype(np.float64)
        lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        assert ((ours * theirs).sum(axis=-1) / lengths).min() >= 0.9999


def test_a_fine_tuned_encoder_travels_with_the_model(tmp_path: Path) -> None:
    tiny = make_tiny_model("vit", tmp_path / "hub")
    with torch.no_grad():
        for value in tiny.model.frame_encoder.parameters():
            value.add_(0.001)
    whole = make_traced_bundle(tiny, tmp_path / "vit")
    with pytest.raises(UsageError, match="nothing of vit can be left out"):
        find_left_out(whole, {"vision": tiny.checkpoints["vision"].folder})
