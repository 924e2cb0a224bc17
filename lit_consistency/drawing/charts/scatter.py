"""Points of two numbers, with intervals, as what was foretold against what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_consistency.drawing.canvas import Canvas, Line, Marker
from lit_consistency.drawing.frame import Entry, frame
from lit_consistency.drawing.palette import style
from lit_consistency.drawing.scales import decades, linear, logarithmic, short_number

HEIGHT = 260.0


@dataclass(frozen=True)
class Spot:
    """A point.

    Args:
        name: shown under the pointer.
        group: in the legend.
        x: nothing is drawn where it is no number.
        y: likewise.
        low: lower end of the interval of y, NaN if unknown.
        high: upper end, likewise.
    """

    name: str
    group: str
    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


def draw_scatter(
    spots: Sequence[Spot],
    x_title: str,
    y_title: str,
    width: float,
    log_x: bool = False,
    log_y: bool = False,
    diagonal: bool = False,
) -> Canvas:
    """Points in the colours and shapes of their groups.

    Args:
        spots: groups in the order of their first appearance.
        x_title: written below.
        y_title: written above.
        width: of the picture.
        log_x: equal ratios of x are equal distances, if every x is positive.
        log_y: likewise of y; the end of an interval that lies far below all points is cut.
        diagonal: both axes are alike in range and scale, and a dashed line stands where x and y are the same.
    """
    known = [spot for spot in spots if math.isfinite(spot.x) and math.isfinite(spot.y)]
    looks = {group: style(i) for i, group in enumerate(dict.fromkeys(spot.group for spot in spots))}
    xs, ys = [spot.x for spot in known], [spot.y for spot in known]
    ends = [end for spot in known for end in (spot.low, spot.high) if math.isfinite(end)]
    if diagonal:
        xs = ys = xs + ys
        log_x = log_y = log_x and log_y
    log_x, log_y = log_x and min(xs, default=0) > 0, log_y and min(ys, default=0) > 0
    if log_y:
        # an end near 0 would push all points together; a decade below them is enough to see that it is far
        ends = [max(end, min(ys) / 10) for end in ends]
    y_scale = (decades if log_y else linear)([*ys, *ends])
    # what is swept has few values, which stand below the axis themselves
    x_scale = y_scale if diagonal else (logarithmic if log_x else linear)(xs)
    legend = [Entry(group, look, group) for group, look in looks.items()]
    picture = frame(width, HEIGHT, x_scale, y_scale, x_title, y_title, legend if len(looks) > 1 else ())
    x, y, canvas = picture.x, picture.y, picture.canvas
    if diagonal:
        canvas.add(Line([(x.start, y(x.low)), (x.end, y(x.high))], "muted", 1, (5.0, 4.0)))
    for spot in known:
        look = looks[spot.group]
        interval = ""
        if math.isfinite(spot.low) and math.isfinite(spot.high):
            low, high = max(spot.low, y.low), min(spot.high, y.high)
            canvas.add(Line([(x(spot.x), y(low)), (x(spot.x), y(high))], look.color, 1, opacity=0.4, series=spot.group))
            interval = f" [{short_number(spot.low)}, {short_number(spot.high)}]"
        hover = f"{spot.name}: {short_number(spot.x)}, {short_number(spot.y)}{interval}"
        canvas.add(Marker(x(spot.x), y(spot.y), look.shape, look.color, 3, True, hover, series=spot.group))
    return canvas
