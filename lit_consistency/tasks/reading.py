"""From rows of data to questions of a task.

A row without a label (gold -1, -, null or empty) is counted and left out; a task whose rows are all so is refused:
the unlabelled test splits of GLUE were once scored as accuracy 1.000 (see guards.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn

from lit_consistency.data.sources.conversations import say_counts
from lit_consistency.data.sources.rows import Conversation
from lit_consistency.tasks.question import Question, TaskRow
from lit_consistency.tasks.rows import read_rows
from lit_consistency.tasks.task import PromptedTask, ReadTask, Task
from lit_consistency.tasks.task_data import TaskData
from lit_consistency.tasks.templates import as_text, render, take


def read_task(task: Task, with_training: bool = False) -> ReadTask:
    """The rows of a task; those of its training split only where examples are wanted.

    Raises:
        ValueError: a row lacks a field, has choices without a gold that fits, or no row is left; names file and row.
    """
    scored, n_unlabelled = read_questions(task, task.data)
    few_shot = task.few_shot if with_training and isinstance(task, PromptedTask) else None
    training = read_questions(task, few_shot)[0] if few_shot else None
    return ReadTask(task, scored, training, n_unlabelled)


def read_questions(task: Task, data: TaskData) -> tuple[list[Question], int]:
    """What the labelled rows of the data ask, and how many rows have no label."""
    if (conversations := task.conversations(data)) is not None:
        read = list(conversations.rows())
        unused = Counter(name for row in read for name in row.unused)
        if unused and data.rows is None:  # of rows of a training it has been said
            rank_zero_warn(f"task {task.name}: fields that are not used: {say_counts(unused)}")
        return of_conversations(read), 0
    rows = [row for row in read_rows(task, data) if _is_complete(task, row)]
    labelled = [row for row in rows if task.is_labelled(row)]
    if not labelled:
        what = f"none of {len(rows)} rows has a label (-1, null or empty)" if rows else "no row is left"
        raise ValueError(f"{data.origin}: {what}; task {task.name} needs a split with labels")
    return task.read(labelled), len(rows) - len(labelled)


def of_conversations(rows: Sequence[Conversation]) -> list[Question]:
    """Conversations as questions: their turns, and the last answer. Ids are relative to what the places share."""
    folder = os.path.commonpath([os.path.dirname(row.place) for row in rows]) if rows else ""
    questions = []
    for row in rows:
        name = os.path.relpath(row.place, folder or ".")
        answer = next(turn["content"] for turn in reversed(row.messages) if turn["role"] == "assistant")
        turns = tuple((turn["role"], turn["content"]) for turn in row.messages)
        questions.append(Question(name, row.place, None, name, fields=turns, answer=answer, conversation=row))
    return questions


def named_question(task: Task, row: TaskRow) -> Question:
    """What every kind of task takes of a row: id, place, group and cluster."""
    group = render(task.group, row.fields, row.place) if task.group else None
    cluster = render(task.cluster, row.fields, row.place) if task.cluster else group or row.id
    return Question(row.id, row.place, group, cluster)


def headed_question(task: PromptedTask, row: TaskRow, verbatim: bool = False) -> Question:
    """The same with the fields and the instruction; ``verbatim`` keeps the white space around a field."""
    texts = {name: render(template, row.fields, row.place) for name, template in task.fields.items()}
    headed = tuple((name, text if verbatim else text.strip()) for name, text in texts.items())
    instruction = render(task.instruction, row.fields, row.place).strip()
    return named_question(task, row)._replace(fields=headed, instruction=instruction)


def read_texts(templates: str | tuple[str, ...], key: str, row: TaskRow) -> tuple[str, ...]:
    """Texts of a template that is a list, or of a list of templates, without the space around them.

    Raises:
        ValueError: it is no list of at least two, or one of the texts is empty.
    """
    if isinstance(templates, tuple):
        texts = [render(template, row.fields, row.place) for template in templates]
    else:
        values = take(templates, row.fields, row.place)
        if not isinstance(values, (list, tuple)) or len(values) < 2:
            raise ValueError(
                f"{row.place}: {key} = {templates}: expected a list of at least two texts, found {values!r}"
            )
        texts = [as_text(value, key, row.place) for value in values]
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    if empty:
        raise ValueError(f"{row.place}: {key}: number {empty[0]} is empty; expected text")
    return tuple(text.strip() for text in texts)


def _is_complete(task: Task, row: TaskRow) -> bool:
    return all(take(f"{{{name}}}", row.fields, row.place) not in (None, "") for name in task.requires)
