"""A task of ``evaluate`` as a set that is watched during a run: any of the four kinds, by the same code.

What the guards find (see guards.py) is warned of once, at the start of the run or at its first measurement. Given up:
intervals and results per item, which ``python -m lit_consistency evaluate`` gives for the saved model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from litgpt.tokenizer import Tokenizer
from torch import nn

from lit_consistency.data.worlds.base import World
from lit_consistency.inference.items import Item
from lit_consistency.tasks.ask import ask_model
from lit_consistency.tasks.definition import Task
from lit_consistency.tasks.formats import Format, check_format, load_format
from lit_consistency.tasks.guards import (
    Finding,
    check_labels,
    check_predictions,
    check_shots,
    check_truncation,
)
from lit_consistency.tasks.prompts import Built, build_questions, candidate, read_task
from lit_consistency.tasks.watched import Prepared, WatchedSet
from lit_consistency.tasks.yaml_file import load_tasks


@dataclass
class WatchedTask:
    """A task that is watched during a run, with how it is asked; ``forgetting.learn`` and ``retain`` name them.

    Args:
        task: name of a task in ``configs/evaluation``, as ``piqa`` or ``biographies/old_people``, a YAML file, or the
            keys of a task themselves; null: the name of the set.
        format: of the prompts, as ``--format`` of ``evaluate``; texts, pairs and conversations have none.
        shots: few-shot examples before each question.
        limit: questions at most, drawn by the seed; 0: all.
        seed: of the draws of examples and questions.
        metric: the number by which the set is judged; the task's first one when null.
        data_dir: takes the place of the first folder, ``data/``, of the paths in the task file.
        world: of which a task of a world asks; null: the run's ``world``, else the one that the task file names.
        allow_code_execution: whether a task may run the programs that the model writes.
    """

    task: str | dict[str, Any] | None = None
    format: str = "default"
    shots: int = 0
    limit: int = 0
    seed: int = 0
    metric: str | None = None
    data_dir: Path | None = None
    world: World | None = None
    allow_code_execution: bool = False


class TaskSet(WatchedSet):
    """Any task file as a set for ``forgetting.learn`` or ``forgetting.retain``.

    Its numbers are those of ``python -m lit_consistency evaluate`` with the same format, shots, limit and seed.

    Args:
        task: a YAML file, or the name of one in ``configs/evaluation``, as ``piqa`` or ``hub/mnli``.
        variant: which task of a file that holds several, as ``capital`` of ``factbook``.
        format: of the prompts, as ``--format`` of ``evaluate``; texts and minimal pairs have none.
        shots: few-shot examples before each question.
        limit: questions at most, drawn by the seed; 0: all.
        seed: of the draws of examples and questions.
        metric: the number by which the set is judged; the task's own when not given.
        data_dir: takes the place of the first folder, ``data/``, of the paths in the task file.
        allow_code_execution: whether a task may run the programs that the model writes.

    Raises:
        FileNotFoundError: there is no such task.
        ValueError: an option is out of its range or does not fit the task; names the key and what is allowed.
    """

    def __init__(
        self,
        task: str,
        variant: str | None = None,
        format: str = "default",
        shots: int = 0,
        limit: int = 200,
        seed: int = 0,
        metric: str | None = None,
        data_dir: Path | None = None,
        allow_code_execution: bool = False,
    ) -> None:
        for key, value in (("shots", shots), ("limit", limit), ("seed", seed)):
            if value < 0:
                raise ValueError(f"{key} = {value}: expected at least 0")
        self.task = _judged_by(_choose(load_tasks(task, data_dir), task, variant), metric)
        self.form = load_format(format)
        self.shots = shots
        self.limit = limit
        self.seed = seed
        self.allow_code_execution = allow_code_execution
        self.metric = self.task.metric
        self._check()

    def _check(self) -> None:
        task = self.task
        if task.kind in ("choice", "generation"):
            check_format(self.form, task)
        elif self.shots:
            raise ValueError(f"shots = {self.shots}: task {task.name} is of kind {task.kind}; expected 0")
        if self.shots and task.few_shot is None:
            raise ValueError(f"shots = {self.shots}: task {task.name} has no key `few_shot`; expected 0")
        if task.program is not None and not self.allow_code_execution:
            raise ValueError(
                f"allow_code_execution = false: task {task.name} runs what the model writes; expected true, or "
                "another task"
            )

    def items(self, tokenizer: Tokenizer, block_size: int) -> list[Item]:
        """The questions with their candidates; of a task whose answers are written, with the first reference."""
        return self.prepare(tokenizer, block_size).items

    def prepare(self, tokenizer: Tokenizer, context: int) -> PreparedTask:
        """Read the rows and render the questions.

        Raises:
            FileNotFoundError: a data file is missing.
            ValueError: a row does not fit; names file and row.
        """
        rows = read_task(self.task, with_training=self.shots > 0)
        built = build_questions(rows, self.form, self.shots, tokenizer, context, self.seed, self.limit)
        _warn(
            self.task,
            [
                *check_labels(self.task, rows.scored),
                *check_shots(built.given_away, len(rows.scored.rows)),
                *check_truncation(built.questions),
            ],
        )
        return PreparedTask(built, self.form, tokenizer, context, self.allow_code_execution)


class PreparedTask(Prepared):
    """A task's questions, rendered and tokenized.

    Args:
        built: the questions and their rows.
        form: how they were arranged.
        tokenizer: of the model.
        context: of the model, in tokens.
        allow_code_execution: whether programs that the model writes may run.
    """

    def __init__(
        self, built: Built, form: Format, tokenizer: Tokenizer, context: int, allow_code_execution: bool = False
    ) -> None:
        self.questions = built.questions
        self.tokenizer = tokenizer
        self.allow_code_execution = allow_code_execution
        self.metric = built.questions.task.metric
        self.items = [q.item for q in built.questions.questions if q.item is not None] or _with_answers(
            built, form, tokenizer, context
        )
        self._warned = False

    def measure(self, model: nn.Module, *, batch_tokens: int, device: torch.device) -> dict[str, float]:
        """The task's metrics by name, as ``evaluate`` reports them."""
        measured = ask_model(
            model,
            self.questions,
            self.tokenizer,
            batch_tokens=batch_tokens,
            device=device,
            allow_code_execution=self.allow_code_execution,
        )
        if not self._warned:
            task = self.questions.task
            _warn(task, check_predictions(task, measured.predictions, measured.golds))
            self._warned = True
        return measured.values()


