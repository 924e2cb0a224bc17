"""Verdicts, power and families of claims: against scipy, closed testing and simulation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lit_consistency.stats.effects import Contrast, at_level, over_seeds
from lit_consistency.stats.verdicts import (
    decision_p,
    detectable_effect,
    equivalence,
    holm,
    holm_levels,
    seeds_needed,
    verdict,
)


@pytest.mark.parametrize(
    ("low", "high", "smallest", "higher", "lower"),
    [
        (0.2, 0.4, 0.1, "supported", "contradicted"),
        (-0.4, -0.2, 0.1, "contradicted", "supported"),
        (-0.05, 0.09, 0.1, "equivalent", "equivalent"),
        (0.05, 0.4, 0.1, "undecided", "undecided"),
        (0.1, 0.4, 0.1, "undecided", "undecided"),
        (0.01, 0.02, 0.1, "equivalent", "equivalent"),
        (-0.1, 0.02, 0.1, "undecided", "undecided"),
        (0.01, 0.02, 0.0, "supported", "contradicted"),
        (-0.01, 0.02, 0.0, "undecided", "undecided"),
        (0.0, 0.0, 0.0, "undecided", "undecided"),
        (math.nan, math.nan, 0.1, "undecided", "undecided"),
    ],
)
def test_verdicts(low: float, high: float, smallest: float, higher: str, lower: str) -> None:
    assert verdict(low, high, smallest, "higher") == higher
    assert verdict(low, high, smallest, "lower") == lower


def test_equivalence_is_two_one_sided_tests() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 5, 12):
        values = rng.normal(size=n) * 0.3
        above = scipy_stats.ttest_1samp(values, -0.5, alternative="greater").pvalue
        below = scipy_stats.ttest_1samp(values, 0.5, alternative="less").pvalue
        assert equivalence(over_seeds(values), 0.5) == pytest.approx(max(above, below))
    assert equivalence(over_seeds([0.25] * 3), 0.5) == 0.0
    assert equivalence(over_seeds([0.5] * 3), 0.5) == 1.0
    assert math.isnan(equivalence(over_seeds([0.1]), 0.2))


def test_the_size_of_the_test_of_equivalence_is_five_percent() -> None:
    """The true effect lies on the bound, far from the other one in standard errors."""
    rng = np.random.default_rng(1)
    p = [equivalence(over_seeds(values), 1.0) for values in 1.0 + 0.3 * rng.normal(size=(4000, 6))]
    assert np.mean(np.asarray(p) <= 0.05) == pytest.approx(0.05, abs=0.011)


@pytest.mark.parametrize(("n", "level"), [(3, 0.95), (10, 0.95), (10, 0.995)])
def test_the_detectable_effect_is_detected_four_times_in_five(n: int, level: float) -> None:
    effect = detectable_effect(2.0, n, level=level)
    values = effect + 2 * np.random.default_rng(2).normal(size=(40_000, n))
    t = values.mean(1) / (values.std(1, ddof=1) / math.sqrt(n))
    found = np.abs(t) > scipy_stats.t.ppf((1 + level) / 2, n - 1)
    assert found.mean() == pytest.approx(0.8, abs=0.006)


def test_one_seed_detects_nothing() -> None:
    assert math.isnan(detectable_effect(1.0, 1))
    assert math.isnan(detectable_effect(math.nan, 5))
    assert detectable_effect(0.0, 5) == 0.0
    # the printed tables (Cohen 1988) give .5 standard deviations to 34 pairs
    assert detectable_effect(1.0, 34) == pytest.approx(0.5, abs=0.01)
    assert math.isfinite(detectable_effect(1.0, 2, level=0.9999))


@pytest.mark.parametrize(("value", "smallest"), [(0.8, 0.0), (1.0, 0.4), (-1.0, 0.4), (0.1, 0.9), (0.0, 0.8)])
def test_the_seeds_needed_decide_and_one_fewer_does_not(value: float, smallest: float) -> None:
    """Simulated: at least 80% of studies of so many seeds end in the right verdict, and fewer of a smaller number."""
    n = seeds_needed(1.0, value, smallest)
    right = "equivalent" if abs(value) < smallest else "supported"
    rng = np.random.default_rng(3)
    shares = []
    for seeds in (n, n - 1):
        values = value + rng.normal(size=(3000, seeds))
        half = scipy_stats.t.ppf(0.975, seeds - 1) * values.std(1, ddof=1) / math.sqrt(seeds)
        ends = np.stack([values.mean(1) - half, values.mean(1) + half], 1)
        shares.append(np.mean([verdict(*end, smallest, "lower" if value < 0 else "higher") == right for end in ends]))
    assert shares[0] > 0.8 - 0.02
    assert shares[1] < 0.8 + 0.02


def test_seeds_needed_at_its_ends() -> None:
    assert seeds_needed(1.0, 0.5, 0.5) == 10_000
    assert seeds_needed(1.0, 1e-4, 0.0) == 10_000
    assert seeds_needed(1.0, 0.3, 0.0, most=50) == 50
    assert seeds_needed(0.0, 0.3, 0.1) == 2
    assert seeds_needed(math.nan, 0.3, 0.1) == 0


def holm_by_closure(p_values: list[float]) -> list[float]:
    """The largest Bonferroni p of all sets of hypotheses that hold this one: Holm's test is the closure of those."""
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    for i in known:
        sets = [c for size in range(1, len(known) + 1) for c in combinations(known, size) if i in c]
        adjusted[i] = max(min(1.0, len(c) * min(p_values[j] for j in c)) for c in sets)
    return adjusted


