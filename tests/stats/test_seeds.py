"""Intervals of few runs."""

from __future__ import annotations

import math

import pytest

from lit_consistency.stats.seeds import mean_interval


def test_the_interval_of_three_runs() -> None:
    result = mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # the printed table's quantile of 2 degrees of freedom
    assert result == pytest.approx((2.0, 2 - half, 2 + half, 3), rel=1e-6)


def test_one_run_has_no_interval_and_what_is_no_number_is_left_out() -> None:
    one = mean_interval([0.5, math.nan])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(mean_interval([]).mean)
