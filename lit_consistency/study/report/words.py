"""Numbers and sentences as a reader sees them, the same on the page and in the terminal.

A number is rounded by its uncertainty: two digits of the half width of its interval are written, and the number to the
same decimal, so that what is printed is what is known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from lit_consistency.study.report.content import ClaimResult, Content, Effect
from lit_consistency.study.report.drawing.scales import short_number

VERDICTS = {
    "supported": ("✓", "supported"),
    "contradicted": ("✗", "contradicted"),
    "equivalent": ("≈", "equivalent"),
    "undecided": ("?", "undecided"),
    "no verdict": ("–", "without a verdict"),
}
"""Verdict -> the sign beside it, and how a sentence says it; in the order in which they are counted."""
STATES = {
    "finished": "●",
    "running": "◐",
    "missing": "○",
    "interrupted": "◌",
    "diverged": "▲",
    "out of memory": "■",
    "failed": "✗",
}
"""State of a cell -> the sign beside it; in the order in which they are counted."""


# -------------------- numbers


def decimals(half_width: float) -> int:
    """Decimals that show two digits of an uncertainty."""
    if not math.isfinite(half_width) or half_width <= 0:
        return 4
    return min(max(1 - math.floor(math.log10(half_width)), 0), 6)


def fixed(value: float, places: int, sign: bool = False) -> str:
    """A number with so many decimals and a true minus; an en dash for none."""
    if not math.isfinite(value):
        return short_number(value)
    # beyond a million, decimals say nothing
    if abs(value) >= 1e6:
        return short_number(value)
    text = f"{value:{'+' if sign else ''}.{places}f}"
    # rounding must not leave a negative zero
    if float(text) == 0:
        text = text.replace("-", "+" if sign else "")
    return text.replace("-", "−")


def with_interval(value: float, low: float, high: float, sign: bool = True) -> tuple[str, str]:
    """A value and its interval, ``("+0.043", "[+0.012, +0.074]")``; the interval is empty where there is none."""
    places = decimals((high - low) / 2)
    if math.isnan(low) and math.isnan(high):
        return fixed(value, places, sign), ""
    return fixed(value, places, sign), f"[{fixed(low, places, sign)}, {fixed(high, places, sign)}]"


def probability(p: float) -> str:
    """``p = 0.031``, ``p < 0.001``, or nothing."""
    if not math.isfinite(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def duration(seconds: float) -> str:
    """``42 s``, ``3.5 min``, ``2.1 h``, ``3.2 days``."""
    if not math.isfinite(seconds):
        return "–"
    # a unit holds until the next one says the same in fewer digits
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < limit * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def count(n: int, word: str) -> str:
    """``1 cell``, ``1,000 cells``."""
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def enumerate_words(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# -------------------- sentences


def verdict_counts(claims: Iterable[ClaimResult]) -> str:
    """``Of 5 claims, 2 are supported, 1 is contradicted and 2 are undecided.``; empty without claims."""
    counts = Counter(claim.verdict for claim in claims)
    n = sum(counts.values())
    if not n:
        return ""
    # a verdict that is not known here is counted all the same
    order = [*VERDICTS, *sorted(set(counts) - set(VERDICTS))]
    if len(counts) == 1:
        verdict = next(iter(counts))
        said = VERDICTS.get(verdict, ("", verdict))[1]
        return f"The one claim is {said}." if n == 1 else f"All {n} claims are {said}."
    parts = [
        f"{counts[v]} {'is' if counts[v] == 1 else 'are'} {VERDICTS.get(v, ('', v))[1]}" for v in order if counts[v]
    ]
    return f"Of {n} claims, {enumerate_words(parts)}."


def state_counts(content: Content) -> dict[str, int]:
    """State -> how many cells are in it; states that do not occur are left out."""
    counts = Counter(cell.state for cell in content.cells)
    return {state: counts[state] for state in [*STATES, *sorted(set(counts) - set(STATES))] if counts[state]}


def claim_numbers(claim: ClaimResult) -> str:
    """Effect, interval, bound, seeds and p in one line of text."""
    value, interval = with_interval(claim.value, claim.low, claim.high)
    parts = [f"{value} {claim.scale} {interval}".rstrip()] if math.isfinite(claim.value) else ["no effect measured"]
    parts.append(f"counts from ±{short_number(claim.smallest_effect)} on")
    parts.append(count(claim.n, "seed"))
    if probability(claim.p):
        parts.append(probability(claim.p))
    return ", ".join(parts)


def seeds_needed(claim: ClaimResult) -> str:
    """What it would take to decide; empty if it does not apply."""
    # 0 means that the claim is decided, or that no number of seeds is known
    if claim.seeds_needed <= 0:
        return ""
    return f"It would take about {count(claim.seeds_needed, 'seed')} to decide; there are {claim.n}."


def effect_hover(effect: Effect) -> str:
    """All that is known of an effect, in one text."""
    value, interval = with_interval(effect.value, effect.low, effect.high)
    parts = [f"{effect.name}: {value} {effect.scale} {interval}".rstrip(), count(effect.n, "seed")]
    if probability(effect.p):
        parts.append(probability(effect.p))
    if math.isfinite(effect.order_spread):
        parts.append(f"an identical run in another order spreads by {short_number(effect.order_spread)}")
    if math.isfinite(effect.detectable):
        parts.append(f"{effect.n} seeds can tell {short_number(effect.detectable)} from none")
    return "; ".join([*parts, *([effect.mark] if effect.mark else [])])
