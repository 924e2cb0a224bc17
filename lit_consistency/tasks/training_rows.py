"""The rows of an evaluation task as conversations to train on, so that what is trained is exactly what is asked.

Prompt and answer are those of the evaluation in the same format without few-shot examples, token by token; with
another format at evaluation one sees what was learned besides the format (Sun & Dredze, arXiv 2408.06663). Given up:
few-shot examples in the training prompts, and tasks without a question (documents, minimal pairs).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_consistency.data.sources.rows import Conversation, Rows
from lit_consistency.tasks.few_shot import without_shots
from lit_consistency.tasks.formats import load_format, right_context
from lit_consistency.tasks.generation import GenerationTask
from lit_consistency.tasks.question import Question, limited
from lit_consistency.tasks.reading import read_questions
from lit_consistency.tasks.rows import fingerprint
from lit_consistency.tasks.task import PromptedTask, keys_of
from lit_consistency.tasks.task_data import TaskData
from lit_consistency.tasks.yaml_file import load_task

SPLITS = ("few_shot", "scored")


class TaskRows(Rows):
    """Questions of a task with their right answers, as an evaluation in this format would ask them.

    They are trained with ``prompt_style: default``, of the format ``chat`` with ``chat_template``, where none is named.
    The answer of a task with ``demonstration`` is the demonstration, as in few-shot examples.

    Args:
        task: A task file, or the name of one in ``configs/evaluation``; one of several as ``NAME:VARIANT``.
        format: ``default``, ``io``, ``instruct``, ``chat``, or a YAML file.
        split: ``few_shot``, the task's training split, without the rows that ask the same as a scored one; or
            ``scored``, the rows by which it is judged.
        limit: Rows at most, drawn by the seed; 0: all.
        seed: Of the draw.
        data_dir: Takes the place of the folder ``data/`` of the task file.

    Raises:
        FileNotFoundError: there is no such task.
        ValueError: the task has no questions or no training split, or the format does not fit it.
    """

    def __init__(
        self,
        task: str,
        format: str = "default",  # the word of the command line
        split: str = "few_shot",
        limit: int = 0,
        seed: int = 0,
        data_dir: Path | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split = {split!r}: expected one of {', '.join(SPLITS)}")
        if limit < 0:
            raise ValueError(f"limit = {limit}: expected 0 (all rows) or more")
        loaded = load_task(task, data_dir)
        if not (isinstance(loaded, PromptedTask) and loaded.prompted):
            raise ValueError(f"task {task!r} is of kind {loaded.kind}: expected questions with an answer")
        self.task: PromptedTask = loaded
        self.format = load_format(format)
        self.prompt_style = "chat_template" if self.format.chat else "default"
        self.split = split
        self.limit = limit
        self.seed = seed
        if isinstance(loaded, GenerationTask) and loaded.runs_code and loaded.demonstration is None:
            raise ValueError(f"task {task!r}: expected the key `demonstration`; its references are tests, not answers")
        if split == "few_shot" and self.task.few_shot is None:
            raise ValueError(f"split = 'few_shot': task {task!r} has no key `few_shot`; expected one, or split: scored")
        self.task.check_asked(self.format, 0)

    def rows(self) -> Iterator[Conversation]:
        """Yields every row once; ValueError names file and row of a bad one, or the task where none is left."""
        rows = limited(self._rows(), self.limit, self.seed)
        if not rows:
            raise ValueError(f"task {self.task.name}: every row of its training split is scored too; none is left")
        for row in rows:
            answer = self.format.answer_text(self.task, row.answer)
            if not answer.strip():
                raise ValueError(f"{row.place}: the answer is empty; expected text to learn")
            yield Conversation([*self._question(row), {"role": "assistant", "content": answer}], row.place)

    def fingerprint(self) -> dict[str, Any]:
        """Task, format, options, and the data files by name, size and hash."""
        options = {"split": self.split, "limit": self.limit, "seed": self.seed}
        data = {"data": fingerprint(self.task.data), "few_shot": None}
        if self.task.few_shot is not None:
            data["few_shot"] = fingerprint(self.task.few_shot)
        return {"kind": "TaskRows", "task": keys_of(self.task), "format": asdict(self.format), **options, **data}

    def _rows(self) -> list[Question]:
        scored = read_questions(self.task, self.task.data)[0]
        if self.split == "scored":
            return scored
        assert isinstance(self.task.few_shot, TaskData)
        return without_shots(read_questions(self.task, self.task.few_shot)[0], scored)[0]

    def _question(self, row: Question) -> list[dict[str, str]]:
        context = right_context(row)
        if self.format.chat:
            return self.format.messages(self.task, row, context=context)
        return [{"role": "user", "content": self.format.prompt(self.task, row, [], context=context)}]
