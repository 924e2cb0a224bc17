"""From generated texts to the numbers of a task: exact match, ROUGE-L, pass@k, maj@k, as means over the questions.

Of several samples of a question the mean counts (exact match, ROUGE-L), whether one of k is right (pass@k, unbiased),
or whether the majority of the first k is (maj@k).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from lit_consistency.inference.generate import Generation
from lit_consistency.metrics import (
    AnswerRule,
    NumberRule,
    exact_match,
    extract,
    maj_at_k,
    mean_over_samples,
    pass_at_k,
    rouge_l,
)
from lit_consistency.stats.intervals import ratio
from lit_consistency.tasks.code.run import run_many
from lit_consistency.tasks.definition import Task
from lit_consistency.tasks.measure import Measured, record_of
from lit_consistency.tasks.questions import Questions

WORDS = ("none", "first_line")
"""Extractions whose answers are compared without punctuation and articles; of numbers, and of what a regular expression
cuts out, every sign counts: without it -x would equal x."""


def measure_generation(questions: Questions, generations: Sequence[Sequence[Generation]]) -> Measured:
    """Numbers of a task whose answers were written.

    Args:
        questions: of kind generation, without ``code``.
        generations: the samples of each, in their order.
    """
    task = questions.task
    rule = answer_rule(task.extraction, task.numbers)
    references = [accepted_answers(q.references, task.extraction, task.numbers) for q in questions.questions]
    answers = [[extract(sample.text, task.extraction, task.numbers) for sample in samples] for samples in generations]
    right = [
        [exact_match(answer, accepted, rule) for answer in given]
        for given, accepted in zip(answers, references, strict=True)
    ]
    values = {
        metric: [_score(task, metric, *parts) for parts in zip(answers, references, right, strict=True)]
        for metric in task.metrics
    }
    golds = [accepted[0] for accepted in references]
    baselines = {"majority": _majority(references, rule)} if "exact_match" in task.metrics else {}
    return _measured(questions, generations, values, answers, golds, baselines)


def measure_programs(
    questions: Questions, generations: Sequence[Sequence[Generation]], *, allow_code_execution: bool
) -> Measured:
    """Numbers of a task whose answers are programs, run with their tests; see code.py for what confines them.

    Args:
        questions: of kind generation, with ``program``.
        generations: the samples of each, in their order.
        allow_code_execution: the user's word that generated code may run on this machine.

    Raises:
        ValueError: it may not.
    """
    task = questions.task
    programs = [
        (question.labels[0] + sample.text, "\n".join(question.references))
        for question, samples in zip(questions.questions, generations, strict=True)
        for sample in samples
    ]
    n_parallel = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    results = iter(run_many(programs, allow_code_execution=allow_code_execution, n_parallel=n_parallel))
    passed = [[next(results) for _ in samples] for samples in generations]
    right = [[float(result.passed) for result in given] for given in passed]
    values = {metric: [_score(task, metric, [], [], given) for given in right] for metric in task.metrics}
    answers = [[result.reason for result in given] for given in passed]
    return _measured(questions, generations, values, answers, ["passed"] * len(answers), {})


def _measured(
    questions: Questions,
    generations: Sequence[Sequence[Generation]],
    values: dict[str, list[float]],
    answers: Sequence[Sequence[str | None]],
    golds: Sequence[str],
    baselines: dict[str, float],
) -> Measured:
    records = []
    for i, question in enumerate(questions.questions):
        record = {**record_of(questions, question), "score": values[questions.task.metric][i], "weight": 1.0}
        record |= {metric: values[metric][i] for metric in values}
        record |= {"prediction": answers[i][0], "gold": golds[i]}
        record |= {"texts": [s.text for s in generations[i]], "finished": [s.finished for s in generations[i]]}
        records.append(record)
    predictions: list[int | str] = [given[0] or "" for given in answers]
    ratios = {metric: ratio(numbers) for metric, numbers in values.items()}
    return Measured(ratios, records, predictions, list(golds), baselines)


def _majority(references: Sequence[Sequence[str]], rule: AnswerRule) -> float:
    """Exact match of whoever always writes the answer that is accepted most often."""
    counts = Counter(key for accepted in references for key in set(map(rule.key, accepted)))
    return max(counts.values()) / len(references)


def accepted_answers(references: Sequence[str], extraction: str, numbers: NumberRule = "value") -> list[str]:
    """The references' answers; a reference that is an answer by itself needs no extraction."""
    if extraction == "first_line":
        return [reference.strip() for reference in references]
    return [extract(reference, extraction, numbers) or reference.strip() for reference in references]


def answer_rule(extraction: str, numbers: NumberRule = "value") -> AnswerRule:
    """How answers of this extraction are compared."""
    words = extraction in WORDS
    return AnswerRule(punctuation=words, articles=words, numbers=numbers)


def _score(
    task: Task, metric: str, answers: Sequence[str | None], accepted: Sequence[str], right: Sequence[float]
) -> float:
    """One question's score."""
    name, _, k = metric.partition("@")
    if name == "rouge_l":
        return mean_over_samples([rouge_l(answer or "", accepted) for answer in answers])
    if name == "pass":
        return pass_at_k(len(right), int(sum(right)), int(k))
    if name == "maj":
        return maj_at_k(answers, accepted, int(k), answer_rule(task.extraction, task.numbers))
    return mean_over_samples(right)