def test_holm_is_the_closure_of_bonferroni_and_levels_decide_the_same() -> None:
    rng = np.random.default_rng(4)
    for m in [0, *rng.integers(1, 8, 150)]:
        effects = [over_seeds(0.6 * rng.normal() + rng.normal(size=n)) for n in rng.integers(1, 12, m)]
        if m > 1:
            effects[0] = effects[-1]  # a tie
        bounds = rng.choice([0.0, 0.2, 1.5], m)
        p = [decision_p(effect, bound) for effect, bound in zip(effects, bounds, strict=True)]
        adjusted = holm(p)
        assert adjusted == pytest.approx(holm_by_closure(p), nan_ok=True)
        for level in (0.7, 0.95):
            levels = holm_levels(p, level)
            for effect, bound, ours, one in zip(effects, bounds, adjusted, levels, strict=True):
                decided = verdict(*at_level(effect, one)[1:3], bound, "higher") != "undecided"
                assert decided == (ours <= 1 - level)
                assert one >= level - 1e-12
            order = rng.permutation(m)
            assert holm_levels([p[i] for i in order], level) == [levels[i] for i in order]


def test_the_levels_of_three_claims() -> None:
    assert holm_levels([0.01, 0.04, 0.03]) == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 2, 1 - 0.05 / 2])
    assert holm_levels([0.01, 0.02, math.nan, 0.04]) == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 2, 0.95, 0.95])
    assert holm([0.01, 0.02, math.nan, 0.04]) == pytest.approx([0.03, 0.04, math.nan, 0.04], nan_ok=True)


def test_one_claim_in_twenty_families_is_wrong_at_most() -> None:
    """Six claims, three of them on their bound so that any verdict is wrong, one at 0, two of strong effects."""
    rng = np.random.default_rng(5)
    truths, smallest = np.array([0.5, -0.5, 0.5, 0.0, 3.0, -3.0]), np.array([0.5, 0.5, 0.5, 0.0, 0.5, 0.5])
    wrong = 0
    for _ in range(2000):
        effects = [over_seeds(values) for values in truths[:, None] + rng.normal(size=(6, 8))]
        levels = holm_levels([decision_p(effect, s) for effect, s in zip(effects, smallest, strict=True)])
        said = [verdict(*at_level(e, x)[1:3], s, "higher") for e, x, s in zip(effects, levels, smallest, strict=True)]
        right = [*[["undecided"]] * 4, ["supported", "undecided"], ["contradicted", "undecided"]]
        wrong += any(word not in allowed for word, allowed in zip(said, right, strict=True))
    # four true nulls beside two that are nearly always rejected: close to the whole 5%, and no more
    assert 0.03 <= wrong / 2000 <= 0.05 + 0.01


def test_a_decision_is_the_least_level_at_which_a_verdict_falls() -> None:
    effect = over_seeds([0.3, 0.5, 0.4, 0.9])
    for smallest in (0.0, 0.2, 2.0):
        p = decision_p(effect, smallest)
        before, after = (at_level(effect, 1 - p * (1 + sign * 1e-6)) for sign in (-1, 1))
        assert verdict(before.low, before.high, smallest, "higher") == "undecided"
        assert verdict(after.low, after.high, smallest, "higher") != "undecided"
    assert decision_p(effect, 0.0) == effect.p
    assert math.isnan(decision_p(Contrast(0.5, *[math.nan] * 3, 1, math.nan), 0.1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: verdict(0, 1, -0.1, "higher"), "bound -0.1: expected a finite number of at least 0"),
        (lambda: verdict(0, 1, 0.1, "better"), "direction 'better': expected higher or lower"),  # type: ignore[arg-type]
        (lambda: equivalence(over_seeds([1, 2]), 0.0), "bound 0.0: expected a finite number above 0"),
        (lambda: detectable_effect(1.0, 5, power=80), "power 80: expected a share"),
        (lambda: holm([0.5, 1.5]), "p-value 1.5: expected 0 to 1, or NaN"),
        (lambda: holm_levels([0.5], 5), "level 5: expected a share"),
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
