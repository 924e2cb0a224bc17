"""Our tasks as task files of lm-evaluation-harness: the rendered prompts and answers, and nothing left to arrange.

``export_tasks`` writes NAME.jsonl and NAME.yaml. It first asks whether lm-eval would feed the very tokens that we
score, so that scores over there equal ours; where it would not (a prompt that was cut, files of a tokenizer that
contradict one another) the export is refused. Answers that are written are judged by our own functions, so lm-eval must
find lit_consistency installed. Given up: code, several samples, balanced accuracy, and prompts cut to the context.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.evaluation.harness.tokens import HarnessTokens, ScoredTokens
from lit_consistency.inference.items import Candidate
from lit_consistency.metrics import exact_match, extract, rouge_l
from lit_consistency.tasks.completion import CompletionTask
from lit_consistency.tasks.generation import GenerationTask, accepted_answers, answer_rule
from lit_consistency.tasks.question import EncodedQuestion
from lit_consistency.tasks.task import EncodedTask
from lit_consistency.tasks.text import TextTask

JUDGED = ("exact_match", "rouge_l")
SCORING = "from lit_consistency.evaluation.harness.export import process_results\n\n__all__ = ['process_results']\n"
Document = dict[str, Any]


class _Exported(NamedTuple):
    documents: list[Document]
    settings: dict[str, Any]


def export_tasks(questions: EncodedTask, folder: Path, tokenizer: Tokenizer, block_size: int) -> Path:
    """Write a task of lm-eval that asks the same questions; run it with ``--include_path FOLDER --tasks NAME``.

    Args:
        questions: of one task in one format.
        folder: where the files go; it may hold other tasks.
        tokenizer: that the questions were made with.
        block_size: that they were made for.

    Returns:
        The YAML file.

    Raises:
        ValueError: lm-eval would feed other tokens, or has no way to ask this; names task and row.
    """
    task = questions.task
    name = f"lit_{task.name}" if questions.format in ("none", "default") else f"lit_{task.name}_{questions.format}"
    name = name if not questions.shots else f"{name}_{questions.shots}shot"
    tokens = HarnessTokens(tokenizer, block_size)
    if isinstance(task, GenerationTask):
        documents, settings = _generation(task, questions, tokens)
    elif isinstance(task, TextTask):
        documents, settings = _text(questions, tokens)
    elif isinstance(task, CompletionTask) and not task.prompted:
        raise ValueError(f"task {task.name}: prompt_style: lm-eval scores no end of a turn; expected fields")
    else:
        documents, settings = _choice(questions, tokens)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
        **settings,
        "metadata": {"version": 1.0},
    }
    lines = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if isinstance(task, GenerationTask):
        (folder / "lit_scoring.py").write_text(SCORING, encoding="utf-8")
        lines += "process_results: !function lit_scoring.process_results\n"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(lines, encoding="utf-8")
    return folder / f"{name}.yaml"


def process_results(doc: Document, results: list[str]) -> dict[str, float]:
    """What lm-eval calls for a written answer: our numbers for it."""
    extraction, numbers = doc["extraction"], doc["numbers"]
    answer = extract(results[0], extraction, numbers)
    accepted = accepted_answers(doc["references"], extraction, numbers)
    scores = {"exact_match": exact_match(answer, accepted, answer_rule(extraction, numbers))}
    if "rouge_l" in doc["metrics"]:
        scores["rouge_l"] = rouge_l(answer or "", accepted)
    return {name: scores[name] for name in doc["metrics"]}


def _choice(questions: EncodedTask, tokens: HarnessTokens) -> _Exported:
    rows: list[Document] = []
    for question in questions.questions:
        assert question.item is not None
        texts = [_texts(candidate, tokens) for candidate in question.item.candidates]
        _check(tokens.pair_tokens(texts), question.item.candidates, question)
        contexts, answers = ([text[i] for text in texts] for i in (0, 1))
        rows.append({"id": question.id, "gold": question.item.gold, "contexts": contexts, "answers": answers})
    settings: dict[str, Any] = {"output_type": "multiple_choice", "doc_to_choice": "answers", "doc_to_target": "gold"}
    metrics = [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_bytes"}]
    if all(len(row["answers"]) == 1 for row in rows):
        settings = {"output_type": "loglikelihood", "doc_to_target": "{{answers[0]}}"}
        metrics = [{"metric": "acc"}, {"metric": "perplexity"}]
        return _Exported(rows, {"doc_to_text": "{{contexts[0]}}", **settings, "metric_list": metrics})
    # lm-eval counts the bytes of a choice without the delimiter, so that stands by itself
    answers = [answer for row in rows for answer in row["answers"]]
    delimiters = {answer[: len(answer) - len(answer.lstrip())] for answer in answers}
    if len(delimiters) == 1:
        settings["target_delimiter"] = delimiters.pop()
        for row in rows:
            row["answers"] = [answer.lstrip() for answer in row["answers"]]
    if any(len(set(row["contexts"])) > 1 for row in rows):
        # the end of the sentence is scored: lm-eval then takes the contexts for choices, and the gold for the text
        if any(len(set(row["answers"])) > 1 for row in rows):
            raise ValueError(
                f"task {questions.task.name}: candidates differ in context and answer; lm-eval has no such"
            )
        settings |= {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "{{answers[0]}}"}
        return _Exported(rows, {**settings, "metric_list": [{"metric": "acc"}]})
    return _Exported(rows, {"doc_to_text": "{{contexts[0]}}", **settings, "metric_list": metrics})


def _text(questions: EncodedTask, tokens: HarnessTokens) -> _Exported:
    rows = []
    for document, windows in groupby(questions.questions, key=lambda question: question.id.rpartition("+")[0]):
        of_document = list(windows)
        text = "".join(window.labels[0] for window in of_document)
        ids = tokens.encode([text])[0]
        _check(
            tokens.windows(ids), [window.item.candidates[0] for window in of_document if window.item], of_document[0]
        )
        rows.append({"id": document, "text": text})
    metrics = [{"metric": name} for name in ("bits_per_byte", "byte_perplexity", "word_perplexity")]
    settings = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    return _Exported(rows, {**settings, "metric_list": metrics})


def _generation(task: GenerationTask, questions: EncodedTask, tokens: HarnessTokens) -> _Exported:
    options = task.generation
    metrics = [metric for metric in task.metrics if metric in JUDGED]
    if task.program or options.n_samples > 1 or not metrics:
        raise ValueError(
            f"task {task.name}: metrics {', '.join(task.metrics)} of {options.n_samples} samples: "
            f"expected {' or '.join(JUDGED)} of one, and no code"
        )
    rows = []
    room = tokens.max_length - options.max_new_tokens
    for question, ids in zip(
        questions.questions, tokens.encode([question.prompt for question in questions.questions]), strict=True
    ):
        assert question.tokens is not None
        if ids[-room:] != question.tokens.tolist():
            raise ValueError(_other_tokens(question))
        shared = {"extraction": task.extraction, "numbers": task.numbers, "metrics": metrics}
        rows.append({"id": question.id, "prompt": question.prompt, "references": list(question.references), **shared})
    sampled = options.temperature > 0
    generation = {
        "until": list(options.stop),
        "max_gen_toks": options.max_new_tokens,
        "do_sample": sampled,
        **({"temperature": options.temperature, "top_p": options.top_p} if sampled else {}),
    }
    return _Exported(
        rows,
        {
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{references[0]}}",
            "generation_kwargs": generation,
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
        },
    )


def _texts(candidate: Candidate, tokens: HarnessTokens) -> tuple[str, str]:
    """Context and answer; a context of the prefix token alone is an empty one."""
    tokenizer = tokens.tokenizer
    first = int(np.flatnonzero(candidate.supervised)[0])
    head, answer = candidate.tokens[:first].tolist(), candidate.tokens[first:].tolist()
    if head == [tokens.prefix_id]:
        return "", tokenizer.decode_tokens(answer, special=True)
    # the prefix token that lm-eval adds is not to stand in the text
    shown = head[1:] if tokens.encode([""])[0] == head[:1] else head
    return tokenizer.decode_tokens(shown, special=True), tokenizer.decode_after(head, answer, special=True)


def _check(scored: Iterable[ScoredTokens], candidates: list[Candidate], question: EncodedQuestion) -> None:
    """Whether lm-eval's tokens are those of the candidates, and what it scores is what we score."""
    theirs = [(ids.tolist(), marks.tolist()) for ids, marks in scored]
    ours = [(candidate.tokens.tolist(), candidate.supervised.tolist()) for candidate in candidates]
    if theirs != ours:
        raise ValueError(_other_tokens(question))


def _other_tokens(question: EncodedQuestion) -> str:
    return (
        f"{question.place}: lm-eval would feed other tokens than are scored here; expected a prompt that fits the "
        "context, and a tokenizer whose tokens decode to the text they came from and whose add_bos_token says what the "
        "post-processor of tokenizer.json does"
    )
