from __future__ import annotations

import math

import pytest

from lit_consistency.drawing.canvas import Line, Marker
from lit_consistency.drawing.charts.scatter import Spot, draw_scatter


def test_points_on_the_diagonal_stand_on_its_line() -> None:
    spots = [Spot(f"run {x}", "a", x, x, x / 3, 3 * x) for x in (0.1, 1.0, 30.0)]
    for log in (False, True):
        canvas = draw_scatter(spots, "came", "foretold", 400, log_x=log, log_y=log, diagonal=True)
        (line,) = [mark for mark in canvas.marks if isinstance(mark, Line) and mark.dash]
        (x0, y0), (x1, y1) = line.points
        markers = [mark for mark in canvas.marks if isinstance(mark, Marker)]
        assert len(markers) == 3
        for marker in markers:
            assert (marker.y - y0) / (y1 - y0) == pytest.approx((marker.x - x0) / (x1 - x0))
        # equal ratios are equal distances on the one, and not on the other
        steps = [b.x - a.x for a, b in zip(markers, markers[1:], strict=False)]
        assert steps[1] / steps[0] == pytest.approx(math.log(30) / math.log(10) if log else 29 / 0.9, rel=1e-6)


def test_what_is_no_number_is_left_out_and_negative_values_are_not_logarithmic() -> None:
    spots = [Spot("a", "one", 1, -2), Spot("b", "two", 3, math.nan), Spot("c", "one", 2, 5, math.nan, 7)]
    canvas = draw_scatter(spots, "x", "y", 400, log_x=True, log_y=True)
    points = [mark for mark in canvas.marks if isinstance(mark, Marker) and mark.title]
    assert [mark.title for mark in points] == ["a: 1, −2", "c: 2, 5"]
