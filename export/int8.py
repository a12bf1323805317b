"""An 8 bit graph from an fp32 graph: post-training quantisation under accuracy control.

1. Keep what the installed graph itself says of all inputs: every comparison is with that.
   Fold batch normalisation; choose the range of every activation on real inputs.
2. Quantise everything that can be. If the calibration inputs agree, that is it.
3. Sweep: quantise one group of neighbouring layers at a time and measure what it does to the
   scores. Errors of groups are independent to a good approximation, so their squares add up.
4. Leave the groups that cost most in floating point, as many as the tolerance demands.
5. Repeat with more groups in floating point until the calibration inputs agree; the gate on inputs
   that none of this has seen decides.

Biases are left alone. Correcting them to the channel means of the fp32 graph, in five steps from
front to back, made ResMem three times worse (mean |difference| 0.017 on the calibration frames):
the layers of one step each make up for the same shift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.comparison import Comparison, compare, compare_epochs
from memcli.engines.verify import CONTRIBUTIONS, EEG, FRAME_SCORES, INPUT, SCORE
from memcli.errors import ParityError
from memcli.export.calibration import CalibrationSet, spread_items
from memcli.export.cases import EMBEDDINGS
from memcli.export.evidence import spread_of
from memcli.export.fold import fold_batch_norms
from memcli.export.graph_run import (
    executor,
    expose,
    run_batches,
    runs_unsigned,
    unsigned_error,
)
from memcli.export.int8_result import Int8Result
from memcli.export.layers import Layer, is_convolutional, make_groups, quantisable_layers
from memcli.export.parity import cosines, describe, gate
from memcli.export.quantize import ActivationRange, Scheme, quantise
from memcli.export.ranges import Method, Statistics, choose_range
from memcli.export.smooth import smooth
from memcli.spec import Tolerance

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnx import ModelProto

    Feeds = Mapping[str, npt.NDArray[Any]]
    Scores = npt.NDArray[np.float64]
    Report = Callable[[str], None]

DEFAULT_METHODS: dict[Scheme, Method] = {"u8s8": "mse", "s8s8": "minmax", "fp8": "minmax"}
"""By measurement. MiniLM (240 real captions, all layers, smoothed), cosine of embeddings, min and
mean: minmax 0.9885, 0.9965; mse 0.9841, 0.9960; percentile 0.9801, 0.9953; entropy 0.9820, 0.9930.
What is left of the largest values after smoothing matters."""
_RANGE_INPUTS = 48
"""Frames, captions or epochs. Ranges settle early, and every activation of each passes through
numpy."""
_SWEEP_INPUTS = 24
_MEAN_MARGIN = 0.5
"""Calibration inputs must agree this much better in the mean than the gate demands: the gate's
are others, and their order suffers from errors far smaller than its limit for the mean."""
_FRAME_SPREAD = 1.5
"""The worst of many frames is allowed to be this much worse than the worst of a few clips, each
the mean of its frames."""
_ATTEMPTS = 4


def make_int8(
    fp32_graph: Path,
    int8_graph: Path,
    data: CalibrationSet,
    tolerance: Tolerance,
    say: Report,
    *,
    method: Method | None = None,
    scheme: Scheme | None = None,
    signed_graph: Path | None = None,
) -> Int8Result:
    """Write the 8 bit graph of `fp32_graph`, with its weights beside it as `model.bin`.

    `scheme` is by default that of the kind of model: `u8s8` for a CNN, for OpenVINO, and `s8s8`
    for every other, for all runtimes; without OpenVINO here, which alone computes `u8s8` right on a
    CPU, a CNN has `s8s8`, too, and that is reported. Of a `u8s8` graph an all-signed twin for
    TensorRT is written to `signed_graph`, which starts from the same choice of layers, if it meets
    the tolerance, too; else that is reported and `Int8Result.signed` is None.

    Takes minutes for a large model. Raises ParityError with the numbers of the holdout if the
    tolerance cannot be met, or if the graph has no layer to quantise; MissingDependencyError
    without OpenVINO for a `u8s8` that was asked for, or without any runtime.
    """
    import onnx

    label = "fp8" if scheme == "fp8" else "int8"

    def report(text: str) -> None:
        say(f"{label}: {text}")

    if scheme == "u8s8" and not runs_unsigned():
        raise unsigned_error()  # before minutes are spent

    model = onnx.load(str(fp32_graph))
    layers = quantisable_layers(model)  # which folding does not change
    if scheme is None:
        scheme = "u8s8" if is_convolutional(layers) else "s8s8"
        if scheme == "u8s8" and not runs_unsigned():
            report("all signed (s8s8): OpenVINO, which the faster u8s8 is for, is not here")
            scheme = "s8s8"
    if scheme == "u8s8":  # see memcli.export.quantize; a CNN's linear layers take 1 % of its time
        layers = [layer for layer in layers if layer.is_conv]
    if not layers:
        raise ParityError("the graph has no layer that int8 would make faster")
    search = _Search(model, layers, data, tolerance, method or DEFAULT_METHODS[scheme], report)
    result = search.make(scheme, int8_graph)
    if scheme != "u8s8" or signed_graph is None:
        return result
    try:
        return replace(result, signed=search.make("s8s8", signed_graph))
    except ParityError as error:
        report(f"no graph for TensorRT, which wants everything signed: {error.what}")
        return result


class _Search:
    """The choice of layers for one model; what a scheme found out helps the next."""

    def __init__(
        self,
        model: ModelProto,
        layers: Sequence[Layer],
        data: CalibrationSet,
        tolerance: Tolerance,
        method: Method,
        report: Report,
    ):
        """`model` is the installed graph as it is, and of no use afterwards."""
        self._output = _output(model)
        self._data = data
        self._tolerance = tolerance
        self._method = method
        self._report = report
        report(f"ranges of {len(layers)} layers from {_inputs(data)}")
        # Before anything is done to the graph: a fault of that must be seen, too.
        self._inner = [name for name in EMBEDDINGS if _gives(model, name)]
        self._exact = observe(model, data.batches, self._output, self._inner)
        self._wanted = observe(model, data.holdout, self._output, self._inner)
        some = spread_items(data.batches, _batches(data.batches, _RANGE_INPUTS))
        self._model, self._layers = smooth(fold_batch_norms(model), layers, some)
        names = list(dict.fromkeys(layer.input for layer in self._layers))
        self._statistics = collect(self._model, names, some, method)
        self._order: list[list[Layer]] = []
        self._costs: list[float] = []
        self._left = 0

    def make(self, scheme: Scheme, target: Path) -> Int8Result:
        """Write the graph to `target`. Raises ParityError."""
        ranges = {
            name: choose_range(one, self._method, scheme) for name, one in self._statistics.items()
        }
        candidate, quantised, close = self._try(scheme, ranges)
        if not close and not self._order:
            self._sweep(scheme, ranges)
            target_mean = _MEAN_MARGIN * self._tolerance.mean_abs
            self._left = max(1, first_guess(self._costs, target_mean))
            self._left = min(self._left, len(self._order) - 1)
        for _ in range(_ATTEMPTS):
            if close or not self._order:
                break
            candidate, quantised, close = self._try(scheme, ranges)
            more = min(max(self._left + 1, round(self._left * 1.5)), len(self._order) - 1)
            if close or more == self._left:
                break
            self._left = more
        return self._finish(candidate, quantised, scheme, target)

    def _try(
        self, scheme: Scheme, ranges: Mapping[str, ActivationRange]
    ) -> tuple[ModelProto, list[Layer], bool]:
        """The graph with the costliest groups in float, and whether it is close enough."""
        floats = {layer for group in self._order[: self._left] for layer in group}
        quantised = [layer for layer in self._layers if layer not in floats]
        self._report(f"{len(quantised)} layers in 8 bits ({scheme}), {len(floats)} in float")
        candidate = quantise(self._model, quantised, ranges, scheme)
        found = observe(candidate, self._data.batches, self._output, self._inner)
        limits = for_calibration(self._tolerance, by_frame=self._output == FRAME_SCORES)
        seen = found.compared(self._exact, limits)
        angles = found.cosines(self._exact)
        self._report(f"calibration inputs: {seen.numbers()}{_told(angles)}")
        return candidate, quantised, seen.passed and _close(angles, self._tolerance)

    def _sweep(self, scheme: Scheme, ranges: Mapping[str, ActivationRange]) -> None:
        groups = make_groups(self._layers)
        count = _batches(self._data.batches, _SWEEP_INPUTS)
        costs = sweep(
            self._model,
            groups,
            ranges,
            spread_items(self._data.batches, count),
            scheme,
            self._report,
        )
        self._order = [groups[index] for index in np.argsort(costs)[::-1]]
        self._costs = sorted(costs, reverse=True)

    def _finish(
        self, candidate: ModelProto, quantised: Sequence[Layer], scheme: Scheme, target: Path
    ) -> Int8Result:
        found = observe(candidate, self._data.holdout, self._output, self._inner)
        wanted = self._wanted
        holdout = gate(
            np.stack(found.rows),
            np.stack(wanted.rows),
            self._tolerance,
            what=f"the {scheme} graph",
            clip_scores=found.clips,
            contributions=found.contributions_beside(wanted),
        )
        angles = found.cosines(wanted)
        self._report(f"holdout: {holdout.numbers()}{_told(angles)}")
        if not _close(angles, self._tolerance):
            raise ParityError(
                f"the {scheme} graph misses its tolerance: {holdout.numbers()}{_told(angles)}",
                next_step=f"Allowed: {describe(self._tolerance)}. Nothing was changed.",
            )
        save(candidate, target)
        names = {layer.name for layer in quantised}
        return Int8Result(
            holdout=holdout,
            float_layers=tuple(one.name for one in self._layers if one.name not in names),
            int8_layers=len(quantised),
            scheme=scheme,
            method=self._method,
            inputs=_holdout(self._data),
            cosine_min=float(angles.min()) if angles.size else None,
            cosine_mean=float(angles.mean()) if angles.size else None,
            spread=spread_of(wanted.clips),
            runtime=executor(candidate),
            real=self._data.real,
        )


def collect(
    model: ModelProto, tensors: Sequence[str], batches: Sequence[Feeds], method: Method
) -> dict[str, Statistics]:
    """What real inputs make of activation tensors."""
    found = {name: Statistics() for name in tensors}
    for values in run_batches(expose(model, tensors), batches):
        for name in tensors:
            found[name].add(values[name], method)
    return found


def sweep(
    model: ModelProto,
    groups: Sequence[Sequence[Layer]],
    ranges: Mapping[str, ActivationRange],
    batches: Sequence[Feeds],
    scheme: Scheme,
    report: Report,
) -> list[float]:
    """Root mean square error of the scores when only one group is in 8 bits."""
    output = _output(model)
    wanted = scores_of(model, batches, output)
    costs = []
    for index, group in enumerate(groups):
        scores = scores_of(quantise(model, group, ranges, scheme), batches, output)
        costs.append(float(np.sqrt(np.square(scores - wanted).mean())))
        report(
            f"group {index + 1} of {len(groups)}, {group[0].name} to {group[-1].name}: "
            f"error {costs[-1]:.4f}"
        )
    return costs


def first_guess(costs: Sequence[float], target: float) -> int:
    """How many of the costliest groups to leave in float, from independent errors.

    `costs` in descending order. The mean of |x| of a normal error is 0.8 times its deviation.
    """
    squares = np.square(costs)
    for left in range(len(costs)):
        if 0.8 * np.sqrt(squares[left:].sum()) <= target:
            return left
    return len(costs) - 1


def scores_of(model: ModelProto, batches: Sequence[Feeds], output: str) -> Scores:
    """The graph's scores of frames, or of clips, one after the other: [N]."""
    found = [values[output].reshape(-1) for values in run_batches(model, batches)]
    return np.concatenate(found).astype(np.float64)


