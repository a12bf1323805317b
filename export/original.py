"""What the PyTorch original says, and whether an exported graph says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from memcli.engines.comparison import as_probabilities, compare
from memcli.engines.loading import installed_runtimes
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.engines.verify import (
    CONTRIBUTIONS,
    FRAME_SCORES,
    SCORE,
    SYNTHETIC,
    SYNTHETIC_EEG,
    Reference,
)
from memcli.errors import ModelError, ParityError
from memcli.export.build import CPU_ENGINES
from memcli.export.cases import (
    CASES,
    EMBEDDINGS,
    case_captions,
    embeddings_of,
    in_batches,
    make_feeds,
    parts_of,
)
from memcli.export.compare import SeenGraph
from memcli.export.evidence import spread_of
from memcli.export.graph_run import expose, run_batches
from memcli.export.parity import cosines, describe

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.engines.base import Engine
    from memcli.spec import ModelSpec
    from memcli.train.eeg.network import EegModel
    from memcli.train.model import MemorabilityModel

    Feeds = dict[str, npt.NDArray[Any]]

_REFERENCE_CLIPS = 12
"""Clips that the bundle keeps for the first use on another machine; rank correlation needs 12."""
_REFERENCE_CASE = 1


@dataclass(frozen=True)
class Original:
    """Inputs and the original's scores for them, one entry per case."""

    feeds: tuple[Feeds, ...]
    scores: tuple[Feeds, ...]
    """`score` [clips], where the model gives it `frame_scores` [clips, frames], and embeddings:
    `frame_embeddings` [clips, frames, D], `caption_embeddings` [clips, captions, D]; of EEG
    `score` [epochs] and `contributions` [epochs, windows]."""


def run_original(
    model: MemorabilityModel | EegModel, spec: ModelSpec, tokenizer: Path | None
) -> Original:
    """The scores of the PyTorch model, float32 on the CPU, for all cases.

    Raises ModelError if the model does not give what its spec says, or nothing but NaN.
    """
    feeds = tuple(make_feeds(spec, tokenizer, index) for index in range(len(CASES)))
    scores = tuple(_run_torch(model, spec, one) for one in feeds)
    if not all(np.isfinite(array).all() for one in scores for array in one.values()):
        raise ModelError(f"{spec.name} gives scores that are no numbers: its weights are of no use")
    return Original(feeds, scores)


def make_reference(original: Original, spec: ModelSpec) -> Reference:
    """What the bundle keeps: the first clips of the second case, and their scores."""
    case = CASES[_REFERENCE_CASE]
    scores = original.scores[_REFERENCE_CASE]
    rows = scores[FRAME_SCORES][:_REFERENCE_CLIPS] if spec.frame_scores else ()
    clips = () if spec.frame_scores else scores[SCORE][:_REFERENCE_CLIPS]
    captions = () if spec.text is None else case_captions(_REFERENCE_CASE)[:_REFERENCE_CLIPS]
    contributions = () if spec.eeg is None else scores[CONTRIBUTIONS][:_REFERENCE_CLIPS]
    return Reference(
        clips=_REFERENCE_CLIPS,
        frames_per_clip=0 if spec.prep is None else case.frames,
        seed=_REFERENCE_CASE,
        tolerance=spec.tolerances["fp32"],
        frame_scores=tuple(tuple(map(float, row)) for row in rows),
        scores=tuple(map(float, clips)),
        captions=captions,
        kind=SYNTHETIC if spec.eeg is None else SYNTHETIC_EEG,
        contributions=tuple(tuple(map(float, row)) for row in contributions),
    )


