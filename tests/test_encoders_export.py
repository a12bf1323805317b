"""Every kind of encoder becomes an ONNX graph with a dynamic batch that says the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

import torch  # noqa: E402

from memcli.models.encoders import CLIP_PREP  # noqa: E402
from memcli.spec import EncoderSpec, Pooling  # noqa: E402
from memcli.tokens import Tokeniser  # noqa: E402
from memcli.train.encoders import frame_prep, load_encoder, resolve, text_prep  # noqa: E402
from tests.tiny_hub import MAKERS  # noqa: E402

CASES: list[tuple[str, str, tuple[Pooling, ...]]] = [
    ("siglip", "vision", ("projection",)),
    ("clip", "vision", ("projection", "pooled")),
    ("vit", "vision", ("cls", "pooled")),
    ("dinov2", "vision", ("cls",)),
    ("dinov3", "vision", ("cls",)),
    ("siglip", "text", ("projection",)),
    ("siglip2", "text", ("projection",)),
    ("clip", "text", ("projection", "pooled")),
    ("distilbert", "text", ("cls",)),
    ("bert", "text", ("mean",)),
    ("roberta", "text", ("mean",)),
]
TRACED = ["a dog", "the man runs on the street", ""]
SAID = ["two women sit", "", "a " * 9, "the crowd", "a bright day!"]


class Poolings(torch.nn.Module):
    """Encoders of one checkpoint that differ in how they pool, on the same inputs."""

    def __init__(self, encoders: list[Any]):
        super().__init__()
        self.encoders = torch.nn.ModuleList(encoders)

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        return tuple(encoder(*inputs) for encoder in self.encoders)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tower", "poolings"), CASES)
def test_exported_graph_agrees(
    tmp_path: Path, kind: str, tower: str, poolings: tuple[Pooling, ...]
) -> None:
    """Measured 1e-7 to 2e-6 on embeddings of size 1 to 3.

    One layer: whole models of two are compared in test_export_trained.py.
    """
    folder = tmp_path / kind
    folder.mkdir()
    MAKERS[kind](folder, layers=1)
    given = [
        resolve(EncoderSpec(tower, str(folder), None, 1, "none", pooling))  # type: ignore[arg-type]
        for pooling in poolings
    ]
    checkpoint = given[0][1]
    dynamic = torch.export.Dim.DYNAMIC
    traced: tuple[Any, ...]
    asked: tuple[Any, ...]
    if tower == "vision":
        prep: Any = frame_prep(checkpoint, CLIP_PREP)
        rng = np.random.default_rng(0)
        traced, asked = (
            (torch.from_numpy(rng.integers(0, 256, (n, *prep.frame_shape()), dtype=np.uint8)),)
            for n in (2, 5)
        )
        shapes = {"frames": {0: dynamic}}
    else:
        prep, path = text_prep(checkpoint)
        tokeniser = Tokeniser(prep, path)
        batches = [tokeniser.encode([captions]) for captions in (TRACED, SAID)]
        traced, asked = (
            (torch.from_numpy(b.input_ids[0]), torch.from_numpy(b.attention_mask[0]))
            for b in batches
        )
        free = {0: dynamic} if prep.fixed_length else {0: dynamic, 1: dynamic}
        shapes = {"input_ids": free, "attention_mask": dict(free)}
    encoders = Poolings([load_encoder(spec, checkpoint, prep) for spec, _ in given]).eval()
    graph = tmp_path / "model.onnx"
    with torch.no_grad():
        program = torch.onnx.export(
            encoders,
            traced,
            dynamo=True,
            dynamic_shapes=(tuple(shapes.values()),),
            input_names=list(shapes),
        )
        program.save(str(graph))
        expected = encoders(*asked)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in zip(shapes, asked, strict=True)}
    found = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5, rtol=0)
