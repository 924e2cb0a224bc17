"""Points of learning and forgetting: of every finished cell its end, its steps, and what lies between start and end.

Learning is such that more is better and forgetting such that less is: of a loss that is learned the negative is taken,
and of what is retained the change from the base, towards worse. On a scale other than points the change is one of
log-odds (shares) or of logarithms (losses, KL), so that near a ceiling a lost point is not counted like one in the
middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lit_consistency.stats.matched import Scale, to_scale
from lit_consistency.study.cells import Cell
from lit_consistency.study.options import ORDER, SEED, Reading
from lit_consistency.study.pick import by_number
from lit_consistency.study.results import CellResult, Results

END, STEP, BETWEEN = "end", "step", "interpolation"
"""Kinds of points: a final model, one of its run's steps, one between base and final model."""
FIRST_ORDER = "0"
"""Of the data; other orders are only of the spread."""
JUDGED = ("retain/", "learn/")
"""Beginnings of metrics of which a base has numbers too."""


@dataclass(frozen=True)
class Point:
    """What one model learned and forgot.

    Args:
        cell: from which it is.
        kind: ``END``, ``STEP`` or ``BETWEEN``.
        at: the step, or the share of the way from start to end.
        metrics: its numbers.
        result: of its cell, for base, directions and items.
    """

    cell: Cell
    kind: str
    at: float
    metrics: Mapping[str, float]
    result: CellResult
    known: dict[Any, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was read before: tables, effects and pictures of a report ask for the same numbers."""

    @property
    def seed(self) -> str:
        """Of the base."""
        return self.cell.coordinates[SEED]

    @property
    def order(self) -> str:
        """Of the data."""
        return self.cell.coordinates.get(ORDER, FIRST_ORDER)

    def number(self, metric: str) -> float:
        """As recorded."""
        return self.metrics.get(metric, math.nan)

    def learning(self, metric: str) -> float:
        """More is better."""
        value = self.number(metric)
        return value if self.result.more_is_better(metric) else -value

    def forgetting(self, metric: str, scale: Scale = "points", itself: bool = False) -> float:
        """Less is better: the change from the base for ``retain/NAME``, else the number itself.

        Args:
            metric: its name.
            scale: of the change.
            itself: the number itself whatever the metric, as of an evaluation, which has no base.

        Raises:
            ValueError: a scale that the metric does not have.
        """
        key = metric, scale, itself
        if key not in self.known:
            self.known[key] = self._forgetting(metric, scale, itself)
        return self.known[key]

    def _forgetting(self, metric: str, scale: Scale, itself: bool) -> float:
        if self.result.analysed:
            return self._as_it_is(metric, scale)
        if not metric.startswith(JUDGED):
            if scale != "points":
                raise ValueError(f"scale {scale} of {metric}: expected points, or retain/NAME in the place of a change")
            value = self.number(metric)
            return -value if self.result.more_is_better(metric) else value
        base, now = (self._on(metric, numbers, scale) for numbers in (self.result.base, self.metrics))
        base = 0.0 if itself or not self.result.base else base
        return base - now if self.result.more_is_better(metric) else now - base

    def _as_it_is(self, metric: str, scale: Scale) -> float:
        """A number of an analysis, or its logarithm; NaN where it has none."""
        if scale == "log-odds":
            raise ValueError(f"scale {scale} of {metric}: expected points or log; it is no share of right answers")
        value = self.number(metric)
        return value if scale == "points" else math.log(value) if value > 0 else math.nan

    def error(self, metric: str) -> float:
        """Standard error over items of a change in points; NaN where it was not recorded."""
        return self.number(f"{metric.replace('retain/', 'forget/', 1)}.stderr")

    def _on(self, metric: str, numbers: Mapping[str, float], scale: Scale) -> float:
        value = numbers.get(metric, math.nan)
        if scale == "points":
            return value
        items = self.result.items.get(metric.partition(".")[0])
        share = self.result.more_is_better(metric)
        if share != (scale == "log-odds"):
            raise ValueError(f"scale {scale} of {metric}: expected {'log-odds' if share else 'log'} or points")
        try:
            return float(to_scale(value, scale, items if scale == "log-odds" else None))
        except ValueError:  # a loss of nothing has no logarithm
            return math.nan

    @property
    def label(self) -> str:
        """In words."""
        where = {STEP: f", step {self.at:g}", BETWEEN: f", {self.at:g} of the way"}.get(self.kind, "")
        return self.cell.label + where


@dataclass(frozen=True)
class Group:
    """Cells that are read as one: those of a base and a finetuner, say, at all rates and seeds.

    Args:
        panel: name of the picture, as ``optimizer adamw``.
        name: within the panel, as ``muon``.
        coordinates: axis -> value, that all of them have.
        points: of all of them.
        planned: seeds that the group is to have, also where no cell has finished.
    """

    panel: str
    name: str
    coordinates: Mapping[str, str]
    points: Sequence[Point]
    planned: Sequence[str] = ()
    known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was read of these points before, as of a ``Point``."""

    @cached_property
    def _by_seed(self) -> Mapping[tuple[str, str], Sequence[Point]]:
        """Seed and order -> points. A report asks for them thousands of times."""
        index: dict[tuple[str, str], list[Point]] = {}
        for point in self.points:
            index.setdefault((point.seed, point.order), []).append(point)
        return index

    def of_seed(self, seed: str, order: str = FIRST_ORDER) -> Sequence[Point]:
        """All points of a seed and an order of the data."""
        return self._by_seed.get((seed, order), ())

    def orders(self, seed: str) -> list[str]:
        """Orders of the data of which a seed has points."""
        return sorted({order for other, order in self._by_seed if other == seed}, key=int)

    def ends(self, seed: str | None = None, order: str = FIRST_ORDER) -> list[Point]:
        """Final models, of one seed or all, of one order of the data."""
        seeds = self.seeds if seed is None else [seed]
        return [point for one in seeds for point in self.of_seed(one, order) if point.kind == END]

    def at(self, wanted: Mapping[str, str]) -> Group:
        """The points whose cells have these coordinates, as a group."""
        points = [
            point
            for point in self.points
            if all(point.cell.coordinates.get(axis) == str(value) for axis, value in wanted.items())
        ]
        return replace(self, points=points)

    @cached_property
    def seeds(self) -> list[str]:
        """Of its points."""
        return sorted({seed for seed, _ in self._by_seed}, key=int)


def points_of(cell: Cell, results: Results) -> list[Point]:
    """All points of a finished cell; none of another."""
    result = results.of(cell.name)
    if not result.metrics:
        return []
    points = [Point(cell, END, 1.0, result.metrics, result)]
    points += [Point(cell, BETWEEN, float(share), numbers, result) for share, numbers in result.interpolated.items()]
    curve = results.curve(cell.name)
    last = max((row["step"] for row in curve), default=0.0)
    points += [Point(cell, STEP, row["step"], row, result) for row in curve if 0 < row["step"] < last]
    return points


def groups_of(cells: Sequence[Cell], reading: Reading, results: Results) -> list[Group]:
    """The groups of a reading in the order of the study's file, those without a finished cell too."""
    members: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in cells:
        key = tuple((axis, cell.coordinates.get(axis, "")) for axis in (*reading.panel, *reading.group))
        members.setdefault(key, []).append(cell)
    n_panel = len(reading.panel)
    return [
        Group(
            ", ".join(f"{axis} {value}" for axis, value in key[:n_panel]) or "all",
            ", ".join(value for _, value in key[n_panel:]) or "all",
            dict(key),
            [point for cell in of_group for point in points_of(cell, results)],
            list(dict.fromkeys(cell.coordinates[SEED] for cell in of_group)),
        )
        for key, of_group in members.items()
    ]


def rate_of(point: Point, axis: str) -> float:
    """Its value on the swept axis; NaN where that is no number."""
    kind, value, _ = by_number(point.cell.coordinates.get(axis, ""))
    return value if kind == 0 else math.nan


def level_on(point: Point, metric: str, level: float) -> float:
    """A level of learning with the sign of ``Point.learning``."""
    return level if point.result.more_is_better(metric) else -level
