"""Tasks that are watched during a run: read and encoded once, asked again and again, by the code of ``evaluate``.

What the guards find (see guards.py) is warned of once, at the start of the run or at its first measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.data.worlds.base import World
from lit_consistency.inference.items import Item
from lit_consistency.tasks.code.run import needed_walls
from lit_consistency.tasks.completion import CompletionTask
from lit_consistency.tasks.excerpt import READ_AT_EACH_START, Excerpt
from lit_consistency.tasks.formats import load_format
from lit_consistency.tasks.guards import Finding, check_labels, check_predictions, check_shots, check_truncation
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.reading import read_task
from lit_consistency.tasks.task import Asking, EncodedTask, Engine, Task
from lit_consistency.tasks.task_data import TaskData
from lit_consistency.tasks.text import TextTask
from lit_consistency.tasks.yaml_file import load_tasks, task_from_keys

Known = Callable[[EncodedTask, Callable[[], Measured]], Measured]
"""Takes the questions and a way to measure them, and gives what has been measured."""
HELD_OUT_BYTES = 200_000
HELD_OUT_ROWS = 500
"""Of what is held out from training data of any size, where the user names no set."""


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
        allow_unconfined_code: whether also where no walls can be built around them.
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
    allow_unconfined_code: bool = False

    def __post_init__(self) -> None:
        for key in ("shots", "limit", "seed"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} = {getattr(self, key)}: expected at least 0")

    def load(self, name: str) -> Task:
        """The task, judged by ``metric``, all options checked; no data is read.

        Args:
            name: of the set.

        Raises:
            FileNotFoundError: there is no such task.
            ValueError: an option is out of its range or does not fit the task; names the key and what is allowed.
        """
        named = self.task if self.task is not None else name
        if isinstance(named, Mapping):
            task = task_from_keys(named, name, self.data_dir, self.world, f"task {name}")
        else:
            tasks = load_tasks(named, self.data_dir, self.world)
            if len(tasks) > 1:
                variants = ", ".join(task.name.removeprefix(f"{Path(named).stem}_") for task in tasks)
                raise ValueError(f"task = {named!r}: a file of several; expected {named}/NAME, of {variants}")
            task = tasks[0]
        if self.metric is not None:
            others = tuple(metric for metric in task.metrics if metric != self.metric)
            task = replace(task, metrics=(self.metric, *others))
        task.check_asked(load_format(self.format), self.shots)
        if task.runs_code:
            try:
                needed_walls(self.allow_code_execution, self.allow_unconfined_code)
            except ValueError as error:
                raise ValueError(f"task {task.name}: {error}") from None
        return task

    def prepare(self, name: str, tokenizer: Tokenizer, block_size: int) -> PreparedTask:
        """Read the rows and encode the questions.

        Args:
            name: of the set.
            tokenizer: of the model.
            block_size: longest input of the model, in tokens.

        Raises:
            FileNotFoundError: a data file is missing.
            ValueError: a row does not fit; names file and row.
        """
        return PreparedTask(self, self.load(name), tokenizer, block_size)


class PreparedTask:
    """A watched task's questions, encoded for one model.

    Args:
        watched: how it is asked.
        task: what is asked.
        tokenizer: of the model.
        block_size: longest input of the model, in tokens.

    Attributes:
        encoded: the questions.
        items: questions with their right answers, at which the KL divergence from the base is taken.
        tells_constant: whether to warn of answers that are all one; of sets that nobody named a table says enough.
    """

    def __init__(self, watched: WatchedTask, task: Task, tokenizer: Tokenizer, block_size: int) -> None:
        self.watched = watched
        self.task = task
        self.tokenizer = tokenizer
        rows = read_task(task, with_training=watched.shots > 0)
        form = load_format(watched.format)
        self.encoded = task.questions(
            rows, Asking(tokenizer, block_size, form, watched.shots, watched.seed, watched.limit)
        )
        self.items: list[Item] = [q.item for q in self.encoded.questions if q.item is not None]
        self.findings = [
            *check_labels(rows),
            *check_shots(self.encoded.given_away, len(rows.scored)),
            *check_truncation(self.encoded),
        ]
        self._warn(self.findings)
        self._has_measured = False
        self.tells_constant = True

    @property
    def metric(self) -> str:
        """The number by which the set is judged."""
        return self.task.metric

    def measure(
        self, model: nn.Module, *, batch_tokens: int, device: torch.device, known: Known | None = None
    ) -> Measured:
        """The task's numbers and items, as ``evaluate`` reports them; the same on every rank, and every rank calls it.

        Args:
            model: in evaluation mode.
            batch_tokens: budget of tokens in one forward.
            device: where the model is.
            known: gives what the model is known to have measured, or has it measured.
        """
        allowed = self.watched.allow_code_execution, self.watched.allow_unconfined_code
        engine = Engine(model, self.tokenizer, batch_tokens, device, *allowed)
        measure = partial(self.task.measure, self.encoded, engine)
        measured = measure() if known is None else known(self.encoded, measure)
        if not self._has_measured:
            constant = check_predictions(self.task, measured.predictions, measured.golds)
            if self.tells_constant:
                self._warn(constant)
            if measured.confined is not None:
                rank_zero_info(f"task {self.task.name}: {measured.confined}")
            self.findings += constant
            self._has_measured = True
        return measured

    def _warn(self, findings: Sequence[Finding]) -> None:
        for guard, message in findings:
            rank_zero_warn(f"task {self.task.name}: {guard}: {message}")


def held_out_task(data: TokenData, tokenizer: Tokenizer, block_size: int) -> PreparedTask:
    """The held-out part of the training data as a task, conversations in the style of training.

    Args:
        data: of the run, with a validation part.
        tokenizer: of the model.
        block_size: longest input of the model, in tokens.
    """
    held_out = data.validation
    assert held_out is not None
    if isinstance(held_out, Source):
        n_bytes = sum(counts.get("n_bytes", 0) for counts in data.stats().values())
        is_large = n_bytes > READ_AT_EACH_START
        task: Task = TextTask(
            name="validation",
            data=TaskData(source=Excerpt(held_out, HELD_OUT_BYTES, data.cache_dir) if is_large else held_out),
            max_bytes=HELD_OUT_BYTES,
            metrics=("nats_per_token", "bits_per_byte"),
        )
        return PreparedTask(WatchedTask(), task, tokenizer, block_size)
    style = getattr(data, "prompt_style", "default")
    task = CompletionTask(
        name="validation",
        data=TaskData(rows=held_out),
        prompt_style=style,
        parse_special_tokens=data.parse_special_tokens,
    )
    return PreparedTask(WatchedTask(limit=HELD_OUT_ROWS), task, tokenizer, block_size)
