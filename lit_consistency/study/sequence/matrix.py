"""The matrix of scores, stage x task, and what is read from it, for every seed and as a mean over them.

Scores are such that more is better: of a loss the negative stands in the matrix. The numbers are those of
``stats/transfer.py``. Reads and writes JSON alone, so a table is printed again without a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from lit_consistency.stats.seeds import MeanInterval, mean_interval
from lit_consistency.stats.transfer import backward_transfer, forgetting, overall_performance, retained_share

FILE = "matrix.json"
NAMES_WIDTH = 28
"""Of the names of tasks in a table that is too wide; longer names are folded."""


@dataclass(frozen=True)
class Matrix:
    """Scores of one format and number of few-shot examples.

    Args:
        stages: names of the tasks trained on, in their order; they are the first columns too.
        tasks: names of all columns.
        metrics: of every column; with ``-`` before it where the negative stands here.
        scores: seed -> rows, the base first and then one a stage so far; (1 + t, tasks).
    """

    stages: list[str]
    tasks: list[str]
    metrics: list[str]
    scores: dict[int, list[list[float]]]

    @property
    def finished(self) -> list[int]:
        """Seeds whose stages are all there."""
        return [seed for seed, rows in self.scores.items() if len(rows) == 1 + len(self.stages)]


def transfer(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What ``stats/transfer.py`` reads from the rows of one seed; BWT from two stages on, per task as a list."""
    scores = np.asarray(rows, dtype=np.float64)
    return {
        "overall_performance": overall_performance(scores),
        "backward_transfer": backward_transfer(scores) if len(rows) > 2 else math.nan,
        "forgetting": forgetting(scores).tolist(),
        "retained_share": retained_share(scores).tolist(),
    }


def over_seeds(matrix: Matrix) -> dict[str, Any]:
    """Mean and 95% interval over the finished seeds of every number and of every score."""
    by_seed = [transfer(matrix.scores[seed]) for seed in matrix.finished]
    if not by_seed:
        return {}
    summary: dict[str, Any] = {}
    for name in ("overall_performance", "backward_transfer"):
        summary[name] = mean_interval([numbers[name] for numbers in by_seed])._asdict()
    for name in ("forgetting", "retained_share"):
        by_task = zip(*(numbers[name] for numbers in by_seed), strict=True)
        summary[name] = {
            task: mean_interval(values)._asdict() for task, values in zip(matrix.tasks, by_task, strict=True)
        }
    summary["scores"] = [[interval._asdict() for interval in row] for row in _mean_rows(matrix)]
    return summary


def _mean_rows(matrix: Matrix) -> list[list[MeanInterval]]:
    by_stage = zip(*(matrix.scores[seed] for seed in matrix.finished), strict=True)
    return [[mean_interval(values) for values in zip(*rows, strict=True)] for rows in by_stage]


# -------------------- on disk


def as_json(matrices: Mapping[str, Matrix]) -> dict[str, Any]:
    """Matrix, numbers per seed, and means, by the names ``FORMAT/SHOTS``."""
    return {
        name: {
            "stages": matrix.stages,
            "tasks": matrix.tasks,
            "metrics": matrix.metrics,
            "scores": {str(seed): rows for seed, rows in matrix.scores.items()},
            "per_seed": {str(seed): _named(transfer(rows), matrix) for seed, rows in _trained(matrix)},
            "mean": over_seeds(matrix),
        }
        for name, matrix in matrices.items()
    }


def read_matrices(folder: Path) -> dict[str, Matrix]:
    """The matrices of a sequence's output folder; what was no number is NaN again.

    Raises:
        FileNotFoundError: there is none.
    """
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the output folder of a sequence")
    content = json.loads(file.read_text(encoding="utf-8"))["matrices"]
    matrices = {}
    for name, entry in content.items():
        scores = {
            int(seed): [[math.nan if value is None else value for value in row] for row in rows]
            for seed, rows in entry["scores"].items()
        }
        matrices[name] = Matrix(entry["stages"], entry["tasks"], entry["metrics"], scores)
    return matrices


def _trained(matrix: Matrix) -> list[tuple[int, list[list[float]]]]:
    return [(seed, rows) for seed, rows in matrix.scores.items() if len(rows) > 1]


