"""A picture as a list of marks in pixels, and its SVG.

Charts put marks on a canvas; how they are painted is decided later: on the page with CSS variables that follow light
and dark (``svg``), in a file with fixed colours (``svg_file``), or as pixels (png.py). So all three show the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import groupby

from lit_consistency.drawing.palette import colors

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line through points."""

    points: Sequence[Point]
    color: str
    width: float
    dash: tuple[float, ...] = ()
    opacity: float = 1.0
    series: str = ""


@dataclass(frozen=True)
class Area:
    """A filled polygon; ``title`` is what the pointer shows."""

    points: Sequence[Point]
    color: str
    opacity: float
    title: str = ""
    series: str = ""


@dataclass(frozen=True)
class Marker:
    """A shape around a point; ``link`` names the cell that a click opens."""

    x: float
    y: float
    shape: str
    color: str
    size: float = 3.5
    filled: bool = True
    title: str = ""
    link: str = ""
    series: str = ""
    opacity: float = 1.0


@dataclass(frozen=True)
class Dots:
    """Many small round points, which are one element of the picture."""

    points: Sequence[Point]
    color: str
    size: float
    opacity: float
    series: str = ""


@dataclass(frozen=True)
class Text:
    """A line of text; ``anchor`` is start, middle or end, ``y`` its base line, ``rotate`` in degrees clockwise."""

    x: float
    y: float
    text: str
    color: str = "ink"
    size: float = 12.0
    anchor: str = "start"
    bold: bool = False
    rotate: float = 0.0
    title: str = ""
    series: str = ""


Mark = Line | Area | Marker | Dots | Text


@dataclass
class Canvas:
    """A picture of ``width`` x ``height`` pixels.

    Args:
        width: fixed by the caller; ``height`` grows with what is put below one another.
        height: in pixels.
        marks: in the order of painting.
    """

    width: float
    height: float
    marks: list[Mark] = field(default_factory=list)
    _written: tuple[int, str] = field(default=(0, ""), init=False, repr=False, compare=False)

    def add(self, *marks: Mark) -> None:
        """Paint on top of what is there."""
        self.marks.extend(marks)

    @property
    def body(self) -> str:
        """Its marks as elements of SVG, colours as CSS variables; written once: a page and a file show the same."""
        if self._written[0] != len(self.marks):  # marks are only added
            self._written = len(self.marks), _body(self.marks)
        return self._written[1]

    def box(self, left: float, top: float, width: float, height: float, color: str, opacity: float, title: str) -> None:
        """A filled rectangle."""
        right, bottom = left + width, top + height
        self.add(Area([(left, top), (right, top), (right, bottom), (left, bottom)], color, opacity, title))


# -------------------- text


def text_width(text: str, size: float) -> float:
    """How wide a text is, at most: the widths of DejaVu Sans, which is wider than what most readers' systems have."""
    return size * sum(map(_em, text))


def _em(character: str) -> float:
    """Width of one character in units of the size of the font."""
    # measured on DejaVu Sans, rounded up
    if unicodedata.east_asian_width(character) in "WF":
        return 1.05
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0.0
    if character in "iljI.,:;|!'()[]/- ":
        return 0.40
    return 0.99 if character in "mwMW@%—" else 0.75 if character.isupper() else 0.65


def shorten(text: str, size: float, width: float) -> str:
    """The text if it fits into ``width``, else its beginning and its end, where names of one study differ."""
    if text_width(text, size) <= width:
        return text
    # no more characters than narrow ones would fit: names may be thousands long
    keep = min(len(text), int(width / (0.4 * size)) + 1)
    while keep > 2 and text_width(short := f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}", size) > width:
        keep -= 1
    return short if keep > 2 else "…"


# -------------------- SVG


def svg(canvas: Canvas, title: str, description: str = "") -> str:
    """The picture for the page: its colours are CSS variables of the page.

    Args:
        canvas: the picture.
        title: what it shows, read aloud to those who do not see it.
        description: more of the same.
    """
    # no width and height: the page decides how large it is shown
    return (
        f'<svg viewBox="0 0 {canvas.width:.0f} {canvas.height:.0f}" role="img" aria-label="{_text(title)}">'
        f"<title>{_text(title)}</title>{f'<desc>{_text(description)}</desc>' if description else ''}{canvas.body}</svg>"
    )


def svg_file(canvas: Canvas, title: str) -> str:
    """The picture as a file of its own, on white, under its title; readers such as Inkscape know no CSS variables."""
    whole, paint = _frame(canvas, title), colors()
    size = f'width="{whole.width:.0f}" height="{whole.height:.0f}" viewBox="0 0 {whole.width:.0f} {whole.height:.0f}"'
    # what the page shows, written once: only its place and its colours are others
    body = f'{whole.body}<g transform="translate({MARGIN:.0f} {HEAD:.0f})">{canvas.body}</g>'
    body = _VARIABLE.sub(lambda found: f'="{paint[found[1]]}"', body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}"><title>{_text(title)}</title>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{body}</svg>\n'
    )


MARGIN, HEAD = 16.0, 44.0
"""Pixels around a picture that is a file, and those above it, for its title."""
_VARIABLE = re.compile(r'="var\(--([\w-]+)\)"')  # of an attribute: a text that says the same has its quotes escaped


def _frame(canvas: Canvas, title: str) -> Canvas:
    """The title of a picture, and the size of both."""
    heading = Text(MARGIN, 28, shorten(title, 14, canvas.width), size=14, bold=True)
    return Canvas(canvas.width + 2 * MARGIN, canvas.height + HEAD + MARGIN, [heading])


