"""Fronts: what was learned against what was forgotten, single seeds and the surfaces that shares of the seeds attain.

A point (l, f) attains everything that learns less and forgets more; the edge of what is attained is a staircase. The
surface of a share s is the edge of what at least s of the seeds attain: the median says where a typical seed stands,
the band from the best to the worst seed how sure that is (Grunert da Fonseca, Fonseca & Hall 2001, Inferential
performance assessment of stochastic optimisers and the attainment function, EMO).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from lit_consistency.drawing.canvas import Area, Canvas, Dots, Line, Marker, Point
from lit_consistency.drawing.frame import Entry, Frame, frame
from lit_consistency.drawing.palette import Style
from lit_consistency.drawing.scales import Scale, linear, short_number
from lit_consistency.study.report.content import Front, FrontPoint

BEYOND = 0.35
"""Dominated points are shown up to this share of the fronts' own range beyond it; a diverged run would squeeze them."""


def draw_fronts(
    fronts: Sequence[Front], styles: Mapping[str, Style], learning: str, forgetting: str, width: float
) -> tuple[Canvas, str]:
    """The fronts of one panel.

    Args:
        fronts: to be compared, all of one panel.
        styles: group -> look.
        learning: name of the x axis.
        forgetting: name of the y axis.
        width: of the picture.

    Returns:
        The picture, and what it leaves out, or an empty text.
    """
    points = [point for front in fronts for point in front.points]
    known = [p for p in points if math.isfinite(p.learning) and math.isfinite(p.forgetting)]
    x, y = (_scale(fronts, known, axis) for axis in (0, 1))
    legend = [
        Entry(f.group, styles[f.group], f.group, "" if any(p.on_front for p in f.points) else "no front")
        for f in fronts
    ]
    picture = frame(width, 300, x, y, f"{learning} (more is better →)", f"↓ {forgetting} (less is better)", legend)
    for front in fronts:
        _draw_bands(picture, front, styles[front.group])
    inside = [p for p in known if picture.x.holds(p.learning) and picture.y.holds(p.forgetting)]
    shown = set(map(id, inside))
    for front in fronts:
        _draw_points(picture, front, styles[front.group], shown)
    for front in fronts:
        _draw_median(picture, front, styles[front.group])
    left_out = []
    # a picture that leaves something out says so
    if len(known) < len(points):
        left_out.append(f"{len(points) - len(known)} of {len(points)} points have no number.")
    if len(inside) < len(known):
        left_out.append(f"{len(known) - len(inside)} points that others dominate lie outside of the frame.")
    return picture.canvas, " ".join(left_out)


def _scale(fronts: Sequence[Front], points: Sequence[FrontPoint], axis: int) -> Scale:
    """A scale that holds everything on a front, and dominated points not far beyond."""
    every = [(p.learning, p.forgetting)[axis] for p in points]
    best = [(p.learning, p.forgetting)[axis] for p in points if p.on_front]
    best += [c[axis] for f in fronts for corners in f.surfaces.values() for c in corners if math.isfinite(c[axis])]
    if not best:
        return linear(every)
    low, high = min(best), max(best)
    room = BEYOND * (high - low or abs(high) or 1.0)
    return linear([value for value in every if low - room <= value <= high + room], include=best)


def _surfaces(front: Front) -> list[tuple[float, list[Point]]]:
    """(share, corners) from what one seed attains to what all do; no corners where too few seeds reach anything."""
    # the median is one of the k/n, named twice; only the order of the shares counts
    return sorted(((share_of(name), corners) for name, corners in front.surfaces.items()), key=lambda pair: pair[0])


def _draw_bands(picture: Frame, front: Front, look: Style) -> None:
    """From the best to the worst seed, and darker the middle half."""
    surfaces = _surfaces(front)
    if not surfaces:
        return
    quarters = at_least(surfaces, 0.25), at_least(surfaces, 0.75)
    for (best, worst), opacity in (((surfaces[0][1], surfaces[-1][1]), 0.10), (quarters, 0.13)):
        edge = [*staircase(picture, best), *reversed(staircase(picture, worst))]
        if not edge:
            continue
        if not worst:
            # what too few seeds reach lies nowhere: all beyond the best is between the two, up to the corner
            edge.append((picture.x.start, picture.y.end))
        picture.canvas.add(Area(edge, look.color, opacity, series=front.group))


def _draw_median(picture: Frame, front: Front, look: Style) -> None:
    """What half of the seeds attain; of one seed, which has no surfaces, its own front."""
    surfaces = _surfaces(front)
    ends = sorted((p.learning, p.forgetting) for p in front.points if p.on_front)
    corners = at_least(surfaces, 0.5) if surfaces else ends
    if corners:
        line = staircase(picture, corners)
        # a rim of the background's colour lifts the line off the points below it
        picture.canvas.add(Line(line, "paper", 4.4, opacity=0.75, series=front.group))
        picture.canvas.add(Line(line, look.color, 2.2, look.dash, series=front.group))


def _draw_points(picture: Frame, front: Front, look: Style, shown: set[int]) -> None:
    inside = [p for p in front.points if id(p) in shown]
    place = {id(p): (picture.x(p.learning), picture.y(p.forgetting)) for p in inside}
    dominated = [place[id(p)] for p in inside if not p.on_front]
    if dominated:
        picture.canvas.add(Dots(dominated, look.color, 2.6, 0.3, series=front.group))
    for p in inside:
        if p.on_front:
            numbers = f"learning {short_number(p.learning)}, forgetting {short_number(p.forgetting)}"
            text = f"{front.group}, seed {p.seed}: {numbers}\n{p.label}"
            # what was measured at the end of a run is filled; a step on the way or an interpolation is not
            picture.canvas.add(
                Marker(*place[id(p)], look.shape, look.color, 2.6, p.kind == "end", text, p.cell, front.group, 0.65)
            )


# -------------------- surfaces


def share_of(name: str) -> float:
    """The share of seeds that a surface's name says: ``1/10``, ``0.5`` or ``median``.

    Raises:
        ValueError: it says none.
    """
    if name == "median":
        return 0.5
    try:
        return float(Fraction(name))
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"surfaces: {name!r}; expected a share of the seeds, such as '1/10', '0.5' or 'median'"
        ) from None


def at_least(surfaces: Sequence[tuple[float, list[Point]]], share: float) -> list[Point]:
    """Corners of the surface of the smallest share that is not below ``share``, or of the largest there is."""
    return next((corners for s, corners in surfaces if s >= share - 1e-9), surfaces[-1][1])


def staircase(picture: Frame, corners: Sequence[Point]) -> list[Point]:
    """The edge of what these corners attain, in pixels, from the left end of the frame to its upper one."""
    points: list[Point] = []
    # frames have their origin below: the end of the y scale is its upper edge
    left, top = picture.x.start, picture.y.end
    for learning, forgetting in corners:
        y = picture.y(forgetting)
        points += [(points[-1][0] if points else left, y), (picture.x(learning), y)]
    return [*points, (points[-1][0], top)] if points else []
