"""Numbers over something that is swept or counted: rates, and steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lit_consistency.drawing.canvas import Area, Canvas, Line, Marker, Point, Text
from lit_consistency.drawing.charts.lines import pieces
from lit_consistency.drawing.frame import TICK, Entry, Frame, finite, frame
from lit_consistency.drawing.numbers import count
from lit_consistency.drawing.palette import Style
from lit_consistency.drawing.scales import linear, logarithmic, short_number
from lit_consistency.study.report.content import RateCurve

# -------------------- over rates


def draw_rates(curves: Sequence[RateCurve], styles: Mapping[str, Style], width: float) -> tuple[Canvas, str]:
    """A number over the swept rate: mean and interval, single seeds thin, the best rate framed.

    Args:
        curves: to be compared: one panel, one axis, one metric.
        styles: group -> look.
        width: of the picture.

    Returns:
        The picture, and what it leaves out, or an empty text.
    """
    means = [value for curve in curves for _, *values in curve.points for value in values]
    singles = [value for curve in curves for rows in curve.singles.values() for _, value in rows]
    levels = finite([curve.level for curve in curves])
    rates = [row[0] for curve in curves for row in [*curve.points, *sum(curve.singles.values(), [])]]
    legend = [Entry(c.group, styles[c.group], c.group, f"⚠ {c.mark}" if c.mark else "") for c in curves]
    # a level that no rate reaches must be seen, too
    y = linear([*means, *singles], include=levels)
    picture = frame(width, 230, logarithmic(rates), y, curves[0].axis, curves[0].metric, legend)
    for level in sorted(set(levels)):
        _level(picture, level)
    for curve in curves:
        _rate_curve(picture, curve, styles[curve.group])
    missing = sum(not math.isfinite(row[1]) for c in curves for row in c.points)
    missing_singles = sum(not math.isfinite(v) for c in curves for rows in c.singles.values() for _, v in rows)
    parts = [count(n, word) for n, word in ((missing, "mean"), (missing_singles, "single value")) if n]
    return picture.canvas, f"Not drawn, because they are no numbers: {' and '.join(parts)}." if parts else ""


def _level(picture: Frame, level: float) -> None:
    """The level at which the study reads, named at the right end."""
    y, label = picture.y(level), f"read at {short_number(level)}"
    picture.canvas.add(Line([(picture.x.start, y), (picture.x.end, y)], "muted", 1, (5.0, 4.0)))
    picture.canvas.add(Text(picture.x.end, y - 5, label, "muted", TICK, "end"))


def _rate_curve(picture: Frame, curve: RateCurve, look: Style) -> None:
    x, y, key = picture.x, picture.y, curve.group
    for rows in curve.singles.values():
        for piece in pieces(rows):
            picture.canvas.add(Line([(x(r), y(v)) for r, v in piece], look.color, 0.8, opacity=0.28, series=key))
    for rate, mean, low, high in curve.points:
        if math.isfinite(mean) and math.isfinite(low) and math.isfinite(high):
            picture.canvas.add(Line([(x(rate), y(low)), (x(rate), y(high))], look.color, 1.6, series=key))
    for piece in pieces([(rate, mean) for rate, mean, _, _ in curve.points]):
        picture.canvas.add(Line([(x(r), y(v)) for r, v in piece], look.color, 2, look.dash, series=key))
    for rate, mean, low, high in curve.points:
        if not math.isfinite(mean):
            continue
        interval = f" [{short_number(low)}, {short_number(high)}]" if math.isfinite(low) else ""
        # a rate may have been read from text
        best = math.isfinite(curve.best) and math.isclose(rate, curve.best, rel_tol=1e-6)
        text = f"{curve.group}, {curve.axis} {short_number(rate)}: {short_number(mean)}{interval}"
        if best:
            text += f"\nbest rate{f', but {curve.mark}' if curve.mark else ''}"
            picture.canvas.add(
                Marker(x(rate), y(mean), "circle", "warn" if curve.mark else "ink", 8, False, series=key)
            )
        picture.canvas.add(Marker(x(rate), y(mean), look.shape, look.color, 4, True, text, series=key))


# -------------------- over steps


@dataclass(frozen=True)
class StepCurves:
    """Curves of one group of cells.

    Args:
        group: its name.
        finished: cell -> (step, value) of the finished ones, whose mean is drawn thick.
        stopped: cell -> (step, value) of those that did not finish; a cross marks where.
    """

    group: str
    finished: dict[str, list[Point]] = field(default_factory=dict)
    stopped: dict[str, list[Point]] = field(default_factory=dict)

    def mean(self) -> list[tuple[float, float, float, float]]:
        """(step, mean, smallest, largest) at every step that all finished cells measured."""
        rows = [dict(points) for points in self.finished.values()]
        if not rows:
            return []
        # a mean over other cells at other steps would jump where a cell has no number
        steps = sorted(set.intersection(*[{s for s, v in row.items() if math.isfinite(v)} for row in rows]))
        values = [(step, [row[step] for row in rows]) for step in steps]
        return [(step, sum(v) / len(v), min(v), max(v)) for step, v in values]


def draw_steps(curves: Sequence[StepCurves], styles: Mapping[str, Style], metric: str, width: float) -> Canvas:
    """A number over the steps: every cell thin, the mean of the finished ones thick, the range between them shaded.

    Args:
        curves: to be compared.
        styles: group -> look.
        metric: what is shown.
        width: of the picture.
    """
    done = [point for c in curves for points in c.finished.values() for point in points]
    # a diverging run reaches values that would flatten all others: the finished ones decide the frame
    every = done or [point for c in curves for points in c.stopped.values() for point in points]
    steps = linear([step for step, _ in every], pad=0.02)
    legend = [Entry(c.group, styles[c.group], c.group) for c in curves]
    picture = frame(width, 210, steps, linear([value for _, value in every]), "step", metric, legend)
    for curve in curves:
        _step_curve(picture, curve, styles[curve.group])
    return picture.canvas


def _step_curve(picture: Frame, curve: StepCurves, look: Style) -> None:
    x, y, key = picture.x, picture.y, curve.group
    mean = curve.mean()
    # a band of one cell is its own line
    if len(curve.finished) > 1 and len(mean) > 1:
        band = [(x(s), y(high)) for s, _, _, high in mean] + [(x(s), y(low)) for s, _, low, _ in reversed(mean)]
        picture.canvas.add(Area(band, look.color, 0.08, series=key))
    for points in curve.finished.values():
        for piece in pieces(points):
            picture.canvas.add(Line([(x(s), y(v)) for s, v in piece], look.color, 0.8, opacity=0.25, series=key))
    for cell, points in curve.stopped.items():
        # what a diverging run reached lies outside; the cross says where it was seen last
        inside = [(s, v) for s, v in points if picture.x.holds(s) and picture.y.holds(v)]
        if inside:
            picture.canvas.add(Line([(x(s), y(v)) for s, v in inside], look.color, 0.9, (2.0, 2.0), 0.7, series=key))
            s, v = inside[-1]
            text = f"{curve.group}: stopped after step {s:g}"
            picture.canvas.add(Marker(x(s), y(v), "cross", look.color, 3.5, True, text, cell, series=key))
    if mean:
        picture.canvas.add(Line([(x(s), y(m)) for s, m, _, _ in mean], look.color, 2.2, look.dash, series=key))
    for step, value, low, high in mean:
        text = f"{curve.group}, step {step:g}: {short_number(value)} [{short_number(low)} to {short_number(high)}]"
        picture.canvas.add(Marker(x(step), y(value), look.shape, look.color, 3, True, text, series=key))
