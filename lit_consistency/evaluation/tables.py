"""What the terminal and TensorBoard show: numbers with intervals beside their baselines, and what the guards found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lit_consistency.evaluation.compare import Comparison
from lit_consistency.evaluation.results import Result

MOST_GROUPS = 12
"""So many groups are printed below their task; the others stand in the JSON."""


def results_table(results: Sequence[Result], sensitivity: dict[str, float], title: str) -> Table:
    """One row per result and metric; chance, majority and how much the format matters beside the judging one."""
    table = _table(
        title, ("task", "format", "metric"), "shots", "n", "value", "95% interval", "chance", "majority", "formats"
    )
    for result in results:
        for i, (name, numbers) in enumerate(result.metrics.items()):
            cells = (
                [result.task, result.format, name, str(result.shots), str(result.n)]
                if i == 0
                else ["", "", name, "", ""]
            )
            cells += [_with_error(numbers), _interval(numbers["low"], numbers["high"])]
            cells += [show(result.baseline(key, name)) for key in ("chance", "majority")]
            table.add_row(*cells, show(sensitivity.get(_cell(result))) if i == 0 else "")
        for name, group in list(result.groups.items())[:MOST_GROUPS]:
            table.add_row(f"  {name}", "", "", "", str(int(group["n"])), show(group["value"]), style="dim")
        if len(result.groups) > MOST_GROUPS:
            table.add_row(f"  and {len(result.groups) - MOST_GROUPS} more groups", style="dim")
    return table


def _table(title: str, left: tuple[str, ...], *right: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _with_error(numbers: dict[str, float]) -> str:
    return " ± ".join(filter(None, (show(numbers["value"]), show(numbers["stderr"]))))


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{show(low)} .. {show(high)}"


def sensitivity_to_format(results: Sequence[Result]) -> dict[str, float]:
    """Greatest minus least value over the formats, of every task and number of examples asked in several."""
    cells: dict[str, list[float]] = {}
    for result in results:
        cells.setdefault(_cell(result), []).append(result.value)
    return {cell: max(values) - min(values) for cell, values in cells.items() if len(values) > 1}


def _cell(result: Result) -> str:
    return f"{result.task}/{result.shots}"


def print_results(results: Sequence[Result], title: str) -> None:
    """The table, and below it what the guards found."""
    console = wide_console()
    console.print(results_table(results, sensitivity_to_format(results), title))
    for result in results:
        for guard, message in result.findings:
            where = f"{result.task} ({result.format}, {result.shots} shots)"
            console.print(f"warning: {where}: {guard}: {message}", markup=False, soft_wrap=True)


def print_comparison(comparisons: Sequence[Comparison], warnings: Sequence[str], names: tuple[str, str]) -> None:
    """One row per task that both folders hold, and below them what they do not share."""
    title = f"second minus first; first: {names[0]}, second: {names[1]}"
    table = _table(
        title,
        ("task", "format", "metric"),
        "shots",
        "n",
        "first",
        "second",
        "difference",
        "95% interval",
        "p",
        "better",
        "chance",
        "majority",
    )
    for c in comparisons:
        numbers = [show(c.first), show(c.second), _with_error(c.difference._asdict())]
        interval = _interval(c.difference.low, c.difference.high)
        baselines = [show(c.chance), show(c.majority)]
        numbers += [interval, show(c.p_value), c.better, *baselines]
        table.add_row(c.task, c.format, c.metric, str(c.shots), str(c.n), *numbers)
    console = wide_console()
    console.print(table)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def wide_console() -> Console:
    """The terminal; where the output goes to a file, wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


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
