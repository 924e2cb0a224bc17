"""Numbers as a reader sees them, the same on pages, in pictures and in the terminal.

A number is rounded by its uncertainty: two digits of the half width of its interval are written, and the number to the
same decimal, so that what is printed is what is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_consistency.drawing.scales import short_number


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
