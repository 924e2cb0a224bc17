"""Pictures that several analyses draw alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lit_consistency.analysis.core.tables import grouped
from lit_consistency.drawing.charts.dots import Dot, draw_dots
from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.records.tables import Row


def lines_over_layers(
    rows: Sequence[Row], number: str, title: str, caption: str, group: str = "model", log_y: bool = False
) -> Figure:
    """A number over the layers, one line for every value of ``group``; of several rows a layer mean and range.

    Args:
        rows: with the columns ``layer``, ``group`` and the number.
        number: which.
        title: of the picture.
        caption: how to read it.
        group: the column that tells lines apart.
        log_y: equal ratios are equal distances.
    """
    by_layer = grouped(rows, (group, "layer"), number)
    series = []
    for name in dict.fromkeys(key[0] for key in by_layer):
        layers = sorted((int(layer), values) for (of, layer), values in by_layer.items() if of == name and values)
        series.append(mean_and_range(name, {float(layer): values for layer, values in layers}))
    picture = draw_lines(series, "layer", number.replace("_", " "), WIDTH, log_y=log_y)
    columns = ("layer", *(row.name for row in series))
    values = {row.name: dict(row.points) for row in series}
    layers_of = sorted({x for row in series for x, _ in row.points})
    table = [
        (f"{x:g}", *(short_number(values[row.name][x]) if x in values[row.name] else "" for row in series))
        for x in layers_of
    ]
    return Figure("", "", title, caption, picture, None, columns, tuple(table))


def mean_and_range(name: str, at: Mapping[float, Sequence[float]]) -> Series:
    """A line through the means at every x, in their order; shaded from the least to the most where there are several.

    Args:
        name: of the line.
        at: x -> its values, at least one.
    """
    places = sorted(at)
    spread = any(len(values) > 1 for values in at.values())
    low, high = ([f(at[x]) for x in places] if spread else [] for f in (min, max))
    return Series(name, [(x, sum(at[x]) / len(at[x])) for x in places], low, high)


def table_of(rows: Sequence[Row], columns: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The numbers below a picture: text as it is, numbers shortened, nothing where a row lacks one."""

    def cell(value: str | int | float) -> str:
        return short_number(value) if isinstance(value, float) else str(value)

    return tuple(tuple(cell(row.get(column, "")) for column in columns) for row in rows)


def dots_by(
    rows: Sequence[Row], row: str, number: str, title: str, caption: str, group: str = "model", log: bool = False
) -> Figure:
    """A number for every value of the column ``row``, one mark for every value of ``group``: mean and range.

    Args:
        rows: with the columns ``row``, ``group`` and the number.
        row: the column whose values stand below one another, as ``matrix``.
        number: which.
        title: of the picture.
        caption: how to read it.
        group: the column that tells marks apart.
        log: equal ratios are equal distances.
    """
    found = {key: values for key, values in grouped(rows, (row, group), number).items() if values}
    dots = [
        Dot(name, of, sum(v) / len(v), *((min(v), max(v)) if len(v) > 1 else ())) for (name, of), v in found.items()
    ]
    picture = draw_dots(dots, number.replace("_", " "), WIDTH, log=log)
    groups = list(dict.fromkeys(dot.group for dot in dots))
    values = {(dot.row, dot.group): short_number(dot.value) for dot in dots}
    table = [(name, *(values.get((name, of), "") for of in groups)) for name in dict.fromkeys(dot.row for dot in dots)]
    said = f"{caption} Mean and range over the layers."
    return Figure("", "", title, said, picture, None, (row, *groups), tuple(table))


def each_text(rows: Sequence[Row], draw: Callable[[Sequence[Row]], list[Figure]]) -> list[Figure]:
    """The figures of every text by itself, with its name in their titles where there are several.

    Args:
        rows: of all texts, with ``text``.
        draw: figures of the rows of one text.
    """
    texts = dict.fromkeys(str(row["text"]) for row in rows)
    return [
        replace(figure, title=f"{figure.title}, {text}") if len(texts) > 1 else figure
        for text in texts
        for figure in draw([row for row in rows if row["text"] == text])
    ]
