"""A number over a plane: colours, contour lines with their values, and marked places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from lit_consistency.drawing.canvas import Canvas, Line, Marker, Point, Text, shorten, text_width
from lit_consistency.drawing.frame import LABEL, TICK, Frame, frame
from lit_consistency.drawing.palette import style
from lit_consistency.drawing.scales import linear, short_number

STRONGEST = 0.6
"""Opacity of the strongest colour, on which ink can still be read, as of heat maps."""
N_LEVELS = 6


class Mark(NamedTuple):
    """A named place."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Field:
    """Numbers on a grid.

    Args:
        x: columns, ascending, evenly spaced.
        y: rows, likewise.
        values: rows x columns, NaN where there is none.
        marks: places within the grid.
    """

    x: Sequence[float]
    y: Sequence[float]
    values: Sequence[Sequence[float]]
    marks: Sequence[Mark] = ()


def draw_field(field: Field, x_title: str, y_title: str, width: float) -> Canvas:
    """One picture; one unit of x is as long as one of y, as far as a picture can be that shape.

    Args:
        field: what is drawn.
        x_title: written below.
        y_title: written above.
        width: of the picture.
    """
    n, m = len(field.x), len(field.y)
    # the middle of an outer cell is a point of the grid, and the cell reaches beyond it
    x, y = linear(field.x, pad=0.5 / (n - 1)), linear(field.y, pad=0.5 / (m - 1))
    height = min(max((width - 60) * (y.high - y.low) / (x.high - x.low), 150.0), 1.2 * width)
    picture = frame(width, height, x, y, x_title, y_title)
    known = [value for row in field.values for value in row if math.isfinite(value)]
    if known:
        _cells(picture, field, min(known), max(known))
    names: list[tuple[float, float, float]] = []
    for i, mark in enumerate(field.marks):
        _place(picture, mark, i, names)
    if known:
        taken = [(picture.x(mark.x), picture.y(mark.y)) for mark in field.marks]
        taken += [(x, y - 4) for left, right, y in names for x in (left, (left + right) / 2, right)]
        for level in contour_levels(known):
            _contour(picture, field, level, taken)
    return picture.canvas


def contour_levels(known: Sequence[float]) -> list[float]:
    """Values of the contours: halves of halves of the range, as the bottom of a basin is where most is to be seen."""
    low, high = min(known), max(known)
    return [low + (high - low) / 2**k for k in range(N_LEVELS, 0, -1)] if high > low else []


def _cells(picture: Frame, field: Field, low: float, high: float) -> None:
    width = (picture.x(field.x[-1]) - picture.x(field.x[0])) / (len(field.x) - 1)
    height = (picture.y(field.y[0]) - picture.y(field.y[-1])) / (len(field.y) - 1)
    for (j, y), (i, x) in product(enumerate(field.y), enumerate(field.x)):
        value = field.values[j][i]
        hover = f"{short_number(x)}, {short_number(y)}: {short_number(value)}"
        # the root: in a bowl the colour then grows evenly with the distance from its bottom
        share = math.sqrt((value - low) / (high - low)) if high > low else 0.0
        color, opacity = ("bad", 0.02 + (STRONGEST - 0.02) * share) if math.isfinite(value) else ("muted", 0.3)
        picture.canvas.box(picture.x(x) - width / 2, picture.y(y) - height / 2, width, height, color, opacity, hover)


def _contour(picture: Frame, field: Field, level: float, taken: list[Point]) -> None:
    """The lines of one level, and its value where nothing else stands; ``taken`` grows by the value's place."""
    segments = [[(picture.x(a), picture.y(b)) for a, b in ends] for ends in contour(field, level)]
    picture.canvas.add(*(Line(ends, "ink", 1, opacity=0.55) for ends in segments))
    text = short_number(level)
    room = text_width(text, TICK)
    for (a, b), (c, d) in segments:
        x, y = (a + c) / 2, (b + d) / 2
        inside = (
            picture.x.start + room / 2 < x < picture.x.end - room / 2 and picture.y.end + 12 < y < picture.y.start - 6
        )
        if inside and all(abs(x - p) > room + 6 or abs(y - q) > 16 for p, q in taken):
            picture.canvas.add(Text(x, y + 4, text, "ink", TICK, "middle"))
            taken.append((x, y))
            return


def contour(field: Field, level: float) -> Iterator[tuple[Point, Point]]:
    """Straight pieces of the line on which the field has a value: every triangle of the grid is taken for a plane.

    A square has two ways through a saddle; the two triangles of a square have one each.
    """
    for j, i in product(range(len(field.y) - 1), range(len(field.x) - 1)):
        for corners in (((0, 0), (1, 0), (0, 1)), ((1, 1), (1, 0), (0, 1))):
            points = [(field.x[i + a], field.y[j + b], field.values[j + b][i + a]) for a, b in corners]
            if not all(math.isfinite(value) for *_, value in points):
                continue
            crossed = [
                _between(points[k], points[k - 1], level)
                for k in range(3)
                if (points[k][2] < level) != (points[k - 1][2] < level)
            ]
            if crossed:
                yield crossed[0], crossed[1]


def _between(one: tuple[float, float, float], two: tuple[float, float, float], level: float) -> Point:
    share = (level - one[2]) / (two[2] - one[2])
    return one[0] + share * (two[0] - one[0]), one[1] + share * (two[1] - one[1])


def _place(picture: Frame, mark: Mark, number: int, names: list[tuple[float, float, float]]) -> None:
    """The mark and its name, beside it where no other name stands; ``names`` grows by its ends and its height."""
    x, y = picture.x(mark.x), picture.y(mark.y)
    picture.canvas.add(Marker(x, y, style(number).shape, "ink", 5, True, mark.name))
    right = x < (picture.x.start + picture.x.end) / 2
    options = []
    for to_right in (right, not right):
        name = shorten(mark.name, LABEL, (picture.x.end - x if to_right else x - picture.x.start) - 12)
        width = text_width(name, LABEL)
        start = x + 9 if to_right else x - 9 - width
        options += [(name, to_right, (start, start + width, y + down)) for down in (-7.0, 17.0)]
    free = [
        option
        for option in options
        if not any(option[2][0] < b and a < option[2][1] and abs(option[2][2] - c) < LABEL for a, b, c in names)
    ]
    name, to_right, place = (free or options)[0]
    names.append(place)
    anchor = "start" if to_right else "end"
    picture.canvas.add(Text(x + 9 if to_right else x - 9, place[2], name, "ink", LABEL, anchor, True, title=mark.name))
