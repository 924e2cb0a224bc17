"""Task files: their names, variants and worlds; what is refused, and by which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.worlds import Biographies, ModularArithmetic
from lit_consistency.tasks import CompletionTask, TextTask
from lit_consistency.tasks.yaml_file import load_task, load_tasks, task_from_keys
from tests.runs import ROOT
from tests.tasks.tiny import NLI, nli_rows, task_of, write_task

DATA = {"path": "data/x.jsonl"}
PEOPLE = "lit_consistency.data.worlds.Biographies"
CHAINS = "lit_consistency.data.worlds.MarkovChains"
WRITTEN = {"kind": "generation", "fields": {"Q": "{q}"}, "references": "{a}", "metrics": ["exact_match"], "data": DATA}
KNOWN = {"kind": "completion", "fields": {"Q": "{q}"}, "completion": "{a}", "data": DATA}
SPOKEN = {"kind": "completion", "prompt_style": "phi-1", "data": DATA}
TEXT = {"kind": "text", "data": DATA}
PAIRS = {"kind": "pairs", "choices": ["{a}", "{b}"], "data": DATA}
ASKED = {**NLI, "data": DATA}
# case -> the keys of a sound task, those that spoil it, and what the message says
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "unknown key": (ASKED, {"golds": "{label}"}, ["golds", "gold"]),
    "unknown kind": (ASKED, {"kind": "quiz"}, ["kind = 'quiz'", "text, choice, pairs, completion, generation"]),
    "a kind that is a list": (ASKED, {"kind": ["text"]}, ["kind = ['text']"]),
    "unknown metric": (ASKED, {"metrics": ["f1"]}, ["'f1'", "accuracy_per_byte"]),
    "a lone brace": (ASKED, {"fields": {"Q": "{p"}}, ["fields.Q", "lone"]),
    "a key of another kind": (ASKED, {"text": "{p}"}, ["text: only tasks of kind text", "choice"]),
    "wrong type": (ASKED, {"fields": ["{p}"]}, ["fields = ['{p}']", "dict"]),
    "one metric that is no list": (ASKED, {"metrics": "accuracy"}, ["metrics = 'accuracy'", "list"]),
    "choices without gold": (ASKED, {"gold": None}, ["gold", "expected a template"]),
    "a single choice": (ASKED, {"choices": ["yes"]}, ["choices: a single one", "completion"]),
    "neither fields nor contexts": (ASKED, {"fields": {}}, ["fields, contexts"]),
    "shuffled contexts": (
        ASKED,
        {"fields": {}, "contexts": "{p}", "choices": ["{h}"], "shuffle": True},
        ["shuffle, contexts"],
    ),
    "distractors beside choices": (ASKED, {"distractors": 2}, ["distractors, choices: expected one"]),
    "fewer than no distractors": (ASKED, {"distractors": -1}, ["distractors = -1"]),
    "a path as a name": (ASKED, {"name": "../x"}, ["name = '../x'"]),
    "no group in a pattern": (ASKED, {"extract": {"p": "thing"}}, ["extract.p", "group"]),
    "a pattern that is none": (ASKED, {"extract": {"p": "(thing"}}, ["extract.p", "regular expression"]),
    "shots by group without groups": (ASKED, {"shots_from_group": True}, ["shots_from_group", "group"]),
    "two places of data": (ASKED, {"data": {"path": "x", "hub": "y", "split": "z"}}, ["path = x", "hub = y"]),
    "a hub without a split": (ASKED, {"data": {"hub": "y"}}, ["split = None"]),
    "unknown key of data": (ASKED, {"data": {"pth": "x"}}, ["data.pth", "path"]),
    "a source from a file": (ASKED, {"data": {"source": "x"}}, ["data.source: no such key"]),
    "a revision of a file": (ASKED, {"data": {**DATA, "revision": "main"}}, ["revision = 'main': expected a hub"]),
    "a part of rows": (ASKED, {"data": {**DATA, "part": "train"}}, ["part = 'train'", "ends in .txt"]),
    "a part without a share": (TEXT, {"data": {"path": "x.txt", "part": "train"}}, ["validation_share"]),
    "a share without a part": (TEXT, {"data": {"path": "x.txt", "validation_share": 0.1}}, ["part = 'all'"]),
    "a world without a view": (TEXT, {"data": {"world": PEOPLE}}, ["probes = None, documents = None"]),
    "a view without a world": (TEXT, {"data": {**DATA, "probes": "x"}}, ["probes = x", "with a world"]),
    "a world that is none": (TEXT, {"data": {"world": "torch.nn.Linear", "documents": "train"}}, ["path of a World"]),
    "a world's unknown option": (
        TEXT,
        {"data": {"world": {"class_path": PEOPLE, "init_args": {"n": 3}}, "documents": "train"}},
        ["data.world: n: Biographies has no such option", "n_people"],
    ),
    "a world's option of another type": (
        TEXT,
        {"data": {"world": {"class_path": PEOPLE, "init_args": {"n_people": "many"}}, "documents": "train"}},
        ["data.world: init_args = {'n_people': 'many'}"],
    ),
    "a third of a pair": (PAIRS, {"choices": ["{a}", "{b}", "{c}"]}, ["choices: 3 of them"]),
    "fewer than no bytes": (TEXT, {"max_bytes": -1}, ["max_bytes = -1"]),
    "the truth of plain text": (TEXT, {"metrics": ["kl"]}, ["'kl'", "MarkovChains"]),
    "the truth of an excerpt": (
        TEXT,
        {"metrics": ["kl"], "max_bytes": 9, "data": {"world": CHAINS, "documents": "train"}},
        ["max_bytes = 9: expected 0 with 'kl'"],
    ),
    "accuracy of an answer": (KNOWN, {"metrics": ["accuracy"]}, ["'accuracy'", "exact"]),
    "an answer and a style": (KNOWN, {"prompt_style": "phi-1"}, ["completion = {a}, prompt_style = phi-1"]),
    "neither answer nor style": (KNOWN, {"completion": None}, ["completion = None, prompt_style = None"]),
    "an answer without a question": (KNOWN, {"fields": {}}, ["fields: expected them with completion"]),
    "unknown style": (SPOKEN, {"prompt_style": "phi-0"}, ["prompt_style = 'phi-0'", "phi-2"]),
    "templates of a conversation": (SPOKEN, {"group": "{a}"}, ["group: expected none with prompt_style"]),
    "a separator of conversations": (SPOKEN, {"data": {**DATA, "separator": "x"}}, ["data.separator: expected none"]),
    "conversations of a world": (SPOKEN, {"data": {"world": PEOPLE, "pairs": "x"}}, ["expected data.path"]),
    "no metrics": (WRITTEN, {"metrics": []}, ["metrics: expected at least one"]),
    "more than the samples": (WRITTEN, {"metrics": ["pass@5"]}, ["K from 1 to n_samples = 1"]),
    "greedy samples": (WRITTEN, {"generation": {"n_samples": 4}}, ["temperature above 0"]),
    "unknown option": (WRITTEN, {"generation": {"max_tokens": 4}}, ["generation.max_tokens"]),
    "unknown extraction": (WRITTEN, {"extraction": "number"}, ["group in parentheses, or one of none, gsm8k"]),
    "unknown rule for numbers": (WRITTEN, {"numbers": "float"}, ["numbers = 'float'"]),
    "overlap of programs": (WRITTEN, {"program": "{q}", "metrics": ["rouge_l"]}, ["expected pass@K"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named_with_what_is_allowed(case: str, tmp_path: Path) -> None:
    sound, keys, parts = WRONG[case]
    task_of(tmp_path, **sound)
    with pytest.raises(ValueError, match=r"task\.yaml: ") as error:
        task_of(tmp_path, **{**sound, **keys})
    assert all(part in str(error.value) for part in parts), error.value


def test_a_missing_key_and_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no key 'data'"):
        task_of(tmp_path, kind="text", text="{text}")
    for content, message in (("- 1", r"task\.yaml: a list; expected a mapping"), ("a: [", "not YAML")):
        (tmp_path / "task.yaml").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_tasks(str(tmp_path / "task.yaml"))


def test_tasks_are_called_by_file_and_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_task("hub/mnli").data.split == "validation_matched"
    names = ["biographies/old_people", "biographies:old_people", "configs/evaluation/biographies.yaml/old_people"]
    tasks = [load_task(name) for name in names]
    assert tasks[0] == tasks[1] == tasks[2]
    assert tasks[0].name == "biographies_old_people"
    with pytest.raises(ValueError, match=r"'biographies': a file of 9 tasks; .*biographies/old_people"):
        load_task("biographies")
    with pytest.raises(ValueError, match=r"has no 'old_peple'; expected one of old_people, new_people"):
        load_task("biographies/old_peple")
    with pytest.raises(FileNotFoundError, match="expected one of .*piqa"):
        load_tasks("piqqa")


def test_variants_differ_in_the_keys_they_name(tmp_path: Path) -> None:
    many = {**KNOWN, "data": {"path": "data/$variant.jsonl"}}
    text = {"kind": "text", "fields": None, "completion": None}
    file = write_task(tmp_path / "many.yaml", **many, variants={"a": None, "b": {"metrics": ["exact"]}, "c": text})
    first, second, third = load_tasks(str(file))
    assert isinstance(first, CompletionTask)
    assert (first.name, first.data.path, first.metrics) == ("many_a", "data/a.jsonl", first.METRICS)
    assert (second.name, second.data.path, second.metrics) == ("many_b", "data/b.jsonl", ("exact",))
    assert isinstance(third, TextTask), "null takes a key of another kind back"


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({}, "variants: expected a mapping"),
        ({"a": 1}, "variants: expected a mapping"),
        ({"a": {"name": "x"}}, r"variants\.a\.name: expected none"),
        ({"a": {"completon": None}}, r"variants\.a\.completon: no such key"),
        ({"a": {"kind": "text"}}, "fields: only tasks of kind choice or completion or generation"),
        ({"a": {"variants": {}}}, "variants: no such key"),
    ],
)
def test_a_variant_that_does_not_fit(variants: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write_task(tmp_path / "many.yaml", **KNOWN, variants=variants)
    with pytest.raises(ValueError, match=rf"many\.yaml: {message}"):
        load_tasks(str(file))


def test_a_data_folder_takes_the_place_of_data(tmp_path: Path) -> None:
    few_shot = {"path": "train.jsonl"}
    task = load_task(str(write_task(tmp_path / "task.yaml", **NLI, data=DATA, few_shot=few_shot)), Path("/elsewhere"))
    assert task.data.path == "/elsewhere/x.jsonl"
    assert task.few_shot is not None  # type: ignore[attr-defined]
    assert task.few_shot.path == "/elsewhere/train.jsonl"  # type: ignore[attr-defined]


def test_a_task_may_be_a_mapping_of_keys(tmp_path: Path) -> None:
    file = write_task(tmp_path / "task.yaml", **NLI, data=nli_rows(2))
    data = {"path": str(tmp_path / "task_data.jsonl")}
    assert task_from_keys({**NLI, "data": data}, "task") == load_task(str(file))
    with pytest.raises(ValueError, match="task mine: golds: no such key"):
        task_from_keys({**NLI, "data": data, "golds": "x"}, "mine", origin="task mine")


def test_a_world_is_that_of_the_file_with_the_fields_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_task("biographies/old_people").data.world == Biographies()
    assert load_task("biographies/old_people", world={"seed": 1}).data.world == Biographies(seed=1)
    assert load_task("biographies/old_people", world=Biographies(n_people=9)).data.world == Biographies(n_people=9)
    with pytest.raises(ValueError, match=r"world: sed: Biographies has no such option; expected one of .*seed"):
        load_task("biographies/old_people", world={"sed": 1})
    with pytest.raises(ValueError, match="world = Biographies: the run's world is of ModularArithmetic"):
        load_task("biographies/old_people", world=ModularArithmetic())
    keys = {"kind": "text", "data": {"world": Biographies(n_people=9), "documents": "train"}}
    assert task_from_keys(keys, "x").data.world == Biographies(n_people=9), "as the command line builds it"
    assert task_from_keys(keys, "x", world={"seed": 1}).data.world == Biographies(n_people=9, seed=1)
    assert load_task("piqa", world=Biographies()).data.world is None, "a run's world does not concern other tasks"
