from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from lit_consistency.drawing import png
from lit_consistency.drawing.canvas import Area, Line, Marker, Text, text_width
from lit_consistency.drawing.charts.heat_map import shade
from lit_consistency.drawing.figure import write_figures
from lit_consistency.study.report.charts.curves import StepCurves, pieces
from lit_consistency.study.report.content import Content, Front, FrontPoint, HeatMap, RateCurve
from lit_consistency.study.report.embedded import named_metric
from lit_consistency.study.report.figures import figures, step_curves
from tests.study.report.synthetic import FORGETTING, HOSTILE, LEARNING, NAN, content


@pytest.fixture(scope="module")
def study() -> Content:
    return content(seeds=10)


def test_every_kind_is_drawn_and_nothing_leaves_its_picture(study: Content) -> None:
    drawn = figures(study)
    assert {f.section for f in drawn} == {"effects", "fronts", "rates", "steps", "heat_maps", "variances"}
    assert len({f.name for f in drawn}) == len(drawn)
    for canvas in [c for f in drawn for c in (f.canvas, f.phone) if c]:
        for mark in canvas.marks:
            if isinstance(mark, Text) and not mark.rotate:
                width = text_width(mark.text, mark.size)
                left = mark.x - width * {"start": 0, "middle": 0.5, "end": 1}[mark.anchor]
                # widths are upper bounds, so a label may seem to reach a little out
                assert left >= -6
                assert left + width <= canvas.width + 8, mark
                assert 0 < mark.y <= canvas.height
            elif isinstance(mark, Marker):
                assert 0 <= mark.x <= canvas.width
                assert 0 <= mark.y <= canvas.height


def test_what_is_left_out_of_a_picture_is_said(study: Content) -> None:
    by_title = {f.title: f for f in figures(study)}
    dominated_far = sum(p.forgetting == 7.5 for f in study.fronts if f.panel == "AdamW base" for p in f.points)
    assert f"{dominated_far} points that others dominate lie outside" in by_title["AdamW base"].caption
    rates = [r for r in study.rates if r.panel == "AdamW base"]
    lost = sum(math.isnan(v) for r in rates for rows in r.singles.values() for _, v in rows)
    assert f"no numbers: {lost} single values" in by_title[f"AdamW base: {FORGETTING} over lr"].caption


def test_a_mark_is_written_beside_the_group_it_holds_for(study: Content) -> None:
    picture = next(f for f in figures(study) if f.section == "rates" and f.title.startswith("Muon base"))
    texts = [m.text for m in picture.canvas.marks if isinstance(m, Text)]
    assert "MoFO  ⚠ best at the edge" in texts
    assert any(text.startswith("LoRA") and text.endswith("⚠ level not bracketed") for text in texts)
    assert [row[2] for row in picture.rows] == ["bracketed", "bracketed", "best at the edge", "level not bracketed"]


def test_a_group_looks_the_same_in_every_picture(study: Content) -> None:
    looks: dict[str, set[tuple[str, str]]] = {}
    for figure in figures(study):
        if figure.section in ("fronts", "rates", "steps"):
            for mark in figure.canvas.marks:
                if isinstance(mark, Marker) and mark.series and mark.shape != "cross" and mark.size < 8:
                    looks.setdefault(mark.series, set()).add((mark.color, mark.shape))
    assert len(looks) == 4
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == 4


def test_curves_are_of_the_best_rate_and_diverged_cells_are_in_no_mean(study: Content) -> None:
    base, group = "AdamW", "Muon"
    rates = [
        replace(r, best=8e-3) if (r.panel, r.group) == (f"{base} base", group) else r for r in study.rates
    ]  # the largest rate, at which seeds 0, 3, 6 and 9 diverged
    found = next(rows for panel, metric, rows in step_curves(replace(study, rates=rates)) if metric == FORGETTING)
    curve = next(row for row in found if row.group == group)
    cells = [c for c in study.cells if c.coordinates.get("base") == base and c.coordinates.get("finetuner") == group]
    cells = [c for c in cells if c.coordinates["lr"] == "0.008"]
    assert set(curve.finished) == {c.name for c in cells if c.state == "finished"}
    assert set(curve.stopped) == {c.name for c in cells if c.state == "diverged"}
    assert len(curve.stopped) == 4
    ends = [c.metrics[FORGETTING] for c in cells if c.state == "finished"]
    step, mean, low, high = curve.mean()[-1]
    assert (step, low, high) == (300.0, min(ends), max(ends))
    assert mean == pytest.approx(sum(ends) / 6)


def test_a_line_does_not_bridge_what_was_not_measured() -> None:
    assert pieces([(1, 1.0), (2, NAN), (3, 2.0), (4, 3.0), (5, math.inf)]) == [[(1, 1.0)], [(3, 2.0), (4, 3.0)]]
    curve = StepCurves("g", {"a": [(1, 1.0), (2, 5.0)], "b": [(1, 3.0), (2, NAN)]})
    assert curve.mean() == [(1, 2.0, 1.0, 3.0)]


