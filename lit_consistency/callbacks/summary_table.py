"""The table at the end of a run: base, now, what was learned, what was forgotten, and the distance.

Forgetting is a difference. The share that is retained, now over base, stands beside it only where the base scored
clearly above chance: the ratio to a base near zero says how small the base is, and that of two guesses nothing (Sun &
Dredze, arXiv 2408.06663, divide by such bases).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lit_consistency.records.results import higher_is_better

LEAST_ABOVE_CHANCE = 0.05
"""A base at or below this much above chance gives no share: there an item more or less moves the ratio a lot."""


class Measurement(NamedTuple):
    """A watched set before and after: ``kind`` is ``learn`` or ``retain``; ``chance`` is what guessing gives."""

    kind: str
    name: str
    metric: str
    base: float
    now: float
    chance: float = 0.0

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
    """Print what was learned and forgotten, then the distance from the start."""
    table = Table(title="learned and forgotten", title_justify="left")
    guessed = any(m.chance > 0 for m in measurements)
    columns = ["task", "metric", *(["chance"] if guessed else []), "base", "now", "learned", "forgotten", "retained"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for m in sorted(measurements, key=lambda m: m.kind):
        learned, forgotten = (_signed(-m.worse), "") if m.kind == "learn" else ("", _signed(m.worse))
        retained = f"{100 * m.share:.1f}%" if m.kind == "retain" and m.share is not None else ""
        chance = [_value(m.chance) if m.chance > 0 else ""] if guessed else []
        table.add_row(m.name, m.metric, *chance, _value(m.base), _value(m.now), learned, forgotten, retained)
    console = Console()
    console.print(table)
    console.print(_distance_line(numbers), highlight=False)


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
