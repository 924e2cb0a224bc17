"""Numbers over a number, as a picture: several lines, with the intervals that their rows bring along."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.records.tables import Row


def curves(
    rows: Sequence[Row],
    x: str,
    y: str,
    group: str,
    title: str,
    caption: str,
    x_title: str = "",
    y_title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """One line for every value of a column; intervals are the columns ``Y_low`` and ``Y_high`` where rows have them.

    Args:
        rows: one for every point.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        group: column that tells lines apart.
        title: of the picture.
        caption: how to read it.
        x_title: of the axis; the column's name when not given.
        y_title: likewise.
        log_x: equal ratios are equal distances.
        log_y: likewise, if anything is positive; what is not then leaves a gap, and a band goes to the lowest number.
        levels: name -> value of y, dashed lines across.
    """
    series = []
    for name in dict.fromkeys(str(row[group]) for row in rows):
        own = sorted((row for row in rows if str(row[group]) == name), key=lambda row: float(row[x]))
        points = [(float(row[x]), float(row[y])) for row in own]
        low, high = ([float(row.get(f"{y}_{end}", math.nan)) for row in own] for end in ("low", "high"))
        # a band of nothing would make the legend and the hover text speak of intervals
        known = any(map(math.isfinite, low))
        series.append(Series(name, points, low if known else (), high if known else ()))
    values = {row.name: dict(row.points) for row in series}  # the table keeps what the axis cannot show
    if log_y:
        if any(value <= 0 for row in series for value in (*(y for _, y in row.points), *row.low)):
            caption += " What is not above 0 has no place on this axis: lines leave it out, bands end at the least."
        series = _positive(series)
    x_title, y_title = x_title or x.replace("_", " "), y_title or y.replace("_", " ")
    picture = draw_lines(series, x_title, y_title, WIDTH, log_x=log_x, log_y=log_y, levels=levels)
    places = sorted({place for row in series for place, _ in row.points})
    table = [
        (f"{place:g}", *(short_number(values[name][place]) if place in values[name] else "" for name in values))
        for place in places
    ]
    return Figure("", "", title, caption, picture, None, (x_title, *values), tuple(table))


def _positive(series: Sequence[Series]) -> list[Series]:
    """The series as a logarithmic axis can show them; as they are where nothing is positive."""
    values = [value for row in series for value in (*(y for _, y in row.points), *row.low, *row.high) if value > 0]
    if not values:
        return list(series)
    floor = min(values)
    return [
        replace(
            row,
            points=[(place, value if value > 0 else math.nan) for place, value in row.points],
            low=[value if not value <= 0 else floor for value in row.low],
            high=[value if not value <= 0 else floor for value in row.high],
        )
        for row in series
    ]
