"""A row as its task reads it: fields, candidates, the right one. No format, no tokens yet.

A row without a label (gold -1, -, null or empty) is counted and left out; a task whose rows are all so is refused:
the unlabelled test splits of GLUE were once scored as accuracy 1.000 (see guards.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.records.fingerprints import seed_of
from lit_consistency.tasks.definition import Task, TaskData
from lit_consistency.tasks.rows import TaskRow, read_rows
from lit_consistency.tasks.templates import as_text, render, take

UNLABELLED = (None, -1, "", "-1", "-")


class Asked(NamedTuple):
    """What a row asks.

    Attributes:
        id: of the row.
        place: ``file:line``.
        group: the part of the set it belongs to, or None.
        fields: headings and values, in order; of a text, the document.
        instruction: what is to be done, in a sentence.
        contexts: one per candidate, of a partial evaluation.
        labels: the candidates' texts; the text; or what stands before the answer in a program.
        gold: index of the right candidate.
        answer: what a few-shot example answers.
        references: accepted answers, or tests.
    """

    id: str
    place: str
    group: str | None
    fields: tuple[tuple[str, str], ...]
    instruction: str
    contexts: tuple[str, ...]
    labels: tuple[str, ...]
    gold: int
    answer: str
    references: tuple[str, ...]

    @property
    def text(self) -> str:
        """The question by itself, without headings: by this two rows are told to be the same."""
        return "\n".join([*(value for _, value in self.fields), *self.contexts] or self.labels)


class AskedRows(NamedTuple):
    """The labelled rows of a task's data, and how many had no label."""

    rows: list[Asked]
    n_unlabelled: int


def read_asked(task: Task, data: TaskData) -> AskedRows:
    """What the rows of the data ask.

    Raises:
        ValueError: a row lacks a field, has choices without a gold that fits, or no row is left; names file and row.
    """
    rows = [row for row in read_rows(task, data) if _complete(task, row)]
    labelled = [row for row in rows if task.gold is None or not _unlabelled(task, row)]
    if not labelled:
        what = f"none of {len(rows)} rows has a label ({task.gold} is -1, null or empty)" if rows else "no row is left"
        raise ValueError(f"{data.path or data.hub}: {what}; task {task.name} needs a split with labels")
    pool = sorted({render(str(task.gold), row.fields, row.place) for row in labelled}) if task.distractors else []
    if task.distractors and len(pool) <= task.distractors:
        raise ValueError(f"{data.path}: {len(pool)} different {task.gold}; expected more than {task.distractors}")
    return AskedRows([_ask(task, row, pool) for row in labelled], len(rows) - len(labelled))


def _complete(task: Task, row: TaskRow) -> bool:
    return all(take(f"{{{name}}}", row.fields, row.place) not in (None, "") for name in task.requires)


def _unlabelled(task: Task, row: TaskRow) -> bool:
    value = take(str(task.gold), row.fields, row.place)
    if isinstance(value, (list, dict)):
        raise ValueError(f"{row.place}: {task.gold} is a {type(value).__name__}; expected an index or a text")
    named = isinstance(task.gold_values, tuple) and str(value) in map(str, task.gold_values)
    return not named and any(value is none or (value == none and not isinstance(value, bool)) for none in UNLABELLED)


def _ask(task: Task, row: TaskRow, pool: list[str]) -> Asked:
    place, values = row.place, row.fields
    contexts = _texts(task.contexts, "contexts", row)
    whole = task.text or task.program
    labels = (render(whole, values, place),) if whole else _texts(task.choices, "choices", row)
    references = _references(task, row)
    gold = 0
    if pool:
        labels, gold = _draw(task, row, pool)
    elif task.gold is not None:
        gold = _gold(task, row, contexts or labels)
    if task.shuffle:
        labels, gold = _shuffled(labels, gold, np.random.default_rng(seed_of(task.name, row.id)))
    answer = references[0] if references else labels[0 if contexts else gold]
    return Asked(
        id=row.id,
        place=place,
        group=render(task.group, values, place) if task.group else None,
        fields=tuple((name, _field(task, template, row)) for name, template in task.fields.items()),
        instruction=render(task.instruction, values, place).strip(),
        contexts=contexts,
        labels=labels,
        gold=gold,
        answer=render(task.demonstration, values, place) if task.demonstration else answer,
        references=references,
    )


def _field(task: Task, template: str, row: TaskRow) -> str:
    text = render(template, row.fields, row.place)
    return text if task.program else text.strip()  # the lines of a program need theirs


def _texts(templates: str | tuple[str, ...], key: str, row: TaskRow) -> tuple[str, ...]:
    """Texts of a template that is a list, or of a list of templates, without the space around them."""
    if isinstance(templates, tuple):
        found = [render(template, row.fields, row.place) for template in templates]
    else:
        values = take(templates, row.fields, row.place)
        if not isinstance(values, list) or len(values) < 2:
            raise ValueError(
                f"{row.place}: {key} = {templates}: expected a list of at least two texts, found {values!r}"
            )
        found = [as_text(value, key, row.place) for value in values]
    empty = [i for i, text in enumerate(found) if not text.strip()]
    if empty:
        raise ValueError(f"{row.place}: {key}: number {empty[0]} is empty; expected text")
    return tuple(text.strip() for text in found)


def _references(task: Task, row: TaskRow) -> tuple[str, ...]:
    if task.references is None:
        return ()
    values = take(task.references, row.fields, row.place)
    found = values if isinstance(values, list) else [values]
    if not found:
        raise ValueError(f"{row.place}: references = {task.references}: an empty list; expected at least one answer")
    return tuple(as_text(value, task.references, row.place) for value in found)


def _gold(task: Task, row: TaskRow, labels: tuple[str, ...]) -> int:
    value: Any = take(str(task.gold), row.fields, row.place)
    values = task.gold_values
    if isinstance(values, str):
        values = tuple(take(values, row.fields, row.place))
    if values:
        allowed = [str(entry) for entry in values]
        index = allowed.index(str(value)) if str(value) in allowed else None
        expected = f"one of {', '.join(allowed)}"
    elif isinstance(value, int) and not isinstance(value, bool):
        index, expected = value, f"0 to {len(labels) - 1}"
    else:
        text = str(value).strip()
        index = labels.index(text) if text in labels else None
        expected = f"an index, or one of {', '.join(map(repr, labels))}"
    if index is None or not 0 <= index < len(labels):
        raise ValueError(f"{row.place}: gold = {value!r}: expected {expected}")
    return index


def _draw(task: Task, row: TaskRow, pool: list[str]) -> tuple[tuple[str, ...], int]:
    """The right answer among wrong ones of the same column; a function of the row alone, so all runs ask the same."""
    answer = render(str(task.gold), row.fields, row.place)
    rng = np.random.default_rng(seed_of(task.name, row.id))
    wrong = [value for value in pool if value != answer]
    found = [answer, *(wrong[i] for i in rng.choice(len(wrong), task.distractors, replace=False))]
    return _shuffled(found, 0, rng)


def _shuffled(labels: Sequence[str], gold: int, rng: np.random.Generator) -> tuple[tuple[str, ...], int]:
    order = rng.permutation(len(labels))
    return tuple(labels[i] for i in order), int(np.flatnonzero(order == gold)[0])
