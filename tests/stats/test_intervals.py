"""Standard errors, intervals and paired tests, against formulas and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from lit_consistency.stats.intervals import by_class, estimate, paired_difference, ratio, standard_error

RNG = np.random.default_rng(0)
SCORES = (RNG.random(200) < 0.7).astype(float)
BYTES = RNG.integers(1, 50, 200).astype(float)
NLL = BYTES * RNG.random(200)


def test_a_mean_has_the_usual_standard_error_and_interval() -> None:
    result = estimate(ratio(NLL))
    assert result.value == pytest.approx(NLL.mean(), rel=1e-12)
    assert result.stderr == pytest.approx(NLL.std(ddof=1) / math.sqrt(200), rel=1e-12)
    assert result.stderr == standard_error(ratio(NLL))
    # an even spread is known with 199 degrees of freedom
    even = estimate(ratio(np.tile([1.0, 3.0], 100)))
    assert even.high - even.value == pytest.approx(student.ppf(0.975, 199) * even.stderr, rel=1e-9)


def test_the_error_of_a_ratio_is_that_of_its_bootstrap() -> None:
    result = estimate(ratio(NLL, BYTES))
    assert result.value == pytest.approx(NLL.sum() / BYTES.sum(), rel=1e-12)
    rng = np.random.default_rng(1)
    draws = [rng.integers(0, 200, 200) for _ in range(4000)]
    assert result.stderr == pytest.approx(np.std([NLL[d].sum() / BYTES[d].sum() for d in draws]), rel=0.05)


def test_the_variance_and_its_degrees_of_freedom_are_those_of_the_matrices() -> None:
    """CR2 and Satterthwaite's degrees of freedom with every matrix written out, for clusters of unequal size."""
    rng = np.random.default_rng(3)
    sizes = np.array([3.0, 4, 5, 8, 12, 20])
    centred = np.eye(6) - np.outer(sizes / sizes.sum(), np.ones(6))
    unequal = np.diag(1 / (1 - sizes / sizes.sum()))
    quadratic = centred.T @ unequal @ centred @ np.diag((sizes / sizes.sum()) ** 2)
    dof = np.trace(quadratic) ** 2 / np.trace(quadratic @ quadratic)
    sums = sizes * rng.choice([1.0, 2.0, 3.0], 6)
    residuals = (sums - sums.sum() / sizes.sum() * sizes) / sizes.sum()
    result = estimate(ratio(sums, sizes))
    squares = residuals**2 / (1 - sizes / sizes.sum())
    assert result.stderr == pytest.approx(math.sqrt(squares.sum()), rel=1e-12)
    seen = 2 * squares.sum() ** 2 / ((squares - squares.mean()) ** 2).sum()
    assert dof < 5
    expected = student.ppf(0.975, max(min(dof, seen), 1)) * result.stderr
    assert result.high - result.value == pytest.approx(expected, rel=1e-9)


def test_balanced_accuracy_is_the_mean_of_the_recalls() -> None:
    golds = [0] * 150 + [1] * 40 + [2] * 10
    result = estimate(by_class(SCORES, golds), share=True)
    recalls = [SCORES[:150], SCORES[150:190], SCORES[190:]]
    assert result.value == pytest.approx(np.mean([part.mean() for part in recalls]), rel=1e-12)
    variance = sum(part.var() * len(part) / (len(part) - 1) / len(part) for part in recalls) / 9
    # its residuals are divided by 1 - 1 / n, as every class's own variance is
    assert result.stderr == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert result.low < result.value < result.high
    always_first = np.asarray([float(gold == 0) for gold in golds])
    assert estimate(by_class(always_first, golds)).value == pytest.approx(1 / 3)
    assert estimate(ratio(always_first)).value == 0.75


def test_items_of_one_group_are_drawn_together() -> None:
    groups = [i // 20 for i in range(200)]
    same = np.repeat((RNG.random(10) < 0.5).astype(float), 20)
    alone, together = estimate(ratio(same), share=True), estimate(ratio(same), groups, share=True)
    assert together.value == alone.value
    means = same.reshape(10, 20).mean(1)
    assert together.stderr == pytest.approx(means.std(ddof=1) / math.sqrt(10), rel=1e-12)
    assert together.high - together.low > 3 * (alone.high - alone.low)
    each = [str(i) for i in range(200)]
    assert estimate(ratio(same), each, share=True) == pytest.approx(alone, rel=1e-12), "clusters of one item"


def test_a_share_stays_between_zero_and_one() -> None:
    fractions = [0.0] * 9 + [0.2]
    result = estimate(ratio(fractions), share=True)
    assert 0 <= result.low < 0.02 < result.high < 0.5
    assert estimate(ratio(fractions)).low < 0, "Student's does not"
    with pytest.raises(ValueError, match=r"numerators from -1.0 to 2.0: expected 0 to the denominator"):
        estimate(ratio([-1.0, 2.0]), share=True)


def test_a_single_item_has_no_interval() -> None:
    result = estimate(ratio([1.0]))
    assert result.value == 1.0
    assert math.isnan(result.stderr)
    assert math.isnan(result.low)
    assert math.isnan(estimate(ratio([1.0, 0.0]), ["a", "a"]).low)


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    better = SCORES.copy()
    better[np.flatnonzero(better == 0)[:8]] = 1.0
    result = paired_difference(ratio(SCORES), ratio(better), share=True)
    assert result.value == pytest.approx(0.04, abs=1e-12)
    assert result.low > 0
    first, second = estimate(ratio(SCORES), share=True), estimate(ratio(better), share=True)
    assert second.low < first.high, "two intervals alone would not tell them apart"
    changes = paired_difference(ratio(NLL, BYTES), ratio(NLL * 1.1, BYTES))
    assert changes.value == pytest.approx(0.1 * NLL.sum() / BYTES.sum(), rel=1e-9)
    assert changes.stderr == pytest.approx(0.1 * estimate(ratio(NLL, BYTES)).stderr, rel=1e-9)


def test_the_interval_of_a_paired_difference_is_bonett_and_price_s() -> None:
    """Their formula for 8 of 200 gained and 2 lost, with Student's quantile."""
    t, n = student.ppf(0.975, 199), 200
    first, second = np.zeros(200), np.zeros(200)
    second[:8], first[8:10] = 1.0, 1.0
    result = paired_difference(ratio(first), ratio(second), share=True)
    # few changes: the variance is known as well as from so many items
    squares = (second - first - 0.03) ** 2
    seen = 2 * squares.sum() ** 2 / ((squares - squares.mean()) ** 2).sum()
    t = student.ppf(0.975, min(199, seen))
    up, down = (8 + t * t / 4) / (n + t * t / 2), (2 + t * t / 4) / (n + t * t / 2)
    half = t * math.sqrt((up + down - (up - down) ** 2) / (n + t * t / 2))
    assert result[2:] == pytest.approx((up - down - half, up - down + half), rel=1e-9)
    same = paired_difference(ratio(first), ratio(first), share=True)
    assert same[:2] == (0.0, 0.0)
    assert same.low < 0 < same.high, "two models that agree on 200 items may differ on others"


def test_what_is_no_number_has_no_interval_and_no_warning_of_numpy() -> None:
    whole, broken = ratio([1.0, 2.0, 3.0]), ratio([1.0, math.nan, 3.0])
    assert all(math.isnan(number) for number in estimate(broken))
    assert all(math.isnan(number) for number in paired_difference(whole, broken))
