"""An int8 graph from an fp32 graph: post-training quantisation under accuracy control.

1. Fold batch normalisation; choose the range of every activation on real frames.
2. Sweep: quantise one group of neighbouring layers at a time and measure what it does to the
   scores. Errors of groups are independent to a good approximation, so their squares add up.
3. Leave the groups that cost most in floating point, as many as the tolerance demands.
4. Repeat with more groups in floating point until frames of the calibration set agree; the gate
   on clips that none of this has seen decides.

Biases are left alone. Correcting them to the channel means of the fp32 graph, in five steps from
front to back, made ResMem three times worse (mean |difference| 0.017 on the calibration frames):
the layers of one step each make up for the same shift.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.verify import FRAME_SCORES, Comparison, compare
from memcli.errors import ParityError
from memcli.export.calibration import (
    CalibrationSet,
    activation_ranges,
    frame_scores,
    spread,
)
from memcli.export.fold import fold_batch_norms
from memcli.export.parity import gate
from memcli.export.quantize import ActivationRange, Layer, quantisable_layers, quantise
from memcli.spec import Tolerance

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnx import ModelProto

    Frames = npt.NDArray[np.uint8]

MAX_GROUPS = 16
_SWEEP_FRAMES = 24
_MEAN_MARGIN = 0.5
"""Calibration frames must agree this much better in the mean than the gate demands: the gate's
clips are others, and their order suffers from errors far smaller than its limit for the mean."""
_FRAME_SPREAD = 1.5
"""The worst of many frames is allowed to be this much worse than the worst of a few clips, each
the mean of its frames."""
_ATTEMPTS = 4


@dataclass(frozen=True)
class Int8Result:
    """What became of a graph."""

    holdout: Comparison
    """Against the fp32 graph, on clips that had no part in the calibration."""
    float_layers: tuple[str, ...]
    """Convolutions left in floating point because they cost too much accuracy."""
    int8_layers: int


def make_int8(
    fp32_graph: Path,
    int8_graph: Path,
    clips: CalibrationSet,
    tolerance: Tolerance,
    report: Callable[[str], None],
) -> Int8Result:
    """Write the int8 graph of `fp32_graph`, with its weights beside it as `model.bin`.

    Takes minutes for a large model. Raises ParityError with the numbers of the holdout clips if
    the tolerance cannot be met, or if the graph has no convolution to quantise.
    """
    import onnx

    model = fold_batch_norms(onnx.load(str(fp32_graph)))
    layers = quantisable_layers(model)
    if not layers:
        raise ParityError("the graph has no layer that int8 would make faster")
    report(f"int8: ranges of {len(layers)} layers from real frames")
    ranges = activation_ranges(
        model, list(dict.fromkeys(layer.input for layer in layers)), clips.frames
    )
    exact = frame_scores(model, clips.frames, FRAME_SCORES)
    groups = make_groups(layers)
    costs = sweep(model, groups, ranges, clips.frames, exact, report)
    order = [groups[index] for index in np.argsort(costs)[::-1]]
    left = first_guess(sorted(costs, reverse=True), _MEAN_MARGIN * tolerance.mean_abs)
    for _ in range(_ATTEMPTS):
        chosen = {layer for group in order[left:] for layer in group}
        quantised = [layer for layer in layers if layer in chosen]
        report(f"int8: {len(quantised)} layers in int8, {len(layers) - len(quantised)} in float")
        candidate = quantise(model, quantised, ranges)
        scores = frame_scores(candidate, clips.frames, FRAME_SCORES)
        seen = compare(scores[:, None], exact[:, None], for_frames(tolerance))
        report(f"int8: calibration frames: {seen.numbers()}")
        more = min(max(left + 1, round(left * 1.5)), len(order) - 1)
        if seen.passed or more == left:
            break
        left = more
    holdout = gate(
        clip_scores(candidate, clips.holdout),
        clip_scores(model, clips.holdout),
        tolerance,
        what="the int8 graph",
    )
    report(f"int8: holdout clips: {holdout.numbers()}")
    save(candidate, int8_graph)
    kept = tuple(layer.name for layer in layers if layer not in chosen)
    return Int8Result(holdout, kept, len(quantised))


def make_groups(layers: Sequence[Layer]) -> list[list[Layer]]:
    """At most 16 runs of neighbouring layers, of nearly equal length."""
    bounds = np.linspace(0, len(layers), min(len(layers), MAX_GROUPS) + 1).round().astype(int)
    return [list(layers[a:b]) for a, b in itertools.pairwise(bounds)]


def sweep(
    model: ModelProto,
    groups: Sequence[Sequence[Layer]],
    ranges: dict[str, ActivationRange],
    frames: Frames,
    exact: npt.NDArray[np.float64],
    report: Callable[[str], None],
) -> list[float]:
    """Root mean square error of the frame scores when only one group is in int8."""
    seen, wanted = spread(frames, _SWEEP_FRAMES), spread(exact, _SWEEP_FRAMES)
    costs = []
    for index, group in enumerate(groups):
        scores = frame_scores(quantise(model, group, ranges), seen, FRAME_SCORES)
        costs.append(float(np.sqrt(np.square(scores - wanted).mean())))
        report(
            f"int8: group {index + 1} of {len(groups)}, {group[0].name} to {group[-1].name}: "
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


def clip_scores(model: ModelProto, clips: Frames) -> npt.NDArray[np.float64]:
    """Frame scores [clips, T] of clips [clips, T, H, W, 3]."""
    count, length = clips.shape[:2]
    frames = clips.reshape(count * length, *clips.shape[2:])
    return frame_scores(model, frames, FRAME_SCORES).reshape(count, length)


def for_frames(tolerance: Tolerance) -> Tolerance:
    """What single calibration frames must keep, from what the gate demands of clips."""
    return replace(
        tolerance,
        mean_abs=tolerance.mean_abs * _MEAN_MARGIN,
        max_abs=tolerance.max_abs * _FRAME_SPREAD,
    )


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
