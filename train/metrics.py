"""Agreement of predicted with true scores, and how sure of it one may be.

Correlations come from scipy, errors from scikit-learn. What is undefined (a correlation with a
constant, anything with NaN, fewer videos than it takes) is None, never NaN or 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from memcli.errors import MissingDependencyError, UsageError

BOOTSTRAP_SAMPLES = 1000
LEVEL = 0.95

Interval = tuple[float, float]
Metric = Callable[[Any, Any], "float | None"]

_VALUES_AT_ONCE = 4_000_000  # of resampled values in memory


@dataclass(frozen=True)
class Estimate:
    """One measure with its confidence intervals; None for what is undefined."""

    value: float | None
    bootstrap: Interval | None
    """Percentile bootstrap over videos."""
    fisher: Interval | None = None
    """By Fisher's z transformation; of correlations only."""


@dataclass(frozen=True)
class Metrics:
    """Agreement on n videos."""

    n: int
    srcc: Estimate
    plcc: Estimate
    mse: Estimate
    mae: Estimate
    level: float = LEVEL
    """Of all intervals."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON: intervals are [low, high] lists."""
        entry = asdict(self)
        for name in ("srcc", "plcc", "mse", "mae"):
            entry[name] = {
                part: list(value) if isinstance(value, tuple) else value
                for part, value in entry[name].items()
            }
        return entry


def srcc(truth: Any, predicted: Any) -> float | None:
    """Spearman's rank correlation of two arrays [N] (scipy.stats.spearmanr)."""
    truth, predicted = _pair(truth, predicted)
    if _no_correlation(truth, predicted):
        return None
    return float(_stats().spearmanr(truth, predicted)[0])


def plcc(truth: Any, predicted: Any) -> float | None:
    """Pearson's linear correlation of two arrays [N] (scipy.stats.pearsonr)."""
    truth, predicted = _pair(truth, predicted)
    if _no_correlation(truth, predicted):
        return None
    return float(_stats().pearsonr(truth, predicted)[0])


def mse(truth: Any, predicted: Any) -> float | None:
    """Mean squared error of two arrays [N] (scikit-learn)."""
    truth, predicted = _pair(truth, predicted)
    if not _usable(truth, predicted):
        return None
    return float(_sklearn().mean_squared_error(truth, predicted))


def mae(truth: Any, predicted: Any) -> float | None:
    """Mean absolute error of two arrays [N] (scikit-learn)."""
    truth, predicted = _pair(truth, predicted)
    if not _usable(truth, predicted):
        return None
    return float(_sklearn().mean_absolute_error(truth, predicted))


