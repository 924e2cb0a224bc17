from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from lit_consistency.stats.ridge import cv_plus, fit_ridge


def test_ridge_is_the_minimum_of_its_equation() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3)) * [1, 10, 0.1] + [5, 0, 1]
    y = x @ [1, 0.2, 3] + rng.normal(size=20)
    scaled = (x - x.mean(0)) / x.std(0)

    def loss(flat: np.ndarray) -> float:
        return float(((y - flat[0] - scaled @ flat[1:]) ** 2).mean() + 0.3 * (flat[1:] ** 2).sum())

    expected = minimize(loss, np.zeros(4), tol=1e-12).x
    fitted = fit_ridge(x, y, 0.3)
    np.testing.assert_allclose([fitted.intercept, *fitted.weights], expected, rtol=1e-4, atol=1e-5)
    at = rng.normal(size=(2, 3))
    np.testing.assert_allclose(fitted.predict(at), expected[0] + (at - x.mean(0)) / x.std(0) @ expected[1:], rtol=1e-4)


def test_without_features_the_mean_is_predicted_and_a_constant_one_tells_nothing() -> None:
    y = np.asarray([1.0, 2.0, 6.0])
    assert fit_ridge(np.empty((3, 0)), y, 1.0).predict(np.empty((2, 0))).tolist() == [3.0, 3.0]
    assert fit_ridge(np.ones((3, 1)), y, 1e-9).predict(np.full((1, 1), 7.0)) == pytest.approx(3.0)


def test_the_interval_is_cv_plus_row_by_row() -> None:
    """One loop over rows, as the equation of Barber et al. has it."""
    rng = np.random.default_rng(1)
    x, groups = rng.normal(size=(24, 2)), [i % 4 for i in range(24)]
    y = x @ [1.0, -2.0] + rng.normal(size=24)
    at = rng.normal(size=(1, 2))
    lows, highs = [], []
    for i in range(24):
        kept = [j for j in range(24) if groups[j] != groups[i]]
        fitted = fit_ridge(x[kept], y[kept], 0.1)
        error = abs(float(y[i] - fitted.predict(x[i : i + 1])[0]))
        lows.append(float(fitted.predict(at)[0]) - error)
        highs.append(float(fitted.predict(at)[0]) + error)
    low, high = cv_plus(x, y, groups, at, 0.1, 0.8)
    assert low == pytest.approx(sorted(lows)[4])  # floor(.2 * 25) = the fifth
    assert high == pytest.approx(sorted(highs)[19])  # ceil(.8 * 25) = the twentieth


def test_coverage_of_exchangeable_rows() -> None:
    """300 draws with errors that are far from normal: at least 1 - alpha less three standard errors."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        x = rng.normal(size=(31, 1))
        y = x[:, 0] + rng.standard_t(2, size=31)
        low, high = cv_plus(x[:30], y[:30], range(30), x[30:], 0.01, 0.8)
        held += int(low[0] <= y[30] <= high[0])
    assert 0.8 - 3 * math.sqrt(0.16 / 300) <= held / 300 <= 0.95


def test_too_few_rows_leave_the_ends_open_and_one_group_teaches_nothing() -> None:
    x, y = np.ones((8, 1)), np.arange(8.0)
    low, high = cv_plus(x, y, range(8), x[:1], 0.1, 0.9)
    assert (low[0], high[0]) == (-math.inf, math.inf)
    nine = np.arange(9.0)
    low, high = cv_plus(np.ones((9, 1)), nine, range(9), x[:1], 0.1, 0.9)
    assert math.isfinite(low[0])
    assert math.isfinite(high[0])
    with pytest.raises(ValueError, match="groups: 1 of them"):
        cv_plus(x, y, [0] * 8, x, 0.1, 0.9)
