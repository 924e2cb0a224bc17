"""What the terminal and TensorBoard show: numbers with intervals beside their baselines, and what the guards found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lit_consistency.evaluation.compare import Comparison
from lit_consistency.evaluation.dial import Dial
from lit_consistency.evaluation.gate import WORDS, Judged
from lit_consistency.records.results import Result
from lit_consistency.stats.bounds import Bound, Verdict

MOST_GROUPS = 12
"""So many groups are printed below their task; the others stand in the JSON."""
NAMES = ("task", "format", "metric")
NAMES_WIDTH = 22
"""Of the one column of names in a narrow table; longer names are folded."""


def results_table(results: Sequence[Result], sensitivity: dict[str, float], title: str, narrow: bool = False) -> Table:
    """One row per result and metric; chance, majority and how much the format matters beside the judging one.

    What the shortest answers reach is shown where it is not chance: there a model that knows nothing is above chance.

    A narrow table has one column of names: metrics stand below their task.
    """
    left = NAMES[:1] if narrow else NAMES
    known = [name for name in ("chance", "shortest", "majority") if name != "shortest" or _favours_short(results)]
    table = _table(title, left, "shots", "n", "value", "95% interval", *known, "formats")
    for result in results:
        counts = [str(result.shots), str(result.n)]
        if narrow:
            table.add_row(f"{result.task} ({result.format})", *counts)
        for i, (name, numbers) in enumerate(result.metrics.items()):
            first = i == 0 and not narrow
            names = [f"  {name}"] if narrow else [*((result.task, result.format) if first else ("", "")), name]
            cells = [*names, *(counts if first else ("", "")), _with_error(numbers)]
            cells += [_interval(numbers["low"], numbers["high"])]
            cells += [show(result.baseline(key, name)) for key in known]
            table.add_row(*cells, show(sensitivity.get(_cell(result))) if i == 0 else "")
        for name, group in list(result.groups.items())[:MOST_GROUPS]:
            names = [f"  {'  ' * narrow}{name}", *[""] * (len(left) - 1)]
            table.add_row(*names, "", str(int(group["n"])), show(group["value"]), style="dim")
        if len(result.groups) > MOST_GROUPS:
            table.add_row(f"  and {len(result.groups) - MOST_GROUPS} more groups", style="dim")
    return table


def _favours_short(results: Sequence[Result]) -> bool:
    known = [r.baselines for r in results if {"shortest", "chance"} <= r.baselines.keys()]
    return any(abs(baselines["shortest"] - baselines["chance"]) > 0.005 for baselines in known)


def _table(title: str, left: tuple[str, ...], *right: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold", width=NAMES_WIDTH if len(left) == 1 else None)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _with_error(numbers: dict[str, float]) -> str:
    return " ± ".join(filter(None, (show(numbers["value"]) or "nan", show(numbers["stderr"]))))


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
    sensitivity = sensitivity_to_format(results)
    console = _print_fitting(lambda narrow: results_table(results, sensitivity, title, narrow))
    for result in results:
        if result.confined is not None:
            console.print(f"{result.task} ({result.format}): {result.confined}", markup=False, soft_wrap=True)
        for guard, message in result.findings:
            which = f"{result.task} ({result.format}, {result.shots} shots)"
            console.print(f"warning: {which}: {guard}: {message}", markup=False, soft_wrap=True)


def comparison_table(comparisons: Sequence[Comparison], title: str, narrow: bool = False) -> Table:
    """One row per task; in a narrow table the metric stands below its task, and the interval below the difference."""
    changed = ("difference\n95% interval",) if narrow else ("difference", "95% interval")
    left, counts = (NAMES[:1], ("n",)) if narrow else (NAMES, ("shots", "n"))
    table = _table(title, left, *counts, "first", "second", *changed, "p", "better", "chance", "majority")
    for c in comparisons:
        difference = [_with_error(c.difference._asdict()), _interval(c.difference.low, c.difference.high)]
        if narrow:
            cells = [f"{c.task}\n  {c.metric}\n  {c.format}, {c.shots} shots", str(c.n)]
            difference = ["\n".join(difference)]
        else:
            cells = [c.task, c.format, c.metric, str(c.shots), str(c.n)]
        cells += [show(c.first), show(c.second), *difference, show(c.p_value), c.better]
        table.add_row(*cells, show(c.chance), show(c.majority))
    return table


def print_comparison(comparisons: Sequence[Comparison], warnings: Sequence[str], names: tuple[str, str]) -> None:
    """One row per task that both folders hold, and below them what cannot be told, and what they do not share."""
    title = f"second minus first; first: {names[0]}, second: {names[1]}"
    console = _print_fitting(lambda narrow: comparison_table(comparisons, title, narrow))
    for c in comparisons:
        if c.undecidable:
            which = f"{c.task} ({c.format}, {c.shots} shots)"
            console.print(f"{which}: which is better {c.undecidable}", markup=False, soft_wrap=True)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def gate_table(judged: Sequence[Judged], title: str, narrow: bool = False) -> Table:
    """One row per bound and comparison; in a narrow table the metric stands below its task."""
    left = NAMES[:1] if narrow else NAMES
    table = _table(title, left, "n", "first", "second", "better by", "95% interval", "bound", "verdict")
    for entry in judged:
        c, change = entry.comparison, entry.comparison.change
        names = [f"{c.task}\n  {c.metric}\n  {c.format}"] if narrow else [c.task, c.format, c.metric]
        numbers = [str(c.n), show(c.first), show(c.second), _with_error(change._asdict())]
        table.add_row(*names, *numbers, _interval(change.low, change.high), str(entry.condition), entry.verdict)
    return table


def print_gate(judged: Sequence[Judged], warnings: Sequence[str], status: int, names: tuple[str, str]) -> None:
    """A row for every bound, below it what it would take where it cannot be told, and in the end the verdict."""
    title = f"second against first; first: {names[0]}, second: {names[1]}"
    console = _print_fitting(lambda narrow: gate_table(judged, title, narrow))
    lines = [f"warning: {warning}" for warning in warnings]
    for entry in judged:
        if entry.verdict == "unknown":
            c = entry.comparison
            unit, n = ("items", c.n) if c.n_clusters is None else ("clusters of items", c.n_clusters)
            needed = f"it would take about {entry.needed:,}" if entry.needed else "no number would do at this change"
            lines.append(f"{c.task}: {entry.condition}: cannot be told with {n:,} {unit}; {needed}")
    for line in [*lines, f"verdict: {WORDS[status]}"]:
        console.print(line, markup=False, soft_wrap=True)


def dial_table(dial: Dial, title: str, narrow: bool = False) -> Table:
    """One row per model and set: the value, how much it changed, and what the budget says of that."""
    left = ("", "set") if narrow else ("", "set", "metric")
    table = _table(title, left, "value", "changed by", "95% interval", "bound", "verdict")
    for position in (None, *dial.positions):
        for i, entry in enumerate(dial.sets):
            comparison = (position or dial.positions[0]).comparisons[entry.name]
            name = "base" if position is None else position.candidate.name
            mark = " <" if position is not None and position is dial.best else ""
            names = [f"{name}{mark}" if i == 0 else "", entry.name, *([] if narrow else [comparison.metric])]
            if position is None:
                table.add_row(*names, show(comparison.first), "", "", "", "")
                continue
            change, judged = position.changes[entry.name], position.verdicts.get(entry.name, ())
            changed = f"{_with_error(change._asdict())} {'better' if entry.kind == 'learn' else 'worse'}"
            cells = [show(comparison.second), changed, _interval(change.low, change.high)]
            table.add_row(*names, *cells, *(", ".join(texts) for texts in zip(*_bounds(judged), strict=True)))
    return table


def _bounds(judged: Sequence[tuple[Bound, Verdict]]) -> list[tuple[str, str]]:
    return [(f"{bound.sign}{bound.number:g}", verdict) for bound, verdict in judged] or [("", "")]


def print_dial(dial: Dial, title: str) -> None:
    """The table of all candidates; ``<`` stands behind the one that is written."""
    _print_fitting(lambda narrow: dial_table(dial, title, narrow))


def _print_fitting(build: Callable[[bool], Table]) -> Console:
    """Print the table, the narrow one where the terminal asks for it; nothing is cut, not even in 40 columns."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = build(False)
    if _needs(table) > console.width:
        table = build(True)
        console = Console(width=max(console.width, _needs(table)))
    console.print(table)
    return console


def _needs(table: Table) -> int:
    """Columns of the terminal in which nothing of the table is folded or cut."""
    wide = Console(width=10_000)
    return Measurement.get(wide, wide.options, table).maximum


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
