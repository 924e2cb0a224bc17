"""The suite in the package: its rows are as their templates say, its sets are asked by name, for any tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import tokenizers

from lit_consistency.data.tokens.tokenizer import Tokenizer, write_tokenizer
from lit_consistency.metrics import extract
from lit_consistency.tasks.reading import read_task
from lit_consistency.tasks.suite import DATA, OWN_SAMPLES, SETS, reads_english
from lit_consistency.tasks.yaml_file import load_tasks
from tests.tasks.suite_rows import FILES, written
from tests.tasks.tiny import tiny_tokenizer


@pytest.mark.parametrize("name", FILES)
def test_the_rows_are_those_of_the_templates(name: str) -> None:
    assert (DATA / f"{name}.jsonl").read_text(encoding="utf-8") == written(name)


def test_every_set_is_there_with_its_source_and_all_are_small() -> None:
    tasks = {task.name.removeprefix("suite_"): read_task(task).scored for task in load_tasks("suite")}
    assert (*tasks, OWN_SAMPLES) == SETS
    sources = (DATA / "SOURCES.md").read_text(encoding="utf-8")
    assert all(f"`{name}.jsonl`" in sources for name in tasks)
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 1_000_000
    counts = {name: len(questions) for name, questions in tasks.items()}
    assert counts == {
        "prose": 26, "code": 12, "maths": 12, "pairs": 400, "facts": 187, "arithmetic": 100, "json": 30, "orders": 60,
    }  # fmt: skip
    assert set(Counter(question.group for question in tasks["pairs"]).values()) == {20}
    assert all(question.labels[0] != question.labels[1] for question in tasks["pairs"])
    assert all(len(set(question.labels)) == 4 for question in tasks["facts"])
    for name, questions in tasks.items():
        texts = [(question.text, question.answer) for question in questions]
        assert len(set(texts)) == len(texts), name
    problems = [json.loads(line) for line in (DATA / "arithmetic.jsonl").read_text().splitlines()]
    assert all(eval(problem["problem"]) == int(problem["result"]) for problem in problems)


def test_a_set_is_asked_by_its_name_wherever_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (task,) = load_tasks("suite/facts", data_dir=tmp_path)
    assert read_task(task).scored[0].answer == "Paris"
    with pytest.raises(ValueError, match="'suite/own_samples': texts that a run's base writes .* in fit only"):
        load_tasks("suite/own_samples")
    with pytest.raises(ValueError, match="has no 'grammar'; expected one of prose, code"):
        load_tasks("suite/grammar")
    with pytest.raises(FileNotFoundError, match="expected one of suite"):
        load_tasks("suit")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (' {"b": [1, 2], "a": "x"} and more', '{"a": "x", "b": [1, 2]}'),
        ('{"a":1}', '{"a": 1}'),
        ("{'a': 1}", None),
        ('Here it is: {"a": 1}', None),
        ('{"a": 1', None),
        ("[" * 100_000, None),
    ],
)
def test_json_counts_where_the_text_begins_with_it(text: str, answer: str | None) -> None:
    assert extract(text, "json") == answer


def test_a_tokenizer_of_other_words_reads_no_english(tmp_path: Path) -> None:
    assert reads_english(tiny_tokenizer(tmp_path / "bytes"))
    words = {word: i for i, word in enumerate(("<|endoftext|>", "<unk>", "the", "of", "chat", "maison"))}
    french = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    french.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    write_tokenizer(french, tmp_path / "words")
    assert not reads_english(Tokenizer(tmp_path / "words"))
