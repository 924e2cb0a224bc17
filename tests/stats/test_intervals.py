"""Standard errors, intervals and paired tests, against formulas and loops."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from lit_consistency.stats.intervals import by_class, estimate, mcnemar, paired_difference, permutation_test, ratio

RNG = np.random.default_rng(0)
SCORES = (RNG.random(200) < 0.7).astype(float)
BYTES = RNG.integers(1, 50, 200).astype(float)
NLL = BYTES * RNG.random(200)


def test_a_mean_has_the_usual_standard_error_and_interval() -> None:
    found = estimate(ratio(SCORES), n_resamples=4000)
    assert found.value == pytest.approx(SCORES.mean(), abs=1e-12)
    assert found.stderr == pytest.approx(SCORES.std(ddof=1) / math.sqrt(200), rel=1e-12)
    assert found.low == pytest.approx(found.value - 1.96 * found.stderr, abs=0.01)
    assert found.high == pytest.approx(found.value + 1.96 * found.stderr, abs=0.01)


def test_the_error_of_a_ratio_is_that_of_its_bootstrap() -> None:
    found = estimate(ratio(NLL, BYTES))
    assert found.value == pytest.approx(NLL.sum() / BYTES.sum(), rel=1e-12)
    rng = np.random.default_rng(1)
    draws = [rng.integers(0, 200, 200) for _ in range(4000)]
    assert found.stderr == pytest.approx(np.std([NLL[d].sum() / BYTES[d].sum() for d in draws]), rel=0.05)


def test_balanced_accuracy_is_the_mean_of_the_recalls() -> None:
    golds = [0] * 150 + [1] * 40 + [2] * 10
    found = estimate(by_class(SCORES, golds))
    recalls = [SCORES[:150].mean(), SCORES[150:190].mean(), SCORES[190:].mean()]
    assert found.value == pytest.approx(np.mean(recalls), rel=1e-12)
    assert found.low < found.value < found.high
    always_first = np.asarray([float(gold == 0) for gold in golds])
    assert estimate(by_class(always_first, golds)).value == pytest.approx(1 / 3)
    assert estimate(ratio(always_first)).value == 0.75


def test_items_of_one_group_are_drawn_together() -> None:
    groups = [i // 20 for i in range(200)]
    same = np.repeat((RNG.random(10) < 0.5).astype(float), 20)
    alone, together = estimate(ratio(same)), estimate(ratio(same), groups)
    assert together.value == alone.value
    means = same.reshape(10, 20).mean(1)
    assert together.stderr == pytest.approx(means.std(ddof=1) / math.sqrt(10), rel=1e-12)
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_the_interval_is_a_function_of_the_seed() -> None:
    assert estimate(ratio(SCORES), seed=3) == estimate(ratio(SCORES), seed=3)
    assert estimate(ratio(NLL, BYTES), seed=3) != estimate(ratio(NLL, BYTES), seed=4)


def test_the_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for i in range(200):
        found = estimate(ratio((rng.random(100) < 0.4).astype(float)), seed=i, n_resamples=300)
        hits += found.low <= 0.4 <= found.high
    assert 180 <= hits <= 198


def test_a_single_item_has_no_interval() -> None:
    found = estimate(ratio([1.0]))
    assert found.value == 1.0
    assert math.isnan(found.stderr)
    assert math.isnan(found.low)
    assert math.isnan(estimate(ratio([1.0, 0.0]), ["a", "a"]).low)


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    better = SCORES.copy()
    better[np.flatnonzero(better == 0)[:8]] = 1.0
    found = paired_difference(ratio(SCORES), ratio(better))
    assert found.value == pytest.approx(0.04, abs=1e-12)
    assert found.low > 0
    first, second = estimate(ratio(SCORES)), estimate(ratio(better))
    assert second.low < first.high, "two intervals alone would not tell them apart"
    assert paired_difference(ratio(better), ratio(better))[:2] == (0.0, 0.0)


def test_mcnemar_is_the_binomial_test_of_what_differs() -> None:
    for b, c in product(range(6), range(6)):
        first = [1.0] * b + [0.0] * c + [1.0, 0.0]
        second = [0.0] * b + [1.0] * c + [1.0, 0.0]
        throws = list(product((0, 1), repeat=b + c))
        extreme = sum(sum(throw) <= min(b, c) for throw in throws)
        assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * extreme / len(throws)), rel=1e-12)


def test_mcnemar_of_many_items_is_near_the_exact_test() -> None:
    def p(b: int, c: int) -> float:
        return mcnemar([1.0] * b + [0.0] * c, [0.0] * b + [1.0] * c)

    assert p(530, 470) == pytest.approx(p(529, 470), rel=0.15)
    assert p(500, 500) == 1.0


def test_what_is_no_number_has_no_interval_and_no_warning_of_numpy() -> None:
    whole, broken = ratio([1.0, 2.0, 3.0]), ratio([1.0, math.nan, 3.0])
    assert all(math.isnan(number) for number in estimate(broken))
    assert all(math.isnan(number) for number in paired_difference(whole, broken))


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

    found = difference((False,) * 6)
    share = np.mean([difference(each) >= found - 1e-12 for each in product([False, True], repeat=6)])
    assert permutation_test(*sides, clusters.tolist(), n_permutations=50_000) == pytest.approx(share, abs=0.01)


def test_the_permutation_test_is_right_as_often_as_it_says() -> None:
    """Two equal models whose scores differ by cluster: below 0.1 in a tenth of the cases, which McNemar's is not."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 15)
    found = []
    for _ in range(300):
        strength = rng.uniform(0, 1, (2, 20))[:, clusters]
        first, second = (rng.random((2, 300)) < strength).astype(float)
        exchanged = permutation_test(ratio(first), ratio(second), clusters.tolist(), n_permutations=199)
        found.append((exchanged, mcnemar(first, second)))
    shares = (np.array(found) < 0.1).mean(0)
    assert shares[0] == pytest.approx(0.1, abs=0.05)
    assert shares[1] > 0.3


def test_the_permutation_test_of_one_cluster_or_of_no_number_says_nothing() -> None:
    a, b = ratio([1.0, 0.0, 1.0]), ratio([0.0, 0.0, 1.0])
    assert math.isnan(permutation_test(a, b, ["x", "x", "x"]))
    assert math.isnan(permutation_test(a, ratio([0.0, math.nan, 1.0])))
    assert permutation_test(a, a) == 1.0
    assert 0 < permutation_test(a, b) <= 1
