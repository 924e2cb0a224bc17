r"""From an effect over seeds to a verdict: equivalence, power, the seeds it would take, and many claims at once.

A claim names the smallest effect s that counts and the side on which it is to lie. The interval of the effect decides:

- ``supported``: it lies beyond s on the claimed side (above s, or below -s),
- ``contradicted``: beyond s on the other side,
- ``equivalent``: between -s and s,
- ``undecided``: else.

With s = 0 any sign counts, and nothing is equivalent. A verdict at level 1 - a is wrong with probability a at most,
because it is wrong only where the interval misses the true effect. The least a at which an effect is decided is
Student's two-sided p of its distance to the nearer of -s and s (``decision_p``), so Holm's test over these p-values
tells which claims of a study are decided, and ``holm_levels`` the levels of the intervals that say the same.

Sources: Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15(6) (two one-sided tests); Holm 1979, Scandinavian
J. of Statistics 6(2); Shaffer 1980, Annals of Statistics 8(6) (stepwise tests that name a direction).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.special import nctdtr, stdtr, stdtrit

from lit_consistency.stats.effects import Contrast, distance_p

POWER = 0.8
MOST_SEEDS = 10_000
Verdict = Literal["supported", "contradicted", "equivalent", "undecided"]


def verdict(low: float, high: float, smallest_effect: float, direction: Literal["higher", "lower"]) -> Verdict:
    """What an interval says of a claim, by the rules above; an interval of NaN is ``undecided``.

    Args:
        low: end of the interval.
        high: the other end.
        smallest_effect: that counts, fixed beforehand, at least 0.
        direction: where the claim has the effect: above 0 or below.
    """
    _check_bound(smallest_effect, least=0)
    if direction not in ("higher", "lower"):
        raise ValueError(f"direction {direction!r}: expected higher or lower")
    above, below = low > smallest_effect, high < -smallest_effect
    if above or below:
        return "supported" if above == (direction == "higher") else "contradicted"
    return "equivalent" if -smallest_effect < low and high < smallest_effect else "undecided"


def decision_p(effect: Contrast, smallest_effect: float) -> float:
    """The least a at which the interval of level 1 - a gives another verdict than ``undecided``.

    Of ``smallest_effect`` 0 it is the p of the effect itself; NaN for fewer than two seeds.
    """
    _check_bound(smallest_effect, least=0)
    return distance_p(abs(abs(effect.value) - smallest_effect), effect.stderr, effect.n)


def equivalence(effect: Contrast, bound: float) -> float:
    """P-value that an effect as large as ``bound`` looks as small as this one: the larger of two one-sided tests.

    Below .05 the interval of 90% lies within the bounds; a verdict asks it of the interval of 95%, and so is stricter.

    Args:
        effect: over seeds; NaN for fewer than two.
        bound: above 0.
    """
    _check_bound(bound, least=0, inclusive=False)
    if effect.n < 2:
        return math.nan
    room = bound - abs(effect.value)
    # differences without spread lie within the bounds, or do not
    t = room / effect.stderr if effect.stderr > 0 else math.copysign(math.inf, room if room > 0 else -1)
    return float(stdtr(effect.n - 1, -t))


def detectable_effect(sd: float, n: int, power: float = POWER, level: float = 0.95) -> float:
    """The smallest true effect that the interval of n seeds tells from 0 with this probability.

    An effect is told from ``smallest_effect`` where it lies beyond it by as much.

    Args:
        sd: standard deviation of the differences over seeds, sqrt(n) times the standard error of their mean.
        n: seeds; NaN for fewer than two.
        power: the probability.
        level: of the interval.
    """
    _check_power(power, level)
    if n < 2 or math.isnan(sd):
        return math.nan
    low, high = 0.0, 1.0
    while _power(high, n, level) < power:
        high *= 2
    # the power rises with the effect; 60 halvings reach the last digit
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, n, level) < power else (low, middle)
    return high * sd / math.sqrt(n)


def seeds_needed(
    sd: float, value: float, smallest_effect: float, power: float = POWER, level: float = 0.95, most: int = MOST_SEEDS
) -> int:
    """How many seeds would decide a claim with this probability, were the effect and the spread as they look now.

    Of a value beyond the smallest effect, those that show that it is; of one within, those that show equivalence (the
    chances of missing either bound are added, which errs towards more seeds). Both are guesses: ``sd`` of few seeds is
    known badly.

    Args:
        sd: standard deviation of the differences over seeds.
        value: the effect as it looks.
        smallest_effect: of the claim.
        power: the probability.
        level: of the interval.
        most: the answer for more than so many, or where the value stands on the bound and no number would do.

    Returns:
        At least 2; 0 where ``sd`` or ``value`` is NaN, so that nothing is known.
    """
    _check_bound(smallest_effect, least=0)
    _check_power(power, level)
    if math.isnan(sd) or math.isnan(value):
        return 0
    near = abs(abs(value) - smallest_effect)
    distances = [near, abs(value) + smallest_effect] if abs(value) < smallest_effect else [near]
    if sd == 0 or near == 0:
        return 2 if near > 0 else most

    def decides(n: int) -> bool:
        missed = [1 - _power(distance * math.sqrt(n) / sd, n, level, far_tail=False) for distance in distances]
        return 1 - sum(missed) >= power

    low, high = 1, 2
    while not decides(high):
        low, high = high, 2 * high
        if low >= most:
            return most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return min(high, most)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm for all that are numbers: below a, they are false with probability a at most, together.

    Args:
        p_values: in any order; NaN (no test took place) stays NaN and does not count.
    """
    adjusted = [math.nan] * len(p_values)
    largest, order = 0.0, _by_size(p_values)
    for step, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - step) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def holm_levels(p_values: Sequence[float], level: float = 0.95) -> list[float]:
    """Levels of confidence at which single intervals decide exactly what Holm's test decides of all of them.

    With m p-values and a = 1 - level, the j-th smallest has the level 1 - a / (m - j + 1) as long as all smaller ones
    are rejected. The first that is not stops the test: it and all larger ones have its level, at which none of them is
    rejected. Equal p-values have the level of the first. So the interval that belongs to a p-value leaves out its
    null at this level if and only if ``holm`` puts it at ``a`` or below. What is guarded is the family of verdicts:
    one or more are wrong with probability a at most. The intervals do not cover all effects at once.

    Args:
        p_values: of ``decision_p``; NaN does not count, and has the plain level.
        level: of all claims together.

    Returns:
        One level for every p-value, from ``level`` to 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}: expected a share between 0 and 1")
    levels = [level] * len(p_values)
    order = _by_size(p_values)
    share, stopped = 1 - level, False
    for step, i in enumerate(order):
        tied = step > 0 and p_values[i] == p_values[order[step - 1]]
        if not stopped and not tied:
            share = (1 - level) / (len(order) - step)
            stopped = p_values[i] > share
        levels[i] = 1 - share
    return levels


def _power(noncentrality: float, n: int, level: float, far_tail: bool = True) -> float:
    """Probability that the t of n seeds, of either sign, is beyond its quantile, from the noncentral t distribution."""
    quantile = float(stdtrit(n - 1, (1 + level) / 2))
    near = 1 - float(nctdtr(n - 1, noncentrality, quantile))
    # the wrong sign has less than Phi(-noncentrality), and below 1e-7 scipy gives NaN for it
    far = float(nctdtr(n - 1, noncentrality, -quantile)) if far_tail and noncentrality < 5 else 0.0
    return near + (0.0 if math.isnan(far) else far)


def _by_size(p_values: Sequence[float]) -> list[int]:
    """Indices of the numbers among them, the smallest first."""
    wrong = [p for p in p_values if not (math.isnan(p) or 0 <= p <= 1)]
    if wrong:
        raise ValueError(f"p-value {wrong[0]}: expected 0 to 1, or NaN")
    array = np.asarray(p_values, dtype=np.float64)
    return [int(i) for i in np.argsort(array, kind="stable") if not math.isnan(array[i])]


def _check_bound(bound: float, least: float, inclusive: bool = True) -> None:
    if not (math.isfinite(bound) and (bound >= least if inclusive else bound > least)):
        raise ValueError(f"bound {bound}: expected a finite number {'of at least' if inclusive else 'above'} {least}")


def _check_power(power: float, level: float) -> None:
    for name, share in (("power", power), ("level", level)):
        if not 0 < share < 1:
            raise ValueError(f"{name} {share}: expected a share between 0 and 1")
