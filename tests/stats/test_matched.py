"""Readings at a level of learning."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import logit

from lit_consistency.stats.matched import common_levels, read_at, read_on_front, to_scale


def test_scales() -> None:
    assert to_scale([0.2, math.nan], "points").tolist()[0] == 0.2
    assert to_scale([0.2, 0.5, 0.99], "log-odds") == pytest.approx(logit([0.2, 0.5, 0.99]))
    assert to_scale([1.5, 2.0], "log") == pytest.approx([math.log(1.5), math.log(2)])
    assert math.isnan(to_scale([math.nan], "log-odds")[0])
    # 40 of 40 right: 40.5 against half a miss
    assert to_scale([1.0, 0.0], "log-odds", n_items=40) == pytest.approx([math.log(81), -math.log(81)])


def test_a_curve_that_is_straight_in_log_odds_is_read_exactly() -> None:
    """Forgetting = 3 + 2 logit(learning): by the closed form, whatever the order of the rates."""
    rates = np.array([1e-2, 1e-4, 1e-3])
    learning = np.array([0.95, 0.3, 0.8])
    reading = read_at(0.9, rates, learning, 3 + 2 * logit(learning), "log-odds")
    assert reading.value == pytest.approx(3 + 2 * math.log(9))
    assert (reading.lower.rate, reading.upper.rate) == (1e-3, 1e-2)
    assert (reading.lower.learning, reading.upper.learning) == (0.8, 0.95)
    assert reading.upper.forgetting == pytest.approx(3 + 2 * math.log(19))
    in_points = 3 + 2 * (math.log(4) + (math.log(19) - math.log(4)) * 2 / 3)
    assert reading.interpolation_error == pytest.approx(abs(3 + 2 * math.log(9) - in_points))
    assert reading.bracketed
    assert reading.mark == ""
    plain = read_at(0.9, rates, learning, 3 + 2 * logit(learning))
    assert plain.value == pytest.approx(in_points)
    assert math.isnan(plain.interpolation_error)


def test_losses_are_read_as_they_are() -> None:
    """Falling losses, log scale: halfway in log from 4 to 1 is 2."""
    reading = read_at(2.0, [1, 2], [4.0, 1.0], [0.0, 1.0], "log")
    assert reading.value == pytest.approx(0.5)
    assert reading.interpolation_error == pytest.approx(2 / 3 - 1 / 2)


def test_the_first_of_several_crossings_is_read_and_said() -> None:
    reading = read_at(0.5, [1, 2, 3, 4], [0.4, 0.6, 0.4, 0.8], [0.0, 1.0, 2.0, 3.0])
    assert reading.value == pytest.approx(0.5)
    assert reading.mark == "level crossed 3 times, read at the least rate"


def test_a_point_on_the_level_is_its_own_reading() -> None:
    for learning in ([0.2, 0.5, 0.9], [0.5, 0.7, 0.9], [0.2, 0.3, 0.5], [0.2, 0.5, 0.1]):
        reading = read_at(0.5, [1, 2, 3], learning, [0.1, 0.2, 0.3], "log-odds")
        assert reading.value == [0.1, 0.2, 0.3][learning.index(0.5)]
        assert reading.lower == reading.upper
        assert (reading.interpolation_error, reading.bracketed, reading.mark) == (0.0, True, "")
    plateau = read_at(0.5, [1, 2, 3], [0.2, 0.5, 0.5], [0.1, 0.2, 0.3])
    assert plateau.value == 0.2
    assert "2 times" in plateau.mark


@pytest.mark.parametrize(
    ("learning", "forgetting"),
    [([0.1, 0.2], [0, 1]), ([0.8, 0.9], [0, 1]), ([0.1, 0.9], [0, math.nan]), ([math.nan, math.nan], [0, 1])],
)
def test_a_level_that_is_not_bracketed_has_no_reading(learning: list[float], forgetting: list[float]) -> None:
    reading = read_at(0.5, [1, 2], learning, forgetting, "log-odds")
    assert math.isnan(reading.value)
    assert not reading.bracketed
    assert reading.mark == "level not bracketed"
    assert read_at(0.5, [], [], []).mark == "level not bracketed"


def test_a_diverged_rate_is_told_only_between_the_neighbours() -> None:
    learning = [math.nan, 0.25, math.nan, 0.75, math.inf]
    reading = read_at(0.5, [1, 2, 3, 4, 5], learning, [0, 1, 2, 3, 4])
    assert (reading.value, reading.mark) == (2.0, "no number at 3")


def test_a_front_is_read_between_its_own_points_alone() -> None:
    points = [(0.2, 0.1), (0.6, 0.5), (0.4, 0.9), (0.8, 0.6), (math.nan, 0.0)]
    assert read_on_front(0.5, points).value == pytest.approx(0.4)  # past the dominated (.4, .9)
    assert read_on_front(0.6, points).value == 0.5
    assert read_on_front(0.5, points).upper[1:] == (0.6, 0.5)
    assert read_on_front(0.8, points).bracketed
    for level in (0.1, 0.9):
        assert read_on_front(level, points).mark == "level not bracketed"
    assert not read_on_front(0.5, []).bracketed
    order = np.random.default_rng(0).permutation(5)
    assert read_on_front(0.7, np.array(points)[order]).value == pytest.approx(0.55)


def test_common_levels_lie_where_all_fronts_do() -> None:
    first, second = [(0.2, 0.1), (0.6, 0.5)], [(0.4, 0.3), (0.9, 0.8), (0.1, 0.7)]
    assert common_levels([first, second]).levels == pytest.approx([0.5])
    assert common_levels([first, second], 2).levels == pytest.approx([0.45, 0.55])
    assert all(
        read_on_front(level, f).bracketed for level in common_levels([first, second], 5).levels for f in (first, second)
    )
    apart = common_levels([first, [(0.7, 0.1)]], 3)
    assert (apart.levels, apart.low, apart.high) == ([], 0.7, 0.6)
    assert apart.mark == "fronts do not overlap: one starts at 0.7, another ends at 0.6"
    assert common_levels([first, [(0.6, 0.1)]], 3).levels == [0.6]
    assert common_levels([first, [(math.nan, 0.1)]]).mark == "fronts without a finite point: [1]"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: to_scale([0.5], "logit"), "scale 'logit': expected one of points, log-odds, log"),  # type: ignore[arg-type]
        (lambda: to_scale([0.5, 1.0], "log-odds"), "log-odds of 1: expected shares between 0 and 1, or n_items"),
        (lambda: to_scale([1.2], "log-odds", 10), r"log-odds of 1.2: expected shares from 0 to 1"),
        (lambda: to_scale([0.0], "log"), "log of 0: expected losses or KL above 0"),
        (lambda: to_scale([0.5], "log", 10), "n_items 10 with scale 'log'"),
        (lambda: to_scale([0.5], "log-odds", 0), "n_items 0"),
        (lambda: read_at(0.5, [1, 1], [0, 1], [0, 1]), "rates .*each once"),
        (lambda: read_at(0.5, [1, 2], [0, 1], [0]), r"shapes \[\[2\], \[2\], \[1\]\]"),
        (lambda: read_at(math.nan, [1, 2], [0, 1], [0, 1]), "level nan"),
        (lambda: read_on_front(math.inf, [(0, 1)]), "level inf"),
        (lambda: common_levels([]), "1 levels of 0 fronts"),
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