def gate_graph(
    graph: Path, original: Original, spec: ModelSpec, report: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Compare a graph with the original in every runtime that is installed: numbers by runtime.

    Raises ParityError with the numbers for a runtime whose scores differ by more than the fp32
    tolerance of `spec`, EngineError for one that cannot run the graph. Without any runtime there
    is nothing to compare with: an empty dict.
    """
    measured: dict[str, dict[str, Any]] = {
        name: _gate(graph, name, original, spec, report)
        for name in CPU_ENGINES
        if name in installed_runtimes()
    }
    if measured and spec.eeg is None:
        name = "onnxruntime" if "onnxruntime" in measured else next(iter(measured))
        measured[name][SCORE] |= _gate_embeddings(graph, name, original, spec, report)
    return measured


def _embeddings(graph: Path, name: str, original: Original) -> Iterator[Feeds]:
    """Those of each case, in a runtime that is installed."""
    run: Callable[[Feeds], Feeds]
    if name == "onnxruntime":
        run = SeenGraph(graph, EMBEDDINGS).run
    else:
        model = onnx.load(str(graph))
        made = {output for node in model.graph.node for output in node.output}
        seen = expose(model, [one for one in EMBEDDINGS if one in made])
        values = run_batches(seen, (part for one in original.feeds for part in parts_of(one)))

        def take(_: Feeds) -> Feeds:
            return next(values)

        run = take
    for feeds in original.feeds:
        yield embeddings_of(in_batches(run, feeds), feeds)


def _gate_embeddings(
    graph: Path, name: str, original: Original, spec: ModelSpec, report: Callable[[str], None]
) -> dict[str, float]:
    """The cosines of the graph's embeddings with the model's. Raises ParityError."""
    rows = []
    found_all = _embeddings(graph, name, original)
    for feeds, wanted, ours in zip(original.feeds, original.scores, found_all, strict=True):
        theirs = embeddings_of(wanted, feeds)
        if set(ours) != set(theirs):
            raise ModelError(f"the graph gives {sorted(ours)} inside, not {sorted(theirs)}")
        rows += [cosines(ours[inner], theirs[inner]) for inner in theirs]
    found = np.concatenate(rows)
    least, mean = float(found.min()), float(found.mean())
    text = f"cosine min {least:.6f}, mean {mean:.6f} of {len(found)} embeddings"
    report(f"{name} at fp32 against PyTorch: {text}")
    limit = spec.tolerances["fp32"].min_cosine
    if limit is not None and least < limit:
        raise ParityError(
            f"the graph does not give the embeddings of the PyTorch model: {text}",
            next_step=f"Allowed: {describe(spec.tolerances['fp32'])}. Nothing was installed.",
        )
    return {"cosine_min": least, "cosine_mean": mean}


def _gate(
    graph: Path, name: str, original: Original, spec: ModelSpec, report: Callable[[str], None]
) -> dict[str, Any]:
    tolerance = spec.tolerances["fp32"]
    measured: dict[str, Any] = {}
    with _opened(graph, name) as engine:
        found = [_run_engine(engine, feeds) for feeds in original.feeds]
    for output in [SCORE, *_more_outputs(spec)]:
        ours = np.concatenate([one[output].reshape(-1) for one in found])
        wanted = np.concatenate([one[output].reshape(-1) for one in original.scores])
        if output == CONTRIBUTIONS:
            ours, wanted = as_probabilities(ours, wanted)
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
        measured[output] = {
            "values": result.clips,
            **{key: numbers_of[key] for key in kept},
            **spread_of(wanted).to_dict(),
        }
    return measured


def _more_outputs(spec: ModelSpec) -> list[str]:
    if spec.eeg is not None:
        return [CONTRIBUTIONS]
    return [FRAME_SCORES] if spec.frame_scores else []


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

    return in_batches(run, feeds)


def _run_torch(
    model: MemorabilityModel | EegModel, spec: ModelSpec, feeds: Mapping[str, Any]
) -> Feeds:
    def run(part: Feeds) -> Feeds:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in part.items()}
            if spec.eeg is not None:
                of_eeg = model(**tensors)
                return {
                    SCORE: of_eeg.score.numpy(),
                    CONTRIBUTIONS: of_eeg.contributions.numpy(),
                }
            scores, embeddings = model.with_embeddings(**tensors)
        found = {SCORE: scores.score.numpy()}
        found |= {name: array.numpy() for name, array in embeddings.items()}
        if spec.frame_scores:
            if scores.frame_scores is None:
                raise ModelError(f"{spec.name} gives no scores of frames, as its spec says")
            found[FRAME_SCORES] = scores.frame_scores.numpy()
        return found

    return in_batches(run, feeds)
