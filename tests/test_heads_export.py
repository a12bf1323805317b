"""Every head as an ONNX graph whose batch, time and captions are dynamic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_heads import GRU, TRANSFORMER, D, a_head, features

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TRACED = (2, 5, 3)
OTHERS = ((1, 1, 1), (3, 17, 2), (5, 33, 4))
HEADS = [
    ("FusionTransformer", TRANSFORMER, D, None),
    ("FusionTransformer", TRANSFORMER, D, 10),
    ("TextPerceptron", {}, None, D),
    ("LateFusion", TRANSFORMER, D, 10),
    ("RidgeHead", {}, D, None),
    ("RegressionHead", {}, D, None),
    ("RegressionHead", {}, None, D),
    ("TemporalHead", {**GRU, "aggregator": "average", "predictor": "linear"}, D, None),
    ("TemporalHead", {**GRU, "aggregator": "gru", "predictor": "linear"}, D, None),
    ("TemporalHead", {**GRU, "aggregator": "gru-attention", "predictor": "mlp"}, D, None),
    ("TemporalHead", {"hidden": 8, "aggregator": "transformer", "predictor": "linear"}, D, None),
]


class Graph(torch.nn.Module):
    """A head with the inputs it has, by position, and tensors for its outputs."""

    def __init__(self, head: Any, frames: bool, captions: bool):
        super().__init__()
        self.head = head
        self.inputs = (frames, captions)

    def forward(self, *given: Any) -> tuple[Any, ...]:
        rest = list(given)
        frames = rest.pop(0) if self.inputs[0] else None
        captions, mask = rest if self.inputs[1] else (None, None)
        scores = self.head(frames, captions, mask)
        outputs = (scores.score, scores.frame_scores)
        return tuple(one for one in outputs if one is not None)


def inputs_of(size: tuple[int, int, int], frame_dim: int | None, text_dim: int | None) -> Any:
    batch, time, count = size
    given = {}
    if frame_dim is not None:
        given["frames"] = features(batch, time, frame_dim)
    if text_dim is not None:
        given["captions"] = features(batch, count, text_dim, seed=2)
        given["mask"] = torch.ones(batch, count)
        given["mask"][0, 1:] = 0
    return given


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options", "frame_dim", "text_dim"), HEADS)
def test_head_exports_with_dynamic_batch_time_and_captions(
    kind: str,
    options: dict[str, Any],
    frame_dim: int | None,
    text_dim: int | None,
    tmp_path: Path,
) -> None:
    head = a_head(kind, options, frame_dim, text_dim)
    if kind == "TemporalHead":
        with torch.no_grad():  # keep the sigmoid where it tells scores apart
            head.predictor[-2].weight.mul_(0.05)
    graph = Graph(head, frame_dim is not None, text_dim is not None).eval()
    traced = inputs_of(TRACED, frame_dim, text_dim)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        graph,
        tuple(traced.values()),
        dynamo=True,
        input_names=list(traced),
        dynamic_shapes=(tuple({0: dynamic, 1: dynamic} for _ in traced),),
        verbose=False,
    )
    assert program is not None
    path = tmp_path / "head.onnx"
    program.save(str(path))
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert operators.count("GRU") == (3 if "gru" in str(options.get("aggregator")) else 0)
    assert not {"Loop", "Scan", "If"} & set(operators)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in (TRACED, *OTHERS):
        given = inputs_of(size, frame_dim, text_dim)
        with torch.no_grad():
            expected = graph(*given.values())
        found = session.run(None, {name: value.numpy() for name, value in given.items()})
        for one, other in zip(expected, found, strict=True):
            assert other.shape == tuple(one.shape)
            assert abs(one.numpy() - other).max() <= 1e-5
