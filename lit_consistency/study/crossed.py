"""Effects of a crossed table of bases and finetuners, and where the spread of a study comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from lit_consistency.stats.effects import Contrast, crossed, variance_components
from lit_consistency.stats.verdicts import detectable_effect
from lit_consistency.study.options import Reading
from lit_consistency.study.points import Group, Point
from lit_consistency.study.reading import Where, read_group
from lit_consistency.study.report.content import Effect, Variance


def crossed_effects(
    groups: Sequence[Group],
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    where: Where,
    reading: Reading,
) -> dict[str, tuple[str, Contrast]]:
    """Name -> kind and contrast over seeds of a crossed table.

    Args:
        groups: of the reading.
        rows: axis and two or more of its values, the bases.
        columns: axis and values, the finetuners; a base and a finetuner of one name are a matched pair.
        where: what is read.
        reading: how.
    """
    seeds, table = table_of(groups, rows, columns, where, reading)
    if not seeds:
        return {}
    effects = crossed(table, rows[1], columns[1])
    # a seed that an arm was never to have is not left out of it
    planned = crossed(_planned(groups, seeds, rows, columns), rows[1], columns[1])
    found: dict[str, tuple[str, Contrast]] = {}
    if effects.interaction is not None:
        found["interaction: matched less mismatched"] = ("interaction", effects.interaction)
    elif effects.matching is not None:
        found["matching: own optimizer less the others"] = ("interaction", effects.matching)
    told = [("main", effects.main, planned.main), ("simple", effects.simple, planned.simple)]
    if min(len(rows[1]), len(columns[1])) == 1:  # then the simple effects are the main ones
        told.pop()
    for kind, some, of_plan in told:
        for name, contrast in some.items():
            never = of_plan[name].left_out
            found[name] = (kind, contrast._replace(left_out=contrast.left_out - never))
    return found


def _planned(
    groups: Sequence[Group], seeds: Sequence[str], rows: tuple[str, Sequence[str]], columns: tuple[str, Sequence[str]]
) -> np.ndarray:
    """(n_seeds, rows, columns): 0 where the plan has cells, NaN where not."""
    table = np.full((len(seeds), len(rows[1]), len(columns[1])), math.nan)
    for group, i, j in _placed(groups, rows, columns):
        table[[seed in group.planned or seed in group.seeds for seed in seeds], i, j] = 0.0
    return table


def _placed(
    groups: Sequence[Group], rows: tuple[str, Sequence[str]], columns: tuple[str, Sequence[str]]
) -> Iterator[tuple[Group, int, int]]:
    for group in groups:
        row, column = group.coordinates.get(rows[0]), group.coordinates.get(columns[0])
        if row in rows[1] and column in columns[1]:
            yield group, list(rows[1]).index(str(row)), list(columns[1]).index(str(column))


def table_of(
    groups: Sequence[Group],
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    where: Where,
    reading: Reading,
) -> tuple[list[str], np.ndarray]:
    """Seeds, and (n_seeds, rows, columns) numbers, NaN where there is none."""
    seeds = sorted({seed for group in groups for seed in group.seeds}, key=int)
    table = np.full((len(seeds), len(rows[1]), len(columns[1])), math.nan)
    for group, i, j in _placed(groups, rows, columns):
        for k, seed in enumerate(seeds):
            table[k, i, j] = read_group(group, seed, where, reading).value
    return seeds, table


def as_effect(
    name: str, kind: str, table: str, where: Where, contrast: Contrast, spread: float, mark: str = ""
) -> Effect:
    """A contrast as it is shown, with what n seeds could have told."""
    sd = contrast.stderr * math.sqrt(contrast.n) if contrast.n > 1 else math.nan
    left_out = f"{contrast.left_out} seeds left out" if contrast.left_out else ""
    return Effect(
        table=table,
        name=name,
        kind=kind,
        scale=where.scale,
        value=contrast.value,
        low=contrast.low,
        high=contrast.high,
        p=contrast.p,
        n=contrast.n,
        order_spread=spread,
        detectable=detectable_effect(sd, contrast.n),
        mark="; ".join(text for text in (mark, left_out) if text),
    )


def components(groups: Sequence[Group], where: Where, reading: Reading) -> list[Variance]:
    """Where the spread of forgetting comes from in every group: seeds of the base, orders of the data, items."""
    shown = []
    for group in groups:
        values: dict[str | int, list[float]] = {}
        errors: dict[str | int, list[float]] = {}
        for seed in group.seeds:
            orders = group.orders(seed)
            values[seed] = [read_group(group, seed, where, reading, order).value for order in orders]
            errors[seed] = [_error(group.ends(seed, order), where) for order in orders]
        if not values:
            continue
        parts = variance_components(values, errors if where.scale == "points" else None)
        shown.append(
            Variance(
                where.metric,
                f"{group.panel}, {group.name}",
                {"base": parts.base, "order": parts.order, "items": parts.items},
            )
        )
    return shown


def _error(ends: Sequence[Point], where: Where) -> float:
    """Standard error over items, the mean of the rates between which is read."""
    errors = [point.error(where.metric) for point in ends]
    known = [error for error in errors if math.isfinite(error)]
    return float(np.mean(known)) if known else math.nan


def order_spread(variances: Sequence[Variance]) -> float:
    """Standard deviation of an identical run with another order of data, the root mean square over groups."""
    known = [v.components["order"] for v in variances if math.isfinite(v.components["order"])]
    return float(np.sqrt(np.mean(np.square(known)))) if known else math.nan
