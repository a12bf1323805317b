"""Run a graph beside its fp32 original, through ONNX Runtime, and look inside both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from memcli.engines.comparison import as_probabilities
from memcli.engines.loading import import_runtime, one_line
from memcli.engines.verify import CONTRIBUTIONS, FRAME_SCORES, SCORE
from memcli.errors import EngineError, ParityError
from memcli.export.cases import BATCH_CLIPS, EMBEDDINGS, embeddings_of
from memcli.export.emulate import emulate, is_half
from memcli.export.graph_run import expose
from memcli.export.parity import Parity, describe, measure, relative_error
from memcli.export.retype import element_types

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.spec import Precision, Tolerance

    Feeds = Mapping[str, npt.NDArray[Any]]
    Outputs = dict[str, npt.NDArray[Any]]

OUTPUTS = (SCORE, FRAME_SCORES, CONTRIBUTIONS)
_LOOKED_AT = 160
"""Inner values compared at most, evenly spread: all of a large encoder would not fit in memory."""
_WORST = 3


class SeenGraph:
    """A graph in ONNX Runtime on the CPU that also gives inner values; half precision emulated.

    Raises EngineError if the runtime cannot load it, MissingDependencyError without the runtime.
    """

    def __init__(self, path: Path, inner: Iterable[str] = ()):
        ort = import_runtime("onnxruntime")
        model = onnx.load(str(path), load_external_data=False)
        self.emulated = is_half(model)
        model = emulate(model) if self.emulated else model
        self.version: str = ort.__version__
        self.names = float_values(model)
        self.inner = [name for name in inner if name in set(self.names)]
        seen = expose(model, self.inner)
        given = {value.name for value in model.graph.output}
        scores = [SCORE, *(name for name in OUTPUTS[1:] if name in given)]
        self._outputs = list(dict.fromkeys([*scores, *self.inner]))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Fusions beyond the basic ones take the casts of an emulated graph for something else
        # (1.31: a LayerNormalization of mixed types), or may drop the rounding.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        try:
            self._session = ort.InferenceSession(
                seen.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no public base but this
            raise EngineError(
                f"onnxruntime cannot load the graph: {one_line(error)}", where=str(path)
            ) from error

    def run(self, feeds: Feeds) -> Outputs:
        """`score`, `frame_scores` or `contributions` where the graph gives them, and the inner
        values by name.

        Raises EngineError if the runtime fails.
        """
        try:
            values = self._session.run(self._outputs, dict(feeds))
        except Exception as error:  # as above
            raise EngineError(f"onnxruntime cannot run the graph: {one_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))


def float_values(model: ModelProto) -> list[str]:
    """Float32 values that a graph computes, in order."""
    types = element_types(model)
    made = [name for node in model.graph.node for name in node.output if name]
    return [name for name in made if types.get(name) == TensorProto.FLOAT]


@dataclass(frozen=True)
class Inputs:
    """Inputs of a comparison: batches of feeds, and what they are called in a report."""

    name: str
    feeds: Sequence[Feeds]
    real: bool = False
    """Whether they are the user's."""


def compare_graphs(
    original: Path,
    candidate: Path,
    inputs: Sequence[Inputs],
    precision: Precision,
    tolerance: Tolerance,
    report: Callable[[str], None],
) -> list[Parity]:
    """The gate of a graph against its fp32 original, for each kind of input.

    Raises ParityError with the numbers and the worst layers for the first that does not pass, and
    for a graph without an output or an embedding of its original.
    """
    exact = SeenGraph(original, EMBEDDINGS)
    other = SeenGraph(candidate, EMBEDDINGS)
    runtime = f"onnxruntime {other.version} on cpu"
    runtime += f", {precision} emulated" if other.emulated else ""
    measured = []
    for one in inputs:
        wanted, found = _run_all(exact, one.feeds), _run_all(other, one.feeds)
        for name in (*OUTPUTS, *EMBEDDINGS):
            if name in wanted and name not in found:
                raise ParityError(f"the {precision} graph gives no {name}: its original does")
        parity = measure(
            {name: _pair(name, found, wanted) for name in OUTPUTS if name in wanted},
            {name: (found[name], wanted[name]) for name in EMBEDDINGS if name in wanted},
            tolerance,
            inputs=one.name,
            runtime=runtime,
            real=one.real,
        )
        report(f"{precision}: {parity.numbers()} ({runtime})")
        if not parity.passed:
            lines = worst_layers(original, candidate, _some(one.feeds[0]))
            raise ParityError(
                f"the {precision} graph misses its tolerance: {parity.numbers()}",
                next_step="\n".join(
                    [f"Allowed: {describe(tolerance)}. Nothing was changed.", *lines]
                ),
            )
        measured.append(parity)
    return measured


def _pair(name: str, found: Outputs, wanted: Outputs) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """An output of both graphs, in the unit that tolerances are in."""
    if name == CONTRIBUTIONS:
        return as_probabilities(found[name], wanted[name])
    return found[name], wanted[name]


def _run_all(graph: SeenGraph, batches: Sequence[Feeds]) -> Outputs:
    """Scores of clips [N] and of all frames [M], and embeddings [K, D], a few clips at a time."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for feeds in batches:
        clips = len(next(iter(feeds.values())))
        for start in range(0, clips, BATCH_CLIPS):
            part = {name: array[start : start + BATCH_CLIPS] for name, array in feeds.items()}
            outputs = graph.run(part)
            scores = {name: outputs[name].reshape(-1) for name in OUTPUTS if name in outputs}
            rows = {**scores, **embeddings_of(outputs, part)}
            for name, array in rows.items():
                parts.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _some(feeds: Feeds) -> Feeds:
    return {name: array[:2] for name, array in feeds.items()}


def worst_layers(original: Path, candidate: Path, feeds: Feeds) -> list[str]:
    """Lines that name the nodes at which the relative error grows most, worst first.

    A node's error is that of what it gives; its growth is against the largest error among the
    values that it was computed from.
    """
    model = onnx.load(str(original), load_external_data=False)
    theirs = set(SeenGraph(candidate).names)
    shared = [name for name in float_values(model) if name in theirs]
    step = max(1, -(-len(shared) // _LOOKED_AT))
    names = shared[::-1][::step][::-1]  # the last one, the score, is among them
    exact = SeenGraph(original, names).run(feeds)
    found = SeenGraph(candidate, names).run(feeds)
    errors = {name: relative_error(found[name], exact[name]) for name in names}
    before = _before(model, errors)
    growth = {name: _grown(errors[name], before[name]) for name in names}
    makers = {name: node for node in model.graph.node for name in node.output}
    ranked = sorted(names, key=lambda name: -growth[name])[:_WORST]
    return [
        f"worst: {makers[name].name or name} ({makers[name].op_type}): relative error "
        f"{errors[name]:.2g}, {before[name]:.2g} before it"
        for name in ranked
        if growth[name] > 0
    ]


def _grown(error: float, before: float) -> float:
    return 0.0 if error == before else error - before


def _before(model: ModelProto, errors: Mapping[str, float]) -> dict[str, float]:
    """For each value the largest error among the nearest values known that it depends on."""
    reaching: dict[str, float] = {}
    result: dict[str, float] = {}
    for node in model.graph.node:
        largest = max((reaching.get(name, 0.0) for name in node.input), default=0.0)
        for name in node.output:
            result[name] = largest
            reaching[name] = errors.get(name, largest)
    return result
