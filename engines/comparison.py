"""How far the scores of a candidate are from those of a reference."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memcli.spec import Tolerance

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]

_MIN_RANKED = 12
"""Rank correlation of fewer clips than this says nothing, and is reported but not gated."""
_STEEPEST = 4.0
"""A logit that is off by x moves a probability by x / 4 at most."""


@dataclass(frozen=True)
class Comparison:
    """How far candidate scores are from reference scores."""

    clips: int
    """Clips, or epochs of EEG."""
    frames: int
    """Scores compared: of frames, or of clips where the model gives no scores of frames; windows
    of EEG."""
    max_abs: float
    """Largest difference of a clip's score, and of the mean of its frames' scores."""
    mean_abs: float
    frame_max_abs: float
    frame_mean_abs: float
    srcc: float | None
    """Spearman's rank correlation of the clips' scores; None where it is not defined."""
    worst_clip: int
    passed: bool
    of: Literal["clips", "epochs"] = field(default="clips", kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON; without `of` where that is clips, as it always was."""
        entry = asdict(self)
        if self.of == "clips":
            del entry["of"]
        return entry

    def numbers(self) -> str:
        """The measurements in one line, for messages."""
        srcc = "" if self.srcc is None else f", SRCC {self.srcc:.4f}"
        parts = "frames" if self.of == "clips" else "windows"
        counted = f", {self.frames} {parts}" if self.frames > self.clips else ""
        if self.of == "epochs":
            counted += f" (contributions: max {self.frame_max_abs:.2g})"
        return (
            f"max |difference| {self.max_abs:.2g}, mean {self.mean_abs:.2g}{srcc} "
            f"on {self.clips} {self.of}{counted}"
        )


def compare(
    candidate: Floats,
    reference: Floats,
    tolerance: Tolerance,
    *,
    clip_scores: Floats | None = None,
) -> Comparison:
    """Compare scores [clips, frames], or [clips, 1], with the reference's of the same shape.

    A clip's score is the mean of its frames' scores, in every model that has them. What the
    candidate itself gives as that, `clip_scores` [clips], is held to the reference, too: of both,
    what is further off counts.

    A score that is not a number counts as wrong by 1, the largest difference there is, and fails.
    Raises ValueError if the shapes differ.
    """
    if candidate.shape != reference.shape or candidate.ndim != 2 or not candidate.size:
        raise ValueError(f"scores of shape {candidate.shape} against {reference.shape}")
    candidate, reference = candidate.astype(np.float64), reference.astype(np.float64)
    by_frame = np.nan_to_num(np.abs(candidate - reference), nan=1.0, posinf=1.0)
    clips, reference_clips = candidate.mean(axis=1)[None], reference.mean(axis=1)
    if clip_scores is not None:
        if clip_scores.shape != reference_clips.shape:
            raise ValueError(f"clip scores of shape {clip_scores.shape} of {len(reference)} clips")
        clips = np.stack([clips[0], clip_scores.astype(np.float64)])
    errors = np.nan_to_num(np.abs(clips - reference_clips), nan=1.0, posinf=1.0)
    by_clip = errors.max(axis=0)
    finite = bool(np.isfinite(candidate).all() and np.isfinite(clips).all())
    # np.min, not min: NaN of either must stay.
    srcc = float(np.min([spearman(one, reference_clips) for one in clips])) if finite else np.nan
    # Written so that NaN (all clips alike) fails where a rank correlation is asked for.
    ranked = tolerance.min_srcc is None or len(by_clip) < _MIN_RANKED or srcc >= tolerance.min_srcc
    return Comparison(
        clips=len(by_clip),
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


def compare_epochs(
    scores: tuple[Floats, Floats], contributions: tuple[Floats, Floats], tolerance: Tolerance
) -> Comparison:
    """Compare what a candidate and a reference, in this order, say of epochs of EEG.

    `scores` are [epochs], `contributions` [epochs, windows]; both are held to the tolerance,
    contributions as `as_probabilities` scales them. Raises ValueError if the shapes differ.
    """
    if contributions[0].shape != contributions[1].shape:
        shapes = tuple(one.shape for one in contributions)
        raise ValueError(f"contributions of shape {shapes[0]} against {shapes[1]}")
    of_scores = compare(scores[0][:, None], scores[1][:, None], tolerance)
    found, wanted = as_probabilities(*contributions)
    parts = compare(found.reshape(-1, 1), wanted.reshape(-1, 1), tolerance)
    # The order of windows is not what min_srcc is about.
    close = parts.max_abs <= tolerance.max_abs and parts.mean_abs <= tolerance.mean_abs
    return replace(
        of_scores,
        frames=parts.frames,
        frame_max_abs=parts.max_abs,
        frame_mean_abs=parts.mean_abs,
        passed=of_scores.passed and close and bool(np.isfinite(contributions[0]).all()),
        of="epochs",
    )


def as_probabilities(found: Floats, wanted: Floats) -> tuple[Floats, Floats]:
    """Contributions to a logit, in the unit that tolerances are in.

    An error of x in the logit changes the probability by x / 4 at most. Where contributions are
    larger than 1, so that probabilities are at an end of their scale anyway, errors count by the
    largest of them.
    """
    largest = float(np.abs(wanted).max()) if wanted.size else 1.0
    scale = _STEEPEST * max(1.0, largest)
    return found / scale, wanted / scale


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation of two sequences [n], ties at their average rank.

    NaN where it is not defined: fewer than two values, or one sequence constant.
    """
    ranks_a, ranks_b = _average_ranks(a), _average_ranks(b)
    ranks_a -= ranks_a.mean() if ranks_a.size else 0.0
    ranks_b -= ranks_b.mean() if ranks_b.size else 0.0
    scale = float(np.sqrt((ranks_a**2).sum() * (ranks_b**2).sum()))
    return float((ranks_a * ranks_b).sum()) / scale if scale else float("nan")


def _average_ranks(values: Floats) -> npt.NDArray[np.float64]:
    """Ranks from 1 of [n] values; equal values share the mean of the ranks they cover."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse.reshape(-1)]
    return ranks
