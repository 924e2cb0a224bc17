"""Fronts, attainment surfaces and hypervolumes against definitions written out, and against moocore."""

from __future__ import annotations

import math
import time
from itertools import product

import moocore
import numpy as np
import pytest

from lit_consistency.stats.fronts import (
    attainment,
    common_reference,
    corners,
    front,
    hypervolume,
    hypervolume_interval,
)

REFERENCE = (-0.5, 4.5)


def random_points(rng: np.random.Generator, n: int) -> np.ndarray:
    """Half of them on a grid of five by five, so that ties and copies come up, and some diverged."""
    points = rng.integers(0, 5, (n, 2)) if rng.random() < 0.5 else rng.random((n, 2)) * 4
    return np.where(rng.random((n, 2)) < 0.03, rng.choice([math.nan, math.inf, -math.inf]), points)


def dominates(first: np.ndarray, second: np.ndarray) -> bool:
    return first[0] >= second[0] and first[1] <= second[1] and (first != second).any()


def front_by_definition(points: np.ndarray) -> set[int]:
    finite = [i for i, point in enumerate(points) if np.isfinite(point).all()]
    return {i for i in finite if not any(dominates(points[j], points[i]) for j in finite)}


def test_a_front_is_what_no_point_dominates_in_any_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    for n in [*range(8), *rng.integers(1, 40, 300)]:
        points = random_points(rng, n)
        chosen = front(points)
        assert set(chosen.tolist()) == front_by_definition(points)
        assert len(set(chosen.tolist())) == len(chosen)
        assert (np.diff(points[chosen, 0]) >= 0).all()
        order = rng.permutation(n)
        assert set(order[front(points[order])].tolist()) == set(chosen.tolist())


def test_copies_share_their_fate_and_a_front_of_nothing_is_empty() -> None:
    assert front([(1, 1), (2, 1), (2, 1), (0, 0), (math.nan, 0), (3, math.inf)]).tolist() == [3, 1, 2]
    assert corners([(2, 1), (2, 1), (0, 0)]).tolist() == [[0, 0], [2, 1]]
    assert front([(0.3, 0.1)]).tolist() == [0]
    assert front([]).tolist() == front([(math.nan, 0.0)]).tolist() == []


def test_surfaces_are_what_k_seeds_reach() -> None:
    """At random places: as many seeds as have a point that is no worse there; and the corners are those of moocore."""
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 4, 7):
        seeds = [random_points(rng, rng.integers(1, 9)) for _ in range(n)]
        surfaces = attainment(seeds)
        assert list(surfaces) == [*(f"{k}/{n}" for k in range(1, n + 1)), "median"]
        for place in [*rng.random((100, 2)) * 5 - 0.5, *product(range(5), range(5))]:
            n_reach = sum(
                bool(((seed[:, 0] >= place[0]) & (seed[:, 1] <= place[1])).any()) for seed in map(kept, seeds)
            )
            for k in range(1, n + 1):
                reached = any(x >= place[0] and y <= place[1] for x, y in surfaces[f"{k}/{n}"])
                assert reached == (n_reach >= k)
        check_against_moocore([kept(seed) for seed in seeds], surfaces)
        assert surfaces["median"] == surfaces[f"{math.ceil(n / 2)}/{n}"]


def kept(points: np.ndarray) -> np.ndarray:
    return points[np.isfinite(points).all(1)]


def check_against_moocore(seeds: list[np.ndarray], surfaces: dict[str, list[tuple[float, float]]]) -> None:
    """It minimises both, and takes no empty set: a seed without a point is the worst there is."""
    n = len(seeds)
    worst = np.array([[1e9, 1e9]])
    sets = [np.concatenate([seed * (-1, 1), worst]) for seed in seeds]
    numbers = np.repeat(np.arange(1, n + 1), [len(points) for points in sets])
    answer = moocore.eaf(np.concatenate(sets), numbers)
    for k in range(1, n + 1):
        rows = answer[np.isclose(answer[:, 2], 100 * k / n) & (answer[:, 0] < 1e9)]
        assert sorted((-x, y) for x, y, _ in rows) == surfaces[f"{k}/{n}"]


def test_a_seed_that_diverged_reaches_nothing_but_counts() -> None:
    surfaces = attainment([[(1, 2)], [(math.nan, 1)], []])
    assert surfaces == {"1/3": [(1, 2)], "2/3": [], "3/3": [], "median": []}


def test_a_hypervolume_is_an_area() -> None:
    """Against moocore, and of whole numbers against the number of unit squares between the points and the reference."""
    rng = np.random.default_rng(2)
    for n in range(25):
        points = random_points(rng, n)
        finite = kept(points)
        expected = moocore.hypervolume(finite * (-1, 1), ref=(0.5, 4.5)) if len(finite) else 0.0
        assert hypervolume(points, REFERENCE) == pytest.approx(expected, abs=1e-12)
        whole = np.round(finite)
        squares = [(x, y) for x in range(5) for y in range(6) if ((whole[:, 0] > x) & (whole[:, 1] <= y)).any()]
        assert hypervolume(whole, (0, 6)) == len(squares)
    assert hypervolume([(1, 2), (3, 9)], (1, 5)) == 0.0
    assert common_reference([[(1, 2), (3, 4), (0, 4)], [(2, 1)], []]) == (1.0, 4.0)


