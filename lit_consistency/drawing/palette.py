"""Colours, shapes and dashes; the same on the page (light and dark) and in files.

A series is told apart three ways: by colour, by the shape of its markers and by the dashes of its line, so that a
reader who sees few colours, or a printer that knows none, still tells it. The colours start from Okabe and Ito's
(https://jfly.uni-koeln.de/color) and were moved until every pair also differs under simulated protanopia, deuteranopia
and tritanopia, and each stands out from its background by a contrast of 3 (WCAG 2.1, 1.4.11); a test repeats both.
"""

from __future__ import annotations

from typing import NamedTuple

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f6f7f9",
    "ink": "#1a1d22",
    "muted": "#59616d",
    "line": "#c6ccd4",
    "grid": "#e9ecf0",
    "accent": "#1256ce",
    "good": "#1256ce",
    "bad": "#c2560a",
    "warn": "#9a5a00",
}
"""What a colour is for -> its value by day."""
DARK = {
    "paper": "#14171c",
    "panel": "#1b1f26",
    "ink": "#e7e9ec",
    "muted": "#9ba3ae",
    "line": "#414853",
    "grid": "#272c34",
    "accent": "#7fb2ff",
    "good": "#428cf3",
    "bad": "#ff8723",
    "warn": "#e3b341",
}
"""The same by night."""
SERIES_LIGHT = ("#1256ce", "#e66f00", "#1aa570", "#963e84", "#9b3a26", "#8a89da", "#490b7a", "#580d34")
SERIES_DARK = ("#428cf3", "#ff8723", "#0ae290", "#ca7dad", "#fdf67a", "#91d6ff", "#d2eee6", "#f7394a")
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross", "plus", "star")
DASHES = ((), (7.0, 3.0), (2.0, 2.5), (9.0, 3.0, 2.0, 3.0), (4.0, 2.0))
"""Lengths of strokes and gaps; () is a solid line."""


class Style(NamedTuple):
    """How a series is drawn: the token of its colour, its shape and its dashes."""

    color: str
    shape: str
    dash: tuple[float, ...]


def style(index: int) -> Style:
    """The look of the series ``index``; eight colours and shapes, then the pairing shifts, so that 64 differ."""
    turn = index // len(SHAPES)
    shape = SHAPES[(index + turn) % len(SHAPES)]
    return Style(f"series{index % len(SERIES_LIGHT)}", shape, DASHES[(index + turn) % len(DASHES)])


def colors(dark: bool = False) -> dict[str, str]:
    """Every token -> its colour."""
    series = SERIES_DARK if dark else SERIES_LIGHT
    return {**(DARK if dark else LIGHT), **{f"series{i}": color for i, color in enumerate(series)}}


def css_variables(dark: bool = False) -> str:
    """The colours as CSS declarations, ``--ink: #1a1d22; ...``."""
    return " ".join(f"--{name}: {color};" for name, color in colors(dark).items())
