from __future__ import annotations

import math

from lit_consistency.analysis.core.curves import _positive, curves
from lit_consistency.drawing.canvas import svg_file
from lit_consistency.drawing.charts.lines import Series


def test_a_logarithmic_axis_shows_what_is_positive() -> None:
    """A value that is not leaves a gap, and a band ends at the lowest number there is; the table keeps all."""
    (row,) = _positive([Series("a", [(1, 0.5), (2, -0.1), (3, 2.0)], [0.4, -0.3, -1.0], [0.6, 0.1, 3.0])])
    assert row.points[0] == (1, 0.5)
    assert math.isnan(row.points[1][1])
    assert (list(row.low), list(row.high)) == ([0.4, 0.1, 0.1], [0.6, 0.1, 3.0])
    rows = [{"x": x, "y": y, "g": "a"} for x, y in ((1, 0.5), (2, -0.1), (3, 200.0))]
    figure = curves(rows, "x", "y", "g", "title", "caption", log_y=True)
    assert figure.rows == (("1", "0.5"), ("2", "−0.1"), ("3", "200"))
    assert ">100<" in svg_file(figure.canvas, "title")  # a tick of decades: the axis is logarithmic


def test_without_anything_positive_the_axis_is_linear() -> None:
    rows = [{"x": x, "y": -x, "y_low": -x - 0.1, "y_high": -x + 0.1, "g": "a"} for x in (1.0, 2.0)]
    figure = curves(rows, "x", "y", "g", "title", "caption", log_y=True)
    assert "−1.5" in svg_file(figure.canvas, "title")
    assert "[−2.1, −1.9]" in svg_file(figure.canvas, "title")
