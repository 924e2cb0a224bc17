"""Values of several groups side by side, one row a name: what bars show, without bars that must begin at 0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_consistency.drawing.canvas import Canvas, Line, Marker, Text, shorten, text_width
from lit_consistency.drawing.frame import LABEL, TICK, Entry, legend_rows
from lit_consistency.drawing.palette import Style, style
from lit_consistency.drawing.scales import decades, linear, short_number, sparse


@dataclass(frozen=True)
class Dot:
    """A value of one group in one row, with its interval where it is known.

    Args:
        row: name of the row.
        group: in the legend.
        value: nothing is drawn where it is no number.
        low: of the interval, NaN if unknown.
        high: likewise.
    """

    row: str
    group: str
    value: float
    low: float = math.nan
    high: float = math.nan


def draw_dots(
    dots: Sequence[Dot], title: str, width: float, styles: Mapping[str, Style] | None = None, log: bool = False
) -> Canvas:
    """One row for each name, one mark for each group in it.

    Args:
        dots: rows and groups in the order of their first appearance.
        title: of the numbers' axis.
        width: of the picture.
        styles: group -> look; numbered in the order of the groups when not given.
        log: equal ratios are equal distances, where all values are positive.
    """
    rows = list(dict.fromkeys(dot.row for dot in dots))
    groups = list(dict.fromkeys(dot.group for dot in dots))
    styles = styles or {group: style(i) for i, group in enumerate(groups)}
    left = min(max(text_width(name, LABEL) for name in rows) + 14, 0.45 * width)
    # marks of one row stand below one another where there are several: none hides another
    apart = 11.0 if len(groups) > 1 else 0.0
    height = 26.0 + apart * (len(groups) - 1)
    bottom = height * len(rows) + 6
    canvas = Canvas(width, bottom + 48)
    numbers = [n for dot in dots for n in (dot.value, dot.low, dot.high) if math.isfinite(n)]
    scale = decades(numbers) if log and min(numbers, default=0) > 0 else linear(numbers)
    x = scale.between(left, width - 14)
    x = sparse(x, [text_width(label, TICK) for label in x.labels()], 8)
    for tick, label in zip(x.ticks, x.labels(), strict=True):
        canvas.add(Line([(x(tick), 0), (x(tick), bottom)], "grid", 1))
        canvas.add(Text(x(tick), bottom + 17, label, "muted", TICK, "middle"))
    for i, name in enumerate(rows):
        middle = height * i + height / 2
        label = shorten(name, LABEL, left - 12)
        canvas.add(Text(left - 10, middle + 4, label, size=LABEL, anchor="end", title=name))
        if i:
            canvas.add(Line([(left, height * i), (width - 14, height * i)], "grid", 1))
    for dot in dots:
        y = height * rows.index(dot.row) + height / 2 + apart * (groups.index(dot.group) - (len(groups) - 1) / 2)
        look = styles[dot.group]
        if math.isfinite(dot.low) and math.isfinite(dot.high):
            canvas.add(Line([(x(dot.low), y), (x(dot.high), y)], look.color, 1.6, series=dot.group))
        if math.isfinite(dot.value):
            interval = f" [{short_number(dot.low)}, {short_number(dot.high)}]" if math.isfinite(dot.low) else ""
            hover = f"{dot.row}, {dot.group}: {short_number(dot.value)}{interval}"
            canvas.add(Marker(x(dot.value), y, look.shape, look.color, 4, True, hover, series=dot.group))
    canvas.add(Text(width - 14, bottom + 36, shorten(title, LABEL, width - 14), "muted", LABEL, "end", title=title))
    if len(groups) > 1:
        canvas.height += legend_rows(canvas, [Entry(g, styles[g], g) for g in groups], canvas.height)
    return canvas
