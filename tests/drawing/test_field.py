from __future__ import annotations

import math
import re

import pytest

from lit_consistency.drawing.canvas import Text, svg_file, text_width
from lit_consistency.drawing.charts.field import Field, Mark, contour, contour_levels, draw_field

N = [i / 10 for i in range(-20, 21)]


def bowl(x: float, y: float) -> float:
    return x * x + y * y


def test_the_contour_of_a_bowl_is_a_circle() -> None:
    field = Field(N, N, [[bowl(x, y) for x in N] for y in N])
    pieces = list(contour(field, 1.0))
    # linear within a cell of a tenth, so the circle is met to a part of its square
    assert all(math.hypot(*end) == pytest.approx(1, abs=0.005) for ends in pieces for end in ends)
    assert sum(math.dist(*ends) for ends in pieces) == pytest.approx(2 * math.pi, rel=0.01)
    assert not list(contour(field, 9.0))


def test_a_plane_has_straight_contours_and_what_is_unknown_has_none() -> None:
    field = Field([0, 1, 2], [0, 1], [[0, 1, 2], [0, 1, math.nan]])
    pieces = list(contour(field, 0.25))
    assert all(x == 0.25 for ends in pieces for x, _ in ends)
    assert sum(math.dist(*ends) for ends in pieces) == 1
    assert len(list(contour(field, 1.5))) == 1  # of the four triangles, the one that knows its corners


def test_levels_lie_within_and_close_to_the_bottom() -> None:
    assert contour_levels([0.0, 64.0]) == [1, 2, 4, 8, 16, 32]
    assert contour_levels([3.0, 3.0]) == []


def test_a_picture_shows_every_number_and_every_place() -> None:
    field = Field(N, N[::2], [[bowl(x, y) for x in N] for y in N[::2]], [Mark("base", 0, 0), Mark("model", 1.5, 1)])
    text = svg_file(draw_field(field, "along", "across", 400), "field")
    for word in ("base", "model", "along", "across", "1.5, 1: 3.25"):
        assert word in text
    picture = draw_field(field, "along", "across", 400)
    # one unit is as long on either axis
    marks = {mark.title: (mark.x, mark.y) for mark in picture.marks if getattr(mark, "shape", None)}
    across, up = marks["model"][0] - marks["base"][0], marks["base"][1] - marks["model"][1]
    assert across / 1.5 == pytest.approx(up / 1.0, rel=0.1)
    assert not re.search("nan|inf", text.replace("information", ""))


def test_names_of_two_places_do_not_lie_on_one_another() -> None:
    names = ["base", "a model with a long name", "another one"]
    places = [(-0.2, 0.0), (0.3, 0.0), (0.3, 0.1)]
    field = Field(N, N, [[bowl(x, y) for x in N] for y in N], [Mark(n, *p) for n, p in zip(names, places, strict=True)])
    texts = [mark for mark in draw_field(field, "x", "y", 400).marks if isinstance(mark, Text) and mark.bold]
    assert len(texts) == 3
    boxes = []
    for text in texts:
        width = text_width(text.text, text.size)
        start = text.x - (width if text.anchor == "end" else 0)
        boxes.append((start, start + width, text.y))
    for i, (a, b, y) in enumerate(boxes):
        assert not any(a < d and c < b and abs(y - z) < 12 for c, d, z in boxes[i + 1 :])
