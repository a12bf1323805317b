"""How well probabilities tell recognised from unrecognised, and how far they can be believed.

AUROC is the paper's measure (000_bcb79d7cf5a52fe8.txt, table 2), accuracy that of MediaEval. What
is undefined, such as the AUROC of one class, is None.
"""

from __future__ import annotations

from typing import Any

from memcli.train.metrics import bootstrap_interval

BINS = 10
"""Of the expected calibration error."""
THRESHOLD = 0.5
_TEMPERATURES = (0.05, 20.0)


def auroc(truth: Any, predicted: Any) -> float | None:
    """Area under the ROC curve of labels and scores, arrays [N]: Mann and Whitney's U, scaled.

    The probability that a recognised clip has a higher score than an unrecognised one, ties
    counting half; equal to `sklearn.metrics.roc_auc_score`. None unless both classes are there.
    """
    import numpy as np
    from scipy.stats import rankdata

    truth, predicted = np.asarray(truth), np.asarray(predicted)
    positive = truth == 1
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others or not np.isfinite(predicted).all():
        return None
    ranks = rankdata(predicted)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def accuracy(truth: Any, predicted: Any) -> float | None:
    """Share of epochs, arrays [N], on the right side of 0.5."""
    import numpy as np

    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if not len(truth):
        return None
    return float(((predicted >= THRESHOLD) == (truth == 1)).mean())


def balanced_accuracy(truth: Any, predicted: Any) -> float | None:
    """Mean of the two classes' accuracies; 0.5 for any constant. None unless both are there."""
    import numpy as np

    truth, predicted = np.asarray(truth), np.asarray(predicted)
    sides = [accuracy(truth[truth == label], predicted[truth == label]) for label in (0, 1)]
    return None if None in sides else float(np.mean([one for one in sides if one is not None]))


def calibration_error(truth: Any, predicted: Any) -> float | None:
    """Expected calibration error over ten bins of equal width.

    The mean over all epochs of |share that was recognised - mean probability| of their bin.
    """
    import numpy as np

    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if not len(truth):
        return None
    places = np.minimum((predicted * BINS).astype(int), BINS - 1)
    gaps = [
        abs(truth[places == place].sum() - predicted[places == place].sum())
        for place in range(BINS)
    ]
    return float(sum(gaps) / len(truth))


def measure(truth: Any, predicted: Any, *, seed: int) -> dict[str, Any]:
    """All measures of labels and probabilities, arrays [N], with 95 % bootstrap intervals.

    `{n, majority, auroc: {value, interval}, accuracy, balanced_accuracy, calibration_error}`;
    `majority` is the accuracy of always saying the more frequent label, whose AUROC and balanced
    accuracy are 0.5. The bootstrap draws epochs.
    """
    import numpy as np

    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    found: dict[str, Any] = {
        "n": len(truth),
        "majority": float(max(truth.mean(), 1 - truth.mean())) if len(truth) else None,
        "calibration_error": calibration_error(truth, predicted),
    }
    for metric in (auroc, accuracy, balanced_accuracy):
        interval = bootstrap_interval(metric, truth, predicted, seed=seed, rowwise=_ROWWISE[metric])
        found[metric.__name__] = {
            "value": metric(truth, predicted),
            "interval": None if interval is None else list(interval),
        }
    return found


# The measures of many draws [R, N] at once, NaN where they are undefined.


def _auroc_rows(truth: Any, predicted: Any) -> Any:
    import numpy as np
    from scipy.stats import rankdata

    count = truth.sum(axis=1)
    others = truth.shape[1] - count
    above = (rankdata(predicted, axis=1) * truth).sum(axis=1) - count * (count + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return above / (count * others)


def _accuracy_rows(truth: Any, predicted: Any) -> Any:
    return ((predicted >= THRESHOLD) == (truth == 1)).mean(axis=1)


def _balanced_rows(truth: Any, predicted: Any) -> Any:
    import numpy as np

    right = (predicted >= THRESHOLD) == (truth == 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        sides = [
            (right & (truth == one)).sum(axis=1) / (truth == one).sum(axis=1) for one in (0, 1)
        ]
    return (sides[0] + sides[1]) / 2


_ROWWISE = {
    auroc: _auroc_rows,
    accuracy: _accuracy_rows,
    balanced_accuracy: _balanced_rows,
}


def fit_temperature(truth: Any, logits: Any) -> float:
    """The temperature T that makes sigmoid(logits / T) most likely, arrays [N], within 0.05 to 20.

    1.0 unless both labels are there. Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    truth, logits = np.asarray(truth, np.float64), np.asarray(logits, np.float64)
    if len(set(truth.tolist())) < 2:
        return 1.0

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        return float((np.logaddexp(0, scaled) - truth * scaled).mean())

    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))
