"""What came out, where people look: the terminal, one page, TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lit_consistency.drawing.figure import Figure
from lit_consistency.drawing.page import figure_context, page_environment, write_page_file
from lit_consistency.drawing.scales import short_number

PRINTED = 12
"""Numbers of an analysis in the terminal: more are not read there."""


def print_numbers(numbers: Mapping[str, Mapping[str, float]]) -> None:
    """One row for every number, one column for every model, of each analysis the first; nothing of them is cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    table = Table("number", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for model in numbers:
        table.add_column(model, justify="right", overflow="fold")
    rows = _by_number(numbers)
    for analysis, own in groupby(rows, key=lambda row: row[0].partition("/")[0]):
        of_analysis = list(own)
        for key, values in of_analysis[:PRINTED]:
            table.add_row(key, *values)
        if len(of_analysis) > PRINTED:
            table.add_row(f"{analysis}: {len(of_analysis) - PRINTED} more in analysis.json", style="dim")
    console.print(table, markup=False)


def _by_number(numbers: Mapping[str, Mapping[str, float]]) -> list[tuple[str, list[str]]]:
    keys = dict.fromkeys(key for values in numbers.values() for key in values)
    return [(key, [short_number(v[key]) if key in v else "" for v in numbers.values()]) for key in keys]


def numbers_of(analysis: str, values: Mapping[str, float]) -> dict[str, float]:
    """The numbers of one analysis, without its name."""
    return {k.partition("/")[2]: v for k, v in values.items() if k.startswith(f"{analysis}/")}


def write_page(
    folder: Path, title: str, headings: Mapping[str, str], figures: Sequence[Figure], record: Mapping[str, Any]
) -> Path:
    """Write ``index.html``.

    Args:
        folder: of the analysis.
        title: of the page.
        headings: analysis -> heading, in the order of the page.
        figures: each with the analysis as its ``section``.
        record: what stands in ``analysis.json``.
    """
    numbers: Mapping[str, Mapping[str, float]] = record["numbers"]
    sections = []
    for name, heading in headings.items():
        of_models = {model: numbers_of(name, values) for model, values in numbers.items()}
        own = {model: values for model, values in of_models.items() if values}
        sections.append({
            "key": name,
            "title": heading,
            "figures": [figure_context(figure) for figure in figures if figure.section == name],
            "columns": ["number", *own],
            "rows": [(key, *values) for key, values in _by_number(own)],
            "options": record["options"][name],
        })  # fmt: skip
    context = {"title": title, "sections": sections, "record": record}
    environment = page_environment("lit_consistency.analysis.core")
    return write_page_file(folder / "index.html", environment, "analysis.html", context)


def write_scalars(
    folder: Path, numbers: Mapping[str, Mapping[str, float]], places: Mapping[str, tuple[str, int]]
) -> None:
    """``analysis/NAME/NUMBER`` in TensorBoard; the models of one run are one curve over its steps.

    Args:
        folder: of the events; older ones are removed.
        numbers: model -> name -> value.
        places: model -> the run that made it, and the step at which its numbers stand.
    """
    for old in folder.glob("**/events.out.tfevents.*"):
        old.unlink()
    runs: dict[str, list[tuple[int, str]]] = {}
    for model in numbers:
        run, step = places.get(model, (model, 0))
        # two models of one run and step, as two that were merged, are told apart by their names
        twice = [other for other in numbers if other != model and places.get(other) == (run, step)]
        runs.setdefault(model if twice else run, []).append((step, model))
    for run, models in runs.items():
        with SummaryWriter(str(folder / run.replace("/", "_"))) as writer:
            for step, model in sorted(models):
                for key, value in numbers[model].items():
                    if not math.isnan(value):
                        writer.add_scalar(f"analysis/{key}", value, step)
