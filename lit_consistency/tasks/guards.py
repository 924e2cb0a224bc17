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

from lit_consistency.tasks.choice import ChoiceTask
from lit_consistency.tasks.generation import GenerationTask
from lit_consistency.tasks.question import Question
from lit_consistency.tasks.task import EncodedTask, ReadTask, Task

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
        listed = "; ".join(f"{finding.guard}: {finding.message}" for finding in findings)
        raise GuardError(f"--strict: task {task.name}: {listed}")


def check_labels(rows: ReadTask) -> list[Finding]:
    """Rows without a label, and labels that are all the same. All rows count, also beyond a limit."""
    findings = []
    n_rows = len(rows.scored)
    if rows.n_unlabelled:
        n_all = n_rows + rows.n_unlabelled
        findings.append(Finding("unlabelled", f"{rows.n_unlabelled} of {n_all} rows have no label and are left out"))
    several = isinstance(rows.task, ChoiceTask) and all(len(row.contexts or row.labels) > 1 for row in rows.scored)
    if several and n_rows > 1 and len({row.gold for row in rows.scored}) == 1:
        row = rows.scored[0]
        label = (row.contexts or row.labels)[row.gold]
        findings.append(Finding("single_class", f"all {n_rows} gold labels are number {row.gold} (such as {label!r})"))
    if isinstance(rows.task, GenerationTask) and rows.task.program is None and n_rows >= LEAST_ITEMS:
        written = {row.references[0] for row in rows.scored}
        if len(written) == 1:
            findings.append(Finding("single_class", f"all {n_rows} references are {written.pop()[:40]!r}"))
    return findings


def check_shots(given_away: Sequence[Question], n_rows: int) -> list[Finding]:
    """Few-shot examples that are among the rows to be scored; these rows have been left out."""
    if not given_away:
        return []
    places = ", ".join(row.place for row in given_away[:3])
    n = len(given_away)
    return [Finding("shot_scored", f"{n} of {n_rows} rows are few-shot examples too and are left out ({places})")]


def check_truncation(encoded: EncodedTask) -> list[Finding]:
    """Prompts that lost tokens or examples because the context is too short."""
    findings = []
    n_asked = len(encoded.questions)
    cut = [question.n_truncated for question in encoded.questions if question.n_truncated]
    dropped = [encoded.shots - len(question.shot_ids) for question in encoded.questions]
    if cut:
        findings.append(Finding("truncated", f"{len(cut)} of {n_asked} questions lost {sum(cut)} tokens"))
    if any(dropped):
        n = sum(count > 0 for count in dropped)
        findings.append(Finding("truncated", f"{n} of {n_asked} prompts lost {sum(dropped)} few-shot examples"))
    return findings


def check_contamination(rows: Sequence[Question], overlap: Sequence[int]) -> list[Finding]:
    """Rows found in the training data, see ``contamination.Overlap``."""
    if not overlap:
        return []
    places = ", ".join(rows[i].place for i in overlap[:3])
    return [Finding("contaminated", f"{len(overlap)} of {len(rows)} rows stand in the training data ({places})")]


def overlap_text(row: Question) -> str:
    """What is looked for in the training data: question and right answer; of a document or a pair, the text."""
    if row.contexts:
        return f"{row.contexts[row.gold]} {row.answer}"
    return "\n".join([*(value for _, value in row.fields), row.answer])


def check_predictions(task: Task, predictions: Sequence[int | str], golds: Sequence[int | str]) -> list[Finding]:
    """The same prediction for every row, although the right answers differ."""
    constant = len(set(predictions)) == 1 and len(predictions) >= LEAST_ITEMS
    if not isinstance(task, (ChoiceTask, GenerationTask)) or not constant or len(set(golds)) < 2:
        return []
    most = Counter(golds).most_common(1)[0][1] / len(golds)
    shown = str(predictions[0])[:40]
    return [
        Finding("constant", f"all {len(predictions)} predictions are {shown!r}; the majority alone gives {most:.3f}")
    ]
