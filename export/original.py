"""What the PyTorch original says, and whether an exported graph says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from memcli.engines.loading import installed_runtimes
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.engines.reference import synthetic_captions, synthetic_frames
from memcli.engines.verify import (
    ATTENTION_MASK,
    FRAME_SCORES,
    INPUT,
    INPUT_IDS,
    SCORE,
    Reference,
    compare,
)
from memcli.errors import EngineError, ModelError, ParityError
from memcli.export.build import CPU_ENGINES
from memcli.export.parity import describe
from memcli.tokens import Tokeniser

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.engines.base import Engine
    from memcli.spec import ModelSpec
    from memcli.train.model import MemorabilityModel

    Feeds = dict[str, npt.NDArray[Any]]

_BATCH_CLIPS = 8
_REFERENCE_CLIPS = 12
"""Clips that the bundle keeps for the first use on another machine; rank correlation needs 12."""
_REFERENCE_CASE = 1
_LONG_WORDS = 1000


@dataclass(frozen=True)
class Case:
    """Synthetic inputs of one shape."""

    clips: int
    frames: int
    """Per clip; 0 for as many as the model samples."""
    captions: int
    """At most, per clip."""
    long: bool = False
    """Captions of as many tokens as the model takes."""


CASES = (
    Case(clips=40, frames=1, captions=1),
    Case(clips=20, frames=2, captions=3),
    Case(clips=3, frames=5, captions=2),
    Case(clips=1, frames=0, captions=2, long=True),
)
"""64 clips in shapes that differ from each other and from the traced one in every axis; few frames,
because a large encoder takes seconds for each."""


@dataclass(frozen=True)
class Original:
    """Inputs and the original's scores for them, one entry per case."""

    feeds: tuple[Feeds, ...]
    scores: tuple[Feeds, ...]
    """`score` [clips] and, where the model gives it, `frame_scores` [clips, frames]."""


def run_original(model: MemorabilityModel, spec: ModelSpec, tokenizer: Path | None) -> Original:
    """The scores of the PyTorch model, float32 on the CPU, for all cases.

    Raises ModelError if the model does not give what its spec says, or nothing but NaN.
    """
    feeds = tuple(make_feeds(spec, tokenizer, index) for index in range(len(CASES)))
    scores = tuple(_run_torch(model, spec, one) for one in feeds)
    if not all(np.isfinite(array).all() for one in scores for array in one.values()):
        raise ModelError(f"{spec.name} gives scores that are no numbers: its weights are of no use")
    return Original(feeds, scores)


def make_feeds(spec: ModelSpec, tokenizer: Path | None, index: int) -> Feeds:
    """The inputs of a case by name; its number is the seed."""
    case = CASES[index]
    feeds: Feeds = {}
    if spec.prep is not None:
        frames = case.frames or spec.prep.frames
        feeds[INPUT] = synthetic_frames(spec.prep, case.clips, frames, seed=index)
    if spec.text is not None and tokenizer is not None:
        captions = [list(one) for one in _captions(index)]
        if case.long:
            captions[0].append("word " * _LONG_WORDS)
        batch = Tokeniser(spec.text, tokenizer).encode(captions)
        feeds |= {INPUT_IDS: batch.input_ids, ATTENTION_MASK: batch.attention_mask}
    return feeds


def _captions(index: int) -> tuple[tuple[str, ...], ...]:
    return synthetic_captions(CASES[index].clips, CASES[index].captions, seed=index)


def make_reference(original: Original, spec: ModelSpec) -> Reference:
    """What the bundle keeps: the first clips of the second case, and their scores."""
    case = CASES[_REFERENCE_CASE]
    scores = original.scores[_REFERENCE_CASE]
    rows = scores[FRAME_SCORES][:_REFERENCE_CLIPS] if spec.frame_scores else ()
    clips = () if spec.frame_scores else scores[SCORE][:_REFERENCE_CLIPS]
    captions = () if spec.text is None else _captions(_REFERENCE_CASE)[:_REFERENCE_CLIPS]
    return Reference(
        clips=_REFERENCE_CLIPS,
        frames_per_clip=0 if spec.prep is None else case.frames,
        seed=_REFERENCE_CASE,
        tolerance=spec.tolerances["fp32"],
        frame_scores=tuple(tuple(map(float, row)) for row in rows),
        scores=tuple(map(float, clips)),
        captions=captions,
    )


