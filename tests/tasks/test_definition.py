"""Task files: what is refused, and by which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_consistency.tasks.question import read_asked
from lit_consistency.tasks.yaml_file import load_tasks
from tests.runs import ROOT
from tests.tasks.tiny import NLI, nli_rows, task_of, write_task

DATA = {"path": "data/x.jsonl"}
FILES = sorted((ROOT / "configs" / "evaluation").rglob("*.yaml"))
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"golds": "{label}"}, ["golds", "gold"]),
    "unknown kind": ({"kind": "quiz"}, ["kind = 'quiz'", "text, choice, pairs, generation"]),
    "unknown metric": ({"metrics": ["f1"]}, ["'f1'", "accuracy_per_byte"]),
    "a lone brace": ({"fields": {"Q": "{p"}}, ["fields.Q", "lone"]),
    "a key of another kind": ({"text": "{p}"}, ["text: only tasks of kind text", "choice"]),
    "two places of data": ({"data": {"path": "x", "hub": "y", "split": "z"}}, ["path = x", "hub = y"]),
    "a hub without a split": ({"data": {"hub": "y"}}, ["split = None"]),
    "unknown key of data": ({"data": {"pth": "x"}}, ["data.pth", "path"]),
    "wrong type": ({"fields": ["{p}"]}, ["fields = ['{p}']", "dict"]),
    "choices without gold": ({"gold": None}, ["gold", "expected a template"]),
    "neither fields nor contexts": ({"fields": {}}, ["fields, contexts"]),
    "a path as a name": ({"name": "../x"}, ["name = '../x'"]),
    "accuracy of a single choice": ({"choices": ["yes"], "gold": None, "metrics": ["accuracy"]}, ["exact"]),
    "no group in a pattern": ({"extract": {"p": "thing"}}, ["extract.p", "group"]),
    "a pattern that is none": ({"extract": {"p": "(thing"}}, ["extract.p", "regular expression"]),
    "shots by group without groups": ({"shots_from_group": True}, ["shots_from_group", "group"]),
}
WRITTEN = {"kind": "generation", "fields": {"Q": "{q}"}, "references": "{a}", "metrics": ["exact_match"], "data": DATA}
WRONG_GENERATION: dict[str, tuple[dict[str, Any], str]] = {
    "no metrics": ({"metrics": []}, "metrics: expected at least one"),
    "more than the samples": ({"metrics": ["pass@5"]}, "K from 1 to n_samples = 1"),
    "greedy samples": ({"generation": {"n_samples": 4}}, "temperature above 0"),
    "unknown option": ({"generation": {"max_tokens": 4}}, r"generation\.max_tokens"),
    "unknown extraction": ({"extraction": "number"}, "expected one of none, gsm8k"),
    "unknown rule for numbers": ({"numbers": "float"}, "numbers = 'float': expected .*'value', 'string'"),
    "overlap of programs": ({"program": "{q}", "metrics": ["rouge_l"]}, "expected pass@K"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_task_names_file_key_and_what_is_allowed(case: str, tmp_path: Path) -> None:
    keys, parts = WRONG[case]
    file = write_task(tmp_path / "task.yaml", **{**NLI, "data": DATA, **keys})
    with pytest.raises(ValueError, match=r"task\.yaml") as error:
        load_tasks(str(file))
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize("case", WRONG_GENERATION)
def test_a_wrong_generation_task_is_refused(case: str, tmp_path: Path) -> None:
    keys, message = WRONG_GENERATION[case]
    with pytest.raises(ValueError, match=message):
        task_of(tmp_path, **{**WRITTEN, **keys})


def test_a_missing_key_and_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no key 'data'"):
        task_of(tmp_path, kind="text", text="{text}")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match=r"list\.yaml: a list; expected a mapping"):
        load_tasks(str(tmp_path / "list.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        load_tasks(str(tmp_path / "broken.yaml"))


def test_a_name_that_is_not_there_gets_close_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match="expected one of .*piqa"):
        load_tasks("piqqa")
    assert load_tasks("hub/mnli")[0].data.split == "validation_matched"


def test_variants_differ_in_the_keys_they_name(tmp_path: Path) -> None:
    data = {"path": "data/$variant.jsonl"}
    file = write_task(tmp_path / "many.yaml", **NLI, data=data, variants={"a": {}, "b": {"choices": ["ja", "nein"]}})
    first, second = load_tasks(str(file))
    assert (first.name, first.data.path, first.choices) == ("many_a", "data/a.jsonl", ("yes", "no"))
    assert (second.name, second.data.path, second.choices) == ("many_b", "data/b.jsonl", ("ja", "nein"))


def test_a_data_folder_takes_the_place_of_data(tmp_path: Path) -> None:
    file = write_task(tmp_path / "task.yaml", **NLI, data=DATA, few_shot={"path": "train.jsonl"})
    task = load_tasks(str(file), Path("/elsewhere"))[0]
    assert task.data.path == "/elsewhere/x.jsonl"
    assert task.few_shot is not None
    assert task.few_shot.path == "/elsewhere/train.jsonl"


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_task_file_opens_with_its_command_and_loads(file: Path) -> None:
    name = str(file.relative_to(ROOT))
    assert f"python -m lit_consistency evaluate --model checkpoints/ORG/MODEL --tasks {name}" in file.read_text()
    tasks = load_tasks(str(file))
    assert all(task.metrics for task in tasks)
    assert all((task.data.hub is None) == ("hub" not in file.parts) for task in tasks)


def test_no_two_task_files_have_a_name_in_common() -> None:
    names = [task.name for file in FILES for task in load_tasks(str(file))]
    assert len(set(names)) == len(names)
    assert all("name" not in yaml.safe_load(f.read_text()) for f in FILES if f.parent.name == "evaluation")


BAD_ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a missing column": ({}, {"p": "a", "label": 0}, "no field 'h'; it has 'p', 'label'"),
    "a gold beyond the choices": ({}, {"p": "a", "h": "b", "label": 2}, "gold = 2: expected 0 to 1"),
    "a gold that is no choice": ({}, {"p": "a", "h": "b", "label": "maybe"}, "gold = 'maybe': expected an index"),
    "a gold that is a list": ({}, {"p": "a", "h": "b", "label": [1]}, "a list; expected an index or a text"),
    "an unknown value": ({"gold_values": ["A", "B"]}, {"p": "a", "h": "b", "label": "C"}, "expected one of A, B"),
    "choices that are no list": ({"choices": "{p}"}, {"p": "a", "h": "b", "label": 0}, "at least two texts"),
    "an empty choice": ({"choices": ["{p}", "{h}"]}, {"p": " ", "h": "b", "label": 0}, "number 0 is empty"),
    "a pattern that does not match": ({"extract": {"p": "(?P<n>[0-9]+)"}}, {"p": "a", "h": "b"}, "does not match"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_file_and_line(case: str, tmp_path: Path) -> None:
    keys, row, message = BAD_ROWS[case]
    task = task_of(tmp_path, **{**NLI, **keys, "data": [row]})
    with pytest.raises(ValueError, match=rf"task_data\.jsonl:1: .*{message}"):
        read_asked(task, task.data)


def test_a_gold_is_an_index_a_text_or_one_of_the_named_values(tmp_path: Path) -> None:
    rows = [{"p": "a", "h": "b", "label": "no"}, {"p": "c", "h": "d", "label": 0}]
    task = task_of(tmp_path, **NLI, data=rows)
    assert [row.gold for row in read_asked(task, task.data).rows] == [1, 0]
    task = task_of(tmp_path, **NLI, gold_values=[False, True], data=[{"p": "a", "h": "b", "label": True}])
    assert read_asked(task, task.data).rows[0].gold == 1
    rows = [{"p": "a", "h": "b", "label": "2", "names": ["1", "2"], "of": {"text": ["x", "y"]}}]
    keys = {**NLI, "choices": "{of.text}", "gold_values": "{names}"}
    row = read_asked(task_of(tmp_path, **keys, data=rows), task_of(tmp_path, **keys, data=rows).data).rows[0]
    assert (row.labels, row.gold, row.answer) == (("x", "y"), 1, "y")


def test_an_empty_task_is_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, **NLI, data=[])
    with pytest.raises(ValueError, match=r"task_data\.jsonl: holds no row; task task has nothing to score"):
        read_asked(task, task.data)


def test_distractors_are_other_golds_and_depend_on_the_row_alone(tmp_path: Path) -> None:
    facts = [{"country": f"land {i}", "capital": f"town {i}" if i else ""} for i in range(8)]
    keys = {"kind": "choice", "fields": {"": "The capital of {country} is"}, "gold": "{capital}", "distractors": 3}
    task = task_of(tmp_path, **keys, id="{country}", requires=["capital"], data=facts)
    rows = read_asked(task, task.data)
    assert rows.n_unlabelled == 0
    assert [row.labels[row.gold] for row in rows.rows] == [f"town {i}" for i in range(1, 8)]
    assert all(len(set(row.labels)) == 4 for row in rows.rows)
    assert len({row.gold for row in rows.rows}) > 1
    fewer = task_of(tmp_path, **keys, id="{country}", requires=["capital"], data=facts[::-1])
    assert {row.id: row.labels for row in read_asked(fewer, fewer.data).rows} == {r.id: r.labels for r in rows.rows}
    few = task_of(tmp_path, **{**keys, "distractors": 7}, requires=["capital"], data=facts)
    with pytest.raises(ValueError, match="7 different"):
        read_asked(few, few.data)


def test_shuffled_choices_keep_their_gold(tmp_path: Path) -> None:
    keys = {"kind": "choice", "fields": {"Q": "{q}"}, "choices": ["{right}", "{wrong}"], "gold": "{right}"}
    rows = [{"q": str(i), "right": f"r{i}", "wrong": f"w{i}"} for i in range(20)]
    task = task_of(tmp_path, **keys, shuffle=True, data=rows)
    found = read_asked(task, task.data).rows
    assert [row.labels[row.gold] for row in found] == [f"r{i}" for i in range(20)]
    assert {row.gold for row in found} == {0, 1}


def test_unlabelled_rows_are_counted_and_a_split_without_labels_is_refused(tmp_path: Path) -> None:
    rows = nli_rows(3) + [{"p": "a", "h": "b", "label": gold} for gold in (-1, None, "", "-")]
    task = task_of(tmp_path, **NLI, data=rows)
    assert read_asked(task, task.data).n_unlabelled == 4
    task = task_of(tmp_path, **NLI, data=rows[3:])
    with pytest.raises(ValueError, match=r"none of 4 rows has a label .*needs a split with labels"):
        read_asked(task, task.data)
