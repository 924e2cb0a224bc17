"""The matrix of scores, stage x task, and what is read from it, for every seed and as a mean over them.

Scores are such that more is better: of a loss the negative stands in the matrix. The numbers are those of
``metrics/transfer.py``. Reads and writes JSON alone, so a table is printed again without a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from lit_consistency.metrics.transfer import backward_transfer, forgetting, overall_performance, retained_share
from lit_consistency.study.statistics import MeanInterval, mean_interval

FILE = "matrix.json"


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
    """What ``metrics/transfer.py`` reads from the rows of one seed; BWT from two stages on, per task as a list."""
    scores = torch.tensor(rows, dtype=torch.float64)
    return {
        "overall_performance": overall_performance(scores),
        "backward_transfer": backward_transfer(scores) if len(rows) > 2 else math.nan,
        "forgetting": forgetting(scores).tolist(),
        "retained_share": retained_share(scores).tolist(),
    }


def over_seeds(matrix: Matrix) -> dict[str, Any]:
    """Mean and 95% interval over the finished seeds of every number and of every score."""
    found = [transfer(matrix.scores[seed]) for seed in matrix.finished]
    if not found:
        return {}
    summary: dict[str, Any] = {}
    for name in ("overall_performance", "backward_transfer"):
        summary[name] = mean_interval([numbers[name] for numbers in found])._asdict()
    for name in ("forgetting", "retained_share"):
        by_task = zip(*(numbers[name] for numbers in found), strict=True)
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
    found = {}
    for name, entry in content.items():
        scores = {
            int(seed): [[math.nan if value is None else value for value in row] for row in rows]
            for seed, rows in entry["scores"].items()
        }
        found[name] = Matrix(entry["stages"], entry["tasks"], entry["metrics"], scores)
    return found


def _trained(matrix: Matrix) -> list[tuple[int, list[list[float]]]]:
    return [(seed, rows) for seed, rows in matrix.scores.items() if len(rows) > 1]


def _named(numbers: dict[str, Any], matrix: Matrix) -> dict[str, Any]:
    return {
        key: dict(zip(matrix.tasks, value, strict=True)) if isinstance(value, list) else value
        for key, value in numbers.items()
    }


# -------------------- the terminal


def print_matrix(name: str, matrix: Matrix) -> None:
    """Rows are tasks, columns the base and the stages; means over seeds, with OP and BWT below."""
    if not matrix.finished:
        return
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    summary = over_seeds(matrix)
    table = Table(title=f"scores ({name}), more is better", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("task", "metric"):
        table.add_column(heading, overflow="fold")
    stages = [f"{k} {stage}" for k, stage in enumerate(matrix.stages, start=1)]
    for heading in ("base", *stages, "forgetting", "retained"):
        table.add_column(heading, justify="right", overflow="fold")
    rows = _mean_rows(matrix)
    for i, task in enumerate(matrix.tasks):
        scores = [("[bold]{}[/bold]" if k == i + 1 else "{}").format(_shown(row[i])) for k, row in enumerate(rows)]
        lost, kept = (_shown(MeanInterval(**summary[key][task])) for key in ("forgetting", "retained_share"))
        if i == len(matrix.stages):
            table.add_section()
        table.add_row(task, matrix.metrics[i], *scores, lost, kept)
    console.print(table)
    for key, short in (("overall_performance", "OP"), ("backward_transfer", "BWT")):
        console.print(f"{short} ({key.replace('_', ' ')}): {_with_interval(MeanInterval(**summary[key]))}")


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
