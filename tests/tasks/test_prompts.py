"""Prompts: examples, limits, and what is cut where the context is too short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.tasks.question import EncodedQuestion
from tests.tasks.tiny import NLI, built, nli_rows, task_of


def test_examples_are_a_fixed_draw_of_the_training_split(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, **NLI, data=nli_rows(6), few_shot=nli_rows(50, start=100))
    first = built(task, tiny, shots=3, seed=1).questions
    assert all(question.shot_ids == first[0].shot_ids for question in first)
    assert len(set(first[0].shot_ids)) == 3
    assert all(shot.startswith("task_few_shot.jsonl:") for shot in first[0].shot_ids)
    assert built(task, tiny, shots=3, seed=1).questions[0].prompt == first[0].prompt
    assert built(task, tiny, shots=2, seed=1).questions[0].shot_ids == first[0].shot_ids[:2]
    assert built(task, tiny, shots=3, seed=2).questions[0].shot_ids != first[0].shot_ids


def test_too_many_examples_or_none_at_all_are_refused(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, **NLI, data=nli_rows(6), few_shot=nli_rows(2, start=100))
    with pytest.raises(ValueError, match="shots = 3: task task has 2 examples"):
        built(task, tiny, shots=3)
    with pytest.raises(ValueError, match=r"shots = 1: task task has no key `few_shot`"):
        built(task_of(tmp_path, **NLI, data=nli_rows(6)), tiny, shots=1)


def test_examples_of_a_group_are_of_that_group(tiny: Tokenizer, tmp_path: Path) -> None:
    def rows(n: int, start: int) -> list[dict[str, Any]]:
        return [{**row, "subject": "ab"[i % 2]} for i, row in enumerate(nli_rows(n, start))]

    keys = {**NLI, "group": "{subject}", "shots_from_group": True, "id": "{subject}{p}"}
    task = task_of(tmp_path, **keys, data=rows(6, 0), few_shot=rows(10, 100))
    questions = built(task, tiny, shots=2).questions
    assert all(shot[0] == question.group for question in questions for shot in question.shot_ids)
    with pytest.raises(ValueError, match="shots = 6: group . of task task has 5 examples"):
        built(task, tiny, shots=6)


def test_a_row_that_is_an_example_is_not_scored(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = nli_rows(5)
    shots = [{**row, "p": row["p"].upper() + " "} for row in rows[:2]]
    encoded = built(task_of(tmp_path, **NLI, data=rows, few_shot=shots), tiny, shots=2)
    assert [question.id for question in encoded.questions] == [f"task_data.jsonl:{i}" for i in (3, 4, 5)]
    assert [row.id for row in encoded.given_away] == ["task_data.jsonl:1", "task_data.jsonl:2"]
    with pytest.raises(ValueError, match="every row is a few-shot example too"):
        built(task_of(tmp_path, **NLI, data=rows[:2], few_shot=shots), tiny, shots=2)


def test_a_limit_draws_rows_that_keep_their_ids_and_order(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, **NLI, data=nli_rows(30))
    everything = {question.id: question.prompt for question in built(task, tiny).questions}
    some = built(task, tiny, limit=7, seed=3).questions
    assert len(some) == 7
    assert all(everything[question.id] == question.prompt for question in some)
    numbers = [int(question.id.split(":")[1]) for question in some]
    assert numbers == sorted(numbers) != list(range(1, 8))
    assert numbers != [int(question.id.split(":")[1]) for question in built(task, tiny, limit=7, seed=4).questions]


def test_a_limit_draws_the_same_rows_with_and_without_examples(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = nli_rows(30)
    task = task_of(tmp_path, **NLI, data=rows, few_shot=rows)
    alone = [question.id for question in built(task, tiny, limit=10).questions]
    encoded = built(task, tiny, shots=2, limit=10, block=1024)
    given_away = {row.id for row in encoded.given_away}
    ids = [question.id for question in encoded.questions]
    assert len(given_away) == 2
    assert len(ids) == 10
    assert given_away.isdisjoint(ids)
    assert {*alone} - given_away <= {*ids}


def test_what_does_not_fit_loses_examples_before_it_loses_text(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, **NLI, data=nli_rows(1), few_shot=nli_rows(4, start=100))
    whole = built(task, tiny, shots=4, block=10_000).questions[0]
    alone = built(task, tiny, block=10_000).questions[0]
    assert whole.item is not None
    assert alone.item is not None
    longest = max(len(candidate.tokens) for candidate in whole.item.candidates)
    assert _shots(built(task, tiny, shots=4, block=longest - 1).questions[0]) == (4, 0)
    fewer = built(task, tiny, shots=4, block=longest - 2).questions[0]
    assert _shots(fewer) == (3, 0)
    assert fewer.shot_ids == whole.shot_ids[1:]
    longest = max(len(candidate.tokens) for candidate in alone.item.candidates)
    cut = built(task, tiny, shots=4, block=longest - 6).questions[0]
    assert _shots(cut) == (0, 5)
    assert cut.item is not None
    for short, long in zip(cut.item.candidates, alone.item.candidates, strict=True):
        assert np.array_equal(short.tokens, long.tokens[5:])
        assert short.supervised.sum() == long.supervised.sum()


def _shots(question: EncodedQuestion) -> tuple[int, int]:
    return len(question.shot_ids), question.n_truncated
