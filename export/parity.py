"""The gate: a graph may be installed only if it says what its original says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.comparison import Comparison, compare, compare_epochs
from memcli.errors import ParityError
from memcli.export.evidence import FP32_GRAPH, GATE, Spread, spread_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.spec import Tolerance

    Scores = npt.NDArray[np.floating[Any]]


def gate(
    candidate: Scores,
    reference: Scores,
    tolerance: Tolerance,
    *,
    what: str,
    names: Sequence[str] = (),
    clip_scores: Scores | None = None,
    contributions: tuple[Scores, Scores] | None = None,
) -> Comparison:
    """Compare frame scores [clips, frames] of a candidate graph with those of its original.

    `clip_scores` [clips] are what the candidate itself gives for clips: see
    `memcli.engines.comparison.compare`. `what` names the candidate, `names` the clips. Of EEG, the
    scores are [epochs, 1], and `contributions` what both give for windows. Raises ParityError with
    the measured numbers, the limits and the worst clip if the tolerance is exceeded, ValueError if
    the shapes differ.
    """
    if contributions is None:
        comparison = compare(candidate, reference, tolerance, clip_scores=clip_scores)
    else:
        pair = candidate[:, 0], reference[:, 0]
        comparison = compare_epochs(pair, contributions, tolerance)
    if not comparison.passed:
        worst = comparison.worst_clip
        name = names[worst] if worst < len(names) else f"{comparison.of[:-1]} {worst}"
        found, wanted = float(candidate[worst].mean()), float(reference[worst].mean())
        own = found if clip_scores is None else float(clip_scores[worst])
        if not abs(found - wanted) >= abs(own - wanted):
            found = own
        raise ParityError(
            f"{what} misses its tolerance: {comparison.numbers()}; worst: {name} "
            f"({found:.4f} instead of {wanted:.4f})",
            next_step=f"Allowed: {describe(tolerance)}. Nothing was changed.",
        )
    return comparison


def describe(tolerance: Tolerance) -> str:
    """A tolerance in words."""
    text = f"max {tolerance.max_abs:g}, mean {tolerance.mean_abs:g}"
    if tolerance.min_srcc is not None:
        text += f", SRCC at least {tolerance.min_srcc:g}"
    if tolerance.min_cosine is not None:
        text += f", cosine of embeddings at least {tolerance.min_cosine:g}"
    return text


@dataclass(frozen=True)
class Parity:
    """How far a graph is from its original: scores of clips and of frames, and embeddings; of
    EEG scores of epochs and contributions of windows."""

    inputs: str
    """What was compared on, e.g. `synthetic clips`."""
    runtime: str
    """What executed the graph, e.g. `onnxruntime 1.23 on cpu, fp16 emulated`."""
    clips: int
    max_abs: float
    """Of the output that is further off, as are the two below."""
    mean_abs: float
    srcc: float | None
    """None where it is not defined."""
    embeddings: int
    """0 for a graph without named embeddings; their cosines are None then."""
    cosine_min: float | None
    cosine_mean: float | None
    passed: bool
    spread: Spread
    """Of the original's scores of clips."""
    real: bool = False
    """Whether the inputs are the user's."""

    def numbers(self) -> str:
        """The measurements in one line, for messages."""
        text = f"max |difference| {self.max_abs:.2g}, mean {self.mean_abs:.2g}"
        if self.srcc is not None:
            text += f", SRCC {self.srcc:.4f}"
        if self.cosine_min is not None and self.cosine_mean is not None:
            text += (
                f", cosine min {self.cosine_min:.5f} and mean {self.cosine_mean:.5f}"
                f" of {self.embeddings} embeddings"
            )
        return f"{text}, on {self.clips} {self.inputs}"

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        entry = asdict(self) | self.spread.to_dict()
        del entry["spread"]
        return entry | {"role": GATE, "against": FP32_GRAPH}


def measure(
    scores: Mapping[str, tuple[Scores, Scores]],
    embeddings: Mapping[str, tuple[Scores, Scores]],
    tolerance: Tolerance,
    *,
    inputs: str,
    runtime: str,
    real: bool = False,
) -> Parity:
    """Compare outputs and embeddings with the original's: pairs (found, wanted) by name.

    `scores` has `score` [N] of clips first, and `frame_scores` [M] of their frames, or
    contributions in their unit, where the graph gives them: each is held to the tolerance.
    `embeddings` are [K, D].

    Nothing is raised for a difference: see `passed`. Values that are no numbers do not pass.
    """
    outputs = [compare(a[:, None], b[:, None], tolerance) for a, b in scores.values()]
    ranks = [one.srcc for one in outputs if one.srcc is not None]
    angles = [cosines(*pair) for pair in embeddings.values()]
    joined = np.concatenate(angles) if angles else np.empty(0)
    least = float(joined.min()) if joined.size else None
    close = tolerance.min_cosine is None or least is None or least >= tolerance.min_cosine
    return Parity(
        inputs=inputs,
        runtime=runtime,
        clips=outputs[0].clips,
        max_abs=max(one.max_abs for one in outputs),
        mean_abs=max(one.mean_abs for one in outputs),
        srcc=min(ranks) if len(ranks) == len(outputs) else None,
        embeddings=joined.size,
        cosine_min=least,
        cosine_mean=float(joined.mean()) if joined.size else None,
        passed=all(one.passed for one in outputs) and close,
        spread=spread_of(next(iter(scores.values()))[1]),
        real=real,
    )


def cosines(found: Scores, wanted: Scores) -> npt.NDArray[np.float64]:
    """Cosine of each row of [N, D] with its original; -1 for a row that is no vector.

    Two rows of nothing but zeros agree.
    """
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        products = (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    products = np.where(both_zero, 1.0, np.where(lengths > 0, products, -1.0))
    return np.nan_to_num(products, nan=-1.0, posinf=-1.0, neginf=-1.0).clip(-1.0, 1.0)


def relative_error(found: Scores, wanted: Scores) -> float:
    """|found - wanted| / |wanted| of two arrays; infinite if `found` holds no numbers."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    b = np.where(np.isfinite(b), b, 0.0)  # masks hold -inf on purpose
    a = np.where(np.isneginf(a) & ~np.isfinite(wanted), 0.0, a)
    if not np.isfinite(a).all():
        return math.inf
    length = float(np.linalg.norm(b))
    error = float(np.linalg.norm(a - b))
    return error / length if length else (0.0 if error == 0 else math.inf)
