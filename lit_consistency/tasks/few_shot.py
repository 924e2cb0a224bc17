"""Few-shot examples: one fixed draw per task, from the training split, by the seed.

All questions of a task see the same examples, so that a long common prefix is computed once. The draw is a function
of seed and task; a smaller number of examples is the beginning of a larger one. An example is never scored: a row that
asks the same (in other letter case or white space) is left out of the scored ones, and reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_consistency.records.fingerprints import seed_of
from lit_consistency.tasks.question import Question
from lit_consistency.tasks.task import PromptedTask


def draw_shots(task: PromptedTask, training: Sequence[Question] | None, shots: int, seed: int) -> list[Question]:
    """The examples.

    Args:
        task: the task.
        training: labelled rows of its training split, None where it has none.
        shots: how many examples.
        seed: of the draw.

    Raises:
        ValueError: more examples are asked for than there are, or the task has no training split.
    """
    if shots == 0:
        return []
    if training is None:
        raise ValueError(
            f"shots = {shots}: task {task.name} has no key `few_shot`, examples come from a training split"
        )
    if shots > len(training):
        raise ValueError(f"shots = {shots}: task {task.name} has {len(training)} examples, in {_origin(task)}")
    order = np.random.default_rng(seed_of(seed, task.name)).permutation(len(training))
    return [training[i] for i in order[:shots]]


def draw_shots_by_group(
    task: PromptedTask, scored: Sequence[Question], training: Sequence[Question] | None, shots: int, seed: int
) -> dict[str | None, list[Question]]:
    """The examples of every group of the scored rows; of one draw for all, unless ``shots_from_group``.

    Raises:
        ValueError: a group has fewer examples than are asked for.
    """
    groups = {row.group for row in scored}
    if not task.shots_from_group or training is None:
        return dict.fromkeys(groups, draw_shots(task, training, shots, seed))
    members: dict[str | None, list[Question]] = {group: [] for group in groups}
    for row in training:
        members.setdefault(row.group, []).append(row)
    short = min(groups, key=lambda group: len(members[group]))
    if shots > len(members[short]):
        raise ValueError(
            f"shots = {shots}: group {short} of task {task.name} has {len(members[short])} examples, in {_origin(task)}"
        )
    return {group: draw_shots(task, members[group], shots, seed) for group in groups}


def _origin(task: PromptedTask) -> str:
    assert task.few_shot is not None
    return task.few_shot.origin


def without_shots(rows: Sequence[Question], shots: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """The rows that may be scored, and those that a few-shot example gives away."""
    given = {same_text(shot) for shot in shots}
    kept: list[Question] = []
    removed: list[Question] = []
    for row in rows:
        (removed if same_text(row) in given else kept).append(row)
    return kept, removed


def same_text(row: Question) -> str:
    """The question in lower case with single spaces."""
    return " ".join(row.text.casefold().split())
