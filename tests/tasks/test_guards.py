"""Every guard on a planted defect, and on sound data, where it must keep still."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.evaluation.plan import Ask, Cell, plan_cells
from lit_consistency.tasks.contamination import Overlap, training_documents
from lit_consistency.tasks.formats import load_format
from lit_consistency.tasks.guards import GuardError, check_predictions
from tests.tasks.tiny import NLI, WRITTEN, nli_rows, task_of, write_lines

LONG = "the quick brown fox number {i} jumps over the very lazy dog near the old river bank today"


def planned(keys: dict[str, Any], tiny: Tokenizer, folder: Path, block: int = 256, **ask: Any) -> Cell:
    options = Ask(**{"formats": [load_format("default")], "shots": [0], **ask})
    return plan_cells([task_of(folder, **keys)], options, tiny, block, "weights")[0]


def long_rows(n: int) -> list[dict[str, Any]]:
    return [{"p": LONG.format(i=i), "h": f"dog {i}", "label": i % 2} for i in range(n)]


def one_class(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The unlabelled test split of QQP was read as a set of negatives: accuracy 1.000."""
    return {"data": [{**row, "label": 1} for row in nli_rows(9)]}, {}, "single_class: all 9 gold labels are number 1"


def unlabelled(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    rows = [*nli_rows(6), {"p": "a", "h": "b", "label": -1}]
    return {"data": rows}, {}, "unlabelled: 1 of 7 rows have no label and are left out"


def example_is_scored(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Examples were taken from the test file itself."""
    rows = nli_rows(6)
    return {"data": rows, "few_shot": rows}, {"shots": [2]}, "shot_scored: 2 of 6 rows are few-shot examples too"


def overflow(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    return {"data": long_rows(4)}, {"block": 30}, "truncated: 4 of 4 questions lost"


def examples_overflow(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    keys = {"data": nli_rows(4), "few_shot": nli_rows(9, start=50)}
    return keys, {"shots": [8], "block": 128}, "truncated: 4 of 4 prompts lost"


def in_training_text(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    (folder / "train.txt").write_text("Something else. " + LONG.format(i=2).upper() + "! And more of it.")
    return {"data": long_rows(4)}, {"train_data": str(folder / "train.txt")}, "contaminated: 1 of 4 rows"


def in_training_rows(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    rows = [{"messages": [{"role": "user", "content": LONG.format(i=i)}]} for i in (0, 3)]
    path = write_lines(folder / "train.jsonl", rows)
    return {"data": long_rows(4)}, {"train_data": str(path)}, "contaminated: 2 of 4 rows stand in the training data"


PLANTED = [one_class, unlabelled, example_is_scored, overflow, examples_overflow, in_training_text, in_training_rows]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_defect_is_found_and_stops_a_strict_run(
    plant: Callable[[Path], tuple[dict[str, Any], dict[str, Any], str]], tiny: Tokenizer, tmp_path: Path
) -> None:
    keys, ask, message = plant(tmp_path)
    cell = planned({**NLI, **keys}, tiny, tmp_path, **ask)
    assert [f"{guard}: {told}".startswith(message) for guard, told in cell.findings] == [True], cell.findings
    with pytest.raises(GuardError, match=f"--strict: task task: {message}"):
        planned({**NLI, **keys}, tiny, tmp_path, **ask, strict=True)


def test_sound_data_have_no_findings(tiny: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("The quick brown fox jumps over the very lazy dog near the old river bank.")
    keys = {**NLI, "data": long_rows(8), "few_shot": nli_rows(8, start=50)}
    ask = {"shots": [2], "train_data": str(tmp_path / "train.txt"), "strict": True, "block": 1024}
    assert planned(keys, tiny, tmp_path, **ask).findings == []


def test_the_golds_of_pairs_and_of_single_answers_may_be_the_same(tiny: Tokenizer, tmp_path: Path) -> None:
    rows = [{"a": f"one {i}", "b": f"two {i}"} for i in range(12)]
    assert planned({"kind": "pairs", "choices": ["{a}", "{b}"], "data": rows}, tiny, tmp_path).findings == []
    keys = {"kind": "completion", "fields": {"": "{a}"}, "completion": "{b}", "data": rows}
    assert planned(keys, tiny, tmp_path).findings == []


def test_written_answers_that_are_all_the_same_are_found(tiny: Tokenizer, tmp_path: Path) -> None:
    keys = {**WRITTEN, "references": "{a}", "data": [{"h": f"thing {i}", "a": "no"} for i in range(12)]}
    assert planned(keys, tiny, tmp_path).findings == [("single_class", "all 12 references are 'no'")]
    other = [{**row, "a": "yes" if i else "no"} for i, row in enumerate(keys["data"])]
    assert planned({**keys, "data": other}, tiny, tmp_path).findings == []


def test_constant_predictions_are_found_where_the_answers_differ(tmp_path: Path) -> None:
    task = task_of(tmp_path, **NLI, data=nli_rows(2))
    golds = [0, 1] * 6
    found = check_predictions(task, [1] * 12, golds)
    assert [finding.guard for finding in found] == ["constant"]
    assert "all 12 predictions are '1'; the majority alone gives 0.500" in found[0].message
    assert check_predictions(task, golds, golds) == []
    assert check_predictions(task, [1] * 9, golds[:9]) == [], "few predictions may be the same by accident"
    assert check_predictions(task, [1] * 12, [1] * 12) == [], "told by the labels"


def test_overlap_equals_a_search_for_runs_of_words() -> None:
    words = [f"w{i % 37}x{i % 11}" for i in range(400)]
    texts = [" ".join(words[i : i + n]) for i, n in ((0, 13), (50, 40), (100, 12), (200, 5), (300, 4))]
    texts += [" ".join([*words[20:32], "other"]), "never seen " * 8]
    documents = [" ".join(words[:120]), "; ".join(words[190:]).upper()]
    slow = [
        i
        for i, text in enumerate(texts)
        if (n := min(len(text.split()), 13)) >= 5
        and any(
            f" {' '.join(text.split()[j : j + n])} " in f" {document.replace(';', '').lower()} "
            for j in range(len(text.split()) - n + 1)
            for document in documents
        )
    ]
    assert Overlap(texts).found_in(documents) == slow == [0, 1, 2, 3]


def test_a_run_of_words_does_not_go_over_the_end_of_a_document() -> None:
    text = "one two three four five six"
    assert Overlap([text]).found_in(["zero one two three", "four five six seven"]) == []
    assert Overlap([text]).found_in(["zero", text]) == [0]


def test_rows_of_a_json_list_or_object_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"Definition": ["x"], "Instances": [{"input": "a", "output": ["b", "c"]}]}')
    (tmp_path / "b.json").write_text('[{"q": "d"}]')
    assert list(training_documents(str(tmp_path))) == ["x", "a\nb\nc", "d"]
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.json: not JSON"):
        list(training_documents(str(tmp_path / "c.json")))
    (tmp_path / "c.json").write_text('{"data": {"rows": [{"q": "e"}]}, "n": 1}')
    assert list(training_documents(str(tmp_path / "c.json"))) == ["e"]
    for content in ("3", "[]", '{"n": [1]}'):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(ValueError, match=r"train_data = .*c\.json: holds no text"):
            list(training_documents(str(tmp_path / "c.json")))
    with pytest.raises(FileNotFoundError, match="train_data = nowhere"):
        list(training_documents("nowhere"))
