"""The gate: a graph may be installed only if it says what its original says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memcli.engines.verify import Comparison, compare
from memcli.errors import ParityError

if TYPE_CHECKING:
    import numpy as np
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
) -> Comparison:
    """Compare frame scores [clips, frames] of a candidate graph with those of its original.

    `what` names the candidate, `names` the clips. Raises ParityError with the measured numbers,
    the limits and the worst clip if the tolerance is exceeded, ValueError if the shapes differ.
    """
    comparison = compare(candidate, reference, tolerance)
    if not comparison.passed:
        worst = comparison.worst_clip
        name = names[worst] if worst < len(names) else f"clip {worst}"
        raise ParityError(
            f"{what} misses its tolerance: {comparison.numbers()}; worst: {name} "
            f"({candidate[worst].mean():.4f} instead of {reference[worst].mean():.4f})",
            next_step=f"Allowed: {describe(tolerance)}. Nothing was changed.",
        )
    return comparison


def describe(tolerance: Tolerance) -> str:
    """A tolerance in words."""
    text = f"max {tolerance.max_abs:g}, mean {tolerance.mean_abs:g}"
    return text if tolerance.min_srcc is None else f"{text}, SRCC at least {tolerance.min_srcc:g}"
