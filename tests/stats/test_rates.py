"""The best rate, and the rates to try next, driven to their end on curves whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lit_consistency.stats.rates import best_rate, next_rates, refine

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.9, 0.5], (1, False)),
        ([0.1, 0.5, 0.9], (2, True)),
        ([0.9, 0.5, 0.1], (0, True)),
        ([0.1, 0.9, NAN], (1, False)),  # what diverged brackets its neighbour
        ([NAN, 0.9, NAN], (1, False)),
        ([[0.9, 0.5, 0.4], [NAN, 0.5, 0.4]], (1, False)),  # one seed diverged
        ([[0.1, 0.5, 0.4], [0.9, 0.0, 0.4]], (0, True)),  # means .5, .25, .4
        ([0.5, 0.9, 0.9], (1, False)),  # of ties the least
        ([0.9, 0.9, 0.5], (0, True)),
        ([NAN, NAN, NAN], (None, True)),
    ],
)
def test_the_best_rate(values: list, expected: tuple[int | None, bool]) -> None:
    assert best_rate([1e-4, 1e-3, 1e-2], values, higher_is_better=True) == expected
    assert best_rate([1e-4, 1e-3, 1e-2], -np.array(values), higher_is_better=False) == expected


def test_the_order_of_rates_does_not_matter() -> None:
    assert best_rate([1e-2, 1e-4, 1e-3], [0.5, 0.1, 0.9], True) == (2, False)
    assert best_rate([0.3], [0.5], True) == (0, True)
    assert next_rates([1e-2, 1e-4, 1e-3], [0.5, 0.9, 0.1], 10, True) == [1e-5]
    assert refine([4.0, 1.0], [0.9, 0.1], 0.5, within=1.5) == [2.0]


def run(suggest: Callable[[list[float], list[float]], list[float]], curve: Callable[[float], float], start: float):
    """Try what is suggested until nothing is."""
    rates = [start]
    while new := suggest(rates, [curve(rate) for rate in rates]):
        assert not set(new) & set(rates)
        rates += new
    return sorted(rates)


@pytest.mark.parametrize("start", [1e-5, 3e-4, 0.03])
def test_rates_are_added_until_the_best_is_bracketed(start: float) -> None:
    """A parabola in log rate around 3e-3, from either side, with rates above .1 that diverge."""

    def loss(rate: float) -> float:
        return NAN if rate > 0.1 else (math.log(rate) - math.log(3e-3)) ** 2

    rates = run(lambda rates, values: next_rates(rates, values, 3, False), loss, start)
    best, at_edge = best_rate(rates, [loss(rate) for rate in rates], False)
    assert not at_edge
    assert best is not None
    assert abs(math.log(rates[best] / 3e-3)) <= math.log(3) / 2 + 0.01
    assert len(run(lambda rates, values: next_rates(rates, values, 3, False, most=2), loss, 1e-5)) == 2


def test_a_single_rate_asks_for_both_sides_and_a_diverged_one_for_less() -> None:
    assert next_rates([0.3], [0.5], 2, True) == [0.15, 0.6]
    assert next_rates([0.3], [NAN], 2, True) == [0.15]
    assert next_rates([0.3], [0.5], 2, True, most=2) == [0.15]
    assert next_rates([1, 2, 4], [0.1, 0.5, 0.3], 2, True) == []


@pytest.mark.parametrize("start", [1e-5, 2.2e-3, 0.09])
@pytest.mark.parametrize("diverges", [math.inf, 0.005])
def test_a_level_is_bracketed_closely(start: float, diverges: float) -> None:
    """Learning reaches .8 at a rate of .004; where much larger ones diverge, it is found below them."""

    def learning(rate: float) -> float:
        return NAN if rate > diverges else rate / (rate + 0.001)

    rates = run(lambda rates, values: refine(rates, values, 0.8, within=1.2, most=30), learning, start)
    below, above = max(r for r in rates if learning(r) < 0.8), min(r for r in rates if learning(r) >= 0.8)
    assert below < 0.004 * 1.001
    assert above > 0.004 * 0.999
    assert above / below < 1.21
    assert len(rates) < 20


def test_what_is_not_to_be_reached_ends() -> None:
    assert refine([1, 2, 4], [0.2, 0.5, 0.3], 0.8, within=1.1) == [], "the most that is learned lies inside"
    assert refine([1, 2, 4], [0.2, 0.5, 0.6], 0.8, within=1.1) == [8.0]
    assert refine([1, 2, 4], [0.6, 0.5, 0.4], 0.8, within=1.1) == [0.5], "too much: back to where it learns"
    assert refine([1, 2, 4], [0.2, 0.5, 0.6], 0.8, within=1.1, most=3) == []
    assert refine([1, 2, 4], [0.2, 0.5, NAN], 0.8, within=1.1) == [2.828]
    assert refine([1, 2, 2.1], [0.2, 0.5, NAN], 0.8, within=1.1) == [], "the edge of what does not diverge"
    assert refine([1, 2], [NAN, NAN], 0.8, within=1.1) == [0.5]
    assert refine([1, 2, 4], [0.2, 0.8, 0.9], 0.8, within=1.1) == [], "a rate on the level is the reading itself"
    assert refine([1, 2, 4, 8], [0.2, 0.9, 0.1, 0.9], 0.8, within=1.1) == [1.414], "the first of three crossings"
    assert refine([1, 2, 4], [0.2, 0.9, 0.8], 0.8, within=1.1) == [1.414], "the crossing before a rate on the level"
    assert refine([1, 2, 4], [0.8, 0.9, 0.2], 0.8, within=1.1) == []
    assert refine([1, 2, 4], [0.85, 0.9, 0.85], 0.8, within=1.1) == [0.5], "a peak, but all of it above"
    assert refine([1, 2, 4, 8], [NAN, NAN, 0.6, 0.5], 0.8, within=1.1) == [2.828], "the nearer of two that diverged"
    assert refine([1.414, 2], [0.2, 0.9], 0.8, within=math.sqrt(2)) == [], "as close as rounded rates can be"
    assert refine([1, 2], [0.9, 0.95], 0.8, within=1.1, factor=4) == [0.25]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: best_rate([1, 2], [0.1], True), r"shapes \[2\] and \[1, 1\]"),
        (lambda: best_rate([0, 1], [0.1, 0.2], True), "rates .*above 0, each once"),
        (lambda: next_rates([1], [0.1], 1.0, True), "factor 1.0: expected a finite number above 1"),
        (lambda: refine([1], [0.1], 0.5, within=0.9), "within 0.9"),
        (lambda: refine([1], [0.1], NAN, within=1.1), "level nan"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
