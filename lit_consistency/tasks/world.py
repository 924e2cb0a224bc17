"""A synthetic world's questions, text and rows as the rows of a task, so that worlds are asked like anything else.

Also the same as files, for the training split of a sequence of tasks (``write_world_task``): of a completion the
answer is kept that the questions ask for, and given up is what it says behind it (in the biographies, a full stop).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_consistency.data.worlds.base import Probe, World, check_choice
from lit_consistency.records.atomic import write_text
from lit_consistency.tasks.task_data import TaskData


def world_rows(data: TaskData) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and fields of the rows of a world: its questions, its documents, or the rows of one of its tasks.

    Raises:
        ValueError: the world has no such set of questions, part or task; names the key and what is allowed.
    """
    world = data.world
    assert world is not None
    origin = type(world).__name__
    if data.probes is not None:
        check_choice("probes", data.probes, world.probe_names)
        for number, probe in enumerate(world.probes(data.probes), start=1):
            fields = {"prompt": probe.prompt, "answer": probe.answer, "choices": list(probe.choices)}
            fields |= {"cluster": probe.cluster, **probe.tags}
            yield f"{origin}/{data.probes}:{number}", fields
    elif data.documents is not None:
        for number, text in enumerate(world.documents(data.documents), start=1):
            yield f"{origin}/{data.documents}:{number}", {"text": text}
    else:
        task, _, split = str(data.pairs).partition("/")
        for number, (prompt, completion) in enumerate(world.rows(task, split or "test"), start=1):
            yield f"{origin}/{data.pairs}:{number}", {"prompt": prompt, "completion": completion}


def write_world_task(folder: Path, name: str, world: World, probes: str, task: str | None = None) -> Path:
    """Write ``NAME.yaml`` and its rows as JSON Lines.

    Args:
        folder: where to.
        name: of the task.
        world: whose questions are asked.
        probes: one of the world's sets of questions, the rows that are scored.
        task: one of the world's finetuning tasks, the training split; None: the task has none.

    Returns:
        The task file.

    Raises:
        ValueError: the world has no such questions or task, or a row of the task answers none of the questions.
    """
    check_choice("probes", probes, world.probe_names)
    questions = world.probes(probes)
    test = [_row(probe.prompt, probe.answer, probe.choices) for probe in questions]
    content: dict[str, Any] = {
        "name": name,
        "kind": "choice",
        "data": {"path": str(_write_rows(folder / f"{name}.test.jsonl", test))},
        "fields": {"": "{prompt}"},
        "choices": "{choices}",
        "gold": "{gold}",
        "metrics": ["accuracy"],
        "answer_heading": "",
    }
    if task is not None:
        check_choice("task", task, world.tasks)
        train = list(_training_rows(world.rows(task), questions))
        content["few_shot"] = {"path": str(_write_rows(folder / f"{name}.train.jsonl", train))}
    path = folder / f"{name}.yaml"
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    return path


def _training_rows(pairs: Sequence[tuple[str, str]], questions: Sequence[Probe]) -> Iterator[dict[str, Any]]:
    """Prompt and completion as a question: the answer is the choice with which the completion begins."""
    choices = {choice.strip(): probe.choices for probe in questions for choice in probe.choices}
    for prompt, completion in pairs:
        word = re.match(r"\s*([^\s.]+)", completion)
        if word is None or word[1] not in choices:
            raise ValueError(f"task: the row {prompt + completion!r} answers none of the questions; expected another")
        yield _row(prompt, word[1], choices[word[1]])


def _row(prompt: str, answer: str, choices: Sequence[str]) -> dict[str, Any]:
    texts = [choice.strip() for choice in choices]
    return {"prompt": prompt.strip(), "choices": texts, "gold": texts.index(answer.strip())}


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path
