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
Kind = tuple[str, dict[str, Any]]
"""A head's kind and options."""
HEADS: dict[str, tuple[int | None, int | None, list[Kind]]] = {
    "frames": (
        D,
        None,
        [
            ("FusionTransformer", TRANSFORMER),
            ("RidgeHead", {}),
            ("RegressionHead", {}),
            ("TemporalHead", {**GRU, "aggregator": "average", "predictor": "linear"}),
            ("TemporalHead", {**GRU, "aggregator": "gru", "predictor": "linear"}),
            ("TemporalHead", {**GRU, "aggregator": "gru-attention", "predictor": "mlp"}),
            ("TemporalHead", {"hidden": 8, "aggregator": "transformer", "predictor": "linear"}),
        ],
    ),
    "captions": (None, D, [("TextPerceptron", {}), ("RegressionHead", {})]),
    "both": (D, 10, [("FusionTransformer", TRANSFORMER), ("LateFusion", TRANSFORMER)]),
}
"""Heads by what they read, with the sizes of that: those of the same inputs are one graph, which
takes a fraction of what tracing each takes."""


class Graph(torch.nn.Module):
    """Heads with the inputs they have, by position, and tensors for their outputs."""

    def __init__(self, heads: list[Any], frames: bool, captions: bool):
        super().__init__()
        self.heads = torch.nn.ModuleList(heads)
        self.inputs = (frames, captions)

    def forward(self, *given: Any) -> tuple[Any, ...]:
        rest = list(given)
        frames = rest.pop(0) if self.inputs[0] else None
        captions, mask = rest if self.inputs[1] else (None, None)
        found = [head(frames, captions, mask) for head in self.heads]
        outputs = [one for scores in found for one in (scores.score, scores.frame_scores)]
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
@pytest.mark.parametrize("reads", HEADS)
def test_heads_export_with_dynamic_batch_time_and_captions(reads: str, tmp_path: Path) -> None:
    frame_dim, text_dim, kinds = HEADS[reads]
    heads = [  # of different weights, or the exporter makes one layer of equal ones
        a_head(kind, options, frame_dim, text_dim, seed=7 + number)
        for number, (kind, options) in enumerate(kinds)
    ]
    for (kind, _), head in zip(kinds, heads, strict=True):
        if kind == "TemporalHead":
            with torch.no_grad():  # keep the sigmoid where it tells scores apart
                head.predictor[-2].weight.mul_(0.05)
    graph = Graph(heads, frame_dim is not None, text_dim is not None).eval()
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
    recurrent = [options for _, options in kinds if "gru" in str(options.get("aggregator"))]
    assert operators.count("GRU") == 3 * len(recurrent)
    assert not {"Loop", "Scan", "If"} & set(operators)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in (TRACED, *OTHERS):
        given = inputs_of(size, frame_dim, text_dim)
        with torch.no_grad():
            expected = graph(*given.values())
        found = session.run(None, {name: value.numpy() for name, value in given.items()})
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert other.shape == tuple(one.shape), index
            assert abs(one.numpy() - other).max() <= 1e-5, index
