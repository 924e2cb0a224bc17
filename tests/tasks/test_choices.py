from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_consistency.data import Tokenizer
from lit_consistency.data.tokens.tokenizer import write_tokenizer
from lit_consistency.data.worlds import Biographies
from lit_consistency.tasks import ChoiceSet, ClozeSet

QUESTION = {"query": "Two and two make", "choices": ["four", "five"], "gold": 0}
PAIR = {"sentence_good": "Some cats sleep.", "sentence_bad": "Some cats sleeps."}


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("letters")
    write_tokenizer(Biographies(n_people=2).tokenizer(), folder)
    return Tokenizer(folder)


def write(path: Path, *rows: Any) -> Path:
    return store(path, "".join(json.dumps(row) + "\n" for row in rows))


def store(path: Path, text: str, zipped: bool = False) -> Path:
    """A file with this text, by itself or as ``a.jsonl`` in a zip."""
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.jsonl", text)
    else:
        path.write_text(text, encoding="utf-8")
    return path


def scored(tokenizer: Tokenizer, candidate: Any) -> str:
    return tokenizer.decode(torch.tensor(candidate.tokens[candidate.supervised]))


def test_only_the_answer_is_scored(tmp_path: Path, letters: Tokenizer) -> None:
    item = ChoiceSet(write(tmp_path / "a.jsonl", QUESTION)).items(letters, 100)[0]
    assert item.gold == 0
    assert [scored(letters, c).strip() for c in item.candidates] == ["four", "five"]
    assert [c.n_bytes for c in item.candidates] == [5, 5]


def test_a_long_prompt_loses_its_beginning_not_the_answer(tmp_path: Path, letters: Tokenizer) -> None:
    item = ChoiceSet(write(tmp_path / "a.jsonl", QUESTION)).items(letters, 8)[0]
    assert all(len(c.tokens) == 9 for c in item.candidates)
    assert scored(letters, item.candidates[1]).strip() == "five"


def test_minimal_pairs_are_read_from_a_zip_evenly(tmp_path: Path, letters: Tokenizer) -> None:
    archive = tmp_path / "pairs.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("data/b.jsonl", "data/a.jsonl"):
            rows = [{**PAIR, "sentence_good": f"{name} {i}"} for i in range(5)]
            file.writestr(name, "".join(json.dumps(row) + "\n" for row in rows))
        file.writestr("__MACOSX/data/._a.jsonl", b"\xb0 is no text")
    items = ChoiceSet(archive, max_items=4).items(letters, 100)
    assert len(items) == 4
    assert all(item.gold == 0 for item in items)
    # the first token has no context and is not scored
    assert not any(c.supervised[0] for item in items for c in item.candidates)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "x", "choices": ["a"], "gold": 0}, r"a\.jsonl:2: expected prompt, choices"),
        ({"query": "x", "choices": ["a", "b"]}, r"a\.jsonl:2: expected prompt, choices"),
        ({"query": "x", "choices": ["a", "b"], "gold": 2}, r"a\.jsonl:2: gold = 2: expected 0 to 1"),
        ({"query": "x", "choices": ["a", "b"], "gold": -1}, r"a\.jsonl:2: gold = -1"),
        ({"query": "x", "choices": ["a", 3], "gold": 0}, r"a\.jsonl:2: choices holds a int; expected texts"),
        ({"query": 7, "choices": ["a", "b"], "gold": 0}, r"a\.jsonl:2: query is a int; expected text"),
        ({"query": "x", "choices": ["a", "b"], "gold": True}, r"a\.jsonl:2: expected prompt, choices"),
        ({**PAIR, "sentence_bad": None}, r"a\.jsonl:2: sentence_bad is a NoneType; expected text"),
        (["x"], r"a\.jsonl:2: a list; expected a JSON object"),
        (7, r"a\.jsonl:2: a int; expected a JSON object"),
        (
            {**PAIR, "sentence_bad": "The"},
            r"a\.jsonl:2: nothing to score in the candidate 'The': expected at least two",
        ),
        ({**PAIR, "sentence_bad": ""}, r"a\.jsonl:2: nothing to score in the candidate '': expected at least two"),
    ],
)
def test_a_bad_row_is_named(row: Any, message: str, tmp_path: Path, letters: Tokenizer) -> None:
    with pytest.raises(ValueError, match=message):
        ChoiceSet(write(tmp_path / "a.jsonl", QUESTION, row)).items(letters, 100)


