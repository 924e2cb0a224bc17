"""A row of data, as its task reads it, and as one model is asked: ``TaskRow``, ``Question``, ``EncodedQuestion``.

A row without a label (gold -1, -, null or empty) is counted and left out; a task whose rows are all so is refused:
the unlabelled test splits of GLUE were once scored as accuracy 1.000 (see guards.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.data.sources.rows import Conversation
from lit_consistency.inference.items import Item
from lit_consistency.records.fingerprints import seed_of


class TaskRow(NamedTuple):
    """A row, its id, and where it stands."""

    id: str
    place: str
    fields: dict[str, Any]


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


def limited(rows: Sequence[Question], limit: int, seed: int, without: Sequence[Question] = ()) -> list[Question]:
    """So many of the rows, drawn by the seed, in their order; 0: all.

    Rows that are left out are left out of the draw of all, so that with and without examples the others stay the same.
    """
    left_out = {row.id for row in without}
    order = np.random.default_rng(seed_of(seed, "limit")).permutation(len(rows)) if limit else np.arange(len(rows))
    kept = [i for i in order if rows[i].id not in left_out]
    return [rows[i] for i in sorted(kept[: limit or None])]
