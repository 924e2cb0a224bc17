"""Choices and pairs: who is likelier, by which measure, and what those reach who know nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.load import Loaded
from lit_consistency.tasks.choice import measure_choices
from lit_consistency.tasks.likelihoods import Likelihoods
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.task import EncodedTask
from tests.reference.scores import continuation
from tests.tasks.measuring import measure
from tests.tasks.tiny import NLI, PAIRS, built, nli_rows, task_of

METRICS = ["accuracy", "accuracy_per_byte", "balanced_accuracy", "nats_per_token", "exact"]
CHOICES: dict[str, Any] = {"kind": "choice", "fields": {"Q": "{q}"}, "choices": "{a}", "gold": "{gold}"}
UNEQUAL = [
    {"q": f"the day {i}", "a": ["the", "the user of the question", f"Wälder {i}", "走"], "gold": i % 4}
    for i in range(8)
]


def cost(encoded: EncodedTask, nats: Callable[[int, int], float]) -> Measured:
    """The numbers of a model whose candidate j of item i costs so many nats; every right answer is a first choice."""
    candidates = [question.item.candidates for question in encoded.questions if question.item is not None]
    return measure_choices(
        encoded,
        Likelihoods(
            [np.asarray([nats(i, j) for j in range(len(c))]) for i, c in enumerate(candidates)],
            [np.asarray([int(x.supervised.sum()) for x in c]) for c in candidates],
            [np.asarray([x.n_bytes for x in c]) for c in candidates],
            np.ones(len(candidates)),
            np.asarray([question.item.gold for question in encoded.questions if question.item is not None]),
        ),
    )


@pytest.mark.parametrize("fixture", ["loaded", "loaded_bos"])
def test_numbers_are_those_of_a_plain_loop(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    loaded: Loaded = request.getfixturevalue(fixture)
    model, encode = loaded.model, loaded.tokenizer.processor.encode
    measured = measure(loaded, built(task_of(tmp_path, **CHOICES, metrics=METRICS, data=UNEQUAL), loaded.tokenizer))
    bos = [loaded.tokenizer.bos_id] if fixture == "loaded_bos" else []
    sums, per_byte, nats, greedy = [], [], [0.0, 0], []
    for row, record in zip(UNEQUAL, measured.records, strict=True):
        prompt = [*bos, *encode(f"Q: {row['q']}\nAnswer:").ids]
        answers = [encode(f" {answer}").ids for answer in row["a"]]
        costs = [continuation(model, prompt, answer) for answer in answers]
        assert record["log_likelihoods"] == pytest.approx([-c for c, _ in costs], rel=1e-5)
        sums.append(min(range(4), key=lambda j: costs[j][0]) == row["gold"])
        # the bytes of the choice itself, not of the space before it
        lengths = [len(answer.encode()) for answer in row["a"]]
        per_byte.append(min(range(4), key=lambda j: costs[j][0] / lengths[j]) == row["gold"])
        nats[0] += costs[row["gold"]][0]
        nats[1] += len(answers[row["gold"]])
        greedy.append(costs[row["gold"]][1])
    classes = [np.mean([right for right, row in zip(sums, UNEQUAL, strict=True) if row["gold"] == g]) for g in range(4)]
    expected = [np.mean(sums), np.mean(per_byte), np.mean(classes), nats[0] / nats[1], np.mean(greedy)]
    assert measured.values() == pytest.approx(dict(zip(METRICS, expected, strict=True)), rel=1e-6)


def test_per_byte_counts_the_choice_without_its_delimiter(tiny: Tokenizer, tmp_path: Path) -> None:
    """Of 1 and 3 bytes with 2.0 and 5.0 nats: 2 > 5/3, but with the space 2/2 < 5/4."""
    rows = [{"q": "x", "a": ["a", "abc"], "gold": 1}]
    measured = cost(built(task_of(tmp_path, **CHOICES, metrics=METRICS, data=rows), tiny), lambda i, j: (2.0, 5.0)[j])
    assert measured.values()["accuracy"] == 0.0
    assert measured.values()["accuracy_per_byte"] == 1.0


def test_a_tie_or_no_number_is_not_right(tiny: Tokenizer, tmp_path: Path) -> None:
    encoded = built(task_of(tmp_path, **NLI, data=nli_rows(4)), tiny)
    nan = math.nan
    costs = [[1.0, 1.0], [2.0, 1.0], [nan, 2.0], [1.0, nan]]
    scores = [record["score"] for record in cost(encoded, lambda i, j: costs[i][j]).records]
    assert scores == [0.0, 1.0, 0.0, 0.0]


def test_a_model_that_always_says_the_same_has_the_majority(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = [{**row, "label": int(i >= 15)} for i, row in enumerate(nli_rows(20))]
    measured = cost(built(task_of(tmp_path, **NLI, data=rows), tiny), lambda i, j: float(j))
    assert measured.baselines["majority"] == measured.values()["accuracy"] == 0.75
    assert measured.baselines["balanced_majority"] == measured.values()["balanced_accuracy"] == 0.5
    assert set(measured.predictions) == {0}


def test_shortest_is_what_a_uniform_model_reaches(tiny: Tokenizer, tmp_path: Path) -> None:
    """Every token costs log V: the answer with the fewest tokens wins by the sum, whatever is asked."""
    encoded = built(task_of(tmp_path, **CHOICES, data=UNEQUAL), tiny)
    tokens = [[int(c.supervised.sum()) for c in q.item.candidates] for q in encoded.questions if q.item is not None]
    measured = cost(encoded, lambda i, j: tokens[i][j] * math.log(340))
    assert measured.baselines["chance"] == 0.25
    assert measured.baselines["shortest"] == measured.values()["accuracy"] == 0.25
    answers = [{**row, "gold": 0} for row in UNEQUAL]
    measured = cost(built(task_of(tmp_path, **CHOICES, data=answers), tiny), lambda i, j: tokens[i][j] * math.log(340))
    assert measured.baselines["shortest"] == measured.values()["accuracy"] == 1.0
    same = [{"q": "x", "a": ["b", "c", "the user"], "gold": i % 3} for i in range(9)]
    measured = cost(built(task_of(tmp_path, **CHOICES, data=same), tiny), lambda i, j: 1.0)
    assert measured.baselines["shortest"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3), "of two that are alike, by lot"


def test_of_contexts_only_the_end_is_scored(tiny: Tokenizer, tmp_path: Path) -> None:
    keys = {"kind": "choice", "contexts": "{options}", "choices": ["{end}"], "gold": "{gold}", "answer_heading": ""}
    rows = [{"options": ["The cup fell so the cup", "The cup fell so the floor"], "end": "broke.", "gold": 0}]
    (question,) = built(task_of(tmp_path, **keys, data=rows), tiny).questions
    assert question.item is not None
    assert question.labels == tuple(rows[0]["options"])
    for candidate, context in zip(question.item.candidates, rows[0]["options"], strict=True):
        assert tiny.processor.decode(candidate.tokens.tolist()) == f"{context} broke."
        assert tiny.processor.decode(candidate.tokens[candidate.supervised].tolist()) == " broke."


@pytest.mark.parametrize("fixture", ["loaded", "loaded_bos"])
def test_every_token_of_a_pair_is_scored_behind_the_token_that_opens_a_text(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    loaded: Loaded = request.getfixturevalue(fixture)
    opening = loaded.tokenizer.bos_id if fixture == "loaded_bos" else loaded.tokenizer.eos_id
    rows = [{"good": f"she runs {i}", "bad": f"ein Wälder{i}", "part": "ab"[i % 2]} for i in range(6)]
    measured = measure(loaded, built(task_of(tmp_path, **PAIRS, data=rows), loaded.tokenizer))
    right, per_byte = [], []
    for row, record in zip(rows, measured.records, strict=True):
        texts = [row["good"], row["bad"]]
        costs = [
            continuation(loaded.model, [opening], loaded.tokenizer.processor.encode(text).ids)[0] for text in texts
        ]
        assert record["log_likelihoods"] == pytest.approx([-c for c in costs], rel=1e-5)
        right.append(costs[0] < costs[1])
        per_byte.append(costs[0] / len(texts[0].encode()) < costs[1] / len(texts[1].encode()))
    assert measured.values() == {"accuracy": np.mean(right), "accuracy_per_byte": np.mean(per_byte)}
    assert measured.baselines.keys() == {"chance", "shortest"}, "the right one always stands first: no majority"
    assert measured.clusters == ["a", "b"] * 3


def test_a_sentence_that_is_too_long_loses_its_start(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, kind="pairs", choices=["{a}", "{b}"], data=[{"a": "zyxwvu", "b": "zy"}])
    (question,) = built(task, tiny, block=4).questions
    assert question.item is not None
    long, short = question.item.candidates
    assert tiny.processor.decode(long.tokens[long.supervised].tolist()) == "xwvu"[-4:]
    assert short.supervised.tolist() == [False, True, True]
    assert question.n_truncated == 2
