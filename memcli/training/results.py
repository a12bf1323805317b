"""What the held-out videos say of a training: metrics per fold, their mean, the fusion weight."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcli.train.run_folder import Prediction

ALPHA_STEPS = 20
"""alpha is chosen from 0, 0.05, ..., 1."""
_DEFAULT_ALPHA = 0.7
"""Of equally good ones the nearest to this, the paper's, is taken."""


def fold_metrics(rows: Sequence[Prediction], seed: int) -> dict[str, Any]:
    """`Metrics.to_dict()` of some held-out videos."""
    from memcli.train.metrics import measure

    return measure(
        [one.truth for one in rows], [one.predicted for one in rows], seed=seed
    ).to_dict()


def summary(
    folds: Sequence[dict[str, Any]], predictions: Sequence[Prediction], seed: int
) -> dict[str, Any]:
    """Mean SRCC of the folds with its interval and standard deviation, and metrics over all.

    The interval is that of 001_de183854d7703535.txt, equation 13: Fisher's z of the mean over the
    folds, n the number of all held-out videos. A fold whose SRCC is undefined makes the mean
    undefined.
    """
    from memcli.train.metrics import fisher_interval

    values = [entry["metrics"]["srcc"]["value"] for entry in folds]
    defined = [value for value in values if value is not None]
    mean = statistics.fmean(defined) if len(defined) == len(values) and values else None
    interval = fisher_interval(mean, len(predictions))
    return {
        "mean_srcc": mean,
        "interval": None if interval is None else list(interval),
        "std_srcc": statistics.stdev(defined) if len(defined) > 1 else None,
        "held_out": fold_metrics(predictions, seed),
    }


def with_alpha(predictions: Sequence[Prediction], alpha: float) -> list[Prediction]:
    """Late fusion of the branches with another weight of the vision branch."""
    return [
        replace(one, predicted=alpha * one.branches[0] + (1 - alpha) * one.branches[1])
        for one in predictions
    ]


def choose_alpha(predictions: Sequence[Prediction]) -> float:
    """The fusion weight with the highest mean SRCC over the folds, from 0 to 1 in steps of 0.05.

    Source: 000_bcb79d7cf5a52fe8.txt, section 3.1 ("chosen based on best cross-validation SRCC").
    """
    from memcli.train.metrics import srcc

    folds = sorted({one.fold for one in predictions})

    def mean(alpha: float) -> float:
        fused = with_alpha(predictions, alpha)
        found = []
        for fold in folds:
            rows = [one for one in fused if one.fold == fold]
            value = srcc([one.truth for one in rows], [one.predicted for one in rows])
            found.append(-1.0 if value is None else value)
        return statistics.fmean(found)

    grid = [round(step / ALPHA_STEPS, 2) for step in range(ALPHA_STEPS + 1)]
    return max(grid, key=lambda alpha: (mean(alpha), -abs(alpha - _DEFAULT_ALPHA)))
