"""Metrics of recognition against scikit-learn, and calibration."""

from __future__ import annotations

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn.metrics")
pytest.importorskip("torch")

from memcli.train.eeg.metrics import (  # noqa: E402
    accuracy,
    auroc,
    balanced_accuracy,
    calibration_error,
    fit_temperature,
    measure,
)
from memcli.train.run_folder import Prediction  # noqa: E402
from memcli.training.eeg_results import calibrated, summary  # noqa: E402


@pytest.mark.parametrize("seed", range(5))
def test_they_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, 60)
    predicted = np.round(rng.uniform(size=60), 1)  # with ties
    assert auroc(truth, predicted) == pytest.approx(sklearn.roc_auc_score(truth, predicted))
    sides = predicted >= 0.5
    assert accuracy(truth, predicted) == pytest.approx(sklearn.accuracy_score(truth, sides))
    expected = sklearn.balanced_accuracy_score(truth, sides)
    assert balanced_accuracy(truth, predicted) == pytest.approx(expected)


def test_one_class_has_neither_auroc_nor_balanced_accuracy() -> None:
    assert auroc([1, 1], [0.2, 0.3]) is None
    assert balanced_accuracy([1, 1], [0.2, 0.3]) is None
    assert accuracy([1, 1], [0.2, 0.6]) == 0.5


def test_calibration_error_by_hand() -> None:
    # Bin 0.2-0.3: 2 epochs, mean 0.25, none recognised; bin 0.9-1: one at 1.0, recognised.
    assert calibration_error([0, 0, 1], [0.25, 0.25, 1.0]) == pytest.approx(0.5 / 3)
    assert calibration_error([0, 1], [0.0, 1.0]) == 0


def test_the_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    truth = rng.uniform(size=20_000) < 1 / (1 + np.exp(-logits / 3))
    assert fit_temperature(truth, logits) == pytest.approx(3, rel=0.1)
    assert fit_temperature(np.ones(9), np.arange(9)) == 1.0


def test_the_bootstrap_and_the_majority() -> None:
    truth = np.array([1] * 30 + [0] * 70)
    found = measure(truth, np.where(truth, 0.8, 0.2), seed=0)
    assert found["auroc"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert found["majority"] == 0.7
    noise = measure(truth, np.random.default_rng(1).uniform(size=100), seed=0)
    low, high = noise["auroc"]["interval"]
    assert low < noise["auroc"]["value"] < high
    assert 0.15 < high - low < 0.35


def test_the_bootstrap_of_all_draws_at_once_is_that_of_each() -> None:
    from memcli.train.eeg.metrics import _ROWWISE

    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, (50, 4)).astype(float)
    predicted = np.round(rng.uniform(size=(50, 4)), 1)
    for metric, rowwise in _ROWWISE.items():
        each = [metric(*pair) for pair in zip(truth, predicted, strict=True)]
        expected = [np.nan if one is None else one for one in each]
        np.testing.assert_allclose(rowwise(truth, predicted), expected)
        assert any(one is None for one in each) == (metric is not accuracy)


def overconfident(seed: int = 0, count: int = 400) -> list[Prediction]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, count)
    truth = rng.uniform(size=count) < 1 / (1 + np.exp(-logits))
    said = 1 / (1 + np.exp(-4 * logits))
    return [Prediction(str(i), i % 4 + 1, float(truth[i]), float(said[i])) for i in range(count)]


def test_calibration_takes_no_part_of_the_fold_that_it_is_for() -> None:
    rows = overconfident()
    scaled, temperatures = calibrated(rows)
    assert all(2.5 < one < 6 for one in temperatures.values())
    changed = [
        Prediction(one.id, one.fold, 1 - one.truth, one.predicted) if one.fold == 1 else one
        for one in rows
    ]
    _, others = calibrated(changed)
    assert others[1] == temperatures[1]
    assert others[2] != temperatures[2]
    before, after = summary(rows, 0), summary(scaled, 0)
    assert after["folds"] == pytest.approx(before["folds"])
    errors = [one["held_out"]["calibration_error"] for one in (before, after)]
    assert errors[1] < errors[0] / 2