def test_the_mean_hypervolume_is_the_area_under_the_surfaces() -> None:
    rng = np.random.default_rng(3)
    seeds = [random_points(rng, 12) for _ in range(5)]
    surfaces = attainment(seeds)
    areas = [hypervolume(surfaces[f"{k}/5"], REFERENCE) for k in range(1, 6)]
    result = hypervolume_interval(seeds, REFERENCE)
    assert result.value == pytest.approx(np.mean(areas))
    single = [hypervolume(seed, REFERENCE) for seed in seeds]
    assert result.stderr == pytest.approx(np.std(single, ddof=1) / math.sqrt(5), rel=0.08)
    assert result.high - result.value == pytest.approx(2.7764 * result.stderr, rel=1e-4)  # Student's table, 4 degrees
    assert result == hypervolume_interval(seeds, REFERENCE), "the same seed gives the same interval"


def test_the_error_of_items_widens_the_interval_and_shared_items_more() -> None:
    """A single point in a box of 1 by 1: errors of .1 in learning move its area by .1, those of 4 seeds by half."""
    seeds = [[(0.5, 0.5)], [(0.5, 0.5)], [(0.5, 0.5)], [(0.5, 0.5)]]
    errors = [[(0.02, math.nan)]] * 4
    own, shared = (
        hypervolume_interval(seeds, (0, 1), errors, same_items=same, n_boot=20_000).stderr for same in (False, True)
    )
    # sqrt(n / (n - 1)) of the bootstrap over seeds is also in these
    assert own == pytest.approx(0.01 / 2 * math.sqrt(4 / 3), rel=0.02)
    assert shared == pytest.approx(0.01 * math.sqrt(4 / 3), rel=0.02)
    assert hypervolume_interval(seeds, (0, 1)).stderr == 0.0
    alone = hypervolume_interval(seeds[:1], (0, 1))
    assert (alone.value, alone.n) == (0.25, 1)
    assert all(math.isnan(number) for number in alone[1:4])


def test_points_far_from_the_front_are_left_out_of_resamples_and_change_nothing() -> None:
    """The same shifts drawn again, of all points, and the area of each resample by moocore."""
    rng = np.random.default_rng(6)
    seeds = [rng.random((30, 2)) for _ in range(3)]
    errors = [rng.random((30, 2)) * 0.1 for _ in range(3)]
    again = np.random.default_rng(7)
    drawn, shifts = again.integers(3, size=(50, 3)), again.standard_normal((50, 3, 2))
    areas = [
        np.mean(
            [
                moocore.hypervolume((seeds[k] + z * errors[k]) * (-1, 1), ref=(0.5, 4.5))
                for k, z in zip(*sample, strict=True)
            ]
        )
        for sample in zip(drawn, shifts, strict=True)
    ]
    result = hypervolume_interval(seeds, REFERENCE, errors, seed=7, n_boot=50)
    assert result.stderr == pytest.approx(np.std(areas, ddof=1) * math.sqrt(3 / 2), rel=1e-9)


def test_intervals_of_three_seeds_hold_the_mean_hypervolume() -> None:
    rng = np.random.default_rng(4)
    truth = 0.5 * 0.5  # the height is normal around .5, the width is .5
    hits = 0
    for draw in range(600):
        seeds = [[(0.5, 0.5 + rng.normal() * 0.05)] for _ in range(3)]
        _, low, high, _, _ = hypervolume_interval(seeds, (0, 1), n_boot=200, seed=draw)
        hits += low <= truth <= high
    assert 0.93 <= hits / 600 <= 0.972  # 2.2 standard errors of a simulation of .95


def test_ten_thousand_points_take_milliseconds() -> None:
    points = np.random.default_rng(5).random((10_000, 2))
    points[:, 1] = points[:, 0] ** 2 + points[:, 1] * 1e-4  # a thousand of them are on the front
    seconds = []
    for _ in range(3):
        start = time.process_time()  # others on the machine cost no time of this process
        assert len(front(points)) > 100
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: front([1.0, 2.0]), r"points has shape \[2\]: expected \(n, 2\)"),
        (lambda: attainment([]), "points_by_seed is empty"),
        (lambda: hypervolume([(1, 1)], (0, math.nan)), "reference .*nan.*: expected two finite"),
        (lambda: hypervolume_interval([], (0, 1)), "points_by_seed is empty"),
        (lambda: hypervolume_interval([[(1, 1)]], (0, 1), items=[]), r"items has shapes \[\]"),
        (lambda: hypervolume_interval([[(1, 1)]], (0, 1), items=[[(-1, 0)]]), "standard error of -1"),
        (lambda: hypervolume_interval([[(1, 1)]], (0, 1), level=95), "level 95"),
        (lambda: hypervolume_interval([[(1, 1)]], (0, 1), n_boot=1), "n_boot 1"),
        (lambda: common_reference([[]]), "no reference"),
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