def gate_graph(
    graph: Path, original: Original, spec: ModelSpec, report: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Compare a graph with the original in every runtime that is installed: numbers by runtime.

    Raises ParityError with the numbers for a runtime whose scores differ by more than the fp32
    tolerance of `spec`, EngineError for one that cannot run the graph. Without any runtime there
    is nothing to compare with: an empty dict.
    """
    return {
        name: _gate(graph, name, original, spec, report)
        for name in CPU_ENGINES
        if name in installed_runtimes()
    }


def _gate(
    graph: Path, name: str, original: Original, spec: ModelSpec, report: Callable[[str], None]
) -> dict[str, Any]:
    tolerance = spec.tolerances["fp32"]
    measured: dict[str, Any] = {}
    with _opened(graph, name) as engine:
        found = [_run_engine(engine, feeds) for feeds in original.feeds]
    for output in (SCORE, FRAME_SCORES) if spec.frame_scores else (SCORE,):
        ours = np.concatenate([one[output].reshape(-1) for one in found])
        wanted = np.concatenate([one[output].reshape(-1) for one in original.scores])
        result = compare(ours[:, None], wanted[:, None], tolerance)
        numbers = result.numbers().replace("clips", f"values of {output}")
        report(f"{name} at fp32 against PyTorch: {numbers}")
        if not result.passed:
            worst = result.worst_clip
            raise ParityError(
                f"{name} does not give the scores of the PyTorch model: {numbers}; "
                f"worst: {ours[worst]:.6f} instead of {wanted[worst]:.6f} "
                f"{_place(original, output, worst)}",
                next_step=f"Allowed: {describe(tolerance)}. Nothing was installed.",
            )
        kept = ("max_abs", "mean_abs", "srcc")
        numbers_of = asdict(result)
        measured[output] = {"values": result.clips, **{key: numbers_of[key] for key in kept}}
    return measured


def _place(original: Original, output: str, index: int) -> str:
    """Which input the value `index` of all cases in a row is of."""
    for case, one in zip(CASES, original.scores, strict=True):
        if index < one[output].size:
            where = f"of clip {np.unravel_index(index, one[output].shape)[0]} in a case of"
            return f"{where} {case.clips} clips"
        index -= one[output].size
    raise IndexError(index)


@contextmanager
def _opened(graph: Path, name: str) -> Iterator[Engine]:
    open_graph = open_openvino if name == "openvino" else open_onnxruntime
    with open_graph(graph, device="cpu", precision="fp32", threads=None) as engine:
        yield engine


def _run_engine(engine: Engine, feeds: Mapping[str, Any]) -> Feeds:
    def run(part: Feeds) -> Feeds:
        return dict(engine.run(part))

    return _in_batches(run, feeds)


def _run_torch(model: MemorabilityModel, spec: ModelSpec, feeds: Mapping[str, Any]) -> Feeds:
    def run(part: Feeds) -> Feeds:
        with torch.inference_mode():
            scores = model(**{name: torch.from_numpy(array) for name, array in part.items()})
        found = {SCORE: scores.score.numpy()}
        if spec.frame_scores:
            if scores.frame_scores is None:
                raise ModelError(f"{spec.name} gives no scores of frames, as its spec says")
            found[FRAME_SCORES] = scores.frame_scores.numpy()
        return found

    return _in_batches(run, feeds)


def _in_batches(run: Callable[[Feeds], Feeds], feeds: Mapping[str, Any]) -> Feeds:
    """Outputs for all clips, a few at a time: large models have no memory for more."""
    clips = len(next(iter(feeds.values())))
    parts = []
    for start in range(0, clips, _BATCH_CLIPS):
        part = {name: array[start : start + _BATCH_CLIPS] for name, array in feeds.items()}
        found = run(part)
        if any(len(array) != len(next(iter(part.values()))) for array in found.values()):
            shapes = {name: list(array.shape) for name, array in found.items()}
            raise EngineError(f"the graph gives {shapes} for {len(part)} clips")
        parts.append(found)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
