"""Values of an axis that are found while a study runs: rates bracketed around the best, or around a level.

What is next follows from the results alone, replayed from the values given, so a study that is begun again comes to the
same values. All seeds of a group have the same values, which pairs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lit_consistency.stats.rates import next_rates, refine
from lit_consistency.study.axes import Axis, AxisValue, as_number

Results = Callable[[AxisValue], Sequence[float] | None]
"""One number a seed of a value's cells, NaN where a cell has none (it diverged); None while cells are to be run."""
MOST = 8


def searched(
    axis: Axis, given: Sequence[AxisValue], results: Results, higher_is_better: bool
) -> tuple[list[AxisValue], bool]:
    """The values of an axis with a search so far, and whether the search has come to its end.

    Args:
        axis: with ``search``.
        given: the values from which it starts.
        results: what came out at a value.
        higher_is_better: of the metric that is searched by.
    """
    search = dict(axis.search or {})
    values = {_rate(axis, value): value for value in given}
    most = int(as_number(search.get("most") or search.get("trials")) or max(MOST, len(values)))
    while True:
        by_rate = {rate: results(value) for rate, value in sorted(values.items())}
        if any(numbers is None for numbers in by_rate.values()):
            return _ordered(values), False
        wanted = _next(search, {rate: list(numbers or []) for rate, numbers in by_rate.items()}, higher_is_better, most)
        new = {rate: axis.swept(rate) for rate in wanted if all(not math.isclose(rate, known) for known in values)}
        if not new or len(values) >= most:
            return _ordered(values), True
        values |= new


def _next(search: Mapping[str, Any], results: Mapping[float, list[float]], higher: bool, most: int) -> Sequence[float]:
    rates = list(results)
    table = np.asarray(list(results.values()), dtype=np.float64).T
    if search["kind"] == "bracket":
        return next_rates(rates, table, as_number(search.get("factor")) or 2.0, higher, most)
    if search["kind"] == "level":
        sign = 1.0 if higher else -1.0  # learning rises with the rate, a loss falls
        level, within = sign * float(search["level"]), as_number(search.get("within")) or 1.3
        factor = as_number(search.get("factor")) or 2.0
        # each seed crosses the level at a rate of its own
        wanted = [refine(rates, sign * row, level, within, most, factor) for row in table if not np.isnan(row).all()]
        return sorted({rate for of_seed in wanted for rate in of_seed})[: max(0, most - len(rates))]
    from lit_consistency.study.search_optuna import suggested

    return suggested(search, results, higher)


def _rate(axis: Axis, value: AxisValue) -> float:
    return float(value.options[axis.keys[0]])


def _ordered(values: Mapping[float, AxisValue]) -> list[AxisValue]:
    return [value for _, value in sorted(values.items())]
