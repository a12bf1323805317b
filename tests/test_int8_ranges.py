"""Ranges of activations: each method against a slow reference in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.export import float8
from memcli.export.quantize import ActivationRange, round_to
from memcli.export.ranges import (
    METHODS,
    Statistics,
    best_range,
    choose_range,
    entropy_clip,
    percentile_clip,
)


def statistics(values: np.ndarray, method: str, batches: int = 5) -> Statistics:
    found = Statistics()
    for part in np.array_split(values.astype(np.float32), batches):
        found.add(part, method)
    return found


def heavy(seed: int, size: int = 40_000) -> np.ndarray:
    """Mostly small, with a few outliers."""
    random = np.random.default_rng(seed)
    values = random.normal(0, 1, size)
    values[:: size // 8] = random.uniform(15, 30, len(values[:: size // 8]))
    return values


def slow_entropy(counts: list[int], width: float, levels: int, stride: int) -> float:
    """TensorRT's calibrator, step by step: no numpy, no shared code."""
    counts = list(counts)
    counts[0] = counts[1]
    used = max((i for i, n in enumerate(counts) if n), default=-1) + 1
    first = max(128, levels)
    if used <= first:
        return used * width
    best, best_end = math.inf, used
    for end in [*range(first, used, stride), used]:
        p = [float(n) for n in counts[:end]]
        p[-1] += sum(counts[end:])
        buckets: dict[int, list[int]] = {}
        for i in range(end):
            buckets.setdefault(i * levels // end, []).append(i)
        q = [0.0] * end
        for members in buckets.values():
            filled = [i for i in members if p[i] > 0]
            for i in filled:
                q[i] = sum(counts[j] for j in members) / len(filled)
        total_p, total_q = sum(p), sum(q)
        loss = 0.0
        for a, b in zip(p, q, strict=True):
            if a > 0:
                loss += math.inf if b == 0 else a / total_p * math.log(a / total_p * total_q / b)
        if loss < best:
            best, best_end = loss, end
    return best_end * width


@pytest.mark.parametrize("levels", [128, 256])
@pytest.mark.parametrize("seed", [0, 1])
def test_entropy_is_that_of_a_slow_reference(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    counts = np.zeros(4096, np.int64)
    values = np.abs(random.standard_t(3, 3000)) * 20
    counts[:600] = np.bincount(values.clip(0, 599).astype(int), minlength=600)
    found = entropy_clip(counts, 0.5, levels)
    assert found == slow_entropy(counts.tolist(), 0.5, levels, stride=8)
    assert found < 300, "it clips the tail"


def test_entropy_of_little_takes_all() -> None:
    counts = np.zeros(4096, np.int64)
    counts[[3, 90]] = 1
    assert entropy_clip(counts, 2.0, 128) == 182


@pytest.mark.parametrize("seed", range(3))
def test_percentile_is_numpys(seed: int) -> None:
    values = heavy(seed)
    found = statistics(values, "percentile")
    exact = np.percentile(np.abs(values), 99.99)
    beyond = np.abs(values) > percentile_clip(found.counts, found.width)
    assert beyond.mean() <= 1e-4
    assert percentile_clip(found.counts, found.width) == pytest.approx(exact, rel=0.2)


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_histogram_grows_without_losing_a_value(scales: list[float], seed: int) -> None:
    random = np.random.default_rng(seed)
    batches = [random.normal(0, scale, 50).astype(np.float32) for scale in scales]
    found = Statistics()
    for batch in batches:
        found.add(batch, "percentile")
    everything = np.abs(np.concatenate(batches))
    assert found.largest == everything.max()
    assert found.counts.sum() == everything.size
    assert found.largest < found.width * len(found.counts)
    edge = found.width * (np.flatnonzero(found.counts)[-1] + 1)
    assert found.largest <= edge * 1.0001
    # A cut where bins meet: as many values below it as counted below it, up to rounding at edges.
    middle = len(found.counts) // 2
    below = (everything < found.width * middle).sum()
    assert abs(found.counts[:middle].sum() - below) <= 1


@pytest.mark.parametrize("scheme", ["s8s8", "u8s8", "fp8"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_range_within_the_values(method: str, scheme: str) -> None:
    for values in (heavy(3), np.abs(heavy(4)), np.zeros(100), np.ones(7)):
        found = choose_range(statistics(values, method), method, scheme)
        assert 0 <= found.clip <= np.abs(values).max() * 1.0001
        assert found.signed == (scheme != "u8s8" or bool((values < 0).any()))
        assert np.isfinite(round_to(values, found, scheme)).all()


def test_what_the_methods_do_with_outliers() -> None:
    values = heavy(5)
    clips = {m: choose_range(statistics(values, m), m, "s8s8").clip for m in METHODS}
    assert clips["minmax"] == pytest.approx(np.abs(values).max(), rel=1e-6)
    assert clips["entropy"] < clips["percentile"] <= clips["minmax"]
    assert clips["mse"] < clips["minmax"]


@pytest.mark.parametrize("scheme", ["s8s8", "fp8"])
def test_mse_is_the_least_of_its_choices(scheme: str) -> None:
    values = np.abs(heavy(6, 4000)).astype(np.float32)
    found = best_range(values, float(values.max()), signed=True, scheme=scheme)

    def error(clip: float) -> float:
        limits = ActivationRange(clip, signed=True)
        return float(np.square(round_to(values, limits, scheme) - values).mean())

    tried = [float(r * values.max()) for r in np.linspace(0.4, 1, 25)]
    assert error(found.clip) == min(map(error, tried))


def test_float8_is_that_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    random = np.random.default_rng(0)
    values = np.concatenate(
        [random.normal(0, 10.0**e, 2000).astype(np.float32) for e in range(-4, 3)]
        + [np.array([0.0, -0.0, 448, -448, 2**-10, 3 * 2**-10, 17.0, 19.0], np.float32)]
    )
    values = values.clip(-448, 448)
    codes = float8.encode(values)
    expected = values.astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(codes, expected.view(np.uint8))
    np.testing.assert_array_equal(float8.decode(codes), expected.astype(np.float32))
    assert float8.decode(float8.encode(np.array([1e9, -460.0]))).tolist() == [448, -448]
