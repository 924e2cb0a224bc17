"""What a run may forget: bounds on the changes of retained sets, judged by intervals at every measurement.

A set counts as over its bound when the whole interval of its change lies beyond it, so a run of many measurements is
not stopped by the noise of one of them. kept_model.py acts on what is found here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lit_consistency.stats.bounds import Bound, bound_names, parse_bounds
from lit_consistency.stats.intervals import Estimate

Reaction = Literal["stop", "warn", "rollback"]
KEY = "forgetting.budget"


class Breach(NamedTuple):
    """A retained set that is over its bound.

    Attributes:
        name: of the set.
        change: how much worse than the base, with its 95% interval.
        bound: what was allowed.
    """

    name: str
    change: Estimate
    bound: Bound

    def __str__(self) -> str:
        change = self.change
        if math.isinf(change.value):
            return f"{self.name} gives no number any more, over {self.bound}"
        return f"{self.name} is worse by {change.value:.4g} ({change.low:.4g} to {change.high:.4g}), over {self.bound}"


class ForgettingBudget:
    """Bounds on what may be forgotten; without any it judges nothing.

    Args:
        budget: as ``blimp<=0.02, own_*<=0.05``.
        on_breach: what a breach does; ``stop`` when not given.
        every_n_steps: between measurements.

    Raises:
        ValueError: a bound cannot be read, or could never act.
    """

    def __init__(self, budget: str | Sequence[str] | None, on_breach: Reaction | None, every_n_steps: int) -> None:
        self.bounds = [] if budget is None else retained_bounds(budget, KEY)
        if budget is None and on_breach is not None:
            raise ValueError(
                f"forgetting.on_breach = {on_breach}: expected forgetting.budget too, which can be breached"
            )
        if self.bounds and not every_n_steps:
            raise ValueError(
                f"{KEY} with every_n_steps = 0: nothing is measured between start and end; expected every_n_steps "
                "of at least 1"
            )
        for bound in self.bounds:
            if bound.number < 0:
                raise ValueError(f"{KEY}: {bound}: expected a number of at least 0, for the base is worse by 0")
        self.on_breach: Reaction = on_breach or "stop"
        self._of_name: dict[str, list[Bound]] = {}

    def check(self, names: Sequence[str]) -> None:
        """See that every bound speaks of a set that is retained; ValueError names the one that does not."""
        self._of_name = bound_names(self.bounds, names, KEY)

    def breaches(self, changes: Mapping[str, Estimate]) -> list[Breach]:
        """The sets that are over their bounds.

        Args:
            changes: ``retain/NAME`` -> how much worse than the base.
        """
        return breaches(self._of_name, changes)

    def used(self, changes: Mapping[str, Estimate]) -> dict[str, float]:
        """``budget/NAME``: the change over its tightest bound, 1 where all of it is used; of bounds above 0."""
        tightest = {name: min(bound.number for bound in bounds) for name, bounds in self._of_name.items()}
        return {
            f"budget/{name}": changes[f"retain/{name}"].value / number
            for name, number in tightest.items()
            if number > 0 and f"retain/{name}" in changes
        }

    def without_interval(self, changes: Mapping[str, Estimate]) -> list[str]:
        """The bounded sets whose change has no interval, as that of a single item: their bounds can never act."""
        of_name = {name: changes.get(f"retain/{name}") for name in self._of_name}
        return [name for name, change in of_name.items() if change is None or math.isnan(change.low)]

    def record(self) -> dict[str, Any]:
        """For run.json."""
        return {"bounds": [str(bound) for bound in self.bounds], "on_breach": self.on_breach}


def retained_bounds(text: str | Sequence[str], key: str) -> list[Bound]:
    """Bounds on how much worse retained sets may become; ``forget/NAME`` is ``NAME``.

    Raises:
        ValueError: a bound cannot be read, or is one from below.
    """
    bounds = [Bound(b.name.removeprefix("forget/"), b.sign, b.number) for b in parse_bounds(text, key)]
    for bound in bounds:
        if bound.sign == ">=":
            raise ValueError(f"{key}: {bound}: expected NAME<=NUMBER, how much worse a retained set may become")
    return bounds


def breaches(of_name: Mapping[str, Sequence[Bound]], changes: Mapping[str, Estimate]) -> list[Breach]:
    """The sets whose change breaches a bound; a set that was not measured breaches none."""
    found = []
    for name, bounds in of_name.items():
        change = changes.get(f"retain/{name}")
        if change is not None:
            found += [Breach(name, change, b) for b in bounds if b.judge(change.low, change.high) == "breached"]
    return found