def _choose(tasks: Sequence[Task], name: str, variant: str | None) -> Task:
    """The one task that is meant: that of a file with one, or the variant of a file with several."""
    if variant is None and len(tasks) == 1:
        return tasks[0]
    found = [task for task in tasks if variant is not None and _is_variant(task, variant, tasks)]
    if len(found) != 1 or len(tasks) == 1:
        stem = Path(name).stem
        names = [task.name.removeprefix(f"{stem}_") for task in tasks]
        expected = f"one of {', '.join(names)}" if len(tasks) > 1 else "none, the file holds one task"
        raise ValueError(f"variant = {variant!r}: task {name}: expected {expected}")
    return found[0]


def _is_variant(task: Task, variant: str, tasks: Sequence[Task]) -> bool:
    """Whether the task is called ``NAME_VARIANT``, NAME being what all tasks of the file begin with."""
    name = task.name.removesuffix(f"_{variant}")
    return name != task.name and all(other.name.startswith(f"{name}_") for other in tasks)


def _judged_by(task: Task, metric: str | None) -> Task:
    """The task with that metric first; ValueError where its kind has none of that name."""
    if metric is None:
        return task
    return replace(task, metrics=(metric, *(name for name in task.metrics if name != metric)))


def _with_answers(built: Built, form: Format, tokenizer: Tokenizer, context: int) -> list[Item]:
    """Prompts followed by their first reference, or by the answer that a few-shot example would have."""
    task = built.questions.task
    if task.program is not None and task.demonstration is None:
        return []  # the references are tests
    found = []
    for question, row in zip(built.questions.questions, built.asked, strict=True):
        text = form.answer_text(task, row.answer)
        answer = np.asarray(tokenizer.encode(text, bos=False), dtype=np.int64)
        if question.tokens is not None and len(answer):
            found.append(Item([candidate(question.tokens, answer, len(text.encode()), context)], gold=0))
    return found


def _warn(task: Task, findings: Sequence[Finding]) -> None:
    for guard, message in findings:
        rank_zero_warn(f"task {task.name}: {guard}: {message}")