def with_title(canvas: Canvas, title: str) -> Canvas:
    """The same picture with a margin, and its title above."""
    whole = _frame(canvas, title)
    whole.add(*(moved(mark, MARGIN, HEAD) for mark in canvas.marks))
    return whole


def moved(mark: Mark, dx: float, dy: float) -> Mark:
    """The mark elsewhere."""
    if isinstance(mark, Marker | Text):
        return replace(mark, x=mark.x + dx, y=mark.y + dy)
    return replace(mark, points=[(x + dx, y + dy) for x, y in mark.points])


def _body(marks: Iterable[Mark]) -> str:
    """Elements of all marks; those of one series share a group, so that a script can dim the others."""
    parts = []
    for series, run in groupby(marks, lambda mark: mark.series):
        elements = "".join(map(_element, run))
        parts.append(f'<g data-series="{_text(series)}">{elements}</g>' if series else elements)
    return "".join(parts)


def _element(mark: Mark) -> str:
    color = f"var(--{mark.color})"
    if isinstance(mark, Line):
        dash = f' stroke-dasharray="{" ".join(map(_number, mark.dash))}"' if mark.dash else ""
        faint = f' opacity="{mark.opacity:.2g}"' if mark.opacity < 1 else ""
        look = f'fill="none" stroke="{color}" stroke-width="{mark.width:.3g}"{dash}{faint}'
        return f'<path d="{_path(mark.points)}" {look}/>'
    if isinstance(mark, Area):
        shape = f'd="{_path(mark.points)}z" fill="{color}" fill-opacity="{mark.opacity:.3g}"'
        return f"<path {shape}><title>{_text(mark.title)}</title></path>" if mark.title else f"<path {shape}/>"
    if isinstance(mark, Dots):
        # lines of no length with round ends are points: ten bytes each instead of forty
        d = "".join(f"M{_number(x)} {_number(y)}h0" for x, y in mark.points)
        stroke = f'stroke="{color}" stroke-width="{mark.size:.3g}" stroke-linecap="round"'
        return f'<path d="{d}" fill="none" {stroke} opacity="{mark.opacity:.2g}"/>'
    if isinstance(mark, Marker):
        return _marker(mark, color, "var(--paper)")
    turn = f' transform="rotate({mark.rotate:.0f} {_number(mark.x)} {_number(mark.y)})"' if mark.rotate else ""
    anchor = f' text-anchor="{mark.anchor}"' if mark.anchor != "start" else ""
    weight = ' font-weight="600"' if mark.bold else ""
    hover = f"<title>{_text(mark.title)}</title>" if mark.title else ""
    return (
        f'<text x="{_number(mark.x)}" y="{_number(mark.y)}" font-size="{mark.size:.3g}" fill="{color}"'
        f"{anchor}{weight}{turn}>{hover}{_text(mark.text)}</text>"
    )


def _marker(mark: Marker, color: str, paper: str) -> str:
    strokes = outline(mark)
    open_shape = mark.shape in ("cross", "plus", "star")
    d = "".join(_path(points) + ("" if open_shape else "z") for points in strokes)
    # a rim of the background's colour tells markers that touch one another apart
    if open_shape:
        look = f'fill="none" stroke="{color}" stroke-width="1.8"'
    else:
        look = f'fill="{color if mark.filled else paper}" stroke="{paper if mark.filled else color}"'
        look += "" if mark.filled else ' stroke-width="1.6"'
    look += f' opacity="{mark.opacity:.2g}"' if mark.opacity < 1 else ""
    link = f' data-cell="{_text(mark.link)}"' if mark.link else ""
    if mark.shape == "circle":
        tag, shape = "circle", f'cx="{_number(mark.x)}" cy="{_number(mark.y)}" r="{mark.size:.2g}"'
    else:
        tag, shape = "path", f'd="{d}"'
    hover = f"><title>{_text(mark.title)}</title></{tag}>" if mark.title else "/>"
    return f"<{tag} {shape} {look}{link}{hover}"


def outline(mark: Marker) -> list[list[Point]]:
    """Corners of a marker's shape, its area near that of the circle; a cross, a plus and a star are open strokes."""
    x, y, r = mark.x, mark.y, mark.size
    if mark.shape in ("cross", "plus", "star"):
        diagonal = [[(x - r, y - r), (x + r, y + r)], [(x - r, y + r), (x + r, y - r)]]
        upright = [[(x - 1.3 * r, y), (x + 1.3 * r, y)], [(x, y - 1.3 * r), (x, y + 1.3 * r)]]
        return {"cross": diagonal, "plus": upright, "star": diagonal + upright}[mark.shape]
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(0.0, -1.25), (1.15, 0.85), (-1.15, 0.85)],
        "down": [(0.0, 1.25), (-1.15, -0.85), (1.15, -0.85)],
        "diamond": [(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
    }
    return [[(x + r * dx, y + r * dy) for dx, dy in corners.get(mark.shape, [])]]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)


def _number(value: float) -> str:
    """A tenth of a pixel is fine enough, and a third of the bytes."""
    return f"{value:.1f}".removesuffix(".0")


_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def _text(text: str) -> str:
    """Escaped for XML, in which control characters and lone surrogates may not stand at all."""
    return escape(_NO_XML.sub("\ufffd", text), quote=True)
