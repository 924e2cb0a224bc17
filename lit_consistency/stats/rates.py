"""Which rate is best, whether the grid brackets it, and which rates to try next. Pure: the same runs, the same answer.

A comparison at badly chosen learning rates compares the choices. So the best rate must lie strictly inside the grid,
and where forgetting is read at a level of learning, two rates close to each other must lie on either side of it: on
grids of factor 2 such readings moved by 5 points with the way to interpolate.

Rates that are suggested have four significant digits, so that names of folders stay short.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def best_rate(rates: ArrayLike, values: ArrayLike, higher_is_better: bool) -> tuple[int | None, bool]:
    """Index of the rate with the best mean over seeds, and whether it lies at an edge of the grid.

    A rate at which any seed has no number (diverged) is the worst there is, and brackets its neighbour. Of equally
    good rates it is the least one: it moves the weights less.

    Args:
        rates: (n_rates,) in any order, each once.
        values: (n_seeds, n_rates), or (n_rates,) of a single seed.
        higher_is_better: whether more is better.

    Returns:
        The index as rates were handed in, None where every rate diverged; and whether no rate lies beyond it.
    """
    grid, means = _as_grid(rates, values)
    if not higher_is_better:
        means = -means
    order = np.argsort(grid)
    ranked = np.where(np.isfinite(means), means, -math.inf)[order]
    best = int(np.argmax(ranked))
    if ranked[best] == -math.inf:
        return None, True
    return int(order[best]), best in (0, len(grid) - 1)


def next_rates(
    rates: ArrayLike, values: ArrayLike, factor: float, higher_is_better: bool, most: int = 12
) -> list[float]:
    """Rates to try until the best one is bracketed, a factor beyond the edge at which it lies.

    Args:
        rates: as for ``best_rate``.
        values: as for ``best_rate``.
        factor: between an edge and the next rate, above 1.
        higher_is_better: whether more is better.
        most: how many rates there may be in all.

    Returns:
        Nothing when the best rate is bracketed or ``most`` are tried (``best_rate`` tells which); both sides of a
        single rate; where every rate diverged, the one below the least.
    """
    _check_factor("factor", factor)
    grid, _ = _as_grid(rates, values)
    best, at_edge = best_rate(rates, values, higher_is_better)
    if not at_edge:
        return []
    beyond = []
    if best is None or grid[best] == grid.min():
        beyond.append(grid.min() / factor)
    if best is not None and grid[best] == grid.max():
        beyond.append(grid.max() * factor)
    return _new(beyond, grid, most)


def refine(
    rates: ArrayLike, learning: ArrayLike, level: float, within: float, most: int = 12, factor: float = 2.0
) -> list[float]:
    """The next rate to try, so that two rates lie on either side of ``level`` and within a factor of each other.

    Between two neighbours around the level it is their geometric mean; where the curve crosses the level more than
    once, the crossing of the least rate is refined, the one that ``matched.read_at`` reads. Where all rates learn
    more, it lies a factor below the least. Where all learn less, it lies a factor beyond the edge that learned most.
    Outwards of an edge beyond which a rate diverged, it is the geometric mean with that rate.

    Args:
        rates: (n_rates,) in any order, each once.
        learning: (n_rates,) more is better; NaN diverged.
        level: at which the study reads.
        within: the largest factor between the two rates, above 1.
        most: how many rates there may be in all.
        factor: of the steps outwards, above 1.

    Returns:
        One rate, or none: the level is bracketed closely enough, ``most`` rates are tried, or a rate inside the grid
        learned most and still less than the level, so that no rate will do.
    """
    _check_factor("within", within)
    _check_factor("factor", factor)
    if not math.isfinite(level):
        raise ValueError(f"level {level}: expected a finite number")
    grid, learned = _as_grid(rates, learning)
    order = np.argsort(grid)
    grid, learned = grid[order], learned[order]
    finite = np.isfinite(learned)
    if not finite.any():
        return _new([grid[0] / factor], grid, most)
    known = grid[finite]
    signs = np.sign(learned[finite] - level)
    on_level, crossed = np.flatnonzero(signs == 0), np.flatnonzero(signs[:-1] * signs[1:] < 0)
    if len(on_level) and not (len(crossed) and crossed[0] < on_level[0]):
        return []
    if len(crossed):
        return _halfway(known[crossed[0]], known[crossed[0] + 1], grid, within, most)

    best = int(np.argmax(learned[finite]))
    if signs[0] < 0 and 0 < best < len(known) - 1:
        return []
    # without a crossing all lie on one side: what learned too much learned it at too large a rate
    downwards = signs[0] > 0 or best < len(known) - 1
    edge = known[0] if downwards else known[-1]
    diverged = grid[grid < edge][-1:] if downwards else grid[grid > edge][:1]
    if len(diverged):
        return _halfway(min(edge, diverged[0]), max(edge, diverged[0]), grid, within, most)
    return _new([edge / factor if downwards else edge * factor], grid, most)


def _halfway(lower: float, upper: float, grid: np.ndarray, within: float, most: int) -> list[float]:
    """Geometric mean of two rates, unless they are close; a thousandth is forgiven, for rates are rounded."""
    return [] if upper / lower <= 1.001 * within else _new([math.sqrt(lower * upper)], grid, most)


def _new(candidates: list[float], grid: np.ndarray, most: int) -> list[float]:
    """The candidates, rounded, that were not tried yet, as many as there is room for."""
    rounded = [float(f"{rate:.4g}") for rate in candidates]
    return [rate for rate in rounded if rate not in grid][: max(most - len(grid), 0)]


def _as_grid(rates: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Rates, and their means over seeds, NaN where one has no number."""
    grid, table = np.asarray(rates, dtype=np.float64), np.atleast_2d(np.asarray(values, dtype=np.float64))
    if grid.ndim != 1 or not len(grid) or table.ndim != 2 or table.shape[1] != len(grid) or not len(table):
        raise ValueError(
            f"rates and values have shapes {list(grid.shape)} and {list(table.shape)}: expected (n_rates,) and "
            "(n_seeds, n_rates), at least one of each"
        )
    if not (np.isfinite(grid) & (grid > 0)).all() or len(np.unique(grid)) != len(grid):
        raise ValueError(f"rates {grid.tolist()}: expected finite numbers above 0, each once")
    finite = np.isfinite(table).all(0)
    return grid, np.where(finite, np.where(finite, table, 0).mean(0), math.nan)


def _check_factor(key: str, factor: float) -> None:
    if not (math.isfinite(factor) and factor > 1):
        raise ValueError(f"{key} {factor}: expected a finite number above 1")
