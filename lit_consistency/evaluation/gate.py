"""Ship or not: bounds on the changes from a base to a finetuned model, judged by the intervals of paired differences.

A gate is a small YAML file, a task or a pattern of tasks a line::

    old_people: {not_worse: 0.02}                        # at most 0.02 worse than the base
    new_people: {better: 0.5}                            # at least 0.5 better
    old_*: {not_worse: 0.1, metric: nats_per_token}      # by another metric than the one that judges the task

Numbers are in the unit of the metric, and 0 is allowed. A bound is kept where the whole 95% interval of the change lies
on its good side, which is a test of non-inferiority (or superiority) at the level of 2.5%; it is breached where the
whole interval lies on the other; else it cannot be told with these items, and it is said how many it would take.
A bound speaks of every format and number of examples of its task. One breached bound is enough not to ship.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lit_consistency.evaluation.compare import Comparison, compare_folders
from lit_consistency.records.results import Result, higher_is_better, read_results
from lit_consistency.records.strict_yaml import read_strict_yaml
from lit_consistency.stats.bounds import Bound, Verdict, n_to_tell

KINDS = ("not_worse", "better")
KEYS = (*KINDS, "metric")
FORMS = "expected TASK: {not_worse: NUMBER} or {better: NUMBER}, and metric where another one than the task's counts"
STATUS: dict[Verdict, int] = {"kept": 0, "breached": 3, "unknown": 4}
"""Exit status of the command: ship, do not ship, cannot be told."""
WORDS = {0: "ship", 3: "do not ship", 4: "cannot be told"}


@dataclass(frozen=True)
class Condition:
    """One line of a gate, one kind of it.

    Attributes:
        task: name or pattern.
        kind: ``not_worse`` or ``better``.
        number: as written, at least 0.
        metric: by which the change is judged; None: the one that judges the task.
    """

    task: str
    kind: str
    number: float
    metric: str | None = None

    @property
    def bound(self) -> Bound:
        """On how much better the second model is."""
        return Bound(self.task, ">=", self.number if self.kind == "better" else -self.number)

    def __str__(self) -> str:
        return f"{self.kind} {self.number:g}"


@dataclass(frozen=True)
class Judged:
    """A condition on one comparison, with its verdict.

    Attributes:
        condition: of the gate.
        comparison: of the two models.
        verdict: kept, breached, unknown.
        needed: items, or clusters, with which it could be told; None where it is told, or no number is enough.
    """

    condition: Condition
    comparison: Comparison
    verdict: Verdict
    needed: int | None

    def as_json(self) -> dict[str, Any]:
        """Plain types."""
        c, change = self.comparison, self.comparison.change
        return {
            "task": c.task,
            "format": c.format,
            "shots": c.shots,
            "metric": c.metric,
            "n": c.n,
            "n_clusters": c.n_clusters,
            "first": c.first,
            "second": c.second,
            "better_by": change._asdict(),
            self.condition.kind: self.condition.number,
            "verdict": self.verdict,
            "n_needed": self.needed,
            "n_needed_of": "items" if c.n_clusters is None else "clusters",
        }


def read_gate(path: Path) -> list[Condition]:
    """The conditions of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no gate, or a task stands twice; names file, task and key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"gate = {path}: no such file")
    content = read_strict_yaml(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"gate = {path}: {type(content).__name__}: {FORMS}")
    return [condition for task, keys in content.items() for condition in _conditions(path, str(task), keys)]


def _conditions(path: Path, task: str, keys: Any) -> list[Condition]:
    where = f"gate = {path}: {task}"
    if not isinstance(keys, Mapping):
        raise ValueError(f"{where}: {keys!r}: {FORMS}")
    if unknown := [str(key) for key in keys if key not in KEYS]:
        raise ValueError(f"{where}.{unknown[0]}: no such key; {FORMS}")
    metric = keys.get("metric")
    if "metric" in keys:
        try:
            higher_is_better(str(metric))
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from None
    kinds = [kind for kind in KINDS if kind in keys]
    if not kinds:
        raise ValueError(f"{where}: no bound; {FORMS}")
    for kind in kinds:
        number = keys[kind]
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise ValueError(f"{where}.{kind} = {number!r}: expected a number of at least 0")
    return [Condition(task, kind, float(keys[kind]), metric) for kind in kinds]


def judge(first: Path, second: Path, conditions: Sequence[Condition]) -> tuple[list[Judged], list[str]]:
    """Judge every condition on two folders of results, and what to warn of.

    Raises:
        FileNotFoundError: a folder holds no results.
        ValueError: a task of the gate was not measured in one of them, or its items do not hold the metric.
    """
    left, right = ({result.key: result for result in read_results(folder)} for folder in (first, second))
    keys = {condition: _keys(condition, left, right, first, second) for condition in conditions}
    wanted: dict[str, list[str]] = {}
    for condition, of_condition in keys.items():
        for key in of_condition:
            metric = condition.metric or left[key].metric
            if metric not in wanted.setdefault(key, []):
                wanted[key].append(metric)
    comparisons, warnings = compare_folders(first, second, metrics=wanted, tested=False)
    names = [(key, metric) for key, metrics in wanted.items() for metric in metrics]
    of_name = {(key, metric): c for c in comparisons for key, metric in names if _is_of(c, left[key], metric)}
    judged = []
    for condition, of_condition in keys.items():
        for key in of_condition:
            comparison = of_name[key, condition.metric or left[key].metric]
            judged.append(_judged(condition, comparison))
    return judged, warnings


def _is_of(comparison: Comparison, result: Result, metric: str) -> bool:
    same = (comparison.task, comparison.format, comparison.shots) == (result.task, result.format, result.shots)
    return same and comparison.metric == ("nats_per_word" if metric == "word_perplexity" else metric)


def _keys(
    condition: Condition, left: Mapping[str, Result], right: Mapping[str, Result], first: Path, second: Path
) -> list[str]:
    """Keys of the results of which a condition speaks; every one must stand in both folders."""
    keys = [
        key
        for key, result in {**left, **right}.items()
        if fnmatchcase(result.task, condition.task) or condition.task == key
    ]
    if not keys:
        known = sorted({result.task for result in left.values()} & {result.task for result in right.values()})
        raise ValueError(f"gate: {condition.task}: was not measured; expected one of {', '.join(known) or 'no task'}")
    for key in keys:
        for folder, results in ((first, left), (second, right)):
            if key not in results:
                raise ValueError(f"gate: {condition.task}: {key} was not measured in {folder}; expected it in both")
    return keys


def _judged(condition: Condition, comparison: Comparison) -> Judged:
    change, bound = comparison.change, condition.bound
    verdict = bound.judge(change.low, change.high)
    n = comparison.n_clusters or comparison.n
    return Judged(condition, comparison, verdict, n_to_tell(bound, change, n) if verdict == "unknown" else None)


def exit_status(judged: Sequence[Judged]) -> int:
    """0 where all is kept, 3 where something is breached, else 4."""
    verdicts = {entry.verdict for entry in judged}
    return STATUS["breached" if "breached" in verdicts else "unknown" if "unknown" in verdicts else "kept"]
