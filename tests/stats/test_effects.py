"""Paired effects, crossed designs and components of variance, against scipy and against the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lit_consistency.stats.effects import Contrast, at_level, crossed, over_seeds, paired_effect, variance_components


def test_a_paired_effect_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 10):
        first, second = rng.normal(size=(2, n))
        effect = paired_effect(first, second, level=0.9)
        expected = scipy_stats.ttest_rel(second, first)
        interval = expected.confidence_interval(0.9)
        assert effect[:4] == pytest.approx((np.mean(second) - np.mean(first), *interval, expected.pvalue))
        assert at_level(effect, 0.99)[1:3] == pytest.approx(expected.confidence_interval(0.99))


def test_seeds_without_a_number_are_left_out_and_counted() -> None:
    effect = paired_effect([1, 2, math.nan, 4, math.inf], [2, 4, 5, math.nan, math.inf])
    assert (effect.value, effect.n, effect.left_out) == (1.5, 2, 3)
    for values, value, n in (([0.5], 0.5, 1), ([], math.nan, 0)):
        alone = over_seeds(values)
        assert alone.value == pytest.approx(value, nan_ok=True)
        assert alone.n == n
        assert all(math.isnan(x) for x in (alone.low, alone.high, alone.p, alone.stderr))


def test_differences_that_are_all_alike_are_sure() -> None:
    assert over_seeds([0.5] * 3) == Contrast(0.5, 0.5, 0.5, 0.0, 3, 0.0)
    assert over_seeds([0.0] * 3) == Contrast(0.0, 0.0, 0.0, 1.0, 3, 0.0)


def coverage(n: int, n_draws: int, method: str, rng: np.random.Generator) -> float:
    """How often the interval holds a true effect of .3, between numbers that share their base's error."""
    hits = 0
    for draw in range(n_draws):
        base = rng.normal(size=n) * 3
        first, second = base + rng.normal(size=n), base + 0.3 + rng.normal(size=n)
        effect = paired_effect(first, second, method=method, seed=draw, n_boot=1000)  # type: ignore[arg-type]
        hits += effect.low <= 0.3 <= effect.high
    return hits / n_draws


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(1)
    for n in (3, 10):
        assert 0.94 <= coverage(n, 3000, "student", rng) <= 0.96  # 2.5 standard errors of a simulation of .95
    assert 0.92 <= coverage(10, 400, "bootstrap", rng) <= 0.98


def test_the_bootstrap_gives_no_interval_to_few_seeds() -> None:
    first, second = np.zeros(10), np.arange(1.0, 11.0)
    few, enough, many = (paired_effect(first[:n], second[:n], method="bootstrap") for n in (5, 6, 10))
    assert 1 <= enough.low < 3.5 < enough.high <= 6
    assert math.isnan(few.low)
    assert math.isnan(few.high)
    assert few.p == 2 / 2**5  # all of 32 ways to exchange but two are less extreme
    assert many.p == 2 / 2**10
    assert 1 < many.low < 5.5 < many.high < 10
    assert many.stderr == paired_effect(first, second).stderr
    assert math.isnan(paired_effect([0.0], [1.0], method="bootstrap").p)


def test_widened_percentiles_of_normal_differences_are_students_interval() -> None:
    """Plain percentiles of twelve seeds are 15% narrower."""
    differences = np.random.default_rng(12).normal(size=12)
    student, bootstrap = (
        paired_effect(np.zeros(12), differences, method=method)  # type: ignore[arg-type]
        for method in ("student", "bootstrap")
    )
    assert bootstrap.high - bootstrap.low == pytest.approx(student.high - student.low, rel=0.03)


def test_the_effects_of_two_optimizers() -> None:
    """Numbers built from effects: base 1 adds 2, finetuner 1 adds -1, and a matched pair forgets 3 less."""
    rng = np.random.default_rng(2)
    seeds = rng.normal(size=(6, 1, 1))
    table = seeds + np.array([[0, -1], [2, 1]]) - 3 * np.eye(2)
    effects = crossed(table, ["adamw", "muon"], ["adamw", "muon"])
    assert {name: round(effect.value, 9) for name, effect in effects.main.items()} == {
        "base muon - adamw": 2,
        "finetuner muon - adamw": -1,
    }
    assert {name: round(effect.value, 9) for name, effect in effects.simple.items()} == {
        "muon - adamw on base adamw": -1 + 3,
        "muon - adamw on base muon": -1 - 3,
        "base muon - adamw with finetuner adamw": 2 + 3,
        "base muon - adamw with finetuner muon": 2 - 3,
    }
    assert effects.interaction is not None
    assert effects.matching is not None
    assert effects.interaction.value == pytest.approx(-6), "matched pairs forget less: negative"
    assert effects.matching.value == pytest.approx(-3)
    assert effects.matched["muon"].value == pytest.approx(-1 - 3)
    assert effects.matched["adamw"].value == pytest.approx(1 - 3)
    assert effects.interaction.n == 6


