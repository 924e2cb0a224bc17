"""The frame of a picture with two axes: grid, ticks, titles, and the legend below, outside of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_consistency.drawing.canvas import Area, Canvas, Line, Marker, Text, shorten, text_width
from lit_consistency.drawing.palette import Style
from lit_consistency.drawing.scales import Scale, sparse

TICK, LABEL = 11.5, 12.0
"""Sizes of the fonts in pixels: on a phone a picture is shown at nine tenths, and 10 can still be read."""


@dataclass(frozen=True)
class Entry:
    """A line of the legend.

    Args:
        name: of the series, in full.
        style: its look.
        series: key of its marks.
        note: a warning behind the name, or empty.
    """

    name: str
    style: Style
    series: str
    note: str = ""


@dataclass(frozen=True)
class Frame:
    """A canvas with axes; ``x`` and ``y`` give the pixels of values."""

    canvas: Canvas
    x: Scale
    y: Scale


def frame(
    width: float, height: float, x: Scale, y: Scale, x_title: str, y_title: str, legend: Sequence[Entry] = ()
) -> Frame:
    """An empty frame.

    The title of the y axis stands above it, horizontally: it is read without turning the head, and is never clipped.

    Args:
        width: of the whole picture.
        height: of the data's part; titles and legend come on top.
        x: scale of the x axis; its pixels are set here.
        y: scale of the y axis; its pixels are set here.
        x_title: written below, to the right.
        y_title: written above, to the left.
        legend: entries, in rows as many as need be.
    """
    top = 30.0
    y = y.between(top + height, top)
    # the widest label of the y axis decides where the data begins: none is clipped
    labels = y.labels()
    left = max((text_width(label, TICK) for label in labels), default=0.0) + 10
    right = width - 14
    x = x.between(left, right)
    x = sparse(x, [text_width(label, TICK) for label in x.labels()], 8)
    canvas = Canvas(width, top + height + 44)
    canvas.add(Text(0, 14, shorten(y_title, LABEL, width), "muted", LABEL, title=y_title))
    for tick, label in zip(y.ticks, labels, strict=True):
        canvas.add(Line([(left, y(tick)), (right, y(tick))], "grid", 1))
        canvas.add(Text(left - 7, y(tick) + 4, label, "muted", TICK, "end"))
    canvas.add(Line([(left, top + height), (right, top + height)], "line", 1))
    for tick, label in zip(x.ticks, x.labels(), strict=True):
        canvas.add(Line([(x(tick), top + height), (x(tick), top + height + 4)], "line", 1))
        canvas.add(Text(x(tick), top + height + 18, label, "muted", TICK, "middle"))
    canvas.add(Text(right, top + height + 37, shorten(x_title, LABEL, right), "muted", LABEL, "end", title=x_title))
    canvas.height += legend_rows(canvas, legend, canvas.height + 8)
    return Frame(canvas, x, y)


def legend_rows(canvas: Canvas, entries: Sequence[Entry], top: float) -> float:
    """Write the legend from ``top`` on, side by side as far as they fit; returns its height."""
    x, y, row = 0.0, top, 20.0
    for entry in entries:
        note = f"  {entry.note}" if entry.note else ""
        name = shorten(entry.name, LABEL, max(canvas.width - 34 - text_width(note, LABEL), 60))
        width = 34 + text_width(name + note, LABEL)
        # a new row, unless the entry is the first of one
        if x and x + width > canvas.width:
            x, y = 0.0, y + row
        key = entry.series
        # an invisible area makes the whole entry react to the pointer
        corners = [(x, y), (x + width, y), (x + width, y + row), (x, y + row)]
        canvas.add(Area(corners, "paper", 0.001, series=entry.series))
        canvas.add(Line([(x + 1, y + 10), (x + 25, y + 10)], entry.style.color, 2, entry.style.dash, series=key))
        canvas.add(Marker(x + 13, y + 10, entry.style.shape, entry.style.color, 4, series=key))
        hover = entry.name if name != entry.name else ""
        canvas.add(Text(x + 31, y + 14, name + note, "warn" if note else "ink", LABEL, title=hover, series=key))
        x += width + 14
    return y + row - top + 8 if entries else 0.0


def finite(values: Sequence[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if math.isfinite(value)]
