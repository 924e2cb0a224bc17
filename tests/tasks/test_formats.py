"""Prompts, letter by letter, in every format."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.tasks.formats import NAMES, load_format
from lit_consistency.tasks.templates import check_template, render, take
from tests.runs import ROOT
from tests.tasks.tiny import NLI, built, nli_rows, task_of, tiny_tokenizer

ROWS = [{"p": "snow is white", "h": "snow has colour", "label": 0}]
SHOTS = [{"p": "rain is wet", "h": "rain is dry", "label": 1}]
EXPECTED = {
    "default": (
        "Premise: rain is wet\nHypothesis: rain is dry\nAnswer: no\n\n"
        "Premise: snow is white\nHypothesis: snow has colour\nAnswer:",
        " yes",
    ),
    "io": ("rain is wet\nrain is dry\nno\n\nsnow is white\nsnow has colour", "\nyes"),
    "instruct": (
        "Does it follow?\n\nPremise: rain is wet\nHypothesis: rain is dry\nAnswer: no\n\n"
        "Premise: snow is white\nHypothesis: snow has colour\nAnswer:",
        " yes",
    ),
    "chat": (
        "<|im_start|>user\nDoes it follow?\n\nPremise: rain is wet\nHypothesis: rain is dry<|im_end|>\n"
        "<|im_start|>assistant\nno<|im_end|>\n"
        "<|im_start|>user\nPremise: snow is white\nHypothesis: snow has colour<|im_end|>\n<|im_start|>assistant\n",
        "yes",
    ),
}


@pytest.mark.parametrize("form", EXPECTED)
def test_the_prompt_and_the_answer_of_a_format(form: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "chat", chat=True)
    task = task_of(tmp_path, **NLI, data=ROWS, few_shot=SHOTS)
    question = built(task, tokenizer, form, shots=1).questions[0]
    prompt, answer = EXPECTED[form]
    assert question.prompt == prompt
    assert question.labels == ("yes", "no")
    assert question.item is not None
    candidate = question.item.candidates[question.item.gold]
    decoded = tokenizer.processor.decode(candidate.tokens.tolist(), skip_special_tokens=False)
    assert decoded == prompt + answer
    scored = tokenizer.processor.decode(candidate.tokens[candidate.supervised].tolist(), skip_special_tokens=False)
    # white space at the prompt's end is scored with the answer, as in lm-eval
    assert scored == prompt[len(prompt.rstrip()) :] + answer
    assert candidate.n_bytes == len(answer.strip()), "of the answer itself"


def test_all_formats_of_the_package_are_tested() -> None:
    assert set(NAMES) == set(EXPECTED)


def test_formats_are_part_of_the_installed_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '"tasks/prompt_formats/*.yaml"' in text


def test_an_answer_that_continues_its_question_is_written_the_same_way_in_default_and_io(
    tiny: Tokenizer, tmp_path: Path
) -> None:
    keys = {"kind": "completion", "fields": {"": "{q}"}, "completion": "{a}", "answer_heading": ""}
    task = task_of(tmp_path, **keys, data=[{"q": "17*2=", "a": "34"}], delimiter="")
    for form in ("default", "io"):
        question = built(task, tiny, form).questions[0]
        assert question.prompt == "17*2="
        assert question.item is not None
        assert tiny.processor.decode(question.item.candidates[0].tokens.tolist()) == "17*2=34"


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="format = 'fancy': expected one of chat, default, instruct, io"):
        load_format("fancy")


def test_a_format_of_ones_own_is_a_file(tiny: Tokenizer, tmp_path: Path) -> None:
    keys = {"field": "<{heading}>{value}", "between_fields": " ", "answer": "=>", "between_examples": "\n"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(keys))
    task = task_of(tmp_path, **NLI, data=ROWS)
    question = built(task, tiny, str(tmp_path / "mine.yaml")).questions[0]
    assert question.prompt == "<Premise>snow is white <Hypothesis>snow has colour =>"
    for bad, message in ({"fields": "x"}, "fields: no such key"), ({"chat": "yes"}, "chat = 'yes'"), ({}, "'field'"):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**(keys if bad else {}), **bad}))
        with pytest.raises(ValueError, match=message):
            load_format(str(tmp_path / "mine.yaml"))


def test_a_format_that_is_no_yaml_names_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("field: [1")
    with pytest.raises(ValueError, match=r"mine\.yaml: not YAML"):
        load_format(str(file))


def test_a_format_that_needs_what_the_task_lacks_is_refused(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, **{**NLI, "instruction": ""}, data=nli_rows(2))
    with pytest.raises(ValueError, match="format = 'instruct': task task has no key `instruction`"):
        built(task, tiny, "instruct")
    with pytest.raises(ValueError, match=r"format = 'chat': .*chat_template\.jinja"):
        built(task, tiny, "chat")


def test_templates_take_fields_and_nothing_of_python() -> None:
    row = {"a b": "x", "of": {"list": ["y", "z"]}, "n": 3, "braces": "{n}"}
    assert render("{a b}{of.list.1}{n}{{{braces}}}", row, "f:1") == "xz3{{n}}"
    assert take("{of.list}", row, "f:1") == ["y", "z"]
    for template in ("{n.__class__}", "{of.list.5}", "{missing}"):
        with pytest.raises(ValueError, match="f:1: "):
            render(template, row, "f:1")
    for template in ("{", "}", "{}", "{a{b}}"):
        with pytest.raises(ValueError, match="lone"):
            check_template("fields.x", template)
    with pytest.raises(ValueError, match="half a character"):
        render("{s}", {"s": "\ud800"}, "f:1")