@dataclass(frozen=True)
class Observed:
    """What a graph gives for batches of one clip each."""

    rows: list[Scores]
    """By clip its scores of frames [T], or its score [1] where the graph gives none of frames."""
    clips: Scores
    """Scores of clips, [clips]."""
    inner: dict[str, npt.NDArray[Any]]
    """Embeddings [N, D] by name."""
    contributions: Scores | None = None
    """Of windows, [epochs, windows]; None of a graph for videos."""

    def contributions_beside(self, exact: Observed) -> tuple[Scores, Scores] | None:
        """Its contributions and those of another graph, where both give some."""
        if self.contributions is None or exact.contributions is None:
            return None
        return self.contributions, exact.contributions

    def compared(self, exact: Observed, limits: Tolerance) -> Comparison:
        """With another graph, row by row; epochs with their contributions."""
        pair = self.contributions_beside(exact)
        if pair is not None:
            return compare_epochs((self.clips, exact.clips), pair, limits)
        scores, wanted = np.concatenate(self.rows), np.concatenate(exact.rows)
        return compare(scores[:, None], wanted[:, None], limits)

    def cosines(self, exact: Observed) -> npt.NDArray[np.float64]:
        """Of all embeddings with those of another graph, [M]."""
        angles = [cosines(self.inner[name], exact.inner[name]) for name in self.inner]
        return np.concatenate(angles) if angles else np.empty(0)


