"""What a study says in words, the same on the page and in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from lit_consistency.drawing.numbers import count, enumerate_words, probability, with_interval
from lit_consistency.drawing.scales import short_number
from lit_consistency.study.report.content import ClaimResult, Content, Effect

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
    counts = Counter(cell.state for cell in content.runs)
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
