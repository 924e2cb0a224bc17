"""Which step's model is the best: the rule of ``checkpoint.best``. kept_model.py keeps what it chooses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_consistency.callbacks.budget import breaches, retained_bounds
from lit_consistency.records.results import higher_is_better
from lit_consistency.stats.bounds import Bound, bound_names
from lit_consistency.stats.intervals import Estimate

KEY = "checkpoint.best"
EXPECTED = "expected {most: NUMBER, while: BOUNDS} or {least: NUMBER, while: BOUNDS}, as {most: learn/NAME}"


class BestRule:
    """Which step's model is the best.

    Args:
        rule: ``most`` or ``least`` -> a logged number, as ``learn/NAME`` or ``retain/NAME.nats_per_token``; and, if
            wanted, ``while`` -> bounds on what may be forgotten meanwhile, as ``forget/*<=0.05``.

    Raises:
        ValueError: the rule is another, or a bound cannot be read.
    """

    def __init__(self, rule: Mapping[str, Any]) -> None:
        chosen = [key for key in ("most", "least") if key in rule]
        if len(chosen) != 1 or not isinstance(rule[chosen[0]], str) or set(rule) - {*chosen, "while"}:
            raise ValueError(f"{KEY} = {dict(rule)}: {EXPECTED}")
        self.which, self.number = chosen[0], str(rule[chosen[0]])
        self.bounds: list[Bound] = []
        if "while" in rule:
            if not isinstance(rule["while"], str | list):
                raise ValueError(f"{KEY}.while = {rule['while']}: expected bounds, as forget/*<=0.05")
            self.bounds = retained_bounds(rule["while"], f"{KEY}.while")
        self._of_name: dict[str, list[Bound]] = {}

    def check(self, tasks: Mapping[str, Sequence[str]]) -> None:
        """See that what it asks for is measured; warn where it asks for the worst.

        Args:
            tasks: ``KIND/NAME`` of every watched task -> its metrics, first the one that judges it.

        Raises:
            ValueError: no task gives the number, or a bound speaks of no retained set.
        """
        task = self.number.replace("learned/", "learn/").replace("forget/", "retain/")
        name, _, metric = task.partition(".")
        if name not in tasks or (metric and metric not in tasks[name]):
            numbers = [f"{key}{end}" for key, of in tasks.items() for end in ("", *(f".{m}" for m in of[1:]))]
            raise ValueError(f"{KEY}: {self.number}: no watched task gives it; expected one of {', '.join(numbers)}")
        retained = [key.removeprefix("retain/") for key in tasks if key.startswith("retain/")]
        self._of_name = bound_names(self.bounds, retained, f"{KEY}.while")
        metric = metric or tasks[name][0]
        change = {"learned": True, "forget": False}.get(self.number.partition("/")[0])
        better = ("least", "most")[higher_is_better(metric) if change is None else change]
        if self.which != better:
            rank_zero_warn(
                f"{KEY}: {self.which} {self.number} ({metric}) is the model that is worst by it; the best has {better}"
            )

    def value(self, numbers: Mapping[str, float], changes: Mapping[str, Estimate]) -> float:
        """How good a model is, more is better; minus infinity where it breaches a bound or gives no number."""
        value = numbers.get(self.number, math.nan)
        if math.isnan(value) or breaches(self._of_name, changes):
            return -math.inf
        return value if self.which == "most" else -value