def observe(
    model: ModelProto, clips: Sequence[Feeds], output: str, inner: Sequence[str]
) -> Observed:
    """Run clips one by one; `output` gives the rows, and `inner` names values to look at."""
    rows: list[Scores] = []
    scores: list[Scores] = []
    contributions: list[Scores] = []
    values: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in inner}
    for found in run_batches(expose(model, inner), clips):
        rows.append(found[output].reshape(-1).astype(np.float64))
        scores.append(found[SCORE].reshape(-1).astype(np.float64))
        if CONTRIBUTIONS in found:
            contributions.append(found[CONTRIBUTIONS].astype(np.float64))
        for name in inner:
            values[name].append(found[name].reshape(-1, found[name].shape[-1]))
    joined = {name: np.concatenate(parts) for name, parts in values.items()}
    shares = np.concatenate(contributions) if contributions else None
    return Observed(rows, np.concatenate(scores), joined, shares)


def _close(angles: npt.NDArray[np.float64], tolerance: Tolerance) -> bool:
    return tolerance.min_cosine is None or not angles.size or angles.min() >= tolerance.min_cosine


def _told(angles: npt.NDArray[np.float64]) -> str:
    if not angles.size:
        return ""
    return f", cosine min {angles.min():.5f} and mean {angles.mean():.5f}"


