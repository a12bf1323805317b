"""What held-out epochs say of an EEG training: metrics over folds, and how far to believe them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcli.train.run_folder import Prediction

_MOST = 1 - 1e-7
"""A probability in 32 bits that is 1 has no logit."""


def fold_metrics(rows: Sequence[Prediction], seed: int) -> dict[str, Any]:
    """`memcli.train.eeg.metrics.measure` of some held-out epochs."""
    from memcli.train.eeg.metrics import measure

    return measure([one.truth for one in rows], [one.predicted for one in rows], seed=seed)


def summary(rows: Sequence[Prediction], seed: int) -> dict[str, Any]:
    """Mean AUROC over the folds with its standard deviation, and metrics over all held-out epochs.

    `{auroc, auroc_std, folds: [AUROC of each], held_out: measure(...)}`; the mean is over the folds
    where it is defined, None if it is in none. The intervals are of `held_out`.
    """
    from memcli.train.eeg.metrics import auroc

    folds = sorted({one.fold for one in rows})
    values = [
        auroc(
            [one.truth for one in rows if one.fold == fold],
            [one.predicted for one in rows if one.fold == fold],
        )
        for fold in folds
    ]
    defined = [value for value in values if value is not None]
    return {
        "auroc": statistics.fmean(defined) if defined else None,
        "auroc_std": statistics.stdev(defined) if len(defined) > 1 else None,
        "folds": values,
        "held_out": fold_metrics(rows, seed),
    }


def temperature(rows: Sequence[Prediction]) -> float:
    """What all logits are to be divided by, by these held-out epochs."""
    from memcli.train.eeg.metrics import fit_temperature

    return fit_temperature([one.truth for one in rows], [logit(one.predicted) for one in rows])


def calibrated(rows: Sequence[Prediction]) -> tuple[list[Prediction], dict[int, float]]:
    """Each fold's probabilities at the temperature that the other folds' epochs say, by fold.

    So no epoch has a part in its own calibration. One fold alone keeps temperature 1.
    """
    folds = sorted({one.fold for one in rows})
    found = {
        fold: temperature([one for one in rows if one.fold != fold]) if len(folds) > 1 else 1.0
        for fold in folds
    }
    scaled = [
        replace(one, predicted=1 / (1 + math.exp(-logit(one.predicted) / found[one.fold])))
        for one in rows
    ]
    return scaled, found


def logit(probability: float) -> float:
    """Of a probability, kept finite."""
    kept = min(max(probability, 1 - _MOST), _MOST)
    return math.log(kept / (1 - kept))
