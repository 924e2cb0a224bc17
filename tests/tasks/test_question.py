"""Rows as questions: choices, right answers, clusters, and what is wrong with a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_consistency.tasks.reading import read_task
from tests.tasks.tiny import NLI, nli_rows, rows_of, task_of, write_lines

BAD_ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a missing column": ({}, {"p": "a", "label": 0}, "no field 'h'; it has 'p', 'label'"),
    "a gold beyond the choices": ({}, {"p": "a", "h": "b", "label": 2}, "gold = 2: expected 0 to 1"),
    "a gold that is no choice": ({}, {"p": "a", "h": "b", "label": "maybe"}, "gold = 'maybe': expected an index"),
    "a gold that is a list": ({}, {"p": "a", "h": "b", "label": [1]}, "a list; expected an index or a text"),
    "an unknown value": ({"gold_values": ["A", "B"]}, {"p": "a", "h": "b", "label": "C"}, "expected one of A, B"),
    "choices that are no list": ({"choices": "{p}"}, {"p": "a", "h": "b", "label": 0}, "at least two texts"),
    "an empty choice": ({"choices": ["{p}", "{h}"]}, {"p": " ", "h": "b", "label": 0}, "number 0 is empty"),
    "a pattern that does not match": ({"extract": {"p": "(?P<n>[0-9]+)"}}, {"p": "a", "h": "b"}, "does not match"),
    "a half of a pair that is empty": (
        {"kind": "pairs", "choices": ["{p}", "{h}"], "fields": {}, "gold": None, "instruction": ""},
        {"p": "a", "h": ""},
        "choices: number 1 is empty",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_file_and_line(case: str, tmp_path: Path) -> None:
    keys, row, message = BAD_ROWS[case]
    merged = {**NLI, **keys}
    if keys.get("kind") == "pairs":
        merged = {key: merged[key] for key in ("kind", "choices")}
    with pytest.raises(ValueError, match=rf"task_data\.jsonl:1: .*{message}"):
        rows_of(task_of(tmp_path, **merged, data=[row]))


def test_a_gold_is_an_index_a_text_or_one_of_the_named_values(tmp_path: Path) -> None:
    rows = [{"p": "a", "h": "b", "label": "no"}, {"p": "c", "h": "d", "label": 0}]
    assert [row.gold for row in rows_of(task_of(tmp_path, **NLI, data=rows))] == [1, 0]
    task = task_of(tmp_path, **NLI, gold_values=[False, True], data=[{"p": "a", "h": "b", "label": True}])
    assert rows_of(task)[0].gold == 1
    rows = [{"p": "a", "h": "b", "label": "2", "names": ["1", "2"], "of": {"text": ["x", "y"]}}]
    (row,) = rows_of(task_of(tmp_path, **{**NLI, "choices": "{of.text}", "gold_values": "{names}"}, data=rows))
    assert (row.labels, row.gold, row.answer) == (("x", "y"), 1, "y")


def test_unlabelled_rows_are_counted_and_a_split_without_labels_is_refused(tmp_path: Path) -> None:
    rows = nli_rows(3) + [{"p": "a", "h": "b", "label": gold} for gold in (-1, None, "", "-")]
    assert read_task(task_of(tmp_path, **NLI, data=rows)).n_unlabelled == 4
    with pytest.raises(ValueError, match=r"none of 4 rows has a label .*needs a split with labels"):
        read_task(task_of(tmp_path, **NLI, data=rows[3:]))
    with pytest.raises(ValueError, match=r"task_data\.jsonl: holds no row; task task has nothing to score"):
        read_task(task_of(tmp_path, **NLI, data=[]))


def test_distractors_are_other_golds_and_depend_on_the_row_alone(tmp_path: Path) -> None:
    facts = [{"country": f"land {i}", "capital": f"town {i} " if i else ""} for i in range(8)]
    keys = {"kind": "choice", "fields": {"": "The capital of {country} is"}, "gold": "{capital}", "distractors": 3}
    keys |= {"id": "{country}", "requires": ["capital"]}
    read = read_task(task_of(tmp_path, **keys, data=facts))
    assert read.n_unlabelled == 0, "records without a value are not asked"
    assert [row.labels[row.gold] for row in read.scored] == [f"town {i}" for i in range(1, 8)]
    assert all(len(set(row.labels)) == 4 for row in read.scored)
    assert len({row.gold for row in read.scored}) > 1, "the right answer has no fixed place"
    other_order = rows_of(task_of(tmp_path, **keys, data=facts[::-1]))
    assert {row.id: row.labels for row in other_order} == {row.id: row.labels for row in read.scored}
    with pytest.raises(ValueError, match="7 different"):
        read_task(task_of(tmp_path, **{**keys, "distractors": 7}, data=facts))


def test_shuffled_choices_keep_their_gold(tmp_path: Path) -> None:
    keys = {"kind": "choice", "fields": {"Q": "{q}"}, "choices": ["{right}", "{wrong}"], "gold": "{right}"}
    rows = [{"q": str(i), "right": f"r{i}", "wrong": f"w{i}"} for i in range(20)]
    questions = rows_of(task_of(tmp_path, **keys, shuffle=True, data=rows))
    assert [row.labels[row.gold] for row in questions] == [f"r{i}" for i in range(20)]
    assert {row.gold for row in questions} == {0, 1}


def test_a_cluster_is_what_the_task_says_else_the_group_else_the_row(tmp_path: Path) -> None:
    rows = [{**row, "part": "ab"[i % 2], "who": "x"} for i, row in enumerate(nli_rows(4))]
    for keys, expected in (
        ({"group": "{part}", "cluster": "{who}"}, ["x"] * 4),
        ({"group": "{part}"}, ["a", "b", "a", "b"]),
        ({}, [f"task_data.jsonl:{i}" for i in (1, 2, 3, 4)]),
    ):
        questions = rows_of(task_of(tmp_path, **NLI, **keys, data=rows))
        assert [row.cluster for row in questions] == expected
        assert [row.group for row in questions] == (["a", "b"] * 2 if "group" in keys else [None] * 4)


def test_conversations_have_ids_that_do_not_depend_on_their_folder(tmp_path: Path) -> None:
    ids = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        for name in ("a/x.jsonl", "b/x.jsonl"):
            write_lines(folder / name, [{"prompt": "1 + 1", "completion": "2"}] * 2)
        ids.append([row.id for row in rows_of(task_of(tmp_path, kind="completion", **spoken(folder)))])
    assert ids[0] == ids[1] == ["a/x.jsonl:1", "a/x.jsonl:2", "b/x.jsonl:1", "b/x.jsonl:2"]
    (row, _) = rows_of(task_of(tmp_path, kind="completion", **spoken(tmp_path / "here" / "a")))
    assert (row.id, row.answer, row.text) == ("x.jsonl:1", "2", "1 + 1\n2")


def spoken(path: Path) -> dict[str, Any]:
    return {"prompt_style": "default", "data": {"path": str(path)}}
