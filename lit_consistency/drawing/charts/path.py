"""The way of a run through two numbers, as what it has learned and what it has forgotten, with intervals of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_consistency.drawing.canvas import Canvas, Line, Marker, Text, moved, shorten, text_width
from lit_consistency.drawing.charts.lines import pieces
from lit_consistency.drawing.charts.panels import GAP, HEAD
from lit_consistency.drawing.frame import LABEL, TICK, Entry, Frame, frame, legend_rows
from lit_consistency.drawing.palette import Style, style
from lit_consistency.drawing.scales import linear, short_number

HEIGHT = 190.0


@dataclass(frozen=True)
class Stop:
    """A point of a path.

    Args:
        label: written beside it where there is room.
        x: nothing is drawn where it is no number.
        y: likewise.
        x_reach: half the interval of x; NaN if unknown.
        y_reach: half the interval of y, likewise.
    """

    label: str
    x: float
    y: float
    x_reach: float = math.nan
    y_reach: float = math.nan


@dataclass(frozen=True)
class Panel:
    """A picture of several paths over the same two axes.

    Args:
        heading: above it.
        x_title: written below.
        y_title: written above.
        paths: name -> its points, in their order.
    """

    heading: str
    x_title: str
    y_title: str
    paths: Mapping[str, Sequence[Stop]]


def draw_paths(panels: Sequence[Panel], width: float, columns: int) -> Canvas:
    """Pictures in rows under one legend; a path of one name looks the same in all of them.

    Args:
        panels: at least one.
        width: of the whole.
        columns: pictures side by side.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.paths))
    styles = {name: style(i) for i, name in enumerate(names)}
    own = (width - GAP * (columns - 1)) / columns
    whole = Canvas(width, 0.0)
    for first in range(0, len(panels), columns):
        tallest = 0.0
        for i, panel in enumerate(panels[first : first + columns]):
            left, top = (own + GAP) * i, whole.height
            heading = shorten(panel.heading, LABEL, own)
            whole.add(Text(left, top + 14, heading, size=LABEL, bold=True, title=panel.heading))
            picture = _picture(panel, own, styles)
            whole.add(*(moved(mark, left, top + HEAD) for mark in picture.marks))
            tallest = max(tallest, HEAD + picture.height + 6)
        whole.height += tallest
    if len(names) > 1:
        whole.height += legend_rows(whole, [Entry(name, styles[name], name) for name in names], whole.height)
    return whole


def _picture(panel: Panel, width: float, styles: Mapping[str, Style]) -> Canvas:
    stops = [stop for path in panel.paths.values() for stop in path]
    x_scale, y_scale = (
        linear([end for value, reach in rows for end in (value, value - reach, value + reach)], include=[0.0])
        for rows in ([(s.x, s.x_reach) for s in stops], [(s.y, s.y_reach) for s in stops])
    )
    picture = frame(width, HEIGHT, x_scale, y_scale, panel.x_title, panel.y_title)
    # where nothing is forgotten
    zero = picture.y(0.0)
    picture.canvas.add(Line([(picture.x.start, zero), (picture.x.end, zero)], "muted", 1, (5.0, 4.0)))
    taken: list[tuple[float, float, float, float]] = []
    for name, path in panel.paths.items():
        _path(picture, name, path, styles[name], taken)
    return picture.canvas


def _path(
    picture: Frame, name: str, path: Sequence[Stop], look: Style, taken: list[tuple[float, float, float, float]]
) -> None:
    """Line, intervals, markers and labels of a path; ``taken`` are the boxes of labels so far."""
    x, y, canvas = picture.x, picture.y, picture.canvas
    known = [stop for stop in path if math.isfinite(stop.x) and math.isfinite(stop.y)]
    for piece in pieces([(stop.x, stop.y) for stop in known]):
        canvas.add(Line([(x(a), y(b)) for a, b in piece], look.color, 1.6, look.dash, 0.7, series=name))
    # of a long run the intervals of all points would be a smear
    every = -(-len(known) // 12)
    for i, stop in enumerate(reversed(known)):
        here = (x(stop.x), y(stop.y))
        if i % every == 0:
            for ends in (
                [(x(stop.x - stop.x_reach), here[1]), (x(stop.x + stop.x_reach), here[1])],
                [(here[0], y(stop.y - stop.y_reach)), (here[0], y(stop.y + stop.y_reach))],
            ):
                if all(math.isfinite(value) for end in ends for value in end):
                    canvas.add(Line(ends, look.color, 1, opacity=0.5, series=name))
        if i == 0 or len(known) <= 40:
            hover = f"{name}, {stop.label}: {short_number(stop.x)}, {short_number(stop.y)}"
            canvas.add(Marker(*here, look.shape, look.color, 5 if i == 0 else 3, True, hover, series=name))
    # the end is labelled first, then a few back to the beginning where there is room
    few = -(-len(known) // 6)
    for i, stop in enumerate(reversed(known)):
        if i % few == 0 or i == len(known) - 1:
            _label(picture, stop, name, taken)


def _label(picture: Frame, stop: Stop, name: str, taken: list[tuple[float, float, float, float]]) -> None:
    """Below the point, where a path that rises leaves room, but not on the line of zero; on the side that has room."""
    wide, tall = text_width(stop.label, TICK), 14.0
    left, top = picture.x(stop.x) + 7, picture.y(stop.y) + 3
    if left + wide > picture.x.end + 12:
        left -= wide + 14
    if top < picture.y(0.0) + 3 and picture.y(0.0) - 3 < top + tall:
        top -= tall + 6
    right, bottom = left + wide, top + tall
    if any(left < r + 4 and begin < right + 4 and top < b and t < bottom for begin, t, r, b in taken):
        return
    taken.append((left, top, right, bottom))
    picture.canvas.add(Text(left, top + 11, stop.label, "muted", TICK, series=name))
