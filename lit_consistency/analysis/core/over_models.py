"""Numbers over what the models of an analysis differ in: steps of a series, weight decays, or rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_consistency.analysis.core.figures import mean_and_range
from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.drawing.charts.lines import Series
from lit_consistency.drawing.charts.panels import both_arrangements
from lit_consistency.drawing.figure import Figure
from lit_consistency.drawing.scales import short_number

LEAST, MOST = 3, 8
"""Different values from which on there is a picture; numbers that are drawn, the first of the summary."""


def figure_over_models(models: Sequence[ModelFiles], numbers: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """One small picture for each of the first numbers of an analysis, with all of them as a table.

    Args:
        models: of the run.
        numbers: model -> number -> value, of one analysis.

    Returns:
        None where the models differ in nothing that is swept, or in fewer than three values of it.
    """
    known = [files for files in models if files.name in numbers]
    axis = _axis(known)
    if axis is None:
        return None
    title, value, line = axis
    places = [(value(files), line(files), files) for files in known if value(files) > 0]
    places.sort(key=lambda place: place[:2])
    keys = list(dict.fromkeys(key for files in known for key in numbers[files.name]))
    shown = [key for key in keys if any(math.isfinite(numbers[f.name].get(key, math.nan)) for f in known)]
    panels = {
        key: _lines([(x, name, numbers[files.name].get(key, math.nan)) for x, name, files in places])
        for key in shown[:MOST]
    }
    columns = (title, "of", *shown)
    rows = tuple(
        (short_number(x), name, *(short_number(numbers[files.name].get(key, math.nan)) for key in shown))
        for x, name, files in places
    )
    left_out = f" The first {MOST} of {len(shown)} numbers." if len(shown) > MOST else ""
    caption = f"The numbers in short over {title}.{left_out}"
    wide, phone = both_arrangements(panels, title, "", log_x=True)
    return Figure("", "", f"Over {title}", caption, wide, phone, columns, rows)


def _axis(
    models: Sequence[ModelFiles],
) -> tuple[str, Callable[[ModelFiles], float], Callable[[ModelFiles], str]] | None:
    """What the models differ in, and what makes a line; of several the first."""
    if len({files.step for files in models if files.step > 0}) >= LEAST:
        return "step", lambda files: float(files.step), lambda files: files.run
    for said, stage in (("", -1), (" of pretraining", 0)):
        for key, name in (("weight_decay", "weight decay"), ("lr", "rate")):
            value = _option(stage, key)
            if len({value(files) for files in models if value(files) > 0}) >= LEAST:
                return f"{name}{said}", value, lambda files: files.optimizer
    return None


def _option(stage: int, key: str) -> Callable[[ModelFiles], float]:
    def value(files: ModelFiles) -> float:
        stages: list[dict[str, Any]] = files.provenance.stages if files.provenance else []
        given = (stages[stage].get("optimizer_options") or {}).get(key) if stages else None
        return float(given) if isinstance(given, int | float) else math.nan

    return value


def _lines(points: Sequence[tuple[float, str, float]]) -> list[Series]:
    """One line a name; of several models at one place, as seeds, the mean and the range."""
    lines = []
    for name in dict.fromkeys(name for _, name, _ in points):
        at: dict[float, list[float]] = {}
        for x, of, y in points:
            if of == name and math.isfinite(y):
                at.setdefault(x, []).append(y)
        if at:
            lines.append(mean_and_range(name, at))
    return lines
