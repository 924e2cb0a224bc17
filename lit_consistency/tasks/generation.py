"""The model writes, and its text is compared with references, or run with tests.

A greedy answer is one text; of several samples there are pass@K and maj@K. Programs run on the first rank only: on
several, their time limits would make the ranks disagree.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.distributed as dist

from lit_consistency.inference.generate import Generation, generate
from lit_consistency.inference.items import Item
from lit_consistency.inference.sampling import GenerationOptions
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
from lit_consistency.tasks.code.run import confinement, needed_walls, run_many
from lit_consistency.tasks.likelihoods import record_of
from lit_consistency.tasks.measured import Measured, clusters_of
from lit_consistency.tasks.prompts import Fitter, ask_in_format, candidate
from lit_consistency.tasks.question import EncodedQuestion, Question, TaskRow
from lit_consistency.tasks.reading import headed_question
from lit_consistency.tasks.task import Asking, EncodedTask, Engine, PromptedTask, ReadTask, check_pattern
from lit_consistency.tasks.templates import as_text, render, take

EXTRACTIONS = ("none", "gsm8k", "last_number", "first_line", "json")
WORDS = ("none", "first_line")
"""Extractions whose answers are compared without punctuation and articles; of numbers, and of what a regular expression
cuts out, every sign counts: without it -x would equal x."""


@dataclass(frozen=True, kw_only=True)
class GenerationTask(PromptedTask):
    """Written answers.

    Args:
        references: template of the accepted answer or answers; with ``program``, of the tests.
        demonstration: template of the answer in a few-shot example; the first reference when not given.
        generation: how the model is asked to write.
        extraction: of the answer from the text: one of ``EXTRACTIONS`` or a regular expression with one group.
        numbers: ``value`` (51 is 51.0, $29.00 is 29), or ``string``, as lm-evaluation-harness compares numbers.
        program: template of what stands before the answer in a program, which is run with the references as tests;
            needs ``--allow_code_execution``. Metrics are then pass@K, or exact_match for the share that passes.
    """

    kind: ClassVar[str] = "generation"
    METRICS: ClassVar[tuple[str, ...]] = ("exact_match", "rouge_l", "pass@K", "maj@K")
    DEFAULT_METRICS: ClassVar[tuple[str, ...]] = ()
    TEMPLATES: ClassVar[tuple[str, ...]] = (*PromptedTask.TEMPLATES, "references", "demonstration", "program")

    references: str | None = None
    demonstration: str | None = None
    generation: GenerationOptions = GenerationOptions()
    extraction: str = "none"
    numbers: NumberRule = "value"
    program: str | None = None

    @property
    def runs_code(self) -> bool:
        """Of tasks with a ``program``."""
        return self.program is not None

    def _check_metric(self, metric: str) -> None:
        name, _, k = metric.partition("@")
        if (f"{name}@K" if k else name) not in self.METRICS:
            raise ValueError(f"metrics: {metric!r}: expected one of {', '.join(self.METRICS)}")
        if k and not (k.isdecimal() and 1 <= int(k) <= self.generation.n_samples):
            raise ValueError(f"metrics: {metric!r}: expected K from 1 to n_samples = {self.generation.n_samples}")

    def _check(self) -> None:
        self._needs("references")
        if not self.fields:
            raise ValueError("fields: expected at least one")
        for key in ("max_new_tokens", "n_samples"):
            if getattr(self.generation, key) < 1:
                raise ValueError(f"generation.{key} = {getattr(self.generation, key)}: expected at least 1")
        if self.program and not all(metric.startswith(("pass@", "exact_match")) for metric in self.metrics):
            raise ValueError(f"metrics = {list(self.metrics)}: of programs, expected pass@K or exact_match")
        if self.generation.n_samples > 1 and self.generation.temperature <= 0:
            raise ValueError("generation.n_samples: greedy samples are all the same; expected temperature above 0")
        if self.extraction not in EXTRACTIONS:
            try:
                check_pattern("extraction", self.extraction)
            except ValueError as error:
                raise ValueError(f"{error}, or one of {', '.join(EXTRACTIONS)}") from None
            if re.compile(self.extraction).groups != 1:
                raise ValueError(
                    f"extraction = {self.extraction!r}: expected one of {', '.join(EXTRACTIONS)}, or a pattern with "
                    "one group"
                )

    def read(self, rows: Sequence[TaskRow]) -> list[Question]:
        """Fields and references of every row."""
        return [self._read(row) for row in rows]

    def _read(self, row: TaskRow) -> Question:
        values = take(str(self.references), row.fields, row.place)
        accepted = values if isinstance(values, list) else [values]
        if not accepted:
            raise ValueError(
                f"{row.place}: references = {self.references}: an empty list; expected at least one answer"
            )
        references = tuple(as_text(value, str(self.references), row.place) for value in accepted)
        answer = render(self.demonstration, row.fields, row.place) if self.demonstration else references[0]
        labels = (render(self.program, row.fields, row.place),) if self.program else ()
        question = headed_question(self, row, verbatim=self.program is not None)
        return question._replace(labels=labels, references=references, answer=answer)

    def questions(self, rows: ReadTask, asking: Asking) -> EncodedTask:
        """Every prompt, with room behind it for what is written; its item holds the first reference."""
        room = asking.block_size - self.generation.max_new_tokens
        if room < 1:
            raise ValueError(
                f"task {self.name}: generation.max_new_tokens = {self.generation.max_new_tokens}: expected less than "
                f"the model's context of {asking.block_size} tokens"
            )

        def encode_row(fitter: Fitter, row: Question) -> EncodedQuestion:
            prompt, tokens, n_lost, shot_ids = fitter.prompt(row, room)
            item = None
            if self.program is None or self.demonstration is not None:  # else the references are tests
                text = fitter.form.answer_text(self, row.answer)
                if text.strip():
                    answer = fitter.answer(row, row.answer)
                    item = Item([candidate(tokens, answer, len(text.encode()), asking.block_size)], gold=0)
            named = (row.id, row.place, row.group, row.cluster)
            return EncodedQuestion(*named, prompt, item, row.labels, tokens, row.references, n_lost, shot_ids)

        return ask_in_format(self, rows, asking, encode_row)

    def measure(self, encoded: EncodedTask, engine: Engine) -> Measured:
        """Let the model write, and compare."""
        prompts = [question.tokens for question in encoded.questions if question.tokens is not None]
        written = generate(
            engine.model,
            prompts,
            self.generation,
            engine.tokenizer,
            batch_tokens=engine.batch_tokens,
            device=engine.device,
            end_tokens=encoded.end_tokens,
        )
        engine.advance(len(prompts))
        if self.program is None:
            return measure_generation(self, encoded, written)
        allowed = engine.allow_code_execution, engine.allow_unconfined_code
        return _on_first_rank(lambda: measure_programs(self, encoded, written, needed_walls(*allowed)))


def measure_generation(
    task: GenerationTask, questions: EncodedTask, generations: Sequence[Sequence[Generation]]
) -> Measured:
    """Numbers of a task whose answers were written.

    Args:
        task: the task.
        questions: of it, without ``code``.
        generations: the samples of each, in their order.
    """
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
    return _measured(task, questions, generations, values, answers, golds, baselines)


def measure_programs(
    task: GenerationTask,
    questions: EncodedTask,
    generations: Sequence[Sequence[Generation]],
    needed: Sequence[str],
) -> Measured:
    """Numbers of a task whose answers are programs, run with their tests; see code/run.py for what confines them.

    Args:
        task: the task.
        questions: of it, with ``program``.
        generations: the samples of each, in their order.
        needed: walls without which nothing runs, of ``needed_walls``.
    """
    programs = [
        (question.labels[0] + sample.text, "\n".join(question.references))
        for question, samples in zip(questions.questions, generations, strict=True)
        for sample in samples
    ]
    n_parallel = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    results = iter(run_many(programs, needed=needed, n_parallel=n_parallel))
    passed = [[next(results) for _ in samples] for samples in generations]
    right = [[float(result.passed) for result in given] for given in passed]
    values = {metric: [_score(task, metric, [], [], given) for given in right] for metric in task.metrics}
    answers = [[result.reason for result in given] for given in passed]
    measured = _measured(task, questions, generations, values, answers, ["passed"] * len(answers), {})
    for record, given in zip(measured.records, passed, strict=True):
        record["confined"] = [" ".join(result.confined) for result in given]
    return measured._replace(confined=confinement([result for given in passed for result in given]))


def _measured(
    task: GenerationTask,
    questions: EncodedTask,
    generations: Sequence[Sequence[Generation]],
    values: dict[str, list[float]],
    answers: Sequence[Sequence[str | None]],
    golds: Sequence[str],
    baselines: dict[str, float],
) -> Measured:
    records = []
    for i, question in enumerate(questions.questions):
        record = {**record_of(questions, question), "score": values[task.metric][i], "weight": 1.0}
        record |= {metric: values[metric][i] for metric in values}
        record |= {"prediction": answers[i][0], "gold": golds[i]}
        record |= {"texts": [s.text for s in generations[i]], "finished": [s.finished for s in generations[i]]}
        records.append(record)
    predictions: list[int | str] = [given[0] or "" for given in answers]
    ratios = {metric: ratio(numbers) for metric, numbers in values.items()}
    return Measured(ratios, records, predictions, list(golds), baselines, clusters_of(questions.questions))


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
    task: GenerationTask, metric: str, answers: Sequence[str | None], accepted: Sequence[str], right: Sequence[float]
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


def _on_first_rank(run: Callable[[], Measured]) -> Measured:
    """What the first rank measures, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return run()
    outcome: list[Measured | Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            outcome = [run()]
        except Exception as error:  # told to the ranks that wait, then raised on all
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    assert isinstance(outcome[0], Measured)
    return outcome[0]
