"""Pictures as pixels, by matplotlib's renderer alone: its axes and layouts, which are slow, are not needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from lit_consistency.drawing.canvas import Area, Canvas, Dots, Line, Marker, Text, outline, with_title
from lit_consistency.drawing.palette import colors

SCALE = 2.0
"""Pixels of the file per pixel of the picture: sharp on paper and on fine screens."""
POINT = 72 / 100
"""Points per pixel of the picture, at its 100 dots per inch: the renderer takes fonts and lines in points."""


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_png(canvas: Canvas, title: str, path: Path | BinaryIO) -> None:
    """Write a picture, on white, under its title.

    Args:
        canvas: the picture.
        title: above it.
        path: the file, or one that is open; matplotlib (extra ``study``) must be installed.
    """
    from matplotlib.backends.backend_agg import RendererAgg
    from PIL import Image

    whole = with_title(canvas, title)
    width, height = round(whole.width * SCALE), round(whole.height * SCALE)
    painter = _Painter(RendererAgg(width, height, 100 * SCALE), height)
    painter.paint(whole)
    image = Image.frombuffer("RGBA", (width, height), painter.renderer.buffer_rgba(), "raw", "RGBA", 0, 1)
    # the picture covers all of the file: no transparency is left, and a quarter of the bytes is saved
    image.convert("RGB").save(path, format="PNG", compress_level=2, dpi=(100 * SCALE, 100 * SCALE))


class _Painter:
    """Marks -> calls of the renderer, whose y axis points upwards for paths and downwards for text."""

    def __init__(self, renderer: Any, height: int) -> None:
        from matplotlib.font_manager import FontProperties
        from matplotlib.transforms import Affine2D

        self.renderer, self.height, self.colors = renderer, height, colors()
        self.place = Affine2D().scale(SCALE, -SCALE).translate(0, height)
        self.fonts = {bold: FontProperties(weight="bold" if bold else "normal") for bold in (False, True)}

    def paint(self, canvas: Canvas) -> None:
        box = [(0.0, 0.0), (canvas.width, 0.0), (canvas.width, canvas.height), (0.0, canvas.height)]
        self._path([box], True, fill="paper", stroke=None)
        for mark in canvas.marks:
            if isinstance(mark, Line):
                self._path([mark.points], False, None, mark.color, mark.width, mark.opacity, mark.dash)
            elif isinstance(mark, Area):
                self._path([mark.points], True, mark.color, None, opacity=mark.opacity)
            elif isinstance(mark, Dots):
                r = mark.size / 2
                self._path([_ring(x, y, r) for x, y in mark.points], True, mark.color, None, opacity=mark.opacity)
            elif isinstance(mark, Marker):
                self._marker(mark)
            else:
                self._text(mark)

    def _marker(self, mark: Marker) -> None:
        if mark.shape in ("cross", "plus", "star"):
            self._path(outline(mark), False, None, mark.color, 1.8, mark.opacity)
            return
        shape = [_ring(mark.x, mark.y, mark.size)] if mark.shape == "circle" else outline(mark)
        fill, stroke = (mark.color, "paper") if mark.filled else ("paper", mark.color)
        self._path(shape, True, fill, stroke, 1.0 if mark.filled else 1.6, mark.opacity)

    def _path(
        self,
        lines: list[Any],
        closed: bool,
        fill: str | None,
        stroke: str | None,
        width: float = 0.0,
        opacity: float = 1.0,
        dash: tuple[float, ...] = (),
    ) -> None:
        from matplotlib.colors import to_rgb
        from matplotlib.path import Path as Shape

        corners = [corner for line in lines for corner in ([*line, line[0]] if closed else line)]
        codes = [code for line in lines for code in self._codes(len(line), closed)]
        shape = Shape(corners, codes)
        gc = self.renderer.new_gc()
        gc.set_linewidth(width * POINT if stroke else 0)
        gc.set_foreground(to_rgb(self.colors[stroke or "ink"]), isRGBA=False)
        gc.set_alpha(opacity)
        # as on the page, where corners of a staircase must not stick out
        gc.set_joinstyle("round")
        gc.set_capstyle("butt")
        if dash:
            gc.set_dashes(0, [length * POINT for length in dash])
        self.renderer.draw_path(gc, shape, self.place, to_rgb(self.colors[fill]) if fill else None)

    @staticmethod
    def _codes(n: int, closed: bool) -> list[int]:
        """Codes of matplotlib's paths: 1 moves, 2 draws, 79 closes."""
        return [1, *[2] * (n - 1), *([79] if closed else [])]

    def _text(self, mark: Text) -> None:
        from matplotlib.colors import to_rgb

        font = self.fonts[mark.bold].copy()
        font.set_size(mark.size * POINT)
        gc = self.renderer.new_gc()
        gc.set_foreground(to_rgb(self.colors[mark.color]))
        # matplotlib takes dollars for formulas, and the renderer draws control characters as boxes with a warning
        text = "".join(c if c.isprintable() else "\ufffd" for c in mark.text)
        x = mark.x * SCALE
        if mark.anchor != "start":
            width = self.renderer.get_text_width_height_descent(text, font, ismath=False)[0]
            x -= width / (2 if mark.anchor == "middle" else 1)
        self.renderer.draw_text(gc, x, mark.y * SCALE, text, font, -mark.rotate, ismath=False)


def _ring(x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Twelve corners are a circle of a few pixels."""
    from math import cos, pi, sin

    return [(x + r * cos(k * pi / 6), y + r * sin(k * pi / 6)) for k in range(12)]
