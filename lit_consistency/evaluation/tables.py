"""What the terminal and TensorBoard show: numbers with intervals beside their baselines, and what the guards found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lit_consistency.evaluation.compare import Comparison
from lit_consistency.evaluation.results import Result

MOST_GROUPS = 12
"""So many groups are printed below their task; the others stand in the JSON."""


def results_table(results: Sequence[Result], sensitivity: dict[str, float], title: str) -> Table:
    """One row per result and metric; chance, majority and how much the format matters beside the judging one."""
    table = Table(title=title)
    table.add_column("task")
    for name in ("format", "shots", "n", "metric", "value", "stderr", "95% interval", "chance", "majority", "formats"):
        table.add_column(name, justify="left" if name in ("format", "metric") else "right")
    for result in results:
        for i, (name, numbers) in enumerate(result.metrics.items()):
            interval = f"{show(numbers['low'])} - {show(numbers['high'])}"
            line = [name, show(numbers["value"]), show(numbers["stderr"]), interval]
            accuracy = "accuracy" in name
            line += [show(result.baselines.get(key)) if accuracy else "" for key in ("chance", "majority")]
            line += [show(sensitivity.get(_cell(result))) if i == 0 else ""]
            first = [result.task, result.format, str(result.shots), str(result.n)] if i == 0 else [""] * 4
            table.add_row(*first, *line)
        for name, group in list(result.groups.items())[:MOST_GROUPS]:
            table.add_row(f"  {name}", "", "", str(int(group["n"])), "", show(group["value"]), *[""] * 5, style="dim")
        if len(result.groups) > MOST_GROUPS:
            table.add_row(f"  and {len(result.groups) - MOST_GROUPS} more groups", *[""] * 10, style="dim")
    return table


def sensitivity_to_format(results: Sequence[Result]) -> dict[str, float]:
    """Greatest minus least value over the formats, of every task and number of examples asked in several."""
    cells: dict[str, list[float]] = {}
    for result in results:
        cells.setdefault(_cell(result), []).append(result.value)
    return {cell: max(values) - min(values) for cell, values in cells.items() if len(values) > 1}


def _cell(result: Result) -> str:
    return f"{result.task}/{result.shots}"


def print_results(results: Sequence[Result], title: str, console: Console | None = None) -> None:
    """The table, and below it what the guards found."""
    console = console or Console()
    console.print(results_table(results, sensitivity_to_format(results), title))
    for result in results:
        for guard, message in result.findings:
            console.print(f"warning: {result.task} ({result.format}, {result.shots} shots): {guard}: {message}", markup=False)


def comparison_table(comparisons: Sequence[Comparison], names: tuple[str, str]) -> Table:
    """One row per task that both folders hold."""
    table = Table(title=f"second minus first; first: {names[0]}, second: {names[1]}")
    for name in ("task", "format", "shots", "n", "metric", "first", "second", "difference", "95% interval", "p", "better"):
        table.add_column(name, justify="left" if name in ("task", "format", "metric", "better") else "right")
    for c in comparisons:
        interval = f"{show(c.difference.low)} - {show(c.difference.high)}"
        numbers = [show(c.first), show(c.second), show(c.difference.value), interval, show(c.p_value)]
        table.add_row(c.task, c.format, str(c.shots), str(c.n), c.metric, *numbers, c.better)
    return table


def write_scalars(folder: Path, results: Sequence[Result], step: int) -> None:
    """``evaluation/TASK/FORMAT/SHOTS/METRIC`` in TensorBoard, at the model's step."""
    with SummaryWriter(str(folder)) as writer:
        for result in results:
            for name, numbers in result.metrics.items():
                tag = f"evaluation/{result.task}/{result.format}/{result.shots}/{name}"
                writer.add_scalar(tag, numbers["value"], step)


def show(value: float | None) -> str:
    """Four significant digits at most; nothing for what is not known."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
