"""The spread of a number by its sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lit_consistency.drawing.canvas import Canvas, Line, Marker, Text, shorten, text_width
from lit_consistency.drawing.frame import LABEL, TICK, Entry, legend_rows
from lit_consistency.drawing.palette import Style
from lit_consistency.drawing.scales import linear, short_number, sparse
from lit_consistency.study.report.content import Variance


def draw_variances(variances: Sequence[Variance], styles: Mapping[str, Style], width: float) -> Canvas:
    """Standard deviations by their source, one row a group, all of one metric.

    Args:
        variances: in the order of the rows.
        styles: name of a component -> look.
        width: of the picture.
    """
    left = min(max(text_width(v.group, LABEL) for v in variances) + 14, 0.42 * width)
    row = 28.0
    bottom = row * len(variances) + 6
    canvas = Canvas(width, bottom + 48)
    x = linear([s for v in variances for s in v.components.values()], include=(0.0,)).between(left, width - 14)
    x = sparse(x, [text_width(label, TICK) for label in x.labels()], 8)
    for tick, label in zip(x.ticks, x.labels(), strict=True):
        if tick >= 0:
            canvas.add(Line([(x(tick), 0), (x(tick), bottom)], "grid", 1))
            canvas.add(Text(x(tick), bottom + 17, label, "muted", TICK, "middle"))
    for i, variance in enumerate(variances):
        y = row * i + 18
        name = shorten(variance.group, LABEL, left - 12)
        canvas.add(Text(left - 10, y + 4, name, size=LABEL, anchor="end", title=variance.group))
        # a component that cannot be told, as order with one run each, has no sign
        known = {name: s for name, s in variance.components.items() if math.isfinite(s)}
        if known:
            canvas.add(Line([(x(min(known.values())), y), (x(max(known.values())), y)], "line", 1.5))
        for component, spread in known.items():
            look, hover = styles[component], f"{variance.group}, {component}: {short_number(spread)}"
            canvas.add(Marker(x(spread), y, look.shape, look.color, 5, True, hover, series=component))
    title = f"standard deviation of {variances[0].metric}"
    canvas.add(Text(width - 14, bottom + 36, shorten(title, LABEL, width - 14), "muted", LABEL, "end", title=title))
    names = dict.fromkeys(name for v in variances for name in v.components)
    legend = [Entry(name, styles[name], name) for name in names]
    canvas.height += legend_rows(canvas, legend, canvas.height)
    return canvas
