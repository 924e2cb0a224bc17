"""From points to what the report shows: fronts, rate curves, forgetting at matched learning, effects, components.

All is read within a seed of the base first; seeds are joined last (stats/effects.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.stats.fronts import attainment, common_reference, front, hypervolume_interval
from lit_consistency.stats.matched import NOT_BRACKETED, CurvePoint, Scale, read_at, read_on_front
from lit_consistency.stats.matched import Reading as MatchedReading
from lit_consistency.stats.rates import best_rate
from lit_consistency.stats.seeds import mean_interval
from lit_consistency.study.options import Reading
from lit_consistency.study.points import BETWEEN, END, STEP, Group, Point, level_on, rate_of
from lit_consistency.study.report.content import Front, FrontPoint, RateCurve


class AtLevel(NamedTuple):
    """Forgetting of one group and seed where it is read.

    Attributes:
        value: NaN where it cannot be read.
        mark: empty, or why it cannot be relied on.
        interpolation_error: of the reading.
        between: the two points between which it was read.
    """

    value: float
    mark: str
    interpolation_error: float = math.nan
    between: tuple[CurvePoint, CurvePoint] | None = None


FRONT_OF: dict[str, tuple[str, ...]] = {
    "front": (END, STEP, BETWEEN),
    "final": (END,),
    "early_stop": (END, STEP),
    "dial": (END, BETWEEN),
}
"""Place of a claim -> kinds of the points whose front is read."""


@dataclass(frozen=True)
class Where:
    """Where a number is read.

    Args:
        at: ``learning`` or ``divergence`` at a level along the rates; one of ``FRONT_OF`` at the level of learning
            along the front of its points; ``end`` as a mean over all rates; ``best`` at the best rate.
        metric: that is read.
        scale: on which its change is taken.
        itself: not its change from the base, but the number itself.
    """

    at: str
    metric: str
    scale: Scale = "points"
    itself: bool = False


def read_group(group: Group, seed: str, where: Where, reading: Reading, order: str = "0") -> AtLevel:
    """A number of one group and seed, at matched learning or elsewhere.

    Args:
        group: cells at several rates.
        seed: of the base.
        where: what is read, and where.
        reading: metrics, levels, and the axis of the rate.
        order: of the data.
    """
    levels = reading.learning, reading.level, reading.divergence, reading.divergence_level, reading.rate
    key = seed, order, where, levels
    if key not in group.known:
        group.known[key] = _read(group, seed, where, reading, order)
    return group.known[key]


def _read(group: Group, seed: str, where: Where, reading: Reading, order: str) -> AtLevel:
    ends = group.ends(seed, order)
    if not ends:
        return AtLevel(math.nan, "no finished cell")
    forgotten = [point.forgetting(where.metric, where.scale, where.itself) for point in ends]
    if where.at == "end":
        return AtLevel(float(np.mean(forgotten)), "" if len(ends) == 1 else f"mean over {len(ends)} cells")
    if where.at == "best":
        best = _best(group, reading)
        chosen = [
            value
            for point, value in zip(ends, forgotten, strict=True)
            if rate_of(point, str(reading.rate)) == best.rate
        ]
        return AtLevel(chosen[0] if chosen else math.nan, best.mark)
    if where.at in FRONT_OF:
        return _on_front(group, seed, where, reading)
    metric, level = (
        (reading.learning, reading.level) if where.at == "learning" else (reading.divergence, reading.divergence_level)
    )
    if metric is None or level is None or reading.rate is None:
        return AtLevel(math.nan, "no level is given")
    matched = [point.learning(metric) for point in ends]
    share = ends[0].result.more_is_better(metric)
    items = ends[0].result.items.get(metric)
    rates = [rate_of(point, reading.rate) for point in ends]
    if share:
        got = read_at(level, rates, matched, forgotten, "log-odds", items or 1000)
    else:
        got = read_at(level, rates, [-value for value in matched], forgotten, "log" if min(matched) < 0 else "points")
    return _as_read(got)


def _on_front(group: Group, seed: str, where: Where, reading: Reading) -> AtLevel:
    """Along the front of a seed's points of all rates, and of steps and shares of the way where these are asked for."""
    points = [point for point in group.of_seed(seed) if point.kind in FRONT_OF[where.at]]
    pairs = [(p.learning(reading.learning), p.forgetting(where.metric, where.scale, where.itself)) for p in points]
    if reading.level is None or not points:
        return AtLevel(math.nan, "no level is given")
    return _as_read(read_on_front(level_on(points[0], reading.learning, reading.level), pairs))


def _as_read(got: MatchedReading) -> AtLevel:
    return AtLevel(got.value, got.mark, got.interpolation_error, (got.lower, got.upper) if got.bracketed else None)


class Best(NamedTuple):
    """The best rate of a group, NaN where there is none, and why it cannot be relied on."""

    rate: float
    mark: str


def _best(group: Group, reading: Reading) -> Best:
    rates, table = _table(group, str(reading.rate), lambda point: point.learning(reading.learning))
    if not rates:
        return Best(math.nan, "no finished cell")
    index, at_edge = best_rate(rates, table, higher_is_better=True)
    return Best(math.nan if index is None else rates[index], "best at the edge" if at_edge else "")


