from __future__ import annotations

import math
import random
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest

from lit_consistency.drawing.canvas import Canvas, Marker, Text, shorten, svg, svg_file, text_width
from lit_consistency.drawing.frame import Frame
from lit_consistency.drawing.palette import SERIES_DARK, SERIES_LIGHT, colors, style
from lit_consistency.drawing.scales import Scale, linear, logarithmic, short_number, sparse
from lit_consistency.study.report.charts.front import at_least, share_of, staircase
from tests.study.report.synthetic import HOSTILE, surfaces

# Machado, Oliveira & Fernandes 2009, A Physiologically-based Model for Simulation of Color Vision Deficiency, table 1,
# severity 1.0, on linear RGB
VISION = {
    "full": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear_rgb(color: str) -> np.ndarray:
    srgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB under D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    """WCAG 2.1."""
    low, high = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear_rgb(c)) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("series", [SERIES_LIGHT, SERIES_DARK], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_every_reader_tells_the_series_apart(series: tuple[str, ...], vision: str) -> None:
    seen = [lab(np.clip(np.array(VISION[vision]) @ linear_rgb(color), 0, 1)) for color in series]
    for i, j in combinations(range(len(series)), 2):
        # a difference of 2.3 is just noticeable side by side; the first four, which most pictures need, differ more
        least = 20 if max(i, j) < 4 else 15
        assert np.linalg.norm(seen[i] - seen[j]) > least, (vision, series[i], series[j])


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_the_page(dark: bool) -> None:
    paint = colors(dark)
    for name in [f"series{i}" for i in range(8)] + ["good", "bad"]:
        assert contrast(paint[name], paint["paper"]) >= 3, name
    for name in ("ink", "muted", "accent", "warn"):
        assert contrast(paint[name], paint["paper"]) >= 4.5, name
    assert contrast(paint["muted"], paint["panel"]) >= 4.5


def test_sixty_four_series_look_different() -> None:
    assert len({style(i)[:2] for i in range(64)}) == 64


@pytest.mark.parametrize("seed", range(20))
def test_ticks_of_a_linear_axis_are_round_even_and_inside(seed: int) -> None:
    draw = random.Random(seed)
    values = [draw.uniform(-1, 1) * 10 ** draw.uniform(-4, 4) for _ in range(5)]
    scale = linear([*values, math.nan, math.inf]).between(0, 300)
    gaps = np.diff(scale.ticks)
    assert 2 <= len(scale.ticks) <= 9
    assert np.allclose(gaps, gaps[0], rtol=1e-6)
    digits = gaps[0] / 10 ** math.floor(math.log10(gaps[0]) + 1e-9)
    assert min(abs(digits - d) for d in (1, 2, 2.5, 5, 10)) < 1e-6
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    # what is written beside the axis is the number that stands there
    for tick, label in zip(scale.ticks, scale.labels(), strict=True):
        assert float(label.replace("−", "-")) == pytest.approx(tick, rel=1e-2, abs=1e-6 * gaps[0])
    assert scale(values[0]) == pytest.approx(300 * (values[0] - scale.low) / (scale.high - scale.low))


def test_a_logarithmic_axis_has_room_for_no_decay_at_all() -> None:
    scale = logarithmic([0.0, 0.01, 0.1, 1.0, math.nan]).between(0, 400)
    places = [scale(value) for value in (0.0, 0.01, 0.1, 1.0)]
    assert np.diff(places)[1] == pytest.approx(np.diff(places)[2])  # equal ratios
    assert places[0] < places[1]
    assert places[0] >= 0
    assert scale.labels() == ["0", "0.01", "0.1", "1"]
    assert scale.holds(0.0)
    assert not logarithmic([0.1, 1.0]).holds(0.0)
    assert not logarithmic([-1.0, 1.0]).log


@pytest.mark.parametrize("log", [True, False])
def test_labels_do_not_touch(log: bool) -> None:
    scale = logarithmic([10 ** (-k / 9) for k in range(40)]) if log else linear([-3, 40], n=40)
    scale = scale.between(20, 380)
    kept = sparse(scale, [30.0] * len(scale.ticks), 8)
    places = [kept(tick) for tick in kept.ticks]
    assert min(np.diff(places)) >= 38 - 1e-9
    assert len(kept.ticks) >= 5
    if not log:
        assert 0.0 in kept.ticks
        assert np.allclose(np.diff(places), np.diff(places)[0])


@pytest.mark.parametrize(
    ("value", "text"),
    [(3e-4, "3e-4"), (0.0, "0"), (-0.05, "−0.05"), (-3e-4, "−3e-4"), (0.9, "0.9"), (1500.0, "1500"), (1.5e6, "1.5e6")]
    + [(math.nan, "–"), (-math.inf, "−∞"), (300.0, "300")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


def test_a_long_name_keeps_both_ends() -> None:
    name = "finetune-" + "x" * 5000 + "-seed9"
    short = shorten(name, 12, 150)
    assert text_width(short, 12) <= 150
    assert short.startswith("fine")
    assert short.endswith("seed9")
    assert shorten("日本語", 12, 100) == "日本語"


def test_hostile_names_leave_the_picture_well_formed() -> None:
    canvas = Canvas(100, 50)
    name = f"{HOSTILE} & \"quoted\" \x00\x1b[31m \ud800 'x'"
    canvas.add(Text(1, 1, name, title=name), Marker(5, 5, "square", "accent", title=name, link=name, series=name))
    for text in (svg(canvas, name, name), svg_file(canvas, name)):
        root = ElementTree.fromstring(text)
        assert not [e for e in root.iter() if e.tag.endswith("script")]
        assert "window.hostile" in "".join(root.itertext())


@pytest.mark.parametrize("seed", range(10))
def test_a_surface_is_drawn_where_a_share_of_the_seeds_attains(seed: int) -> None:
    """The height of the drawn line over any learning is what that share of the seeds forgets at least there."""
    draw = random.Random(seed)
    fronts = []
    for _ in range(5):
        points = [(draw.random(), draw.random()) for _ in range(6)]
        fronts.append(sorted(p for p in points if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)))
    identity = Frame(Canvas(1, 1), Scale(0, 1, ()).between(0, 1), Scale(0, 1, ()).between(0, 1))
    named = sorted((share_of(name), corners) for name, corners in surfaces(fronts).items())
    for share in (0.2, 0.5, 0.9):
        line = staircase(identity, at_least(named, share))
        needed = math.ceil(share * 5 - 1e-9)
        for _ in range(50):
            x = draw.random()
            forgets = sorted(min((f for le, f in front if le >= x), default=math.inf) for front in fronts)[needed - 1]
            spans = [a[1] for a, b in zip(line, line[1:], strict=False) if a[1] == b[1] and a[0] < x <= b[0]]
            assert spans == ([forgets] if math.isfinite(forgets) else [])


def test_a_share_is_a_fraction_a_number_or_the_median() -> None:
    assert [share_of(name) for name in ("1/10", "0.25", "median", "10/10")] == [0.1, 0.25, 0.5, 1.0]
    with pytest.raises(ValueError, match="surfaces: 'best'; expected a share"):
        share_of("best")
