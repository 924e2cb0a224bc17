"""Bounds on what may be forgotten, and on what must be learned, as text: ``blimp<=0.02, own_samples<=0.05``.

A bound is judged by an interval, never by the value alone: breached where the whole interval lies beyond it, kept where
the whole interval lies within it, else it cannot be told at this number of items. One grammar serves the budget of a
run, the choice of its best step, ``export --interpolate auto`` and the gate of ``evaluate``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from scipy.special import ndtri

from lit_consistency.stats.intervals import Estimate, Z

Verdict = Literal["kept", "breached", "unknown"]
POWER = 0.8
"""How often a bound is told with the number of items that is named; the field's usual choice (Cohen 1988)."""
SHAPE = re.compile(r"\s*([\w./*-]+)\s*(<=|>=)\s*(\S+)\s*")
"""A name or a pattern of names, which way, and the number."""
EXPECTED = "expected NAME<=NUMBER or NAME>=NUMBER, as blimp<=0.02; several are separated by commas"


@dataclass(frozen=True)
class Bound:
    """One bound on a change.

    Attributes:
        name: of a task, or a pattern of names with ``*``.
        sign: ``<=`` (at most) or ``>=`` (at least).
        number: in the unit of the change.
    """

    name: str
    sign: Literal["<=", ">="]
    number: float

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.number:g}"

    def judge(self, low: float, high: float) -> Verdict:
        """Whether a change keeps to the bound.

        Args:
            low: lower end of the change's interval; NaN where there is none.
            high: its upper end.

        Returns:
            ``kept``, ``breached``, or ``unknown`` where the interval holds the bound or an end of it is not known.
        """
        if math.isnan(low) or math.isnan(high):
            return "unknown"
        within, beyond = (high <= self.number, low > self.number)
        if self.sign == ">=":
            within, beyond = (low >= self.number, high < self.number)
        return "kept" if within else "breached" if beyond else "unknown"

    def of(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that it speaks of, in their order."""
        return [name for name in names if fnmatchcase(name, self.name)]


def parse_bounds(text: str | Sequence[str], key: str = "budget") -> list[Bound]:
    """Bounds from text, or from texts of one bound or several each.

    Args:
        text: as ``blimp<=0.02, own_samples<=0.05``.
        key: what errors name.

    Raises:
        ValueError: a part is no bound, its number is not finite, or one name has two bounds of one sign.
    """
    parts = [part for entry in ([text] if isinstance(text, str) else text) for part in entry.split(",")]
    bounds: list[Bound] = []
    for part in parts:
        bound = _bound(part, text, key)
        if any((other.name, other.sign) == (bound.name, bound.sign) for other in bounds):
            raise ValueError(f"{key} = {text!r}: {bound.name} has two bounds {bound.sign}; expected one")
        bounds.append(bound)
    return bounds


def one_of(names: Sequence[str]) -> str:
    """What an error says was expected of the sets that are measured."""
    return f"expected one of {', '.join(names)}" if names else "none is measured"


def bound_names(bounds: Sequence[Bound], names: Sequence[str], key: str = "budget") -> dict[str, list[Bound]]:
    """Every name of which a bound speaks, with its bounds; one by name goes before a pattern of the same sign.

    Args:
        bounds: of ``parse_bounds``.
        names: of the tasks that are measured.
        key: what errors name.

    Raises:
        ValueError: a bound speaks of none of the names.
    """
    for bound in bounds:
        if not bound.of(names):
            raise ValueError(f"{key}: {bound}: no such set; {one_of(names)}")
    of_name: dict[str, list[Bound]] = {}
    for name in names:
        matching = [bound for bound in bounds if bound.of([name])]
        by_name = {bound.sign for bound in matching if bound.name == name}
        kept = [bound for bound in matching if bound.name == name or bound.sign not in by_name]
        if kept:
            of_name[name] = kept
    return of_name


def n_to_tell(bound: Bound, change: Estimate, n: int, power: float = POWER) -> int | None:
    r"""How many items, or clusters, it would take to tell whether a change keeps to its bound.

    The half width of an interval falls with the root of n. If the change is what it is here, then of

    .. math::
        n' = n ((z_{0.975} + z_{power}) s / (change - bound))^2,    s = half width / z_{0.975}

    items the interval of a new sample lies on one side of the bound with the probability ``power``.

    Args:
        bound: what cannot be told.
        change: with its interval.
        n: items, or clusters where items belong together, behind it.
        power: the probability.

    Returns:
        The number; None where there is no interval, or the change is the bound itself.
    """
    distance, half = abs(change.value - bound.number), (change.high - change.low) / 2
    if not (math.isfinite(half) and distance > 0):
        return None
    return math.ceil(n * ((Z + float(ndtri(power))) * half / Z / distance) ** 2)


def _bound(part: str, text: str | Sequence[str], key: str) -> Bound:
    matched = SHAPE.fullmatch(part)
    if matched is None:
        raise ValueError(f"{key} = {text!r}: {part.strip()!r}: {EXPECTED}")
    name, sign, number = matched.groups()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key} = {text!r}: {number!r} of {name}: expected a number")
    return Bound(name, ">=" if sign == ">=" else "<=", value)
