"""The picture of a dial: every model at its place, its intervals around it, the bound across."""

from __future__ import annotations

import math

import pytest

from lit_consistency.drawing.canvas import Line, Marker, Text
from lit_consistency.drawing.charts.trade_off import LOOKS, Panel, Stop, draw_trade_off

NAN = math.nan
STOPS = [
    Stop("base", "base", (0.0, NAN, NAN), (0.0, NAN, NAN)),
    Stop("0.5", "best", (0.4, 0.3, 0.5), (0.1, 0.0, 0.2)),
    Stop("1", "beyond", (0.8, 0.7, 0.9), (0.3, 0.2, 0.4)),
    Stop("2", "beyond", (NAN, NAN, NAN), (NAN, NAN, NAN)),
]


def test_models_stand_where_their_numbers_are() -> None:
    canvas = draw_trade_off({"old": Panel(STOPS, "exact", 0.15)}, "learned", 400)
    shown = [mark for mark in canvas.marks if isinstance(mark, Marker) and mark.title]
    assert [mark.title.split(":")[0] for mark in shown] == ["base", "0.5", "1"]
    (x0, y0), (x1, y1), (x2, y2) = ((mark.x, mark.y) for mark in shown)
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx((y1 - y2) / 2)
    lines = [mark for mark in canvas.marks if isinstance(mark, Line)]
    (bound,) = [line for line in lines if line.dash]
    assert [y for _, y in bound.points] == pytest.approx([y1 - (y0 - y1) / 2] * 2)
    quarter = (x1 - x0) / 4
    across = [line.points for line in lines if line.series == "best" and line.points[0][1] == line.points[1][1] == y1]
    assert [x for x, _ in across[0]] == pytest.approx([x1 - quarter, x1 + quarter])
    texts = [mark.text for mark in canvas.marks if isinstance(mark, Text)]
    assert "at most 0.15" in texts
    assert {LOOKS[said][0] for said in ("base", "best", "beyond")} <= set(texts)
    assert LOOKS["within"][0] not in texts


def test_two_panels_stand_side_by_side() -> None:
    one, two, three = (
        draw_trade_off({f"set {i}": Panel(STOPS, "exact") for i in range(n)}, "learned", 800) for n in (1, 2, 3)
    )
    assert one.height == two.height < three.height