def test_stages_are_the_panels_without_fronts(study: Content) -> None:
    found = step_curves(replace(study, fronts=[], learning="val/loss"))
    assert [(p, m, [r.group for r in rows]) for p, m, rows in found][0] == ("pretrain", "val/loss", ["AdamW", "Muon"])


@pytest.mark.parametrize("higher", [True, False])
def test_colours_say_better_and_worse(higher: bool) -> None:
    signed = HeatMap("t", "r", ["a"], "c", ["x", "y", "z"], [[-2.0, 1.0, NAN]], [[NAN] * 3], higher)
    assert [shade(signed, v)[0] for v in (-2.0, 1.0, NAN)] == (["bad", "good"] if higher else ["good", "bad"]) + [
        "muted"
    ]
    assert shade(signed, -2.0)[1] == pytest.approx(2 * shade(signed, 1.0)[1])
    positive = replace(signed, values=[[1.0, 3.0, NAN]])
    assert (shade(positive, 3.0)[1] > shade(positive, 1.0)[1]) is higher


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single_things_are_drawn(n: int) -> None:
    point = FrontPoint(0.5, 0.1, "0", "a", "end", "lr 1", True)
    front = Front("p", "g", [point] * n, {}, (NAN, NAN, NAN), (0.0, 1.0))
    rate = RateCurve("p", "g", "lr", "m", [(0.0, 1.0, NAN, NAN)] * n, {}, NAN)
    heat = HeatMap("t", "r", ["a"] * n, "c", ["x"], [[NAN]] * n, [[NAN]] * n)
    drawn = figures(Content("t", "", "", "", {}, [], fronts=[front], rates=[rate], heat_maps=[heat]))
    assert [f.section for f in drawn] == ["fronts", "rates", "heat_maps"]
    lines = [m for m in drawn[0].canvas.marks if isinstance(m, Line) and m.series == "g" and m.width == 2.2]
    assert len(lines) == n


def test_a_surface_that_too_few_seeds_reach_is_drawn_nowhere() -> None:
    points = [FrontPoint(0.5, 0.1, "0", "a", "end", "lr 1", True), FrontPoint(0.9, 0.3, "0", "b", "end", "lr 2", True)]
    corners = [(0.5, 0.1), (0.9, 0.3)]
    # of three seeds one has points: the median seed reaches nothing
    front = Front("p", "g", points, {"1/3": corners, "2/3": [], "3/3": [], "median": []}, (NAN, NAN, NAN), (0.0, 1.0))
    picture = figures(Content("t", "", "", "", {}, [], fronts=[front]))[0].canvas
    lines = [m for m in picture.marks if isinstance(m, Line) and m.series == "g" and m.width == 2.2]
    assert lines == []
    bands = [m for m in picture.marks if isinstance(m, Area) and m.series == "g" and m.opacity > 0.01]
    # from the best seed to nothing, up to the corner of the frame; two steps of two points, the upper edge, the corner
    assert [len(band.points) for band in bands[:1]] == [2 * len(corners) + 2]


def test_a_metric_is_known_by_a_sentence_that_names_it() -> None:
    names = ["exact", "retain/old.exact", "retain/old.exact.stderr", "kl"]
    assert named_metric("change of retain/old.exact, towards worse", names) == "retain/old.exact"
    assert named_metric("exact", names) == "exact"
    assert named_metric("forgetting", names) is None


def test_files_are_what_the_study_has_and_only_what_changed_is_drawn(
    study: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [f for f in figures(study) if f.section in ("fronts", "heat_maps")]
    (tmp_path / "fronts-of-an-earlier-study.png").write_bytes(b"old")
    assert write_figures(drawn, tmp_path) == []
    assert {p.name for p in tmp_path.iterdir()} == {f"{f.name}.{e}" for f in drawn for e in ("svg", "png")}
    for f in drawn:
        root = ElementTree.parse(tmp_path / f"{f.name}.svg").getroot()
        assert HOSTILE not in ElementTree.tostring(root, encoding="unicode")
        assert "var(" not in (tmp_path / f"{f.name}.svg").read_text()
        with Image.open(tmp_path / f"{f.name}.png") as image:
            assert image.width == pytest.approx(2 * float(root.attrib["width"]), abs=2)
            # lines, text and colours are there
            assert len(image.getcolors(1 << 24)) > 50
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    (tmp_path / f"{drawn[0].name}.svg").write_text("another picture")
    write_figures(drawn, tmp_path)
    changed = {p.name for p in tmp_path.iterdir() if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {f"{drawn[0].name}.svg", f"{drawn[0].name}.png"}
    monkeypatch.setattr(png, "can_draw", lambda: False)
    assert "no PNG of the figures: matplotlib is absent" in write_figures(drawn, tmp_path / "without")[0]
    assert {p.suffix for p in (tmp_path / "without").iterdir()} == {".svg"}


def test_axes_are_named_by_the_metrics(study: Content) -> None:
    front = next(f for f in figures(study) if f.section == "fronts")
    texts = " ".join(m.text for m in front.canvas.marks if isinstance(m, Text))
    assert f"{LEARNING} (more is better →)" in texts
    assert f"↓ {FORGETTING} (less is better)" in texts
