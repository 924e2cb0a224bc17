"""Pictures that several analyses draw alike."""

from __future__ import annotations

from collections.abc import Sequence

from lit_consistency.analysis.core.tables import grouped
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
        points = [(float(layer), sum(values) / len(values)) for layer, values in layers]
        spread = any(len(values) > 1 for _, values in layers)
        low, high = ([f(v) for _, v in layers] if spread else [] for f in (min, max))
        series.append(Series(name, points, low, high))
    picture = draw_lines(series, "layer", number.replace("_", " "), WIDTH, log_y=log_y)
    columns = ("layer", *(row.name for row in series))
    values = {row.name: dict(row.points) for row in series}
    layers_of = sorted({x for row in series for x, _ in row.points})
    table = [
        (f"{x:g}", *(short_number(values[row.name][x]) if x in values[row.name] else "" for row in series))
        for x in layers_of
    ]
    return Figure("", "", title, caption, picture, None, columns, tuple(table))


def table_of(rows: Sequence[Row], columns: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The numbers below a picture: text as it is, numbers shortened, nothing where a row lacks one."""

    def cell(value: str | int | float) -> str:
        return short_number(value) if isinstance(value, float) else str(value)

    return tuple(tuple(cell(row.get(column, "")) for column in columns) for row in rows)
