"""From scores to numbers: the same as the sums of metrics/items.py where both have them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.generate import Generation
from lit_consistency.metrics import ItemScores, summarize
from lit_consistency.stats.intervals import estimate
from lit_consistency.tasks.generation import measure_generation, measure_programs
from lit_consistency.tasks.measure import measure_likelihood
from lit_consistency.tasks.questions import Question, Questions
from lit_consistency.tasks.yaml_file import load_task
from tests.tasks.tiny import NLI, built, nli_rows, task_of


def scores_of(questions: Questions, nll: list[float], hits: list[int] | None = None) -> ItemScores:
    items = [question.item for question in questions.questions if question.item is not None]
    candidates = [candidate for item in items for candidate in item.candidates]
    n_tokens = torch.tensor([int(candidate.supervised.sum()) for candidate in candidates])
    return ItemScores(
        nll=torch.tensor(nll, dtype=torch.float64),
        n_tokens=n_tokens,
        n_hits=torch.tensor(hits) if hits else n_tokens.clone(),
        n_bytes=torch.tensor([candidate.n_bytes for candidate in candidates]),
        n_candidates=torch.tensor([len(item.candidates) for item in items]),
        gold=torch.tensor([item.gold for item in items]),
    )


def test_numbers_of_choices_equal_those_of_the_summary(tiny: Tokenizer, tmp_path: Path) -> None:
    metrics = ["accuracy", "accuracy_per_byte", "exact", "nats_per_token", "balanced_accuracy"]
    task = task_of(tmp_path, **NLI, metrics=metrics, data=nli_rows(40))
    questions = built(task, tiny).questions
    nll = np.random.default_rng(0).random(80) * 5
    nll[2:4] = 1.0  # a tie is not right
    scores = scores_of(questions, nll.tolist())
    measured, summary = measure_likelihood(questions, scores), summarize(scores)
    values = {name: estimate(items).value for name, items in measured.ratios.items()}
    assert list(values) == metrics
    assert values["accuracy"] == summary["accuracy"]
    assert values["accuracy_per_byte"] == summary["accuracy_per_byte"]
    assert values["exact"] == summary["exact"] == 1.0
    assert values["nats_per_token"] == pytest.approx(summary["loss"], rel=1e-12)
    right = np.asarray([record["score"] for record in measured.records])
    golds = np.asarray([record["gold"] for record in measured.records])
    assert values["balanced_accuracy"] == pytest.approx(np.mean([right[golds == g].mean() for g in (0, 1)]))
    assert measured.baselines == {"chance": 0.5, "majority": 0.5, "balanced_majority": 0.5}
    assert measured.records[1]["score"] == 0.0
    assert measured.records[0]["log_likelihoods"] == [-nll[0], -nll[1]]
    assert {"id", "format", "shots", "prediction", "n_truncated"} <= measured.records[0].keys()


def test_a_model_that_always_says_the_same_has_the_majority_and_balanced_accuracy_of_chance(
    tiny: Tokenizer, tmp_path: Path
) -> None:
    rows = [{**row, "label": int(i >= 15)} for i, row in enumerate(nli_rows(20))]
    questions = built(task_of(tmp_path, **NLI, data=rows), tiny).questions
    measured = measure_likelihood(questions, scores_of(questions, [1.0, 2.0] * 20))
    assert measured.baselines["majority"] == 0.75 == estimate(measured.ratios["accuracy"]).value
    assert measured.baselines["balanced_majority"] == 0.5 == estimate(measured.ratios["balanced_accuracy"]).value
    assert set(measured.predictions) == {0}


def test_a_score_that_is_no_number_is_not_right(tiny: Tokenizer, tmp_path: Path) -> None:
    questions = built(task_of(tmp_path, **NLI, data=nli_rows(2)), tiny).questions
    measured = measure_likelihood(questions, scores_of(questions, [math.nan, 2.0, math.nan, math.nan]))
    assert [record["score"] for record in measured.records] == [0.0, 0.0]


def test_text_has_bits_per_byte_and_word_perplexity(tiny: Tokenizer, tmp_path: Path) -> None:
    text = "ein Fluß und die Wälder am Abend"
    task = task_of(tmp_path, kind="text", text="{text}", data=[{"text": text}])
    questions = built(task, tiny, block=8).questions
    nll = [float(i + 1) for i in range(len(questions.questions))]
    measured = measure_likelihood(questions, scores_of(questions, nll))
    values = {name: estimate(items).value for name, items in measured.ratios.items()}
    n_tokens = sum(int(q.item.candidates[0].supervised.sum()) for q in questions.questions if q.item is not None)
    assert values["nats_per_token"] == pytest.approx(sum(nll) / n_tokens)
    assert values["bits_per_byte"] == pytest.approx(sum(nll) / math.log(2) / len(text.encode()))
    assert values["word_perplexity"] == pytest.approx(sum(nll) / 7), "its logarithm"
    total = sum(record["score"] * record["weight"] for record in measured.records)
    assert total / sum(record["weight"] for record in measured.records) == pytest.approx(values["bits_per_byte"])


WRITTEN: dict[str, Any] = {"kind": "generation", "fields": {"Q": "{q}"}, "references": "{a}"}


def asked(folder: Path, tokenizer: Tokenizer, rows: list[dict[str, Any]], **keys: Any) -> Questions:
    options = {"max_new_tokens": 8, **keys.pop("generation", {})}
    return built(task_of(folder, **{**WRITTEN, **keys}, generation=options, data=rows), tokenizer).questions


def said(*samples: str) -> list[Generation]:
    return [Generation(text, [], "eos") for text in samples]


def test_numbers_are_extracted_from_answer_and_reference(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = [{"q": "1+1", "a": "One and one.\n#### 2"}, {"q": "2.5k", "a": "#### 2,500"}, {"q": "1.5", "a": "#### 15"}]
    questions = asked(tmp_path, tiny, rows, metrics=["exact_match"], extraction="gsm8k")
    measured = measure_generation(questions, [said("so #### 2."), said("#### 2500"), said("#### 1.5")])
    assert [record["score"] for record in measured.records] == [1.0, 1.0, 0.0]
    assert [record["prediction"] for record in measured.records] == ["2", "2500", "1.5"]
    assert measured.records[0]["texts"] == ["so #### 2."]
    assert measured.baselines == {"majority": 1 / 3}


def test_every_sign_counts_in_what_a_regular_expression_cuts_out(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = [{"q": "x", "a": f"so The answer is: {n}"} for n in ("5", "\\frac{1}{2}", "15", "x")]
    pattern = load_task("configs/evaluation/hub/metamathqa.yaml").extraction
    questions = asked(tmp_path, tiny, rows, metrics=["exact_match"], extraction=pattern)
    written = [said(f"The answer is: {n}\nQ") for n in ("-5", "\\frac{12}", "1.5", "X.")]
    measured = measure_generation(questions, written)
    assert [record["score"] for record in measured.records] == [0.0, 0.0, 0.0, 1.0]


def test_samples_give_a_mean_a_majority_and_any_of_them(tiny: Tokenizer, tmp_path: Path) -> None:
    options = {"n_samples": 4, "temperature": 1.0}
    metrics = ["exact_match", "maj@3", "pass@1", "pass@4", "rouge_l"]
    questions = asked(tmp_path, tiny, [{"q": "x", "a": ["The cat", "a dog"]}], metrics=metrics, generation=options)
    measured = measure_generation(questions, [said("cat", "dog.", "cat", "bird")])
    record = measured.records[0]
    assert [record[name] for name in metrics[:4]] == [0.75, 1.0, 0.75, 1.0]
    assert record["rouge_l"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 3 + 0) / 4)
    assert record["score"] == 0.75
    assert measured.baselines == {"majority": 1.0}, "whoever always writes one of the accepted answers"


PROGRAM = {"fields": {"": "{q}"}, "program": "{q}", "answer_heading": "", "delimiter": "", "metrics": ["pass@1"]}


def test_programs_are_run_with_their_tests_when_that_is_allowed(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = [{"q": "def add(a, b):\n    return", "a": "assert add(1, 2) == 3"}] * 2
    questions = asked(tmp_path, tiny, rows, **PROGRAM)
    assert questions.questions[0].prompt == "def add(a, b):\n    return"
    written = [said(" a + b"), said(" a - b")]
    measured = measure_programs(questions, written, allow_code_execution=True)
    assert [record["score"] for record in measured.records] == [1.0, 0.0]
    assert [record["prediction"] for record in measured.records] == ["passed", "failed"]
    with pytest.raises(ValueError, match="allow_code_execution"):
        measure_programs(questions, written, allow_code_execution=False)


def test_questions_of_code_keep_the_lines_of_their_program(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = [{"q": "\ndef f():\n    '''x'''\n", "a": "assert f()"}]
    question: Question = asked(tmp_path, tiny, rows, **PROGRAM).questions[0]
    assert question.prompt == question.labels[0] == rows[0]["q"]
    assert question.references == ("assert f()",)
