r"""Reading at matched learning: what is forgotten where as much was learned, and how far that reading can be trusted.

Along a curve of one parameter (learning rate, steps) learning is known at a few values only. Where it crosses the level
between two neighbours, forgetting is read on the straight line between them, with learning on a scale on which the
curve is nearly straight: for shares the log-odds, for losses and KL the logarithm,

.. math::
    f = f_0 + (f_1 - f_0) \frac{g(\text{level}) - g(l_0)}{g(l_1) - g(l_0)}.

How much the choice of the scale matters is the reading's interpolation error: how far apart the readings on the scale
and in points lie. What is matched need not be learning: KL to the base is read the same way. Given up: smoothing over
more than two neighbours.

Source: the correction of log-odds of few items is Haldane's and Anscombe's, Anscombe 1956, Biometrika 43.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lit_consistency.stats.fronts import corners

Scale = Literal["points", "log-odds", "log"]
SCALES = ("points", "log-odds", "log")
NOT_BRACKETED = "level not bracketed"


class CurvePoint(NamedTuple):
    """A measured point; ``rate`` is NaN on a front, whose points come from many rates."""

    rate: float
    learning: float
    forgetting: float


class Reading(NamedTuple):
    """Forgetting at a level of learning.

    Attributes:
        value: forgetting, NaN where the level is not bracketed.
        lower: the neighbour of the lesser rate (on a front, of less learning); equal to ``upper`` where a point lies on
            the level.
        upper: the other neighbour.
        interpolation_error: how far ``value`` lies from the reading on a straight line in points; 0 where a point
            lies on the level, NaN where there is but one scale.
        bracketed: whether there is a value.
        mark: empty, or why the reading cannot be relied on.
    """

    value: float
    lower: CurvePoint
    upper: CurvePoint
    interpolation_error: float
    bracketed: bool
    mark: str


class CommonLevels(NamedTuple):
    """Levels of learning that all fronts reach.

    Attributes:
        levels: empty where there are none.
        low: the greatest of the fronts' least learning.
        high: the least of their greatest; below ``low`` where they do not overlap.
        mark: empty, or why there are none.
    """

    levels: list[float]
    low: float
    high: float
    mark: str


_NOWHERE = CurvePoint(math.nan, math.nan, math.nan)


def to_scale(values: ArrayLike, scale: Scale, n_items: float | None = None) -> np.ndarray:
    """Values on the scale on which effects are compared; NaN stays NaN.

    Args:
        values: of ``points`` any, of ``log-odds`` shares from 0 to 1, of ``log`` losses or KL above 0.
        scale: its name.
        n_items: of a share, how many items it is of; then the log-odds are those of (x n + 1/2) / (n + 1), which are
            finite at 0 and 1 too.

    Raises:
        ValueError: another scale, a value that it does not have, or ``n_items`` for a scale that is not ``log-odds``.
    """
    if scale not in SCALES:
        raise ValueError(f"scale {scale!r}: expected one of {', '.join(SCALES)}")
    if n_items is not None and (scale != "log-odds" or not n_items > 0):
        raise ValueError(f"n_items {n_items} with scale {scale!r}: expected a number above 0, with log-odds alone")
    array = np.asarray(values, dtype=np.float64)
    if scale == "points":
        return array
    if scale == "log":
        _refuse(array, array <= 0, "log", "losses or KL above 0")
        return np.log(array)
    if n_items is None:
        _refuse(array, (array <= 0) | (array >= 1), "log-odds", "shares between 0 and 1, or n_items to correct by")
    else:
        _refuse(array, (array < 0) | (array > 1), "log-odds", "shares from 0 to 1")
        array = (array * n_items + 0.5) / (n_items + 1)
    return np.log(array) - np.log1p(-array)


def read_at(
    level: float,
    rates: ArrayLike,
    learning: ArrayLike,
    forgetting: ArrayLike,
    scale: Scale = "points",
    n_items: float | None = None,
) -> Reading:
    """Forgetting where a curve of one seed crosses ``level``, between the two neighbouring rates around it.

    Rates without a number (diverged runs) are left out; one that lies between the two neighbours is told in ``mark``.
    Where the curve crosses the level more than once, the crossing of the least rate is read, and ``mark`` says so.

    Args:
        level: of learning.
        rates: (n,) values of the parameter, in any order, each once.
        learning: (n,) what is matched; whether more is better does not matter, so losses and KL are as good.
        forgetting: (n,) what is read, any number.
        scale: on which learning is taken to be linear between two neighbours.
        n_items: as for ``to_scale``.
    """
    rates, learning, forgetting = _as_curve(level, rates, learning, forgetting)
    there = np.isfinite(learning) & np.isfinite(forgetting)
    signs = np.sign(learning[there] - level)
    on_level = [(i, i) for i in np.flatnonzero(signs == 0)]
    crossings = sorted(on_level + [(i, i + 1) for i in np.flatnonzero(signs[:-1] * signs[1:] < 0)])
    if not crossings:
        return Reading(math.nan, _NOWHERE, _NOWHERE, math.nan, False, NOT_BRACKETED)
    known = [CurvePoint(*(float(x) for x in row)) for row in np.stack([rates, learning, forgetting], 1)[there]]
    lower, upper = (known[i] for i in crossings[0])
    marks = [f"level crossed {len(crossings)} times, read at the least rate"] if len(crossings) > 1 else []
    marks += [f"no number at {rate:g}" for rate in rates[~there] if lower.rate < rate < upper.rate]
    value, error = _between(level, lower, upper, scale, n_items)
    return Reading(value, lower, upper, error, True, "; ".join(marks))


def read_on_front(level: float, points: ArrayLike) -> Reading:
    """Forgetting along the front of the points, on straight lines between neighbours, where it has learned ``level``.

    Args:
        level: of learning.
        points: (n, 2) learning and forgetting, on the front or not.
    """
    if not math.isfinite(level):
        raise ValueError(f"level {level}: expected a finite number")
    front = [CurvePoint(math.nan, *(float(x) for x in corner)) for corner in corners(points)]
    i = int(np.searchsorted([point.learning for point in front], level))
    if i < len(front) and front[i].learning == level:
        return Reading(front[i].forgetting, front[i], front[i], 0.0, True, "")
    if i in (0, len(front)):
        return Reading(math.nan, _NOWHERE, _NOWHERE, math.nan, False, NOT_BRACKETED)
    value, error = _between(level, front[i - 1], front[i], "points", None)
    return Reading(value, front[i - 1], front[i], error, True, "")


def common_levels(fronts: Sequence[ArrayLike], n: int = 1) -> CommonLevels:
    """Levels at which all fronts can be read, the middles of ``n`` equal parts of the stretch that they share.

    Args:
        fronts: (n_points, 2) points of each.
        n: how many levels.
    """
    if n < 1 or not len(fronts):
        raise ValueError(f"{n} levels of {len(fronts)} fronts: expected at least one of both")
    learning = [corners(points)[:, 0] for points in fronts]
    empty = [number for number, values in enumerate(learning) if not len(values)]
    if empty:
        return CommonLevels([], math.nan, math.nan, f"fronts without a finite point: {empty}")
    low, high = (float(x) for x in (max(values[0] for values in learning), min(values[-1] for values in learning)))
    if low > high:
        return CommonLevels([], low, high, f"fronts do not overlap: one starts at {low:g}, another ends at {high:g}")
    # a stretch of no length has one level
    parts = (np.arange(n) + 0.5) / n if high > low else np.zeros(1)
    return CommonLevels((low + (high - low) * parts).tolist(), low, high, "")


def _between(
    level: float, lower: CurvePoint, upper: CurvePoint, scale: Scale, n_items: float | None
) -> tuple[float, float]:
    """Forgetting at the level on a straight line between two points, and how far the line in points lies from it."""
    if lower == upper:
        return lower.forgetting, 0.0

    def line(start: float, at: float, end: float) -> float:
        return lower.forgetting + (upper.forgetting - lower.forgetting) * (at - start) / (end - start)

    stations = (lower.learning, level, upper.learning)
    in_points = line(*stations)
    if scale == "points":
        return in_points, math.nan
    value = line(*(float(x) for x in to_scale(stations, scale, n_items)))
    return value, abs(value - in_points)


def _as_curve(
    level: float, rates: ArrayLike, learning: ArrayLike, forgetting: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three columns, sorted by rate."""
    columns = [np.asarray(column, dtype=np.float64) for column in (rates, learning, forgetting)]
    if any(column.ndim != 1 or column.shape != columns[0].shape for column in columns):
        shapes = [list(column.shape) for column in columns]
        raise ValueError(f"rates, learning and forgetting have shapes {shapes}: expected (n,) of each")
    if not np.isfinite(columns[0]).all() or len(np.unique(columns[0])) != len(columns[0]):
        raise ValueError(f"rates {columns[0].tolist()}: expected finite numbers, each once")
    if not math.isfinite(level):
        raise ValueError(f"level {level}: expected a finite number")
    order = np.argsort(columns[0])
    return columns[0][order], columns[1][order], columns[2][order]


def _refuse(array: np.ndarray, wrong: np.ndarray, scale: str, expected: str) -> None:
    if wrong.any():
        raise ValueError(f"{scale} of {array[wrong].flat[0]:g}: expected {expected}")
