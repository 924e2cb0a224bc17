"""The table at the end of a run: base, now, what was learned, what was forgotten, and the distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lit_consistency.metrics.items import HIGHER_IS_BETTER


class Measurement(NamedTuple):
    """A watched set before and after: ``kind`` is ``learn`` or ``retain``."""

    kind: str
    name: str
    metric: str
    base: float
    now: float

    @property
    def worse(self) -> float:
        """How much worse than the base; positive is worse, in units of the metric."""
        return self.base - self.now if self.metric in HIGHER_IS_BETTER else self.now - self.base


def results_table(measurements: Sequence[Measurement], numbers: Mapping[str, float]) -> None:
    """Print what was learned and forgotten, then the distance from the start."""
    table = Table(title="learned and forgotten", title_justify="left")
    for column in ("task", "metric", "base", "now", "learned", "forgotten"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for m in sorted(measurements, key=lambda m: m.kind):
        learned, forgotten = (_signed(-m.worse), "") if m.kind == "learn" else ("", _signed(m.worse))
        table.add_row(m.name, m.metric, _value(m.base), _value(m.now), learned, forgotten)
    console = Console()
    console.print(table)
    console.print(_distance_line(numbers), highlight=False)


def _distance_line(numbers: Mapping[str, float]) -> str:
    line = f"distance from the start {numbers.get('distance/all', 0.0):.4g}"
    line += f" ({100 * numbers.get('relative_distance/all', 0.0):.2f}% of the start's norm)"
    line += f", {100 * numbers.get('moved/all', 0.0):.1f}% of the trained coordinates moved"
    if "kl_to_base" in numbers:
        line += f", KL to the base on the new task {numbers['kl_to_base']:.4g} nats"
    return line


def _value(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value + 0.0:+.4f}"  # no negative zero
