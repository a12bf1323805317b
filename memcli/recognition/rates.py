"""How well probabilities tell labels apart: ROC, its area, balanced accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Rates:
    """Of N labelled epochs at one threshold."""

    epochs: int
    positives: int
    """Epochs with label 1."""
    auroc: float
    """Probability that an epoch of label 1 has more than one of label 0; ties count half."""
    balanced_accuracy: float
    """Mean of the shares of both labels that are told right."""
    accuracy: float
    majority: float
    """Accuracy of always saying the more frequent label."""
    false_positive: Floats
    """Rates from 0 to 1 as the threshold falls, one per distinct probability."""
    true_positive: Floats


def rates(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> Rates | None:
    """The rates of labels 0 or 1 [N] and probabilities [N]; None unless both labels occur."""
    truth = np.asarray(labels, dtype=bool)
    found = np.asarray(probabilities, dtype=np.float64)
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    order = np.argsort(-found, kind="stable")
    last_of_ties = np.append(np.diff(found[order]) != 0, True)
    hits = np.append(0, np.cumsum(truth[order])[last_of_ties]) / positives
    alarms = np.append(0, np.cumsum(~truth[order])[last_of_ties]) / negatives
    said = found >= threshold
    return Rates(
        epochs=len(truth),
        positives=positives,
        auroc=float(np.sum(np.diff(alarms) * (hits[1:] + hits[:-1]) / 2)),
        balanced_accuracy=float((said[truth].mean() + (~said[~truth]).mean()) / 2),
        accuracy=float((said == truth).mean()),
        majority=max(positives, negatives) / len(truth),
        false_positive=alarms,
        true_positive=hits,
    )
