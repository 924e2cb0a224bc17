from __future__ import annotations

import math

import pytest

from lit_consistency.drawing.canvas import Line, Marker, Text
from lit_consistency.drawing.charts.dots import Dot, draw_dots
from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.drawing.charts.panels import both_arrangements
from lit_consistency.drawing.scales import decades

NAN = math.nan


def test_a_line_is_broken_where_nothing_was_measured() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, NAN), (3.0, 4.0)]
    canvas = draw_lines([Series("a", points), Series("b", [(0.0, 3.0), (3.0, 3.0)])], "layer", "rank", 400)
    drawn = [mark for mark in canvas.marks if isinstance(mark, Line) and mark.series == "a" and mark.width == 2]
    # the legend's sample, and two pieces
    assert sorted(len(mark.points) for mark in drawn) == [1, 2, 2]
    hovers = [mark.title for mark in canvas.marks if isinstance(mark, Marker) and mark.title]
    assert "a, layer 1: 2" in hovers
    assert sum(hover.startswith("a,") for hover in hovers) == 3


def test_every_mark_lies_within_the_picture_on_both_kinds_of_axes() -> None:
    points = [(10.0**k, 10.0 ** (2 * k - 3)) for k in range(5)]
    low, high = [y / 2 for _, y in points], [2 * y for _, y in points]
    for log in (False, True):
        canvas = draw_lines(
            [Series("a", points, low, high)], "radius", "rise", 400, log_x=True, log_y=log, levels={"own": 3.0}
        )
        for mark in canvas.marks:
            if isinstance(mark, Marker | Text):
                assert 0 <= mark.x <= canvas.width
                assert 0 <= mark.y <= canvas.height


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1.0, 1000.0], (1.0, 10.0, 100.0, 1000.0)),
        ([2e-3, 3e-2], (2e-3, 5e-3, 1e-2, 2e-2)),
        ([1.1, 1.3], (1.1, 1.2, 1.3)),
    ],
)
def test_decades_have_round_ticks(values: list[float], ticks: tuple[float, ...]) -> None:
    for tick in ticks:
        assert any(math.isclose(tick, other) for other in decades(values).ticks), tick
    assert decades(values).holds(min(values))
    assert decades(values).holds(max(values))


def test_rows_and_groups_keep_their_order_and_no_dot_hides_another() -> None:
    dots = [Dot(row, group, 1.0, 0.5, 1.5) for row in ("q", "k") for group in ("adamw", "muon")]
    canvas = draw_dots([*dots, Dot("v", "adamw", NAN)], "stable rank", 400)
    markers = [mark for mark in canvas.marks if isinstance(mark, Marker) and mark.title]
    assert [mark.title.partition(":")[0] for mark in markers] == ["q, adamw", "q, muon", "k, adamw", "k, muon"]
    heights = [mark.y for mark in markers]
    assert heights == sorted(heights)
    assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) >= 8


def test_panels_share_one_legend_and_stay_within_the_picture() -> None:
    panels = {
        name: [Series(model, [(0.0, value), (1.0, 2 * value)]) for model, value in (("a", 1.0), ("b", 3.0))]
        for name, _ in (("attn.qkv", 0), ("attn.proj", 1), ("mlp.fc", 2))
    }
    for canvas in both_arrangements(panels, "layer", "kurtosis"):
        texts = [mark.text for mark in canvas.marks if isinstance(mark, Text)]
        assert [texts.count(name) for name in (*panels, "a", "b")] == [1, 1, 1, 1, 1]
        assert all(0 <= m.x <= canvas.width and 0 <= m.y <= canvas.height for m in canvas.marks if isinstance(m, Text))
        colors = {mark.color for mark in canvas.marks if isinstance(mark, Line) and mark.series == "b"}
        assert len(colors) == 1


def test_there_is_no_tick_between_whole_numbers() -> None:
    canvas = draw_lines([Series("a", [(0.0, 5.0), (1.0, 7.0)])], "layer", "rank", 400)
    assert [mark.text for mark in canvas.marks if isinstance(mark, Text) and mark.anchor == "middle"] == ["0", "1"]