def test_the_interval_of_an_interaction_is_that_of_the_differences_of_differences() -> None:
    table = np.random.default_rng(3).normal(size=(8, 2, 2))
    table[5, 0, 1] = math.nan
    effects = crossed(table)
    by_seed = (table[:, 1, 1] - table[:, 1, 0]) - (table[:, 0, 1] - table[:, 0, 0])
    expected = scipy_stats.ttest_1samp(np.delete(by_seed, 5), 0)
    assert effects.interaction is not None
    assert effects.interaction[1:4] == pytest.approx((*expected.confidence_interval(0.95), expected.pvalue))
    assert (effects.interaction.n, effects.interaction.left_out) == (7, 1)
    # the seed lacks a cell of base 0 alone
    assert effects.simple["1 - 0 on base 0"].n == 7
    assert effects.simple["1 - 0 on base 1"].n == 8


def test_matching_of_three_is_what_rows_and_columns_leave() -> None:
    """Against the docstring's own words: residuals from the means of rows and columns, diagonal less the rest."""
    table = np.random.default_rng(4).normal(size=(5, 3, 3))
    rest = table - table.mean(2, keepdims=True) - table.mean(1, keepdims=True) + table.mean((1, 2), keepdims=True)
    diagonal = rest[:, range(3), range(3)].mean(1)
    beside = rest[:, ~np.eye(3, dtype=bool)].mean(1)
    names = ["adamw", "muon", "sgd"]
    effects = crossed(table, names, names)
    assert effects.matching is not None
    assert effects.matching[:4] == pytest.approx(over_seeds(diagonal - beside)[:4])
    assert effects.interaction is None
    # finetuners that are no bases' optimizers have no part in it, nor has their order
    wide = np.concatenate([np.full((5, 3, 1), math.nan), table[:, :, ::-1]], axis=2)
    assert crossed(wide, names, ["lora", *names[::-1]]).matching == pytest.approx(effects.matching)
    assert crossed(wide, names, ["lora", *names[::-1]]).matched["sgd"] == pytest.approx(effects.matched["sgd"])
    apart = crossed(table[:, :1], ["adamw"], names)
    assert (apart.matching, apart.interaction, apart.matched) == (None, None, {})


def components_by_traces(groups: list[list[float]]) -> tuple[float, float]:
    """Variances from the expectations of two quadratic forms, E y'Qy = tr(Q V) with V = b ZZ' + o I, solved."""
    y = np.concatenate([np.asarray(group) for group in groups])
    z = np.repeat(np.eye(len(groups)), [len(group) for group in groups], axis=0)
    means = z @ np.linalg.pinv(z)
    within, between = np.eye(len(y)) - means, means - np.full((len(y), len(y)), 1 / len(y))
    matrix = np.array([[np.trace(q @ z @ z.T), np.trace(q)] for q in (between, within)])
    return tuple(np.linalg.solve(matrix, [y @ between @ y, y @ within @ y]))


def test_components_of_unequal_groups() -> None:
    values = {0: [1.0, 1.2, 0.9], 1: [2.0, 2.3], 2: [0.1, math.nan], 3: [1.5, 1.4, 1.9, 1.6], 4: [math.nan]}
    components = variance_components(values)
    b, o = components_by_traces([[x for x in row if math.isfinite(x)] for row in values.values() if row[0] == row[0]])
    assert components[:2] == pytest.approx((math.sqrt(b), math.sqrt(o)))
    assert (components.n_bases, components.n_runs) == (4, 10)
    assert math.isnan(components.items)
    errors = {base: [0.1] * len(row) for base, row in values.items()}
    with_items = variance_components(values, errors)
    assert with_items[:3] == pytest.approx((math.sqrt(b), math.sqrt(o - 0.01), 0.1))


def test_components_are_found_on_average_and_never_below_nothing() -> None:
    rng = np.random.default_rng(5)
    squares = []
    for _ in range(500):
        bases = 2 * rng.normal(size=(6, 1)) + 0.7 * rng.normal(size=(6, 3)) + 0.3 * rng.normal(size=(6, 3))
        found = variance_components(dict(enumerate(bases.tolist())), {i: [0.3] * 3 for i in range(6)})
        squares.append([found.base**2, found.order**2])
    assert np.mean(squares, 0) == pytest.approx([4, 0.49], rel=0.1)
    alike = variance_components({0: [0.0, 1.0], 1: [1.0, 0.0]}, {0: [9.0, 9.0], 1: [9.0, 9.0]})
    assert (alike.base, alike.order, alike.items) == (0.0, 0.0, 9.0)


def test_components_that_cannot_be_told_apart_are_not_told() -> None:
    single = variance_components({0: [1.0], 1: [2.0]})
    assert math.isnan(single.base)
    assert math.isnan(single.order)
    one_base = variance_components({0: [1.0, 3.0]})
    assert math.isnan(one_base.base)
    assert one_base.order == pytest.approx(math.sqrt(2))
    assert variance_components({}).n_runs == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: paired_effect([1, 2], [1]), r"shapes \[2\] and \[1\]"),
        (lambda: paired_effect([1, 2], [1, 3], level=1.0), "level 1.0: expected a share"),
        (lambda: paired_effect([1, 2], [1, 3], method="t"), "method 't': expected student or bootstrap"),  # type: ignore[arg-type]
        (lambda: crossed([[1, 2]]), r"table has shape \[1, 2\]"),
        (lambda: crossed(np.zeros((3, 2, 2)), ["a", "a"]), r"bases \['a', 'a'\]: expected 2 names, each once"),
        (lambda: variance_components({0: [1.0, 2.0]}, {0: [0.1]}), "stderrs of base 0 has 1 numbers: expected 2"),
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
