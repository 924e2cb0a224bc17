"""Which cells of its base's stage a stage starts from: some, the best along an axis, or those that meet a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lit_consistency.stats.rates import best_rate
from lit_consistency.study.cells import Cell
from lit_consistency.study.options import ORDER, SEED, Pick
from lit_consistency.study.results import CellResult

Outcome = Callable[[Cell], CellResult | None]
"""What came out of a cell that has ended, without numbers where it failed or diverged; None of one that has not."""


def picked(
    stage: str,
    pick: Pick,
    cells: Sequence[Cell],
    outcome: Outcome,
    notes: list[str],
    is_settled: Callable[[Cell], bool] = lambda cell: True,
) -> list[Cell]:
    """The cells that are picked so far.

    Args:
        stage: that starts from them, for notes.
        pick: which.
        cells: of the base's stage.
        outcome: what came out of them.
        notes: gets a sentence for every group of which none is picked, and for every best one at an edge.
        is_settled: whether no search may still add a cell beside this one, which might be picked in its place.
    """
    kept = [
        cell
        for cell in cells
        if all(cell.coordinates.get(axis) in [str(name) for name in names] for axis, names in pick.where.items())
    ]
    kept = [cell for cell in kept if cell.coordinates.get(ORDER, "0") == "0"]  # a repeated order is no base of its own
    if not pick.over:
        return kept
    # a cell that has ended counts as one that has not as long as a better one may come
    known = outcome if all(map(is_settled, kept)) else lambda cell: outcome(cell) if is_settled(cell) else None
    return _best(stage, pick, kept, known, notes) if pick.best else _nearest(stage, pick, kept, cells, known, notes)


def _best(stage: str, pick: Pick, cells: Sequence[Cell], outcome: Outcome, notes: list[str]) -> list[Cell]:
    """Of every group the value with the best mean over seeds; one value for all seeds, which pairs them."""
    over, metric = str(pick.over), str(pick.best)
    chosen: list[Cell] = []
    for group in groups(cells, (over, SEED)):
        where = f"{stage}: {over} of {group[0].stage} ({describe(group[0], (over, SEED))})"
        results = {cell.name: outcome(cell) for cell in group}
        if any(result is None for result in results.values()):
            notes.append(f"{where}: the best one is known when its cells have run")
            continue
        names = sorted({cell.coordinates[over] for cell in group}, key=by_number)
        seeds = sorted({cell.coordinates[SEED] for cell in group}, key=int)
        table = np.full((len(seeds), len(names)), math.nan)
        for cell in group:
            at = seeds.index(cell.coordinates[SEED]), names.index(cell.coordinates[over])
            table[at] = number(results[cell.name], metric)
        more = more_is_better(metric, list(results.values()))
        index, at_edge = best_rate(np.arange(1.0, len(names) + 1), table, more)
        if index is None:
            notes.append(f"{where}: none has a {metric} for every seed")
            continue
        if at_edge:
            notes.append(f"{where}: the best one, {names[index]}, lies at the edge of what was tried")
        chosen += [cell for cell in group if cell.coordinates[over] == names[index]]
    return chosen


def _nearest(
    stage: str, pick: Pick, cells: Sequence[Cell], every: Sequence[Cell], outcome: Outcome, notes: list[str]
) -> list[Cell]:
    """Of every group and seed the cell whose number comes nearest to what is to be met."""
    over, metric = str(pick.over), str(pick.metric)
    chosen = []
    for group in groups(cells, (over,)):
        where = f"{stage}: {over} of {group[0].stage} ({describe(group[0], (over,))})"
        results = [outcome(cell) for cell in group]
        aim = pick.level if not pick.to else _aim(pick, group[0], every, outcome)
        if aim is None or any(result is None for result in results):
            notes.append(f"{where}: which one meets {metric} is known when the cells have run")
            continue
        distances = np.asarray([abs(number(result, metric) - aim) for result in results])
        if np.isnan(distances).all():
            notes.append(f"{where}: no cell has a {metric}")
            continue
        nearest = int(np.nanargmin(distances))
        if pick.within is not None and distances[nearest] > pick.within:
            found = f"the nearest, {group[nearest].coordinates[over]}, is {distances[nearest]:.4g} away"
            notes.append(f"{where}: none comes within {pick.within:g} of {metric} = {aim:.4g}; {found}")
            continue
        chosen.append(group[nearest])
    return chosen


def _aim(pick: Pick, cell: Cell, every: Sequence[Cell], outcome: Outcome) -> float | None:
    """The number of the cell that is to be met: that of the same coordinates, but for ``pick.to``."""
    wanted = {axis: value for axis, value in cell.coordinates.items() if axis != pick.over} | pick.to
    met = [other for other in every if all(other.coordinates.get(axis) == str(value) for axis, value in wanted.items())]
    result = outcome(met[0]) if met else None
    return None if result is None else number(result, str(pick.metric))


def number(result: CellResult | None, metric: str) -> float:
    """A final number; NaN where there is none."""
    return math.nan if result is None else result.number(metric)


def more_is_better(metric: str, results: Sequence[CellResult | None]) -> bool:
    """As the first result with numbers says; without one nothing is compared yet."""
    finished = [result for result in results if result is not None and result.metrics]
    return finished[0].more_is_better(metric) if finished else False


def groups(cells: Sequence[Cell], without: Sequence[str]) -> list[list[Cell]]:
    """Cells that agree in all coordinates but these."""
    found: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in cells:
        key = tuple((axis, value) for axis, value in cell.coordinates.items() if axis not in without)
        found.setdefault(key, []).append(cell)
    return list(found.values())


def describe(cell: Cell, without: Sequence[str] = ()) -> str:
    """Its coordinates in words."""
    return ", ".join(f"{axis} {value}" for axis, value in cell.coordinates.items() if axis not in without) or "all"


def by_number(name: str) -> tuple[int, float, str]:
    """Numbers by their size, then words."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
