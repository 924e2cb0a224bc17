"""Several pictures of the same lines side by side, under one legend: each has axes of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_consistency.drawing.canvas import Canvas, Text, moved, shorten
from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.drawing.figure import PHONE, WIDE
from lit_consistency.drawing.frame import LABEL, Entry, legend_rows
from lit_consistency.drawing.palette import style

GAP, HEAD, HEIGHT = 26.0, 24.0, 150.0


def draw_panels(
    panels: Mapping[str, Sequence[Series]],
    x_title: str,
    y_title: str,
    columns: int = 2,
    width: float = WIDE,
    log_x: bool = False,
    log_y: bool = False,
) -> Canvas:
    """Pictures of lines in rows; a line of one name looks the same in all of them.

    Args:
        panels: heading -> its lines, at least one.
        x_title: of all.
        y_title: of all.
        columns: pictures side by side.
        width: of the whole.
        log_x: as in ``draw_lines``.
        log_y: likewise; whether it can be is seen for every picture.
    """
    names = list(dict.fromkeys(row.name for series in panels.values() for row in series))
    styles = {name: style(i) for i, name in enumerate(names)}
    own = (width - GAP * (columns - 1)) / columns
    whole = Canvas(width, 0.0)
    tallest = 0.0
    for i, (heading, series) in enumerate(panels.items()):
        if i % columns == 0:
            whole.height += tallest
            tallest = 0.0
        left, top = (own + GAP) * (i % columns), whole.height
        whole.add(Text(left, top + 14, shorten(heading, LABEL, own), size=LABEL, bold=True, title=heading))
        picture = draw_lines(
            series, x_title, y_title, own, styles, log_x, log_y, height=HEIGHT, named=any(row.note for row in series)
        )
        whole.add(*(moved(mark, left, top + HEAD) for mark in picture.marks))
        tallest = max(tallest, HEAD + picture.height + 6)
    whole.height += tallest
    if len(names) > 1:
        whole.height += legend_rows(whole, [Entry(name, styles[name], name) for name in names], whole.height)
    return whole


def both_arrangements(
    panels: Mapping[str, Sequence[Series]], x_title: str, y_title: str, log_x: bool = False, log_y: bool = False
) -> tuple[Canvas, Canvas]:
    """Two columns for a wide page, and one for a phone; see ``draw_panels``."""
    return (
        draw_panels(panels, x_title, y_title, 2, WIDE, log_x, log_y),
        draw_panels(panels, x_title, y_title, 1, PHONE, log_x, log_y),
    )