def _table(group: Group, axis: str, value: Callable[[Point], float]) -> tuple[list[float], np.ndarray]:
    """Rates, and a number of every seed (rows) at every rate."""
    ends = [point for point in group.ends() if not math.isnan(rate_of(point, axis))]
    rates, seeds = sorted({rate_of(point, axis) for point in ends}), group.seeds
    table = np.full((len(seeds), len(rates)), math.nan)
    for point in ends:
        table[seeds.index(point.seed), rates.index(rate_of(point, axis))] = value(point)
    return rates, table


# -------------------- pictures


def fronts(groups: Sequence[Group], reading: Reading) -> list[Front]:
    """A front of every group, over rates, steps and interpolation; groups of one panel have one reference."""
    shown = []
    for panel in dict.fromkeys(group.panel for group in groups):
        members = [group for group in groups if group.panel == panel and group.points]
        corners = [_by_seed(group, reading) for group in members]
        pooled = [np.concatenate(list(by_seed.values())) for by_seed in corners]
        finite = [points[np.isfinite(points).all(1)] for points in pooled]
        if not any(len(points) for points in finite):
            continue
        reference = common_reference([points for points in finite if len(points)])
        for group, by_seed in zip(members, corners, strict=True):
            interval = hypervolume_interval(list(by_seed.values()), reference)
            shown.append(
                Front(
                    panel=panel,
                    group=group.name,
                    points=_front_points(group, reading),
                    surfaces=attainment(list(by_seed.values())),
                    hypervolume=(interval.value, interval.low, interval.high),
                    reference=reference,
                )
            )
    return shown


def _by_seed(group: Group, reading: Reading) -> dict[str, np.ndarray]:
    return {
        seed: np.asarray(
            [(point.learning(reading.learning), point.forgetting(reading.forgetting)) for point in group.of_seed(seed)],
            dtype=np.float64,
        ).reshape(-1, 2)
        for seed in group.seeds
    }


def _front_points(group: Group, reading: Reading) -> list[FrontPoint]:
    shown = []
    for seed in group.seeds:
        points = group.of_seed(seed)
        pairs = [(p.learning(reading.learning), p.forgetting(reading.forgetting)) for p in points]
        best = set(front(np.asarray(pairs, dtype=np.float64).reshape(-1, 2)).tolist())
        shown += [
            FrontPoint(pair[0], pair[1], seed, point.cell.name, point.kind, point.label, i in best)
            for i, (pair, point) in enumerate(zip(pairs, points, strict=True))
            if all(map(math.isfinite, pair))
        ]
    return shown


def rate_curves(groups: Sequence[Group], reading: Reading) -> list[RateCurve]:
    """Learning and forgetting over the swept rate, with the level and what is not bracketed."""
    if reading.rate is None:
        return []
    curves = []
    for group in groups:
        ends = group.ends()
        if not ends:
            continue
        best = _best(group, reading)
        for metric, value, level in (
            (reading.learning, lambda p: p.learning(reading.learning), reading.level),
            (reading.forgetting, lambda p: p.forgetting(reading.forgetting), None),
        ):
            rates, table = _table(group, reading.rate, value)
            mark = best.mark if level is None else _not_bracketed(table, level_on(ends[0], metric, level))
            curves.append(
                _rate_curve(
                    group,
                    reading.rate,
                    metric if metric == reading.learning else f"change of {metric}",
                    rates,
                    table,
                    best=best.rate if metric == reading.learning and level is None else math.nan,
                    mark=mark if metric == reading.learning else "",
                    level=math.nan if level is None else level_on(ends[0], metric, level),
                )
            )
    return curves


def tuned_curves(groups: Sequence[Group], metric: str, axis: str) -> list[RateCurve]:
    """A metric of another stage over its swept axis, with the best value and whether it lies at an edge."""
    curves = []
    for group in groups:
        rates, table = _table(group, axis, lambda point: point.number(metric))
        if not rates:
            continue
        index, at_edge = best_rate(rates, table, group.ends()[0].result.more_is_better(metric))
        curves.append(
            _rate_curve(
                group,
                axis,
                metric,
                rates,
                table,
                best=math.nan if index is None else rates[index],
                mark="best at the edge" if at_edge else "",
            )
        )
    return curves


def _rate_curve(
    group: Group, axis: str, metric: str, rates: Sequence[float], table: np.ndarray, **marks: Any
) -> RateCurve:
    """The mean over seeds with its interval at every rate, and the curve of every seed, from a (seeds, rates) table."""
    means = [mean_interval(column.tolist()) for column in table.T]
    return RateCurve(
        panel=group.panel,
        group=group.name,
        axis=axis,
        metric=metric,
        points=[(rate, mean.mean, mean.low, mean.high) for rate, mean in zip(rates, means, strict=True)],
        singles={
            seed: [(rate, float(v)) for rate, v in zip(rates, row, strict=True) if math.isfinite(v)]
            for seed, row in zip(group.seeds, table, strict=True)
        },
        **marks,
    )


def _not_bracketed(table: np.ndarray, level: float) -> str:
    """How many seeds have no rates on either side of the level."""
    outside = [row for row in table if not (np.nanmin(row) <= level <= np.nanmax(row))] if table.size else []
    return f"{NOT_BRACKETED} for {len(outside)} of {len(table)} seeds" if outside else ""
