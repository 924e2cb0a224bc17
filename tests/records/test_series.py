from __future__ import annotations

import math
from typing import Any

import pytest

from lit_consistency.records.series import series_steps


def test_steps_are_evenly_spaced_in_the_logarithm_and_end_with_the_run() -> None:
    assert series_steps({"steps": "log", "count": 5}, 10_000) == [1, 10, 100, 1000, 10_000]
    steps = series_steps({"steps": "log", "count": 8, "first": 50}, 20_000)
    assert (len(steps), steps[0], steps[-1]) == (8, 50, 20_000)
    gaps = [math.log(b / a) for a, b in zip(steps, steps[1:], strict=False)]
    assert gaps == pytest.approx([math.log(400) / 7] * 7, abs=0.02)
    assert series_steps({"steps": "log", "count": 8}, 4) == [1, 2, 3, 4], "of steps that coincide there is one"
    assert series_steps({"steps": "log", "count": 1}, 7) == [7]


def test_a_list_means_what_it_says_and_tokens_are_those_of_full_batches() -> None:
    assert series_steps([100, 10, 10, 1000], 1000) == series_steps({"steps": [10, 100, 1000]}, 2000) == [10, 100, 1000]
    # 256 tokens a step: 256 have been seen after one, 257 only after two
    assert series_steps({"tokens": [256, 257, 1e3, 25_600]}, 100, 8 * 32) == [1, 2, 4, 100]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"steps": "log", "count": 0}, r"checkpoint\.series\.count = 0: expected a whole number of at least 1"),
        ({"steps": "log"}, r"series\.count = None"),
        ({"steps": "log", "count": 2, "first": 200}, r"series\.first = 200: lies beyond the end of the run, 100"),
        ({"steps": "log", "count": 2, "cuont": 3}, r"series\.cuont = 3: expected \{steps: log"),
        ({"steps": "linear", "count": 2}, r"series\.count = 2"),
        ({"steps": "linear"}, r"series\.steps = 'linear'"),
        ({}, r"series\.steps = None"),
        ([], r"checkpoint\.series = \[\]"),
        ([0, 5], r"checkpoint\.series: 0: expected whole numbers of at least 1"),
        ([True], r"series: True"),
        ([5, 101], r"checkpoint\.series: 101 lies beyond the end of the run; expected at most 100 steps"),
        ({"tokens": [6500]}, r"series\.tokens: 6500 lies beyond .* at most 6400 tokens"),
        ({"tokens": [10], "count": 3}, r"series\.count = 3"),
    ],
)
def test_what_is_no_series_is_refused_by_its_key(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        series_steps(spec, 100, 64)
    if "tokens" in spec:
        with pytest.raises(ValueError, match="expected steps"):
            series_steps({"tokens": [10]}, 100)
