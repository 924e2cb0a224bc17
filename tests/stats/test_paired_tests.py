"""p-values of paired tests, against loops over everything that could have happened."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from lit_consistency.stats.intervals import ratio
from lit_consistency.stats.paired_tests import least_p_value, mcnemar, permutation_test


def test_mcnemar_is_the_binomial_test_of_what_differs() -> None:
    for b, c in product(range(6), range(6)):
        first = [1.0] * b + [0.0] * c + [1.0, 0.0]
        second = [0.0] * b + [1.0] * c + [1.0, 0.0]
        throws = list(product((0, 1), repeat=b + c))
        extreme = sum(sum(throw) <= min(b, c) for throw in throws)
        assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * extreme / len(throws)), rel=1e-12)
    many = mcnemar([1.0] * 530 + [0.0] * 470, [0.0] * 530 + [1.0] * 470)
    expected = 2 * sum(math.comb(1000, i) for i in range(471)) / 2**1000
    assert many == pytest.approx(expected, rel=1e-9)


def test_the_least_p_value_is_that_of_all_one_way() -> None:
    for n in (2, 5, 6):
        assert mcnemar([1.0] * n, [0.0] * n) == least_p_value(n)
        items, names = (ratio(np.arange(2.0 * n) + k) for k in (0, 1)), [i // 2 for i in range(2 * n)]
        assert permutation_test(*items, names) == least_p_value(n)
    assert least_p_value(5) > 0.05 > least_p_value(6)


def test_the_permutation_test_counts_exchanges_of_clusters() -> None:
    """Against every exchange, written out."""
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 6, 40)
    weights = rng.integers(1, 9, 40).astype(float)
    scores = rng.normal(size=(2, 40)) + np.array([[0.0], [0.4]])
    sides = [ratio(side * weights, weights) for side in scores]

    def difference(exchanged: tuple[bool, ...]) -> float:
        swap = np.array(exchanged)[clusters]
        first, second = np.where(swap, scores[1], scores[0]), np.where(swap, scores[0], scores[1])
        return abs(float((second - first) @ weights / weights.sum()))

    observed = difference((False,) * 6)
    share = np.mean([difference(each) >= observed - 1e-12 for each in product([False, True], repeat=6)])
    assert permutation_test(*sides, clusters.tolist()) == pytest.approx(share, rel=1e-12)
    thrown = permutation_test(*sides, clusters.tolist(), n_permutations=63)
    assert thrown == pytest.approx(share, abs=0.25), "fewer throws than there are ways: coins"
    assert thrown != share


def test_the_permutation_test_is_right_as_often_as_it_says() -> None:
    """Two equal models whose scores differ by cluster: below 0.1 in a tenth of the cases, which McNemar's is not."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 15)
    p_values = []
    for _ in range(300):
        strength = rng.uniform(0, 1, (2, 20))[:, clusters]
        first, second = (rng.random((2, 300)) < strength).astype(float)
        exchanged = permutation_test(ratio(first), ratio(second), clusters.tolist(), n_permutations=199)
        p_values.append((exchanged, mcnemar(first, second)))
    shares = (np.array(p_values) < 0.1).mean(0)
    assert shares[0] == pytest.approx(0.1, abs=0.05)
    assert shares[1] > 0.3


def test_the_permutation_test_of_one_cluster_or_of_no_number_says_nothing() -> None:
    a, b = ratio([1.0, 0.0, 1.0]), ratio([0.0, 0.0, 1.0])
    assert math.isnan(permutation_test(a, b, ["x", "x", "x"]))
    assert math.isnan(permutation_test(a, ratio([0.0, math.nan, 1.0])))
    assert permutation_test(a, a) == 1.0
    assert 0 < permutation_test(a, b) <= 1
