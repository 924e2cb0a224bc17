"""What the cells have left: final numbers, curves over steps, points between start and end, read from their folders."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

import numpy as np

from lit_consistency.records.analysis_folder import AnalysisFolder
from lit_consistency.records.results import higher_is_better, read_results
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.study.execute.state import State, read_attempts, seconds_of, state_of
from lit_consistency.study.sequence.matrix import FILE, read_matrices, transfer

ENDED = (State.FINISHED, State.FAILED, State.DIVERGED, State.OUT_OF_MEMORY)
"""States after which a cell's numbers, or that it has none, are known."""
GAINS = ("overall_performance", "backward_transfer")
CHANGES = ("learned/", "retained/", *GAINS)
WORSE = ("forget/", "kl_to_base", "reverse_kl_to_base", "distance", "val/", "train/", "test/")


@dataclass(frozen=True)
class CellResult:
    """What came out of a cell.

    Args:
        state: of the cell.
        metrics: final numbers; empty unless finished.
        base: the same of its base, at step 0.
        judged_by: ``learn/NAME`` or ``retain/NAME`` -> the metric that judges this task.
        items: ``learn/NAME`` or ``retain/NAME`` -> number of items scored.
        interpolated: share of the way from start to end -> numbers.
        analysed: whether the numbers are those of an analysis, of which none is better by itself.
        seconds: wall time of the run.
        error: what went wrong.
    """

    state: State
    metrics: Mapping[str, float] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)
    judged_by: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[str, int] = field(default_factory=dict)
    interpolated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    analysed: bool = False
    seconds: float = math.nan
    error: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it by itself."""
        return self.state in ENDED

    def number(self, metric: str) -> float:
        """A final number; NaN where there is none."""
        return self.metrics.get(metric, math.nan)

    def more_is_better(self, metric: str) -> bool:
        """Whether more of a recorded number is better.

        Raises:
            ValueError: nothing says so; names the metric and those that are known.
        """
        if metric not in self._directions:
            self._directions[metric] = self._more_is_better(metric)
        return self._directions[metric]

    @cached_property
    def _directions(self) -> dict[str, bool]:
        """Asked for every point of every picture."""
        return {}

    def _more_is_better(self, metric: str) -> bool:
        if self.analysed:
            return False  # numbers are compared as they are
        if metric.startswith(CHANGES):
            return True
        if metric.startswith(WORSE):
            return False
        task, _, named = metric.partition(".")
        judge = named or self.judged_by.get(task)
        if judge is None:
            raise ValueError(
                f"metric {metric!r}: expected one of {', '.join(sorted(self.metrics)) or '(none recorded)'}"
            )
        return higher_is_better(judge)


class Results:
    """Results of cells, each folder read once as long as it does not change.

    Args:
        root: folder of all cells.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._known: dict[str, tuple[Any, CellResult]] = {}

    def of(self, name: str) -> CellResult:
        """What has come out of a cell so far."""
        folder = self.root / name
        state = state_of(folder)
        stamp = (state, _modified(f"{folder}/run.json"), _modified(f"{folder}/outcome.json"))
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            self._known[name] = known = (stamp, _read(folder, state))
        return known[1]

    def curve(self, name: str) -> list[dict[str, float]]:
        """Rows of numbers over steps, those of one step joined; only steps at which tasks were measured."""
        rows: dict[int, dict[str, Any]] = {}
        for line in RunFolder(self.root / name).read_metrics():
            rows.setdefault(int(line["step"]), {}).update(line)
        return [
            {"step": float(step)}
            | {key: _number(value) for key, value in row.items() if key != "step" and not key.startswith("final/")}
            for step, row in sorted(rows.items())
            if any(key.startswith(("learn/", "retain/", "val/")) for key in row)
        ]

    def snapshot(self) -> Snapshot:
        """All of them as they are when first looked at."""
        return Snapshot(self)


class Snapshot(Results):
    """Results that do not change while a report is made of them, whatever runs go on: each is looked at once.

    Args:
        results: whose folders are read; what they know already is taken if it still holds.
    """

    def __init__(self, results: Results) -> None:
        super().__init__(results.root)
        self._of, self._curve = cache(results.of), cache(results.curve)

    def of(self, name: str) -> CellResult:
        """See ``Results``."""
        return self._of(name)

    def curve(self, name: str) -> list[dict[str, float]]:
        """See ``Results``."""
        return self._curve(name)


