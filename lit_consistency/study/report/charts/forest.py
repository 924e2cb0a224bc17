"""Effects as a forest plot: one row each, its value and interval against none; and the strip beside a claim."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_consistency.drawing.canvas import Canvas, Line, Marker, Text, shorten, text_width
from lit_consistency.drawing.frame import LABEL, TICK, finite
from lit_consistency.drawing.numbers import count, probability, with_interval
from lit_consistency.drawing.scales import Scale, linear, short_number, sparse
from lit_consistency.study.report.content import ClaimResult, Effect
from lit_consistency.study.report.words import effect_hover

SHAPES = {"main": "circle", "interaction": "diamond", "simple": "square", "difference": "triangle"}
NARROW = 600
"""Below this width the name of an effect stands above its interval, not beside it."""


def draw_forest(effects: Sequence[Effect], width: float) -> Canvas:
    """The effects of one table on one scale.

    Args:
        effects: in the order of the rows.
        width: of the picture; below ``NARROW`` each row takes two lines.
    """
    narrow = width < NARROW
    numbers = [_numbers(effect) for effect in effects]
    # the columns of a table: value and interval, p, n
    widths = [max(text_width(row[i], TICK) for row in numbers) + 14 for i in range(3)]
    name_width = width if narrow else min(max(text_width(e.name, LABEL) for e in effects) + 16, 0.42 * width)
    left, right = (8.0, width - 8) if narrow else (name_width, width - sum(widths))
    row, line = (58.0, 40.0) if narrow else (34.0, 17.0)
    canvas = Canvas(width, row * len(effects) + 34)
    x = _scale(effects).between(left, right)
    _axis(canvas, x, row * len(effects) + 6)
    for i, (effect, text) in enumerate(zip(effects, numbers, strict=True)):
        top = i * row + 4
        room = name_width - 12 - (text_width(f" ⚠ {effect.mark}", TICK) if effect.mark and narrow else 0)
        name = shorten(effect.name, LABEL, max(room, 120))
        y = top + (12 if narrow else line + 4 - (7 if effect.mark else 0))
        canvas.add(Text(0, y, name, size=LABEL, bold=effect.kind == "interaction", title=effect.name))
        if effect.mark and narrow:
            canvas.add(Text(text_width(f"{name} ", LABEL), y, f"⚠ {effect.mark}", "warn", TICK))
        elif effect.mark:
            canvas.add(Text(0, y + 15, shorten(f"⚠ {effect.mark}", TICK, name_width), "warn", TICK))
        # a table's columns where there is room, a sentence where there is none
        if narrow:
            canvas.add(Text(0, top + 27, "   ".join(filter(None, text)), "muted", TICK))
        else:
            for k, part in enumerate(text):
                canvas.add(Text(width - sum(widths[k + 1 :]), top + line + 4, part, "ink", TICK, "end"))
        _row(canvas, effect, x, top + line)
    return canvas


def _numbers(effect: Effect) -> tuple[str, str, str]:
    """Value with interval, p, and the number of seeds."""
    value, interval = with_interval(effect.value, effect.low, effect.high)
    return (
        f"{value} {interval}".strip() if math.isfinite(effect.value) else "no number",
        probability(effect.p),
        f"n = {effect.n}",
    )


def _scale(effects: Sequence[Effect]) -> Scale:
    values = [v for e in effects for v in (e.value, e.low, e.high)]
    # what the seeds cannot tell may be far larger than every effect; it must not flatten them
    largest = max(map(abs, finite(values)), default=1.0)
    values += [s * v for e in effects for v in (e.order_spread, e.detectable) for s in (-1, 1) if v <= 1.5 * largest]
    return linear(values, n=6, include=(0.0,))


def _axis(canvas: Canvas, x: Scale, bottom: float) -> None:
    x = sparse(x, [text_width(label, TICK) for label in x.labels()], 8)
    for tick, label in zip(x.ticks, x.labels(), strict=True):
        canvas.add(Line([(x(tick), 0), (x(tick), bottom)], "grid", 1))
        canvas.add(Text(x(tick), bottom + 18, label, "muted", TICK, "middle"))
    canvas.add(Line([(x(0), 0), (x(0), bottom)], "muted", 1.2))
    canvas.add(Line([(x.start, bottom), (x.end, bottom)], "line", 1))


def _row(canvas: Canvas, effect: Effect, x: Scale, y: float) -> None:
    if not math.isfinite(effect.value):
        return
    hover = effect_hover(effect)
    if math.isfinite(effect.order_spread):
        # a spread larger than all effects fills the frame
        ends = [min(max(x(s * effect.order_spread), x.start), x.end) for s in (-1, 1)]
        canvas.box(ends[0], y - 8, ends[1] - ends[0], 16, "muted", 0.16, hover)
    if math.isfinite(effect.detectable):
        for sign in (-1, 1):
            if x.holds(sign * effect.detectable):
                at = x(sign * effect.detectable)
                canvas.add(Line([(at, y - 8), (at, y + 8)], "muted", 1.2, (2.0, 2.0)))
    # what cannot be relied on must not look like a finding
    color = "muted" if effect.mark else "accent"
    if math.isfinite(effect.low) and math.isfinite(effect.high):
        canvas.add(Line([(x(effect.low), y), (x(effect.high), y)], color, 2.2, (3.0, 2.0) if effect.mark else ()))
    shape = SHAPES.get(effect.kind, "circle")
    canvas.add(Marker(x(effect.value), y, shape, color, 5, not effect.mark, hover))


def forest_key(effects: Sequence[Effect]) -> str:
    """What the signs in a forest plot mean, for its caption."""
    shapes = {"circle": "circle", "diamond": "diamond", "square": "square", "triangle": "triangle"}
    kinds = {"main": "main effect", "interaction": "interaction", "simple": "simple effect", "difference": "difference"}
    parts = [f"{shapes[SHAPES[k]]}: {kinds[k]}" for k in SHAPES if any(e.kind == k for e in effects)]
    if any(math.isfinite(e.order_spread) for e in effects):
        parts.append("grey band: spread (± one standard deviation) of an identical run with another order of data")
    if any(math.isfinite(e.detectable) for e in effects):
        parts.append("dotted ticks: the smallest effect that so many seeds can tell from none (80% power)")
    if any(e.mark for e in effects):
        parts.append("hollow, dashed and ⚠: not to be relied on")
    return f"Lines are 95% intervals. {'; '.join(parts).capitalize()}." if parts else "Lines are 95% intervals."


def draw_strip(claim: ClaimResult, width: float) -> Canvas | None:
    """A claim's effect and interval against none and against the smallest effect that counts; None without a value.

    Args:
        claim: with its numbers.
        width: of the picture.
    """
    if not math.isfinite(claim.value):
        return None
    bound = claim.smallest_effect
    ends = finite([claim.value, claim.low, claim.high, bound, -bound])
    # symmetric around none, so that strips of several claims read alike
    x = linear([], include=[max(map(abs, ends)) or 1.0, -(max(map(abs, ends)) or 1.0)], pad=0.06).between(8, width - 8)
    canvas = Canvas(width, 46)
    canvas.box(
        x(-bound),
        4,
        x(bound) - x(-bound),
        22,
        "muted",
        0.15,
        f"smaller than ±{short_number(bound)}: too little to count",
    )
    canvas.add(Line([(8, 26), (width - 8, 26)], "line", 1), Line([(x(0), 2), (x(0), 28)], "muted", 1.2))
    if math.isfinite(claim.low) and math.isfinite(claim.high):
        canvas.add(Line([(x(claim.low), 15), (x(claim.high), 15)], "accent", 2.6))
    value, interval = with_interval(claim.value, claim.low, claim.high)
    hover = f"{value} {claim.scale} {interval}, {count(claim.n, 'seed')}"
    canvas.add(Marker(x(claim.value), 15, "circle", "accent", 5, claim.verdict != "no verdict", hover))
    labels = (
        [(-bound, f"−{short_number(bound)}"), (0.0, "0"), (bound, f"+{short_number(bound)}")] if bound else [(0.0, "0")]
    )
    # labels of bounds that lie close to 0 would cover it
    apart = x(bound) - x(0)
    room = max(text_width(label, 11) for _, label in labels)
    for at, label in labels:
        if at == 0 or apart > room:
            canvas.add(Text(x(at), 40, label, "muted", 11, "middle"))
    return canvas
