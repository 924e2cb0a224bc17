"""What an evaluation is going to ask, fixed before the model is loaded: a mistake in the last task costs no scoring.

A cell is a task in one format with one number of examples. A cell that stands in the output folder with the same
fingerprint is taken from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lit_consistency import __version__
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.records.results import Result, check_items, read_result, result_key
from lit_consistency.tasks.contamination import Overlap, training_documents, training_fingerprint
from lit_consistency.tasks.formats import Format
from lit_consistency.tasks.guards import (
    Finding,
    check_contamination,
    check_labels,
    check_shots,
    check_truncation,
    overlap_text,
    stop_if_strict,
)
from lit_consistency.tasks.question import Question
from lit_consistency.tasks.reading import read_task
from lit_consistency.tasks.rows import fingerprint
from lit_consistency.tasks.task import Asking, EncodedTask, PromptedTask, ReadTask, Task, keys_of


@dataclass(frozen=True)
class Ask:
    """How the tasks are asked.

    Args:
        formats: of the prompts.
        shots: numbers of few-shot examples.
        limit: questions of each task at most; 0: all.
        seed: of the draws of examples and rows.
        strict: a finding of a guard is an error.
        train_data: files in which the rows are looked for.
        output: folder with results that need not be measured again.
        item_format: of the items there; a result whose items are not there in this format is measured again.
    """

    formats: Sequence[Format]
    shots: Sequence[int]
    limit: int = 0
    seed: int = 0
    strict: bool = False
    train_data: str | None = None
    output: Path | None = None
    item_format: str = "jsonl"


class Cell(NamedTuple):
    """A task in one format: what is asked of which model, or the result that is known already."""

    task: Task
    fingerprint: str
    questions: EncodedTask
    findings: list[Finding]
    result: Result | None
    model: str


class _Draft(NamedTuple):
    questions: EncodedTask
    findings: list[Finding]
    fingerprint: str
    result: Result | None


def plan_cells(tasks: Sequence[Task], ask: Ask, tokenizer: Tokenizer, block_size: int, model: Any) -> list[Cell]:
    """All cells, with what the guards found so far.

    Args:
        tasks: what is asked.
        ask: how.
        tokenizer: of the model.
        block_size: of the model.
        model: what else the numbers depend on (hash of the weights, configuration, precision), as JSON.

    Raises:
        ValueError: a task, its data, or a format does not fit; names file and row.
        GuardError: a guard found something, under ``strict``.
    """
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"tasks: {twice[0]} is there twice; expected every name once")
    forms = [form.name for form in ask.formats]
    if twice := sorted({name for name in forms if forms.count(name) > 1}):
        raise ValueError(f"format: two are called {twice[0]}, as their results would be; expected every name once")
    shared = {"model": model, "tokenizer": tokenizer.fingerprint(), "block_size": block_size, "version": __version__}
    shared |= {"limit": ask.limit, "seed": ask.seed}
    shared["train_data"] = training_fingerprint(ask.train_data) if ask.train_data else None
    drafts = [draft for task in tasks for draft in _drafts(task, ask, tokenizer, block_size, shared)]
    if ask.train_data:
        drafts = _look_into_training(drafts, ask.train_data)
    for draft in drafts:
        stop_if_strict(draft.questions.task, draft.findings, ask.strict)
    mark = fingerprint_of(model)
    return [Cell(d.questions.task, d.fingerprint, d.questions, d.findings, d.result, mark) for d in drafts]


def _drafts(task: Task, ask: Ask, tokenizer: Tokenizer, block_size: int, shared: dict[str, Any]) -> Iterator[_Draft]:
    cells = [(form, shots) for form in ask.formats for shots in ask.shots] if task.prompted else [(ask.formats[0], 0)]
    few_shot = task.few_shot if isinstance(task, PromptedTask) else None
    data = {"data": fingerprint(task.data), "few_shot": fingerprint(few_shot) if few_shot else None}
    rows: ReadTask | None = None
    for form, shots in cells:
        identity = {
            **shared,
            **data,
            "task": keys_of(task),  # the files themselves count, wherever they stand
            "format": asdict(form) if task.prompted else None,
            "shots": shots,
        }
        mark = fingerprint_of(identity)
        name = form.name if task.prompted else "none"
        if known := _known(ask, result_key(task.name, name, shots), mark):
            findings = [Finding(*finding) for finding in known.findings]
            yield _Draft(EncodedTask(task, name, shots, []), findings, mark, known)
            continue
        rows = rows or read_task(task, with_training=max(ask.shots) > 0)
        encoded = task.questions(rows, Asking(tokenizer, block_size, form, shots, ask.seed, ask.limit))
        findings = [
            *check_labels(rows),
            *check_shots(encoded.given_away, len(rows.scored)),
            *check_truncation(encoded),
        ]
        yield _Draft(encoded, findings, mark, None)


def _known(ask: Ask, key: str, mark: str) -> Result | None:
    """The result in the folder, unless it depends on something else, has no items, or cannot be read."""
    if ask.output is None:
        return None
    path = ask.output / "results" / f"{key}.json"
    if not path.is_file() or not (ask.output / "items" / f"{key}.{ask.item_format}").is_file():
        return None
    try:
        result = read_result(path)
        check_items(ask.output, result)
    except ValueError as error:
        warnings.warn(f"{error}; measured again", stacklevel=2)
        return None
    return result if result.fingerprint == mark else None


def _look_into_training(drafts: list[_Draft], path: str) -> list[_Draft]:
    """The drafts with a finding for each whose rows stand in the training data, which is read once."""
    numbers: dict[str, int] = {}
    for draft in drafts:
        for row in draft.questions.rows:
            numbers.setdefault(overlap_text(row), len(numbers))
    overlapping = set(Overlap(list(numbers)).found_in(training_documents(path)))
    checked = []
    for draft in drafts:
        rows: list[Question] = draft.questions.rows
        hits = [i for i, row in enumerate(rows) if numbers[overlap_text(row)] in overlapping]
        checked.append(draft._replace(findings=[*draft.findings, *check_contamination(rows, hits)]))
    return checked
