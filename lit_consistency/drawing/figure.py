"""A picture with its title, its caption and its numbers, and the files of many."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_consistency.drawing import png
from lit_consistency.drawing.canvas import Canvas, svg_file
from lit_consistency.records.atomic import new_file, write_text

WIDTH, WIDE, PHONE = 400.0, 920.0, 372.0
"""Pixels: of a picture that stands beside others; of one alone; of its arrangement for a phone."""


@dataclass(frozen=True)
class Figure:
    """A picture with what is said about it.

    Args:
        name: of its files, without ending.
        section: of the page in which it stands.
        title: what it shows.
        caption: how to read it, and what it leaves out.
        canvas: the picture.
        phone: the same, arranged for a narrow screen, if the picture does not stand there as it is.
        columns: heads of the table of its numbers; empty if there is none.
        rows: of that table, as text.
    """

    name: str
    section: str
    title: str
    caption: str
    canvas: Canvas
    phone: Canvas | None = None
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def write_figures(drawn: Sequence[Figure], folder: Path) -> list[str]:
    """Write every picture as SVG, and as PNG where matplotlib is installed; older ones of the folder are removed.

    Args:
        drawn: by ``figures``.
        folder: of the files.

    Returns:
        What could not be written, in sentences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{figure.name}.{ending}" for figure in drawn for ending in ("svg", "png")}
    # a picture of an earlier report would be taken for one of this
    for path in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if path.name not in wanted:
            path.unlink()
    for figure in drawn:
        vector, pixels = (folder / f"{figure.name}.{ending}" for ending in ("svg", "png"))
        text = svg_file(figure.canvas, figure.title)
        same = vector.is_file() and vector.read_text(encoding="utf-8") == text
        # the SVG is written last: where it is the same, the pixels are too
        if png.can_draw() and not (same and pixels.is_file()):
            with new_file(pixels) as path:
                png.write_png(figure.canvas, figure.title, path)
        if not same:
            write_text(vector, text)
    if drawn and not png.can_draw():
        return ["no PNG of the figures: matplotlib is absent; install it by: pip install 'lit_consistency[study]'"]
    return []


def named(drawn: Iterable[Figure]) -> list[Figure]:
    """Figures under names that are safe in any file system, and different from one another."""
    taken: dict[str, int] = defaultdict(int)
    named = []
    for figure in drawn:
        words = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-")[:60].rstrip("-")
        name = f"{figure.section}-{words}" if words else figure.section
        taken[name] += 1
        named.append(Figure(**{**figure.__dict__, "name": name if taken[name] == 1 else f"{name}--{taken[name]}"}))
    return named