@pytest.mark.parametrize("zipped", [False, True], ids=["file", "zip"])
def test_lines_are_counted_as_an_editor_counts_them(zipped: bool, tmp_path: Path, letters: Tokenizer) -> None:
    odd = json.dumps({**PAIR, "sentence_good": "some\u2028cats\u0085sleep"}, ensure_ascii=False)
    path = store(tmp_path / "a", f"\n{odd}\r\n  \n{odd}\n", zipped)
    good = ChoiceSet(path, max_items=2).items(letters, 100)[0].candidates[0]
    assert scored(letters, good) == "some\u2028cats\u0085sleep"  # the unscored first token is the space before it
    store(path, f"\n{odd}\n  \n{odd[:-1]}\n", zipped)
    with pytest.raises(ValueError, match=r"a(!a\.jsonl)?:4: not JSON \(.*\)$"):
        ChoiceSet(path).items(letters, 100)


def test_a_zipped_file_that_is_not_utf8_is_named(tmp_path: Path, letters: Tokenizer) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", b"\xff")
    with pytest.raises(ValueError, match=r"a\.zip!a\.jsonl: not UTF-8"):
        ChoiceSet(tmp_path / "a.zip").items(letters, 100)


def test_a_file_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path = "):
        ChoiceSet(tmp_path / "nowhere")


FACTS = [{"country": f"land{i}", "capital": f"city{i}"} for i in range(6)] + [{"country": "sea", "capital": ""}]


def test_a_cloze_asks_for_the_value_among_others_of_its_column(tmp_path: Path, letters: Tokenizer) -> None:
    cloze = ClozeSet(write(tmp_path / "f.jsonl", *FACTS), "The capital of {country} is", "capital", n_choices=3)
    items = cloze.items(letters, 100)
    assert len(items) == 6, "records without a value are not asked"
    for i, item in enumerate(items):
        answers = [scored(letters, c) for c in item.candidates]
        assert len(set(answers)) == 3
        assert answers[item.gold].endswith(f"city{i}")
    assert {item.gold for item in items} != {0}, "the right answer has no fixed place"


def test_the_draw_of_wrong_answers_is_a_function_of_the_seed(tmp_path: Path, letters: Tokenizer) -> None:
    path = write(tmp_path / "f.jsonl", *FACTS)

    def draw(seed: int) -> list[list[int]]:
        items = ClozeSet(path, "The capital of {country} is", "capital", n_choices=3, seed=seed).items(letters, 100)
        return [c.tokens.tolist() for item in items for c in item.candidates]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_a_field_or_a_number_of_choices_that_cannot_be(tmp_path: Path, letters: Tokenizer) -> None:
    path = write(tmp_path / "f.jsonl", *FACTS)
    with pytest.raises(ValueError, match=r"answer = 'king'.*capital"):
        ClozeSet(path, "The king of {country} is", "king").items(letters, 100)
    with pytest.raises(ValueError, match="n_choices = 9"):
        ClozeSet(path, "The capital of {country} is", "capital", n_choices=9).items(letters, 100)
    with pytest.raises(ValueError, match="n_choices = 1"):
        ClozeSet(path, "x", "capital", n_choices=1)


def test_numbers_are_asked_for_as_they_are_written(tmp_path: Path, letters: Tokenizer) -> None:
    rows = [{"of": f"land{i}", "people": i} for i in range(3)] + [{"of": "sea", "people": None}, {"of": "sky"}]
    items = ClozeSet(write(tmp_path / "f.jsonl", *rows), "{of} has", "people", n_choices=2).items(letters, 100)
    assert [scored(letters, item.candidates[item.gold]) for item in items] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("rows", "prompt", "message"),
    [
        ([], "{country} has", r"path = .*f\.jsonl: holds no record; expected one JSON object a line"),
        ([["x"]], "{country} has", r"f\.jsonl:1: a list; expected a JSON object"),
        (
            [*FACTS, {"capital": "x", "land": "y"}],
            "{country} has",
            r"f\.jsonl:8: no field 'country' .*'capital', 'land'",
        ),
        ([*FACTS, {"capital": ["x"]}], "{country} has", r"f\.jsonl:8: capital is a list; expected text or a number"),
        (FACTS, "{} has", r"f\.jsonl:1: prompt = '\{\} has': .*expected names of fields in braces"),
        (FACTS, "{country has", r"f\.jsonl:1: prompt = '\{country has': .*expected names of fields in braces"),
    ],
)
def test_a_bad_table_or_template_is_named(
    rows: list[Any], prompt: str, message: str, tmp_path: Path, letters: Tokenizer
) -> None:
    with pytest.raises(ValueError, match=message):
        ClozeSet(write(tmp_path / "f.jsonl", *rows), prompt, "capital", n_choices=2).items(letters, 100)


def test_a_record_that_is_not_json_is_named(tmp_path: Path, letters: Tokenizer) -> None:
    path = store(tmp_path / "f.jsonl", json.dumps(FACTS[0]) + "\n\n{\n")
    with pytest.raises(ValueError, match=r"f\.jsonl:3: not JSON"):
        ClozeSet(path, "{country} has", "capital").items(letters, 100)
