"""The table at the end of a run: base, now, what was learned, what was forgotten, and the distance.

Forgetting is a difference. The share that is retained, now over base, stands beside it only where the base scored
clearly above chance: the ratio to a base near zero says how small the base is, and that of two guesses nothing (Sun &
Dredze, arXiv 2408.06663, divide by such bases).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lit_consistency.records.results import higher_is_better

LEAST_ABOVE_CHANCE = 0.05
"""A base at or below this much above chance gives no share: there an item more or less moves the ratio a lot."""


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


def results_table(measurements: Sequence[Measurement], numbers: Mapping[str, float]) -> None:
    """Print what was learned and forgotten, with standard errors where they are known, and the distance below."""
    table = Table(title="learned and forgotten", title_justify="left")
    guessed = any(m.chance > 0 for m in measurements)
    columns = ["task", "metric", *(["chance"] if guessed else []), "base", "now", "learned", "forgotten", "retained"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for m in sorted(measurements, key=lambda m: m.kind):
        table.add_row(m.name, *_cells(m, guessed))
        if m.beside is not None:
            table.add_row("", *_cells(m.beside, guessed), style="dim")
    console = Console()
    console.print(table)
    console.print(_distance_line(numbers), highlight=False)


def _cells(m: Measurement, guessed: bool) -> list[str]:
    change = _with_error(_signed(-m.worse if m.kind == "learn" else m.worse), m.worse_stderr)
    chance = [_value(m.chance) if m.chance > 0 else ""] if guessed else []
    before, after = _with_error(_value(m.base), m.base_stderr), _with_error(_value(m.now), m.now_stderr)
    retained = f"{100 * m.share:.1f}%" if m.kind == "retain" and m.share is not None else ""
    return [m.metric, *chance, before, after, *((change, "") if m.kind == "learn" else ("", change)), retained]


def _with_error(text: str, stderr: float | None) -> str:
    return text if stderr is None or math.isnan(stderr) else f"{text} ± {_value(stderr)}"


def _distance_line(numbers: Mapping[str, float]) -> str:
    line = f"distance from the start {numbers.get('distance/all', 0.0):.4g}"
    line += f" ({100 * numbers.get('relative_distance/all', 0.0):.2f}% of the start's norm)"
    line += f", {100 * numbers.get('moved/all', 0.0):.1f}% of the trained coordinates moved"
    if "kl_to_base" in numbers:
        line += f", KL to the base on the new task {numbers['kl_to_base']:.4g} nats"
    if "reverse_kl_to_base" in numbers:
        line += f" (reverse {numbers['reverse_kl_to_base']:.4g})"
    return line


def _value(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value + 0.0:+.4f}"  # no negative zero
