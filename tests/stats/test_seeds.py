"""Intervals of few runs."""

from __future__ import annotations

import math

import pytest

from lit_consistency.stats.seeds import mean_interval, student_quantile


@pytest.mark.parametrize(("dof", "expected"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (30, 2.04227)])
def test_quantiles_are_those_of_the_printed_tables(dof: int, expected: float) -> None:
    assert student_quantile(0.975, dof) == pytest.approx(expected, rel=1e-5)


def test_the_quantile_inverts_the_integral_of_the_density() -> None:
    for dof in (2, 5, 8):
        t, n = student_quantile(0.9, dof), 20000
        constant = math.gamma((dof + 1) / 2) / (math.sqrt(dof * math.pi) * math.gamma(dof / 2))
        heights = [(1 + ((i + 0.5) * t / n) ** 2 / dof) ** (-(dof + 1) / 2) for i in range(n)]
        assert 0.5 + constant * sum(heights) * t / n == pytest.approx(0.9, abs=1e-8)


def test_the_interval_of_three_runs() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert found == pytest.approx((2.0, 2 - half, 2 + half, 3), rel=1e-6)


def test_one_run_has_no_interval_and_what_is_no_number_is_left_out() -> None:
    one = mean_interval([0.5, math.nan])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(mean_interval([]).mean)
