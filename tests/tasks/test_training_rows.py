"""What is trained on is what is asked, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.tokens.prompts import PromptEncoder
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.tasks import TaskRows
from tests.tasks.tiny import NLI, built, nli_rows, tiny_tokenizer, write_task

WRITTEN: dict[str, Any] = {
    "kind": "generation",
    "metrics": ["exact_match"],
    "fields": {"Q": "{h}"},
    "instruction": "Repeat.",
    "references": "{p}",
    "generation": {"max_new_tokens": 8},
}


def choice(folder: Path, **keys: Any) -> str:
    return str(write_task(folder / "nli.yaml", **{**NLI, "data": nli_rows(8), **keys}))


def written(folder: Path, **keys: Any) -> str:
    return str(write_task(folder / "said.yaml", **{**WRITTEN, "data": nli_rows(4), **keys}))


@pytest.mark.parametrize("form", ["default", "io", "instruct"])
def test_supervised_tokens_are_those_of_the_right_candidate_and_the_end(
    form: str, tiny: Tokenizer, tmp_path: Path
) -> None:
    rows = TaskRows(choice(tmp_path), form, split="scored")
    questions = built(rows.task, tiny, form).questions
    encoder = PromptEncoder(tiny, "default")
    trained = [encoder.encode(row) for row in rows.rows()]
    for example, question in zip(trained, questions, strict=True):
        assert question.item is not None
        right = question.item.candidates[question.item.gold]
        assert example.tokens.tolist() == [*right.tokens.tolist(), tiny.eos_id]
        assert example.supervised.tolist() == [*right.supervised.tolist(), True]


@pytest.mark.parametrize("form", ["default", "io", "instruct", "chat"])
def test_prompts_of_written_answers_are_those_that_are_asked(form: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer", chat=True)
    rows = TaskRows(written(tmp_path), form, split="scored")
    encoder = PromptEncoder(tokenizer, "chat_template" if form == "chat" else "default")
    asked = built(rows.task, tokenizer, form).questions
    for row, question in zip(rows.rows(), asked, strict=True):
        example = encoder.encode(row)
        assert question.tokens is not None
        assert example.tokens[: len(question.tokens)].tolist() == question.tokens.tolist()
        assert example.supervised.tolist()[: len(question.tokens)] == [False] * len(question.tokens)
        assert question.references[0] in tokenizer.decode(example.tokens[len(question.tokens) :])


def test_the_answer_of_a_partial_evaluation_follows_its_right_context(tiny: Tokenizer, tmp_path: Path) -> None:
    keys = {"kind": "choice", "contexts": ["{p} A", "{p} B"], "choices": ["{h}"], "gold": "{label}"}
    rows = TaskRows(str(write_task(tmp_path / "partial.yaml", **keys, data=nli_rows(4))), split="scored")
    questions = built(rows.task, tiny).questions
    for row, question in zip(rows.rows(), questions, strict=True):
        assert question.item is not None
        right = question.item.candidates[question.item.gold]
        assert PromptEncoder(tiny).encode(row).tokens[:-1].tolist() == right.tokens.tolist()


def test_a_demonstration_is_learned_where_a_task_has_one(tmp_path: Path) -> None:
    rows = TaskRows(written(tmp_path, demonstration="Because {h}: {p}"), split="scored")
    assert next(rows.rows()).messages[-1]["content"] == " Because thing 0 has colour: thing 0 is red"


def test_the_training_split_leaves_out_what_is_scored(tmp_path: Path) -> None:
    name = choice(tmp_path, few_shot=nli_rows(6, start=5))
    prompts = [row.messages[0]["content"] for row in TaskRows(name).rows()]
    assert [prompt.split()[2] for prompt in prompts] == ["8", "9", "10"], "5, 6 and 7 are scored"
    with pytest.raises(ValueError, match="every row of its training split is scored"):
        list(TaskRows(choice(tmp_path, few_shot=nli_rows(3))).rows())


def test_a_limit_is_drawn_by_the_seed(tmp_path: Path) -> None:
    name = choice(tmp_path)
    taken = [[row.place for row in TaskRows(name, split="scored", limit=4, seed=s).rows()] for s in (0, 0, 1)]
    assert len(taken[0]) == 4
    assert taken[0] == taken[1] != taken[2]


def test_the_fingerprint_tells_task_format_options_and_data_apart(tmp_path: Path) -> None:
    name = choice(tmp_path, few_shot=nli_rows(6, start=50))
    base = TaskRows(name).fingerprint()
    assert base == TaskRows(name).fingerprint()
    changed = [TaskRows(name, "io"), TaskRows(name, limit=2), TaskRows(name, seed=1), TaskRows(name, split="scored")]
    others = [rows.fingerprint() for rows in changed]
    choice(tmp_path, few_shot=nli_rows(7, start=50))
    others.append(TaskRows(name).fingerprint())
    choice(tmp_path, few_shot=nli_rows(6, start=50), instruction="Is it so?")
    others.append(TaskRows(name).fingerprint())
    assert base not in others


def test_bad_options_are_named(tmp_path: Path) -> None:
    name = choice(tmp_path)
    text = str(write_task(tmp_path / "text.yaml", kind="text", text="{p}", data=nli_rows(2)))
    code = written(tmp_path, program="{p}", references="{h}", metrics=["pass@1"])
    many = str(write_task(tmp_path / "many.yaml", **NLI, data=nli_rows(2), variants={"a": {}, "b": {}}))
    for args, message in (
        ((name, "default", "test"), "split = 'test': expected one of few_shot, scored"),
        ((name,), "has no key `few_shot`"),
        ((name, "fancy", "scored"), "format = 'fancy'"),
        ((name, "default", "scored", -1), "limit = -1"),
        ((text,), "of kind text: expected questions with an answer"),
        ((code, "default", "scored"), "expected the key `demonstration`"),
        ((many,), "a file of 2 tasks; expected one of them, as .*many.yaml/a"),
        ((f"{many}:c",), "has no 'c'; expected one of a, b"),
    ):
        with pytest.raises(ValueError, match=message):
            TaskRows(*args)
    assert TaskRows(f"{many}:b", split="scored").task.name == "many_b"
    with pytest.raises(ValueError, match="the answer is empty"):
        list(TaskRows(written(tmp_path, data=[{"h": "x", "p": " "}]), split="scored").rows())