def fisher_interval(r: float | None, n: int, level: float = LEVEL) -> Interval | None:
    """Confidence interval of a correlation `r` over `n` videos.

    tanh(atanh(r) +- z / sqrt(n - 3)). Source: 001_de183854d7703535.txt, section 4.3.2, equation
    13, where z is 1.96 (level 0.95), r the mean over the folds and n all videos. None if n <= 3,
    or for r of +-1, whose transform is infinite.
    """
    import math

    _check_level(level)
    if r is None or not -1 < r < 1 or n <= 3:
        return None
    half = float(_stats().norm.ppf((1 + level) / 2)) / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def bootstrap_interval(
    metric: Metric,
    truth: Any,
    predicted: Any,
    *,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int,
    level: float = LEVEL,
    rowwise: Callable[[Any, Any], Any] | None = None,
) -> Interval | None:
    """Percentile bootstrap interval of `metric` over pairs drawn with replacement.

    Arrays [N]; `samples` draws of N pairs each, the same for the same `seed`. Draws for which the
    metric is undefined (all pairs alike) are left out. `rowwise` computes the metric for each row
    of [R, N] at once, NaN where it is undefined. None with fewer than two videos, and if
    the metric is undefined for the data or for more than half of the draws.
    """
    import numpy as np

    _check_level(level)
    if samples < 1:
        raise UsageError(f"a bootstrap of {samples} draws")
    truth, predicted = _pair(truth, predicted)
    count = len(truth)
    if count < 2 or metric(truth, predicted) is None:
        return None
    rowwise = rowwise or _ROWWISE.get(metric) or _each_row(metric)
    random = np.random.default_rng(seed)
    values = []
    for start in range(0, samples, max(1, _VALUES_AT_ONCE // count)):
        size = min(samples - start, max(1, _VALUES_AT_ONCE // count))
        drawn = random.integers(0, count, (size, count))
        values.append(rowwise(truth[drawn], predicted[drawn]))
    found = np.concatenate(values)
    found = found[np.isfinite(found)]
    if 2 * len(found) < samples:
        return None
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def measure(truth: Any, predicted: Any, *, seed: int, samples: int = BOOTSTRAP_SAMPLES) -> Metrics:
    """All measures of two arrays [N] with their 95 % intervals."""
    truth, predicted = _pair(truth, predicted)

    def estimate(metric: Metric, *, correlation: bool) -> Estimate:
        value = metric(truth, predicted)
        interval = bootstrap_interval(metric, truth, predicted, samples=samples, seed=seed)
        fisher = fisher_interval(value, len(truth)) if correlation else None
        return Estimate(value, interval, fisher)

    return Metrics(
        n=len(truth),
        srcc=estimate(srcc, correlation=True),
        plcc=estimate(plcc, correlation=True),
        mse=estimate(mse, correlation=False),
        mae=estimate(mae, correlation=False),
    )


def require_packages() -> None:
    """Raise MissingDependencyError unless everything can be measured; to be asked beforehand."""
    _stats()
    _sklearn()


def _pair(truth: Any, predicted: Any) -> tuple[Any, Any]:
    import numpy as np

    truth, predicted = (np.asarray(values, dtype=np.float64) for values in (truth, predicted))
    if truth.ndim != 1 or truth.shape != predicted.shape:
        raise UsageError(
            f"{truth.shape} true and {predicted.shape} predicted scores cannot be compared"
        )
    return truth, predicted


def _usable(truth: Any, predicted: Any) -> bool:
    import numpy as np

    return len(truth) > 0 and bool(np.isfinite(truth).all() and np.isfinite(predicted).all())


def _no_correlation(truth: Any, predicted: Any) -> bool:
    return (
        len(truth) < 2
        or not _usable(truth, predicted)
        or truth.min() == truth.max()
        or predicted.min() == predicted.max()
    )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(f"a confidence level of {level}, not between 0 and 1")


# The measures of many draws [R, N] at once: a thousand calls of scipy for each of four measures
# and each fold would take longer than a fold of training.


def _plcc_rows(truth: Any, predicted: Any) -> Any:
    import numpy as np

    # A row whose values are all alike has no correlation: 0 / 0, which is left out as not finite.
    # Its centred values are exactly 0 only if they are taken from one of them, not from a mean.
    truth, predicted = truth - truth[:, :1], predicted - predicted[:, :1]
    truth, predicted = (v - v.mean(axis=1, keepdims=True) for v in (truth, predicted))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt((truth**2).sum(axis=1) * (predicted**2).sum(axis=1))
        return (truth * predicted).sum(axis=1) / scale


def _srcc_rows(truth: Any, predicted: Any) -> Any:
    rank = _stats().rankdata
    return _plcc_rows(rank(truth, axis=1), rank(predicted, axis=1))


def _mse_rows(truth: Any, predicted: Any) -> Any:
    return ((truth - predicted) ** 2).mean(axis=1)


def _mae_rows(truth: Any, predicted: Any) -> Any:
    return abs(truth - predicted).mean(axis=1)


def _each_row(metric: Metric) -> Callable[[Any, Any], Any]:
    import numpy as np

    def rows(truth: Any, predicted: Any) -> Any:
        values = (metric(one, other) for one, other in zip(truth, predicted, strict=True))
        return np.array([np.nan if value is None else value for value in values])

    return rows


_ROWWISE: dict[Metric, Callable[[Any, Any], Any]] = {
    srcc: _srcc_rows,
    plcc: _plcc_rows,
    mse: _mse_rows,
    mae: _mae_rows,
}


def _stats() -> Any:
    try:
        import scipy.stats
    except ImportError as error:
        raise _missing("scipy") from error
    return scipy.stats


def _sklearn() -> Any:
    try:
        import sklearn.metrics
    except ImportError as error:
        raise _missing("scikit-learn") from error
    return sklearn.metrics


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        package, purpose="measuring predictions", install="pip install 'memcli[train]'"
    )
