"""The table at the end of a run: base, now, what was learned, what was forgotten, and the distance.

Forgetting is a difference. The share that is retained, now over base, stands beside it only where the base scored
clearly above chance: the ratio to a base near zero says how small the base is, and that of two guesses nothing (Sun &
Dredze, arXiv 2408.06663, divide by such bases).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from lit_consistency.records.results import higher_is_better
from lit_consistency.stats.intervals import share_low, smallest_change

LEAST_ABOVE_CHANCE = 0.05
"""A base at or below this much above chance gives no share: there an item more or less moves the ratio a lot."""


CEILING = 0.99
"""A share of right answers at or above this shows no first forgetting; the loss does."""


class Measurement(NamedTuple):
    """A watched task before and after.

    Attributes:
        kind: ``learn`` or ``retain``.
        name: of the task.
        metric: what is measured, one of ``records.results.METRICS``.
        base: its value at the start.
        now: its value at the end.
        chance: what a model that knows nothing may reach.
        base_stderr: standard error of ``base``; None where it is not known.
        now_stderr: of ``now``.
        worse_stderr: of the difference of both on the same items.
        beside: the same task by another metric, in a line of its own below: the loss, where shares of right answers
            are at their ceiling and show nothing.
        items: how many were asked; None where it is not known.
    """

    kind: str
    name: str
    metric: str
    base: float
    now: float
    chance: float = 0.0
    base_stderr: float | None = None
    now_stderr: float | None = None
    worse_stderr: float | None = None
    beside: Measurement | None = None
    items: int | None = None

    @property
    def worse(self) -> float:
        """How much worse than the base; positive is worse, in units of the metric."""
        return self.base - self.now if higher_is_better(self.metric) else self.now - self.base

    @property
    def share(self) -> float | None:
        """Now over base; None for losses, and where the base is not clearly above chance."""
        if not higher_is_better(self.metric) or not self.base > self.chance + LEAST_ABOVE_CHANCE:
            return None
        return self.now / self.base

    @property
    def at_chance(self) -> bool:
        """Whether the base may know nothing of it: the interval of its share of right answers holds chance."""
        if not higher_is_better(self.metric) or self.base_stderr is None or self.items is None:
            return False
        return share_low(self.base, self.base_stderr, self.items) <= self.chance

    @property
    def smallest_change(self) -> float | None:
        """Smaller changes cannot be told from none; None where nothing says so."""
        share = higher_is_better(self.metric)
        return smallest_change(self.worse_stderr, self.items if share else None)


def metric_beside(judged_by: str, metrics: Sequence[str], base: float, now: float) -> str | None:
    """The loss, where it is measured and the share of right answers was or is at its ceiling.

    Args:
        judged_by: the metric that judges a task.
        metrics: all that it has.
        base: its value at the start.
        now: its value now.
    """
    loss = "nats_per_token"
    at_ceiling = higher_is_better(judged_by) and max(base, now) >= CEILING
    return loss if at_ceiling and loss in metrics and judged_by != loss else None


def results_table(measurements: Sequence[Measurement], numbers: Mapping[str, float]) -> None:
    """Print what was learned and what was forgotten, with standard errors where they are known, and the distance below.

    Two tables of 80 columns at most, so that nothing is folded in a narrow terminal or a log.
    """
    console = Console()
    for kind, title, change in (("learn", "learned", "better by"), ("retain", "forgotten", "worse by")):
        rows = [m for m in measurements if m.kind == kind]
        if rows:
            table = _table(title, "task", "metric", "base", "now", change, *(["retained"] if kind == "retain" else []))
            for m in rows:
                retained = [f"{100 * m.share:.1f}%" if m.share is not None else ""] if kind == "retain" else []
                table.add_row(m.name, *cells(m), *retained)
                if m.chance > 0:
                    table.add_row("", "by chance", _value(m.chance), style="dim")
                if m.beside is not None:
                    table.add_row("", *cells(m.beside), style="dim")
            console.print(table)
            if kind == "retain":
                for line in _resolution_lines(rows):
                    console.print(line, highlight=False, style="dim")
    console.print(_distance_line(numbers), highlight=False)


def tasks_table(measurements: Sequence[Measurement]) -> None:
    """Print the tasks of a model as it is, with what a model that knows nothing may reach."""
    table = _table("tasks", "task", "metric", "value", "by chance")
    for m in measurements:
        for name, row in ((m.name, m), ("", m.beside)):
            if row is not None:
                chance = _value(row.chance) if row.chance > 0 else ""
                table.add_row(name, row.metric, _with_error(_value(row.now), row.now_stderr), chance)
    Console().print(table)
    for line in _chance_lines(measurements):
        Console().print(line, highlight=False, style="dim")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        names = column in ("task", "metric")
        # a task's name gives way: it is the user's, and may be of any length
        justify: Literal["left", "right"] = "left" if names else "right"
        table.add_column(column, justify=justify, no_wrap=column != "task", overflow="fold")
    return table


def cells(m: Measurement) -> list[str]:
    """Metric, base, now, and the change: of what is learned positive is better, of what is retained worse."""
    change = _with_error(_signed(-m.worse if m.kind == "learn" else m.worse), m.worse_stderr)
    return [m.metric, _with_error(_value(m.base), m.base_stderr), _with_error(_value(m.now), m.now_stderr), change]


def _with_error(text: str, stderr: float | None) -> str:
    """As ``0.9780±.006``: of errors below one the zero before the point is left out."""
    if stderr is None or math.isnan(stderr):
        return text
    return f"{text}±{f'{stderr:.3f}'.removeprefix('0')}"


def _resolution_lines(measurements: Sequence[Measurement]) -> list[str]:
    """What the sets can resolve, and on which of them there is nothing to forget."""
    told = [(m, m.smallest_change) for m in measurements if not m.at_chance]
    parts = [
        f"{m.name} {f'{100 * least:.1f} points' if higher_is_better(m.metric) else f'{least:.2g} {m.metric}'}"
        f"{f' ({m.items} items)' if m.items else ''}"
        for m, least in told
        if least is not None
    ]
    lines = [f"changes that cannot be told from none are those below: {', '.join(parts)}"] if parts else []
    return lines + _chance_lines(measurements)


def _chance_lines(measurements: Sequence[Measurement]) -> list[str]:
    names = [m.name for m in measurements if m.at_chance]
    return [f"no better than chance, so nothing can be forgotten there: {', '.join(names)}"] if names else []


def _distance_line(numbers: Mapping[str, float]) -> str:
    line = f"distance from the start {numbers.get('distance/all', 0.0):.4g}"
    line += f" ({100 * numbers.get('relative_distance/all', 0.0):.2f}% of the start's norm)"
    line += f", {100 * numbers.get('moved/all', 0.0):.1f}% of the trained coordinates moved"
    if "kl_to_base" in numbers:
        line += f", KL to the base {numbers['kl_to_base']:.4g} nats"
    if "reverse_kl_to_base" in numbers:
        line += f" (reverse {numbers['reverse_kl_to_base']:.4g})"
    return line


def _value(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value + 0.0:+.4f}"  # no negative zero
