"""Metrics against scipy, scikit-learn and the paper's interval; what is undefined is None."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from memcli.errors import UsageError
from memcli.train import metrics

stats = pytest.importorskip("scipy.stats")
pytest.importorskip("sklearn")

ALL = (metrics.srcc, metrics.plcc, metrics.mse, metrics.mae)


def scores(count: int, seed: int = 0) -> tuple[Any, Any]:
    """True scores, some of them alike, and noisy predictions."""
    random = np.random.default_rng(seed)
    truth = random.integers(50, 100, count) / 100
    return truth, truth + 0.1 * random.standard_normal(count)


def test_values_are_those_of_the_definitions() -> None:
    truth, predicted = scores(50)
    assert metrics.mse(truth, predicted) == pytest.approx(np.mean((truth - predicted) ** 2))
    assert metrics.mae(truth, predicted) == pytest.approx(np.mean(abs(truth - predicted)))
    assert metrics.plcc(truth, predicted) == pytest.approx(np.corrcoef(truth, predicted)[0, 1])
    ranks = [  # average ranks of ties, by counting
        [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]
        for values in (truth, predicted)
    ]
    assert metrics.srcc(truth, predicted) == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_order_alone_decides_about_srcc() -> None:
    truth = np.array([0.1, 0.4, 0.5, 0.9])
    assert metrics.srcc(truth, truth**3) == pytest.approx(1)
    assert metrics.srcc(truth, -truth) == pytest.approx(-1)
    assert metrics.plcc(truth, truth**3) < 1


@pytest.mark.parametrize(
    ("truth", "predicted", "errors_defined"),
    [
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], True),
        ([0.1, 0.2, 0.3], [0.7, 0.7, 0.7], True),
        ([0.5], [0.4], True),
        ([], [], False),
        ([0.1, 0.2, math.nan], [0.1, 0.2, 0.3], False),
        ([0.1, 0.2, 0.3], [0.1, math.inf, 0.3], False),
    ],
)
def test_undefined_is_none(
    truth: list[float], predicted: list[float], errors_defined: bool, recwarn: Any
) -> None:
    assert metrics.srcc(truth, predicted) is None
    assert metrics.plcc(truth, predicted) is None
    assert (metrics.mse(truth, predicted) is not None) == errors_defined
    assert (metrics.mae(truth, predicted) is not None) == errors_defined
    found = metrics.measure(truth, predicted, seed=0, samples=20)
    assert (found.srcc.value, found.srcc.bootstrap, found.srcc.fisher) == (None, None, None)
    assert "NaN" not in json.dumps(found.to_dict())
    assert not recwarn.list


def test_lengths_must_agree() -> None:
    for metric in ALL:
        with pytest.raises(UsageError, match="cannot be compared"):
            metric([0.1, 0.2], [0.1])
        with pytest.raises(UsageError, match="cannot be compared"):
            metric([[0.1, 0.2]], [[0.1, 0.2]])


def test_fisher_interval_is_equation_13() -> None:
    """001, section 4.3.2, whose z is 1.96; table 6 gives 0.672 (0.660, 0.683) of 8,500 videos."""
    low, high = metrics.fisher_interval(0.672, 8500) or (0, 0)
    half = 1.96 / math.sqrt(8500 - 3)
    assert low == pytest.approx(math.tanh(math.atanh(0.672) - half), abs=1e-6)
    assert high == pytest.approx(math.tanh(math.atanh(0.672) + half), abs=1e-6)
    assert (round(low, 3), round(high, 3)) == (0.660, 0.683)


def test_fisher_interval_is_scipys() -> None:
    truth, predicted = scores(40)
    expected = stats.pearsonr(truth, predicted).confidence_interval(0.9)
    r = metrics.plcc(truth, predicted)
    assert metrics.fisher_interval(r, 40, 0.9) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("r", "n"), [(0.5, 3), (1.0, 100), (-1.0, 100), (None, 100)])
def test_fisher_interval_may_be_undefined(r: float | None, n: int) -> None:
    assert metrics.fisher_interval(r, n) is None


@pytest.mark.parametrize("level", [0, 1, -0.5, 95])
def test_levels_are_shares(level: float) -> None:
    with pytest.raises(UsageError, match="confidence level"):
        metrics.fisher_interval(0.5, 100, level)
    with pytest.raises(UsageError, match="confidence level"):
        metrics.bootstrap_interval(metrics.mse, *scores(9), seed=0, level=level)


@pytest.mark.parametrize("metric", ALL)
def test_bootstrap_is_scipys_on_the_same_draws(metric: Any) -> None:
    truth, predicted = scores(30)
    found = metrics.bootstrap_interval(metric, truth, predicted, samples=400, seed=5, level=0.9)
    expected = stats.bootstrap(
        (truth, predicted),
        metric,
        paired=True,
        vectorized=False,
        n_resamples=400,
        method="percentile",
        confidence_level=0.9,
        random_state=np.random.default_rng(5),
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_bootstrap_of_an_unknown_metric_is_the_same(metric: Any) -> None:
    truth, predicted = scores(25)
    known = metrics.bootstrap_interval(metric, truth, predicted, samples=100, seed=2)
    wrapped = metrics.bootstrap_interval(
        lambda one, other: metric(one, other), truth, predicted, samples=100, seed=2
    )
    assert known == pytest.approx(wrapped, abs=1e-12)


def test_bootstrap_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, predicted = scores(25)
    whole = metrics.bootstrap_interval(metrics.srcc, truth, predicted, samples=101, seed=2)
    monkeypatch.setattr(metrics, "_VALUES_AT_ONCE", 250)
    parts = metrics.bootstrap_interval(metrics.srcc, truth, predicted, samples=101, seed=2)
    assert whole == parts


def test_bootstrap_is_seeded() -> None:
    pair = scores(25)
    first, again, other = (
        metrics.bootstrap_interval(metrics.srcc, *pair, samples=200, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_bootstrap_leaves_constant_draws_out() -> None:
    """Of three pairs many draws are three times the same, without any correlation."""
    truth, predicted = [0.1, 0.2, 0.9], [0.2, 0.1, 0.8]
    low, high = metrics.bootstrap_interval(metrics.plcc, truth, predicted, samples=500, seed=0) or (
        9,
        9,
    )
    assert -1 <= low < high <= 1
    two = metrics.bootstrap_interval(metrics.plcc, [0.1, 0.2], [0.3, 0.9], samples=500, seed=0)
    assert two is None or two == pytest.approx((1, 1))
    constant = metrics.bootstrap_interval(metrics.plcc, [0.3] * 9, range(9), samples=50, seed=0)
    assert constant is None


def test_a_constant_draw_has_no_correlation_by_rounding() -> None:
    """0.1 thirty times has a mean that is not 0.1: a residue must not become a correlation."""
    rows = metrics._plcc_rows(np.full((1, 30), 0.1), np.linspace(0, 1, 30)[None])
    assert np.isnan(rows).all()


def test_no_draws_is_an_error() -> None:
    with pytest.raises(UsageError, match="0 draws"):
        metrics.bootstrap_interval(metrics.mse, *scores(9), samples=0, seed=0)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    hits = {"bootstrap": 0, "fisher": 0}
    for trial in range(100):
        x = random.standard_normal(150)
        y = 0.6 * x + 0.8 * random.standard_normal(150)  # their correlation is 0.6
        found = metrics.measure(x, y, seed=trial, samples=300).plcc
        for kind in hits:
            low, high = getattr(found, kind)
            hits[kind] += low <= 0.6 <= high
    assert all(88 <= count <= 99 for count in hits.values()), hits


def test_measure_has_everything() -> None:
    truth, predicted = scores(40)
    found = metrics.measure(truth, predicted, seed=3, samples=200)
    assert found.n == 40
    for name in ("srcc", "plcc", "mse", "mae"):
        estimate = getattr(found, name)
        assert estimate.value == getattr(metrics, name)(truth, predicted)
        assert estimate.bootstrap[0] <= estimate.value <= estimate.bootstrap[1]
    assert found.srcc.fisher is not None
    assert found.mse.fisher is None
    entry = json.loads(json.dumps(found.to_dict()))
    assert entry == found.to_dict()
    assert entry["srcc"] == {
        "value": found.srcc.value,
        "bootstrap": list(found.srcc.bootstrap or ()),
        "fisher": list(found.srcc.fisher or ()),
    }
    assert entry["level"] == 0.95


def test_a_bootstrap_that_is_mostly_undefined_is_none() -> None:
    def of_the_first(truth: Any, predicted: Any) -> float | None:
        return None if truth[0] else 1.0

    truth = np.array([0.0] + [1.0] * 9)
    assert metrics.bootstrap_interval(of_the_first, truth, truth, seed=0) is None
    mostly = np.array([0.0] * 9 + [1.0])
    assert metrics.bootstrap_interval(of_the_first, mostly, mostly, seed=0) == (1, 1)
