"""What models on one way learned against what they forgot, with both intervals: a panel for each retained set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lit_consistency.drawing.canvas import Canvas, Line, Marker, Text, moved, shorten
from lit_consistency.drawing.figure import WIDE
from lit_consistency.drawing.frame import LABEL, TICK, Entry, Frame, frame, legend_rows
from lit_consistency.drawing.palette import Style
from lit_consistency.drawing.scales import linear, short_number

Said = Literal["base", "within", "beyond", "best"]
GAP, HEAD, HEIGHT = 26.0, 24.0, 220.0
LOOKS: dict[Said, tuple[str, Style]] = {
    "base": ("the base", Style("muted", "diamond", ())),
    "within": ("within the budget", Style("series0", "circle", ())),
    "beyond": ("beyond the budget", Style("series1", "square", ())),
    "best": ("the best within it", Style("series2", "star", ())),
}
"""What is said of a model -> its words in the legend, and its look."""


@dataclass(frozen=True)
class Stop:
    """A model on the way.

    Args:
        name: beside the point.
        said: which of ``LOOKS``.
        learned: value and ends of its interval, NaN where there is none.
        forgotten: likewise.
    """

    name: str
    said: Said
    learned: tuple[float, float, float]
    forgotten: tuple[float, float, float]


@dataclass(frozen=True)
class Panel:
    """The way in the plane of one retained set.

    Args:
        stops: in their order on the way.
        unit: of what is forgotten.
        bound: most that may be forgotten; NaN where nothing is bounded.
    """

    stops: Sequence[Stop]
    unit: str
    bound: float = math.nan


def draw_trade_off(panels: Mapping[str, Panel], learned: str, width: float = WIDE) -> Canvas:
    """Panels side by side, two at most.

    Args:
        panels: retained set -> the way; at least one.
        learned: what is learned, and its unit.
        width: of the whole.
    """
    columns = min(2, len(panels))
    own = (width - GAP * (columns - 1)) / columns
    whole, tallest = Canvas(width, 0.0), 0.0
    for i, (name, panel) in enumerate(panels.items()):
        if i % columns == 0:
            whole.height += tallest
            tallest = 0.0
        left, top = (own + GAP) * (i % columns), whole.height
        whole.add(Text(left, top + 14, shorten(name, LABEL, own), size=LABEL, bold=True, title=name))
        picture = _panel(panel, learned, own)
        whole.add(*(moved(mark, left, top + HEAD) for mark in picture.marks))
        tallest = max(tallest, HEAD + picture.height + 6)
    whole.height += tallest
    present = {stop.said for panel in panels.values() for stop in panel.stops}
    entries = [Entry(words, look, said) for said, (words, look) in LOOKS.items() if said in present]
    whole.height += legend_rows(whole, entries, whole.height)
    return whole


def _panel(panel: Panel, learned: str, width: float) -> Canvas:
    known = [stop for stop in panel.stops if math.isfinite(stop.learned[0]) and math.isfinite(stop.forgotten[0])]
    x = linear([end for stop in known for end in stop.learned], pad=0.08)
    y = linear([end for stop in known for end in stop.forgotten], include=[panel.bound], pad=0.08)
    titles = f"{learned} (more is better →)", f"↓ forgotten, {panel.unit} (less is better)"
    picture = frame(width, HEIGHT, x, y, *titles)
    if math.isfinite(panel.bound):
        level = picture.y(panel.bound)
        picture.canvas.add(Line([(picture.x.start, level), (picture.x.end, level)], "muted", 1, (5.0, 4.0)))
        picture.canvas.add(Text(picture.x.start + 4, level - 5, f"at most {short_number(panel.bound)}", "muted", TICK))
    way = [(picture.x(stop.learned[0]), picture.y(stop.forgotten[0])) for stop in known]
    picture.canvas.add(Line(way, "line", 1.5))
    for stop in known:
        _stop(picture, stop)
    return picture.canvas


def _stop(picture: Frame, stop: Stop) -> None:
    x, y, (_, look) = picture.x(stop.learned[0]), picture.y(stop.forgotten[0]), LOOKS[stop.said]
    intervals = (stop.learned[1:], picture.x, True), (stop.forgotten[1:], picture.y, False)
    for (low, high), scale, across in intervals:
        if math.isfinite(low) and math.isfinite(high):
            a, b = scale(low), scale(high)
            ends = [(a, y), (b, y)] if across else [(x, a), (x, b)]
            picture.canvas.add(Line(ends, look.color, 1.2, opacity=0.6, series=stop.said))
    numbers = f"learned {short_number(stop.learned[0])}, forgotten {short_number(stop.forgotten[0])}"
    size = 6.0 if stop.said == "best" else 4.0
    picture.canvas.add(Marker(x, y, look.shape, look.color, size, True, f"{stop.name}: {numbers}", series=stop.said))
    # above and to the left there is room: the way climbs to the right from the base
    place = (x - 8, y + 15, "end") if stop.said == "base" else (x - 8, y - 7, "end")
    picture.canvas.add(Text(*place[:2], stop.name, "ink", TICK, place[2]))
