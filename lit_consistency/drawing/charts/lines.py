"""Lines over a number: layers, steps, radii, rates; with intervals where they are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lit_consistency.drawing.canvas import Area, Canvas, Line, Marker, Point, Text
from lit_consistency.drawing.frame import TICK, Entry, Frame, frame
from lit_consistency.drawing.palette import Style, style
from lit_consistency.drawing.scales import decades, linear, logarithmic, short_number

HEIGHT = 230.0


@dataclass(frozen=True)
class Series:
    """A line with its name.

    Args:
        name: in the legend.
        points: (x, y) in the order of x; a y that is no number leaves a gap.
        low: lower end of every point's interval; empty if none is known.
        high: upper end, likewise.
        note: a warning behind the name in the legend, or empty.
    """

    name: str
    points: Sequence[Point]
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())
    note: str = ""


def draw_lines(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    width: float,
    styles: Mapping[str, Style] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    levels: Mapping[str, float] | None = None,
    height: float = HEIGHT,
    named: bool = True,
) -> Canvas:
    """One picture of several lines.

    Args:
        series: at least one.
        x_title: written below.
        y_title: written above.
        width: of the picture.
        styles: name -> look; numbered in the order of the series when not given.
        log_x: equal ratios of x are equal distances.
        log_y: likewise; every value must be positive, or the axis is linear.
        levels: name -> value of y, dashed lines across.
        height: of the data's part.
        named: whether the legend stands below, where there is more to tell apart than one line.
    """
    styles = styles or {row.name: style(i) for i, row in enumerate(series)}
    levels = levels or {}
    xs = [x for row in series for x, _ in row.points]
    ys = [value for row in series for value in (*(y for _, y in row.points), *row.low, *row.high)]
    known = [y for y in ys if math.isfinite(y)]
    y_scale = (
        decades([*known, *levels.values()])
        if log_y and min(known, default=0) > 0
        else linear(ys, include=list(levels.values()))
    )
    x_scale = logarithmic(xs) if log_x else linear(xs, pad=0.02)
    if all(float(x).is_integer() for x in xs):  # there is no layer 0.5
        x_scale = replace(x_scale, ticks=tuple(tick for tick in x_scale.ticks if abs(tick - round(tick)) < 1e-9))
    legend = [Entry(row.name, styles[row.name], row.name, f"⚠ {row.note}" if row.note else "") for row in series]
    picture = frame(
        width, height, x_scale, y_scale, x_title, y_title,
        legend if named and (len(series) > 1 or series[0].note) else (),
    )  # fmt: skip
    for name, level in levels.items():
        _level(picture, name, level)
    for row in series:
        _line(picture, row, styles[row.name], x_title)
    return picture.canvas


def _level(picture: Frame, name: str, level: float) -> None:
    y = picture.y(level)
    picture.canvas.add(Line([(picture.x.start, y), (picture.x.end, y)], "muted", 1, (5.0, 4.0)))
    picture.canvas.add(Text(picture.x.end, y - 5, name, "muted", TICK, "end"))


def _line(picture: Frame, row: Series, look: Style, x_title: str) -> None:
    x, y, key = picture.x, picture.y, row.name
    if row.low and row.high:
        band = [(p[0], low, high) for p, low, high in zip(row.points, row.low, row.high, strict=True)]
        band = [(a, low, high) for a, low, high in band if math.isfinite(low) and math.isfinite(high)]
        edge = [(x(a), y(high)) for a, _, high in band] + [(x(a), y(low)) for a, low, _ in reversed(band)]
        if len(band) > 1:
            picture.canvas.add(Area(edge, look.color, 0.12, series=key))
    for piece in pieces(row.points):
        picture.canvas.add(Line([(x(a), y(b)) for a, b in piece], look.color, 2, look.dash, series=key))
    # beyond a few dozen points markers would hide the line
    if len(row.points) > 40:
        return
    for i, (a, b) in enumerate(row.points):
        if math.isfinite(b):
            interval = f" [{short_number(row.low[i])}, {short_number(row.high[i])}]" if row.low and row.high else ""
            text = f"{row.name}, {x_title} {short_number(a)}: {short_number(b)}{interval}"
            picture.canvas.add(Marker(x(a), y(b), look.shape, look.color, 3, True, text, series=key))


def pieces(rows: Sequence[Point]) -> list[list[Point]]:
    """The rows between those that are no numbers: a line must not bridge what was not measured."""
    found: list[list[Point]] = [[]]
    for row in rows:
        if math.isfinite(row[1]):
            found[-1].append(row)
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]
