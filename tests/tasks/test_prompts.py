"""Questions: examples, limits, what is cut, and windows of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.tasks.prompts import n_words, opening_token
from lit_consistency.tasks.questions import Question
from tests.tasks.tiny import NLI, built, nli_rows, task_of

TEXT: dict[str, Any] = {"kind": "text", "text": "{text}"}


def test_examples_are_a_fixed_draw_of_the_training_split(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, **NLI, data=nli_rows(6), few_shot=nli_rows(50, start=100))
    first = built(task, tiny, shots=3, seed=1).questions.questions
    assert all(question.shot_ids == first[0].shot_ids for question in first)
    assert len(set(first[0].shot_ids)) == 3
    assert all(shot.startswith("task_few_shot.jsonl:") for shot in first[0].shot_ids)
    assert built(task, tiny, shots=3, seed=1).questions.questions[0].prompt == first[0].prompt
    assert built(task, tiny, shots=2, seed=1).questions.questions[0].shot_ids == first[0].shot_ids[:2]
    assert built(task, tiny, shots=3, seed=2).questions.questions[0].shot_ids != first[0].shot_ids


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
    questions = built(task, tiny, shots=2).questions.questions
    assert all(shot[0] == question.group for question in questions for shot in question.shot_ids)
    with pytest.raises(ValueError, match="shots = 6: group . of task task has 5 examples"):
        built(task, tiny, shots=6)


def test_a_row_that_is_an_example_is_not_scored(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = nli_rows(5)
    shots = [{**row, "p": row["p"].upper() + " "} for row in rows[:2]]
    task = task_of(tmp_path, **NLI, data=rows, few_shot=shots)
    found = built(task, tiny, shots=2)
    assert [question.id for question in found.questions.questions] == [f"task_data.jsonl:{i}" for i in (3, 4, 5)]
    assert [row.id for row in found.given_away] == ["task_data.jsonl:1", "task_data.jsonl:2"]
    with pytest.raises(ValueError, match="every row is a few-shot example too"):
        built(task_of(tmp_path, **NLI, data=rows[:2], few_shot=shots), tiny, shots=2)


def test_a_limit_draws_rows_that_keep_their_ids_and_order(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, **NLI, data=nli_rows(30))
    everything = {question.id: question.prompt for question in built(task, tiny).questions.questions}
    some = built(task, tiny, limit=7, seed=3).questions.questions
    assert len(some) == 7
    assert all(everything[question.id] == question.prompt for question in some)
    numbers = [int(question.id.split(":")[1]) for question in some]
    assert numbers == sorted(numbers) != list(range(1, 8))
    assert numbers != [int(q.id.split(":")[1]) for q in built(task, tiny, limit=7, seed=4).questions.questions]


def test_a_limit_draws_the_same_rows_with_and_without_examples(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = nli_rows(30)
    task = task_of(tmp_path, **NLI, data=rows, few_shot=rows)
    alone = [q.id for q in built(task, tiny, limit=10).questions.questions]
    found = built(task, tiny, shots=2, limit=10, block=1024)
    given_away = {row.id for row in found.given_away}
    ids = [q.id for q in found.questions.questions]
    assert len(given_away) == 2
    assert len(ids) == 10
    assert given_away.isdisjoint(ids)
    assert {*alone} - given_away <= {*ids}


def test_what_does_not_fit_loses_examples_before_it_loses_text(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, **NLI, data=nli_rows(1), few_shot=nli_rows(4, start=100))
    whole = built(task, tiny, shots=4, block=10_000).questions.questions[0]
    alone = built(task, tiny, block=10_000).questions.questions[0]
    assert whole.item is not None
    assert alone.item is not None
    longest = max(len(candidate.tokens) for candidate in whole.item.candidates)
    assert _shots(built(task, tiny, shots=4, block=longest - 1).questions.questions[0]) == (4, 0)
    fewer = built(task, tiny, shots=4, block=longest - 2).questions.questions[0]
    assert _shots(fewer) == (3, 0)
    assert fewer.shot_ids == whole.shot_ids[1:]
    longest = max(len(candidate.tokens) for candidate in alone.item.candidates)
    cut = built(task, tiny, shots=4, block=longest - 6).questions.questions[0]
    assert _shots(cut) == (0, 5)
    assert cut.item is not None
    for short, long in zip(cut.item.candidates, alone.item.candidates, strict=True):
        assert np.array_equal(short.tokens, long.tokens[5:])
        assert short.supervised.sum() == long.supervised.sum()


def _shots(question: Question) -> tuple[int, int]:
    return len(question.shot_ids), question.n_truncated


def test_a_prompt_leaves_room_for_what_is_written(tiny: Tokenizer, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"kind": "generation", "fields": {"Q": "{q}"}, "references": "{a}", "metrics": ["rouge_l"]}
    task = task_of(tmp_path, **keys, data=[{"q": "why " * 50, "a": "so"}], generation={"max_new_tokens": 20})
    question = built(task, tiny, block=60).questions.questions[0]
    assert question.tokens is not None
    assert len(question.tokens) == 40
    assert question.n_truncated > 0
    assert question.references == ("so",)
    assert tiny.processor.decode(question.tokens.tolist()).endswith("\nAnswer:")
    with pytest.raises(ValueError, match=r"max_new_tokens = 20: expected less than the model's context of 20"):
        built(task, tiny, block=20)


def test_every_token_of_a_pair_is_scored_behind_the_token_that_opens_a_text(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, kind="pairs", choices=["{good}", "{bad}"], data=[{"good": "she runs", "bad": "she run"}])
    question = built(task, tiny).questions.questions[0]
    assert question.item is not None
    assert question.item.gold == 0
    for candidate, text in zip(question.item.candidates, ("she runs", "she run"), strict=True):
        assert candidate.tokens[0] == opening_token(tiny) == tiny.eos_id
        assert tiny.processor.decode(candidate.tokens[1:].tolist()) == text
        assert candidate.supervised.tolist() == [False] + [True] * (len(candidate.tokens) - 1)


@pytest.mark.parametrize("block", [4, 7, 1000])
def test_windows_score_every_token_byte_and_word_of_a_document_once(
    block: int, tiny: Tokenizer, tmp_path: Path
) -> None:
    text = "Über den Fluß und in  die Wälder\n\nging er, 走って, allein."
    task = task_of(tmp_path, **TEXT, data=[{"text": text}, {"text": "x"}])
    questions = built(task, tiny, block=block).questions.questions
    items = [question.item for question in questions if question.item is not None]
    scored = [token for item in items for token in item.candidates[0].tokens[item.candidates[0].supervised]]
    assert tiny.processor.decode(scored) == text + "x"
    assert sum(item.candidates[0].n_bytes for item in items) == len((text + "x").encode())
    assert sum(map(n_words, questions)) == len(text.split()) + 1
    assert all(len(item.candidates[0].tokens) <= block + 1 for item in items)
    assert len({question.id for question in questions}) == len(questions)
    assert len(built(task, tiny, block=block, limit=1).questions.questions) == 1


def test_windows_are_those_of_lm_eval(tiny: Tokenizer, tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    text = "the question and the answer of the day are there for the user " * 3
    task = task_of(tmp_path, **TEXT, data=[{"text": text}])
    tokens = tiny.encode(text, bos=False).tolist()
    theirs = list(utils.get_rolling_token_windows(tokens, tiny.eos_id, max_seq_len=8, context_len=1))
    ours = [question.item for question in built(task, tiny, block=8).questions.questions if question.item is not None]
    assert len(ours) == len(theirs)
    for item, (context, predicted) in zip(ours, theirs, strict=True):
        candidate = item.candidates[0]
        assert candidate.tokens[candidate.supervised].tolist() == predicted
        assert candidate.tokens[:-1].tolist() == context
