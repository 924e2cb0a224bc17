"""A row as its task reads it, then as one model is asked: ``Question``, ``EncodedQuestion``.

A row without a label (gold -1, -, null or empty) is counted and left out; a task whose rows are all so is refused:
the unlabelled test splits of GLUE were once scored as accuracy 1.000 (see guards.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lit_consistency.data.sources.rows import Conversation
from lit_consistency.inference.items import Item
from lit_consistency.records.fingerprints import seed_of
from lit_consistency.tasks.rows import TaskRow, read_rows
from lit_consistency.tasks.task import PromptedTask, Task, TaskData
from lit_consistency.tasks.templates import as_text, render, take


class Question(NamedTuple):
    """What a row asks: fields, candidates, the right one. No format, no tokens yet.

    Attributes:
        id: of the row, the same under every seed, limit and format.
        place: ``file:line``, for messages.
        group: the part of the set that is reported by itself: phenomenon (BLiMP), subject (MMLU), or None.
        cluster: what is drawn together for intervals.
        fields: headings and values, in order; of a text, the document.
        instruction: what is to be done, in a sentence.
        contexts: one per candidate, of a partial evaluation.
        labels: the candidates' texts; the text; or what stands before the answer in a program.
        gold: index of the right candidate.
        answer: what a few-shot example answers.
        references: accepted answers, or tests.
        conversation: of a task whose rows are conversations, the turns.
    """

    id: str
    place: str
    group: str | None
    cluster: str
    fields: tuple[tuple[str, str], ...] = ()
    instruction: str = ""
    contexts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    gold: int = 0
    answer: str = ""
    references: tuple[str, ...] = ()
    conversation: Conversation | None = None

    @property
    def text(self) -> str:
        """The question by itself, without headings: by this two rows are told to be the same."""
        return "\n".join([*(value for _, value in self.fields), *self.contexts] or self.labels)


class EncodedQuestion(NamedTuple):
    """A question, or a window of a document, ready to be asked.

    Attributes:
        id: of the row; of a window also where it starts.
        place: where the row stands, for messages.
        group: as in ``Question``.
        cluster: as in ``Question``.
        prompt: the rendered prompt with its few-shot examples; of a text, what the model sees before it.
        item: candidates that are scored; of a generation the first reference, or None where there is none.
        labels: the candidates' texts; of a program, what stands before the answer.
        tokens: (T,) int64, the prompt's tokens, for generation.
        references: accepted answers of a generation; of a program, the tests.
        n_truncated: prompt tokens that were cut because the context is too short.
        shot_ids: ids of the few-shot rows in the prompt.
    """

    id: str
    place: str
    group: str | None
    cluster: str
    prompt: str
    item: Item | None
    labels: tuple[str, ...] = ()
    tokens: np.ndarray | None = None
    references: tuple[str, ...] = ()
    n_truncated: int = 0
    shot_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadTask:
    """A task with its rows, read once for all formats and numbers of examples.

    Args:
        task: the task.
        scored: the labelled rows of its data.
        training: those of its training split; None where no examples are wanted or there is none.
        n_unlabelled: rows without a label, which are left out.
    """

    task: Task
    scored: list[Question]
    training: list[Question] | None = None
    n_unlabelled: int = 0


@dataclass(frozen=True)
class EncodedTask:
    """The questions of a task in one format, with so many few-shot examples.

    Args:
        task: the task.
        format: name of the format, ``none`` for texts and pairs.
        shots: few-shot examples before each question.
        questions: encoded for one model.
        rows: of each question the row it was made of.
        given_away: rows that a few-shot example gave away, and that are therefore not asked.
        end_tokens: what ends a turn in the format, and a text that is written.
    """

    task: Task
    format: str
    shots: int
    questions: list[EncodedQuestion]
    rows: list[Question] = field(default_factory=list)
    given_away: list[Question] = field(default_factory=list)
    end_tokens: tuple[int, ...] = ()


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
        return of_conversations(list(conversations.rows())), 0
    rows = [row for row in read_rows(task, data) if _is_complete(task, row)]
    labelled = [row for row in rows if task.is_labelled(row)]
    if not labelled:
        what = f"none of {len(rows)} rows has a label (-1, null or empty)" if rows else "no row is left"
        raise ValueError(f"{data.origin}: {what}; task {task.name} needs a split with labels")
    return task.read(labelled), len(rows) - len(labelled)


def limited(rows: Sequence[Question], limit: int, seed: int, without: Sequence[Question] = ()) -> list[Question]:
    """So many of the rows, drawn by the seed, in their order; 0: all.

    Rows that are left out are left out of the draw of all, so that with and without examples the others stay the same.
    """
    left_out = {row.id for row in without}
    order = np.random.default_rng(seed_of(seed, "limit")).permutation(len(rows)) if limit else np.arange(len(rows))
    kept = [i for i in order if rows[i].id not in left_out]
    return [rows[i] for i in sorted(kept[: limit or None])]


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