def for_calibration(tolerance: Tolerance, *, by_frame: bool) -> Tolerance:
    """What calibration inputs must keep, from what the gate demands of clips.

    Frames vary more than clips do, and their worst may; of clips there are few, and their order
    must have a margin.
    """
    mean = tolerance.mean_abs * _MEAN_MARGIN
    if by_frame:
        return replace(tolerance, mean_abs=mean, max_abs=tolerance.max_abs * _FRAME_SPREAD)
    srcc = tolerance.min_srcc
    margin = None if srcc is None else 1 - (1 - srcc) * _MEAN_MARGIN
    return replace(tolerance, mean_abs=mean, min_srcc=margin)


def _output(model: ModelProto) -> str:
    """Scores of frames where the graph gives them, else of clips."""
    return FRAME_SCORES if FRAME_SCORES in {one.name for one in model.graph.output} else SCORE


def _gives(model: ModelProto, name: str) -> bool:
    return any(name in node.output for node in model.graph.node)


def _batches(batches: Sequence[Feeds], inputs: int) -> int:
    """Batches to take for some number of frames, captions or epochs, but a dozen at least."""
    each = max(
        len(feeds[EEG]) if EEG in feeds else int(np.prod(next(iter(feeds.values())).shape[:2]))
        for feeds in batches
    )
    return max(inputs // each, 12)


def _holdout(data: CalibrationSet) -> str:
    """What was checked with; how many videos, where they have several clips each."""
    if INPUT not in data.holdout[0]:
        return f"held-out {data.captions or data.epochs}"
    several = data.videos < len(data.holdout)
    text = f"clips of {data.videos} held-out videos" if several else "held-out videos"
    return f"{text} with {data.captions}" if data.captions else text


def _inputs(data: CalibrationSet) -> str:
    frames = ["real frames"] if INPUT in data.batches[0] else []
    return " and ".join([*frames, *filter(None, (data.captions, data.epochs))])


def save(model: ModelProto, graph: Path) -> None:
    """Write `graph` with its tensors in `model.bin` beside it. Raises OSError.

    `model` is no longer of use afterwards: onnx moves the data out of it.
    """
    import onnx

    arguments: dict[str, Any] = {"save_as_external_data": True, "location": "model.bin"}
    onnx.save(model, str(graph), **arguments)
    weights = graph.with_name("model.bin")
    if weights.exists():  # onnx lets nobody but the owner read it
        weights.chmod(graph.stat().st_mode)
