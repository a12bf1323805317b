"""Does a runtime on this machine say what the original says, and how fast is it?

Every variant of a bundle holds a `Reference`: frames that can be made again anywhere, and the
scores that the original gives for them. An engine is used only after it reproduced them within
the tolerance of the precision, on this machine, with this version of the runtime.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.bundle import Bundle, Variant
from memcli.engines.reference import synthetic_frames
from memcli.errors import EngineError, ModelError
from memcli.spec import Tolerance

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.engines.base import Engine

    Floats = npt.NDArray[np.floating[Any]]

SYNTHETIC = "synthetic-1"
INPUT = "frames"
FRAME_SCORES = "frame_scores"
_MIN_RANKED = 12
"""Rank correlation of fewer clips than this says nothing, and is reported but not gated."""
_TIMED_CLIPS = 4
_TIMED_RUNS = 3
_TIMED_ENOUGH_S = 4.0


@dataclass(frozen=True)
class Reference:
    """Stored in `Variant.reference` as a dict."""

    clips: int
    frames_per_clip: int
    seed: int
    frame_scores: tuple[tuple[float, ...], ...]
    """The original's score of each frame, by clip."""
    tolerance: Tolerance
    kind: str = SYNTHETIC
    """How the frames are made: `memcli.engines.reference.synthetic_frames`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict as it comes back from JSON, where tuples are lists."""
        return {**asdict(self), "frame_scores": [list(row) for row in self.frame_scores]}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Reference:
        """Raises ModelError if the entry is damaged or of a kind this version does not know."""
        try:
            reference = cls(
                clips=int(entry["clips"]),
                frames_per_clip=int(entry["frames_per_clip"]),
                seed=int(entry["seed"]),
                frame_scores=tuple(tuple(map(float, row)) for row in entry["frame_scores"]),
                tolerance=Tolerance(**entry["tolerance"]),
                kind=str(entry["kind"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the bundle's reference is damaged: {error}") from error
        shape = {len(row) for row in reference.frame_scores}
        if reference.kind != SYNTHETIC:
            raise ModelError(
                f"the bundle's reference is of kind {reference.kind!r}",
                next_step="Upgrade memcli, or install the model again.",
            )
        if len(reference.frame_scores) != reference.clips or shape != {reference.frames_per_clip}:
            raise ModelError("the bundle's reference is damaged: its scores do not fit its frames")
        return reference


@dataclass(frozen=True)
class Comparison:
    """How far candidate scores are from reference scores. A clip's score is its frames' mean."""

    clips: int
    frames: int
    max_abs: float
    """Largest difference of a clip's score."""
    mean_abs: float
    frame_max_abs: float
    frame_mean_abs: float
    srcc: float | None
    """Spearman's rank correlation of the clips' scores; None where it is not defined."""
    worst_clip: int
    passed: bool

    def numbers(self) -> str:
        """The measurements in one line, for messages."""
        srcc = "" if self.srcc is None else f", SRCC {self.srcc:.4f}"
        return (
            f"max |difference| {self.max_abs:.2g}, mean {self.mean_abs:.2g}{srcc} "
            f"on {self.clips} clips, {self.frames} frames"
        )


@dataclass(frozen=True)
class ParityReport(Comparison):
    """A comparison of one engine with the reference of its variant, and the engine's speed."""

    engine: str
    """`str(EngineDescription)`."""
    precision: str
    frames_per_s: float
    """Warm, on some of the reference's frames as one batch."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return asdict(self)


def verify(engine: Engine, bundle: Bundle, variant: Variant) -> ParityReport:
    """Run the reference's frames, compare with its scores and measure the speed.

    A few seconds for a large model. Raises EngineError if the runtime fails, ModelError if the
    reference is damaged. A difference beyond the tolerance raises nothing: see `passed`.
    """
    reference = Reference.from_dict(variant.reference)
    frames = synthetic_frames(
        bundle.prep, reference.clips, reference.frames_per_clip, reference.seed
    )
    scores = run_scores(engine, frames)
    comparison = compare(scores, np.array(reference.frame_scores), reference.tolerance)
    description = engine.describe()
    return ParityReport(
        **asdict(comparison),
        engine=str(description),
        precision=description.precision,
        frames_per_s=measure_speed(engine, frames[:_TIMED_CLIPS]) if comparison.passed else 0.0,
    )


def run_scores(engine: Engine, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Frame scores [clips, frames] of uint8 frames [clips, frames, H, W, 3].

    Raises EngineError if the runtime fails or its output has another name or shape.
    """
    outputs = engine.run({INPUT: frames})
    scores = outputs.get(FRAME_SCORES)
    if scores is None or scores.shape != frames.shape[:2]:
        got = {name: list(value.shape) for name, value in outputs.items()}
        raise EngineError(f"the graph gives {got}, not {FRAME_SCORES} {list(frames.shape[:2])}")
    return scores.astype(np.float64)


def measure_speed(engine: Engine, frames: npt.NDArray[np.uint8]) -> float:
    """Frames per second of a warm engine: the best of a few runs.

    The best, because everything else that happens on a machine can only make a run slower.
    """
    times: list[float] = []
    while len(times) < _TIMED_RUNS and sum(times) < _TIMED_ENOUGH_S:
        start = time.perf_counter()
        engine.run({INPUT: frames})
        times.append(time.perf_counter() - start)
    return float(frames.shape[0] * frames.shape[1]) / min(times)


def compare(candidate: Floats, reference: Floats, tolerance: Tolerance) -> Comparison:
    """Compare frame scores [clips, frames] with the reference's of the same shape.

    A score that is not a number counts as wrong by 1, the largest difference there is, and fails.
    Raises ValueError if the shapes differ.
    """
    if candidate.shape != reference.shape or candidate.ndim != 2 or not candidate.size:
        raise ValueError(f"scores of shape {candidate.shape} against {reference.shape}")
    candidate, reference = candidate.astype(np.float64), reference.astype(np.float64)
    by_frame = np.nan_to_num(np.abs(candidate - reference), nan=1.0, posinf=1.0)
    clips, reference_clips = candidate.mean(axis=1), reference.mean(axis=1)
    by_clip = np.nan_to_num(np.abs(clips - reference_clips), nan=1.0, posinf=1.0)
    finite = bool(np.isfinite(candidate).all())
    srcc = spearman(clips, reference_clips) if finite else float("nan")
    # Written so that NaN (all clips alike) fails where a rank correlation is asked for.
    ranked = tolerance.min_srcc is None or len(clips) < _MIN_RANKED or srcc >= tolerance.min_srcc
    return Comparison(
        clips=len(clips),
        frames=by_frame.size,
        max_abs=float(by_clip.max()),
        mean_abs=float(by_clip.mean()),
        frame_max_abs=float(by_frame.max()),
        frame_mean_abs=float(by_frame.mean()),
        srcc=None if np.isnan(srcc) else srcc,
        worst_clip=int(by_clip.argmax()),
        passed=finite
        and ranked
        and float(by_clip.max()) <= tolerance.max_abs
        and float(by_clip.mean()) <= tolerance.mean_abs,
    )


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation of two sequences [n], ties at their average rank.

    NaN where it is not defined: fewer than two values, or one sequence constant.
    """
    ranks_a, ranks_b = average_ranks(a), average_ranks(b)
    ranks_a -= ranks_a.mean() if ranks_a.size else 0.0
    ranks_b -= ranks_b.mean() if ranks_b.size else 0.0
    scale = float(np.sqrt((ranks_a**2).sum() * (ranks_b**2).sum()))
    return float((ranks_a * ranks_b).sum()) / scale if scale else float("nan")


def average_ranks(values: Floats) -> npt.NDArray[np.float64]:
    """Ranks from 1 of [n] values; equal values share the mean of the ranks they cover."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse.reshape(-1)]
    return ranks