def _named(numbers: dict[str, Any], matrix: Matrix) -> dict[str, Any]:
    return {
        key: dict(zip(matrix.tasks, value, strict=True)) if isinstance(value, list) else value
        for key, value in numbers.items()
    }


# -------------------- the terminal


def print_matrix(name: str, matrix: Matrix) -> None:
    """Rows are tasks, numbered by their stage, columns the base and the stages; means over seeds, OP and BWT below.

    What is too wide for the terminal is printed in several tables, each with the names of the tasks.
    """
    if not matrix.finished:
        return
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    title = f"scores ({name}), more is better"
    summary = over_seeds(matrix)
    columns = _columns(matrix, summary)
    single = _table(title, matrix, columns)
    tables = [single] if _needs(single) <= console.width else list(_narrow(title, matrix, columns, console.width))
    for table in tables:
        (console if table is single else Console(width=max(console.width, _needs(table)))).print(table)
    for key, short in (("overall_performance", "OP"), ("backward_transfer", "BWT")):
        console.print(f"{short} ({key.replace('_', ' ')}): {_with_interval(MeanInterval(**summary[key]))}")


def _columns(matrix: Matrix, summary: dict[str, Any]) -> list[list[str]]:
    """Heading and a cell for every task; a task's score after its own stage is bold."""
    stages = [f"stage {k}" for k in range(1, 1 + len(matrix.stages))]
    columns = []
    for k, (heading, row) in enumerate(zip(["base", *stages], _mean_rows(matrix), strict=True)):
        scores = [_shown(interval) for interval in row]
        columns.append([heading, *(f"[bold]{text}[/bold]" if k == i + 1 else text for i, text in enumerate(scores))])
    for heading, key in (("forgetting", "forgetting"), ("retained", "retained_share")):
        columns.append([heading, *(_shown(MeanInterval(**summary[key][task])) for task in matrix.tasks)])
    return columns


def _narrow(title: str, matrix: Matrix, columns: Sequence[Sequence[str]], width: int) -> Iterator[Table]:
    """Tables with intervals below their means and metrics below their tasks, and as many columns as there is room."""
    stacked = [[cell.replace(" ± ", "\n± ") for cell in column] for column in columns]
    start = 0
    while start < len(stacked):
        stop = len(stacked)
        while stop > start + 1 and _needs(_table(title, matrix, stacked[start:stop], narrow=True)) > width:
            stop -= 1
        yield _table(title, matrix, stacked[start:stop], narrow=True)
        start = stop


def _table(title: str, matrix: Matrix, columns: Sequence[Sequence[str]], narrow: bool = False) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    numbers = [f"{i + 1} " if i < len(matrix.stages) else "" for i in range(len(matrix.tasks))]
    tasks = [number + task for number, task in zip(numbers, matrix.tasks, strict=True)]
    if narrow:
        table.add_column("task", overflow="fold", width=NAMES_WIDTH)
        names: list[tuple[str, ...]] = [
            (f"{task}\n  {metric}",) for task, metric in zip(tasks, matrix.metrics, strict=True)
        ]
    else:
        table.add_column("task")
        table.add_column("metric")
        names = list(zip(tasks, matrix.metrics, strict=True))
    for column in columns:
        table.add_column(column[0], justify="right", no_wrap=True)
    for i, name in enumerate(names):
        if i == len(matrix.stages):
            table.add_section()
        table.add_row(*name, *(column[i + 1] for column in columns))
    return table


def _needs(table: Table) -> int:
    """Columns of the terminal in which nothing of the table is folded or cut."""
    wide = Console(width=10_000)
    return Measurement.get(wide, wide.options, table).maximum


def _shown(interval: MeanInterval) -> str:
    """The mean, with half the interval where there are several seeds."""
    if math.isnan(interval.mean):
        return ""
    half = "" if math.isnan(interval.low) else f" ± {interval.high - interval.mean:.3f}"
    return f"{interval.mean:.3f}{half}"


def _with_interval(interval: MeanInterval) -> str:
    if math.isnan(interval.mean):
        return "not defined for one stage"
    if math.isnan(interval.low):
        return f"{interval.mean:.4f} (one seed)"
    return f"{interval.mean:.4f}, 95% interval {interval.low:.4f} .. {interval.high:.4f} ({interval.n} seeds)"
