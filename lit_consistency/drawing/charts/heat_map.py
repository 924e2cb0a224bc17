"""Heat maps: numbers on colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_consistency.drawing.canvas import Canvas, Text, shorten, text_width
from lit_consistency.drawing.frame import LABEL, TICK
from lit_consistency.drawing.numbers import decimals, fixed

STRONGEST = 0.6
"""Opacity of the strongest colour: the ink of either theme can still be read on it (contrast above 4.5)."""


@dataclass(frozen=True)
class HeatMap:
    """A table of numbers in colours.

    Args:
        title: with the unit.
        rows: names, ``rows_axis`` is what they are.
        columns: names, ``columns_axis`` is what they are.
        values: rows x columns, NaN where there is none.
        intervals: half widths of 95% intervals, of the same shape.
        higher_is_better: decides the direction of the colours.
    """

    title: str
    rows_axis: str
    rows: list[str]
    columns_axis: str
    columns: list[str]
    values: list[list[float]]
    intervals: list[list[float]]
    higher_is_better: bool = True


def draw_heat_map(heat: HeatMap, width: float) -> Canvas:
    """Numbers on colours.

    Values of both signs are coloured away from 0, good ones in one colour, bad ones in the other; values of one sign
    from their weakest to their strongest.

    Args:
        heat: the table.
        width: at least; the picture is wider where its columns need it.
    """
    left = min(max((text_width(name, LABEL) for name in heat.rows), default=0) + 14, 190)
    places = _places(heat)
    texts = [[fixed(value, places) for value in row] for row in heat.values]
    halves = [[f"±{fixed(half, places)}" if math.isfinite(half) else "" for half in row] for row in heat.intervals]
    # every number must fit into its field, also on a phone, where the picture is scrolled
    widest = max((text_width(t, LABEL) for row in [*texts, *halves] for t in row), default=0) + 14
    cell = max(widest, min((width - left) / max(len(heat.columns), 1), 120.0))
    longest = max((text_width(name, LABEL) for name in heat.columns), default=0)
    slanted = longest > cell - 8
    # a slanted name of 130 pixels is 92 high, and leans over the columns to its right
    head = min(longest, 130.0) * 0.71 + 26 if slanted else 40.0
    lean = min(longest, 130.0) * 0.71 if slanted else 0.0
    row_height = 40.0 if any(any(row) for row in halves) else 30.0
    picture_width = max(left + cell * len(heat.columns) + lean, width)
    canvas = Canvas(picture_width, head + row_height * len(heat.rows) + 34)
    axes = f"{heat.rows_axis} ↓   {heat.columns_axis} →"
    canvas.add(Text(0, 13, shorten(axes, TICK, picture_width), "muted", TICK, title=axes))
    for j, name in enumerate(heat.columns):
        x = left + cell * (j + 0.5)
        label = shorten(name, LABEL, 130 if slanted else cell)
        canvas.add(
            Text(
                x,
                head - 7,
                label,
                size=LABEL,
                anchor="start" if slanted else "middle",
                rotate=-45 if slanted else 0,
                title=name,
            )
        )
    for i, name in enumerate(heat.rows):
        top = head + row_height * i
        canvas.add(
            Text(
                left - 9,
                top + row_height / 2 + 4,
                shorten(name, LABEL, left - 12),
                size=LABEL,
                anchor="end",
                title=name,
            )
        )
        for j, column in enumerate(heat.columns):
            color, opacity = shade(heat, heat.values[i][j])
            hover = f"{name}, {column}: {texts[i][j]} {halves[i][j]}".rstrip()
            canvas.box(left + cell * j + 1, top + 1, cell - 2, row_height - 2, color, opacity, hover)
            y = top + row_height / 2 + (-2 if halves[i][j] else 4)
            canvas.add(Text(left + cell * (j + 0.5), y, texts[i][j], size=LABEL, anchor="middle"))
            if halves[i][j]:
                canvas.add(Text(left + cell * (j + 0.5), y + 14, halves[i][j], "muted", TICK, "middle"))
    said = colors_said(heat)
    # below the columns, or as far to the left as it needs where these are few
    at = max(min(left, picture_width - text_width(said, TICK)), 0.0)
    canvas.add(Text(at, canvas.height - 10, said, "muted", TICK))
    return canvas


def _places(heat: HeatMap) -> int:
    """Decimals of all cells alike: two digits of the median interval, or enough for the largest value."""
    halves = sorted(h for row in heat.intervals for h in row if math.isfinite(h) and h > 0)
    if halves:
        return decimals(halves[len(halves) // 2])
    largest = max((abs(v) for row in heat.values for v in row if math.isfinite(v)), default=1.0)
    return 3 if 0.1 <= largest < 10 else decimals(largest)


def shade(heat: HeatMap, value: float) -> tuple[str, float]:
    """Token and opacity of the colour of a value."""
    known = [v for row in heat.values for v in row if math.isfinite(v)]
    if not math.isfinite(value):
        return "muted", 0.08
    # the colours of both signs have one scale, so that equal changes look equal
    if min(known) < 0 < max(known):
        good = (value > 0) == heat.higher_is_better
        return ("good" if good else "bad"), STRONGEST * abs(value) / max(map(abs, known))
    low, high = min(known), max(known)
    share = (value - low) / (high - low) if high > low else 0.5
    # the stronger the colour the better, whichever way the number goes
    return "good", 0.05 + (STRONGEST - 0.05) * (share if heat.higher_is_better else 1 - share)


def colors_said(heat: HeatMap) -> str:
    """What the colours mean, in words."""
    known = [v for row in heat.values for v in row if math.isfinite(v)]
    if known and min(known) < 0 < max(known):
        return "blue is better than 0, orange worse"
    return f"the stronger the colour the better ({'higher' if heat.higher_is_better else 'lower'})"
