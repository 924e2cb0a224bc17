"""What makes a number worthless, found before it is believed.

Each guard answers a defect that published evaluation code had (Sun & Dredze, arXiv 2408.06663, and its released code):
gold labels of one class, unlabelled splits, constant predictions, examples that are scored too, rows that stand in the
training data, prompts that lost their beginning. A finding is printed under the table and kept in the results; with
``--strict`` it stops the evaluation as soon as it is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lit_consistency.tasks.definition import Task
from lit_consistency.tasks.question import Asked, AskedRows
from lit_consistency.tasks.questions import Questions

LEAST_ITEMS = 10
"""Fewer predictions, or references, may be the same by accident."""


class Finding(NamedTuple):
    """A defect: which guard found it, and what it found."""

    guard: str
    message: str


class GuardError(ValueError):
    """A finding under ``--strict``."""


def stop_if_strict(task: Task, findings: Sequence[Finding], strict: bool) -> None:
    """GuardError that names the task and its findings."""
    if strict and findings:
        told = "; ".join(f"{finding.guard}: {finding.message}" for finding in findings)
        raise GuardError(f"--strict: task {task.name}: {told}")


def check_labels(task: Task, rows: AskedRows) -> list[Finding]:
    """Rows without a label, and labels that are all the same. All rows count, also beyond a limit."""
    found = []
    n_rows = len(rows.rows)
    if rows.n_unlabelled:
        n_all = n_rows + rows.n_unlabelled
        found.append(Finding("unlabelled", f"{rows.n_unlabelled} of {n_all} rows have no label and are left out"))
    golds = {row.gold for row in rows.rows}
    several = task.kind == "choice" and all(len(row.contexts or row.labels) > 1 for row in rows.rows)
    if several and n_rows > 1 and len(golds) == 1:
        row = rows.rows[0]
        label = (row.contexts or row.labels)[row.gold]
        found.append(Finding("single_class", f"all {n_rows} gold labels are number {row.gold} (such as {label!r})"))
    written = {row.references[0] for row in rows.rows} if task.kind == "generation" and task.program is None else set()
    if len(written) == 1 and n_rows >= LEAST_ITEMS:
        found.append(Finding("single_class", f"all {n_rows} references are {written.pop()[:40]!r}"))
    return found


def check_shots(given_away: Sequence[Asked], n_rows: int) -> list[Finding]:
    """Few-shot examples that are among the rows to be scored; these rows have been left out."""
    if not given_away:
        return []
    places = ", ".join(row.place for row in given_away[:3])
    n = len(given_away)
    return [Finding("shot_scored", f"{n} of {n_rows} rows are few-shot examples too and are left out ({places})")]


def check_truncation(questions: Questions) -> list[Finding]:
    """Prompts that lost tokens or examples because the context is too short."""
    found = []
    asked = questions.questions
    cut = [question.n_truncated for question in asked if question.n_truncated]
    dropped = [questions.shots - len(question.shot_ids) for question in asked]
    if cut:
        found.append(
            Finding("truncated", f"{len(cut)} of {len(asked)} questions lost {sum(cut)} tokens of their prompt")
        )
    if any(dropped):
        n = sum(count > 0 for count in dropped)
        found.append(Finding("truncated", f"{n} of {len(asked)} prompts lost {sum(dropped)} few-shot examples"))
    return found


def check_contamination(asked: Sequence[Asked], overlap: Sequence[int]) -> list[Finding]:
    """Rows found in the training data, see ``contamination.Overlap``."""
    if not overlap:
        return []
    places = ", ".join(asked[i].place for i in overlap[:3])
    return [Finding("contaminated", f"{len(overlap)} of {len(asked)} rows stand in the training data ({places})")]


def overlap_text(row: Asked) -> str:
    """What is looked for in the training data: question and right answer; of a document or a pair, the text."""
    if row.contexts:
        return f"{row.contexts[row.gold]} {row.answer}"
    return "\n".join([*(value for _, value in row.fields), row.answer])


def check_predictions(task: Task, predictions: Sequence[int | str], golds: Sequence[int | str]) -> list[Finding]:
    """The same prediction for every row, although the right answers differ."""
    constant = len(set(predictions)) == 1 and len(predictions) >= LEAST_ITEMS
    if task.kind not in ("choice", "generation") or not constant or len(set(golds)) < 2:
        return []
    most = Counter(golds).most_common(1)[0][1] / len(golds)
    shown = str(predictions[0])[:40]
    return [
        Finding("constant", f"all {len(predictions)} predictions are {shown!r}; the majority alone gives {most:.3f}")
    ]
