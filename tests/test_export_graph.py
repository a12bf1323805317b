"""The weightless ResMem graph: reproducible, complete, and the same function as PyTorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from memcli.engines.bundle import GRAPH_FILE
from memcli.engines.reference import synthetic_frames
from memcli.export.fill import GRAPHS, write_filled
from memcli.models import get_model

pytest.importorskip("onnxscript", reason="torch's exporter needs it")
torch = pytest.importorskip("torch", reason="the original")
ort = pytest.importorskip("onnxruntime", reason="the runtime of the comparison")

from memcli.export.onnx import build_video_module, export_weightless, tool_versions  # noqa: E402
from memcli.train.architectures.resmem import LocalResponseNorm, ResMem  # noqa: E402

SPEC = get_model("resmem")
STORED = GRAPHS / SPEC.graph


def realistic(module: torch.nn.Module) -> None:
    """Random weights whose activations stay of order one, with uneven batch statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.ndim == 1:  # scale of a batch normalisation
                tensor.uniform_(0.3, 0.7, generator=generator)
            elif tensor.ndim > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)


def compare(module: Any, graph: Path, out: Path, shapes: list[tuple[int, int]]) -> None:
    """Scores of `graph`, filled with the weights of `module`, against the module itself.

    The tolerance of 1e-5 is fp32 rounding through 150 layers, seen through a sigmoid.
    """
    state = {name: tensor.numpy() for name, tensor in module.image_model.state_dict().items()}
    out.mkdir()
    write_filled(graph, state, out)
    session = ort.InferenceSession(out / GRAPH_FILE, providers=["CPUExecutionProvider"])
    for clips, time in shapes:
        frames = synthetic_frames(SPEC.prep, clips, time, seed=0)
        with torch.inference_mode():
            score, frame_scores = (t.numpy() for t in module(torch.from_numpy(frames)))
        found, found_frames = session.run(["score", "frame_scores"], {"frames": frames})
        assert clips == 1 or np.ptp(score) > 1e-3, "the scores depend on the frames"
        assert found.shape == (clips,)
        assert found_frames.shape == (clips, time)
        np.testing.assert_allclose(found_frames, frame_scores, atol=1e-5, rtol=0)
        np.testing.assert_allclose(found, score, atol=1e-5, rtol=0)
        np.testing.assert_allclose(found, found_frames.mean(axis=1), atol=1e-6, rtol=0)


def test_stored_graph_names_every_parameter() -> None:
    with torch.device("meta"):
        state = ResMem().state_dict()
    graph = onnx.load(STORED, load_external_data=False).graph
    parameters = {
        tensor.name: tuple(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    assert len(parameters) == 801
    assert parameters == {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def test_stored_graph_is_clean() -> None:
    """No weights, traces, machine paths or fused layers; unique node names; standard operators."""
    model = onnx.load(STORED, load_external_data=False)
    assert STORED.stat().st_size < 200_000
    assert not any(mark in STORED.read_bytes() for mark in (b"site-packages", b"/home", b".py"))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("BatchNormalization") == 155
    assert operators.count("LRN") == 2
    kept = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert kept < 1000, "constants only"


def test_local_response_norm_is_the_standard_one() -> None:
    x = torch.randn(2, 48, 7, 7)
    assert torch.equal(LocalResponseNorm(5)(x), torch.nn.LocalResponseNorm(5)(x))


@pytest.mark.slow
def test_stored_graph_is_what_the_script_writes() -> None:
    model = onnx.load(STORED, load_external_data=False)
    made_with = {entry.key: entry.value for entry in model.metadata_props}
    if made_with != tool_versions():
        pytest.skip(f"the graph is written by {made_with}; here is {tool_versions()}")
    again = export_weightless(build_video_module(SPEC))
    assert again.SerializeToString(deterministic=True) == STORED.read_bytes()


@pytest.mark.slow
def test_shallow_export_equals_the_module(tmp_path: Path) -> None:
    """The whole path on a ResNet of one block per stage: export, fill, run, any B and T."""
    module = build_video_module(SPEC, ResMem(depths=(1, 1, 1, 1)))
    realistic(module.image_model)
    graph = export_weightless(module)
    (tmp_path / "graph.onnx").write_bytes(graph.SerializeToString())
    compare(module, tmp_path / "graph.onnx", tmp_path / "out", [(1, 1), (2, 3), (3, 1)])


@pytest.mark.slow
def test_stored_graph_equals_the_module(tmp_path: Path) -> None:
    module = build_video_module(SPEC)
    realistic(module.image_model)
    compare(module, STORED, tmp_path / "out", [(1, 2), (2, 1)])
