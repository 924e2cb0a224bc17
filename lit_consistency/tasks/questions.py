"""What is handed to the engines: questions, rendered and tokenized, with the task they belong to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lit_consistency.inference.items import Item
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.tasks.definition import Task

__all__ = ["GenerationOptions", "Question", "Questions"]


class Question(NamedTuple):
    """One row, ready to be scored.

    Attributes:
        id: of the row, the same under every seed, limit and format.
        place: where the row stands, ``file:line``, for messages.
        group: phenomenon (BLiMP), subject (MMLU), or None.
        prompt: the rendered prompt with its few-shot examples; of a text, what the model sees before it.
        item: candidates, for text, choice and pairs.
        tokens: (T,) int64, the prompt's tokens, for generation.
        references: accepted answers of a generation; of a program, the tests.
        labels: the candidates' texts; of a program, what stands before the answer.
        n_truncated: prompt tokens that were cut because the context is too short.
        shot_ids: ids of the few-shot rows in the prompt.
    """

    id: str
    place: str
    group: str | None
    prompt: str
    item: Item | None
    tokens: np.ndarray | None
    references: tuple[str, ...]
    labels: tuple[str, ...]
    n_truncated: int
    shot_ids: tuple[str, ...]


class Questions(NamedTuple):
    """The questions of a task in one format, with so many few-shot examples, and what ends a turn in that format."""

    task: Task
    format: str
    shots: int
    questions: list[Question]
    end_tokens: tuple[int, ...] = ()
