"""ONNX Runtime on CUDA says what it says on the CPU, in every precision it is given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcli.engines.bundle import Bundle
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.errors import EngineError
from memcli.spec import Precision

pytestmark = pytest.mark.gpu

TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.03}
"""Largest difference to fp32 on the CPU: the project's tolerances for these precisions."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SigLIP-B/16 with random weights, in fp32."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.gpu.siglip import make_bundle

    return make_bundle(tmp_path_factory.mktemp("siglip"), full_size=True)[0]


@pytest.fixture(scope="module")
def precisions(bundle: Bundle) -> tuple[Bundle, dict[str, str]]:
    """The bundle with every precision that could be made, and why others could not."""
    from tests.gpu.benchmark import make_precisions

    return make_precisions(bundle, ["fp16", "int8"])


@pytest.fixture(scope="module")
def clips(bundle: Bundle) -> np.ndarray:
    assert bundle.prep is not None
    shape = (4, 16, *bundle.prep.frame_shape())
    return np.random.default_rng(5).integers(0, 256, shape, np.uint8)


def run(graph: Path, device: str, precision: Precision, clips: np.ndarray) -> np.ndarray:
    with open_onnxruntime(graph, device=device, precision=precision, threads=None) as engine:
        scores: np.ndarray = engine.run({"frames": clips})["score"]
    return scores


@pytest.fixture(scope="module")
def expected(bundle: Bundle, clips: np.ndarray) -> np.ndarray:
    graph = bundle.graph_path(bundle.variants["fp32"])
    return np.concatenate([run(graph, "cpu", "fp32", clip[None]) for clip in clips])


@pytest.mark.parametrize("precision", TOLERANCES)
def test_numbers(precisions: Any, clips: Any, expected: Any, precision: Precision) -> None:
    made, problems = precisions
    assert precision in made.variants, problems.get(precision)
    graph = made.graph_path(made.variants[precision])
    scores = run(graph, "cuda", precision, clips)
    assert np.abs(scores - expected).max() <= TOLERANCES[precision]


def test_recorded_graphs_say_the_same(
    bundle: Bundle, clips: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMCLI_CUDA_GRAPHS", "1")
    graph = bundle.graph_path(bundle.variants["fp32"])
    engine, problem = None, ""
    try:
        engine = open_onnxruntime(graph, device="cuda", precision="fp32", threads=None)
    except EngineError as error:
        problem = error.what
    if engine is None:  # a graph with nodes for the CPU
        assert "record" in problem
        return
    with engine:
        for _ in range(3):
            scores = engine.run({"frames": clips})["score"]
            np.testing.assert_allclose(scores, expected, atol=TOLERANCES["fp32"])
        halves = [engine.run({"frames": clips[part]})["score"] for part in (np.s_[:2], np.s_[2:])]
        np.testing.assert_allclose(np.concatenate(halves), expected, atol=TOLERANCES["fp32"])


def test_out_of_memory_names_the_batch(
    bundle: Bundle, clips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMCLI_CUDA_MEMORY_LIMIT", "600M")  # the weights take 380 MB
    graph = bundle.graph_path(bundle.variants["fp32"])
    with (
        open_onnxruntime(graph, device="cuda", precision="fp32", threads=None) as engine,
        pytest.raises(EngineError, match=r"not enough memory for a batch of 32"),
    ):
        engine.run({"frames": np.repeat(clips, 8, axis=0)})


def test_the_session_runs_on_the_gpu(bundle: Bundle) -> None:
    graph = bundle.graph_path(bundle.variants["fp32"])
    with open_onnxruntime(graph, device="cuda:0", precision="fp32", threads=None) as engine:
        assert engine._session.get_providers()[0] == "CUDAExecutionProvider"