def _read(folder: Path, state: State) -> CellResult:
    if isfile(f"{folder}/{FILE}"):  # text, not paths: there are thousands of folders
        return _of_sequence(folder, state)
    if isdir(f"{folder}/results"):
        return _of_evaluation(folder, state)
    if isfile((analysis := AnalysisFolder(folder)).record_file):
        numbers = analysis.numbers() if state == State.FINISHED else {}
        return CellResult(state, numbers, analysed=True, seconds=seconds_of(folder), error=_error(folder, {}))
    record = RunFolder(folder).read_record()
    finished = state == State.FINISHED
    judges = record.get("judged_by", {})
    return CellResult(
        state=state,
        metrics={**_numbers(record.get("losses", {})), **_numbers(record.get("final_metrics", {}))} if finished else {},
        base=_numbers(record.get("base_metrics", {})),
        judged_by={task: str(judge["metric"]) for task, judge in judges.items()},
        items={task: int(judge["items"]) for task, judge in judges.items()},
        interpolated={share: _numbers(numbers) for share, numbers in record.get("interpolated", {}).items()}
        if finished
        else {},
        seconds=seconds_of(folder) or _seconds(record),
        error=_error(folder, record),
    )


def _of_evaluation(folder: Path, state: State) -> CellResult:
    """Of ``evaluate``: ``TASK`` (``TASK.FORMAT.Kshot`` where there are several) as if it were retained."""
    metrics: dict[str, float] = {}
    judged_by: dict[str, str] = {}
    items: dict[str, int] = {}
    results = read_results(folder)
    several = len({(result.format, result.shots) for result in results}) > 1
    for result in results:
        task = f"retain/{result.task}" + (f"/{result.format}/{result.shots}shot" if several else "")
        judged_by[task], items[task] = result.metric, result.n
        for metric, numbers in result.metrics.items():
            name = task if metric == result.metric else f"{task}.{metric}"
            metrics |= {name: numbers["value"], f"{name}.stderr": numbers.get("stderr", math.nan)}
    metrics = metrics if state == State.FINISHED else {}
    return CellResult(state, metrics, {}, judged_by, items, seconds=seconds_of(folder), error=_error(folder, {}))


def _of_sequence(folder: Path, state: State) -> CellResult:
    """Of ``sequence``: what ``transfer`` reads, a mean over its seeds; of several formats or shots each by its name."""
    metrics: dict[str, float] = {}
    matrices = read_matrices(folder) if state == State.FINISHED else {}
    for name, matrix in matrices.items():
        beside = f"/{name}" if len(matrices) > 1 else ""
        by_seed = [transfer(matrix.scores[seed]) for seed in matrix.finished]
        for key in GAINS:
            metrics[f"{key}{beside}"] = float(np.mean([numbers[key] for numbers in by_seed]))
        for key, task_key in (("forgetting", "forget"), ("retained_share", "retained")):
            means = np.mean([numbers[key] for numbers in by_seed], axis=0)
            metrics |= {
                f"{task_key}/{task}{beside}": float(value) for task, value in zip(matrix.tasks, means, strict=True)
            }
    return CellResult(state, metrics, seconds=seconds_of(folder), error=_error(folder, {}))


def _error(folder: Path, record: Mapping[str, Any]) -> str:
    """Of the last attempt, or of a run by hand; empty where it came to its end."""
    attempts = read_attempts(folder)
    return attempts[-1].error if attempts else str(record.get("error", ""))


def _seconds(record: Mapping[str, Any]) -> float:
    """Between start and end, as the record has them, to the second."""
    try:
        started, ended = (datetime.strptime(record[key], "%Y-%m-%dT%H:%M:%S%z") for key in ("started", "ended"))
    except (KeyError, ValueError):
        return math.nan
    return (ended - started).total_seconds()


def _numbers(entries: Mapping[str, Any]) -> dict[str, float]:
    return {key: _number(value) for key, value in entries.items()}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _modified(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except FileNotFoundError:
        return 0
